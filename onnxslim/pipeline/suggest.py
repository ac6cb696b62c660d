"""The closest valid name, for messages about a name that does not exist.

Case and `_` for `-` do not count as differences.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(word: str, names: Iterable[str]) -> str | None:
    """The name that is closest to `word`; None when no name is close."""
    by_folded = {_folded(name): name for name in names}
    found = difflib.get_close_matches(_folded(word), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The text ` Did you mean ...?` to put after a sentence; empty when no name is close."""
    name = closest(word, names)
    return f" Did you mean `{name}`?" if name else ""


def _folded(name: str) -> str:
    return name.lower().replace("_", "-")

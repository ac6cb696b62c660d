"""The closest valid name, for messages about a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(word: str, names: Iterable[str]) -> str | None:
    """The name that `word` was most likely meant to be, None when nothing is near."""
    by_folded = {_folded(name): name for name in names}
    found = difflib.get_close_matches(_folded(word), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """` Did you mean ...?` to end a sentence with, empty when no name is near."""
    name = closest(word, names)
    return f" Did you mean `{name}`?" if name else ""


def _folded(name: str) -> str:
    return name.lower().replace("_", "-")

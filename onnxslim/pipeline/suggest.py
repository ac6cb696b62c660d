"""The closest valid names, for messages about a name that does not exist.

Case and `_` for `-` do not count as differences.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(word: str, names: Iterable[str]) -> str | None:
    """The name that is closest to `word`; None when no name is close."""
    return next(iter(closest_names(word, names, most=1)), None)


def closest_names(word: str, names: Iterable[str], *, most: int) -> list[str]:
    """At most `most` names that are close to `word`, the closest first.

    With more than one, names that contain the word follow those that are spelled like it.
    """
    by_folded = {_folded(name): name for name in names}
    found = difflib.get_close_matches(_folded(word), by_folded, n=most, cutoff=0.6)
    if most > 1 and word:
        found += sorted((name for name in by_folded if _folded(word) in name), key=len)
    return [by_folded[name] for name in dict.fromkeys(found)][:most]


def did_you_mean(word: str, names: Iterable[str], *, most: int = 1) -> str:
    """The text ` Did you mean ...?` to put after a sentence; empty when no name is close."""
    found = [f"`{name}`" for name in closest_names(word, names, most=most)]
    if not found:
        return ""
    *others, last = found
    return f" Did you mean {', '.join(others)} or {last}?" if others else f" Did you mean {last}?"


def _folded(name: str) -> str:
    return name.lower().replace("_", "-")

"""Figures as words: `1.72 MB`, `431 k`, `0.21 ms`, `-1.2 %`."""

from __future__ import annotations

import re
from typing import Final

_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?b?)", re.IGNORECASE)
_UNITS: Final = ("", "k", "m", "g", "t")


def bytes_text(count: int) -> str:
    """A size in bytes: `512 B`, `1.72 MB` (powers of 1000)."""
    if count < 1000:
        return f"{count} B"
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def bytes_of(text: str) -> int | None:
    """The bytes that a size spells: `512`, `1.72 MB`, `2GB` (powers of 1000); None: it is none."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        return None
    unit: int = 1000 ** _UNITS.index(found[2].lower().rstrip("b"))
    return round(float(found[1]) * unit)


def count_text(count: int | None) -> str:
    """A count: `431 k`, `25.6 M`; `?` when it is unknown."""
    if count is None:
        return "?"
    if count < 10_000:
        return f"{count:,}"
    return _scaled(count, ("", "k", "M", "G", "T", "P"))


def joules_text(picojoules: float) -> str:
    """An energy in picojoules: `640 pJ`, `12.3 µJ`."""
    return _scaled(picojoules, ("pJ", "nJ", "µJ", "mJ", "J"))


def ms_text(milliseconds: float) -> str:
    """A duration in milliseconds: `0.021 ms`, `12.3 ms`, `1.20 s`."""
    if milliseconds >= 999.5:
        return seconds_text(milliseconds / 1000)
    return f"{_three_digits(milliseconds)} ms"


def seconds_text(seconds: float) -> str:
    """A duration in seconds: `4 ms`, `0.12 s`, `8.3 s`, `2 min 5 s`."""
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def change_text(before: float, after: float) -> str:
    """A relative change: `-1.2 %`, `+0.03 %`, `same`."""
    if before == after:
        return "same"
    if not before:
        return "new"
    percent = 100 * (after - before) / before
    return f"{percent:+.1f} %" if abs(percent) >= 0.95 else f"{percent:+.1g} %"


def small_text(value: float) -> str:
    """A small difference: `0`, `3e-07`, `inf`."""
    return "0" if value == 0 else f"{value:.1g}"


def _scaled(count: float, units: tuple[str, ...]) -> str:
    value, index = float(count), 0
    while value >= 999.5 and index < len(units) - 1:
        value /= 1000
        index += 1
    return f"{_three_digits(value)} {units[index]}"


def _three_digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if value else "0"

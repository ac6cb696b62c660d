"""What of a text may reach a terminal: names come from files, and must not control it.

Escaped are all characters that are not printable: controls, formats that change the direction of
what follows (U+202E), line breaks of all kinds, spaces that are not the plain one.
"""

from __future__ import annotations

import re
from typing import Final

_STYLE: Final = re.compile(r"(\x1b\[[0-9;]*m)")  # of tables in colours


def printable(text: str) -> str:
    """`text` with all that is not printable escaped as in Python."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def printable_lines(text: str, *, color: bool = False) -> str:
    """`printable`, but line breaks stay; with `color`, what sets colours as well."""
    if color:
        parts = _STYLE.split(text)
        return "".join(p if i % 2 else printable_lines(p) for i, p in enumerate(parts))
    return "\n".join(map(printable, text.split("\n")))


def printable_json(text: str) -> str:
    """JSON text with all that is not printable, but line breaks, escaped as in JSON."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        sign if sign.isprintable() or sign == "\n" else _json_escape(sign) for sign in text
    )


def _json_escape(sign: str) -> str:
    units = sign.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))

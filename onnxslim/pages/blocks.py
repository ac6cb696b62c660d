"""What a page consists of. Blocks hold plain text: whoever writes them escapes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Tone = Literal["plain", "good", "bad", "muted"]


@dataclass(frozen=True)
class Fact:
    """A value of the JSON as the page shows it.

    Attributes:
        text: as shown; empty where nothing was measured.
        value: in the JSON; columns are sorted by those of their first lines.
        at: JSON pointer.
    """

    text: str
    value: Any = None
    at: str = ""


Line = str | Fact | tuple[str | Fact, ...]
"""A line, whole or in parts."""


@dataclass(frozen=True)
class Svg:
    """A drawing, and what it shows in words."""

    markup: str
    label: str


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a grid: lines below each other.

    Attributes:
        lines: the first one leads; the others are written small.
        drawing: beside the lines.
        tone: of the first line.
        is_code: whether the lines are names or text for a machine.
    """

    lines: Sequence[Line]
    drawing: Svg | None = None
    tone: Tone = "plain"
    is_code: bool = False


@dataclass(frozen=True)
class Column:
    """A column: its header, what it holds in words, and whether it holds figures."""

    title: str
    about: str = ""
    is_figure: bool = True


@dataclass(frozen=True)
class FigureGrid:
    """A table.

    Attributes:
        is_sortable: whether a click on a header sorts.
        is_compact: whether the table is no wider than it needs to be.
        dim: indices of rows that stand back.
        note: below the table.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    is_sortable: bool = False
    is_compact: bool = False
    dim: frozenset[int] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class Tile:
    """One of the figures that lead a page."""

    label: str
    before: Fact
    after: Fact
    change: Line = ""
    note: Line = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Tiles:
    """Figures side by side."""

    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Chart:
    """A drawing with its legend, and what it shows."""

    drawing: Svg
    legend: Sequence[tuple[str, str]] = ()  # class of the colour, words
    note: str = ""
    is_large: bool = False  # whether it is scrolled through


@dataclass(frozen=True)
class Prose:
    """A paragraph; `tone` sets it apart."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Code:
    """Text for a machine, to be copied."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Names with their values."""

    rows: Sequence[tuple[str, Line]]


@dataclass(frozen=True)
class Fold:
    """Blocks behind a title, closed at first."""

    title: str
    blocks: Sequence[Block]
    is_open: bool = False


Block = Tiles | FigureGrid | Chart | Prose | Code | Facts | Fold


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading; `lead` says what it shows."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""

    @property
    def anchor(self) -> str:
        """The name that links have."""
        return "".join(sign if sign.isalnum() else "-" for sign in self.title.lower())


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: of the window.
        heading: above the verdict.
        verdict: the result in a sentence.
        data: the JSON that the page was made from.
    """

    title: str
    heading: str
    verdict: str
    sections: Sequence[Section]
    data: Any
    lead: Sequence[Block] = field(default_factory=tuple)

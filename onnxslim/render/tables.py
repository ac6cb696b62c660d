"""Tables of text for consoles, pipes and files of any width.

Cells are plain text. Control characters are escaped, because cells may hold names from a model, and
a hostile file must not control the terminal.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_NARROWEST_FIRST_COLUMN = 18
_UNLIMITED = 100_000


@dataclass(frozen=True)
class Paper:
    """The medium that text is written to.

    Attributes:
        width: number of columns; None for a file or a pipe, where lines have any length.
        color: whether the medium shows colours.
    """

    width: int | None = None
    color: bool = False


@dataclass
class FigureTable:
    """A table: the first column is text, the others hold figures and are aligned right.

    Attributes:
        headers: header of each column.
        text_columns: indices of further columns that hold text.
        rows: cells of each row.
        styles: style of each row, in the words of rich; empty: plain.
    """

    headers: Sequence[str]
    text_columns: frozenset[int] = frozenset()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)

    def add(self, *cells: str, style: str = "") -> None:
        """Append a row; missing cells are empty."""
        filled = (*cells, *[""] * (len(self.headers) - len(cells)))
        self.rows.append(tuple(map(printable, filled)))
        self.styles.append(style)

    def without_empty_columns(self) -> FigureTable:
        """The same table without the columns in which all cells are empty."""
        kept = [i for i, _ in enumerate(self.headers) if any(row[i] for row in self.rows)]
        return FigureTable(
            [self.headers[i] for i in kept],
            frozenset(kept.index(i) for i in self.text_columns if i in kept),
            [tuple(row[i] for i in kept) for row in self.rows],
            self.styles,
        )

    def render(self, paper: Paper) -> str:
        """The table as text; on narrow paper each row becomes a block of lines."""
        gap = 2
        if paper.width is not None:
            gap = 2 if self._least_width(2) <= paper.width else 1
            if self._least_width(gap) > paper.width:
                return self._blocks()
        stream = io.StringIO()
        console = Console(
            file=stream,
            width=paper.width or _UNLIMITED,
            force_terminal=paper.color,
            color_system="standard" if paper.color else None,
            no_color=not paper.color,
            legacy_windows=False,
            highlight=False,
            markup=False,
            emoji=False,
        )
        console.print(self._table(gap))
        return "\n".join(line.rstrip() for line in stream.getvalue().rstrip("\n").split("\n"))

    def _table(self, gap: int) -> Table:
        table = Table(box=_RULED, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
        for index, header in enumerate(self.headers):
            is_text = self._is_text(index)
            table.add_column(
                Text(header),
                justify="left" if is_text else "right",
                overflow="fold",
                no_wrap=not is_text,
            )
        for row, style in zip(self.rows, self.styles, strict=True):
            table.add_row(*(Text(cell) for cell in row), style=style or None)
        return table

    def _is_text(self, index: int) -> bool:
        return index == 0 or index in self.text_columns

    def _least_width(self, gap: int) -> int:
        widths = 0
        for index, header in enumerate(self.headers):
            widest = max([len(header), *(len(row[index]) for row in self.rows)])
            widths += min(widest, _NARROWEST_FIRST_COLUMN) if self._is_text(index) else widest
        return widths + gap * (len(self.headers) - 1)

    def _blocks(self) -> str:
        label = max(len(header) for header in self.headers)
        lines = []
        for row in self.rows:
            lines.append(row[0])
            lines += [
                f"    {header:<{label}}  {cell}"
                for header, cell in zip(self.headers[1:], row[1:], strict=True)
                if cell
            ]
        return "\n".join(lines)


# one space between columns and a rule under the headers, which every encoding can write
_RULED = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def printable(text: str) -> str:
    """`text` with control characters escaped."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)

"""Tables of text for consoles, pipes and files of any width.

Cells are plain text. Control characters are escaped, because cells may hold names from a model, and
a hostile file must not control the terminal.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxslim.render.printable import printable

_NARROWEST_TEXT = 18  # columns of a cell that may take several lines
_UNLIMITED = 100_000
_LABEL = re.compile(r" *\S+( \S+)* {2,}")  # `  written by  `
_ITEM = re.compile(r" *(\d+\.|[-*]) +")  # of a list
_PIECE = re.compile(r"\s*[^\s:,+/._-]*[\s:,+/._-]?")  # of a name or a pass, with the sign behind it
_CONTINUED = "  "
_UNIT = re.compile(r"(?<=\d) (?=(?:%|dB|[num]?s|min|[kMG]?B)\b|%)")  # no line ends before a unit
_CODE = re.compile(r"\S {2,}\S|->|[{}]| = \w+\(")  # lines that are no prose


@dataclass(frozen=True)
class Paper:
    """The medium that text is written to.

    Attributes:
        width: number of columns; None: lines have any length.
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
        droppable: headers of the columns that narrow paper may lack, the least important first.
        wrapping: headers of columns of figures whose cells may take several lines.
    """

    headers: Sequence[str]
    text_columns: frozenset[int] = frozenset()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    droppable: Sequence[str] = ()
    wrapping: frozenset[str] = frozenset()

    def add(self, *cells: str, style: str = "") -> None:
        """Append a row; missing cells are empty."""
        filled = (*cells, *[""] * (len(self.headers) - len(cells)))
        self.rows.append(tuple(map(printable, filled)))
        self.styles.append(style)

    def without_empty_columns(self) -> FigureTable:
        """The same table without the columns in which all cells are empty."""
        return self._with([i for i, _ in enumerate(self.headers) if any(r[i] for r in self.rows)])

    def render(self, paper: Paper) -> str:
        """The table as text.

        Narrow paper lacks columns that may be dropped, and the text says which. Where the others
        are still too wide, each row becomes a block of lines.
        """
        if paper.width is None or self._fits(paper.width):
            return self._rendered(paper)
        narrow, dropped = self, list[str]()
        for header in self.droppable:
            if header in narrow.headers and not narrow._fits(paper.width):
                dropped.append(header)
                narrow = narrow._with([i for i, h in enumerate(narrow.headers) if h != header])
        if not narrow._fits(paper.width):
            return self._blocks()
        note = f"(too narrow for: {', '.join(dropped)})"
        return f"{narrow._without_emptied_rows(self)._rendered(paper)}\n{note}"

    def _without_emptied_rows(self, whole: FigureTable) -> FigureTable:
        """The same table without rows of which only the first cell is left of those in `whole`."""
        kept = [
            (row, style)
            for row, before, style in zip(self.rows, whole.rows, self.styles, strict=True)
            if any(row[1:]) or not any(before[1:])
        ]
        return replace(self, rows=[row for row, _ in kept], styles=[style for _, style in kept])

    def _fits(self, width: int) -> bool:
        return self._least_width(1) <= width

    def _with(self, kept: Sequence[int]) -> FigureTable:
        """The same table with the columns `kept` alone."""
        return FigureTable(
            [self.headers[i] for i in kept],
            frozenset(kept.index(i) for i in self.text_columns if i in kept),
            [tuple(row[i] for i in kept) for row in self.rows],
            self.styles,
            self.droppable,
            self.wrapping,
        )

    def _rendered(self, paper: Paper) -> str:
        gap = 2 if paper.width is None or self._least_width(2) <= paper.width else 1
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
        console.print(self._folded(paper, gap)._table(gap))
        return "\n".join(line.rstrip() for line in stream.getvalue().rstrip("\n").split("\n"))

    def _folded(self, paper: Paper, gap: int) -> FigureTable:
        """The same table with long first cells broken behind signs, where others need the room."""
        if paper.width is None:
            return self
        width = paper.width - (self._least_width(gap) - self._least(0))
        rows = [(_broken_cell(row[0], width), *row[1:]) for row in self.rows]
        return replace(self, rows=rows)

    def _table(self, gap: int) -> Table:
        table = Table(box=_RULED, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
        for index, header in enumerate(self.headers):
            is_text = self._is_text(index)
            table.add_column(
                Text(header),
                justify="left" if is_text else "right",
                overflow="fold",
                no_wrap=not self._is_wrapping(index),
                min_width=self._least(index) if header in self.wrapping else None,
            )
        for row, style in zip(self.rows, self.styles, strict=True):
            table.add_row(*(Text(cell) for cell in row), style=style or None)
        return table

    def _is_text(self, index: int) -> bool:
        return index == 0 or index in self.text_columns

    def _is_wrapping(self, index: int) -> bool:
        return self._is_text(index) or self.headers[index] in self.wrapping

    def _least_width(self, gap: int) -> int:
        return sum(map(self._least, range(len(self.headers)))) + gap * (len(self.headers) - 1)

    def _least(self, index: int) -> int:
        """The least width of a column."""
        widest = max([len(self.headers[index]), *(len(row[index]) for row in self.rows)])
        return min(widest, _NARROWEST_TEXT) if self._is_wrapping(index) else widest

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


def _broken_cell(cell: str, width: int) -> str:
    """`cell` in lines of up to `width`, broken at spaces and behind signs of names and passes."""
    if len(cell) <= width:
        return cell
    lines, hang = [""], " " * (len(cell) - len(cell.lstrip())) + _CONTINUED
    for piece in _PIECE.findall(cell):
        if len(lines[-1]) + len(piece.rstrip()) > width and lines[-1].strip():
            lines.append(hang)
        lines[-1] += piece
        while len(lines[-1].rstrip()) > width > len(hang):  # no sign to break behind
            lines[-1:] = [lines[-1][:width], hang + lines[-1][width:]]
    return "\n".join(line.rstrip() for line in lines)


# one space between columns and a rule under the headers, which every encoding can write
_RULED = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def wrapped(text: str, paper: Paper) -> str:
    """Lines that fit, broken between words; words are left whole.

    What follows hangs below the value where a line begins with a label (`read by     a, b`).
    """
    if paper.width is None:
        return text
    return "\n".join(_wrapped_line(line, paper.width) for line in text.split("\n"))


def _wrapped_line(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    lead = len(line) - len(line.lstrip())
    label = _LABEL.match(line)
    hang = label.end() if label and label.end() <= width // 3 else lead + 2
    filled = textwrap.fill(
        _UNIT.sub("\xa0", line.lstrip()),
        width,
        initial_indent=" " * lead,
        subsequent_indent=" " * hang,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace("\xa0", " ")


def reflowed(text: str, paper: Paper) -> str:
    """Paragraphs of a docstring whose lines are too long, filled anew; all else as it is."""
    if paper.width is None:
        return text
    return "\n".join(_reflowed(text.rstrip("\n").split("\n"), paper.width))


def _reflowed(lines: Sequence[str], width: int) -> Iterator[str]:
    paragraph: list[str] = []
    for line in lines:
        is_continued = bool(paragraph) and _continues(paragraph, line)
        if paragraph and not is_continued:
            yield from _filled(paragraph, width)
            paragraph = []
        if line.strip():
            paragraph.append(line)
        else:
            yield line
    if paragraph:
        yield from _filled(paragraph, width)


def _continues(paragraph: Sequence[str], line: str) -> bool:
    """Whether `line` belongs to the paragraph: no blank, no new item, no other indentation."""
    if not line.strip() or _ITEM.match(line):
        return False
    item = _ITEM.match(paragraph[0])
    indent = item.end() if item else _indent(paragraph[0])
    return _indent(line) == indent


def _filled(paragraph: Sequence[str], width: int) -> Iterator[str]:
    is_prose = not any(_CODE.search(line) for line in paragraph)
    if not is_prose or max(map(len, paragraph)) <= width:
        yield from paragraph
        return
    item = _ITEM.match(paragraph[0])
    first = _indent(paragraph[0])
    yield textwrap.fill(
        " ".join(line.strip() for line in paragraph),
        width,
        initial_indent=" " * first,
        subsequent_indent=" " * (item.end() if item else first),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())

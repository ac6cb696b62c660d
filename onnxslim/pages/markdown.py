"""A page as Markdown: tables without charts, for comments and notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnxslim.pages.blocks import (
    Block,
    Cell,
    Chart,
    Code,
    Facts,
    FigureGrid,
    Fold,
    Line,
    Page,
    Prose,
    Tiles,
)

SIGN = "<!-- onnxslim report -->"
"""The first line of each page."""

_ESCAPED = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_{}[]<>|#~$"})
_ROWS = 40  # of a table; the JSON has all


def page_markdown(page: Page) -> str:
    """The page as GitHub shows it."""
    lines = [SIGN, f"# {_escaped(page.heading)}", "", f"**{_escaped(page.verdict)}**", ""]
    for block in page.lead:
        lines += [*_block(block), ""]
    for section in page.sections:
        lines += [f"## {_escaped(section.title)}", ""]
        if section.lead:
            lines += [_escaped(section.lead), ""]
        for block in section.blocks:
            lines += [*_block(block), ""]
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip() + "\n"


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Tiles):
        yield from _table(
            ("", "before", "after", "change"),
            [
                (tile.label, tile.before.text, tile.after.text, _said(tile.change, tile.note))
                for tile in block.tiles
            ],
            (1, 2, 3),
        )
    elif isinstance(block, FigureGrid):
        yield from _grid(block)
    elif isinstance(block, Prose):
        yield f"> {_escaped(block.text)}" if block.tone == "bad" else _escaped(block.text)
    elif isinstance(block, Code):
        fence = "```"
        while fence in block.text:
            fence += "`"
        yield from (fence, block.text, fence)
    elif isinstance(block, Facts):
        rows = [(label, line_text(line)) for label, line in block.rows]
        yield from _table(("", ""), rows, ())
    elif isinstance(block, Fold):
        yield f"<details><summary>{_escaped(block.title)}</summary>"
        yield ""
        for inner in block.blocks:
            yield from _block(inner)
            yield ""
        yield "</details>"
    elif isinstance(block, Chart) and block.note and not block.is_large:
        yield _escaped(block.note)


def _grid(grid: FigureGrid) -> Iterator[str]:
    figures = [at for at, column in enumerate(grid.columns) if column.is_figure]
    rows = [[_cell(cell) for cell in row] for row in grid.rows[:_ROWS]]
    yield from _table([column.title for column in grid.columns], rows, figures)
    more = len(grid.rows) - len(rows)
    if more > 0:
        yield f"\n{more:,} more rows are in the JSON."
    if grid.note:
        yield f"\n{_escaped(grid.note)}"


def _cell(cell: Cell) -> str:
    return " · ".join(text for line in cell.lines if (text := line_text(line)))


def _said(change: Line, note: Line) -> str:
    said, told = line_text(change), line_text(note)
    return f"{said} ({told})" if said and told else said or told


def line_text(line: Line) -> str:
    """A line as plain text."""
    parts = line if isinstance(line, tuple) else (line,)
    return "".join(part if isinstance(part, str) else part.text for part in parts)


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], figures: Sequence[int]
) -> Iterator[str]:
    yield f"| {' | '.join(map(_escaped, heads))} |"
    yield f"|{'|'.join('---:' if at in figures else '---' for at in range(len(heads)))}|"
    for row in rows:
        yield f"| {' | '.join(map(_escaped, row))} |"


def _escaped(text: str) -> str:
    """Text that means nothing in Markdown, on one line."""
    return " ".join(text.split()).translate(_ESCAPED)

"""Tables and verdict of the simplify benchmark: models down, tools across, a table per measure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.simplify.drift import Drift

OURS = "ours"


@dataclass(frozen=True)
class Span:
    """A median and the extremes around it, all in the same unit."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """What one tool did to one model; `seconds` without imports, `seconds_process` with them.

    `seconds_cpu` is `seconds` in processor time of all threads.
    """

    model: str
    tool: str
    error: str | None
    operators_before: dict[str, int]
    operators: dict[str, int]
    bytes_before: int
    bytes: int
    seconds: Span
    seconds_cpu: Span
    seconds_process: Span
    peak_rss_bytes: int
    late_imports: int
    is_repeatable: bool
    drift: Drift

    @property
    def nodes_before(self) -> int:
        """Nodes of the input, bodies included."""
        return sum(self.operators_before.values())

    @property
    def nodes(self) -> int:
        """Nodes of the output, bodies included."""
        return sum(self.operators.values())

    @property
    def is_correct(self) -> bool:
        """Whether there is a model and its outputs are the original's, within CLOSE."""
        return self.error is None and self.drift.wrong is None


Cell = Callable[[Row], str]


def print_tables(console: Console, rows: Sequence[Row]) -> None:
    """Print a table per measure, then each failure in full."""
    tables: tuple[tuple[str, Cell, Cell], ...] = (
        ("nodes, bodies included", lambda row: f"{row.nodes_before}", _nodes),
        ("bytes (share of the input)", lambda row: f"{row.bytes_before:,}", _bytes),
        ("seconds: load, simplify, save", lambda row: "", lambda row: _seconds(row.seconds)),
        ("processor seconds of the same", lambda row: "", lambda row: _seconds(row.seconds_cpu)),
        ("seconds: whole process", lambda row: "", lambda row: _seconds(row.seconds_process)),
        ("peak memory (times the input)", lambda row: f"{row.bytes_before / 1e6:.1f} MB", _memory),
        ("drift: max abs (share of range)", lambda row: "", _drift),
    )
    for title, before, cell in tables:
        console.print(_table(title, rows, before, cell))
    for row in rows:
        if not row.is_correct:
            why = row.error or row.drift.wrong
            console.print(f"{row.model}, {row.tool}: {why}", markup=False, highlight=False)
        if row.error is None and not row.is_repeatable:
            console.print(f"{row.model}, {row.tool}: other bytes in every run")


def _table(title: str, rows: Sequence[Row], before: Cell, cell: Cell) -> Table:
    names = list(dict.fromkeys(row.tool for row in rows))
    table = Table("model", "input", *names, title=title)
    for model, own in _by_model(rows).items():
        cells = {row.tool: cell(row) if row.error is None else "[red]failed[/red]" for row in own}
        table.add_row(model, before(own[0]), *(cells[name] for name in names))
    return table


def _by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.model, []).append(row)
    return groups


def _nodes(row: Row) -> str:
    return f"{row.nodes}" if row.is_correct else f"[red]{row.nodes} wrong[/red]"


def _bytes(row: Row) -> str:
    share = row.bytes / row.bytes_before
    text = f"{row.bytes - row.bytes_before:+,} ({share:.4f})"
    return f"[red]{text}[/red]" if row.bytes > row.bytes_before else text


def _seconds(span: Span) -> str:
    return f"{span.median:.2f} [{span.low:.2f}, {span.high:.2f}]"


def _memory(row: Row) -> str:
    return f"{row.peak_rss_bytes / 1e6:,.0f} MB ({row.peak_rss_bytes / row.bytes_before:.1f}x)"


def _drift(row: Row) -> str:
    text = f"{row.drift.max_abs:.1e} ({row.drift.of_range:.0e})"
    return text if row.is_correct else "[red]wrong[/red]"


def print_verdict(console: Console, rows: Sequence[Row]) -> None:
    """Print how each tool fares against the best correct other one: the lines that decide."""
    groups = list(_by_model(rows).values())
    own = [row for row in rows if row.tool == OURS]
    if not own:
        return
    total = len(own)
    bests = [best for group in groups if (best := _best_peer(group)) is not None]
    limits = {best.model: best.nodes for best in bests}
    correct = [row for row in own if row.is_correct]
    at_most = sum(row.nodes <= limits.get(row.model, row.nodes) for row in correct)
    fewer = sum(row.nodes < limits.get(row.model, 0) for row in correct)
    smaller = sum(row.bytes <= row.bytes_before for row in correct)
    repeatable = sum(row.is_repeatable for row in correct)
    console.print(f"nodes at most the best correct peer's: {at_most} of {total}; fewer: {fewer}")
    console.print(f"bytes never above the input's: {smaller} of {total}")
    console.print(f"loads, and outputs within CLOSE: {len(correct)} of {total}")
    console.print(f"the same bytes in every run: {repeatable} of {total}")
    for name in dict.fromkeys(row.tool for row in rows if row.tool != OURS):
        _print_seconds(console, correct, [row for row in rows if row.tool == name])


def _best_peer(group: Sequence[Row]) -> Row | None:
    peers = [row for row in group if row.tool != OURS and row.is_correct]
    return min(peers, key=lambda row: row.nodes, default=None)


def _print_seconds(console: Console, own: Sequence[Row], peer: Sequence[Row]) -> None:
    theirs = {row.model: row for row in peer if row.error is None}
    ours = [row for row in own if row.model in theirs]
    if not ours:
        return
    others = [theirs[row.model] for row in ours]
    mine, other = (sum(row.seconds.median for row in group) for group in (ours, others))
    mine_cpu, other_cpu = (sum(row.seconds_cpu.median for row in group) for group in (ours, others))
    console.print(
        f"seconds on the {len(ours)} models that both finish: ours {mine:.2f}, "
        f"{peer[0].tool} {other:.2f}: {mine / other:.2f} times "
        f"({mine_cpu / other_cpu:.2f} times in processor time)"
    )

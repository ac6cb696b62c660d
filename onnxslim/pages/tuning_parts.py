"""Parts of a page on a search: its front, its table, its trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from onnxslim.pages.blocks import (
    Block,
    Cell,
    Chart,
    Column,
    Fact,
    Facts,
    FigureGrid,
    Fold,
    Line,
    Section,
)
from onnxslim.pages.charts import (
    ChartAxis,
    Spot,
    bytes_axis,
    plain_axis,
    scatter_chart,
)
from onnxslim.pages.cursor import At
from onnxslim.pages.words import percent, plain, significant, times, whole
from onnxslim.render.units import bytes_text, ms_text, seconds_text

_MOST_ROWS: Final = 400
_MOST_TRIALS: Final = 200


def tuning_section(tuning: At) -> Section | None:
    """The models that nothing beats, the chosen one ringed; None where nothing was searched."""
    if not tuning:
        return None
    points = list(tuning["front"])
    blocks: list[Block] = [_asked(tuning)]
    for key, title, show in (
        ("latency_ms", "latency", ms_text),
        ("file_bytes", "file", bytes_axis),
    ):
        chart = _front_chart(points, key, ChartAxis(title, show))
        if chart is not None:
            blocks.append(chart)
    if points:
        blocks.append(_front_grid(points))
    if tuning["predicted"] and tuning["measured"]:
        blocks.append(_promise_grid(tuning))
    log = list(tuning["trial_log"])
    if log:
        blocks.append(Fold(f"All {len(log):,} trials", [_trials_grid(log)]))
    return Section(
        "Front",
        blocks,
        "Models that nothing beats in latency, bytes and closeness at once; the ringed one is "
        "written.",
    )


def sensitivity_section(tuning: At) -> Section | None:
    """What each layer costs in each variant; None where nothing was measured."""
    entries = list(tuning["table"])
    if not entries:
        return None
    rows = [
        [
            Cell((entry["layer"].fact,), is_code=True),
            Cell((entry["variant"].fact,), is_code=True),
            plain(entry["bytes"].figure(bytes_text)),
            plain(entry["ms"].figure(ms_text)),
            plain(entry["error"].figure(significant)),
            plain("chosen" if entry["chosen"].value else ""),
        ]
        for entry in entries[:_MOST_ROWS]
    ]
    columns = [
        Column("layer", is_figure=False),
        Column("variant", is_figure=False),
        Column("bytes"),
        Column("time"),
        Column("error"),
        Column("", is_figure=False),
    ]
    spots = [
        Spot(
            entry["bytes"].number or 0.0,
            entry["error"].number or 0.0,
            f"{entry['layer'].text}, {entry['variant'].text}",
            bool(entry["chosen"].value),
        )
        for entry in entries
        if (entry["error"].number or 0.0) > 0 and (entry["bytes"].number or 0.0) > 0
    ]
    blocks: list[Block] = []
    if len(spots) > 1:
        x = ChartAxis("bytes of the layer", bytes_axis, is_log=True)
        y = ChartAxis("error at the outputs", plain_axis, is_log=True)
        blocks.append(Chart(scatter_chart(spots, x, y)))
    chosen = frozenset(i for i, e in enumerate(entries[:_MOST_ROWS]) if not e["chosen"].value)
    more = len(entries) - len(rows)
    note = f"{more:,} more rows are in the JSON." if more > 0 else ""
    grid = FigureGrid(columns, rows, is_sortable=True, dim=chosen, note=note)
    blocks.append(Fold(f"All {len(entries):,} variants", [grid]))
    return Section(
        "Sensitivity", blocks, "What a layer takes in each variant, and what that alone costs."
    )


def _asked(tuning: At) -> Facts:
    rows: Sequence[tuple[str, Line]] = [
        ("goal", tuning["goal"].fact),
        ("floors", tuning["floors"].fact),
        ("trials", tuning["trials"].figure(whole)),
        ("took", tuning["seconds"].figure(seconds_text)),
    ]
    return Facts(rows)


def _front_chart(points: Sequence[At], key: str, x: ChartAxis) -> Chart | None:
    """Closeness, or else accuracy, by another figure; None where there is too little to draw."""
    which = "accuracy" if any(p["accuracy"].number is not None for p in points) else "closeness"
    unit = next((point["closeness_unit"].text for point in points), "")
    known = [p for p in points if p[key].number is not None and p[which].number is not None]
    if len(known) < 2:
        return None
    spots = [
        Spot(
            p[key].number or 0.0,
            p[which].number or 0.0,
            p["pipeline"].text,
            bool(p["chosen"].value),
        )
        for p in known
    ]
    y = ChartAxis("accuracy", percent) if which == "accuracy" else ChartAxis(unit, significant)
    return Chart(scatter_chart(spots, x, y))


def _front_grid(points: Sequence[At]) -> FigureGrid:
    columns: Sequence[tuple[str, str, Callable[[Any], str]]] = (
        ("file", "file_bytes", bytes_text),
        ("latency", "latency_ms", ms_text),
        ("speed", "speedup", times),
        ("closeness", "closeness", significant),
        ("accuracy", "accuracy", percent),
    )
    kept = [c for c in columns if any(point[c[1]].number is not None for point in points)]
    rows = []
    for point in points:
        name: list[Line] = [point["tried"].fact]
        if point["path"]:
            name.append(point["path"].fact)
        cells = [
            plain((point[key].figure(show), *_unit(point, key)))
            if key == "closeness"
            else plain(point[key].figure(show))
            for _, key, show in kept
        ]
        mark = plain("chosen" if point["chosen"].value else "", tone="good")
        rows.append([Cell(name, is_code=True), *cells, mark])
    heads = [Column("pipeline", is_figure=False), *(Column(title) for title, _, _ in kept)]
    return FigureGrid([*heads, Column("", is_figure=False)], rows, is_sortable=True)


def _unit(point: At, key: str) -> tuple[str | Fact, ...]:
    return (" ", point["closeness_unit"].fact) if point[key].number is not None else ()


def _promise_grid(tuning: At) -> FigureGrid:
    columns = [Column("", is_figure=False), Column("bytes"), Column("time"), Column("error")]
    rows = [
        [
            Cell((title,)),
            plain(tuning[key]["bytes"].figure(bytes_text)),
            plain(tuning[key]["ms"].figure(ms_text)),
            plain(tuning[key]["error"].figure(significant)),
        ]
        for title, key in (("by the table", "predicted"), ("measured", "measured"))
    ]
    return FigureGrid(columns, rows)


def _trials_grid(log: Sequence[At]) -> FigureGrid:
    columns = [
        Column("number"),
        Column("pipeline", is_figure=False),
        Column("state", is_figure=False),
        Column("file"),
        Column("latency"),
        Column("loss"),
        Column("took"),
    ]
    rows = [
        [
            plain(trial["number"].figure(whole)),
            Cell((trial["pipeline"].fact,), is_code=True),
            plain(trial["state"].fact),
            plain(trial["file_bytes"].figure(bytes_text)),
            plain(trial["latency_ms"].figure(ms_text)),
            plain(trial["loss"].figure(significant)),
            plain(trial["seconds"].figure(seconds_text)),
        ]
        for trial in log[:_MOST_TRIALS]
    ]
    more = len(log) - len(rows)
    note = f"{more:,} more trials are in the JSON." if more > 0 else ""
    return FigureGrid(columns, rows, is_sortable=True, note=note)

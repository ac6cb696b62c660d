"""Pages of bench, compare, sensitivity and exits, from the JSON that these commands write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from onnxslim.pages.blocks import (
    Block,
    Cell,
    Chart,
    Code,
    Column,
    Facts,
    FigureGrid,
    Line,
    Page,
    Prose,
    Section,
    Tile,
    Tiles,
)
from onnxslim.pages.charts import (
    ChartAxis,
    Spot,
    Times,
    latency_chart,
    plain_axis,
    ratio_chart,
    scatter_chart,
    share_bar,
)
from onnxslim.pages.cursor import At
from onnxslim.pages.detail_parts import (
    energy_section,
    graph_section,
    layers_section,
    outputs_grid,
)
from onnxslim.pages.words import (
    cosine,
    decibel,
    interval,
    latency_ms,
    percent,
    plain,
    significant,
    speed_words,
    times,
    whole,
)
from onnxslim.render.units import bytes_text, change_text, count_text, ms_text

_STYLES: Final = ("before", "after", "s2", "s3")


def bench_page(at: At) -> Page:
    """Models timed in turn."""
    rows = list(at["rows"])
    names = [row["model"].text for row in rows]
    strips = [
        Times(name, [q.number or 0.0 for q in row["latency_ms"]["quantiles"]], _STYLES[i % 4])
        for i, (name, row) in enumerate(zip(names, rows, strict=True))
    ]
    blocks: list[Block] = []
    if strips and all(len(strip.quantiles) == 21 for strip in strips):
        note = "A box holds the middle half of the runs, a dot stands for 5 % of them."
        blocks.append(Chart(latency_chart(strips), note=note))
    ratios = [
        (name, *(row["against_first"][key].number or 1.0 for key in _RATIO))
        for name, row in zip(names, rows, strict=True)
        if row["against_first"]
    ]
    columns = [Column("model", is_figure=False)]
    columns += map(Column, ("median", "p10", "p90", "runs", "as fast as the first"))
    cells = [
        [
            Cell((row["model"].fact,), is_code=True),
            *(plain(row["latency_ms"][key].figure(ms_text)) for key in ("median", "p10", "p90")),
            plain(row["latency_ms"]["runs"].figure(whole)),
            _against(row["against_first"]),
        ]
        for row in rows
    ]
    blocks.append(FigureGrid(columns, cells, is_sortable=True))
    if ratios:
        note = "How many times as fast as the first, with the 95 % interval."
        blocks.append(Chart(ratio_chart(ratios), note=note))  # type: ignore[arg-type]
    verdict = "; ".join(
        f"{name}: {speed_words(row['against_first'])}"
        for name, row in zip(names, rows, strict=True)
        if row["against_first"]
    )
    sections = [Section("Latency", blocks, "Models in turn, each a run in each round.")]
    return _page(at, f"{len(rows)} models timed in turn", verdict, sections)


_RATIO: Final = ("ratio_low", "ratio", "ratio_high")


def _against(pair: At) -> Cell:
    return Cell((pair["ratio"].figure(times), interval(pair))) if pair else Cell(())


def compare_page(at: At) -> Page:
    """Two models: sizes, latency, drift, and what they are made of."""
    a, b = at["a"], at["b"]
    tiles = [
        _tile("File", a["stats"]["file_bytes"], b["stats"]["file_bytes"], bytes_text),
        _tile("Nodes", a["stats"]["nodes"], b["stats"]["nodes"], count_text),
        _tile("Parameters", a["stats"]["parameters"], b["stats"]["parameters"], count_text),
        _tile("MACs", a["stats"]["macs"], b["stats"]["macs"], count_text),
    ]
    pair = at["latency"]
    sections: list[Section | None] = []
    if pair:
        change = pair["ratio"].figure(times)
        before, after = (latency_ms(pair[key]) for key in ("before_ms", "after_ms"))
        tiles.insert(1, Tile("Latency", before, after, change, interval(pair)))
    if at["drift"]:
        lead = f"Outputs of B against A on {at['compared_on'].text}."
        sections.append(Section("Drift", [outputs_grid(at["drift"])], lead))
    details = at["details"]
    sections += [layers_section(details), energy_section(details), graph_section(details)]
    found = [section for section in sections if section is not None]
    heading = f"{a['path'].text} against {b['path'].text}"
    return _page(at, heading, speed_words(pair) if pair else "", found, [Tiles(tiles)])


def sensitivity_page(at: At) -> Page:
    """A pass on each layer or group alone."""
    points = list(at["points"])
    strengths = list(dict.fromkeys(str(point["strength"].value) for point in points))
    targets = list(dict.fromkeys(point["target"].text for point in points))
    blocks: list[Block] = []
    spots = [
        Spot(
            targets.index(point["target"].text) + 1.0,
            point["distance"]["divergence"].number or 1e-12,
            f"{point['target'].text}: {point['pass'].text}",
            series=strengths.index(str(point["strength"].value)) + 1,
        )
        for point in points
        if point["distance"] and (point["distance"]["divergence"].number or 0.0) > 0
    ]
    if len(spots) > 1:
        x = ChartAxis("layer or group, in the order of the table", whole, is_whole=True)
        y = ChartAxis("divergence of the outputs", plain_axis, is_log=True)
        legend = [(f"s{1 + i % 4}", strength) for i, strength in enumerate(strengths)]
        blocks.append(Chart(scatter_chart(spots, x, y), legend if len(strengths) > 1 else ()))
    blocks.append(_sensitivity_grid(points, targets))
    lead = "Each treated alone; the others stay as they are."
    sections = [Section("Sensitivity", blocks, lead)]
    verdict = f"{len(targets)} layers or groups, each treated alone by {at['passes'].text}."
    return _page(at, f"Sensitivity of {at['model'].text}", verdict, sections)


def _sensitivity_grid(points: Sequence[At], targets: Sequence[str]) -> FigureGrid:
    columns: Sequence[tuple[str, Callable[[Any], str]]] = (
        ("divergence", significant),
        ("agreement", percent),
        ("sqnr_db", decibel),
        ("mean_cosine", cosine),
        ("mean_kl", significant),
    )
    kept = [c for c in columns if any(p["distance"][c[0]].number is not None for p in points)]
    rows = [
        [
            plain(str(targets.index(point["target"].text) + 1)),
            Cell((point["target"].fact, point["pass"].fact), is_code=True),
            plain(point["bytes_left"].figure(percent)),
            plain(point["macs_left"].figure(percent)),
            *(plain(point["distance"][key].figure(show)) for key, show in kept),
        ]
        for point in points
    ]
    titles = {"sqnr_db": "SQNR", "mean_cosine": "cosine", "mean_kl": "KL"}
    heads = [Column("no."), Column("target", is_figure=False), Column("bytes left")]
    heads += [Column("MACs left"), *(Column(titles.get(key, key)) for key, _ in kept)]
    return FigureGrid(heads, rows, is_sortable=True)


def exits_page(at: At) -> Page:
    """Where a classifier can be left early."""
    rows = []
    for row in at["exits"]:
        shape = "×".join("?" if size.value is None else str(size.value) for size in row["shape"])
        leaving = row["leaving"].number
        rows.append(
            [
                Cell((row["tensor"].fact, shape), is_code=True),
                plain(row["latency"].figure(percent)),
                plain(row["work"].figure(percent)),
                plain(row["head"].fact),
                plain(row["agreement"].figure(percent)),
                Cell(
                    (row["leaving"].figure(percent),),
                    None if leaving is None else share_bar(leaving),
                ),
            ]
        )
    columns = [
        Column("tensor", is_figure=False),
        Column("time before"),
        Column("work before"),
        Column("head", is_figure=False),
        Column("agreement"),
        Column("may leave"),
    ]
    blocks: list[Block] = [FigureGrid(columns, rows, is_sortable=True)]
    blocks += [Prose(note.text, "muted") for note in at["notes"]]
    lead = "How much of the network comes before each place, and who may leave there."
    verdict = "" if rows else "There is no place at which this model can be left early."
    return _page(at, f"Exits of {at['model'].text}", verdict, [Section("Exits", blocks, lead)])


PAGES: Mapping[str, Callable[[At], Page]] = {
    "bench": bench_page,
    "compare": compare_page,
    "sensitivity": sensitivity_page,
    "exits": exits_page,
}
"""By the word under `kind`."""


def _tile(label: str, before: At, after: At, show: Callable[[Any], str]) -> Tile:
    known = before.number is not None and after.number is not None
    change = change_text(before.number or 0, after.number or 0) if known else ""
    return Tile(label, before.figure(show), after.figure(show), change)


def _page(
    at: At,
    heading: str,
    verdict: str,
    sections: Sequence[Section],
    lead: Sequence[Block] = (),
) -> Page:
    """A page that ends with what it takes to measure the same again."""
    rows: list[tuple[str, Line]] = [
        ("onnxslim", at["onnxslim"].fact),
        ("processor", at["processor"].fact),
        *((name, version.fact) for name, version in at["versions"].items()),
    ]
    blocks: list[Block] = [Facts(rows), Prose("The command:"), Code(at["command"].text)]
    provenance = Section("Provenance", blocks, "What it takes to measure the same again.")
    text = f"{verdict[:1].upper()}{verdict[1:]}"
    return Page(f"onnxslim: {heading}", heading, text, [*sections, provenance], at.value, lead)

"""Parts of a page on what both models are made of: layers, drift, energy, graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from onnxslim.pages.blocks import (
    Block,
    Cell,
    Chart,
    Column,
    Fact,
    FigureGrid,
    Fold,
    Prose,
    Section,
)
from onnxslim.pages.charts import drift_chart, energy_chart, share_bar
from onnxslim.pages.cursor import At
from onnxslim.pages.graph_chart import STATES, graph_chart
from onnxslim.pages.words import cosine, decibel, percent, plain, significant, whole
from onnxslim.render.units import bytes_text, count_text, joules_text, ms_text

_MOST_LAYERS: Final = 300
_MOST_OPERATORS: Final = 12


def layers_section(details: At) -> Section | None:
    """The layers before and after; None where the report does not tell of them."""
    pairs = list(details["layers"])
    if not pairs:
        return None
    shown, note = pairs, ""
    if len(pairs) > _MOST_LAYERS:
        order = sorted(range(len(pairs)), key=lambda i: -_largest(pairs[i]))[:_MOST_LAYERS]
        shown = [pairs[i] for i in sorted(order)]
        note = f"The {_MOST_LAYERS} largest of {len(pairs):,} layers; the JSON has all."
    columns = [
        Column("layer", "its output, its operator, the shape of its weight", is_figure=False),
        Column("bytes", "of all that the file stores of it"),
        Column("time", "of its kernels, by the profile of onnxruntime"),
        Column("MACs", "multiply-accumulates for one sample"),
        Column("bits", "in the file for each element of its weight"),
        Column("rank", "that the shape of its matrix allows"),
        Column("zeros", "share of its weight"),
        Column("side", "what its kernels compute with", is_figure=False),
        Column("SQNR", "of its output against that of the model before"),
    ]
    rows = [_layer_row(pair) for pair in shown]
    kept = [i for i in range(len(columns)) if i == 0 or any(_has_text(row[i]) for row in rows)]
    grid = FigureGrid(
        [columns[i] for i in kept],
        [[row[i] for i in kept] for row in rows],
        is_sortable=True,
        note=note,
    )
    lead = (
        "In each place the model after, and below it, in grey, the model before where it differs. "
        "Click a header to sort."
    )
    return Section("Layers", [grid], lead)


def _largest(pair: At) -> float:
    return max(pair[side]["bytes"].number or 0.0 for side in ("before", "after"))


def _has_text(cell: Cell) -> bool:
    return any(not isinstance(line, Fact) or line.text for line in cell.lines)


def _layer_row(pair: At) -> list[Cell]:
    before, after = pair["before"], pair["after"]
    figures = after if after else before
    shape = "×".join(str(size.value) for size in figures["shape"])
    state = "new: " if not before else "gone: " if not after else ""
    about = f"{state}{figures['operator'].text} {shape}, {figures['stored'].text}"
    was = before["stored"].text
    if before and after and was != after["stored"].text:
        about += f" (was {was})"
    columns: Sequence[tuple[str, Callable[[Any], str]]] = (
        ("bytes", bytes_text),
        ("ms", ms_text),
        ("macs", count_text),
        ("bits", lambda bits: f"{bits:.3g}"),
        ("rank", whole),
        ("sparsity", lambda share: f"{100 * share:.0f} %"),
    )
    return [
        Cell((pair["name"].fact, about), is_code=True),
        *(_both(before[key].figure(show), after[key].figure(show)) for key, show in columns),
        _both(before["side"].fact, after["side"].fact),
        plain(pair["sqnr_db"].figure(decibel)),
    ]


def _both(before: Fact, after: Fact) -> Cell:
    """The value after; that before below it, where it is another."""
    if not after.text:
        return Cell((before,) if before.text else (), tone="muted")
    if not before.text or before.text == after.text:
        return Cell((after,))
    return Cell((after, before))


def drift_section(at: At) -> Section | None:
    """How far outputs, layers and samples moved; None where nothing was compared."""
    details, blocks = at["details"], list[Block]()
    steps = [step for step in at["passes"] if step["committed"].value and step["drift_original"]]
    if steps:
        blocks.append(outputs_grid(steps[-1]["drift_original"]))
    layers = [pair for pair in details["layers"] if pair["sqnr_db"].number is not None]
    if any(pair["sqnr_db"].value != "Infinity" for pair in layers):
        rows = [(pair["name"].text, pair["sqnr_db"].number or 0.0) for pair in layers]
        note = (
            f"The output of each layer in the order of the graph, on {details['layers_on'].text}; "
            "the lower, the farther. Where a curve falls, error comes in. Layers are computed "
            "apart, as a session does where their outputs are returned."
        )
        blocks.append(Chart(drift_chart(rows), (), note))
        worst = sorted(layers, key=lambda pair: pair["sqnr_db"].number or 0.0)[:5]
        grid = FigureGrid(
            [Column("worst layers", is_figure=False), Column("SQNR")],
            [
                [Cell((p["name"].fact,), is_code=True), plain(p["sqnr_db"].figure(decibel))]
                for p in worst
            ],
            is_compact=True,
        )
        blocks.append(grid)
    samples = list(details["samples"])
    if any(sample["sqnr_db"].value != "Infinity" for sample in samples):
        blocks.append(_samples_grid(samples, details["samples_compared"]))
    if not blocks:
        return None
    lead = f"The model after against the model before, on {at['verified_on'].text}."
    return Section("Drift", blocks, lead)


def outputs_grid(drifts: At) -> FigureGrid:
    """The drift of each output."""
    columns: Sequence[tuple[str, str, Callable[[Any], str]]] = (
        ("SQNR", "sqnr_db", decibel),
        ("largest difference", "max_abs", significant),
        ("agrees", "agreement", percent),
        ("cosine", "mean_cosine", cosine),
        ("worst row", "least_cosine", cosine),
        ("KL", "mean_kl", significant),
        ("worst KL", "largest_kl", significant),
    )
    found = list(drifts.items())
    kept = [c for c in columns if any(drift[c[1]].number is not None for _, drift in found)]
    rows = [
        [
            Cell((name, drift["kind"].text), is_code=True),
            *(plain(drift[key].figure(show)) for _, key, show in kept),
        ]
        for name, drift in found
    ]
    return FigureGrid(
        [Column("output", is_figure=False), *(Column(title) for title, _, _ in kept)], rows
    )


def _samples_grid(samples: Sequence[At], count: At) -> FigureGrid:
    columns = [
        Column("worst samples"),
        Column("output", is_figure=False),
        Column("SQNR"),
        Column("largest difference"),
    ]
    rows = [
        [
            plain(sample["number"].figure(whole)),
            Cell((sample["output"].fact,), is_code=True),
            plain(sample["sqnr_db"].figure(decibel)),
            plain(sample["max_abs"].figure(significant)),
        ]
        for sample in samples
    ]
    note = f"Of {count.value} samples, counted from 1."
    return FigureGrid(columns, rows, is_compact=True, note=note)


def energy_section(details: At) -> Section | None:
    """Energy by arithmetic; None where the report does not tell of it."""
    models = [(side, details[side]["energy"]) for side in ("before", "after")]
    if not all(energy for _, energy in models):
        return None
    kinds = ("compute_pj", "weights_pj", "activations_pj")
    bars = [
        (side, [sum(part[kind].number or 0.0 for part in energy["parts"]) for kind in kinds])
        for side, energy in models
    ]
    legend = [("s1", "arithmetic"), ("s2", "weights from DRAM"), ("s3", "activations")]
    blocks: list[Block] = [Chart(energy_chart(bars, joules_text), legend)]
    for side, energy in models:
        blocks.append(Fold(f"By operator, {side}", [_energy_grid(energy)]))
    unsized = max(energy["unsized"].number or 0 for _, energy in models)
    if unsized:
        text = f"{unsized:.0f} nodes are not counted in full: sizes of their tensors are not known."
        blocks.append(Prose(text, "muted"))
    lead = (
        "For one sample, by arithmetic and not by measurement: operations and bytes times the "
        "energy of each at 45 nm (Horowitz 2014). It tells what moves and computes less, and where."
    )
    return Section("Energy", blocks, lead)


def _energy_grid(energy: At) -> FigureGrid:
    total = energy["total_pj"].number or 1.0
    columns = [
        Column("operator", is_figure=False),
        Column("operations"),
        Column("arithmetic"),
        Column("weights"),
        Column("activations"),
        Column("share"),
    ]
    parts = list(energy["parts"])
    rows = []
    for part in parts[:_MOST_OPERATORS]:
        own = sum(part[k].number or 0.0 for k in ("compute_pj", "weights_pj", "activations_pj"))
        share = own / total
        rows.append(
            [
                Cell((part["operator"].fact, part["arithmetic"].fact), is_code=True),
                plain(part["operations"].figure(count_text)),
                *(
                    plain(part[key].figure(joules_text))
                    for key in ("compute_pj", "weights_pj", "activations_pj")
                ),
                Cell((f"{100 * share:.1f} %",), share_bar(share)),
            ]
        )
    more = len(parts) - len(rows)
    note = f"{more} more operators are in the JSON." if more > 0 else ""
    return FigureGrid(columns, rows, note=note)


def graph_section(details: At) -> Section | None:
    """Pictures of both graphs; None where the report does not tell of them."""
    models = [(side, details[side]["graph"]) for side in ("before", "after")]
    if not any(graph["boxes"] for _, graph in models):
        return None
    blocks: list[Block] = []
    legend = [(f"key {state}", words) for state, words in STATES.items()]
    for side, graph in models:
        if not graph["boxes"]:
            continue
        note = f"{graph['nodes'].number or 0:,.0f} nodes. {graph['folded'].text}".strip()
        chart = Chart(graph_chart(graph), legend, note, is_large=True)
        changed = sum(box["changed"].number or 0 for box in graph["boxes"])
        title = f"The graph {side}: {changed:,.0f} nodes are not the same in the other"
        blocks.append(Fold(title, [chart], is_open=side == "after"))
    return Section("Graph", blocks, "Data flow from top to bottom; nodes that changed are marked.")

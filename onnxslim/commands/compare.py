"""`onnxslim compare A B`: drift, bytes and latency of two models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import (
    calib_option,
    data_options,
    json_option,
    overwrite_option,
    provider_option,
    report_option,
    run_options,
)
from onnxslim.commands.console import paper, say
from onnxslim.commands.files import check_report, write_report
from onnxslim.commands.measured import measured_json
from onnxslim.commands.progress import progress
from onnxslim.commands.streams import source_of
from onnxslim.pages.formats import PAGES
from onnxslim.render.json import drifts_json, figures_json, json_text, pair_json, plain_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxslim.pipeline.data_settings import DataSettings
    from onnxslim.render.json import Json
    from onnxslim.report import Comparison, Drift, LatencyPair, Stats


@click.command("compare", short_help=COMMANDS["compare"])
@click.argument("a")
@click.argument("b")
@calib_option()
@data_options
@run_options
@provider_option
@report_option(PAGES, "Write the figures, those of each layer too, to a file, or as a page.")
@overwrite_option
@json_option
def command(
    a: str,
    b: str,
    calib: str | None,
    data: DataSettings,
    input_shapes: Mapping[str, tuple[int, ...]] | None,
    threads: int | None,
    provider: str | None,
    seed: int | None,
    report: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Show how far the outputs of model B are from those of A, and their bytes and latency.

    Without --calib the models run on seeded inputs, and the output says so. One of A and B may be
    `-`, which is standard input.
    """
    from onnxslim import api
    from onnxslim.render.tables import wrapped

    if report is not None:
        check_report(Path(report), Path(a), Path(b), PAGES, overwrite=overwrite)
    details = None
    with progress() as shown:
        arguments: dict[str, Any] = {
            "calibration": calib,
            "data": data,
            "seed": seed or 0,
            "threads": threads,
            "provider": provider,
            "input_shapes": input_shapes,
            "progress": shown,
        }
        models = source_of(a), source_of(b)
        if report is None:
            found = api.compare_models(*models, **arguments)
        else:
            found, details = api.compare_in_detail(*models, **arguments)
    comparison, latency, stats_a, stats_b, compared_on = found
    figures = _json((a, b), found)
    if report is not None:
        members = {**figures, "details": plain_json(details)}
        write_report(Path(report), measured_json("compare", members), PAGES)
    if as_json:
        say(json_text(figures).rstrip())
        return
    blocks = (_sizes(a, b, stats_a, stats_b, latency), _drifts(comparison))
    where = wrapped(f"Outputs of B against A on {compared_on}.", paper())
    say("\n\n".join((*blocks, where)))


def _json(
    names: tuple[str, str], found: tuple[Comparison, LatencyPair | None, Stats, Stats, str]
) -> dict[str, Json]:
    comparison, latency, stats_a, stats_b, compared_on = found
    return {
        "a": {"path": names[0], "stats": figures_json(stats_a)},
        "b": {"path": names[1], "stats": figures_json(stats_b)},
        "drift": drifts_json(comparison.original),
        "latency": pair_json(latency),
        "compared_on": compared_on,
    }


def _sizes(a: str, b: str, first: Stats, second: Stats, latency: LatencyPair | None) -> str:
    from onnxslim.render.tables import FigureTable
    from onnxslim.render.timing import latency_text
    from onnxslim.render.units import bytes_text, change_text, count_text

    grid = FigureTable(("", f"A: {Path(a).name}", f"B: {Path(b).name}", "change"), frozenset({3}))
    for title, before, after, shown in (
        ("nodes", first.nodes, second.nodes, count_text),
        ("parameters", first.parameters, second.parameters, count_text),
        ("initializers", first.initializer_bytes, second.initializer_bytes, bytes_text),
        ("file", first.file_bytes, second.file_bytes, bytes_text),
    ):
        grid.add(title, shown(before), shown(after), change_text(before, after))
    known = first.macs is not None and second.macs is not None
    change = change_text(first.macs or 0, second.macs or 0) if known else ""
    grid.add("MACs", count_text(first.macs), count_text(second.macs), change)
    text = grid.render(paper())
    return text if latency is None else f"{text}\n\nlatency {latency_text(latency)}"


def _drifts(comparison: Comparison) -> str:
    from onnxslim.render.tables import FigureTable

    grid = FigureTable(
        (
            "output",
            "holds",
            "max abs",
            "rel. L2",
            "SQNR",
            "cosine",
            "worst row",
            "KL",
            "worst KL",
            "agrees",
            "bits",
        ),
        droppable=("rel. L2", "worst KL", "worst row", "holds", "bits", "max abs", "agrees"),
    )
    for name, drift in comparison.original.items():
        grid.add(name, *_drift_cells(drift))
    return grid.without_empty_columns().render(paper())


def _drift_cells(drift: Drift) -> list[str]:
    agreement = drift.agreement
    return [
        drift.kind.value,
        f"{drift.max_abs:.3g}",
        f"{drift.rel_l2:.3g}",
        f"{drift.sqnr_db:.1f} dB",
        f"{drift.cosine if drift.mean_cosine is None else drift.mean_cosine:.6f}",
        "" if drift.least_cosine is None else f"{drift.least_cosine:.6f}",
        "" if drift.mean_kl is None else f"{drift.mean_kl:.3g}",
        "" if drift.largest_kl is None else f"{drift.largest_kl:.3g}",
        "" if agreement is None else f"{100 * agreement:.2f} %",
        "equal" if drift.equal_bits else "differ",
    ]

"""`onnxslim bench A [B...]`: latency of models, measured in turn, with spread."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import (
    BoundedNumber,
    calib_option,
    data_options,
    json_option,
    overwrite_option,
    provider_option,
    report_option,
    run_options,
    trace_option,
)
from onnxslim.commands.console import paper, say
from onnxslim.commands.files import check_report, check_trace, write_report
from onnxslim.commands.measured import measured_json
from onnxslim.commands.progress import progress
from onnxslim.commands.streams import STREAM, source_of
from onnxslim.pages.formats import PAGES
from onnxslim.pipeline.options import interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxslim.pipeline.data_settings import DataSettings
    from onnxslim.render.json import Json
    from onnxslim.report import Latency, LatencyPair

    Row = tuple[str, Latency, LatencyPair | None]


@click.command("bench", short_help=COMMANDS["bench"])
@click.argument("models", metavar="A [B...]", nargs=-1, required=True)
@calib_option()
@data_options
@run_options
@provider_option
@click.option(
    "--seconds",
    type=BoundedNumber(interval(0, 3600, open_left=True)),
    help="Time for each pair of models; more make the bounds narrower. Default: 2.",
)
@report_option(PAGES, "Write the figures to a file, or as a page.")
@trace_option
@overwrite_option
@json_option
def command(
    models: tuple[str, ...],
    calib: str | None,
    data: DataSettings,
    input_shapes: Mapping[str, tuple[int, ...]] | None,
    threads: int | None,
    provider: str | None,
    seed: int | None,
    seconds: float | None,
    report: str | None,
    trace: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Time models in turn (A B A B ...), so that other load on the machine hits all alike.

    One of them may be `-`, which is standard input.
    """
    from onnxslim import api
    from onnxslim.render.json import json_text

    for file, check in ((report, partial(check_report, formats=PAGES)), (trace, check_trace)):
        if file is not None:
            source = Path(models[0])
            check(Path(file), source, source, overwrite=overwrite)
    with progress() as shown:
        rows = api.bench_models(
            [source_of(model) for model in models],
            calibration=calib,
            data=data,
            seed=seed or 0,
            threads=threads,
            provider=provider,
            input_shapes=input_shapes,
            seconds=seconds,
            progress=shown,
            trace=trace,
        )
    rows = [
        (STREAM if model == STREAM else row[0], row[1], row[2])
        for model, row in zip(models, rows, strict=True)
    ]
    if report is not None:
        write_report(Path(report), measured_json("bench", {"rows": _json(rows)}), PAGES)
    say(json_text(_json(rows)).rstrip() if as_json else _text(rows))


def _text(rows: Sequence[Row]) -> str:
    from onnxslim.render.tables import FigureTable
    from onnxslim.render.units import ms_text

    grid = FigureTable(
        ("model", "median", "p10", "p90", "runs", "against the first"),
        frozenset({5}),
        droppable=("runs", "p10", "p90"),
    )
    for name, latency, pair in rows:
        figures = (ms_text(latency.median), ms_text(latency.p10), ms_text(latency.p90))
        grid.add(name, *figures, f"{latency.runs:,}", _against(pair))
    return grid.render(paper())


def _against(pair: LatencyPair | None) -> str:
    from onnxslim.render.timing import latency_text

    if pair is None:
        return "-"
    return latency_text(pair)


def _json(rows: Sequence[Row]) -> Json:
    from onnxslim.render.json import figures_json, pair_json

    return [
        {"model": name, "latency_ms": figures_json(latency), "against_first": pair_json(pair)}
        for name, latency, pair in rows
    ]

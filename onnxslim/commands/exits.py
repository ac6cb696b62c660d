"""`onnxslim exits MODEL`: where a classifier can be left early, and how much that would save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import (
    calib_option,
    data_options,
    json_option,
    overwrite_option,
    report_option,
    run_options,
    talk_options,
)
from onnxslim.commands.console import paper, say
from onnxslim.commands.files import check_report, write_report
from onnxslim.commands.measured import measured_json
from onnxslim.commands.progress import progress
from onnxslim.commands.streams import source_of
from onnxslim.pages.formats import PAGES

if TYPE_CHECKING:
    from onnxslim.exits.candidates import ExitRow
    from onnxslim.pipeline.data_settings import DataSettings
    from onnxslim.render.json import Json

_HEADS = ("linear", "mlp")


@click.command("exits", short_help=COMMANDS["exits"])
@click.argument("model")
@calib_option("Sample inputs: heads are fitted to what the network answers on them.")
@click.option("--output", metavar="NAME", help="The output that is the class scores.")
@click.option(
    "--head", type=click.Choice(_HEADS), default="linear", help="As in inject-exits; linear."
)
@click.option("--no-latency", is_flag=True, help="Count multiply-accumulates instead of timing.")
@data_options
@run_options
@report_option(PAGES, "Write the figures to a file, or as a page.")
@overwrite_option
@json_option
@talk_options
def command(
    model: str,
    calib: str | None,
    data: DataSettings,
    output: str | None,
    head: Literal["linear", "mlp"],
    no_latency: bool,
    input_shapes: Mapping[str, tuple[int, ...]] | None,
    threads: int | None,
    seed: int | None,
    report: str | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Show where MODEL can be left early: tensors through which all data pass.

    With samples, a head is fitted at each tensor, as inject-exits does. The table then shows how
    often the head agrees with the network on samples held back, and how many samples could leave
    there while 99.5 % of all answers stay the network's. No file is changed. A MODEL of `-` is
    standard input.
    """
    from onnxslim import surveys

    if report is not None:
        check_report(Path(report), Path(model), Path(model), PAGES, overwrite=overwrite)
    with progress(quiet=quiet, verbose=verbose) as shown:
        rows, notes = surveys.exits(
            source_of(model),
            calibration=calib,
            data=data,
            output=output,
            head=head,
            seed=seed or 0,
            threads=threads,
            input_shapes=input_shapes,
            measure=not no_latency,
            progress=shown,
        )
    if report is not None:
        members = {"model": model, **_json(rows, notes)}
        write_report(Path(report), measured_json("exits", members), PAGES)
    if as_json:
        from onnxslim.render.json import json_text

        say(json_text(_json(rows, notes)))
    elif not quiet:
        say(_text(rows, notes))


def _text(rows: Sequence[ExitRow], notes: Sequence[str]) -> str:
    from onnxslim.render.printable import printable
    from onnxslim.render.tables import FigureTable, wrapped

    text = "There is no place at which this model can be left early."
    heads = ("tensor", "shape", "before", "work", "head", "agreement", "may leave")
    grid = FigureTable(heads, frozenset({1, 4}), droppable=("shape", "work", "head"))
    for row in rows:
        grid.add(
            row.tensor,
            "x".join("?" if size is None else str(size) for size in row.shape),
            _percent(row.latency),
            _percent(row.work),
            row.head or "",
            _percent(row.agreement),
            _percent(row.leaving),
        )
    if rows:
        text = grid.without_empty_columns().render(paper())
    return "\n".join([text, *(wrapped(f"note: {printable(note)}", paper()) for note in notes)])


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _json(rows: Sequence[ExitRow], notes: Sequence[str]) -> dict[str, Json]:
    from dataclasses import asdict

    import onnxslim

    exits: list[Json] = [{**asdict(row), "shape": list(row.shape)} for row in rows]
    return {"onnxslim": onnxslim.__version__, "exits": exits, "notes": list(notes)}

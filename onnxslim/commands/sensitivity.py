"""`onnxslim sensitivity MODEL --calib FILE`: what a pass does on each layer or group alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import check_talk, run_options, talk_options
from onnxslim.commands.console import paper, progress, say
from onnxslim.commands.files import check_report, write_atomically
from onnxslim.errors import UsageError

if TYPE_CHECKING:
    from onnxslim.tools.sensitivity import SensitivityPoint

_PASSES = "simplify,prune-channels"
_PICTURES = (".svg", ".png")


@click.command("sensitivity", short_help=COMMANDS["sensitivity"])
@click.argument("model")
@click.option(
    "--calib",
    metavar="FILE.npz|DIR|module:function",
    required=True,
    help="Sample inputs without labels: four fifths are fitted on, the others measure.",
)
@click.option(
    "--passes",
    metavar="PIPELINE",
    default=_PASSES,
    help=f"The last pass is tried; those before it run first. Default: {_PASSES}.",
)
@click.option(
    "--report",
    metavar="FILE.csv|FILE.svg|FILE.png",
    help="Write the figures as FILE.csv, and a picture: FILE.svg, or as the name says.",
)
@run_options
@talk_options
def command(
    model: str,
    calib: str,
    passes: str,
    report: str | None,
    input_shape: tuple[str, ...],
    threads: int | None,
    seed: int | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Try a pass on one layer, or one channel group, at a time, at several strengths.

    Nothing is written but the report. A target that moves the outputs little can be treated
    strongly: this is what prune-channels and compress-weights spread their budgets by.
    """
    check_talk(quiet=quiet, verbose=verbose)
    if input_shape:
        raise UsageError("sensitivity runs on the samples of --calib; leave out --input-shape.")
    files = None if report is None else _files(Path(report), Path(model))
    from onnxslim import api

    points: list[SensitivityPoint] = []
    with progress(quiet=quiet, verbose=verbose) as tell:
        points.extend(
            api.measure_sensitivity(
                model,
                calibration=calib,
                passes=passes,
                seed=seed or 0,
                threads=threads,
                progress=tell,
            )
        )
    if files is not None:
        _write(points, *files)
    if not quiet:
        say(_text(points, passes))


def _files(report: Path, source: Path) -> tuple[Path, Path]:
    """The CSV file and the picture.

    Raises:
        UsageError: neither is wanted, or there is no way to draw.
    """
    if report.suffix not in (".csv", *_PICTURES):
        raise UsageError(f"--report must end in .csv, .svg or .png; got `{report}`.")
    picture = report.with_suffix(".svg") if report.suffix == ".csv" else report
    table = report.with_suffix(".csv")
    for file in (table, picture):
        check_report(file, source, source)
    try:
        import matplotlib  # noqa: F401 - whether it is there is asked before the work, not after
    except ModuleNotFoundError as error:
        raise UsageError(
            "The picture of --report needs matplotlib: pip install 'onnxslim-compiler[plot]', or "
            "leave out --report."
        ) from error
    return table, picture


def _write(points: Sequence[SensitivityPoint], table: Path, picture: Path) -> None:
    from onnxslim.tools.sensitivity import csv_text
    from onnxslim.tools.sensitivity_plot import sensitivity_picture

    write_atomically(table, csv_text(points).encode())
    write_atomically(picture, sensitivity_picture(points, picture.suffix[1:]))


def _text(points: Sequence[SensitivityPoint], passes: str) -> str:
    from onnxslim.render.tables import FigureTable
    from onnxslim.render.units import small_text

    if not points:
        return f"`{passes}` finds nothing to try: no layer or group that it could change."
    first = points[0]
    strength = "" if first.option is None else first.option
    heads = ("target", strength, "bytes", "MACs", "divergence", "agreement", "SQNR")
    grid = FigureTable(heads, frozenset(range(1, len(heads))))
    for point in points:
        moved = ["unchanged", "", ""]
        if point.distance is not None:
            agreement = point.distance.agreement
            moved = [
                small_text(point.distance.divergence),
                "" if agreement is None else f"{100 * agreement:.2f} %",
                f"{point.distance.sqnr_db:.1f} dB",
            ]
        macs = "" if point.macs_left is None else f"{100 * point.macs_left:.1f} %"
        value = "" if point.strength is None else f"{point.strength}"
        grid.add(point.target, value, f"{100 * point.bytes_left:.1f} %", macs, *moved)
    return grid.render(paper())

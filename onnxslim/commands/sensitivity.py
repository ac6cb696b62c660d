"""`onnxslim sensitivity MODEL --calib FILE`: try a pass on each layer or group alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import (
    PipelineText,
    calib_option,
    data_options,
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
from onnxslim.errors import UsageError
from onnxslim.pages.formats import PAGES
from onnxslim.render.formats import Formats
from onnxslim.render.json import plain_json

if TYPE_CHECKING:
    from onnxslim.pipeline.data_settings import DataSettings
    from onnxslim.render.json import Json
    from onnxslim.tools.sensitivity import SensitivityPoint

_PASSES = "simplify,prune-channels"


@dataclass(frozen=True)
class _Swept:
    """Points, and what they are of."""

    model: str
    passes: str
    points: Sequence[SensitivityPoint]


def _csv(swept: _Swept) -> bytes:
    from onnxslim.tools.sensitivity import csv_text

    return csv_text(swept.points).encode()


def _picture(form: str, swept: _Swept) -> bytes:
    from onnxslim.tools.sensitivity_plot import sensitivity_picture

    return sensitivity_picture(swept.points, form)


def _page_data(swept: _Swept) -> Json:
    points = [{**asdict(point), "pass": point.spec} for point in swept.points]
    members = {"model": swept.model, "passes": swept.passes, "points": plain_json(points)}
    return measured_json("sensitivity", members)


_PAGES = PAGES.of(_page_data)
_FORMATS: Formats[_Swept] = Formats(
    {
        ".csv": _csv,
        ".svg": partial(_picture, "svg"),
        ".png": partial(_picture, "png"),
        **_PAGES.writers,
    },
    signs={
        ".csv": b"target,option,strength,pass,",
        ".svg": b"onnxslim-compiler",
        ".png": b"onnxslim-compiler",
        **_PAGES.signs,
    },
)


@click.command("sensitivity", short_help=COMMANDS["sensitivity"])
@click.argument("model")
@calib_option(
    "Sample inputs without labels: four fifths are fitted on, the others measure.", required=True
)
@click.option(
    "--passes",
    type=PipelineText(),
    metavar="PIPELINE",
    default=_PASSES,
    help=f"The last pass is tried; those before it run first. Default: {_PASSES}.",
)
@report_option(
    _FORMATS,
    "Write the figures to FILE.csv, and a picture to FILE.svg, or to FILE.png if given; or all as "
    "a page, or as JSON.",
)
@overwrite_option
@data_options
@run_options
@talk_options
def command(
    model: str,
    calib: str,
    data: DataSettings,
    passes: str,
    report: str | None,
    input_shapes: Mapping[str, tuple[int, ...]] | None,
    threads: int | None,
    seed: int | None,
    quiet: bool,
    verbose: bool,
    overwrite: bool,
) -> None:
    """Try a pass on one layer, or one channel group, at a time, at several strengths.

    Nothing is written but the report. A target that moves the outputs little can be compressed
    much: prune-channels and compress-weights spread their budgets by such figures. A MODEL of `-`
    is standard input.
    """
    if input_shapes is not None:
        raise UsageError("sensitivity runs on the samples of --calib; leave out --input-shape.")
    files = () if report is None else _report_files(Path(report), Path(model), overwrite=overwrite)
    from onnxslim import surveys

    with progress(quiet=quiet, verbose=verbose) as shown:
        points = list(
            surveys.sensitivity(
                source_of(model),
                calibration=calib,
                data=data,
                passes=passes,
                seed=seed or 0,
                threads=threads,
                progress=shown,
            )
        )
    for file in files:
        write_report(file, _Swept(model, passes, points), _FORMATS)
    if not quiet:
        say(_text(points, passes))


def _report_files(report: Path, source: Path, *, overwrite: bool) -> tuple[Path, ...]:
    """The files that `--report` stands for: a page, or the table and the picture.

    Raises:
        UsageError: `report` has another suffix, cannot be written, or nothing is there to draw it.
    """
    _FORMATS.check(report)
    files: tuple[Path, ...] = (report,)
    if report.suffix not in _PAGES.writers:
        picture = report.with_suffix(".svg") if report.suffix == ".csv" else report
        files = (report.with_suffix(".csv"), picture)
    for file in files:
        check_report(file, source, source, _FORMATS, overwrite=overwrite)
    if len(files) == 1:
        return files
    try:
        import matplotlib  # noqa: F401 - asked for before the work, not after
    except ModuleNotFoundError as error:
        raise UsageError(
            "The picture of --report needs matplotlib: pip install 'onnxslim-compiler[plot]', or "
            "give --report FILE.html, which needs nothing."
        ) from error
    return files


def _text(points: Sequence[SensitivityPoint], passes: str) -> str:
    from onnxslim.render.tables import FigureTable
    from onnxslim.render.units import small_text

    if not points:
        return f"`{passes}` finds no layer or group that it could change."
    first = points[0]
    strength = "" if first.option is None else first.option
    heads = (
        *("target", strength, "bytes", "MACs", "divergence"),
        *("agreement", "cosine", "worst row", "KL", "SQNR"),
    )
    grid = FigureTable(heads, droppable=("MACs", "divergence", "bytes", "worst row", "agreement"))
    for point in points:
        moved = ["unchanged", *[""] * 5]
        if point.distance is not None:
            far = point.distance
            moved = [
                small_text(far.divergence),
                "" if far.agreement is None else f"{100 * far.agreement:.2f} %",
                "" if far.mean_cosine is None else f"{far.mean_cosine:.4f}",
                "" if far.least_cosine is None else f"{far.least_cosine:.4f}",
                "" if far.mean_kl is None else f"{far.mean_kl:.3g}",
                f"{far.sqnr_db:.1f} dB",
            ]
        macs = "" if point.macs_left is None else f"{100 * point.macs_left:.1f} %"
        value = "" if point.strength is None else f"{point.strength}"
        grid.add(point.target, value, f"{100 * point.bytes_left:.1f} %", macs, *moved)
    return grid.without_empty_columns().render(paper())

"""`onnxslim demo`: what onnxslim does, on a LeNet-5 and on digits that come with it.

Owns: which pipelines are shown, and how their figures are laid out. Every figure is measured in the
run, by the functions that users call (see `api`).
"""

from __future__ import annotations

import importlib.resources
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from onnxslim.commands import COMMANDS
from onnxslim.commands.arguments import talk_options
from onnxslim.commands.console import paper, say
from onnxslim.commands.files import write_atomically
from onnxslim.commands.progress import progress
from onnxslim.errors import UsageError
from onnxslim.io import files

if TYPE_CHECKING:
    from onnxslim.report import FileReport, LatencyPair
    from onnxslim.services.progress import Progress

_MODEL: Final = "lenet5.onnx"
_CALIB: Final = "mnist_calib.npz"
_EVAL: Final = "mnist_eval.npz"
_WHOLE_ERROR: Final = 0.0058
"""Share of all 10,000 test images of MNIST that the model misreads (`assets/README.md`)."""
_COLUMNS: Final = 80
_TIMED_S: Final = 1.0  # for each model beside the first

_FEWER_CHANNELS: Final = "simplify,prune-channels:macs=0.25:align=4"


@dataclass(frozen=True)
class _DemoStep:
    """A pipeline that is shown, the name of its result, and what it is for."""

    file: str
    passes: str
    purpose: str

    @property
    def is_packed(self) -> bool:
        return self.file.endswith(".onnxz")


_STEPS: Final = (
    _DemoStep(
        "simple.onnx",
        "simplify",
        "The same answers from fewer operators. Needs no data; every model gains by it, large "
        "exports the most.",
    ),
    _DemoStep(
        "pruned.onnx",
        _FEWER_CHANNELS,
        "Fewer channels; the layers that read them are refitted in closed form on 500 images "
        "without labels. For speed on every machine, and for bytes. Nothing is trained.",
    ),
    _DemoStep(
        "int8.onnx",
        f"{_FEWER_CHANNELS},quantize-int8:placement=all",
        "Computes on 8-bit integers. For bytes, and for speed where layers are large.",
    ),
    _DemoStep(
        "smallest.onnxz",
        f"{_FEWER_CHANNELS},prune-weights:ratio=0.6,cluster-weights:bits=4",
        "Zeros and 16 values for each layer, packed. For download and storage; all commands read "
        "it, and `onnxslim unpack` makes the .onnx of it.",
    ),
)


@dataclass(frozen=True)
class _DemoRow:
    """A model of the table, and its time against that of the model at the start."""

    path: Path
    figures: FileReport
    bytes: int
    latency: LatencyPair | None = None


@click.command("demo", short_help=COMMANDS["demo"])
@click.option(
    "--to", metavar="FOLDER", help="Where model, data and results go; default: a temporary folder."
)
@talk_options
def command(to: str | None, quiet: bool, verbose: bool) -> None:
    """Make a bundled LeNet-5, trained on MNIST, smaller in several ways, and measure each.

    The model, its data and all results are written to FOLDER. The last lines are commands to go on
    with.
    """
    folder = _folder(to)
    with progress(quiet=quiet, verbose=verbose) as shown:
        rows = _run(folder, shown)
    if not quiet:
        say(_text(folder, rows))


def _folder(to: str | None) -> Path:
    """The folder with the model and its data in it.

    Raises:
        UsageError: it cannot be written, or holds other files of these names.
    """
    assets = {name: _asset(name) for name in (_MODEL, _CALIB, _EVAL)}
    folder = files.lasting_folder("onnxslim-demo") if to is None else Path(to)
    if not folder.is_dir():
        if folder.exists():
            raise UsageError(f"`{folder}` is a file; --to takes a folder.")
        files.make_folders(folder)
    for name, content in assets.items():
        place = folder / name
        if not place.exists():
            write_atomically(place, content)
        elif place.read_bytes() != content:
            raise UsageError(
                f"`{place}` is another file than the one of the demo. Give an empty folder (--to)."
            )
    from onnxslim.io.marks import check_output

    for step in _STEPS:
        check_output(folder / step.file, folder / _MODEL)
    return folder


def _asset(name: str) -> bytes:
    found = importlib.resources.files("onnxslim") / "assets" / name
    if not found.is_file():
        raise UsageError(
            f"This installation of onnxslim lacks its bundled file `{name}`. Install it again."
        )
    return found.read_bytes()


# -------------------------------------------------------------------------------- run


def _run(folder: Path, shown: Progress) -> list[_DemoRow]:
    """The model and the result of each step, which are written to `folder`."""
    from onnxslim import api

    rows: list[_DemoRow] = []
    for step in shown.over("making", _STEPS, "models", is_even=False):
        target = folder / step.file
        onnx_file = target.with_suffix(".onnx")
        _, report = api.compress(
            folder / _MODEL,
            onnx_file,
            passes=step.passes,
            calibration=folder / _CALIB,
            evaluation=folder / _EVAL,
            goal="bytes",
            measure=False,
            progress=shown,
        )
        if not rows:
            rows.append(_DemoRow(folder / _MODEL, report.before, report.before.stats.file_bytes))
        size = _packed(onnx_file, target) if step.is_packed else report.after.stats.file_bytes
        rows.append(_DemoRow(target, report.after, size))
    timed = api.bench_models(
        [row.path for row in rows], calibration=folder / _CALIB, seconds=_TIMED_S, progress=shown
    )
    return [
        _DemoRow(row.path, row.figures, row.bytes, pair)
        for row, (_, _, pair) in zip(rows, timed, strict=True)
    ]


def _packed(model: Path, target: Path) -> int:
    """Pack `model` into `target`; the size of that in bytes."""
    from onnxslim.packing.streams import CodingMethod
    from onnxslim.tools.pack import pack

    return pack(model, target, coder=CodingMethod.ENTROPY, measure=False).packed_bytes


# ------------------------------------------------------------------------------- text


def _text(folder: Path, rows: Sequence[_DemoRow]) -> str:
    from onnxslim.render.tables import wrapped

    return "\n\n".join(
        (
            _table(rows),
            "\n".join(_purposes()),
            "\n".join(wrapped(line, paper()) for line in _remarks(rows)),
            "\n".join(_commands(folder)),
        )
    )


def _table(rows: Sequence[_DemoRow]) -> str:
    from onnxslim.render.tables import FigureTable
    from onnxslim.render.timing import times_text
    from onnxslim.render.units import bytes_text, count_text

    grid = FigureTable(
        ("file", "bytes", "smaller", "accuracy", "MACs", "latency", "faster"),
        droppable=("MACs", "smaller"),
    )
    for row in rows:
        pair, accuracy = row.latency, row.figures.accuracy
        grid.add(
            row.path.name,
            bytes_text(row.bytes),
            f"{rows[0].bytes / row.bytes:.1f}x",
            "" if accuracy is None else f"{100 * accuracy:.2f} %",
            count_text(row.figures.stats.macs),
            times_text(pair) if pair else "",
            f"{pair.ratio:.2f}x" if pair else "",
        )
    return grid.render(paper())


def _purposes() -> Iterator[str]:
    """For each step the pipeline, as `--passes` takes it, and below it what the step is for."""
    from textwrap import wrap

    for step in _STEPS:
        yield step.file
        pipeline = step.passes.replace(",", ", ") + ("; then `pack`" if step.is_packed else "")
        for text in (pipeline, step.purpose):
            yield from wrap(
                text, _COLUMNS, initial_indent="    ", subsequent_indent="    ",
                break_on_hyphens=False,
            )  # fmt: skip


def _remarks(rows: Sequence[_DemoRow]) -> Iterator[str]:
    """What the figures say, and what they are of."""
    from onnxslim.render.timing import ratio_text
    from onnxslim.render.units import bytes_text

    first, smallest = rows[0], rows[-1]
    yield (
        f"{bytes_text(first.bytes)} -> {bytes_text(smallest.bytes)}: "
        f"{first.bytes / smallest.bytes:.0f} times smaller, without training."
    )
    pruned, int8 = (
        next(row.latency for row in rows if row.path.name == name)
        for name in ("pruned.onnx", "int8.onnx")
    )
    if pruned is not None and int8 is not None:
        yield (
            f"pruned.onnx is {ratio_text(pruned)} as fast as {_MODEL}, "
            f"int8.onnx {ratio_text(int8)}."
        )
        if int8.low <= pruned.high:
            yield (
                "On layers as small as these, integers save bytes and no time. Without "
                "`placement=all`,\nthe pass takes integers only where they are measured to be "
                "faster."
            )
        if pruned.is_busy:
            yield "Other programs keep the machine busy, so processor time was compared."
    if first.figures.accuracy is not None:
        yield (
            f"Accuracy is on the 1,000 test images that come with onnxslim: {_MODEL} misreads "
            f"{100 * (1 - first.figures.accuracy):.2f} %\nof these, and "
            f"{100 * _WHOLE_ERROR:.2f} % of all 10,000 test images of MNIST."
        )


def _commands(folder: Path) -> Iterator[str]:
    """Commands that run as they stand."""
    at = {name: str(folder / name) for name in (_MODEL, _CALIB, _EVAL, "half.onnx", "int8.onnx")}
    yield f"All files are in {folder}. To go on:"
    data = ["--calib", at[_CALIB]]
    half = [at[_MODEL], at["half.onnx"], "--passes", "simplify,prune-channels:macs=0.5", *data]
    yield shlex.join(["onnxslim", *half, "--eval", at[_EVAL]])
    yield shlex.join(["onnxslim", "compare", at[_MODEL], at["int8.onnx"], *data])
    yield shlex.join(
        ["onnxslim", "sensitivity", at[_MODEL], "--passes", "simplify,quantize-weights", *data]
    )

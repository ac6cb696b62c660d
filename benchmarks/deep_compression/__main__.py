"""What Deep Compression without retraining brings: ratios, errors, bytes, seconds, memory.

    python -m benchmarks.deep_compression mnist lenet5.onnx lenet300.onnx --calib C --eval E
    python -m benchmarks.deep_compression curves lenet5.onnx lenet300.onnx --calib C --eval E
    python -m benchmarks.deep_compression real
    python -m benchmarks.deep_compression large
    python -m benchmarks.deep_compression tables

C and E are the files that `examples/mnist_samples.py --calibration 60000` writes. Each command but
the last writes `benchmarks/results/deep_compression_NAME.json` and prints its tables; `tables`
writes those of `docs/deep_compression.md` anew from these files. The plot needs the extra `bench`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from benchmarks.deep_compression import curves as curve
from benchmarks.deep_compression import mnist
from benchmarks.deep_compression.runs import Figures, Labelled, RunError, save
from benchmarks.deep_compression.tables import PAGE, page_tables, table_of
from benchmarks.models.zoo import cache_folder
from benchmarks.reporting import CONSOLE, DOCS, refresh

FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER: Final = click.Path(file_okay=False, path_type=Path)
POINTS: Final = DOCS / "data" / "deep_compression_curves.csv"
PLOT: Final = DOCS / "images" / "deep_compression_curves.svg"


@click.group()
def main() -> None:
    """Measure Deep Compression without retraining."""


def _with_data(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say what is measured on."""
    calibration = click.option(
        "--calib", "calibration", type=FILE, required=True, help="Unlabelled images, .npz."
    )
    evaluation = click.option(
        "--eval", "evaluation", type=FILE, required=True, help="Labelled test images, .npz."
    )
    return calibration(evaluation(command))


def _work(name: str) -> Path:
    return cache_folder() / "deep_compression" / name


@main.command("mnist")
@click.argument("models", nargs=-1, type=FILE, required=True)
@_with_data
@click.option("--work", type=FOLDER, help="Where files stay, to be used again; default: cache.")
def mnist_command(
    models: Sequence[Path], calibration: Path, evaluation: Path, work: Path | None
) -> None:
    """The whole way, as a user goes it: error, ratio, and where the bytes are."""
    inputs = mnist.Inputs(calibration, evaluation)
    rows: list[Figures] = []
    for model in models:
        CONSOLE.print(f"{model.stem} ...")
        rows.append(mnist.measure(model, inputs, work or _work("mnist")))
        save("mnist", {"models": rows})
    _print("mnist")


@main.command("curves")
@click.argument("models", nargs=-1, type=FILE, required=True)
@_with_data
@click.option("--again", is_flag=True, help="Measure points anew that the CSV file has.")
@click.option("--draw", is_flag=True, help="Measure nothing: plot and tables of what there is.")
def curves_command(
    models: Sequence[Path], calibration: Path, evaluation: Path, again: bool, draw: bool
) -> None:
    """Ratio against error of single passes, as CSV and as a plot."""
    from benchmarks.deep_compression.plot import draw as draw_plot

    samples, labelled = curve.calibration(calibration), Labelled.read(evaluation)
    points = [] if again else curve.read_points(POINTS)
    for model in models:
        for plan in () if draw else curve.plans():
            if any((p.model, p.pipeline) == (model.stem, plan.pipeline) for p in points):
                continue
            points.append(curve.measure(model, samples, labelled, plan))
            CONSOLE.print(points[-1], soft_wrap=True)
            curve.write_points(points, POINTS)
    errors = {model.stem: labelled.error(model) for model in models}
    draw_plot(points, errors, PLOT)
    save(
        "curves",
        {
            "images": curve.IMAGES,
            "errors_percent": errors,
            "points": [asdict(point) for point in points],
        },
    )
    _print("curves")


@main.command("real")
@click.option("--times", is_flag=True, help="Only latency and loading, added to the results.")
@click.option("--work", type=FOLDER, help="Where files stay, to be used again; default: cache.")
def real_command(times: bool, work: Path | None) -> None:
    """Trained models at 4 bits: bytes, drift, and, for a quiet machine, latency and loading."""
    from benchmarks.deep_compression import real
    from benchmarks.models.tasks import TASKS

    folder = work or _work("real")
    rows: list[Figures] = []
    for task in TASKS:
        CONSOLE.print(f"{task.model} ...")
        row = real.known(task.model) if times else real.measure(task, folder)
        load = round(os.getloadavg()[0], 2)
        rows.append({**row, "times": {**real.measure_times(task, folder), "load": load}})
    save("real", {"models": rows})
    _print("real")


@main.command("large")
@click.option("--work", type=FOLDER, help="Where files are written; default: the cache.")
def large_command(work: Path | None) -> None:
    """VGG-19: seconds and memory of clustering, packing, loading. Run it on a quiet machine."""
    from benchmarks.deep_compression import large

    save("large", large.measure(work or _work("large")))
    _print("large")


@main.command("tables")
def tables_command() -> None:
    """Write the tables of the page anew, from the results."""
    refresh(PAGE, table_of)


def _print(name: str) -> None:
    for table in page_tables(name).values():
        CONSOLE.print(f"{table}\n", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    try:
        main()
    except RunError as error:
        CONSOLE.print(f"[red]{error}[/red]")
        sys.exit(1)

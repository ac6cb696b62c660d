"""What removing channels brings: coverage, speed, accuracy, cost; onnxsim's pruning beside.

    python -m benchmarks.prune_channels coverage
    python -m benchmarks.prune_channels speed
    python -m benchmarks.prune_channels accuracy lenet5.onnx resnet14.onnx --calib C --eval E
    python -m benchmarks.prune_channels large
    python -m benchmarks.prune_channels tables

C and E are files that the scripts in `examples/` write, one pair for each model, in the order of
the models. Each command but the last writes `benchmarks/results/prune_channels_NAME.json`; `tables`
writes those of `docs/prune_channels.md` anew from these files. `speed` wants a quiet machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from benchmarks.models.zoo import cache_folder, models, path, sample_inputs
from benchmarks.prune_channels.runs import (
    SAMPLES,
    SHARE,
    accuracy_row,
    coverage_of,
    judge,
    settings,
    speed_of,
    timed,
)
from benchmarks.prune_channels.tables import PAGE, table_of
from benchmarks.reporting import CONSOLE, refresh, save, saved

FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
SPEED: Final = (
    "resnet50",
    "vgg19",
    "squeezenet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "shufflenet",
    "nudenet_320n",
    "ppocr_v4_det",
)
SEEDS: Final = 5


@click.group()
def main() -> None:
    """Measure prune-channels."""


@main.command("coverage")
@click.argument("names", nargs=-1)
def coverage(names: Sequence[str]) -> None:
    """Half of the channels of every model of the zoo, without data: what goes, what must stay."""
    target = None if names else "prune_channels_coverage"
    saved(target, map(coverage_of, models(names or None)), key="models", share=SHARE)


@main.command("speed")
@click.argument("names", nargs=-1)
def speed(names: Sequence[str]) -> None:
    """Half of the channels, without data: latency against the model as it came, timed in turn."""
    target = None if names else "prune_channels_speed"
    saved(target, map(speed_of, models(names or SPEED)), key="models", share=SHARE)


@main.command("accuracy")
@click.argument("files", nargs=-1, type=FILE, required=True)
@click.option("--calib", "calibration", type=FILE, multiple=True, required=True)
@click.option("--eval", "evaluation", type=FILE, multiple=True, required=True)
@click.option("--macs", type=float, multiple=True, default=(0.5, 0.3), help="What may remain.")
@click.option("--seeds", type=int, default=SEEDS, help="Draws of the calibration samples.")
def accuracy(
    files: Sequence[Path],
    calibration: Sequence[Path],
    evaluation: Sequence[Path],
    macs: Sequence[float],
    seeds: int,
) -> None:
    """Accuracy of every criterion at a share of the work, without labels or training."""

    def rows() -> Iterator[dict[str, Any]]:
        for file, calib, labelled in zip(files, calibration, evaluation, strict=True):
            accuracy_of = judge(labelled)
            base = accuracy_of(file.read_bytes())
            for share in macs:
                for name, spec, needs in settings(share):
                    row = accuracy_row(file, calib, spec, accuracy_of, seeds if needs else 1)
                    about = {"model": file.stem, "macs": share, "setting": name, "spec": spec}
                    yield {**about, "accuracy_before": base, **row}

    saved("prune_channels_accuracy", rows(), samples=SAMPLES, seeds=seeds)


@main.command("large")
@click.option("--images", type=int, default=256, help="Calibration images.")
def large(images: int) -> None:
    """ResNet-50: seconds and memory, without data and with calibration images."""
    (model,) = models(["resnet50"])
    folder = cache_folder() / "prune_channels"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"images{images}.npz"
    name = model.inputs[0].name
    pictures = [np.asarray(sample[name]) for sample in sample_inputs(model, images, 1)]
    arrays: dict[str, Any] = {name: np.concatenate(pictures)}
    np.savez(file, **arrays)
    source = path(model)
    runs = {}
    for label, extra in (("without data", ()), (f"{images} images", ("--calib", str(file)))):
        runs[label] = timed(source, folder / "large.onnx", *extra)
        CONSOLE.print(label, runs[label])
    about = {"model": model.name, "file_bytes": source.stat().st_size}
    save("prune_channels_large", {**about, "runs": runs})


@main.command("tables")
def tables_command() -> None:
    """Write the tables of the page anew, from the results."""
    refresh(PAGE, table_of)


if __name__ == "__main__":
    main()

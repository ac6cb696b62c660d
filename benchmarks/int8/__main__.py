"""int8: speed, closeness, accuracy and cost; onnxruntime's quantizer, NNCF and onnxsim beside.

    python -m benchmarks.int8 speed [MODELS...] [--net lenet5.onnx C] [--only-timing]
    python -m benchmarks.int8 accuracy lenet5.onnx resnet14.onnx --calib C --eval E
    python -m benchmarks.int8 real [ocr] [boxes]
    python -m benchmarks.int8 cost
    python -m benchmarks.int8 tables

C and E are files that the scripts in `examples/` write, one pair for each model. Each peer runs in
an environment of its own, on the same calibration samples. Each command but the last writes
`benchmarks/results/int8_NAME.json`, or only the rows of what is named; `tables` writes those of
`docs/int8.md` anew. `speed` wants a quiet machine: all models of a row are timed in turn.
`--only-timing` does that again with the files that the last `speed` left behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Final

import click

from benchmarks.int8.runs import Subject, accuracy_of, cost_of, speed_of, timed_again
from benchmarks.int8.tables import PAGE, table_of
from benchmarks.models.zoo import models
from benchmarks.reporting import read, refresh, saved

FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
SPEED: Final = (
    "squeezenet",
    "shufflenet",
    "nudenet_320n",
    "ppocr_v4_det",
    "ppocr_v4_rec",
    "ppocr_v2_cls",
    "inception_v1",
    "inception_v2",
    "densenet121",
    "resnet50",
    "alexnet",
    "vgg19",
)


@click.group()
def main() -> None:
    """Measure quantize-int8."""


@main.command("speed")
@click.argument("names", nargs=-1)
@click.option("--net", "nets", type=(FILE, FILE), multiple=True, help="A trained net, its samples.")
@click.option("--only-timing", is_flag=True, help="Of the files that the last run left behind.")
def speed(names: Sequence[str], nets: Sequence[tuple[Path, Path]], only_timing: bool) -> None:
    """Latency against the model as it came, and SQNR on samples held back."""
    is_part = bool(names or nets)
    trained = (Subject.trained(*net) for net in nets)
    zoo = (
        Subject.of_zoo(model) for name in (names if is_part else SPEED) for model in models([name])
    )
    subjects = chain(trained, zoo)
    if only_timing:
        known = {row["model"]: row for row in (read("int8_speed") or {}).get("rows", [])}
        rows = (timed_again(subject, known[subject.name]) for subject in subjects)
    else:
        rows = map(speed_of, subjects)
    saved("int8_speed", rows, replacing=("model",) if is_part or only_timing else ())


@main.command("accuracy")
@click.argument("files", nargs=-1, type=FILE, required=True)
@click.option("--calib", "calibration", type=FILE, multiple=True, required=True)
@click.option("--eval", "evaluation", type=FILE, multiple=True, required=True)
def accuracy(
    files: Sequence[Path], calibration: Sequence[Path], evaluation: Sequence[Path]
) -> None:
    """Top-1 accuracy of trained nets, 500 unlabelled images, everything on integers."""
    rows = zip(files, calibration, evaluation, strict=True)
    saved("int8_accuracy", (row for file, c, e in rows for row in accuracy_of(file, c, e)))


@main.command("real")
@click.argument("names", nargs=-1)
def real(names: Sequence[str]) -> None:
    """Characters that PP-OCRv4 reads and boxes that NudeNet finds; needs the extra `bench`."""
    from benchmarks.int8.real import JOBS, rows_of

    jobs = (JOBS[name]() for name in names or JOBS)
    rows = (row for job in jobs for row in rows_of(job))
    saved("int8_real", rows, replacing=("task", "setting") if names else ())


@main.command("cost")
@click.option("--images", type=int, default=256, help="Calibration images.")
def cost(images: int) -> None:
    """ResNet-50 with entropy calibration: seconds and memory, onnxruntime's beside."""
    (model,) = models(["resnet50"])
    saved("int8_cost", cost_of(model, images))


@main.command("tables")
def tables_command() -> None:
    """Write the tables of the page anew, from the results."""
    refresh(PAGE, table_of)


if __name__ == "__main__":
    main()

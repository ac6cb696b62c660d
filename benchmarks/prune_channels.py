"""What removing channels brings: coverage, speed, accuracy, cost; onnxsim's pruning beside.

    python benchmarks/prune_channels.py coverage
    python benchmarks/prune_channels.py speed
    python benchmarks/prune_channels.py accuracy lenet5.onnx resnet14.onnx --calib C --eval E
    python benchmarks/prune_channels.py large
    python benchmarks/prune_channels.py tables

C and E are files that the scripts in `examples/` write, one pair for each model, in the order of
the models. Each command but the last writes `benchmarks/results/prune_channels_NAME.json`; `tables`
writes those of `docs/prune_channels.md` anew from these files. `speed` wants a quiet machine.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from prune_channels_runs import (
    SAMPLES,
    SHARE,
    accuracy_row,
    coverage_of,
    judge,
    settings,
    speed_of,
    timed,
)
from prune_channels_tables import PAGE, refreshed
from rich.console import Console
from zoo import cache_folder, models, path, sample_inputs

CONSOLE: Final = Console(width=150)
RESULTS: Final = Path(__file__).parent / "results"
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


def _save(name: str, content: Mapping[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    whole = {"machine": "two shared x86-64 cores", "python": platform.python_version(), **content}
    (RESULTS / f"prune_channels_{name}.json").write_text(json.dumps(whole, indent=1) + "\n")


@main.command("coverage")
@click.argument("names", nargs=-1)
def coverage(names: Sequence[str]) -> None:
    """Half of the channels of every model of the zoo, without data: what goes, what must stay."""
    rows = []
    for model in models(names or None):
        rows.append(coverage_of(model))
        CONSOLE.print(rows[-1], soft_wrap=True)
        if not names:
            _save("coverage", {"share": SHARE, "models": rows})


@main.command("speed")
@click.argument("names", nargs=-1)
def speed(names: Sequence[str]) -> None:
    """Half of the channels, without data: latency against the model as it came, timed in turn."""
    rows = []
    for model in models(names or SPEED):
        rows.append(speed_of(model))
        CONSOLE.print(rows[-1], soft_wrap=True)
        if not names:
            _save("speed", {"share": SHARE, "models": rows})


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
    rows: list[dict[str, Any]] = []
    for file, calib, labelled in zip(files, calibration, evaluation, strict=True):
        accuracy_of = judge(labelled)
        base = accuracy_of(file.read_bytes())
        for share in macs:
            for name, spec, needs in settings(share):
                row = accuracy_row(file, calib, spec, accuracy_of, seeds if needs else 1)
                rows.append({"model": file.stem, "macs": share, "setting": name, "spec": spec,
                             "accuracy_before": base, **row})  # fmt: skip
                CONSOLE.print(rows[-1], soft_wrap=True)
                _save("accuracy", {"samples": SAMPLES, "seeds": seeds, "rows": rows})


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
    _save("large", {"model": model.name, "file_bytes": source.stat().st_size, "runs": runs})


@main.command("tables")
def tables_command() -> None:
    """Write the tables of the page anew, from the results."""
    PAGE.write_text(refreshed(PAGE.read_text()))


if __name__ == "__main__":
    main()

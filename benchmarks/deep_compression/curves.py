"""Ratio against error for single passes: which criterion, which scope, with or without feedback."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.deep_compression.runs import Labelled
from onnxslim.api import compress
from onnxslim.tools.pack import pack

IMAGES: Final = 5000
_SHARES: Final = (0.5, 0.7, 0.85, 0.9, 0.95, 0.97)
_BITS: Final = (1, 2, 3, 4, 5, 6)
_PLAIN: Final = "aim=own:sequential=false"  # what the papers do
# magnitude and OBD as published; OBS as it is by default
_CRITERIA: Final = {
    "magnitude": f"criterion=magnitude:{_PLAIN}",
    "obd": f"criterion=obd:{_PLAIN}",
    "obs": "criterion=obs",
}
_SETTINGS: Final = (
    "prune-weights:ratio=0.85",
    "prune-weights:ratio=0.93",
    "cluster-weights:bits=2",
)
_AIMS: Final = tuple(
    f"aim={aim}:sequential={order}" for aim in ("own", "original") for order in ("false", "true")
)


@dataclass(frozen=True)
class Point:
    """One pipeline on one model.

    Attributes:
        curve: which line of the plot it belongs to; for the table of targets, the setting.
        ratio: bytes of the float32 .onnx file / bytes of the packed file.
    """

    model: str
    family: str
    curve: str
    setting: str
    pipeline: str
    packed_bytes: int
    ratio: float
    error_percent: float


@dataclass(frozen=True)
class Plan:
    """A point to be measured."""

    family: str
    curve: str
    setting: str
    passes: str

    @property
    def pipeline(self) -> str:
        """What is run."""
        return f"simplify,{self.passes}"


def plans() -> Iterator[Plan]:
    """All points, for each model."""
    for share in _SHARES:
        for scope in ("layer", "global"):
            for criterion, options in _CRITERIA.items():
                spec = f"prune-weights:ratio={share}:{options}:scope={scope}"
                yield Plan("prune", f"{criterion}, {scope}", f"{share}", spec)
    for bits in _BITS:
        for weighting in ("none", "hessian"):
            for feedback in ("false", "true"):
                name = f"k-means, weighting={weighting}, feedback={feedback}"
                spec = f"cluster-weights:bits={bits}:weighting={weighting}:feedback={feedback}"
                yield Plan("cluster", name, f"{bits}", spec)
    for setting in _SETTINGS:
        for aim in _AIMS:
            yield Plan("target", setting, aim, f"{setting}:{aim}")


def calibration(file: Path) -> dict[str, np.ndarray]:
    """The first images of a file of samples."""
    with np.load(file) as arrays:
        return {name: arrays[name][:IMAGES] for name in arrays.files}


def measure(model: Path, samples: dict[str, np.ndarray], labelled: Labelled, plan: Plan) -> Point:
    """Run a plan: compress without proof, pack, test."""
    with tempfile.TemporaryDirectory() as folder:
        output, packed = Path(folder) / "model.onnx", Path(folder) / "model.onnxz"
        compress(
            model,
            output,
            passes=plan.pipeline,
            calibration=samples,
            force=True,
            floors=None,
            verify=False,
            measure=False,
        )
        nbytes = pack(output, packed, measure=False).packed_bytes
        error = labelled.error(output)
    ratio = round(os.path.getsize(model) / nbytes, 3)
    names = (model.stem, plan.family, plan.curve, plan.setting, plan.pipeline)
    return Point(*names, nbytes, ratio, error)


def read_points(file: Path) -> list[Point]:
    """The points in a CSV file; none where there is no file."""
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        return [
            Point(
                row["model"],
                row["family"],
                row["curve"],
                row["setting"],
                row["pipeline"],
                int(row["packed_bytes"]),
                float(row["ratio"]),
                float(row["error_percent"]),
            )
            for row in csv.DictReader(stream)
        ]


def write_points(points: Sequence[Point], file: Path) -> None:
    """Write a CSV file, all at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [item.name for item in fields(Point)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)

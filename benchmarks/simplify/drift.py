"""How far a simplified model's outputs moved: `drift.py MODEL SIMPLIFIED`, one line of JSON.

MODEL is a name of the zoo. Outputs are compared with onnxruntime's optimisations off, where each
graph computes what it says, and on, where users run it. This runs in a process of its own, because
a broken model can take onnxruntime, and with it the process, down.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import GraphOptimizationLevel as Level
from rich.console import Console

from benchmarks.models.samples import Sample
from benchmarks.models.zoo import models, path, resized_inputs, sample_inputs

SAMPLES = 3
SEED = 0
CLOSE_ABSOLUTE = 1e-6
CLOSE_OF_RANGE = 1e-4  # a share of max(reference) - min(reference), per output
Array = NDArray[np.generic]
Samples = Sequence[Sample]
LEVELS = (Level.ORT_DISABLE_ALL, Level.ORT_ENABLE_ALL)


@dataclass(frozen=True)
class Drift:
    """The largest move of any output on any sample; `wrong` says why the model is not correct.

    `max_abs` is in the output's own unit, `of_range` a share of the reference output's range.
    """

    max_abs: float
    of_range: float
    wrong: str | None


def measure(name: str, simplified: Path) -> Drift:
    """Compare `simplified` with the zoo's model `name` on seeded samples, in all its sizes."""
    model = models([name])[0]
    samples = sample_inputs(model, SAMPLES, SEED) + resized_inputs(model, 1, SEED)
    return _worst([_compare_models(path(model), simplified, samples, level) for level in LEVELS])


def _compare_models(original: Path, simplified: Path, samples: Samples, level: Level) -> Drift:
    reference = _session(original, level)
    expected = [reference.run(None, dict(sample)) for sample in samples]
    signature = _signature(reference)
    del reference
    try:
        session = _session(simplified, level)
        if (found := _signature(session)) != signature:
            return Drift(0, 0, f"inputs and outputs are {found} instead of {signature}")
        return _worst(_drifts(session, samples, expected))
    except Exception as error:  # onnxruntime has a class per kind of failure
        return Drift(0, 0, f"onnxruntime: {str(error).splitlines()[0]}")


def _session(file: Path, level: Level) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _signature(session: onnxruntime.InferenceSession) -> list[tuple[str, str]]:
    values = [*session.get_inputs(), *session.get_outputs()]
    return [(value.name, value.type) for value in values]


def _drifts(
    session: onnxruntime.InferenceSession, samples: Samples, expected: Sequence[Sequence[Array]]
) -> list[Drift]:
    names = [output.name for output in session.get_outputs()]
    extents = [_extent(references) for references in zip(*expected, strict=True)]
    drifts: list[Drift] = []
    for sample, references in zip(samples, expected, strict=True):
        outputs = session.run(None, dict(sample))
        drifts += map(compare, names, references, outputs, extents)
    return drifts


def _extent(references: Sequence[Array]) -> float:
    """Return the range of one output over all samples, in the output's own unit."""
    full = [reference.astype(np.float64) for reference in references if reference.size]
    if not full:
        return 0.0
    return max(float(item.max()) for item in full) - min(float(item.min()) for item in full)


def compare(name: str, reference: Array, output: Array, extent: float) -> Drift:
    """Hold the output called `name`, whose range is `extent`, against its reference and CLOSE."""
    if (output.shape, output.dtype) != (reference.shape, reference.dtype):
        found, wanted = f"{output.dtype}{output.shape}", f"{reference.dtype}{reference.shape}"
        return Drift(0, 0, f"output `{name}` is {found} instead of {wanted}")
    if np.array_equal(reference, output):
        return Drift(0, 0, None)
    moves = np.abs(output.astype(np.float64) - reference.astype(np.float64))
    max_abs = float(moves.max())
    is_close = max_abs <= CLOSE_ABSOLUTE + CLOSE_OF_RANGE * extent  # false for NaN
    wrong = None if is_close else f"output `{name}` moved by {max_abs:.2g}, range {extent:.2g}"
    return Drift(max_abs, max_abs / extent if extent else 0.0, wrong)


def _worst(drifts: Sequence[Drift]) -> Drift:
    wrong = next((drift.wrong for drift in drifts if drift.wrong), None)
    max_abs = max(drift.max_abs for drift in drifts)
    return Drift(max_abs, max(drift.of_range for drift in drifts), wrong)


if __name__ == "__main__":
    found = measure(sys.argv[1], Path(sys.argv[2]))
    Console(soft_wrap=True).print(json.dumps(asdict(found)), markup=False, highlight=False)

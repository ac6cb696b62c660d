"""What `benchmarks.low_rank` measures: one layer's methods and ranks, and whole models."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from onnxslim import compress
from onnxslim.analysis.linear_operators import ConvPatches
from onnxslim.graph.counts import node_macs
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.lossy.problems import Problem, Problems, Schedule
from onnxslim.lowrank.candidates import Fit, RankRange, candidates_for_budget, kernel_shape
from onnxslim.pipeline.layer_filter import LayerFilter
from onnxslim.pipeline.passes import Context
from onnxslim.runtime.probes.calibration_runs import CalibrationRuns
from onnxslim.solvers.decompositions.base import Diverges
from onnxslim.solvers.decompositions.methods import METHODS

Arrays = Mapping[str, np.ndarray]
Row = dict[str, Any]

_ITERATED: Final = ("cp", "flattened")
_HEAVIEST: Final = 4  # layers of a model that curves are drawn of
_MAX_ITERATED: Final = 1 << 19  # weights of a layer that iterative methods are tried on


# ---------------------------------------------------------------------------- curves


def curves(file: Path, calibration: Arrays | None) -> Iterator[Row]:
    """Layer, method, ranks, share of weights left, relative output error, of the heaviest layers.

    The error is that of the layer's outputs on the calibration samples, as a share of their energy
    about the mean; with the ranks it is given to within what a few hundred samples tell.
    """
    model = Model.load(file)
    infer_shapes(model)
    runs = None if calibration is None else CalibrationRuns(calibration)
    context = Context(calibration=runs, model=model, reference=model.clone())
    names = _heaviest(model)
    problems = Problems(
        Rewriter(model.graph), context, LayerFilter(only=names), Schedule(sequential=False)
    )
    for problem in problems:
        yield from _curves_of(file.stem, problem)


def _heaviest(model: Model) -> tuple[str, ...]:
    """The layers with most work that can be split, patterns escaped."""
    problems = Problems(Rewriter(model.graph), Context(model=model))
    sized = []
    for problem in problems:
        shape = kernel_shape(problem.layer)
        if min(shape.rows, shape.channels * shape.taps) >= 2 * 8 and shape.channels > 1:
            sized.append((node_macs(problem.layer.node) or 0, problem.name))
    names = [name for _, name in sorted(sized, reverse=True)[:_HEAVIEST]]
    return tuple(escape(name) for name in names)


def _curves_of(model: str, problem: Problem) -> Iterator[Row]:
    shape = kernel_shape(problem.layer)
    weights = shape.rows * shape.channels * shape.taps
    is_matrix = shape.taps == 1 or not isinstance(problem.layer.unfolding, ConvPatches)
    for method in ["svd"] if is_matrix else [name for name in METHODS if name != "svd"]:
        if method == "spatial" and sum(size > 1 for size in shape.kernel) < 2:
            continue
        if method in _ITERATED and weights > _MAX_ITERATED:
            continue
        rank_range = RankRange(shape, method, 1, weights)
        fit = Fit(problem, method, None, 0)
        try:
            found = candidates_for_budget(fit, rank_range)
        except Diverges:
            continue
        for candidate in found:
            yield {
                "model": model,
                "layer": problem.name,
                "method": method,
                "ranks": "x".join(map(str, candidate.ranks)),
                "weights": round(rank_range.weights(candidate.ranks) / weights, 4),
                "error": float(f"{candidate.added:.4g}"),
            }


# ---------------------------------------------------------------------------- whole models


def model_row(
    file: Path,
    spec: str,
    calibration: Arrays | None,
    *,
    held: Arrays | None = None,
    evaluation: Path | None = None,
    goal: str = "both",
) -> Row:
    """Size, latency in turn with the original, output error on samples held back, accuracy."""
    begun = time.perf_counter()
    model, report = compress(
        file,
        passes=spec,
        floors=None,
        calibration=calibration,
        evaluation=evaluation,
        goal=goal,
    )
    pair = report.latency
    weights = [stats.stats.initializer_bytes for stats in (report.before, report.after)]
    macs = [stats.stats.macs for stats in (report.before, report.after)]
    return {
        "model": file.stem,
        "spec": spec,
        "images": 0 if calibration is None else len(next(iter(calibration.values()))),
        "split": sum(
            " -> " in c.what or "split" in c.what for s in report.steps for c in s.changes
        ),
        "committed": [step.committed for step in report.steps],
        "why_not": [step.why_not_committed for step in report.steps],
        "faster": None if pair is None else [pair.ratio, pair.low, pair.high],
        "bytes_left": weights[1] / weights[0],
        "macs_left": macs[1] / macs[0] if macs[0] and macs[1] else None,
        "error": None if held is None else output_error(file, model, held),
        "accuracy": [report.before.accuracy, report.after.accuracy],
        "seconds": time.perf_counter() - begun,
        "load": os.getloadavg()[0],
    }


def output_error(file: Path, model: Model, held: Arrays) -> float:
    """‖y − ŷ‖ / ‖y‖ of the first output over samples that nothing was fitted to."""
    sessions = [
        ort.InferenceSession(source, providers=["CPUExecutionProvider"])
        for source in (os.fspath(file), model.to_bytes())
    ]
    wrong = whole = 0.0
    count = len(next(iter(held.values())))
    for index in range(count):
        feeds = {name: array[index : index + 1] for name, array in held.items()}
        before, after = (np.float64(session.run(None, feeds)[0]) for session in sessions)
        wrong += float(np.square(before - after).sum())
        whole += float(np.square(before).sum())
    return float(np.sqrt(wrong / whole))


def reasons(file: Path, spec: str, calibration: Arrays | None) -> Row:
    """What a pass says of each layer of a model that it should leave as it is."""
    _, report = compress(file, passes=spec, calibration=calibration, floors=None)
    whys: dict[str, int] = {}
    for step in report.steps:
        for skip in step.skips:
            kind = _kind(skip.why)
            whys[kind] = whys.get(kind, 0) + 1
    return {
        "model": file.stem,
        "spec": spec,
        "changed": sum(len(step.changes) for step in report.steps if step.committed),
        "same_bytes": report.before.stats.file_bytes == report.after.stats.file_bytes,
        "whys": dict(sorted(whys.items(), key=lambda item: -item[1])),
    }


def _kind(why: str) -> str:
    """A reason without its figures, so that equal ones can be counted."""
    words = ("#" if any(c.isdigit() for c in word) else word for word in why.split())
    return " ".join(words)


def timed_command(file: Path, target: Path, passes: str, *extra: str) -> Row:
    """Seconds and peak memory of the command, nothing verified or timed beside."""
    command = [sys.executable, "-m", "onnxslim", os.fspath(file), os.fspath(target), "--passes"]
    begun = time.perf_counter()
    process = subprocess.Popen([*command, passes, "--force", "--quiet", *extra], cwd=target.parent)
    _, status, usage = os.wait4(process.pid, 0)
    return {
        "passes": passes,
        "seconds": time.perf_counter() - begun,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "status": status,
        "load": os.getloadavg()[0],
    }


def stacked(samples: Sequence[Mapping[str, Any]]) -> Arrays:
    """Samples of a batch of one as one array for each input."""
    return {
        name: np.concatenate([np.asarray(sample[name]) for sample in samples])
        for name in samples[0]
    }


__all__ = [
    "curves",
    "model_row",
    "output_error",
    "reasons",
    "stacked",
    "timed_command",
]

"""Low rank: what each method loses at each rank, and what it brings in measured time.

    python benchmarks/low_rank.py curves MODEL --calib FILE.npz --csv OUT.csv [--plot OUT.svg]
    python benchmarks/low_rank.py models MODEL --calib FILE.npz --eval FILE.npz [--passes SPEC ...]

`curves`: for every Conv of a model, relative output error against weights left, by method and rank.
`models`: one row a pipeline: latency against the original (in turn, with its interval), bytes,
accuracy. The defaults of `models` are one row for each method at the same budget of latency.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import onnxslim
from onnxslim.analysis.layers import ConvPatches
from onnxslim.contract import Context
from onnxslim.model import Model
from onnxslim.objective.problems import Problems, Schedule
from onnxslim.objective.splits import Fit, Ladder, candidates_for_budget, kernel_shape
from onnxslim.objective.tensor_decompositions import METHODS, Diverges
from onnxslim.rewrite import Rewriter
from onnxslim.runtime.calibration_runs import CalibrationRuns
from onnxslim.shapes import infer_shapes

Row = tuple[str, str, str, float, float]
METHOD_ROWS = tuple(
    f"factorize-conv:method={method}:latency=0.4"
    for method in ("auto", "channel", "spatial", "tucker2", "cp", "depthwise")
)


def curves(model: Model, calibration: str | None, *, iterated: bool) -> Iterator[Row]:
    """Layer, method, rank, share of weights left, relative output error."""
    infer_shapes(model)
    runs = None if calibration is None else CalibrationRuns(Path(calibration))
    context = Context(calibration=runs, model=model, reference=model.clone())
    problems = Problems(Rewriter(model.graph), context, schedule=Schedule(sequential=False))
    for problem in problems:
        shape = kernel_shape(problem.layer)
        if min(shape.rows, shape.channels * shape.taps) < 4:
            continue
        matrix = shape.taps == 1 or not isinstance(problem.layer.unfolding, ConvPatches)
        methods = ["svd"] if matrix else [m for m in METHODS if m != "svd"]
        for method in methods:
            if method in ("cp", "flattened") and not iterated:
                continue
            if method == "spatial" and sum(size > 1 for size in shape.kernel) < 2:
                continue
            weights = shape.rows * shape.channels * shape.taps
            ladder = Ladder(shape, method, 1, weights)
            fit = Fit(problem, method, None, 0)
            try:
                found = candidates_for_budget(fit, ladder)
            except Diverges:
                continue
            for candidate in found:
                share = ladder.weights(candidate.ranks) / weights
                ranks = "x".join(map(str, candidate.ranks))
                yield problem.name, method, ranks, share, candidate.added


def plot(rows: list[Row], target: Path) -> None:
    """One small panel a layer."""
    from matplotlib import pyplot

    layers = list(dict.fromkeys(row[0] for row in rows))
    wide = min(4, len(layers))
    high = -(-len(layers) // wide)
    figure, axes = pyplot.subplots(high, wide, figsize=(4 * wide, 3 * high), squeeze=False)
    for layer, axis in zip(layers, axes.flat, strict=False):
        mine = [row for row in rows if row[0] == layer]
        for method in dict.fromkeys(row[1] for row in mine):
            points = sorted((row[3], row[4]) for row in mine if row[1] == method)
            axis.semilogy(*np.array(points).T, marker=".", label=method)
        axis.set_title(layer, fontsize=8)
        axis.set_xlabel("share of weights left")
        axis.set_ylabel("relative output error")
    axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(target)


def models(path: str, calibration: str, evaluation: str, specs: tuple[str, ...]) -> Iterator[str]:
    """A row of a Markdown table for each pipeline."""
    yield "| pipeline | layers split | times faster | interval | bytes | accuracy | seconds |"
    yield "|---|---|---|---|---|---|---|"
    for spec in specs:
        _, report = onnxslim.compress(
            path, passes=spec, calibration=calibration, evaluation=evaluation, goal="latency",
            force=True,
        )  # fmt: skip
        before, after, pair = report.before, report.after, report.latency
        count = sum(len(step.changes) for step in report.steps)
        times = "-" if pair is None else f"{pair.ratio:.2f}"
        spread = "-" if pair is None else f"{pair.low:.2f} to {pair.high:.2f}"
        size = f"{before.stats.initializer_bytes:,} to {after.stats.initializer_bytes:,}"
        accuracy = f"{before.accuracy} to {after.accuracy}"
        yield (
            f"| `{spec}` | {count} | {times} | {spread} | {size} | {accuracy} | "
            f"{report.seconds:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    tasks = parser.add_subparsers(dest="task", required=True)
    drawn = tasks.add_parser("curves")
    drawn.add_argument("model")
    drawn.add_argument("--calib")
    drawn.add_argument("--csv", type=Path, required=True)
    drawn.add_argument("--plot", type=Path)
    drawn.add_argument("--iterated", action="store_true", help="cp and flattened too, slow")
    rows = tasks.add_parser("models")
    rows.add_argument("model")
    rows.add_argument("--calib", required=True)
    rows.add_argument("--eval", required=True)
    rows.add_argument("--passes", nargs="*", default=list(METHOD_ROWS))
    given = parser.parse_args()
    if given.task == "models":
        for line in models(given.model, given.calib, given.eval, tuple(given.passes)):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        return
    found = list(curves(Model.load(given.model), given.calib, iterated=given.iterated))
    with given.csv.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("layer", "method", "rank", "weights", "error"))
        writer.writerows(found)
    if given.plot is not None:
        plot(found, given.plot)


if __name__ == "__main__":
    main()

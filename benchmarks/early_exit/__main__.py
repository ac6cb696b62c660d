"""Early exits: agreement, accuracy and mean latency on a full test set, batches, overhead, promise.

    python -m benchmarks.early_exit curve MODEL... --calib C.npz --eval E.npz
    python -m benchmarks.early_exit batches MODEL... --calib C.npz --eval E.npz
    python -m benchmarks.early_exit promise MODEL... --calib C.npz --eval E.npz
    python -m benchmarks.early_exit overhead
    python -m benchmarks.early_exit tables

C and E are files that the scripts in `examples/` and `benchmarks.models.text_classifier` write.
Each command but the last writes `benchmarks/results/early_exit_NAME.json`; `tables` writes those of
`docs/early_exit.md` anew. All but `promise` want a quiet machine: models run in turn, sample by
sample, but other work does not always slow both alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from benchmarks.early_exit.tables import PAGE, table_of
from benchmarks.models.zoo import models, path
from benchmarks.reporting import refresh, saved
from onnxslim import api
from onnxslim.exits.heads import poolings
from onnxslim.exits.nested_ifs import BatchMode, Exit, ExitOptions, with_exits
from onnxslim.exits.operators import Confidence, Head, ScoreForm
from onnxslim.exits.points import candidate_points, classes_of, score_outputs
from onnxslim.exits.thresholds import NEVER
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.runtime.measure.latency import compare_times, median_interval, time_many
from onnxslim.runtime.session import Session, open_session

FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
TARGETS: Final = (0.999, 0.995, 0.99, 0.98)
COUNTS: Final = (1, 2, 3)
SEEDS: Final = 5
BATCHES: Final = (8, 32)
OVERHEAD_S: Final = 40.0  # for each pair: a hundredth is to be seen
Row = dict[str, Any]

files = click.argument("files", nargs=-1, type=FILE, required=True)
calib = click.option("--calib", "calibration", type=FILE, required=True)
evaluation = click.option("--eval", "evaluation", type=FILE, required=True)


@click.group()
def main() -> None:
    """Measure inject-exits."""


def _with_exits(file: Path, spec: str, calibration: object, *, seed: int = 0) -> tuple[Model, Row]:
    """The model after the pass, and what the pass said."""
    model, report = api.compress(
        file,
        passes=f"simplify,{spec}",
        calibration=calibration,  # type: ignore[arg-type]
        goal="latency",
        force=True,
        floors=None,
        verify=False,
        seed=seed,
    )
    step = report.steps[-1]
    said = [change.what for change in step.changes] or [skip.why for skip in step.skips]
    return model, {"spec": spec, "seconds": step.seconds, "said": said}


# ---------------------------------------------------------------------------- one by one


@main.command("curve")
@files
@calib
@evaluation
@click.option("--head", "heads", multiple=True, default=("linear", "mlp"))
@click.option("--target", "targets", type=float, multiple=True, default=TARGETS)
@click.option("--count", "counts", type=int, multiple=True, default=COUNTS)
@click.option("--samples", type=int, default=10_000, help="Of the test set.")
def curve(
    files: Sequence[Path],
    calibration: Path,
    evaluation: Path,
    heads: Sequence[str],
    targets: Sequence[float],
    counts: Sequence[int],
    samples: int,
) -> None:
    """Agreement and accuracy against mean latency, a sample at a time, with 1 to 3 exits."""
    specs = [
        f"inject-exits:count={count}:target={target:g}:head={head}:report-exit=true"
        for head in heads
        for target in targets
        for count in counts
    ]
    rows = (
        _curve_row(file, spec, calibration, evaluation, samples) for file in files for spec in specs
    )
    saved("early_exit_curve", rows, replacing=("model", "spec"))


def _curve_row(file: Path, spec: str, calibration: Path, evaluation: Path, samples: int) -> Row:
    model, said = _with_exits(file, spec, str(calibration))
    arrays = np.load(evaluation)
    labels = arrays["label"][:samples]
    data = {name: arrays[name][:samples] for name in arrays if name != "label"}
    plain, _ = api.compress(file, passes="simplify", verify=False, measure=False)
    with open_session(plain) as a, open_session(model) as b:
        before, after = (np.empty((samples, len(_scores(s, data)))) for s in (a, b))
        taken = np.zeros(samples, int)
        times = np.empty((2, samples))
        for number in range(samples):
            feeds = {name: array[number : number + 1] for name, array in data.items()}
            runs = [a.runner(feeds), b.runner(feeds)]
            for which in (0, 1) if number % 2 else (1, 0):
                start = time.perf_counter()
                found = runs[which]()
                times[which, number] = time.perf_counter() - start
                (before, after)[which][number] = found[0][0]
            told = found if which else runs[1]()
            taken[number] = told[1][0] if len(told) > 1 else 0
    own, new = before.argmax(axis=1), after.argmax(axis=1)
    return {
        "model": file.stem,
        **said,
        "agreement": float((own == new).mean()),
        "accuracy_before": float((own == labels).mean()),
        "accuracy": float((new == labels).mean()),
        "shares": np.bincount(taken, minlength=2)[1:].tolist(),
        **_latency(times),
    }


def _scores(session: Session, data: Mapping[str, np.ndarray]) -> np.ndarray:
    found = session.run({name: array[:1] for name, array in data.items()})
    return np.asarray(next(iter(found.values()))[0])


def _latency(times: np.ndarray) -> Row:
    """Means, with the interval of the ratio over ten parts of the samples."""
    parts = [part.mean(axis=1) for part in np.array_split(times, 10, axis=1)]
    low, _, high = median_interval(np.array([before / after for before, after in parts]))
    before, after = times.mean(axis=1) * 1e3
    return {
        "mean_ms": [before, after],
        "median_ms": (np.median(times, axis=1) * 1e3).tolist(),
        "worst_ms": (np.percentile(times, 99, axis=1) * 1e3).tolist(),
        "ratio": before / after,
        "ratio_low": low,
        "ratio_high": high,
    }


# ---------------------------------------------------------------------------- batches


@main.command("batches")
@files
@calib
@evaluation
@click.option("--target", type=float, default=0.99)
@click.option("--runs", type=int, default=100)
def batches(
    files: Sequence[Path], calibration: Path, evaluation: Path, target: float, runs: int
) -> None:
    """Batches of 8 and 32, as they come and where no sample leaves, split and not."""
    settings = [f"batch={batch}" for batch in BatchMode] + ["batch=split:worst=1.05"]
    specs = [f"inject-exits:target={target:g}:{setting}" for setting in settings]
    rows = (
        row
        for file in files
        for spec in specs
        for row in _batch_rows(file, spec, calibration, evaluation, runs)
    )
    saved("early_exit_batches", rows)


def _batch_rows(
    file: Path, spec: str, calibration: Path, evaluation: Path, runs: int
) -> Iterator[Row]:
    plain, _ = api.compress(file, passes="simplify", verify=False, measure=False)
    model, said = _with_exits(file, spec, str(calibration))
    hard = _never_left(model)
    for size in BATCHES:
        for name, candidate in (("as they come", model), ("nobody leaves", hard)):
            times = _in_turn(plain, candidate, evaluation, size, runs)
            row = {"model": file.stem, **said, "size": size, "samples": name}
            yield {**row, **_latency(times)}


def _never_left(model: Model) -> Model:
    """The same model with thresholds that nothing reaches."""
    copy = model.clone()
    for tensor in _thresholds(copy):
        tensor.values = np.full(tensor.values.shape, NEVER, np.float32)
    return copy


def _thresholds(model: Model) -> Iterator[Any]:
    from onnxslim.graph.ir import walk_graphs

    for graph in walk_graphs(model.graph):
        for node in graph.nodes:
            if node.op == "Greater" and node.inputs[1].name.startswith("exit_"):
                yield node.inputs[1]


def _in_turn(a: Model, b: Model, evaluation: Path, size: int, runs: int) -> np.ndarray:
    arrays = np.load(evaluation)
    data = {name: arrays[name] for name in arrays if name != "label"}
    order = np.random.default_rng(0).permutation(len(next(iter(data.values()))))
    times = np.empty((2, runs))
    with open_session(a) as first, open_session(b) as second:
        for number in range(runs):
            rows = order[number * size % len(order) :][:size]
            feeds = {name: array[rows] for name, array in data.items()}
            both = [first.runner(feeds), second.runner(feeds)]
            for which in (0, 1) if number % 2 else (1, 0):
                both[which]()
                start = time.perf_counter()
                both[which]()
                times[which, number] = time.perf_counter() - start
    return times


# ---------------------------------------------------------------------------- the promise


@main.command("promise")
@files
@calib
@evaluation
@click.option("--target", "targets", type=float, multiple=True, default=(0.995, 0.99))
def promise(
    files: Sequence[Path], calibration: Path, evaluation: Path, targets: Sequence[float]
) -> None:
    """Agreement on a test set that nothing was chosen by, over draws of the calibration samples."""
    rows = (
        _promise_row(file, target, seed, calibration, evaluation)
        for file in files
        for target in targets
        for seed in range(SEEDS)
    )
    saved("early_exit_promise", rows)


def _promise_row(file: Path, target: float, seed: int, calibration: Path, evaluation: Path) -> Row:
    drawn = _drawn(np.load(calibration), seed)
    model, said = _with_exits(file, f"inject-exits:target={target:g}", drawn, seed=seed)
    found = _agreement(file, model, evaluation)
    row = {"model": file.stem, "target": target, "seed": seed, **said}
    return {**row, "agreement": found, "held": found >= target}


def _drawn(arrays: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Four fifths of the samples, in another order for each seed."""
    count = len(arrays[next(iter(arrays))])
    order = np.random.default_rng(seed).permutation(count)[: 4 * count // 5]
    return {name: arrays[name][order] for name in arrays}


def _agreement(file: Path, model: Model, evaluation: Path) -> float:
    arrays = np.load(evaluation)
    data = {name: arrays[name] for name in arrays if name != "label"}
    answers = []
    for each in (Model.load(file), model):
        with open_session(each) as session:
            parts = [
                next(iter(session.run({k: v[at : at + 100] for k, v in data.items()}).values()))
                for at in range(0, len(next(iter(data.values()))), 100)
            ]
        answers.append(np.concatenate(parts).argmax(axis=1))
    return float((answers[0] == answers[1]).mean())


# ---------------------------------------------------------------------------- overhead


@main.command("overhead")
@click.option("--model", "name", default="resnet50")
def overhead(name: str) -> None:
    """A light graph with an exit that is never taken, or always: what the mechanism costs."""
    saved("early_exit_overhead", _overhead_rows(name))


def _overhead_rows(name: str) -> Iterator[Row]:
    (entry,) = models([name])
    # a BatchNormalization in a branch is not folded by onnxruntime: simplify does that before
    model, _ = api.compress(path(entry), passes="simplify", verify=False, measure=False)
    infer_shapes(model)
    output = score_outputs(model.graph)[0]
    points = candidate_points(model.graph, output)
    classes = classes_of(output)
    assert classes is not None
    shape = [size if isinstance(size, int) else 1 for size in model.graph.inputs[0].shape]
    sample = np.random.default_rng(0).random(shape).astype(np.float32)
    feeds = {str(model.graph.inputs[0].name): sample}
    for point in (points[len(points) // 4], points[len(points) // 2]):
        pooling = poolings(point)[0]
        head = Head(pooling, np.zeros((classes, pooling.features)), np.zeros(classes))
        for words, threshold in (("never left", NEVER), ("always left", 0.0)):
            style = ExitOptions(ScoreForm.PROBABILITIES, Confidence.MAX_PROBABILITY, BatchMode.ALL)
            forced = with_exits(model, output.name, [Exit(head, threshold)], style)
            with open_session(model) as a, open_session(forced) as b:
                runs = a.runner(feeds), b.runner(feeds)
                pair = compare_times(time_many(runs, budget_s=OVERHEAD_S))
            yield {
                "model": name,
                "at": point.tensor,
                "exit": words,
                "share_of_latency": 1 / pair.ratio,
                "low": 1 / pair.high,
                "high": 1 / pair.low,
                "work_before": point.share,
            }


@main.command("tables")
def tables_command() -> None:
    """Write the tables of the page anew, from the results."""
    refresh(PAGE, table_of)


if __name__ == "__main__":
    main()

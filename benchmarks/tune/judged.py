"""What a file is worth: bytes, speed in two ways, and closeness on data that no search saw."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from benchmarks.int8.runs import peers, unusable, written
from benchmarks.peers.environments import run_driver
from benchmarks.tune.subjects import Arrays, Subject
from onnxslim import bench_models, compare_models, compress

_TIMED_SECONDS: Final = 4.0
_LOOPS, _LOOP_SECONDS = 30, 0.03  # blocks of runs of one file behind each other
_PEER_SAMPLES: Final = 64


def judged(subject: Subject, output: Path) -> dict[str, Any]:
    """The figures of a file beside those of the model that it came from.

    `faster` is the ratio of runs in turn, with other data in the caches before each; `loop` that of
    runs behind each other, whose weights and code stay in the caches.
    """
    inputs = {name: array for name, array in subject.unseen.items() if name != "label"}
    comparison, _, before, after, _ = compare_models(
        subject.model, output, calibration=inputs, measure=False, threads=1
    )
    one = {name: array[:1] for name, array in inputs.items()}
    ((_, _, _), (_, _, pair)) = bench_models(
        [subject.model, output], calibration=one, threads=1, seconds=_TIMED_SECONDS
    )
    assert pair is not None
    worst = min(comparison.original.values(), key=lambda drift: drift.sqnr_db)
    found = {
        "bytes": [before.file_bytes, after.file_bytes],
        "faster": [pair.ratio, pair.low, pair.high],
        "loop": _loop_ratio(subject.model, output, one),
        "sqnr_db": worst.sqnr_db,
        "cosine": worst.mean_cosine,
        "row_cosine": worst.least_cosine,
        "accuracy": [_accuracy(file, subject.unseen) for file in (subject.model, output)],
        "own_figure": None
        if subject.own_figure is None
        else subject.own_figure(subject.model, output),
    }
    return found | {"holds": _holds(subject.floors, found)}


def by_peers(subject: Subject) -> dict[str, Any]:
    """The files of the quantizers of others, judged alike; a message where there is none."""
    found: dict[str, Any] = {}
    some = {name: array[:_PEER_SAMPLES] for name, array in subject.calibration.items()}
    one = {name: array[:1] for name, array in some.items()}
    with tempfile.TemporaryDirectory() as folder:
        samples = written(Path(folder) / "samples.npz", some)
        for name, tool, words in peers():
            output = Path(folder) / f"{tool.name}.onnx"
            why = run_driver(tool, subject.model, output, samples, *words)
            why = why or unusable(output, one)
            found[name] = why if why is not None else judged(subject, output)
            output.unlink(missing_ok=True)
    return found


def _holds(floors: Mapping[str, float], found: Mapping[str, Any]) -> bool:
    """Whether the floors of the search hold on the unseen data."""
    before, after = found["accuracy"]
    least = {"min-sqnr": "sqnr_db", "min-cosine": "cosine", "min-row-cosine": "row_cosine"}
    return all(
        100 * (before - after) <= limit if name == "max-drop" else found[least[name]] >= limit
        for name, limit in floors.items()
    )


def _loop_ratio(before: Path, after: Path, feed: Arrays) -> list[float]:
    """Seconds of one file over those of another in a loop: the median and the middle four fifths.

    Blocks of both alternate, so that what slows the machine slows both.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [
        ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        for file in (before, after)
    ]
    fed = dict(feed)
    ratios = []
    for _ in range(_LOOPS):
        first, second = (_seconds_a_run(session, fed) for session in sessions)
        ratios.append(first / second)
    return [float(value) for value in np.percentile(ratios, (50, 10, 90))]


def _seconds_a_run(session: ort.InferenceSession, feed: dict[str, np.ndarray]) -> float:
    """The processor's seconds of a run, in a block that follows two others."""
    for _ in range(2):
        session.run(None, feed)
    runs, started = 0, time.thread_time()
    while (spent := time.thread_time() - started) < _LOOP_SECONDS:
        session.run(None, feed)
        runs += 1
    return spent / runs


def _accuracy(model: Path, unseen: Arrays) -> float | None:
    if "label" not in unseen:
        return None
    _, report = compress(model, passes="eliminate-dead", evaluation=dict(unseen), measure=False)
    return report.before.accuracy

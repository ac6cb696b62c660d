"""ResNet-14 with exits: heads in closed form, heads trained, the network trained with them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Final

import numpy as np

from benchmarks.reporting import Found
from benchmarks.retraining.runs import Plan, Subject, compressed
from onnxslim.io.model import Model
from onnxslim.runtime.measure.latency import median_interval
from onnxslim.runtime.session import open_session

NET: Final = "resnet14"
PICTURES: Final = 8_000  # with labels, to train on and to confirm thresholds on
EPOCHS: Final = 2
DROPS: Final = (0.5, 1.0)  # points of accuracy
_TIMED: Final = 1000  # pictures, a sample at a time
_PARTS: Final = 10
HEADS: Final = {
    "closed form": "",
    "heads trained": f":finetune={EPOCHS}",
    "trained with the network": f":finetune={EPOCHS}:joint=all",
}


def plans(seed: int) -> Iterator[Plan]:
    """All rows of one seed."""
    subject = Subject.of(NET, seed)
    for drop in DROPS:
        for name, options in HEADS.items():
            spec = f"inject-exits:max-drop={drop:g}{options}"
            yield Plan(f"{drop:g} points, {name}", seed, partial(_row, subject, drop, spec))


def _row(subject: Subject, drop: float, spec: str) -> Found:
    found = compressed(
        subject.original,
        f"simplify,{spec}",
        training=subject.training(PICTURES, labels=True),
        seed=subject.seed,
    )
    return {
        **found.about(),
        "drop": drop,
        "exits": [change.what for change in found.report.steps[-1].changes],
        "error": subject.error(found.model),
        "error_before": subject.error(subject.original),
        "faster": _times_faster(subject, found.model),
    }


def _times_faster(subject: Subject, model: Model) -> list[float]:
    """Ratio of mean processor times over test pictures, each alone, both models in turn.

    One thread computes, so that processor time is what the latency is where nothing else runs.
    """
    images = subject.data.test.image[:_TIMED]
    times = np.empty((2, len(images)))
    with (
        open_session(Model.load(subject.original), threads=1) as before,
        open_session(model, threads=1) as after,
    ):
        for number, image in enumerate(images):
            runs = [session.runner({"image": image[None]}) for session in (before, after)]
            for which in (0, 1) if number % 2 else (1, 0):
                started = time.process_time()
                runs[which]()
                times[which, number] = time.process_time() - started
    means = [part.mean(axis=1) for part in np.array_split(times, _PARTS, axis=1)]
    low, _, high = median_interval(np.array([first / second for first, second in means]))
    first, second = times.mean(axis=1)
    return [round(float(value), 3) for value in (first / second, low, high)]

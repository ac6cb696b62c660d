"""LeNet-300-100 with 3.85 % of the weights of each layer, by each way to get there.

All ways that train see the same pictures for as many epochs in all, without labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

import numpy as np

from benchmarks.reporting import Found
from benchmarks.retraining.runs import Plan, Subject, compressed
from onnxslim.analysis.layers import weight_layers

NET: Final = "lenet300"
RATIO: Final = 0.9615
PICTURES: Final = 20_000
EPOCHS: Final = 4
_LARGEST: Final = f"prune-weights:ratio={RATIO}:criterion=magnitude"
_SOLVED: Final = f"prune-weights:ratio={RATIO}"
_RANDOM: Final = f"prune-weights:ratio={RATIO}:criterion=random"
_BATCH: Final = "batch=64"
_HALF: Final = f"epochs={EPOCHS / 2:g}:{_BATCH}"


def _trained(spec: str, options: str = "") -> str:
    training = ":".join(filter(None, (_BATCH, options)))
    return f"{spec}:finetune={EPOCHS}:training='{training}'"


def _shrunk(regularizer: str) -> str:
    return f"finetune:regularizer={regularizer}:{_HALF},{_LARGEST},finetune:{_HALF}"


PIPELINES: Final = {
    "magnitude, not trained": _LARGEST,
    "closed form (OBS), not trained": _SOLVED,
    "random, one shot": _trained(_RANDOM),
    "magnitude, one shot": _trained(_LARGEST),
    "closed form, one shot": _trained(_SOLVED),
    "closed form, four turns": _trained(f"{_SOLVED}:steps=4"),
    "gradual (`zeros=grow`)": _trained(_LARGEST, "zeros=grow:start=original"),
    "surgery, DNS (`zeros=move`)": _trained(_LARGEST, "zeros=move:start=original"),
    "lottery ticket (`start=original`)": (
        f"{_LARGEST},finetune:{_HALF},finetune:start=original:{_HALF}"
    ),
    "the same zeros, random start (`start=random`)": _trained(_SOLVED, "start=random"),
    "l1, then magnitude": _shrunk("l1"),
    "group lasso, then magnitude": _shrunk("group-lasso"),
    "dense-sparse-dense (`zeros=release`)": (
        f"{_LARGEST},finetune:{_HALF},finetune:zeros=release:{_HALF}"
    ),
}


def plans(seed: int) -> Iterator[Plan]:
    """All rows of one seed."""
    subject = Subject.of(NET, seed)
    yield Plan("original", seed, partial(_original, subject))
    for name, pipeline in PIPELINES.items():
        yield Plan(name, seed, partial(_row, subject, pipeline))


def _original(subject: Subject) -> Found:
    return {"error": subject.error(subject.original), "density": 1.0}


def _row(subject: Subject, pipeline: str) -> Found:
    found = compressed(
        subject.original,
        f"simplify,{pipeline}",
        calibration=subject.calibration(),
        training=subject.training(PICTURES),
        seed=subject.seed,
    )
    weights = [layer.canonical() for layer in weight_layers(found.model.graph)[0]]
    kept = sum(int(np.count_nonzero(weight)) for weight in weights)
    return {
        **found.about(),
        "density": round(kept / sum(weight.size for weight in weights), 4),
        "error": subject.error(found.model),
    }

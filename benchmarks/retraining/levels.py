"""Two nets with weights of 8 bits and fewer, ternary and binary: before training and after."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

from benchmarks.reporting import Found
from benchmarks.retraining.runs import Plan, Subject, compressed

PASSES: Final = {
    "8 bits": "quantize-weights:bits=8",
    "4 bits": "quantize-weights:bits=4",
    "3 bits": "cluster-weights:bits=3",
    "2 bits": "cluster-weights:bits=2",
    "ternary": "ternarize-weights",
    "binary": "binarize-weights",
    "power of two, 3 bits": "quantize-power-of-two:bits=3",
    "fixed point, 6 bits": "quantize-fixed-point:il=1:fl=5",
}
NETS: Final = ("lenet300", "lenet5")
PICTURES: Final = 12_500  # without labels, to distil on
EPOCHS: Final = 2
DISTILLED: Final = "distilled"
_BATCH: Final = "batch=64"
_MOVING: Final = f"codes=move:{_BATCH}"  # passes whose codes stay by themselves


def plans(seed: int) -> Iterator[Plan]:
    """All rows of one seed."""
    for net in NETS:
        subject = Subject.of(net, seed)
        yield Plan(f"{net}, original", seed, partial(_original, subject))
        for name, spec in PASSES.items():
            how = _MOVING if spec.startswith("cluster") else _BATCH
            trained = f"{spec}:finetune={EPOCHS}:training='{how}'"
            yield Plan(f"{net}, {name}", seed, partial(_row, subject, spec))
            yield Plan(f"{net}, {name}, {DISTILLED}", seed, partial(_row, subject, trained))


def _original(subject: Subject) -> Found:
    return {"error": subject.error(subject.original)}


def _row(subject: Subject, spec: str) -> Found:
    found = compressed(
        subject.original,
        f"simplify,{spec}",
        calibration=subject.calibration(),
        training=subject.training(PICTURES),
        seed=subject.seed,
    )
    return {
        **found.about(),
        "bytes": len(found.model.to_bytes()),
        "error": subject.error(found.model),
    }

"""The passes that `tune` combines, in the order of a pipeline, each at a part of its strength.

A family is a pass whose strength a number in (0, 1] sets: at 1 as much as makes sense, and by
`Pass.softened` less. What the floors do not allow is weakened when the pipeline runs, so every
strength gives a model that holds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, Final

from onnxslim.errors import UsageError
from onnxslim.lossy.budgeted_pass import BudgetedPass
from onnxslim.pipeline.passes import Pass
from onnxslim.pipeline.registry import get
from onnxslim.tuning.aims import Measure

LEAST_BUDGET: Final = 0.1
"""Share of latency, bytes or multiply-accumulates that a family leaves at strength 1."""


class Role(Enum):
    """What a family changes."""

    STRUCTURE = auto()  # fewer, smaller or split layers; several families in turn
    NUMBERS = auto()  # how weights and activations are stored and computed; one family at most
    TRAINING = auto()  # what brings back what the structure cost
    EXITS = auto()  # where samples leave


_FAMILIES: Final = {
    "prune-blocks": Role.STRUCTURE,
    "prune-residual-stream": Role.STRUCTURE,
    "prune-channels": Role.STRUCTURE,
    "factorize-conv": Role.STRUCTURE,
    "factorize-dense": Role.STRUCTURE,
    "finetune": Role.TRAINING,
    "cluster-weights": Role.NUMBERS,
    "quantize-weights": Role.NUMBERS,
    "convert-fp16": Role.NUMBERS,
    "quantize-int8": Role.NUMBERS,
    "compress-weights": Role.NUMBERS,
    "inject-exits": Role.EXITS,
}
_SLOW: Final = {"quantize-weights", "cluster-weights", "compress-weights"}
"""Those that fit codes layer by layer, which takes minutes on large models."""

_SLOW_STORES: Final = {"compress-weights", "cluster-weights", "convert-fp16"}
"""Stores of weights that make no model faster."""


@dataclass(frozen=True)
class Family:
    """A pass that the search may take.

    Attributes:
        hardest: the pass at strength 1.
        role: what it changes.
    """

    hardest: Pass
    role: Role

    @property
    def name(self) -> str:
        """Of the pass."""
        return self.hardest.name

    @property
    def is_slow(self) -> bool:
        """Whether it takes minutes where others take seconds."""
        return self.name in _SLOW

    @property
    def has_strength(self) -> bool:
        """Whether there is a strength to choose."""
        return self.hardest.softened(0.5) is not None

    def at(self, strength: float) -> Pass | None:
        """The pass at a part of its strength, in [0, 1]; None where that is next to nothing."""
        if strength <= 0:
            return None
        if strength >= 1:
            return self.hardest
        return self.hardest.softened(strength) or self.hardest


def families_for(
    goal: Measure,
    *,
    allowed: Sequence[str] = (),
    denied: Iterable[str] = (),
    has_samples: bool = False,
    trains: bool = False,
    is_timed: bool = True,
) -> list[Family]:
    """The families for a goal, in the order of a pipeline.

    Args:
        goal: what is to become small.
        allowed: names of passes; (): all that help with the goal.
        denied: names of passes that are left out.
        has_samples: whether exits may be looked for, whose heads are fitted to samples.
        trains: whether models may be trained, which takes samples, PyTorch and time.
        is_timed: whether budgets may be of latency; else they are of multiply-accumulates.

    Raises:
        UsageError: a name is of no family.
    """
    for name in (*allowed, *denied):
        if name not in _FAMILIES:
            raise UsageError(
                f"`{name}` is no pass that tune combines; there are {', '.join(_FAMILIES)}."
            )
    found = []
    for name, role in _FAMILIES.items():
        if name in denied or (allowed and name not in allowed):
            continue
        helps = goal is Measure.BYTES or name not in _SLOW_STORES
        if role is Role.EXITS:
            helps = goal is Measure.LATENCY and has_samples
        if role is Role.TRAINING:
            helps = trains
        if helps or allowed:
            found.append(Family(_hardest(name, goal, is_timed=is_timed), role))
    return found


def _hardest(name: str, goal: Measure, *, is_timed: bool) -> Pass:
    plain = get(name)()
    if isinstance(plain, BudgetedPass):
        kind = "bytes" if goal is Measure.BYTES else "latency" if is_timed else "macs"
        fields = {spec.name: spec.field for spec in plain.options()}
        if kind not in plain.budgets:
            kind = "macs"
        changed: Any = {fields[kind]: LEAST_BUDGET}
        return replace(plain, **changed)
    return plain.hardest() or plain

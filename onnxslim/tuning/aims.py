"""What `tune` is asked for: what is to become small, how far, and how good a model is by that."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from onnxslim.errors import UsageError

_UNITS: Final = {
    "b": 1.0,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "kib": 2.0**10,
    "mib": 2.0**20,
    "gib": 2.0**30,
}
_TIMES: Final = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_QUANTITY: Final = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Zµ]+)\s*")


class Measure(StrEnum):
    """A figure of a model that is to become small."""

    LATENCY = "latency"
    BYTES = "bytes"
    ENERGY = "energy"


@dataclass(frozen=True)
class TuneTarget:
    """A figure that the result shall have at most.

    Attributes:
        measure: of what.
        amount: milliseconds or bytes; or a share of the input's figure.
        is_share: which of the two.
    """

    measure: Measure
    amount: float
    is_share: bool

    def limit(self, whole: float) -> float:
        """The figure in the unit of `whole`, that of the input model."""
        return self.amount * whole if self.is_share else self.amount

    def __str__(self) -> str:
        """As the command spells it."""
        if self.is_share:
            return f"{self.amount:g}x"
        return f"{self.amount:g}ms" if self.measure is Measure.LATENCY else f"{self.amount:.0f}B"


def read_target(measure: Measure, text: str) -> TuneTarget:
    """The target that `5ms`, `1.5MB` or `0.5x` spells.

    Raises:
        UsageError: it spells none.
    """
    units = _TIMES if measure is Measure.LATENCY else _UNITS
    found = _QUANTITY.fullmatch(text)
    number, unit = (float(found[1]), found[2]) if found else (0.0, "")
    is_share = unit.lower() == "x"
    factor = 1.0 if is_share else units.get(unit.lower(), 0.0)
    amount = number * factor
    if not 0 < amount < math.inf or (is_share and amount >= 1):
        option = "latency" if measure is Measure.LATENCY else "size"
        example = "5ms or 0.5x" if measure is Measure.LATENCY else "1MB or 0.25x"
        raise UsageError(
            f"--target-{option} must be {example}, where x stands for the input's and is below 1; "
            f"got {text!r}."
        )
    return TuneTarget(measure, amount, is_share)


@dataclass(frozen=True)
class Aim:
    """What is to become small.

    Attributes:
        goal: the figure that becomes as small as the floors allow; where targets are given, the one
            that the search looks at first.
        targets: figures that suffice; (): as far as it goes.
    """

    goal: Measure
    targets: tuple[TuneTarget, ...] = ()

    @classmethod
    def of(cls, goal: str | None, latency: str | None, size: str | None) -> Aim:
        """The aim that the options of the command spell.

        Raises:
            UsageError: a target or the goal is none, or nothing is asked for.
        """
        targets = []
        if latency is not None:
            targets.append(read_target(Measure.LATENCY, latency))
        if size is not None:
            targets.append(read_target(Measure.BYTES, size))
        if goal is None and not targets:
            return cls(Measure.LATENCY)
        if goal is not None and goal not in list(Measure):
            raise UsageError(f"--goal must be one of {', '.join(Measure)}; got {goal!r}.")
        return cls(targets[0].measure if goal is None else Measure(goal), tuple(targets))

    @property
    def needs_clock(self) -> bool:
        """Whether models must be timed."""
        measures = {self.goal, *(target.measure for target in self.targets)}
        return Measure.LATENCY in measures

    def __str__(self) -> str:
        """In words, for reports."""
        wanted = [f"{target.measure} at most {target}" for target in self.targets]
        return ", ".join(wanted) or f"least {self.goal}"


@dataclass(frozen=True)
class ModelFigures:
    """What a model takes.

    Attributes:
        file_bytes: of the file.
        ms: median latency; None where it was not timed.
        energy_pj: by arithmetic; None where sizes are not known.
    """

    file_bytes: float
    ms: float | None = None
    energy_pj: float | None = None

    def of(self, measure: Measure) -> float | None:
        """The figure of this kind."""
        return {
            Measure.BYTES: self.file_bytes,
            Measure.LATENCY: self.ms,
            Measure.ENERGY: self.energy_pj,
        }[measure]


def excess(aim: Aim, found: ModelFigures, whole: ModelFigures) -> float:
    """By how much the targets are missed, as the sum of logarithms; 0 where all are met."""
    total = 0.0
    for target in aim.targets:
        now, before = found.of(target.measure), whole.of(target.measure)
        if now is None or before is None:
            return math.inf
        total += max(0.0, math.log(max(now, 1e-12) / target.limit(before)))
    return total


def score(aim: Aim, found: ModelFigures, whole: ModelFigures, use: float) -> float:
    """What the search makes least.

    The logarithm of what is left of the goal's figure; with targets, by how much they are missed.
    Where they are met, the model that uses less of the floors is better, as it is closer.

    Args:
        aim: what is asked for.
        found: figures of the candidate.
        whole: those of the input.
        use: the share of the floors that the candidate uses, in [0, 1].
    """
    if aim.targets:
        missed = excess(aim, found, whole)
        return missed if missed > 0 else use - 1.0
    now, before = found.of(aim.goal), whole.of(aim.goal)
    if now is None or before is None:
        return math.inf
    return math.log(max(now, 1e-12) / before)

"""When a step is kept: the goal of the run, and what a step must bring to be worth what it costs.

Floors: see `floors`.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from onnxslim.pipeline.floors import Floors, missed, missed_drop
from onnxslim.records import OutputKind
from onnxslim.render.timing import latency_text
from onnxslim.report import Drift, LatencyPair, Stats, StepReport

WORTH: Final = 0.1  # least gain as a share of the relative error

GoalWord = Literal["both", "latency", "bytes"]
"""The values of `Goal`, as users write them."""


class Goal(enum.Enum):
    """Which of bytes and latency may not get worse."""

    BOTH = "both"
    LATENCY = "latency"
    BYTES = "bytes"


@dataclass(frozen=True)
class Policy:
    """The rules for keeping a step.

    Attributes:
        goal: `BOTH`: neither bytes nor latency may get worse; `BYTES` lets latency rise,
            `LATENCY` lets bytes rise.
        force: keep a step whatever it costs; broken promises and floors still count.
        floors: limits on what lossy steps may cost.
        baseline_accuracy: accuracy of the input model in [0, 1]; needed for `floors.max_drop`.
        keeps_unmended: whether steps whose mending step was dropped are tried without it.
    """

    goal: Goal = Goal.BOTH
    force: bool = False
    floors: Floors = field(default_factory=Floors)
    baseline_accuracy: float | None = None
    keeps_unmended: bool = True

    def objection(
        self,
        before: Stats,
        after: Stats,
        latency: LatencyPair | None,
        *,
        lossy: bool,
        drifts: Mapping[str, Drift] = MappingProxyType({}),
    ) -> str | None:
        """Why the step does not pay, with the numbers; None when it does.

        A lossless step must not make the model worse. A lossy step must make it smaller or
        measurably faster, by enough to be worth its error: see `least_gain`. A difference within
        the spread of the timing does not count.

        Args:
            before: size of the model before the step.
            after: size of the candidate.
            latency: of the two models; None where it was not measured.
            lossy: whether outputs may move.
            drifts: how far each output moved, of a lossy step; {} where they were not compared.
        """
        if self.force:
            return None
        if self.goal is not Goal.LATENCY and after.file_bytes > before.file_bytes:
            return f"the file would grow from {before.file_bytes:,} to {after.file_bytes:,} bytes"
        if self.goal is not Goal.BYTES and latency is not None and latency.is_slower:
            return f"the model would be slower: {latency_text(latency)}"
        if not lossy:
            return None
        saved = 1 - after.file_bytes / before.file_bytes if before.file_bytes else 0.0
        sooner = 1 - 1 / latency.low if latency is not None and latency.is_faster else 0.0
        gains = {
            Goal.BOTH: (saved, sooner),
            Goal.BYTES: (saved,),
            Goal.LATENCY: (saved if latency is None else sooner,),
        }[self.goal]
        timing = f"; {latency_text(latency)}" if latency else ""
        sizes = f"{before.file_bytes:,} to {after.file_bytes:,} bytes{timing}"
        gain, least = max(gains), least_gain(drifts)
        if gain <= 0:
            return f"it gains nothing: {sizes}"
        if gain < least:
            return (
                f"it gains {100 * gain:.2g} %, too little for outputs that move by "
                f"{100 * least / WORTH:.2g} %, which are worth {100 * least:.2g} %: {sizes}"
            )
        return None

    def floor_missed(self, step: StepReport) -> str | None:
        """Which floor the step goes below, with the numbers; None when it holds them all."""
        drop = None
        if self.baseline_accuracy is not None and step.accuracy is not None:
            drop = 100 * (self.baseline_accuracy - step.accuracy)
        drifts = step.comparison.original if step.comparison else {}
        return missed_drop(self.floors, drop) or missed(self.floors, drifts)


def least_gain(drifts: Mapping[str, Drift]) -> float:
    """The share of bytes or time that a lossy step must save to be worth its error.

    `WORTH` times the relative error of the output that the step moves most: 1 % for an error of a
    tenth (20 dB), 3 % for a third (10 dB), 0.1 % for a hundredth (40 dB), at most 10 %. A user who
    asks for a step expects it to matter about as much as its error does. Of the steps in the tables
    of docs/floors.md that lose little, each saves at least ten times as much; pruning that stores
    dense zeros (nothing saved at 9 dB) saves less.

    Args:
        drifts: of each output, against the model before the step. Where outputs were not compared,
            any gain is enough.
    """
    return WORTH * max((_relative_error(drift) for drift in drifts.values()), default=0.0)


def _relative_error(drift: Drift) -> float:
    """How far an output moved, on a scale from 0 to 1.

    Of token logits, a bound on how much probability went to other tokens: the total variation is at
    most √(KL / 2) (Pinsker's inequality). A constant added to a row of logits moves nothing.
    """
    if drift.kind is OutputKind.DISCRETE:
        return 1 - (drift.agreement or 0.0)
    if drift.mean_kl is not None:
        return float(min(1.0, math.sqrt(drift.mean_kl / 2)))
    return float(min(1.0, drift.rel_l2))

"""When a step is kept: the goal of the run, and what a step must bring. Floors: see `floors`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from onnxslim.pipeline.floors import Floors, missed
from onnxslim.render.timing import latency_text
from onnxslim.report import LatencyPair, Stats, StepReport


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
    """

    goal: Goal = Goal.BOTH
    force: bool = False
    floors: Floors = field(default_factory=Floors)
    baseline_accuracy: float | None = None

    def objection(
        self, before: Stats, after: Stats, latency: LatencyPair | None, *, lossy: bool
    ) -> str | None:
        """Why the step does not pay, with the numbers; None when it does.

        A lossy step must make the model smaller or measurably faster; a lossless step must not make
        it worse. A difference within the spread of the timing does not count.
        """
        if self.force:
            return None
        smaller = after.file_bytes < before.file_bytes
        faster = latency is not None and latency.is_faster
        if self.goal is not Goal.LATENCY and after.file_bytes > before.file_bytes:
            return f"the file would grow from {before.file_bytes:,} to {after.file_bytes:,} bytes"
        if self.goal is not Goal.BYTES and latency is not None and latency.is_slower:
            return f"the model would be slower: {latency_text(latency)}"
        wanted = {
            Goal.BOTH: smaller or faster,
            Goal.BYTES: smaller,
            Goal.LATENCY: faster or (latency is None and smaller),
        }[self.goal]
        if lossy and not wanted:
            timing = f"; {latency_text(latency)}" if latency else ""
            return f"it gains nothing: {before.file_bytes:,} to {after.file_bytes:,} bytes{timing}"
        return None

    def floor_missed(self, step: StepReport) -> str | None:
        """Which floor the step goes below, with the numbers; None when it holds them all."""
        drop = None
        if self.baseline_accuracy is not None and step.accuracy is not None:
            drop = 100 * (self.baseline_accuracy - step.accuracy)
        why = missed(self.floors, drop=drop)
        drifts = step.comparison.original if step.comparison else {}
        for name, drift in drifts.items():
            why = why or missed(
                self.floors, sqnr_db=drift.sqnr_db, agreement=drift.top1_agreement, output=name
            )
        return why

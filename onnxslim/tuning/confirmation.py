"""Hold an answer to the floors on samples that chose nothing.

What was chosen among many fits the samples that chose a little better than others. An answer that
misses a floor on the others is looked for again under floors as much stricter as it missed by.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from onnxslim.errors import OnnxslimError
from onnxslim.io.model import Model
from onnxslim.pipeline.floors import Floors
from onnxslim.pipeline.policy import Policy
from onnxslim.records import Fidelity
from onnxslim.report import StepReport
from onnxslim.run.prepared import PreparedRun
from onnxslim.tuning.trials import use_of

_ROOM: Final = 0.9  # share of the floors that the next answer is to use on the other samples
_LEAST_USE: Final = 0.05  # below which the use on the samples that chose says nothing


@dataclass(frozen=True)
class Verdict:
    """What the other samples say of a model.

    Attributes:
        why: the floor that it misses, with the numbers; None: it holds them all.
        use: the largest share of what a floor allows that it uses; infinite where it fails.
    """

    why: str | None
    use: float


class Confirmation:
    """Judges models on samples that chose nothing.

    Args:
        run: the input model with those samples; None: there are none, and all models pass.
        policy: holds the floors.
    """

    def __init__(self, run: PreparedRun | None, policy: Policy) -> None:
        self._run, self._policy = run, policy

    def verdict(self, model: Model) -> Verdict:
        """Whether a model holds the floors."""
        run = self._run
        if run is None or run.prover is None:
            return Verdict(None, 0.0)
        floors = run.checked_floors(self._policy.floors)
        policy = replace(self._policy, floors=floors, baseline_accuracy=run.before.accuracy)
        run.prover.commit(run.source)
        step = StepReport("tune", Fidelity.LOSSY, committed=True, seconds=0.0)
        try:
            step.comparison = run.prover.compare(model, Fidelity.LOSSY)
            step.accuracy = run.prover.accuracy(model)
        except OnnxslimError as error:
            return Verdict(str(error), float("inf"))
        drop = None
        if run.before.accuracy is not None and step.accuracy is not None:
            drop = 100 * (run.before.accuracy - step.accuracy)
        return Verdict(policy.floor_missed(step), use_of(floors, step.comparison, drop))


def stricter(floors: Floors, use: float, other_use: float) -> Floors | None:
    """Floors that a model must hold on the samples that choose to hold `floors` on the others.

    Args:
        floors: what must hold on both.
        use: share of the floors that a model used on the samples that choose.
        other_use: the share that it used on the others, above 1.

    Returns:
        None where no stricter floors would do.
    """
    if not 1 < other_use < float("inf"):
        return None
    return floors.tightened(_ROOM * min(max(use, _LEAST_USE) / other_use, 1.0))

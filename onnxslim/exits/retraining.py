"""Exits that a model has already, trained with its network; their thresholds are chosen anew.

Whoever inserted the exits promised something of new samples, and the file does not say what. So
what the model did before training is what it has to do after it: on samples that nothing was
trained on, the lower confidence bound of the share that gets the teacher's answer may not fall. It
was no less than what was promised, so the promise holds as well. Thresholds are the strictest at
which samples take no more work than before; where these do not keep the bound, the loosest that do,
by the path and the test that `inject-exits` uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from onnxslim.constraints.read import read_constraints
from onnxslim.constraints.storing import stored_tensors
from onnxslim.errors import NotApplicable
from onnxslim.exits.candidates import ExitAnalysis
from onnxslim.exits.heads import Distillation, HeadTrials, trials_of, twin_answers
from onnxslim.exits.points import known_macs
from onnxslim.exits.promises import AgreementPromise
from onnxslim.exits.thresholds import (
    FINE_STEPS,
    Outcome,
    fitted_risk,
    loosest,
    outcome,
    threshold_path,
)
from onnxslim.exits.training import ExitTraining, with_values
from onnxslim.exits.twin import ExitTwin, InsertedExit, inserted_exits, twin_of
from onnxslim.graph.ir import ancestors
from onnxslim.io.model import Model
from onnxslim.pipeline.passes import Context
from onnxslim.services.calibration import Calibration
from onnxslim.services.training import TrainingOutcome


@dataclass(frozen=True)
class RetrainedExits:
    """What training found for a model with exits.

    Attributes:
        outcome: with new values of stored tensors.
        thresholds: of the exits, in the order of `inserted_exits`.
        before, after: where samples that confirm leave, with which answers.
    """

    outcome: TrainingOutcome
    thresholds: tuple[float, ...]
    before: Outcome
    after: Outcome

    def words(self, number: int) -> str:
        """What became of an exit."""
        shares = [100 * found.shares[number] for found in (self.before, self.after)]
        return (
            f"exit {number + 1}: its threshold became {self.thresholds[number]:.4g}; "
            f"{shares[1]:.1f} % of {self.after.samples:,} samples that were not trained on leave "
            f"there, {shares[0]:.1f} % before; of all, {100 * self.after.agreement:.2f} % get the "
            f"teacher's answer, {100 * self.before.agreement:.2f} % before"
        )


def whole_network(model: Model) -> Model:
    """A model as its network answers alone: of one with exits, without them."""
    twin = twin_of(model)
    return model if twin is None else twin.of_network()


def retrained_exits(
    twin: ExitTwin, model: Model, teachers: Sequence[Model], how: ExitTraining, context: Context
) -> RetrainedExits:
    """New values and thresholds of a model with exits.

    Args:
        twin: its twin.
        model: the model.
        teachers: models without exits, as `whole_network` makes them.
        how: to train.
        context: with samples.

    Raises:
        NotApplicable: nothing learns, or what was learned does not do as well as what came in.
    """
    assert context.calibration is not None
    names = stored_tensors(read_constraints(model.graph)).keys()
    strange = stored_tensors(read_constraints(twin.model.graph)).keys() - names
    if strange:
        raise NotApplicable(
            f"several constants in branches of exits have the name of `{min(strange)}`: give each "
            "a name of its own"
        )
    found = how.run(twin, teachers, on_half=True)
    if not found.values:
        raise NotApplicable(found.nothing)
    exits = inserted_exits(model.graph)
    choosing, confirming = context.calibration.parts(2)
    held = choosing.halves()[1]
    before = _Answers(twin, twin.model, exits, teachers[0], context)
    after = _Answers(twin, with_values(twin.model, found.values), exits, teachers[0], context)
    old = tuple(item.threshold for item in exits)
    first = before.outcome(old, before.on(confirming))
    seen, trials = after.on(held), after.on(confirming)
    work = before.work(before.outcome(old, before.on(held)))
    path = after.path(seen)
    within = (each for each in path if after.work(after.outcome(each, seen)) <= work)
    promise = AgreementPromise(first.promised)
    thresholds = next(within, None)
    if thresholds is None or not promise.is_kept(after.outcome(thresholds, trials)):
        thresholds = loosest(path, trials.heads, promise.is_kept, trials.rest)
    if thresholds is None:
        raise NotApplicable(
            f"after training no thresholds keep {promise}, as before it: "
            f"{promise.broken_by(after.outcome(path[0], trials))}, even where heads must be "
            "surest; give more samples, or train less"
        )
    return RetrainedExits(found, thresholds, first, after.outcome(thresholds, trials))


class _Answers:
    """How a model with exits answers, beside a teacher.

    Args:
        twin: of the model.
        model: the twin with the values of stored tensors that count.
        exits: of the model.
        teacher: whose answers count.
        context: with samples.
    """

    def __init__(
        self,
        twin: ExitTwin,
        model: Model,
        exits: Sequence[InsertedExit],
        teacher: Model,
        context: Context,
    ) -> None:
        self._twin, self._model = twin, model
        kind = exits[0].kind
        _, self._form = ExitAnalysis(twin.model, context, twin.output).scores
        self._distillation = Distillation(
            model, twin.output, self._form, kind, context.seed, teacher
        )

    def on(self, samples: Calibration) -> HeadTrials:
        """The answers for some samples."""
        found = twin_answers(self._distillation, self._model, self._twin.heads, samples, self._form)
        return trials_of(self._distillation, found)

    def outcome(self, thresholds: Sequence[float], trials: HeadTrials) -> Outcome:
        """Where samples leave."""
        return outcome(thresholds, trials.heads, trials.rest)

    def work(self, found: Outcome) -> float:
        """The mean work of samples, in any unit."""
        return found.latency(self._works)

    @cached_property
    def _works(self) -> list[int]:
        """Multiply-accumulates up to each head, and to the end; places where none are known."""
        outputs = {tensor.name: tensor for tensor in self._model.graph.outputs}
        names = (*self._twin.heads, self._twin.output)
        macs = [known_macs(ancestors([outputs[name]])) for name in names]
        known = [own for own in macs if own is not None]
        return known if len(known) == len(macs) else list(range(len(macs)))

    def path(self, trials: HeadTrials) -> list[tuple[float, ...]]:
        """Thresholds from strict to loose, by samples that were not trained on."""
        risks = [fitted_risk(trial.confidence, ~trial.agrees) for trial in trials.heads]
        saved = [self._works[-1] - own for own in self._works[:-1]]
        return list(threshold_path(risks, saved, FINE_STEPS))

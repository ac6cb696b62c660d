"""Run one step on a copy of a model: the members of a preset in rounds, each change logged.

Owns: copies, rounds, and what a single pass call may not do (raise, or hide a change). Not here:
whether the outputs still hold (see `verification`), and whether the step pays (see `manager`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from onnxslim.analysis.layer_names import layer_names
from onnxslim.errors import NotApplicable, OnnxslimError, PromiseBroken
from onnxslim.graph.clone import adopt
from onnxslim.graph.collector import paused
from onnxslim.graph.moved_constants import has_moved_constants, settle
from onnxslim.io.check import Fingerprint, fingerprint
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.pipeline.layer_filter import FilteredPass, ambiguities, layer_patterns
from onnxslim.pipeline.passes import Context, Pass, Preset
from onnxslim.pipeline.untouched import WeightSnapshot
from onnxslim.records import Change, Fidelity, PassResult, Skip
from onnxslim.report import Comparison, PartReport, StepReport


class PassFailed(Exception):
    """A pass raised, or changed the graph and reported no change.

    Attributes:
        culprit: the pass.
        before: the model right before the call that failed.
    """

    culprit: Pass
    before: Model


@dataclass
class MemberLog:
    """What one member of a step did, summed over rounds."""

    member: Pass
    seconds: float = 0.0
    changes: list[Change] = field(default_factory=list)
    skips: dict[tuple[str, str], Skip] = field(default_factory=dict)
    fidelity: Fidelity = Fidelity.EXACT
    outputs: list[str] = field(default_factory=list)
    resolved: str | None = None
    untouched: str | None = None
    notes: dict[str, None] = field(default_factory=dict)

    def add(self, result: PassResult, seconds: float) -> None:
        """Add the result of one call."""
        self.seconds += seconds
        self.changes += result.changes
        self.outputs += result.outputs
        self.notes |= dict.fromkeys(result.notes)
        self.resolved = result.resolved or self.resolved
        self.untouched = result.untouched or self.untouched
        if result.changes:
            promised = self.member.fidelity if result.fidelity is None else result.fidelity
            self.fidelity = max(self.fidelity, promised)
        # what was declined in an early round may have been done in a later one
        self.skips = {(skip.node, skip.why): skip for skip in result.skips}

    def report(self) -> PartReport:
        """The log as part of a report."""
        changes, skips = tuple(self.changes), tuple(self.skips.values())
        return PartReport(
            str(self.member),
            self.fidelity,
            self.seconds,
            changes,
            skips,
            self.untouched,
            tuple(self.notes),
        )


@dataclass
class StepCandidate:
    """A copy of a model after a step, and the log of each member of the step."""

    model: Model
    logs: list[MemberLog]
    seconds: float = 0.0

    @property
    def changed(self) -> bool:
        """Whether any member changed the model."""
        return any(log.changes for log in self.logs)

    @property
    def fidelity(self) -> Fidelity:
        """What the changes promise together: the weakest of their promises."""
        return max((log.fidelity for log in self.logs if log.changes), default=Fidelity.EXACT)

    @property
    def outputs(self) -> list[str]:
        """Names of the graph outputs that were added."""
        return [name for log in self.logs for name in log.outputs]

    def report(self, step: Pass, comparison: Comparison | None) -> StepReport:
        """The candidate as the report of `step`, not judged yet."""
        fidelity = self.fidelity if self.changed else step.fidelity
        parts = [log.report() for log in self.logs]
        report = StepReport(
            str(step),
            fidelity,
            True,
            self.seconds,
            parts,
            comparison=comparison,
            loss_bound=step.loss_bound(),
        )
        if len(self.logs) == 1:  # a preset of rounds has no member that measures time
            report.resolved = self.logs[0].resolved
        return report


@dataclass
class Executor:
    """Runs steps on copies of models.

    Attributes:
        context: what passes may use; the model is filled in.
        finds_hidden_changes: whether graphs are compared after a call that reports no change.
    """

    context: Context
    finds_hidden_changes: bool
    # the model of a call that reported no change, and its fingerprint until the next call
    _last: tuple[Model, Fingerprint] | None = field(default=None, init=False, repr=False)

    @paused()
    def run(self, step: Pass, source: Model) -> StepCandidate:
        """Run `step` on a copy of `source`.

        Raises:
            PassFailed: a member failed.
        """
        started = time.perf_counter()
        candidate = self.copy(step, source)
        for index, (log, model) in enumerate(self.turns(step, candidate)):
            try:
                with self.progress_of(log.member, step):
                    self.turn(log, model)
            except PassFailed as failure:
                failure.culprit = log.member
                failure.before = self._model_before(index, step, source)
                raise
        candidate.seconds = time.perf_counter() - started
        return candidate

    def progress_of(self, member: Pass, step: Pass) -> AbstractContextManager[object]:
        """The turn of a preset's member as a step of the progress; a pass alone is one already."""
        return nullcontext() if member is step else self.context.progress.step(member.name)

    def copy(self, step: Pass, source: Model) -> StepCandidate:
        """A copy of `source` on which no member of `step` has run yet."""
        return StepCandidate(source.clone(), [MemberLog(member) for member in step.members()])

    def turns(self, step: Pass, candidate: StepCandidate) -> Iterator[tuple[MemberLog, Model]]:
        """Members in rounds, until as many in a row as there are changed nothing.

        The caller takes each turn before it asks for the next.
        """
        rounds = step.rounds if isinstance(step, Preset) else 1
        logs, model = candidate.logs, candidate.model
        idle = 0  # members in a row that changed nothing
        for _ in range(rounds):
            infer_shapes(model)
            for log in logs:
                if idle == len(logs):
                    return
                done = len(log.changes)
                yield log, model
                changed = len(log.changes) > done
                model.has_shapes = model.has_shapes and not changed
                idle = 0 if changed else idle + 1
            if rounds == 1 or idle == len(logs):
                return

    def turn(self, log: MemberLog, model: Model) -> None:
        """Let one member rewrite `model` once.

        Raises:
            PassFailed: it raised, or changed the graph without saying so.
        """
        before = self._fingerprint(model) if self.finds_hidden_changes else None
        self._last = None
        started = time.perf_counter()
        try:
            result = run_stages(log.member, model, replace(self.context, model=model))
        except PromiseBroken as error:
            raise PassFailed(str(error)) from error
        except (OnnxslimError, MemoryError, OSError):
            raise  # about the model, the request or the machine, not about the pass
        except Exception as error:
            raise PassFailed(f"failed with {type(error).__name__}: {error}") from error
        log.add(result, time.perf_counter() - started)
        if before is not None and not result.changed:
            if fingerprint(model.graph) != before:
                raise PassFailed("changed the graph and reported no change")
            self._last = (model, before)

    def _fingerprint(self, model: Model) -> Fingerprint:
        if self._last is not None and self._last[0] is model:
            return self._last[1]
        return fingerprint(model.graph)

    def _model_before(self, turn: int, step: Pass, source: Model) -> Model:
        """The model right before turn number `turn`, by replay: passes are deterministic."""
        candidate = self.copy(step, source)
        for number, (log, model) in enumerate(self.turns(step, candidate)):
            if number == turn:
                break
            self.turn(log, model)
        return candidate.model


def run_stages(rewrite: Pass, model: Model, context: Context) -> PassResult:
    """Let the stages of `rewrite` change `model` in turn; most passes have one.

    Stages after the first take their targets from the model that the ones before them made.
    """
    first, *rest = rewrite.unrolled()
    if not rest:
        return run_pass(first, model, context)
    results = []
    for number, stage in enumerate((first, *rest)):
        infer_shapes(model)
        own = context if number == 0 or stage.mends else replace(context, target=model.clone())
        with context.progress.step(str(stage)):
            results.append(run_pass(stage, model, own))
        model.has_shapes = model.has_shapes and not results[-1].changed
    pairs = list(zip((first, *rest), results, strict=True))
    spelled = ",".join(result.resolved or str(stage) for stage, result in pairs)
    is_resolved = any(result.resolved for result in results)
    return PassResult.together(results, spelled if is_resolved else None)


def run_pass(rewrite: Pass, model: Model, context: Context) -> PassResult:
    """Let `rewrite` change `model` itself, whose shapes are inferred, as far as it is applicable.

    Lossy passes get a model whose weights are constants where operators read them, however the
    file moves them there. Where such a pass changes nothing, the model stays as it was.
    """
    if not isinstance(rewrite, FilteredPass) or not any(layer_patterns(rewrite)):
        return _run_settled(rewrite, model, context)
    names, labels = layer_names(model.graph), rewrite.targets(model.graph)
    result = _run_settled(rewrite, model, replace(context, names=names))
    return replace(result, notes=(*result.notes, *ambiguities(rewrite, names, labels)))


def _run_settled(rewrite: Pass, model: Model, context: Context) -> PassResult:
    is_wanted = rewrite.fidelity is Fidelity.LOSSY and rewrite.settles
    if not is_wanted or not has_moved_constants(model.graph):
        return _applied(rewrite, model, context)
    copy = model.clone()
    settled = settle(copy.graph)
    own = copy if context.model is model else context.model
    context = replace(context, model=own, target=_settled(context.target))
    result = _applied(rewrite, copy, context)
    if not result.changed:
        return result
    stored = settled.store_again(copy.graph)
    adopt(model.graph, copy.graph)
    return replace(result, changes=(*settled.changes, *result.changes, *stored))


def _settled(target: Model | None) -> Model | None:
    if target is None or not has_moved_constants(target.graph):
        return target
    copy = target.clone()
    settle(copy.graph)
    return copy


def _require_samples(rewrite: Pass, context: Context) -> None:
    purpose = rewrite.needs_calibration()
    if purpose is not None and context.calibration is None:
        raise NotApplicable(f"it needs calibration samples {purpose}: give --calib")


def _require_traits(rewrite: Pass, context: Context) -> None:
    for trait in rewrite.writes():
        why = context.engine.objection(trait)
        if why is not None:
            raise NotApplicable(why)


def _applied(rewrite: Pass, model: Model, context: Context) -> PassResult:
    try:
        _require_traits(rewrite, context)
        _require_samples(rewrite, context)
        rewrite.requires(model.graph, context)
    except NotApplicable as reason:
        return PassResult(skips=(Skip(model.graph.name, str(reason)),))
    if not rewrite.changes_weights:
        return rewrite.run(model.graph, context)
    before = WeightSnapshot.of(model.graph)
    result = rewrite.run(model.graph, context)
    if not result.changed:
        return result
    is_filtered = isinstance(rewrite, FilteredPass) and bool(rewrite.only or rewrite.skip)
    untouched = before.untouched(model.graph, result.skips, is_filtered=is_filtered)
    return replace(result, untouched=untouched)

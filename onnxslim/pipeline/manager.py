"""Runs a pipeline: copies, runs, verifies, decides, commits, and finds who is to blame.

One item of a pipeline is one step. A step runs on a copy that shares weight arrays; the copy is
verified, judged and then becomes the current model, or is dropped. A preset is one step whose
members run in rounds until none of them changes anything: it is copied and verified once, and
only when that fails is it replayed member by member to name the one that broke it. So the
guarantee is that of verifying after every pass, at the price of verifying once.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnxslim.errors import ModelError, NotApplicable, OnnxslimError, PromiseBroken, RuntimeFailure
from onnxslim.graph.collector import paused
from onnxslim.io.check import check_model, fingerprint, signature
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.pipeline.passes import Context, Pass, Preset
from onnxslim.pipeline.policy import Policy
from onnxslim.pipeline.prover import Prover
from onnxslim.pipeline.stats import measure_stats
from onnxslim.records import Change, Fidelity, PassResult, Skip
from onnxslim.report import Comparison, LatencyPair, PartReport, Stats, StepReport

Progress = Callable[[str], None]


class _PassFailed(Exception):
    """A pass raised or hid a change; `PromiseBroken` is made of it once its input is known."""


@dataclass
class _Part:
    """What one member of a step did, summed over rounds."""

    rewrite: Pass
    seconds: float = 0.0
    changes: list[Change] = field(default_factory=list)
    skips: dict[tuple[str, str], Skip] = field(default_factory=dict)
    fidelity: Fidelity = Fidelity.EXACT
    outputs: list[str] = field(default_factory=list)

    def add(self, result: PassResult, seconds: float) -> None:
        self.seconds += seconds
        self.changes += result.changes
        self.outputs += result.outputs
        if result.changes:
            promised = self.rewrite.fidelity if result.fidelity is None else result.fidelity
            self.fidelity = max(self.fidelity, promised)
        # what was declined in an early round may have been done in a later one
        self.skips = {(skip.node, skip.why): skip for skip in result.skips}

    def report(self) -> PartReport:
        skips = tuple(self.skips.values())
        return PartReport(
            str(self.rewrite), self.fidelity, self.seconds, tuple(self.changes), skips
        )


@dataclass
class _Run:
    """A candidate and how it came about."""

    model: Model
    parts: list[_Part]
    seconds: float

    @property
    def changed(self) -> bool:
        return any(part.changes for part in self.parts)

    @property
    def fidelity(self) -> Fidelity:
        return max((part.fidelity for part in self.parts if part.changes), default=Fidelity.EXACT)

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs that were added."""
        return [name for part in self.parts for name in part.outputs]


class PassManager:
    """A pipeline, ready to run on models."""

    def __init__(self, passes: Sequence[Pass]) -> None:
        self.passes = tuple(passes)

    @classmethod
    def parse(cls, text: str) -> PassManager:
        """The manager of the pipeline that `text` spells.

        Raises:
            UsageError: an unknown pass or option, or a bad value.
        """
        from onnxslim.pipeline.grammar import parse_pipeline

        return cls(parse_pipeline(text).passes)

    def run(
        self,
        model: Model,
        context: Context | None = None,
        *,
        prover: Prover | None = None,
        policy: Policy | None = None,
        stats: Stats | None = None,
        progress: Progress | None = None,
        reproducers: Path = Path("onnxslim-repro"),
    ) -> tuple[Model, list[StepReport]]:
        """Run all steps on `model`, which is left as it is.

        Args:
            model: a valid model.
            context: seed and services for the passes.
            prover: verifies and measures; without it only signature and structure are checked.
            policy: what a step must bring to be kept; by default neither bytes nor latency may
                get worse.
            stats: size of `model`, if it was measured already.
            progress: told in words what is going on.
            reproducers: folder for the model and the command that show a broken promise.

        Returns:
            The result, which shares weight arrays with `model`, and a report for each step.

        Raises:
            PromiseBroken: a pass failed or broke its promise; a reproducer was written.
        """
        runner = _Runner(
            context or Context(),
            prover,
            policy or Policy(),
            progress or (lambda _: None),
            reproducers,
            stats,
        )
        return runner.run(model, self.passes)


@dataclass
class _Runner:
    context: Context
    prover: Prover | None
    policy: Policy
    progress: Progress
    reproducers: Path
    stats: Stats | None = None  # of the current model, once known
    reference: Model | None = None  # what lossy steps aim at

    def run(self, model: Model, passes: Sequence[Pass]) -> tuple[Model, list[StepReport]]:
        current, reports = model, []
        for unit in _units(_steps(passes)):
            self.reference = self.reference or current
            result, steps = self.unit(current, unit)
            if result is not current and any(_is_lossless(step) for step in steps):
                # a lossless step may give a tensor's name to another value, so what the layers of
                # the old model returned is no target any more
                self.reference = None
            current = result
            reports += steps
        return current, reports

    # ----------------------------------------------------------------- one unit

    def unit(self, current: Model, steps: Sequence[Pass]) -> tuple[Model, list[StepReport]]:
        """Run steps that are judged together: what prepares, and what it prepares for."""
        latest, runs, comparisons = current, [], []
        promised = Fidelity.EXACT  # outputs are compared with those of the last commit
        for step in steps:
            self.progress(f"{step}")
            run = self.execute(step, latest)
            comparison = self.verify(step, latest, run, promised) if run.changed else None
            promised = max(promised, run.fidelity)
            runs.append(run)
            comparisons.append(comparison)
            latest = run.model if run.changed else latest
        reports = [
            self.step_report(step, run, comparison)
            for step, run, comparison in zip(steps, runs, comparisons, strict=True)
        ]
        if not any(run.changed for run in runs):
            return current, reports
        return self.judge(current, latest, steps, reports)

    def judge(
        self, current: Model, candidate: Model, steps: Sequence[Pass], reports: list[StepReport]
    ) -> tuple[Model, list[StepReport]]:
        """Decide whether `candidate` replaces `current`."""
        last = reports[-1]
        before = self.stats or measure_stats(current)
        last.stats = measure_stats(candidate)
        last.latency = self.time(current, candidate)
        last.accuracy = self.prover.accuracy(candidate) if self.prover else None
        lossy = max(report.fidelity for report in reports) is Fidelity.LOSSY
        missed = self.policy.floor_missed(last) if lossy else None
        why = missed or self.policy.objection(before, last.stats, last.latency, lossy=lossy)
        if why is None:
            self.commit(candidate, last.stats)
            return candidate, reports
        if not missed and len(steps) == 1 and isinstance(steps[0], Preset):
            salvaged = self.salvage(current, steps[0], why)
            if salvaged is not None:
                return salvaged
        for report in reports:
            report.committed = False
            report.why_not_committed = why
            report.floor_missed = missed is not None
        return current, reports

    def salvage(
        self, current: Model, preset: Preset, why: str
    ) -> tuple[Model, list[StepReport]] | None:
        """Find the one member without which the preset pays; None when there is none."""
        before = self.stats or measure_stats(current)
        guilty = [part.rewrite for part in self.execute(preset, current).parts if part.changes]
        for member in guilty:
            self.progress(f"{preset} without {member.name}")
            run = self.execute(preset, current, without=member)
            if not run.changed:
                continue
            comparison = self.verify(preset, current, run)
            report = self.step_report(preset, run, comparison)
            report.stats = measure_stats(run.model)
            report.latency = self.time(current, run.model)
            if self.policy.objection(before, report.stats, report.latency, lossy=False) is None:
                note = Skip(member.name, f"left out: with it, {why}")
                report.parts.append(PartReport(str(member), member.fidelity, 0.0, (), (note,)))
                self.commit(run.model, report.stats)
                return run.model, [report]
        return None

    def commit(self, model: Model, stats: Stats) -> None:
        """Make `model` what later steps are compared with."""
        self.stats = stats
        if self.prover:
            self.prover.commit(model)

    # ----------------------------------------------------------------- one step

    @paused()
    def execute(self, step: Pass, source: Model, without: Pass | None = None) -> _Run:
        """Run `step` on a copy of `source`.

        Raises:
            PromiseBroken: a member failed; a reproducer was written.
        """
        started = time.perf_counter()
        members = [member for member in step.members() if member != without]
        run = _Run(source.clone(), [_Part(member) for member in members], 0.0)
        for index, (part, model) in enumerate(self.turns(step, run)):
            try:
                self.turn(part, model)
            except _PassFailed as failure:
                before = self.state_before(step, source, members, index)
                raise self.broken(part.rewrite, str(failure), before) from failure
        run.seconds = time.perf_counter() - started
        return run

    def state_before(self, step: Pass, source: Model, members: Sequence[Pass], index: int) -> Model:
        """The model right before turn number `index` of `step`: passes are deterministic."""
        run = _Run(source.clone(), [_Part(member) for member in members], 0.0)
        for number, (part, model) in enumerate(self.turns(step, run)):
            if number == index:
                break
            self.turn(part, model)
        return run.model

    def turns(self, step: Pass, run: _Run) -> Iterator[tuple[_Part, Model]]:
        """Members in rounds, until as many in a row as there are changed nothing."""
        rounds = step.rounds if isinstance(step, Preset) else 1
        idle = 0
        for _ in range(rounds):
            infer_shapes(run.model)
            for part in run.parts:
                if idle == len(run.parts):
                    return
                done = len(part.changes)
                yield part, run.model
                changed = len(part.changes) > done
                run.model.has_shapes = run.model.has_shapes and not changed
                idle = 0 if changed else idle + 1
            if rounds == 1 or idle == len(run.parts):
                return

    def turn(self, part: _Part, model: Model) -> None:
        """Let one member rewrite `model` once.

        Raises:
            _PassFailed: it raised, or changed the graph without saying so.
        """
        rewrite = part.rewrite
        before = fingerprint(model.graph) if self.prover else None
        started = time.perf_counter()
        try:
            result = _call(rewrite, model, self.context_of(model))
        except PromiseBroken as error:
            raise _PassFailed(str(error)) from error
        except OnnxslimError:
            raise  # about the model or the request, not about the pass
        except Exception as error:
            raise _PassFailed(f"failed with {type(error).__name__}: {error}") from error
        part.add(result, time.perf_counter() - started)
        if before is not None and not result.changed and fingerprint(model.graph) != before:
            raise _PassFailed("changed the graph and reported no change")

    def context_of(self, model: Model) -> Context:
        """What a pass that rewrites `model` gets."""
        return replace(
            self.context,
            model=model,
            reference=self.reference,
            goal=self.policy.goal,
            progress=self.progress,
        )

    def verify(
        self, step: Pass, before: Model, run: _Run, promised: Fidelity = Fidelity.EXACT
    ) -> Comparison | None:
        """Hold the candidate against the promise, no stronger than what was `promised` before.

        Raises:
            PromiseBroken: it is broken; the member to blame was found and a reproducer written.
        """
        fidelity = max(promised, run.fidelity)
        reason, comparison = self.examine(before, run.model, fidelity, run.outputs)
        if reason is None:
            return comparison
        if isinstance(step, Preset):
            self.blame(step, before, promised)
        raise self.broken(step, reason, before)

    def examine(
        self, before: Model, after: Model, fidelity: Fidelity, added: Sequence[str]
    ) -> tuple[str | None, Comparison | None]:
        """Why `after` breaks `fidelity` (None when it does not), and what was measured."""
        if signature(before) != signature(after, without=added):
            return "changed the inputs or outputs of the graph", None
        if self.prover is None:
            return None, None
        try:
            check_model(after)
            comparison = self.prover.compare(after, fidelity)
        except (ModelError, RuntimeFailure) as error:
            return f"made a model that does not run: {error}", None
        return comparison.broken, comparison

    def blame(self, preset: Preset, source: Model, fidelity: Fidelity) -> None:
        """Replay `preset` with a check after each change; raise for the first that fails.

        Raises:
            PromiseBroken: naming the member, with the model right before it as reproducer.
        """
        run = _Run(source.clone(), [_Part(member) for member in preset.members()], 0.0)
        for part, model in self.turns(preset, run):
            good = model.clone()
            done = len(part.changes)
            self.turn(part, model)
            if len(part.changes) == done:
                continue
            fidelity = max(fidelity, part.fidelity)
            reason, _ = self.examine(source, model, fidelity, run.outputs)
            if reason is not None:
                raise self.broken(part.rewrite, reason, good)

    def broken(self, culprit: Pass, reason: str, before: Model) -> PromiseBroken:
        """The error that names `culprit`, after writing a reproducer."""
        where = _write_reproducer(self.reproducers, culprit, before)
        return PromiseBroken(f"Pass `{culprit.name}` broke its promise: it {reason}. {where}")

    def step_report(self, step: Pass, run: _Run, comparison: Comparison | None) -> StepReport:
        parts = [part.report() for part in run.parts]
        fidelity = run.fidelity if run.changed else step.fidelity
        return StepReport(str(step), fidelity, True, run.seconds, parts, comparison=comparison)

    def time(self, before: Model, after: Model) -> LatencyPair | None:
        return self.prover.time(before, after) if self.prover else None


def _is_lossless(step: StepReport) -> bool:
    """Whether it changed the model without changing what it computes."""
    return bool(step.changes) and step.fidelity is not Fidelity.LOSSY


def _steps(passes: Sequence[Pass]) -> Iterator[Pass]:
    """The passes, those of a preset of one round each on its own."""
    for item in passes:
        if isinstance(item, Preset) and item.rounds == 1:
            yield from _steps(item.members())
        else:
            yield item


def _units(passes: Iterable[Pass]) -> Iterator[list[Pass]]:
    """Each step alone, but what prepares for later ones together with the next that does not."""
    unit: list[Pass] = []
    for step in passes:
        unit.append(step)
        if not step.prepares:
            yield unit
            unit = []
    if unit:
        yield unit


def _call(rewrite: Pass, model: Model, context: Context) -> PassResult:
    try:
        rewrite.requires(model.graph, context)
    except NotApplicable as reason:
        return PassResult(skips=(Skip(model.graph.name, str(reason)),))
    return rewrite.run(model.graph, context)


def _write_reproducer(folder: Path, culprit: Pass, before: Model) -> str:
    """Save `before` and say how to see the failure again; a failing disk is said, not raised."""
    stem = before.origin.path.stem if before.origin.path else "model"
    target = folder / f"{stem}-before-{culprit.name}.onnx"
    command = shlex.join(["onnxslim", str(target), "--passes", str(culprit)])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before.save(target)
        target.with_suffix(".txt").write_text(command + "\n")
    except (OSError, OnnxslimError) as error:
        return f"A reproducer could not be written: {error}"
    return f"This is a bug; please report it with `{target}`. To see it again: {command}"

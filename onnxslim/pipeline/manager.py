"""Runs a pipeline: run a step on a copy, verify the copy, judge it, commit it or drop it.

One item of a pipeline is one step; a preset whose members run in rounds is one step as well. A
step runs on a copy that shares weight arrays (see `execution`). The copy is verified (see
`verification`), judged by what it costs and gains (see `policy`), and becomes the current model or
is dropped. `_PipelineRun.try_bundle` is that loop; read it first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnxslim.errors import OptimiserFailure, RuntimeFailure, UsageError
from onnxslim.io.model import Model
from onnxslim.pipeline.execution import Executor
from onnxslim.pipeline.layer_filter import check_named
from onnxslim.pipeline.passes import Context, Pass, Preset
from onnxslim.pipeline.policy import Goal, Policy
from onnxslim.pipeline.prover import Prover
from onnxslim.pipeline.salvage import Site, SiteSearch, sites_of
from onnxslim.pipeline.softening import SofteningSearch, is_open, settings_of
from onnxslim.pipeline.stats import measure_stats
from onnxslim.pipeline.step_cache import StepCache, StepOutcome, context_facts
from onnxslim.pipeline.targets import target_of
from onnxslim.pipeline.verification import Verifier
from onnxslim.records import Fidelity
from onnxslim.report import LatencyPair, Stats, StepReport
from onnxslim.services.progress import Progress

_SITES_SHOWN = 3
# the search for rewrites to blame may take as long as the run took before it, or so many seconds
_SALVAGE_SHARE = 1.0
_SALVAGE_SECONDS = 20.0


class PassManager:
    """A pipeline, ready to run on models.

    Args:
        passes: the steps.
        is_resolved: whether the pipeline repeats an earlier run: it may name rewrites that do not
            come up any more, as others are left out.
    """

    def __init__(self, passes: Sequence[Pass], *, is_resolved: bool = False) -> None:
        self.passes = tuple(passes)
        self.is_resolved = is_resolved

    @classmethod
    def parse(cls, text: str) -> PassManager:
        """The manager of the pipeline that `text` spells.

        Raises:
            UsageError: an unknown pass or option, or a bad value.
        """
        from onnxslim.pipeline.grammar import parse_pipeline

        pipeline = parse_pipeline(text)
        return cls(pipeline.passes, is_resolved=pipeline.is_resolved)

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
        reports: list[StepReport] | None = None,
        cache: StepCache | None = None,
    ) -> tuple[Model, list[StepReport]]:
        """Run all steps on `model`, which is left as it is.

        Args:
            model: a valid model.
            context: seed and services for the passes.
            prover: verifies and measures; without it only signature and structure are checked.
            policy: what a step must bring to be kept; by default neither bytes nor latency may
                get worse.
            stats: size of `model`, where it was measured already.
            progress: what is being done.
            reproducers: folder for the model and the command that show a broken promise.
            reports: gets the report of each step as soon as it is judged.
            cache: where outcomes of steps are kept; None: all are run.

        Returns:
            The result, which shares weight arrays with `model`, and a report for each step.

        Raises:
            PromiseBroken: a pass failed or broke its promise; a reproducer was written.
            UsageError: an option names a layer that is not there, or a pass that goes last does
                not.
        """
        final = _final_of(self.passes)
        context = context or Context()
        if final is not None and final.engine is not None:
            context = replace(context, engine=target_of(final.engine))
        run = _PipelineRun(
            context,
            prover,
            policy or Policy(),
            progress or Progress(),
            reproducers,
            self.is_resolved,
            stats if final is None else None,
            cache,
            final,
        )
        reports = [] if reports is None else reports
        return run.run(model, self.passes, reports), reports


@dataclass(frozen=True)
class _Verdict:
    """Whether a candidate is kept.

    Attributes:
        last: report of its last step that changed anything, with the figures of the candidate.
        why: why it is not kept, with the numbers; None: it is.
        is_floor: whether it misses a floor.
        is_lossy: whether outputs may move.
    """

    last: StepReport
    why: str | None
    is_floor: bool
    is_lossy: bool


@dataclass
class _PipelineRun:
    """One run of a pipeline.

    Attributes:
        stats: size of the current model, where it is known, as it would be written.
        final: the pass that goes last; what steps cost is measured behind it.
        reference: the model before the first lossy step.
        target: the model whose layers lossy steps reproduce (see `Context.target`); None: that of
            now.
        is_lossy: whether a lossy step was kept.
        cache: where outcomes of steps are kept, if anywhere.
        source: the model that the run began with.
        started: when the run began, in seconds of the monotonic clock.
    """

    context: Context
    prover: Prover | None
    policy: Policy
    progress: Progress
    reproducers: Path
    is_resolved: bool = False
    stats: Stats | None = None
    cache: StepCache | None = None
    final: Pass | None = None
    reference: Model | None = None
    target: Model | None = None
    source: Model | None = None
    is_lossy: bool = False
    started: float = field(default_factory=time.monotonic)

    def run(self, model: Model, passes: Sequence[Pass], reports: list[StepReport]) -> Model:
        """Try the bundles of steps in order, each on the result of the ones before."""
        current = self.source = model
        if self.cache is not None:  # they are part of what a step depends on
            self.stats = self.stats or measure_stats(model)
        bundles = list(_bundles(_steps(passes)))
        told = self.progress.over("step", bundles, "", is_even=False)
        for bundle in told if len(bundles) > 1 else bundles:
            self.target = self.target or current
            self.reference = self.reference or current
            kept, steps = self.try_bundle(current, bundle)
            is_mended = bundle[-1].mends and len(bundle) > 1
            if kept is current and is_mended and self.policy.keeps_unmended:
                kept, steps = self.without_mending(current, bundle, steps)
            if kept is not current:
                self.note_kept(steps)
            current = kept
            reports += steps
        return current

    def note_kept(self, steps: Sequence[StepReport]) -> None:
        """Tell what later steps take their targets from, after steps that changed the model."""
        changed = [step for step in steps if step.changes and step.committed]
        is_lossless = any(step.fidelity is not Fidelity.LOSSY for step in changed)
        self.is_lossy |= any(step.fidelity is Fidelity.LOSSY for step in changed)
        if is_lossless:
            # a lossless step may give a tensor's name to another value, so the outputs of the old
            # model's layers are no targets any more
            self.target = None
        if not self.is_lossy:
            self.reference = None

    def try_bundle(self, current: Model, bundle: Sequence[Pass]) -> tuple[Model, list[StepReport]]:
        """Run, verify and judge steps that are kept or dropped together.

        Returns:
            The model after them, `current` itself when they were dropped, and their reports.

        Raises:
            PromiseBroken: a step broke its promise.
        """
        key = self.cache_key(current, bundle)
        if self.cache is None or key is None:
            return self.run_bundle(current, bundle)
        found = self.cache.find(key, current)
        if found is not None:
            return self.found(current, found)
        target, started = self.target, time.monotonic()
        noted = len(self.prover.notes) if self.prover else 0
        kept, reports = self.run_bundle(current, bundle)
        outcome = StepOutcome(
            reports,
            None if kept is current else kept,
            None if self.target is target else self.target,
            time.monotonic() - started,
            tuple(self.prover.notes[noted:]) if self.prover else (),
            self.prover.verified_on if self.prover else None,
        )
        self.cache.keep(key, outcome)
        return kept, reports

    def cache_key(self, current: Model, bundle: Sequence[Pass]) -> str | None:
        """What the outcome of a bundle is kept by; None where none is kept."""
        if self.cache is None:
            return None
        models = {
            "before": current,
            "source": self.source,
            "reference": self.reference,
            "target": self.target,
        }
        facts = {
            "context": context_facts(self.context),
            "policy": self.policy,
            "stats": self.stats,
            "is_resolved": self.is_resolved,
            "final": None if self.final is None else str(self.final),
        }
        return self.cache.key(models, bundle, facts)

    def found(self, current: Model, outcome: StepOutcome) -> tuple[Model, list[StepReport]]:
        """Do as if the bundle had been run now, with an outcome that was kept."""
        self.started -= outcome.seconds
        if self.prover is not None:
            self.prover.notes += [n for n in outcome.notes if n not in self.prover.notes]
            self.prover.verified_on = outcome.verified_on or self.prover.verified_on
        self.target = outcome.target or self.target
        if outcome.kept is None:
            return current, outcome.steps
        stats = next(step.stats for step in reversed(outcome.steps) if step.stats)
        self.commit(outcome.kept, stats)
        return outcome.kept, outcome.steps

    def run_bundle(self, current: Model, bundle: Sequence[Pass]) -> tuple[Model, list[StepReport]]:
        """As `try_bundle`, whatever is kept."""
        target = self.target
        kept, reports = self.tried(current, bundle)
        if kept is current:
            self.target = target
        return kept, reports

    def tried(self, current: Model, bundle: Sequence[Pass]) -> tuple[Model, list[StepReport]]:
        """As `run_bundle`, but training moves the target even where it is dropped."""
        latest, reports, failure = self.ran(current, bundle)
        if failure is not None:
            return self.dropped(current, bundle, reports, failure)
        if not any(report.changes for report in reports):
            return current, reports
        return self.judge(current, latest, bundle, reports)

    def ran(
        self, current: Model, bundle: Sequence[Pass]
    ) -> tuple[Model, list[StepReport], str | None]:
        """Run and verify the steps of a bundle in turn.

        Returns:
            The model after them, their reports, not judged yet, and what onnxruntime's
            optimisations fail on; None: on nothing.
        """
        latest, reports = current, []
        # outputs are compared with those of the last committed model, so each step of a bundle is
        # held to the weakest promise so far
        promised = Fidelity.EXACT
        for step in bundle:
            with self.progress.step(step.name):
                comparison, candidate = None, self.verifier.run(step, latest)
            if not self.is_resolved:
                check_named(step, latest.graph, candidate.model.graph)
            if candidate.changed:
                try:
                    comparison = self.verifier.verify(step, latest, candidate, promised)
                except OptimiserFailure as failure:
                    reports.append(candidate.report(step, None))
                    return latest, reports, str(failure)
                latest = candidate.model
                if step.unrolled()[-1].trains:  # training moved what layers return
                    self.target = latest
            promised = max(promised, candidate.fidelity)
            reports.append(candidate.report(step, comparison))
        return latest, reports, None

    def without_mending(
        self, current: Model, bundle: Sequence[Pass], reports: list[StepReport]
    ) -> tuple[Model, list[StepReport]]:
        """The steps that were to be mended, each for itself, where they were dropped together.

        Args:
            current: the model before them.
            bundle: the steps, the one that mends last.
            reports: of the bundle as one.
        """
        steps: list[StepReport] = []
        for each in _bundles(bundle[:-1], mends=False):
            current, own = self.try_bundle(current, each)
            steps += own
        return current, [*steps, reports[-1]]

    def judge(
        self,
        current: Model,
        candidate: Model,
        bundle: Sequence[Pass],
        reports: list[StepReport],
    ) -> tuple[Model, list[StepReport]]:
        """Measure `candidate`, and commit it when it holds the floors and pays for itself.

        Args:
            current: the model before the bundle.
            candidate: the model after it.
            bundle: the steps.
            reports: one for each step. Of those that changed anything the last gets the figures.
        """
        verdict = self.weighed(current, candidate, bundle, reports)
        last = verdict.last
        if verdict.why is None:
            assert last.stats is not None
            self.commit(candidate, last.stats)
            return candidate, reports
        if verdict.is_floor:
            softened = self.softened(current, bundle, verdict.why)
            if softened is not None:
                return softened
        elif not verdict.is_lossy and len(bundle) == 1:
            salvaged = self.salvage(current, bundle[0], candidate, last, verdict.why)
            if salvaged is not None:
                return salvaged
        return _left_out(current, reports, verdict.why, floor_missed=verdict.is_floor)

    def weighed(
        self,
        current: Model,
        candidate: Model,
        bundle: Sequence[Pass],
        reports: Sequence[StepReport],
    ) -> _Verdict:
        """Measure `candidate`, and tell whether it holds the floors and pays for itself."""
        before = self.stats = self.stats or self.size(current)
        last = next(report for report in reversed(reports) if report.changes)
        last.stats = measure_stats(candidate) if bundle[-1].is_final else self.size(candidate)
        last.latency = self.time(current, candidate)
        last.accuracy = self.prover.accuracy(candidate) if self.prover else None
        lossy = max(report.fidelity for report in reports) is Fidelity.LOSSY
        missed = self.policy.floor_missed(last) if lossy else None
        drifts = last.comparison.previous if lossy and last.comparison else {}
        must_gain = lossy and not (len(bundle) == 1 and bundle[0].mends)
        objection = None
        if not bundle[-1].is_final:
            objection = self.policy.objection(
                before, last.stats, last.latency, lossy=must_gain, drifts=drifts
            )
        return _Verdict(last, missed or objection, missed is not None, lossy)

    def softened(
        self, current: Model, bundle: Sequence[Pass], why: str
    ) -> tuple[Model, list[StepReport]] | None:
        """The bundle at as much of its strength as the floors allow; None where none holds.

        Args:
            current: the model before it.
            bundle: steps that miss a floor as they are.
            why: which, with the numbers.
        """
        if self.is_resolved or self.prover is None or not self.prover.judged_by.is_real:
            return None  # nothing is fitted to inputs that are made up
        held: dict[tuple[Pass, ...], tuple[Model, list[StepReport], StepReport]] = {}

        def holds(steps: Sequence[Pass]) -> bool:
            spelled = ",".join(map(str, steps))
            with self.progress.step(f"{spelled}: less, as a floor was missed"):
                model, reports, failure = self.ran(current, steps)
                if failure is not None or not any(report.changes for report in reports):
                    return failure is None  # too weak to do anything
                verdict = self.weighed(current, model, steps, reports)
            if verdict.why is None:
                held[tuple(steps)] = model, reports, verdict.last
            return not verdict.is_floor

        has_own_floors = not self.policy.floors.is_default
        settings = settings_of(bundle, has_own_floors=has_own_floors)
        search = SofteningSearch(holds)
        strongest = search.strongest(settings)
        if strongest is None or tuple(strongest) not in held:
            return None
        model, reports, last = held[tuple(strongest)]
        assert last.stats is not None
        for asked, step, report in zip(bundle, strongest, reports, strict=True):
            report.resolved = report.resolved or str(step)
            report.weakened_to = str(step)
            report.spec = str(asked)
        spelled = ",".join(map(str, strongest))
        last.why_partly = f"{why}; of {search.tried} weaker settings `{spelled}` was kept, the "
        last.why_partly += "strongest that holds"
        last.floor_missed = not (has_own_floors and is_open(bundle))
        self.commit(model, last.stats)
        return model, reports

    def dropped(
        self, current: Model, bundle: Sequence[Pass], reports: list[StepReport], why: str
    ) -> tuple[Model, list[StepReport]]:
        """A bundle whose last step made what onnxruntime's optimisations fail on.

        Of a lossless step the rewrites that are not to blame stay.

        Args:
            current: the model before the bundle.
            bundle: the steps.
            reports: one for each step that was run.
            why: what fails.
        """
        tried = reports[-1]
        reports += [
            StepReport(str(step), step.fidelity, committed=False, seconds=0.0)
            for step in bundle[len(reports) :]
        ]
        if len(bundle) > 1 or tried.fidelity is Fidelity.LOSSY:
            return _left_out(current, reports, why)

        def is_to_blame(sites: Sequence[Site]) -> bool:
            smaller = _without(bundle[0], sites)
            if smaller is None:
                return False
            try:
                self.verifier.verify(smaller, current, self.verifier.run(smaller, current))
            except OptimiserFailure:
                return False
            return True

        self.stats = self.stats or self.size(current)
        salvaged = self.without_blamed(current, bundle[0], tried, is_to_blame, why)
        return salvaged or _left_out(current, reports, why)

    def commit(self, model: Model, stats: Stats) -> None:
        """Make `model` the baseline that later steps are compared with."""
        self.stats = stats
        if self.prover:
            self.prover.commit(model)

    def salvage(
        self, current: Model, step: Pass, whole: Model, tried: StepReport, why: str
    ) -> tuple[Model, list[StepReport]] | None:
        """The step without the rewrites that are to blame; None where the rest does not pay either.

        Args:
            current: the model that the step was run on.
            step: as it was run.
            whole: the model after it.
            tried: what it did, and the size of that model.
            why: what speaks against that, with the numbers.
        """
        before, after = self.stats, tried.stats
        assert before is not None
        assert after is not None
        is_larger = self.policy.goal is not Goal.LATENCY and after.file_bytes > before.file_bytes

        def is_to_blame(sites: Sequence[Site]) -> bool:
            smaller = _without(step, sites)
            if smaller is None:
                return False
            with self.progress.step(f"{step.name} without {len(sites)} of its rewrites"):
                without = self.verifier.run(smaller, current).model
                if is_larger:
                    return self.as_written(without).file_bytes() < after.file_bytes
                try:
                    pair = self.time(whole, without)
                except RuntimeFailure:  # the rest of the rewrites makes no sense alone
                    return False
                return pair is not None and pair.is_faster

        return self.without_blamed(current, step, tried, is_to_blame, why)

    def without_blamed(
        self,
        current: Model,
        step: Pass,
        tried: StepReport,
        is_to_blame: Callable[[Sequence[Site]], bool],
        why: str,
    ) -> tuple[Model, list[StepReport]] | None:
        """The step without the rewrites that are to blame; None where the rest does not pay either.

        Args:
            current: the model that the step was run on.
            step: as it was run.
            tried: what it did.
            is_to_blame: whether the model is better without rewrites at these sites.
            why: what speaks against them, with the numbers.
        """
        before = self.stats
        assert before is not None
        if step.leaving_out({}) is None:
            return None
        done = zip(step.members(), tried.parts, strict=True)
        sites = sites_of((member.name, part.changes) for member, part in done)
        seconds = max(_SALVAGE_SECONDS, _SALVAGE_SHARE * (time.monotonic() - self.started))
        search = SiteSearch(is_to_blame, seconds)
        blamed = search.to_blame(sites)
        smaller = _without(step, blamed)
        candidate = None if smaller is None else self.verifier.run(smaller, current)
        if smaller is None or candidate is None or not candidate.changed:
            return None
        try:
            comparison = self.verifier.verify(smaller, current, candidate)
        except OptimiserFailure:
            return None
        report = candidate.report(step, comparison)
        report.stats = self.size(candidate.model)
        report.latency = self.time(current, candidate.model)
        if self.policy.objection(before, report.stats, report.latency, lossy=False) is not None:
            return None
        report.resolved = str(smaller)
        report.why_partly = f"{_counted(blamed)}: with them, {why}"
        if search.is_cut_short:
            report.why_partly += (
                f"; the search for fewer ended after {seconds:.0f} s, the time that it may take"
            )
        self.commit(candidate.model, report.stats)
        return candidate.model, [report]

    def size(self, model: Model) -> Stats:
        """The size of a model as it would be written."""
        return measure_stats(self.as_written(model))

    def as_written(self, model: Model) -> Model:
        """The model behind the pass that goes last, unproven; the model itself without one."""
        if self.final is None:
            return model
        context = replace(self.verifier.executor.context, why_not_same=None)
        return Executor(context, finds_hidden_changes=False).run(self.final, model).model

    def time(self, before: Model, after: Model) -> LatencyPair | None:
        """Latency of two models in turn; None without a prover."""
        return self.prover.time(before, after) if self.prover else None

    @property
    def verifier(self) -> Verifier:
        """Runs steps with the reference of now, and verifies them."""
        context = replace(
            self.context,
            reference=self.reference,
            target=self.target,
            goal=self.policy.goal,
            progress=self.progress,
            why_not_same=self.prover.why_not_same if self.prover else None,
        )
        executor = Executor(context, finds_hidden_changes=self.prover is not None)
        return Verifier(executor, self.prover, self.reproducers)


def _final_of(passes: Sequence[Pass]) -> Pass | None:
    """The pass that goes last, if there is one.

    Raises:
        UsageError: it is there, and does not.
    """
    for item in passes[:-1]:
        if item.is_final:
            raise UsageError(f"`{item.name}` goes last in a pipeline; move `{item}` to its end.")
    return passes[-1] if passes and passes[-1].is_final else None


def _left_out(
    current: Model, reports: list[StepReport], why: str, *, floor_missed: bool = False
) -> tuple[Model, list[StepReport]]:
    """The model before a bundle, and the reports of its steps, which say why none was kept."""
    for report in reports:
        report.committed = False
        report.why_not_committed = why
        report.floor_missed = floor_missed
    return current, reports


def _without(step: Pass, sites: Iterable[Site]) -> Pass | None:
    """The step without its rewrites at `sites`; None where it cannot leave them out."""
    names: dict[str, list[str]] = {}
    for site in sites:
        names.setdefault(site.member, []).append(site.node)
    return step.leaving_out(names)


def _counted(sites: Sequence[Site]) -> str:
    """Sites in words: `12 rewrites of fuse-affine (`a`, `b` and 10 more)`."""
    words = []
    for member in dict.fromkeys(site.member for site in sites):
        nodes = [site.node for site in sites if site.member == member]
        shown = ", ".join(f"`{node}`" for node in nodes[:_SITES_SHOWN])
        more = f" and {len(nodes) - _SITES_SHOWN} more" if len(nodes) > _SITES_SHOWN else ""
        plural = "s" if len(nodes) > 1 else ""
        words.append(f"{len(nodes)} rewrite{plural} of {member} ({shown}{more})")
    return ", ".join(words)


def _steps(passes: Sequence[Pass]) -> Iterator[Pass]:
    """The steps of a pipeline: a preset of one round is as many steps as it has members."""
    for item in passes:
        if isinstance(item, Preset) and item.rounds == 1:
            yield from _steps(item.members())
        else:
            yield item


def idle_steps(passes: Sequence[Pass], reports: Sequence[StepReport]) -> dict[str, str]:
    """The passes of a pipeline that were left out or changed nothing, with the reason.

    A preset did something when one of its steps did.
    """
    found: dict[str, str] = {}
    remaining = iter(reports)
    for item in passes:
        own = [next(remaining) for _ in _steps([item])]
        if any(step.committed and step.changes for step in own):
            continue
        whys = [step.why_not_committed for step in own if step.why_not_committed]
        declined = [skip.why for step in own for skip in step.skips]
        found[str(item)] = next(iter((*whys, *declined)), "there was nothing for it to change")
    return found


def _bundles(steps: Iterable[Pass], *, mends: bool = True) -> Iterator[list[Pass]]:
    """Steps that are kept or dropped as one.

    These are steps that prepare, with the next other one, and with `mends` also lossy steps right
    before one that mends, with it.
    """
    bundles: list[list[Pass]] = [[]]
    for step in steps:
        if mends and step.mends:
            while len(bundles) > 1 and _are_lossy(bundles[-2]):
                last = bundles.pop()
                bundles[-1] += last
        bundles[-1].append(step)
        if not step.prepares:
            bundles.append([])
    return (bundle for bundle in bundles if bundle)


def _are_lossy(bundle: Sequence[Pass]) -> bool:
    """Whether the last step, which decides on the others, is lossy and none mends yet."""
    return bundle[-1].fidelity is Fidelity.LOSSY and not bundle[-1].mends

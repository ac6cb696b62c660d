"""`PreparedRun`: a model loaded, checked and measured once, on which any number of pipelines run.

Owns: what one attempt shares with the next (the source, its figures, the prover with the outputs
of the source, the calibration runs), and the report of an attempt. Not here: writing files (see
`output`).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from onnxslim.analysis.compound_operators import SINCE, waiting_for_opset
from onnxslim.analysis.layer_names import layer_names
from onnxslim.errors import UsageError
from onnxslim.graph.local_functions import foreign_calls, function_name
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.pipeline.floors import Floors, JudgedBy, default_floors, held_by_nothing
from onnxslim.pipeline.grammar import Pipeline
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.policy import Policy
from onnxslim.pipeline.stats import measure_stats
from onnxslim.records import Fidelity
from onnxslim.report import FileReport, LatencyPair, Report, RunRecord, StepReport
from onnxslim.run.conditions import step_cache
from onnxslim.run.record import onnxruntime_distribution, run_record
from onnxslim.run.settings import RunSettings
from onnxslim.services.stopwatch import Stopwatch
from onnxslim.version import VERSION

_LIBRARIES = ("onnx", "onnx-graphsurgeon", "numpy")


@dataclass(frozen=True)
class Attempt:
    """The result of one pipeline: the model after the steps that were kept, a report of each step.

    The model is the source itself when none was kept. `record` tells how to make it again.
    """

    model: Model
    steps: Sequence[StepReport]
    record: RunRecord

    @property
    def last_kept(self) -> StepReport | None:
        """The last step that was kept and whose model was measured."""
        kept = (step for step in reversed(self.steps) if step.committed and step.stats)
        return next(kept, None)

    @property
    def timed(self) -> list[LatencyPair]:
        """Latency before and after each step that was kept and timed."""
        return [step.latency for step in self.steps if step.committed and step.latency]


class PreparedRun:
    """A model that is ready for pipelines; each starts from the source again.

    Args:
        source: a loaded model; never changed.
        settings: how the model is run, and what is measured.

    Attributes:
        before: path, sha256, size and accuracy of the source.
        prover: verifies and measures; None when nothing is to be verified or timed.
        cache: keeps outcomes of steps; None where the settings name no folder for it.

    Raises:
        ModelError: the model is invalid or not supported.
        UsageError: the samples or shapes do not fit the model.
        RuntimeFailure: onnxruntime refuses the model.
    """

    def __init__(self, source: Model, settings: RunSettings) -> None:
        self._notes = settings.admit(source)
        self.source, self.settings = source, settings
        origin = source.origin
        self.before = FileReport(
            str(origin.path) if origin.path else None,
            origin.sha256,
            measure_stats(source, file_bytes=origin.file_bytes),
        )
        # a step is held to the size of what was read: to repair a file can take some bytes
        own_bytes = source.file_bytes() if origin.notes else origin.file_bytes
        self._size = replace(self.before.stats, file_bytes=own_bytes)
        self.prover = None
        if settings.verify or settings.measure:
            self.prover = settings.prover()
            self.prover.begin(source)
            self.before.accuracy = self.prover.accuracy(source)
        self._context = settings.context(self.prover)
        self.cache = step_cache(settings)
        self._has_default_floors = False
        self._judged: list[StepReport] = []

    def try_pipeline(
        self,
        pipeline: Pipeline,
        policy: Policy | None = None,
        *,
        reproducers: Path = Path("onnxslim-repro"),
    ) -> Attempt:
        """Run `pipeline` on the source.

        Args:
            pipeline: the steps.
            policy: what a step must bring to be kept; the accuracy of the source is filled in, and
                default floors become those that suit the data. The steps of a resolved pipeline
                need not bring anything.
            reproducers: folder for a model that shows a broken promise.

        Raises:
            UsageError: a floor of the user is for a kind of outputs that the source does not have.
            PromiseBroken: a pass broke its promise; a reproducer was written.
        """
        policy = policy or Policy()
        floors = self.checked_floors(policy.floors)
        self._has_default_floors = floors.is_default
        policy = replace(policy, floors=floors, baseline_accuracy=self.before.accuracy)
        if pipeline.is_resolved:
            policy = replace(policy, force=True)
        if self.prover is not None:
            self.prover.commit(self.source)
        self._judged = []
        model, steps = PassManager(pipeline.passes, is_resolved=pipeline.is_resolved).run(
            self.source,
            replace(self._context, floors=policy.floors),
            prover=self.prover,
            policy=policy,
            stats=self._size,
            progress=self.settings.progress,
            reproducers=reproducers,
            reports=self._judged,
            cache=self.cache,
        )
        record = run_record(pipeline, steps, policy, self.settings, self._data_sha256)
        return Attempt(model, steps, record)

    @property
    def stopwatch(self) -> Stopwatch | None:
        """Times models on the sample of latency measurements; None where nothing is timed."""
        return self._context.stopwatch

    def context_for(self, model: Model) -> Context:
        """What a pass may use that runs on `model`, outside a pipeline."""
        return replace(self._context, model=model)

    @cached_property
    def _data_sha256(self) -> Mapping[str, str]:
        return self.settings.data_sha256()

    def checked_floors(self, floors: Floors) -> Floors:
        """The floors to hold: the default ones by what there is to judge by, or those of the user.

        Raises:
            UsageError: a floor of the user says nothing of any output.
        """
        if floors.is_default:
            return default_floors(JudgedBy() if self.prover is None else self.prover.judged_by)
        idle = None
        if self.prover is not None and self.settings.verify:
            idle = held_by_nothing(floors, self.prover.output_kinds)
        if idle is not None:
            raise UsageError(idle)
        return floors

    def report(self, attempt: Attempt, command: str) -> Report:
        """The figures of an attempt, and of source against result.

        The figures of the result are those of its model: it has no path and no sha256 yet.
        """
        last, before = attempt.last_kept, replace(self.before)
        after = FileReport(None, None, before.stats, accuracy=before.accuracy)
        if last is not None and last.stats is not None:
            after = FileReport(None, None, last.stats, accuracy=last.accuracy)
        report = Report(command, versions(), before, after, list(attempt.steps))
        report.notes += [*self.source.origin.notes, *self._notes]
        report.notes += [*_defaults_note(self.source), *_functions_note(attempt.model)]
        report.notes += _spelled_note(attempt)
        if self.prover is not None:
            report.verified_on = self.prover.verified_on
            report.timed_on = self.prover.timed_on
            report.notes += self.prover.notes
            report.data = list(self.prover.data)
        report.notes += [] if self.cache is None else self.cache.notes
        report.floors_missed = [
            f"{step.spec}: {step.why_not_committed or step.why_partly}"
            for step in attempt.steps
            if step.floor_missed
        ]
        report.record = attempt.record
        report.names = _names(report, self.source, attempt.model)
        report.has_default_floors = self._has_default_floors
        if self.prover is None or not self.prover.judged_by.is_real:
            report.unjudged = [step.spec for step in attempt.steps if _needs_data(step)]
        report.latency = self._latency(attempt)
        if report.latency is not None:
            before.latency, after.latency = report.latency.before, report.latency.after
        return report

    def report_so_far(self, command: str) -> Report:
        """The figures of a run that an error ended: of the source, and of the steps until then."""
        report = Report(command, versions(), self.before, FileReport(None, None, self.before.stats))
        report.steps = list(self._judged)
        report.notes += [*self.source.origin.notes, *self._notes]
        if self.prover is not None:
            report.verified_on, report.timed_on = self.prover.verified_on, self.prover.timed_on
        return report

    def _latency(self, attempt: Attempt) -> LatencyPair | None:
        """Source against result; of a single step it is known already."""
        if self.prover is None or len(attempt.timed) < 2:
            return attempt.timed[0] if attempt.timed else None
        if self.cache is None:
            return self.prover.time(self.source, attempt.model)
        pair = self.cache.pair(self.source, attempt.model)
        if pair is None:
            pair = self.prover.time(self.source, attempt.model)
            self.cache.keep_pair(self.source, attempt.model, pair)
        return pair


def _needs_data(step: StepReport) -> bool:
    """Whether a step was kept whose loss only real data can tell."""
    is_lossy = step.fidelity is Fidelity.LOSSY and bool(step.changes)
    return step.committed and is_lossy and step.loss_bound is None


def _names(report: Report, *models: Model) -> dict[str, tuple[str, ...]]:
    """The other names of the layers that a report names, as the first of `models` has them."""
    steps = report.steps
    labels = [change.node for step in steps for change in step.changes]
    labels += [skip.node for step in steps for skip in step.skips]
    found: dict[str, tuple[str, ...]] = {}
    tables = [layer_names(model.graph) for model in models]
    for label in dict.fromkeys(labels):
        others = next((table.others[label] for table in tables if table.others.get(label)), ())
        if others:
            found[label] = others
    return found


@cache
def _version(library: str) -> str:
    return importlib.metadata.version(library)


def versions() -> dict[str, str]:
    """Versions of what computes, by name of the distribution."""
    names = (onnxruntime_distribution(), *_LIBRARIES)
    return {"onnxslim-compiler": VERSION, **{name: _version(name) for name in names}}


def _defaults_note(source: Model) -> Iterator[str]:
    """Say that initializers which callers may override are left alone."""
    names = [t.name for t in source.graph.inputs if getattr(t, "default", None) is not None]
    if names:
        yield (
            f"{len(names)} initializers are inputs as well (`{names[0]}`"
            f"{', ...' if len(names) > 1 else ''}): callers may override them, so they were not "
            "treated as constants. Remove them from the inputs to have them folded."
        )


def _spelled_note(attempt: Attempt) -> Iterator[str]:
    """Say which operators take several nodes for want of an opset, where they were looked for."""
    parts = [part.spec for step in attempt.steps if step.committed for part in step.parts]
    if not any(spec.startswith("fuse-activations") for spec in parts):
        return
    found = waiting_for_opset(Rewriter(attempt.model.graph))
    counts = [f"{count} {name}" for name, count in found.items() if count]
    if counts:
        least = max(SINCE[name] for name, count in found.items() if count)
        yield (
            f"{' and '.join(counts)} take several nodes each, as opset {attempt.model.graph.opset} "
            "has no operators for them; onnxruntime computes each in one kernel all the same. "
            f"`raise-opset:to={least}, simplify` writes one node for each."
        )


def _functions_note(result: Model) -> Iterator[str]:
    """Say that passes do not see the layers in local functions of other tools."""
    names = [function_name(key) for key in foreign_calls(result.graph)]
    if names:
        yield (
            f"{len(names)} local functions stay (`{names[0]}`{', ...' if len(names) > 1 else ''}): "
            "passes do not see the layers in them. The pass `inline-functions` opens them."
        )

"""Whole models: run a pipeline, hold it to the floors, time it against the input model.

Whole models have the last word on what tables and strengths promise.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from onnxslim.analysis.energy import estimate_energy
from onnxslim.errors import OnnxslimError, OutOfMemory, UsageError
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.pipeline.floors import Floors, share_used
from onnxslim.pipeline.grammar import Pipeline
from onnxslim.pipeline.passes import Pass
from onnxslim.pipeline.policy import Policy
from onnxslim.report import Comparison, Drift, StepReport
from onnxslim.run.prepared import Attempt, PreparedRun
from onnxslim.services.calibration import OutputDistance
from onnxslim.tuning.aims import Aim, Measure, ModelFigures, excess, score


@dataclass(frozen=True)
class TrialOutcome:
    """What came of a pipeline.

    Attributes:
        pipeline: as it was tried.
        resolved: makes the same model again, without a search.
        file_bytes: of the model.
        ms, speedup: median latency, and that of the input over it; None where nothing was timed.
        energy_pj: by arithmetic; None where it was not asked for.
        use: the largest share of what a floor allows that the model uses.
        closeness, closeness_unit: the figure of the outputs that floors are about.
        accuracy: in [0, 1]; None without evaluation data.
        kept: the lossy passes that were kept, with the strength that they have.
        seconds: that the trial took.
        error: why there is no model; None: there is one.
    """

    pipeline: str
    resolved: str = ""
    file_bytes: int = 0
    ms: float | None = None
    speedup: float | None = None
    energy_pj: float | None = None
    use: float = 0.0
    closeness: float | None = None
    closeness_unit: str = ""
    accuracy: float | None = None
    kept: Mapping[str, str] | None = None
    seconds: float = 0.0
    error: str | None = None

    @property
    def figures(self) -> ModelFigures:
        """What the model takes."""
        return ModelFigures(self.file_bytes, self.ms, self.energy_pj)

    @property
    def holds(self) -> bool:
        """Whether there is a model, and it holds the floors."""
        return self.error is None and self.use <= 1.0

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> TrialOutcome:
        """The outcome that `to_json` wrote."""
        return cls(**found)


class TrialRunner:
    """Runs pipelines on one model and judges what they make.

    Args:
        run: the model, its data and the prover.
        aim: what is asked for.
        policy: what each step must bring.

    Attributes:
        whole: figures of the input model, once a model was timed against it.
    """

    def __init__(self, run: PreparedRun, aim: Aim, policy: Policy) -> None:
        self.run, self.aim, self.policy = run, aim, policy
        self.floors: Floors = run.checked_floors(policy.floors)
        stats = run.before.stats
        self.whole = ModelFigures(stats.file_bytes, None, self._energy(run.source))

    def outcome(self, passes: Sequence[Pass], *, is_free: bool = False) -> TrialOutcome:
        """Run a pipeline.

        Args:
            passes: its steps.
            is_free: whether steps are kept whatever they cost, to see how much of the floors they
                would use.
        """
        return self.tried(Pipeline(tuple(passes)), is_free=is_free)[0]

    def tried(
        self, pipeline: Pipeline, *, is_free: bool = False, floors: Floors | None = None
    ) -> tuple[TrialOutcome, Attempt | None]:
        """As `outcome`, with the model; None where an error ended the run.

        Args:
            pipeline: what is run.
            is_free: see `outcome`.
            floors: that steps are held to in place of those that the outcome is judged by.
        """
        started = time.perf_counter()
        policy = self.policy if floors is None else replace(self.policy, floors=floors)
        if is_free:
            policy = replace(policy, force=True, floors=Floors())
        try:
            attempt = self.run.try_pipeline(pipeline, policy)
        except (OutOfMemory, UsageError):
            raise
        except OnnxslimError as error:
            seconds = time.perf_counter() - started
            return TrialOutcome(str(pipeline), seconds=seconds, error=str(error)), None
        found = self._judged(pipeline, attempt)
        return replace(found, seconds=time.perf_counter() - started), attempt

    def score(self, outcome: TrialOutcome) -> float:
        """What the search makes least; infinite where there is no model that holds."""
        if not outcome.holds:
            return float("inf")
        return score(self.aim, outcome.figures, self.whole, outcome.use)

    def misses(self, outcome: TrialOutcome) -> float:
        """By how much the targets are missed; 0: they are met."""
        return excess(self.aim, outcome.figures, self.whole)

    def _judged(self, pipeline: Pipeline, attempt: Attempt) -> TrialOutcome:
        report = self.run.report(attempt, "tune")
        last, pair = attempt.last_kept, report.latency
        ms = None
        if pair is not None:
            if self.whole.ms is None:
                self.whole = replace(self.whole, ms=pair.before.ms)
            assert self.whole.ms is not None
            ms = self.whole.ms / pair.ratio  # pairs of one run are compared, times of two are not
        elif self.aim.needs_clock and last is None:
            ms = self.whole.ms
        drop = None
        if report.before.accuracy is not None and report.after.accuracy is not None:
            drop = 100 * (report.before.accuracy - report.after.accuracy)
        comparison = last.comparison if last is not None else None
        closeness, unit = _closeness(self.floors, comparison)
        return TrialOutcome(
            str(pipeline),
            attempt.record.resolved,
            report.after.stats.file_bytes,
            ms,
            None if pair is None else pair.ratio,
            self._energy(attempt.model),
            use_of(self.floors, comparison, drop),
            closeness,
            unit,
            report.after.accuracy,
            {_name(step): _as_kept(step) for step in attempt.steps if _is_lossy(step)},
        )

    def _energy(self, model: Model) -> float | None:
        if self.aim.goal is not Measure.ENERGY:
            return None
        copy = model.clone()
        infer_shapes(copy)
        return estimate_energy(copy.graph).total_pj


def _is_lossy(step: StepReport) -> bool:
    return step.committed and bool(step.changes) and step.fidelity.name == "LOSSY"


def _name(step: StepReport) -> str:
    return step.spec.partition(":")[0]


def _as_kept(step: StepReport) -> str:
    return step.weakened_to or step.spec


def figures_of(drift: Drift) -> OutputDistance:
    """The figures that floors are about."""
    return OutputDistance(
        drift.kind,
        drift.sqnr_db,
        drift.agreement,
        None,
        drift.mean_cosine,
        drift.least_cosine,
        drift.mean_kl,
        drift.largest_kl,
    )


def use_of(floors: Floors, comparison: Comparison | None, drop: float | None) -> float:
    """The largest share of what a floor allows that a model uses; above 1: it is missed."""
    if comparison is None:
        return 0.0
    figures = [figures_of(drift) for drift in comparison.original.values()]
    return share_used(floors, figures, drop=drop) or 0.0


def _closeness(floors: Floors, comparison: Comparison | None) -> tuple[float | None, str]:
    """How close the output is that moved most, in the figure that its floor is about."""
    if comparison is None or not comparison.original:
        return None, ""
    drift = min(comparison.original.values(), key=lambda found: found.sqnr_db)
    is_held_to_db = floors.min_sqnr_db is not None and drift.kind in floors.sqnr_kinds
    if not is_held_to_db and drift.mean_cosine is not None:
        return drift.mean_cosine, "mean cosine"
    if not is_held_to_db and drift.agreement is not None:
        return drift.agreement, "agreement"
    return drift.sqnr_db, "dB"

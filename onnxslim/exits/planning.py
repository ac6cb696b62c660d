"""Which exits to insert, with which thresholds, and how the choice is confirmed and timed.

`ExitPlanner` chooses among candidates: points and thresholds of least mean latency that keep a
target, or of most agreement within a budget of latency. The functions below confirm a plan on
samples that nothing was chosen by, and time it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from onnxslim.errors import NotApplicable, RuntimeFailure
from onnxslim.exits.candidates import ExitAnalysis, ExitCandidate
from onnxslim.exits.heads import Distillation, HeadTrials, head_trials
from onnxslim.exits.nested_ifs import Exit, ExitOptions, with_exits
from onnxslim.exits.promises import AgreementPromise, Promise
from onnxslim.exits.thresholds import (
    FINE_STEPS,
    NEVER,
    STEPS,
    HeadTrial,
    Outcome,
    fitted_risk,
    loosest,
    outcome,
    threshold_path,
)
from onnxslim.io.model import Model
from onnxslim.services.calibration import Calibration

_BY_AGREEMENT = AgreementPromise(1.0)  # what orders thresholds where nothing is promised
_WORTH = 0.99  # an exit more has to lower the figure of merit to this share
_TRIED_TOGETHER = 16  # samples in a batch that tries whether batches may be split
_ROUNDING = 1e-3  # share of the range of the scores that rounding may change


@dataclass(frozen=True)
class ExitPlan:
    """Chosen exits, in the order of the graph, with their outcome.

    Attributes:
        outcome: where samples leave; after `confirm`, held-out samples.
        costs: share of the latency of samples that leave at each exit; last, of those that stay.
    """

    candidates: tuple[ExitCandidate, ...]
    thresholds: tuple[float, ...]
    outcome: Outcome
    costs: tuple[float, ...]

    @property
    def latency(self) -> float:
        """Mean share of the latency."""
        return self.outcome.latency(self.costs)

    @property
    def exits(self) -> list[Exit]:
        """The exits to insert into the graph."""
        heads = [candidate.known.head for candidate in self.candidates]
        return [Exit(head, at) for head, at in zip(heads, self.thresholds, strict=True)]

    def without(self, idle: Sequence[int]) -> ExitPlan:
        """The plan without the exits of numbers `idle`, at which no sample leaves."""
        kept = [number for number in range(len(self.candidates)) if number not in idle]
        found = self.outcome
        return ExitPlan(
            tuple(self.candidates[number] for number in kept),
            tuple(self.thresholds[number] for number in kept),
            replace(
                found,
                shares=tuple(found.shares[number] for number in (*kept, len(self.candidates))),
                agreements=tuple(found.agreements[number] for number in kept),
            ),
            chain_costs([self.candidates[number] for number in kept]),
        )


@dataclass(frozen=True)
class ExitPlanner:
    """Chooses exits and their thresholds, as an `ExitRequest` wants them.

    Attributes:
        candidates: candidate exits in the order of the graph, with heads.
        fixed: whether to use all candidates.
        thresholds: given thresholds, one for each exit or one for all; (): choose them.
        rest: how the model answers samples that stay, where it was trained; see `outcome`.
    """

    candidates: tuple[ExitCandidate, ...]
    count: int
    fixed: bool
    promise: Promise | None
    latency: float | None
    thresholds: tuple[float, ...]
    worst: float | None = None
    rest: HeadTrial | None = None

    def choose(self) -> ExitPlan | str:
        """The best plan on the samples by which heads were chosen; or why there is none."""
        sizes = (len(self.candidates),) if self.fixed else range(1, self.count + 1)
        best: ExitPlan | None = None
        for size in sizes:
            plans = [
                plan
                for candidates in combinations(self.candidates, size)
                if (plan := self._planned(candidates)) is not None
            ]
            found = min(plans, key=self._merit, default=None)
            if found is not None and (best is None or self._is_worth_it(found, best)):
                best = found
        if best is None:
            return self._why_none()
        if not self.fixed and self.latency is None and best.latency >= 1:
            return (
                f"leaving early gains nothing: the best exit, at "
                f"`{best.candidates[0].point.tensor}`, would leave {best.latency:.2f} of the "
                "latency"
            )
        return best

    def within(self, plan: ExitPlan) -> ExitPlan:
        """The plan with the strictest thresholds that keep the budget of latency at its costs.

        Raises:
            NotApplicable: no thresholds keep it.
        """
        trials = [candidate.known.trial for candidate in plan.candidates]
        found = next(self._within(plan.candidates, trials, plan.costs), None)
        if found is None:
            raise NotApplicable(
                f"a mean latency of {self.latency:g} is out of reach: as timed, "
                f"{min(plan.costs):.2f} of the latency would remain even if all samples left"
            )
        return replace(plan, thresholds=found)

    def fine_path(self, plan: ExitPlan) -> list[tuple[float, ...]]:
        """Thresholds for the exits of a plan, from strict to loose, in small steps."""
        return self._path(plan.candidates, chain_costs(plan.candidates), FINE_STEPS)

    def _path(
        self, candidates: Sequence[ExitCandidate], costs: Sequence[float], steps: int = STEPS
    ) -> list[tuple[float, ...]]:
        harmed = (self.promise or _BY_AGREEMENT).harmed
        trials = [candidate.known.trial for candidate in candidates]
        risks = [fitted_risk(trial.confidence, harmed(trial)) for trial in trials]
        return list(threshold_path(risks, [costs[-1] - cost for cost in costs[:-1]], steps))

    def _planned(self, candidates: tuple[ExitCandidate, ...]) -> ExitPlan | None:
        trials = [candidate.known.trial for candidate in candidates]
        costs = chain_costs(candidates)
        chosen: tuple[float, ...] | None = None
        if self.worst is not None and costs[-1] > self.worst:
            return None
        if self.thresholds:
            if len(self.thresholds) not in (1, len(candidates)):
                return None
            chosen = self.thresholds * (len(candidates) // len(self.thresholds))
        elif self.promise is not None:
            path = self._path(candidates, costs)
            chosen = loosest(path, trials, self.promise.is_planned, self.rest)
        else:
            chosen = next(self._within(candidates, trials, costs), None)
        if chosen is None:
            return None
        return ExitPlan(candidates, chosen, outcome(chosen, trials, self.rest), costs)

    def _within(
        self,
        candidates: Sequence[ExitCandidate],
        trials: Sequence[HeadTrial],
        costs: Sequence[float],
    ) -> Iterator[tuple[float, ...]]:
        """Thresholds that keep the budget of latency, the strictest first."""
        assert self.latency is not None
        for thresholds in self._path(candidates, costs):
            if outcome(thresholds, trials, self.rest).latency(costs) <= self.latency:
                yield thresholds

    def _merit(self, plan: ExitPlan) -> float:
        """The figure of merit, lower is better: latency, or disagreement within a budget."""
        return plan.latency if self.latency is None else 1 - plan.outcome.agreement

    def _is_worth_it(self, plan: ExitPlan, simpler: ExitPlan) -> bool:
        return self._merit(plan) < _WORTH * self._merit(simpler)

    def _why_none(self) -> str:
        if self.worst is not None:
            least = 1 + min(candidate.stay for candidate in self.candidates)
            if least > self.worst:
                return (
                    f"samples that never leave would take {least:.3f} of the latency with the "
                    f"cheapest exit, and worst={self.worst:g} allows less"
                )
        if self.thresholds:
            return f"{len(self.thresholds)} thresholds do not fit {len(self.candidates)} exits"
        if self.latency is not None:
            least = min(candidate.cost for candidate in self.candidates)
            return (
                f"a mean latency of {self.latency:g} is out of reach: even if all samples left, "
                f"{least:.2f} of the latency would remain"
            )
        return (
            f"no exit keeps {self.promise} on the samples it was fitted with: give more samples, "
            "or a weaker promise"
        )


def confirm(
    plan: ExitPlan, distillation: Distillation, held: Calibration
) -> tuple[ExitPlan, HeadTrials]:
    """The plan with its outcome on held-out samples, and the answers of its heads on them."""
    seen = head_trials(distillation, [candidate.known.head for candidate in plan.candidates], held)
    return replace(plan, outcome=outcome(plan.thresholds, seen.heads, seen.rest)), seen


def tightened(
    plan: ExitPlan,
    path: Sequence[tuple[float, ...]],
    trials: HeadTrials,
    promise: Promise,
) -> ExitPlan:
    """The plan with the loosest thresholds that are confirmed to keep a promise on new samples.

    Raises:
        NotApplicable: not even the strictest are.
    """
    heads, rest = trials.heads, trials.rest
    found = loosest(path, heads, promise.is_kept, rest)
    if found is None:
        raise NotApplicable(
            f"{promise} is not confirmed: {promise.broken_by(outcome(path[0], heads, rest))}, even "
            "where heads must be surest; give more samples, or a weaker promise"
        )
    return replace(plan, thresholds=found, outcome=outcome(found, heads, rest))


def spread(candidates: Sequence[ExitCandidate], count: int | None) -> tuple[ExitCandidate, ...]:
    """Up to `count` candidates (None: all), spread over the latency."""
    if count is None or count >= len(candidates):
        return tuple(candidates)
    wanted = [(number + 1) / (count + 1) for number in range(count)]
    costs = np.array([candidate.cost for candidate in candidates])
    nearest = {int(np.argmin(np.abs(costs - share))) for share in wanted}
    return tuple(candidates[number] for number in sorted(nearest))


def anytime_plan(
    analysis: ExitAnalysis, candidates: Sequence[ExitCandidate], count: int | None
) -> ExitPlan:
    """A plan of up to `count` exits (None: all), spread over the latency, without thresholds."""
    chosen = spread(candidates, count)
    heads = [candidate.known.head for candidate in chosen]
    seen = head_trials(analysis.distillation, heads, analysis.halves[1]).heads
    agreements = tuple(float(trial.agrees.mean()) for trial in seen)
    nobody = (0.0,) * len(chosen)
    result = Outcome((*nobody, 1.0), agreements, 0, len(seen[0].agrees))
    return ExitPlan(chosen, (NEVER,) * len(chosen), result, chain_costs(chosen))


def measured_costs(
    analysis: ExitAnalysis, plan: ExitPlan, options: ExitOptions
) -> tuple[float, ...] | None:
    """The costs of a plan, as timed with all exits in place; None without a stopwatch.

    For each exit, a model is timed whose thresholds make every sample leave there.
    """
    stopwatch = analysis.context.stopwatch
    if stopwatch is None:
        return None
    found = []
    for number in range(len(plan.candidates) + 1):
        forced = [NEVER] * number + [0.0] * (len(plan.candidates) - number)
        model = _with_exits(analysis, replace(plan, thresholds=tuple(forced)), options)
        found.append(1 / stopwatch.pair(analysis.model, model).ratio)
    return tuple(found)


def splits_well(analysis: ExitAnalysis, plan: ExitPlan, options: ExitOptions) -> bool:
    """Whether the network returns the same on a part of a batch as on all of it.

    Tried on a batch of which about half leaves at each exit: the other samples must get the answers
    of the network itself. Where samples run one by one, as those of a network that looks across its
    batch do, nothing can be tried.
    """
    assert analysis.context.calibration is not None
    middle = [float(np.median(candidate.known.trial.confidence)) for candidate in plan.candidates]
    halved = replace(plan, thresholds=tuple(min(value, 1.0) for value in middle))
    output = analysis.distillation.output
    model = _with_exits(analysis, halved, replace(options, report=True))
    report = model.graph.outputs[-1].name
    plain = analysis.context.calibration.outputs(analysis.model, together=_TRIED_TOGETHER)
    split = analysis.context.calibration.outputs(model, together=_TRIED_TOGETHER)
    most = 1
    try:
        for expected, found in zip(plain, split, strict=True):
            most = max(most, expected.rows)
            stays = found.values[report] > len(plan.candidates)
            wanted = expected.values[output]
            if found.values[output].shape != wanted.shape:
                return False
            moved = np.abs(found.values[output][stays] - wanted[stays]).max(initial=0.0)
            if not moved <= _ROUNDING * max(float(np.ptp(wanted)), 1e-6):
                return False
            if stays.any() and not stays.all():
                return True
    except RuntimeFailure:
        return False
    return most > 1


def _with_exits(analysis: ExitAnalysis, plan: ExitPlan, options: ExitOptions) -> Model:
    return with_exits(analysis.model, analysis.distillation.output, plan.exits, options)


def chain_costs(candidates: Sequence[ExitCandidate]) -> tuple[float, ...]:
    """The estimated costs of a plan: each exit adds its head to the cost of all behind it."""
    costs, passed = [], 0.0
    for candidate in candidates:
        costs.append(candidate.cost + passed)
        passed += candidate.stay
    return (*costs, 1.0 + passed)

"""One run of `inject-exits`: candidates, a plan, its confirmation on held-out samples, insertion.

Owns: the order of these steps, and the sentences that report them. Not here: what each step does
(see `candidates`, `planning`, `nested_ifs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxslim.constraints.read import read_constraints
from onnxslim.constraints.storing import store_values
from onnxslim.errors import NotApplicable
from onnxslim.exits.candidates import ExitAnalysis, ExitCandidate
from onnxslim.exits.nested_ifs import BatchMode, ExitOptions, append_exits, insert_exits
from onnxslim.exits.operators import Confidence
from onnxslim.exits.planning import (
    ExitPlan,
    ExitPlanner,
    anytime_plan,
    confirm,
    measured_costs,
    splits_well,
    spread,
    tightened,
)
from onnxslim.exits.promises import Promise, unconfirmable
from onnxslim.exits.thresholds import HeadTrial, confidence_text
from onnxslim.exits.training import ExitTraining, TrainedExits, trained_exits
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.passes import Context
from onnxslim.records import Fidelity, PassResult
from onnxslim.services.calibration import Calibration


@dataclass(frozen=True)
class ExitRequest:
    """The options of `inject-exits`, with defaults filled in.

    Attributes:
        at: names of the tensors to put exits at; (): choose them.
        count: how many exits to choose at most.
        promise: what is promised of new samples; None where `latency` or `threshold` is given.
        labelled: samples with labels to choose thresholds by; None: the calibration samples.
        latency: mean latency to reach, as a share of the network's.
        threshold: given confidence thresholds: one for all exits, or one for each of `at`.
        worst: the most latency for a sample that never leaves, as a share of the network's.
        hidden: whether heads have a layer of random units.
        output: name of the class scores; None: find it.
        batch: what happens to a batch of which only some samples may leave.
        anytime: return the scores of every exit as further outputs, and skip nothing.
        report: return the number of the exit that each sample took, as a further output.
        training: how heads are trained before thresholds are chosen; None: they are not.
    """

    at: tuple[str, ...]
    count: int
    promise: Promise | None
    labelled: Calibration | None
    latency: float | None
    threshold: tuple[float, ...]
    worst: float | None
    confidence: Confidence
    hidden: bool
    output: str | None
    batch: BatchMode
    anytime: bool
    report: bool
    training: ExitTraining | None = None


class ExitInjection:
    """Exits for the graph of `rewriter`; `run` inserts them.

    Attributes:
        plan: the exits that were inserted; None before `run`, and where `run` inserted none.
    """

    def __init__(self, rewriter: Rewriter, context: Context, request: ExitRequest) -> None:
        assert context.model is not None
        self.rw, self.context, self.request = rewriter, context, request
        self.plan: ExitPlan | None = None
        self._learned: TrainedExits | None = None
        self._analysis = ExitAnalysis(
            context.model.clone(),
            context,
            request.output,
            request.at,
            request.confidence,
            hidden=request.hidden,
            batch=request.batch,
            labelled=request.labelled,
        )

    def run(self) -> PassResult:
        """Insert exits where they pay, and report them."""
        try:
            candidates = self._candidates()
            added = self._append(candidates) if self.request.anytime else self._insert(candidates)
        except NotApplicable as reason:  # raised before anything is changed
            self.rw.decline(str(reason))
            return PassResult(skips=self.rw.result().skips)
        found = self._learned
        notes = () if found is None else (found.outcome.summary("inject-exits"),)
        return replace(self.rw.result(), fidelity=Fidelity.LOSSY, outputs=added, notes=notes)

    def _candidates(self) -> tuple[ExitCandidate, ...]:
        analysis = self._analysis
        output, _ = analysis.scores
        candidates = analysis.candidates(staying=not self.request.anytime)
        for name, why in analysis.why_not.items():
            self.rw.skip(self.rw.main.name, f"`{name}` is no place for an exit: {why}")
        if not candidates:
            raise NotApplicable(  # declines 3
                f"there is no tensor that all paths to `{output.name}` pass through, with work "
                "behind it that nothing else needs"
            )
        return candidates

    # ----------------------------------------------------------------- exits that skip work

    def _insert(self, candidates: tuple[ExitCandidate, ...]) -> tuple[str, ...]:
        """Insert the exits of a confirmed plan; returns the names of outputs that were added."""
        request = self.request
        planner = self._planner(candidates, is_fixed=bool(request.at))
        if request.training is None:
            plan = self._confirmed(planner)
        else:
            planner, plan = self._trained_plan(_worth_training(planner), request.training)
        options = self._options(plan)
        costs = measured_costs(self._analysis, plan, options)
        if costs is not None:
            plan = self._at_costs(planner, replace(plan, costs=costs))
        self._warn(plan)
        self._store()
        report = insert_exits(self.rw, self._analysis.distillation.output, plan.exits, options)
        for number, candidate in enumerate(plan.candidates):
            self.rw.note(candidate.point.tensor, _exit_words(plan, number), Fidelity.LOSSY)
        first = plan.candidates[0].point.tensor
        self.rw.note(
            first,
            _plan_words(
                plan,
                request.promise,
                is_timed=costs is not None,
                has_learned=self._analysis.network is not None,
            ),
            Fidelity.LOSSY,
        )
        self.plan = plan
        return () if report is None else (report,)

    def _planner(
        self,
        candidates: tuple[ExitCandidate, ...],
        *,
        is_fixed: bool,
        rest: HeadTrial | None = None,
    ) -> ExitPlanner:
        request = self.request
        return ExitPlanner(
            candidates,
            request.count,
            is_fixed,
            request.promise,
            request.latency,
            self._thresholds(candidates),
            request.worst,
            rest,
        )

    def _thresholds(self, candidates: Sequence[ExitCandidate]) -> tuple[float, ...]:
        """The given thresholds, from the order of `at` to the order of the graph."""
        request = self.request
        if len(request.threshold) < 2 or not request.at:
            return request.threshold
        by_name = dict(zip(dict.fromkeys(request.at), request.threshold, strict=True))
        return tuple(by_name[candidate.point.tensor] for candidate in candidates)

    def _confirmed(self, planner: ExitPlanner) -> ExitPlan:
        """The best plan, with its outcome on held-out samples.

        Raises:
            NotApplicable: no exit pays or keeps the target; saying why.
        """
        chosen = planner.choose()
        if isinstance(chosen, str):
            raise NotApplicable(chosen)  # declines 6
        plan, trials = confirm(chosen, self._analysis.distillation, self._analysis.halves[1])
        if planner.promise is not None:
            why = unconfirmable(planner.promise, plan.outcome.samples)
            if why is not None:
                raise NotApplicable(why)  # declines 1
            plan = tightened(plan, planner.fine_path(plan), trials, planner.promise)
        return self._without_idle(plan)

    # ----------------------------------------------------------------- training

    def _trained_plan(
        self, candidates: tuple[ExitCandidate, ...], how: ExitTraining
    ) -> tuple[ExitPlanner, ExitPlan]:
        """A plan for candidates, whose heads are trained first, and what chose its thresholds.

        Where no sample leaves at some exit, the others are trained without it: so they are the same
        as where they alone are asked for.
        """
        before = self._analysis
        while True:
            self._analysis = before
            found = self._trained(candidates, how)
            planner = self._planner(found.candidates, is_fixed=True, rest=found.rest)
            plan = self._confirmed(planner)
            left = {candidate.point.tensor for candidate in plan.candidates}
            if len(left) == len(candidates):
                return planner, plan
            candidates = tuple(item for item in candidates if item.point.tensor in left)

    def _trained(self, candidates: Sequence[ExitCandidate], how: ExitTraining) -> TrainedExits:
        self._learned = found = trained_exits(self._analysis, candidates, how)
        self._analysis = found.analysis
        return found

    def _store(self) -> None:
        """Write into the graph what the network learned."""
        if self._learned is not None and self._learned.network:
            store_values(self.rw, read_constraints(self.rw.main), self._learned.network)

    def _without_idle(self, plan: ExitPlan) -> ExitPlan:
        """The plan without the exits at which no held-out sample leaves."""
        shares = plan.outcome.shares
        idle = [number for number, share in enumerate(shares[:-1]) if not share]
        for number in idle:
            tensor = plan.candidates[number].point.tensor
            self.rw.skip(tensor, "no sample held back would leave there")
        if len(idle) == len(plan.candidates):
            raise NotApplicable("no sample held back would leave early at these thresholds")
        return plan.without(idle)

    def _options(self, plan: ExitPlan) -> ExitOptions:
        """How to write the exits; batches are split only where the network allows it."""
        options = replace(self._analysis.options, report=self.request.report)
        if options.batch is BatchMode.ALL or splits_well(self._analysis, plan, options):
            return options
        self.rw.skip(
            plan.candidates[0].point.tensor,
            "batches leave as a whole: on a part of a batch the rest of the network does not "
            "return what it returns on all of it",
        )
        return replace(options, batch=BatchMode.ALL)

    def _at_costs(self, planner: ExitPlanner, plan: ExitPlan) -> ExitPlan:
        """The plan at the latencies that were measured with all of its exits in place.

        Raises:
            NotApplicable: it gains nothing, or the budget cannot be kept.
        """
        worst = self.request.worst
        if worst is not None and max(plan.costs) > worst:
            raise NotApplicable(  # declines 6
                f"samples that never leave would take {max(plan.costs):.3f} of the latency, as "
                f"timed, and worst={worst:g} allows less"
            )
        if planner.latency is not None:
            distillation, (_, held_out) = self._analysis.distillation, self._analysis.halves
            return confirm(planner.within(plan), distillation, held_out)[0]
        if not self.request.at and plan.latency >= 1:
            raise NotApplicable(  # declines 6
                f"leaving early gains nothing: at the exits chosen, {plan.latency:.2f} of the "
                "latency would remain, as timed"
            )
        return plan

    # ----------------------------------------------------------------- anytime prediction

    def _append(self, candidates: Sequence[ExitCandidate]) -> tuple[str, ...]:
        """Append the scores of every exit as outputs; returns their names."""
        analysis, request = self._analysis, self.request
        output, score_form = analysis.scores
        plan = anytime_plan(analysis, candidates, None if request.at else request.count)
        if request.training is not None:
            found = self._trained(plan.candidates, request.training)
            plan = anytime_plan(found.analysis, found.candidates, None)
            self._store()
        self._warn(plan)
        self.plan = plan
        names = append_exits(self.rw, output.name, plan.exits, score_form)
        for number, name in enumerate(names):
            self.rw.note(
                plan.candidates[number].point.tensor,
                _output_words(plan, number, name),
                Fidelity.LOSSY,
            )
        return tuple(names)

    def _warn(self, plan: ExitPlan) -> None:
        """Report heads that were fitted to few samples."""
        for candidate in plan.candidates:
            if candidate.fitted is not None and candidate.fitted.warning is not None:
                self.rw.skip(candidate.point.tensor, candidate.fitted.warning)


def _worth_training(planner: ExitPlanner) -> tuple[ExitCandidate, ...]:
    """The candidates of the best plan before training; where there is none yet, spread ones."""
    chosen = planner.choose()
    if isinstance(chosen, ExitPlan):
        return chosen.candidates
    return spread(planner.candidates, None if planner.fixed else planner.count)


# ---------------------------------------------------------------------------- words


def _exit_words(plan: ExitPlan, number: int) -> str:
    candidate, share = plan.candidates[number], plan.outcome.shares[number]
    agreement = plan.outcome.agreements[number]
    agreed = "" if agreement is None else f", of which {100 * agreement:.2f} % agree"
    return (
        f"exit {number + 1}: a head on {_head_words(candidate)}; {100 * share:.1f} % of the "
        f"samples held back leave at a confidence of {plan.thresholds[number]:.4g}{agreed}, at "
        f"{plan.costs[number]:.2f} of the latency"
    )


def _plan_words(
    plan: ExitPlan, promise: Promise | None, *, is_timed: bool, has_learned: bool
) -> str:
    result = plan.outcome
    whom = "answers of the network as it was" if has_learned else "answers of the network"
    how = "as timed" if is_timed else "by multiply-accumulates, not timed"
    promised = "" if promise is None else f"; {promise.promised(result)}"
    return (
        f"gives the {whom} to {100 * result.agreement:.2f} % of {result.samples:,} "
        f"samples held back, so for at least {100 * result.promised:.2f} % of such samples "
        f"with {confidence_text()} confidence{promised}; expected latency: mean "
        f"{plan.latency:.2f}, median {result.median_latency(plan.costs):.2f}, worst "
        f"{max(plan.costs):.2f} of what it was ({how})"
    )


def _output_words(plan: ExitPlan, number: int, name: str) -> str:
    candidate = plan.candidates[number]
    agreement = plan.outcome.agreements[number] or 0.0
    return (
        f"its head's scores are the new output `{name}`: {_head_words(candidate)}; it agrees with "
        f"the network for {100 * agreement:.2f} % of {plan.outcome.samples:,} samples held back, "
        f"at {candidate.cost:.2f} of the latency"
    )


def _head_words(candidate: ExitCandidate) -> str:
    head = candidate.known.head
    units = "" if head.hidden is None else f", {len(head.hidden[1])} random units behind them"
    return f"{head.pooling}{units}"

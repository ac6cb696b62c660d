"""Let easy samples leave a classifier early, by heads that are fitted without training.

Rewrite:
    A classifier whose scores y are made of a tensor t, through which everything passes,

        t = early(x);  y = deep(t)

    becomes, with a head that was fitted to the network's own answers,

        s = head(t)
        y = If (confidence(s) >= threshold) <then: s> <else: deep(t)>

    so that onnxruntime runs `deep` only for those samples whose head is not sure. Of several exits
    the Ifs are nested. With `batch=split`, `deep` runs on those samples of a batch that are not
    sure (Gather), and its answers are put among the others (ScatterND).
    `mode=anytime` skips nothing, and returns the scores of every exit as a further output.

Why it is correct:
    It is not exact. A sample that leaves gets the answer of the head. How sure a head must be is
    chosen on one half of the calibration samples and confirmed on the other: the share of samples
    that leave with another answer than the network's stays below 1 - `target` on new samples of
    the same kind, with 99 % confidence. A sample that does not leave gets the network's own answer:
    with onnxruntime's optimisations off, and alone in its batch, to the bit.
    A head is a linear layer on pooled features, with `head=mlp` on random units behind them as
    well; ridge regression on moments of the calibration samples solves for it.

Declines when:
    1. There are no calibration samples, or too few to confirm the target.
    2. No output is class scores: a float tensor with one row of two or more entries a sample.
    3. No tensor has all ways from the inputs to the scores pass through it with work behind it that
       no other output needs.
    4. What is computed is decided at run time already (If, Loop, Scan).
    5. The model is older than opset 11.
    6. Leaving early gains nothing, as timed, or what it costs samples that never leave is more than
       `worst` allows.

Fidelity:
    LOSSY. The file grows by the heads: use it with `--goal latency`. Extra outputs (`mode=anytime`,
    `report-exit`) come after those that the model has.

Reference:
    Teerapittayanon, McDanel, Kung (2016), BranchyNet, arXiv:1709.01686; Huang et al. (2018),
    MSDNet, arXiv:1703.09844 (anytime prediction); Kaya, Hong, Dumitras (2019), arXiv:1810.07052;
    Hinton, Vinyals, Dean (2015), arXiv:1503.02531 (soft targets); Guo et al. (2017),
    arXiv:1706.04599 (temperature); Angelopoulos et al. (2021), arXiv:2110.01052 (thresholds by
    tests in sequence). We differ: nothing is trained, and the network itself stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxslim.errors import NotApplicable, UsageError
from onnxslim.exits.candidates import ExitAnalysis, ExitCandidate, scores_named
from onnxslim.exits.nested_ifs import BatchMode, ExitOptions, append_exits, insert_exits
from onnxslim.exits.operators import Confidence
from onnxslim.exits.planning import (
    ExitPlan,
    ExitPlanner,
    anytime_plan,
    confirm,
    measured_costs,
    splits_well,
    tightened,
    too_few,
)
from onnxslim.exits.thresholds import confidence_text
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.options import at_least, interval, one_of, option
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.pipeline.replayable import replay_note
from onnxslim.records import Fidelity, PassResult

_TARGET = 0.995
_AUTO = "auto"
_AIMS = ("target", "latency", "threshold")
_WITHOUT_DATA = (
    "needs calibration samples: heads are fitted to what the network answers on them, and how sure "
    "they must be is confirmed on them; give --calib"
)


@dataclass(frozen=True)
class InjectExits(Pass):
    """Let easy samples leave a classifier early, by heads that are fitted without training."""

    name: ClassVar[str] = "inject-exits"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY

    at: tuple[str, ...] = option((), help="tensors to leave at, all of them; auto: chosen by time")
    count: int = option(2, interval(1, 4), "exits at most, where they are chosen")
    target: float | None = option(
        None,
        interval(0, 1, open_left=True),
        f"agreement with the network to promise; default: --min-agreement, or {_TARGET}",
    )
    latency: float | None = option(
        None, interval(0, 1, open_left=True), "mean share of the latency to come down to instead"
    )
    threshold: tuple[float, ...] = option(
        (), interval(0, 1), "confidence to leave from instead, one for all exits or one for each"
    )
    worst: float | None = option(
        None,
        at_least(1),
        "latency that samples which never leave may have, as share of the original's",
    )
    confidence: str = option(
        "max-probability",
        one_of("max-probability", "entropy", "margin"),
        "what says how sure a head is; all from 0 to 1",
    )
    head: str = option("linear", one_of("linear", "mlp"), "mlp: random units before the last layer")
    output: str | None = option(None, help="the output that is the class scores; default: found")
    batch: str = option(
        "split", one_of("all", "split"), "all: a batch leaves as a whole; split: sample by sample"
    )
    mode: str = option(
        "exit", one_of("exit", "anytime"), "anytime: return the scores of all exits, skip nothing"
    )
    report_exit: bool = option(
        default=False, help="return the number of the exit that each sample took, as a new output"
    )

    def __post_init__(self) -> None:
        """Check options against each other.

        Raises:
            UsageError: two that exclude each other are given.
        """
        super().__post_init__()
        if self.at == (_AUTO,):
            object.__setattr__(self, "at", ())
        self.check_at_most_one(*_AIMS)
        if self.at and len(self.threshold) not in (0, 1, len(set(self.at))):
            raise UsageError(
                f"`{self.name}` takes one threshold for all exits or one for each of `at`; got "
                f"{len(self.threshold)} for {len(set(self.at))}."
            )
        idle = (*self.given(*_AIMS, "worst"), *(("report-exit",) if self.report_exit else ()))
        if self.mode == "anytime" and idle:
            raise UsageError(
                f"`{self.name}:mode=anytime` skips nothing: leave out {' and '.join(idle)}."
            )

    def requires(self, graph: gs.Graph, context: Context) -> None:
        """Refuse models without class scores, and to work without samples.

        Raises:
            NotApplicable: saying why.
        """
        if context.calibration is None:
            raise NotApplicable(_WITHOUT_DATA)  # declines 1
        if self.worst is not None and context.stopwatch is None:
            raise NotApplicable(
                "worst needs models to be timed: leave out --no-latency, or leave out worst"
            )
        scores_named(graph, self.output)  # declines 2, 4, 5

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Look at all points, choose, confirm on samples held back, and write the exits down."""
        rw = Rewriter(graph)
        try:
            return self._run(rw, context)
        except NotApplicable as reason:
            rw.skip(graph.name, str(reason))
            return PassResult(skips=rw.result().skips)

    def _run(self, rw: Rewriter, context: Context) -> PassResult:
        assert context.model is not None
        analysis = ExitAnalysis(
            context.model.clone(),
            context,
            self.output,
            self.at,
            Confidence(self.confidence),
            hidden=self.head == "mlp",
            batch=BatchMode(self.batch),
        )
        output, _ = analysis.scores
        candidates = analysis.candidates(staying=self.mode == "exit")
        for name, why in analysis.why_not.items():
            rw.skip(rw.main.name, f"`{name}` is no place to leave at: {why}")
        if not candidates:
            raise NotApplicable(  # declines 3
                f"there is no tensor that all ways to `{output.name}` pass through, with work "
                "behind it that nothing else needs"
            )
        if self.mode == "anytime":
            return self._anytime(rw, analysis, candidates)
        return self._exits(rw, analysis, candidates, context)

    # ----------------------------------------------------------------- exits

    def _exits(
        self,
        rw: Rewriter,
        analysis: ExitAnalysis,
        candidates: Sequence[ExitCandidate],
        context: Context,
    ) -> PassResult:
        planner = ExitPlanner(
            tuple(candidates),
            self.count,
            bool(self.at),
            self._target(context),
            self.latency,
            self._thresholds(candidates),
            self.worst,
        )
        plan = self._plan(rw, analysis, planner)
        options = self._options(rw, analysis, plan)
        costs = measured_costs(analysis, plan, options)
        if costs is not None:
            plan = self._at_costs(analysis, planner, replace(plan, costs=costs))
        _warn(rw, plan)
        told = insert_exits(rw, analysis.distillation.output, plan.exits, options)
        for number, candidate in enumerate(plan.candidates):
            rw.note(candidate.point.tensor, _exit_words(plan, number), Fidelity.LOSSY)
        first = plan.candidates[0].point.tensor
        rw.note(first, self._whole_words(plan, timed=costs is not None), Fidelity.LOSSY)
        if context.stopwatch is not None and (not self.at or not self.threshold):
            rw.note(first, replay_note(self._explicit(plan)))
        result = rw.result()
        outputs = () if told is None else (told,)
        return replace(result, fidelity=Fidelity.LOSSY, outputs=outputs)

    def _plan(self, rw: Rewriter, analysis: ExitAnalysis, planner: ExitPlanner) -> ExitPlan:
        """The exits, confirmed.

        Raises:
            NotApplicable: no exit is worth it or keeps the target; saying why.
        """
        chosen = planner.choose()
        if isinstance(chosen, str):
            raise NotApplicable(chosen)  # declines 6
        plan, trials = confirm(chosen, analysis.distillation, analysis.halves[1])
        if planner.target is not None:
            why = too_few(planner.target, plan.outcome.samples)
            if why is not None:
                raise NotApplicable(why)  # declines 1
            plan = tightened(plan, planner.finely(plan), trials, planner.target)
        return self._without_idle(rw, plan)

    def _at_costs(self, analysis: ExitAnalysis, planner: ExitPlanner, plan: ExitPlan) -> ExitPlan:
        """The plan, now that its exits have been timed.

        Raises:
            NotApplicable: it gains nothing, or the budget cannot be kept.
        """
        if self.worst is not None and max(plan.costs) > self.worst:
            raise NotApplicable(  # declines 6
                f"samples that never leave would take {max(plan.costs):.3f} of the latency, as "
                f"timed, and worst={self.worst:g} allows less"
            )
        if planner.latency is not None:
            plan, _ = confirm(planner.within(plan), analysis.distillation, analysis.halves[1])
        elif not self.at and plan.latency >= 1:
            raise NotApplicable(  # declines 6
                f"leaving early gains nothing: at the exits chosen, {plan.latency:.2f} of the "
                "latency would remain, as timed"
            )
        return plan

    def _without_idle(self, rw: Rewriter, plan: ExitPlan) -> ExitPlan:
        """The plan without exits at which no sample of those held back leaves."""
        shares = plan.outcome.shares
        idle = [number for number, share in enumerate(shares[:-1]) if not share]
        for number in idle:
            rw.skip(plan.candidates[number].point.tensor, "no sample held back would leave there")
        if len(idle) == len(plan.candidates):
            raise NotApplicable("no sample held back would leave early at these thresholds")
        return plan.without(idle)

    def _thresholds(self, candidates: Sequence[ExitCandidate]) -> tuple[float, ...]:
        """Those given, in the order of the graph; they are given in the order of `at`."""
        if len(self.threshold) < 2 or not self.at:
            return self.threshold
        by_name = dict(zip(dict.fromkeys(self.at), self.threshold, strict=True))
        return tuple(by_name[candidate.point.tensor] for candidate in candidates)

    def _target(self, context: Context) -> float | None:
        if self.latency is not None or self.threshold:
            return None
        return self.target or context.floors.min_agreement or _TARGET

    def _options(self, rw: Rewriter, analysis: ExitAnalysis, plan: ExitPlan) -> ExitOptions:
        options = replace(analysis.options, report=self.report_exit)
        if options.batch is BatchMode.ALL or splits_well(analysis, plan, options):
            return options
        rw.skip(
            plan.candidates[0].point.tensor,
            "batches leave as a whole: on a part of a batch the rest of the network does not "
            "return what it returns on all of it",
        )
        return replace(options, batch=BatchMode.ALL)

    def _explicit(self, plan: ExitPlan) -> InjectExits:
        """The options that repeat what was decided by measuring time."""
        return replace(
            self,
            at=tuple(candidate.point.tensor for candidate in plan.candidates),
            threshold=plan.thresholds,
            target=None,
            latency=None,
            worst=None,
            count=type(self).count,
        )

    def _whole_words(self, plan: ExitPlan, *, timed: bool) -> str:
        result = plan.outcome
        how = "as timed" if timed else "by multiply-accumulates, not timed"
        return (
            f"agrees with the network for {100 * result.agreement:.2f} % of {result.samples:,} "
            f"samples held back, so for at least {100 * result.promised:.2f} % of such samples "
            f"with {confidence_text()} confidence; expected latency: mean {plan.latency:.2f}, "
            f"median {result.median_latency(plan.costs):.2f}, worst {max(plan.costs):.2f} of what "
            f"it was ({how})"
        )

    # ----------------------------------------------------------------- anytime

    def _anytime(
        self, rw: Rewriter, analysis: ExitAnalysis, candidates: Sequence[ExitCandidate]
    ) -> PassResult:
        output, form = analysis.scores
        plan = anytime_plan(analysis, candidates, None if self.at else self.count)
        _warn(rw, plan)
        made = append_exits(rw, output.name, plan.exits, form)
        for candidate, name, agreement in zip(
            plan.candidates, made, plan.outcome.agreements, strict=True
        ):
            rw.note(
                candidate.point.tensor,
                f"its head's scores are the new output `{name}`: {_head_words(candidate)}; "
                f"it agrees with the network for {100 * (agreement or 0):.2f} % of "
                f"{plan.outcome.samples:,} samples held back, at "
                f"{candidate.cost:.2f} of the latency",
                Fidelity.LOSSY,
            )
        changes = rw.result()
        return replace(changes, fidelity=Fidelity.LOSSY, outputs=tuple(made))


def _warn(rw: Rewriter, plan: ExitPlan) -> None:
    """Say where a head was fitted to few samples."""
    for candidate in plan.candidates:
        if candidate.fitted is not None and candidate.fitted.warning is not None:
            rw.skip(candidate.point.tensor, candidate.fitted.warning)


def _head_words(candidate: ExitCandidate) -> str:
    assert candidate.fitted is not None
    head = candidate.fitted.head
    units = "" if head.hidden is None else f", {len(head.hidden[1])} random units behind them"
    return f"{head.pooling}{units}"


def _exit_words(plan: ExitPlan, number: int) -> str:
    candidate, share = plan.candidates[number], plan.outcome.shares[number]
    agreement = plan.outcome.agreements[number]
    agreed = "" if agreement is None else f", of which {100 * agreement:.2f} % agree"
    return (
        f"exit {number + 1}: a head on {_head_words(candidate)}; {100 * share:.1f} % of the "
        f"samples held back leave at a confidence of {plan.thresholds[number]:.4g}{agreed}, at "
        f"{plan.costs[number]:.2f} of the latency"
    )

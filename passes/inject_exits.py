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

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxslim.errors import NotApplicable, UsageError
from onnxslim.exits.candidates import scores_named
from onnxslim.exits.nested_ifs import BatchMode
from onnxslim.exits.operators import Confidence
from onnxslim.exits.planning import ExitPlan
from onnxslim.exits.run import ExitInjection, ExitRequest
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.options import at_least, interval, one_of, option
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.pipeline.replayable import replay_note
from onnxslim.records import Change, Fidelity, PassResult

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
        """Choose exits, confirm them on held-out samples, and insert them."""
        injection = ExitInjection(Rewriter(graph), context, self._request(context))
        result = injection.run()
        is_chosen = context.stopwatch is not None and (not self.at or not self.threshold)
        if injection.plan is None or not is_chosen:
            return result
        first = injection.plan.candidates[0].point.tensor
        note = Change(first, replay_note(self._explicit(injection.plan)))
        return replace(result, changes=(*result.changes, note))

    def _request(self, context: Context) -> ExitRequest:
        """The options, with the default target where nothing else is aimed at."""
        is_targeted = self.latency is None and not self.threshold
        target = self.target or context.floors.min_agreement or _TARGET
        return ExitRequest(
            at=self.at,
            count=self.count,
            target=target if is_targeted else None,
            latency=self.latency,
            threshold=self.threshold,
            worst=self.worst,
            confidence=Confidence(self.confidence),
            hidden=self.head == "mlp",
            output=self.output,
            batch=BatchMode(self.batch),
            anytime=self.mode == "anytime",
            report=self.report_exit,
        )

    def _explicit(self, plan: ExitPlan) -> InjectExits:
        """The pass with the tensors and thresholds that were chosen by measuring time."""
        return replace(
            self,
            at=tuple(candidate.point.tensor for candidate in plan.candidates),
            threshold=plan.thresholds,
            target=None,
            latency=None,
            worst=None,
            count=type(self).count,
        )

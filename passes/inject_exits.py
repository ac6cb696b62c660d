"""Let easy samples leave a classifier early, through exit heads, fitted or trained.

Rewrite:
    A classifier computes its scores y from a tensor t through which all data pass:

        t = early(x);  y = deep(t)

    With a head that was fitted to the network's own answers, it becomes

        s = head(t)
        y = If (confidence(s) >= threshold) <then: s> <else: deep(t)>

    so that onnxruntime runs `deep` only for samples below the confidence threshold. Several exits
    are nested Ifs. With `batch=split`, Gather selects the samples of a batch that are below the
    threshold, `deep` runs on those alone, and ScatterND joins their answers with the others.
    `mode=anytime` skips nothing and returns the scores of every exit as a further output.

Why it is correct:
    It is not exact: a sample that leaves gets the answer of the head. The threshold is chosen on
    one half of the calibration samples and confirmed on the other: with 99 % confidence, the share
    of samples that leave with another answer than the network's is below 1 - `target` on new
    samples of the same kind. Without `target`, the promise is the strongest that so many samples
    can confirm, up to 0.995. With `max-drop` and labels, the promise is instead that accuracy falls
    by at most so many points: a sample about which the network is wrong may leave with any answer.
    A sample that does not leave gets the network's own answer, to the bit
    when it is alone in its batch and onnxruntime's optimisations are off.
    A head is a linear layer on pooled features: averages over the cells of a grid of a feature map;
    the first row of a sequence, or the mean of its rows without those of padding. With `head=mlp`
    it is also on random units computed from them. Ridge regression on moments of the calibration
    samples gives its weights.

    With `finetune=EPOCHS` (extra `train`) the heads of the exits that were chosen learn from there
    on, by gradients: `joint=heads` trains them alone, `joint=all` the network as well, by the sum
    of the losses of the network and of all exits. The teacher is the network as it came to the
    pass; `training='loss=labels'` takes labels. Thresholds are chosen and confirmed after that, on
    samples that were not trained on, by the answers of the network as it came: with `joint=all`
    samples that stay count, too, as the network may answer them in another way.

Declines when:
    1. There are no calibration samples, or too few to confirm what `target` or `max-drop` asks for,
       which is found out before any work; or `max-drop` is given without labels.
    2. No output is class scores: a float tensor with one row of two or more entries a sample.
       Embeddings, hidden states and token logits are none: there is no answer to be sure of, or
       later tokens need what every layer makes. `output` names scores that look like an embedding.
    3. There is no tensor that all paths from the inputs to the scores pass through, with work
       behind it that no other output needs. A mask of padding makes no path.
    4. Control flow (If, Loop, Scan) already decides at run time which nodes are computed.
    5. The model is older than opset 11 and cannot be raised (see `raise-opset`).
    6. Leaving early saves no latency, as timed, or an exit costs samples that never leave more than
       `worst` allows.

Fidelity:
    LOSSY. The heads make the file larger: use the pass with `--goal latency`. New outputs
    (`mode=anytime`, `report-exit`) come after those of the model.

Reference:
    Teerapittayanon, McDanel, Kung (2016), BranchyNet, arXiv:1709.01686; Huang et al. (2018),
    MSDNet, arXiv:1703.09844 (anytime prediction); Xin et al. (2020), DeeBERT, arXiv:2004.12993, and
    Zhou et al. (2020), PABEE, arXiv:2006.04152 (encoders of texts); Kaya, Hong, Dumitras (2019),
    arXiv:1810.07052; Hinton, Vinyals, Dean (2015), arXiv:1503.02531 (soft targets); Guo et al.
    (2017), arXiv:1706.04599 (temperature); Angelopoulos et al. (2021), arXiv:2110.01052 (fixed
    sequence testing); Tango (1998), Statistics in Medicine 17 (bound of a drop in accuracy). We
    differ: heads begin with closed forms, and the network itself is changed by `joint=all` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxslim.errors import NotApplicable, UsageError
from onnxslim.exits.candidates import scores_named
from onnxslim.exits.nested_ifs import BatchMode
from onnxslim.exits.operators import MIN_OPSET, Confidence
from onnxslim.exits.planning import ExitPlan
from onnxslim.exits.promises import (
    AccuracyPromise,
    AgreementPromise,
    Promise,
    strongest_agreement,
    unconfirmable,
)
from onnxslim.exits.run import ExitInjection, ExitRequest
from onnxslim.exits.training import ExitTraining
from onnxslim.graph.rewrite import Rewriter
from onnxslim.passes.finetune import Finetune
from onnxslim.pipeline.floors import Floors
from onnxslim.pipeline.options import at_least, interval, one_of, option
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.pipeline.raising import run_raised
from onnxslim.pipeline.targets import Trait
from onnxslim.pipeline.trained_pass import TrainedPass
from onnxslim.records import Fidelity, PassResult
from onnxslim.services.calibration import Calibration

_TARGET = 0.995
_AUTO = "auto"
_AIMS = ("target", "max-drop", "latency", "threshold")

_WITHOUT_LABELS = (
    "max-drop needs labels: give the calibration samples an array `label`, or labelled samples as "
    "--eval; without labels, give target"
)


@dataclass(frozen=True)
class InjectExits(TrainedPass):
    """Let easy samples leave a classifier early, through exit heads, fitted or trained."""

    name: ClassVar[str] = "inject-exits"
    examples: ClassVar[Mapping[str, str]] = {
        "simplify,inject-exits": "two exits at most, with the best promise that holds",
        "inject-exits:latency=0.7:head=mlp": "70 % of the mean latency",
        "inject-exits:finetune=3:joint=all": "exits and network are trained together first",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY

    at: tuple[str, ...] = option((), help="tensors to put exits at; auto: chosen by timing")
    count: int = option(2, interval(1, 4), "most exits, where they are chosen")
    target: float | None = option(
        None,
        interval(0, 1, open_left=True),
        "agreement with the network to promise; default: --min-agreement, or the most that the "
        f"samples can confirm, up to {_TARGET}",
    )
    max_drop: float | None = option(
        None,
        at_least(0),
        "instead: points of accuracy that may be lost, by labels; default: --max-drop",
    )
    latency: float | None = option(
        None,
        interval(0, 1, open_left=True),
        "instead: mean latency to reach, as a share",
    )
    threshold: tuple[float, ...] = option(
        (),
        interval(0, 1),
        "instead: the threshold of all exits, or one for each of at",
    )
    worst: float | None = option(
        None,
        at_least(1),
        "most latency of samples that never leave, as share of the original's",
    )
    confidence: str = option(
        "max-probability",
        one_of("max-probability", "entropy", "margin"),
        "measure of the confidence of a head, from 0 to 1",
    )
    head: str = option("linear", one_of("linear", "mlp"), "mlp: adds random hidden units")
    output: str | None = option(None, help="output with the class scores; default: found")
    batch: str = option(
        "split",
        one_of("all", "split"),
        "all: a batch leaves as a whole; split: sample by sample",
    )
    mode: str = option(
        "exit", one_of("exit", "anytime"), "anytime: skip nothing, return the scores of all exits"
    )
    report_exit: bool = option(
        default=False, help="add an output with the number of the exit that each sample took"
    )
    joint: str = option(
        "heads",
        one_of("heads", "all"),
        "what finetune trains: the heads, or the network with them",
    )
    exit_loss: float = option(
        1.0,
        interval(0, 100, open_left=True),
        "weight of the loss of each exit in joint=all, where that of the network counts once",
    )

    def __post_init__(self) -> None:
        """Check that options fit together.

        Raises:
            UsageError: two options exclude each other.
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
        given = {spec.name for spec, _ in self.set_options()} & {"joint", "exit-loss"}
        if self.finetune is None and given:
            raise UsageError(f"`{min(given)}` of `{self.name}` is for use with `finetune=EPOCHS`.")

    @property
    def trains(self) -> bool:
        """Whether exits are trained."""
        return self.finetune is not None

    def unrolled(self) -> tuple[Pass, ...]:
        """Itself: exits are trained between their choice and that of thresholds."""
        return (self,)

    def needs_calibration(self) -> str | None:
        """Heads and thresholds come from samples."""
        return "to fit heads to the network's answers, and to confirm thresholds"  # declines 1

    def writes(self) -> tuple[Trait, ...]:
        """An If around what a sample that leaves does without; `anytime` skips nothing."""
        return () if self.mode == "anytime" else (Trait.BRANCHES,)

    def requires(self, graph: gs.Graph, context: Context) -> None:
        """Refuse models without class scores, and aims that cannot be judged.

        Raises:
            NotApplicable: saying why.
        """
        assert context.calibration is not None
        if self.worst is not None and context.stopwatch is None:
            raise NotApplicable(
                "worst needs models to be timed: leave out --no-latency, or leave out worst"
            )
        scores_named(graph, self.output, context.output_kinds)  # declines 2, 4, 5
        promise = self._promise(context)
        if promise is not None and context.model is not None:
            judged = self._labelled(promise, context) or context.calibration
            held = judged.parts(2)[1].extent(context.model).samples
            why = unconfirmable(promise, held)
            if why is not None:
                raise NotApplicable(why)  # declines 1

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Choose exits, confirm them on held-out samples, and insert them."""
        return run_raised(graph, context, MIN_OPSET, "exits", self._injected)  # declines 5

    def _injected(self, graph: gs.Graph, context: Context) -> PassResult:
        injection = ExitInjection(Rewriter(graph), context, self._request(context))
        result = injection.run()
        is_settled = self.at and (self.threshold or self.mode == "anytime") and self.worst is None
        if injection.plan is None or context.stopwatch is None or is_settled:
            return result
        return replace(result, resolved=str(self._explicit(injection.plan)))

    def _request(self, context: Context) -> ExitRequest:
        """The options, with the promise that is made where nothing else is aimed at."""
        promise = self._promise(context)
        return ExitRequest(
            at=self.at,
            count=self.count,
            promise=promise,
            labelled=self._labelled(promise, context),
            latency=self.latency,
            threshold=self.threshold,
            worst=self.worst,
            confidence=Confidence(self.confidence),
            hidden=self.head == "mlp",
            output=self.output,
            batch=BatchMode(self.batch),
            anytime=self.mode == "anytime",
            report=self.report_exit,
            training=self._lessons(context),
        )

    def _lessons(self, context: Context) -> ExitTraining | None:
        """How exits are trained; None: they are not."""
        if self.finetune is None:
            return None
        how = self._training(self.finetune)
        assert context.trainer is not None
        assert isinstance(how, Finetune)
        return ExitTraining(
            context.trainer,
            how.request(),
            how.accepting(context),
            joint=self.joint == "all",
            weight=self.exit_loss,
        )

    def _promise(self, context: Context) -> Promise | None:
        """What is promised of new samples; None where the pass aims at something else.

        Raises:
            NotApplicable: `max-drop` is given, and no samples have labels.
        """
        if self.latency is not None or self.threshold or self.mode == "anytime":
            return None
        if self.target is not None:
            return AgreementPromise(self.target)
        # the promise that the pass makes by itself is stronger than a default floor
        floors = Floors() if context.floors.is_default else context.floors
        points = floors.max_drop if self.max_drop is None else self.max_drop
        if points is not None and self._has_labels(context):
            return AccuracyPromise(points)
        if self.max_drop is not None:
            raise NotApplicable(_WITHOUT_LABELS)  # declines 1
        if floors.min_agreement is not None:
            return AgreementPromise(floors.min_agreement)
        assert context.calibration is not None
        assert context.model is not None
        held = context.calibration.parts(2)[1].extent(context.model).samples
        return strongest_agreement(held, _TARGET)

    def _has_labels(self, context: Context) -> bool:
        """Whether the calibration samples or other samples have labels."""
        return _are_labelled(context.calibration, context) or _are_labelled(
            context.labelled, context
        )

    def _labelled(self, promise: Promise | None, context: Context) -> Calibration | None:
        """Other samples with labels, for a promise that needs some; else None.

        The evaluation samples are the second choice, after calibration samples with labels: they
        then are no longer data that nothing was chosen by.
        """
        if not isinstance(promise, AccuracyPromise) or _are_labelled(context.calibration, context):
            return None
        return context.labelled

    def _explicit(self, plan: ExitPlan) -> InjectExits:
        """The pass with the tensors and thresholds that were chosen by measuring time."""
        return replace(
            self,
            at=tuple(candidate.point.tensor for candidate in plan.candidates),
            threshold=() if self.mode == "anytime" else plan.thresholds,
            target=None,
            max_drop=None,
            latency=None,
            worst=None,
            count=type(self).count,
        )


def _are_labelled(samples: Calibration | None, context: Context) -> bool:
    if samples is None or context.model is None:
        return False
    return samples.extent(context.model).is_labelled

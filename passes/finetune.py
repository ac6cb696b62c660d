"""Let a model learn from the one that it was made of, on samples without labels.

Rewrite:
    `--passes simplify,prune-channels:macs=0.3,finetune --calib train.npz`. Nodes, names, opset and
    metadata stay. Stored weights get new values, within what the graph shows that they obey: zeros
    stay zero, elements of few values stay equal to each other, codes of a table stay and its values
    learn, integers on a grid move and the steps of the grid learn, numbers on powers of two and
    fixed-point numbers move among those. Constants that are no weights stay: moving averages of a
    normalization, masks, sizes, thresholds, tables of sinusoids.

    With `zeros=move` as many elements of a weight are zero as before, but which ones is decided
    anew by the size of floats that learn under the zeros. With `zeros=grow` no element is zero at
    first, and more and more of those that cost the loss least become so, until there are as many as
    before after 60 % of the training; only epochs after that can be kept. With `zeros=release`
    zeros learn like other elements. `start` gives other values to start from, within what the file
    obeys: those of the teacher, random ones, or those of another file.

    With `regularizer=group-lasso` (or l1) groups of elements shrink to zero beside the loss, by a
    proximal step after each step of the optimizer; `prune-channels` finds them. The model may be
    its own teacher then, and the last values are kept, better or not.

    With `codes=move` codes of tables follow floats that learn: each element takes the nearest value
    of its table. With `codes=grow` a growing share of the elements, the largest first, takes its
    value and stays, and the others are floats until their turn comes; only epochs after which all
    are on their values can be kept. `rounding=stochastic` takes one of the two neighbours by chance
    while training; what is measured and stored is nearest.

    Exits of `inject-exits` learn together with the network, by the sum of the losses of all; what
    is trained is a twin in which no sample leaves. Their thresholds are chosen anew, on samples
    that were not trained on: the strictest at which samples take no more work than before. The
    share of samples that gets the teacher's answer is confirmed to be what it was; where it is not,
    the loosest thresholds are taken that keep it. Such a model may learn from its own network.

    The teacher is the model before the first lossy step of the pipeline, or `teacher=A+B`, whose
    outputs are averaged. Lossy steps right before this pass are judged together with it: they may
    fall below the floor that the model holds after training. Where all of them together do not hold
    it, they are judged one by one, without training.

Why it is correct:
    It is not exact: it brings the outputs nearer to the teacher's. The loss goes by what an output
    is: for scores of classes and tokens the Kullback-Leibler divergence of rows, softened by
    `temperature` T and times T² (a classifier is sure of what it was trained on: without, little is
    left to learn); for embeddings squares and the cosine of rows; for other values squares by their
    variance, each part of a joined output alone. Positions of padding do not count. A fifth of the
    samples is held back; after each epoch the model is measured on them as steps are, and the best
    values are kept. What came in is the first candidate, so nothing gets worse.

Declines when:
    1. The model is the teacher itself, and no regularizer is given: there is nothing to learn.
    2. No stored weight learns, or all are left out by `only` and `freeze`.
    3. No epoch was better than what came in, on the samples held back, and no regularizer is given.
    4. Exits would give the teacher's answer less often, whatever their thresholds; or other tools
       wrote them in another way.

Fidelity:
    LOSSY. Zeros, ties, grids and shapes stay, and codes their form: the file takes the same bytes.
    With `zeros=release` it takes as many as without zeros.

Reference:
    Hinton et al., arXiv:1503.02531 (distillation); Han et al., arXiv:1510.00149, section 3 (tables
    that learn by summed gradients); Bengio et al., arXiv:1308.3432 (straight-through estimators);
    Esser et al., arXiv:1902.08153 (learned steps); Courbariaux et al., arXiv:1511.00363, Rastegari
    et al., arXiv:1603.05279, and Zhu et al., arXiv:1612.01064 (signs and ternary weights that
    move); Zhou et al., arXiv:1702.03044 (a growing share); Gupta et al., arXiv:1502.02551
    (stochastic rounding); Guo et al., arXiv:1608.04493 (zeros that move); Zhu, Gupta,
    arXiv:1710.01878, and LeCun et al. 1990 (zeros that grow); Han et al., arXiv:1607.04381 (zeros
    that are released); Frankle, Carbin, arXiv:1803.03635 (lottery tickets); Wen et al.,
    arXiv:1608.03665 (group lasso by filter, channel, shape, depth); Liu et al., arXiv:1810.05270
    (training from scratch); Smith, arXiv:1506.01186, arXiv:1708.07120 (range test, one cycle). We
    differ: constraints are read from the file, whatever made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxslim.constraints.read import Constraints, read_constraints
from onnxslim.constraints.storing import are_equal, store_values
from onnxslim.errors import NotApplicable
from onnxslim.exits.retraining import RetrainedExits, retrained_exits, whole_network
from onnxslim.exits.training import ExitTraining
from onnxslim.exits.twin import ExitTwin, inserted_exits, twin_of
from onnxslim.graph.ir import node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.pipeline.layer_filter import FilteredPass, LayerFilter, only_option
from onnxslim.pipeline.options import Interval, at_least, one_of, option
from onnxslim.pipeline.passes import Context
from onnxslim.records import Fidelity, PassResult
from onnxslim.services.training import (
    AUGMENTATIONS,
    CodeMovement,
    CodeRounding,
    Loss,
    Optimizer,
    Penalty,
    TrainingOutcome,
    TrainingRequest,
    WeightGroup,
    ZeroMovement,
)

_NO_SAMPLES = "it needs samples to train on: give --calib"


@dataclass(frozen=True)
class Finetune(FilteredPass):
    """Let a model learn from the one that it was made of, on samples without labels."""

    name: ClassVar[str] = "finetune"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    idempotent: ClassVar[bool] = False
    settles: ClassVar[bool] = False
    mends: ClassVar[bool] = True
    examples: ClassVar[Mapping[str, str]] = {
        "simplify,prune-channels:macs=0.3,finetune": "the model before is the teacher",
        "simplify,ternarize-weights,finetune:codes=move": "tables learn, codes move",
        "finetune:regularizer=group-lasso,prune-channels:macs=0.5": "filters become zero, and go",
    }

    epochs: float = option(
        3.0, Interval(0, 10_000, open_left=True), "times through the samples; parts of one count"
    )
    minutes: float | None = option(
        None, Interval(0, 100_000, open_left=True), "the most time; default: as the epochs take"
    )
    teacher: tuple[str, ...] = option(
        (), help="ONNX files to learn from; default: the model before the first lossy step"
    )
    loss: str = option(
        "distill",
        one_of(*Loss),
        "distance from the teacher, cross-entropy of labels, or both",
    )
    alpha: float = option(0.5, Interval(0, 1), "share of the teacher in loss=both")
    temperature: float | None = option(
        None,
        Interval(0.1, 100),
        "by which scores are divided before they are compared; default: 4, for tokens 1",
    )
    learning_rate: float | None = option(
        None, Interval(0, 10, open_left=True), "the largest; default: found by a range test"
    )
    optimizer: str | None = option(
        None,
        one_of(*Optimizer),
        "adam, or sgd with momentum; default: sgd for zeros=move and regularizers, else adam",
    )
    batch: int = option(32, at_least(1), "samples of a step")
    patience: int | None = option(
        None, at_least(1), "epochs without a better model, after which training ends"
    )
    features: tuple[str, ...] = option(
        (), help="inner tensors to match as well, by their names; `*` and `?` match"
    )
    augment: tuple[str, ...] = option(
        (), one_of(*AUGMENTATIONS), "how pictures are changed; the teacher sees them changed, too"
    )
    augment_strength: float = option(
        1.0,
        Interval(0, 4, open_left=True),
        "times the most that `augment` does: at 1 an eighth of the size for shift",
    )
    zeros: str = option(
        "stay",
        one_of(*ZeroMovement),
        "stay; move: as many, chosen anew; grow: none first, then more; release: learn, too",
    )
    codes: str = option(
        "stay",
        one_of(*CodeMovement),
        "of tables: stay; move to the nearest value; or grow: the largest first, others as floats",
    )
    rounding: str = option(
        "nearest", one_of(*CodeRounding), "in training: nearest, or stochastic: by chance"
    )
    regularizer: str = option(
        "none", one_of(*Penalty), "what shrinks to zero while training; the last values are kept"
    )
    groups: str = option(
        "filter", one_of(*WeightGroup), "with group-lasso: elements that become zero together"
    )
    decay: float = option(
        1.0,
        Interval(0, 1000, open_left=True),
        "times the mean length of its weight's groups that a group shrinks where nothing holds it",
    )
    start: str = option(
        "given",
        help="values to start from: given, those of the original, random, or of an ONNX file",
    )
    checkpoint: str | None = option(
        None, help="file that each epoch is saved to; training goes on from it where it is there"
    )
    only: tuple[str, ...] = only_option("layers to train")
    freeze: tuple[str, ...] = option(
        (), help="layers to leave as they are, by the same names as `only`"
    )

    def selection(self, context: Context) -> LayerFilter:
        """The layers that `only` and `freeze` select."""
        return LayerFilter(self.only, self.freeze, context.names)

    def targets(self, graph: gs.Graph) -> tuple[str, ...]:
        """The nodes that read what may learn."""
        weights = read_constraints(graph).weights
        return tuple(dict.fromkeys(reader for item in weights for reader in item.readers))

    @property
    def trains(self) -> bool:
        """It does."""
        return True

    def needs_calibration(self) -> str | None:
        """Training takes samples."""
        return "to train on"

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Train, and write the values that are better than what came in."""
        rw = Rewriter(graph)
        exits: RetrainedExits | None = None
        try:
            constraints = read_constraints(graph)
            twin = None if context.model is None else twin_of(context.model)
            if twin is None:
                found = self._trained(constraints, context)
            else:
                exits = self._with_exits(twin, context)
                found = exits.outcome
        except NotApplicable as reason:
            rw.decline(str(reason))
            return rw.result()
        store_values(rw, constraints, found.values)
        if exits is not None:
            pairs = zip(inserted_exits(graph), exits.thresholds, strict=True)
            for number, (item, threshold) in enumerate(pairs):
                item.set_threshold(rw, threshold)
                rw.note(node_label(item.node), exits.words(number), Fidelity.LOSSY)
        return replace(rw.result(), notes=(found.summary(self.name), *found.notes))

    def _trained(self, constraints: Constraints, context: Context) -> TrainingOutcome:
        """New values.

        Raises:
            NotApplicable: there is nothing to learn, or nothing was learned.
        """
        trainer, model = context.trainer, context.model
        if trainer is None or model is None:
            raise NotApplicable(_NO_SAMPLES)
        teachers = self._teachers(context)
        may_be_same = bool(self.teacher) or self.regularizer != Penalty.NONE
        is_same = not may_be_same and are_equal(constraints, read_constraints(teachers[0].graph))
        if is_same:
            raise NotApplicable("the model is its own teacher: no lossy step came before")
        found = trainer.train(model, teachers, self.request(), self.accepting(context))
        if not found.values:
            raise NotApplicable(found.nothing)  # declines 3
        return found

    def _teachers(self, context: Context) -> list[Model]:
        """Whom the model learns from; of those with exits the whole network."""
        assert context.model is not None
        found = [Model.load(path) for path in self.teacher]
        return list(map(whole_network, found or [context.reference or context.model]))

    def _with_exits(self, twin: ExitTwin, context: Context) -> RetrainedExits:
        """New values and thresholds of a model with exits, which may learn from its own network.

        Raises:
            NotApplicable: nothing was learned, or answers would be less often the teacher's.
        """
        assert context.model is not None
        if context.trainer is None:
            raise NotApplicable(_NO_SAMPLES)
        how = ExitTraining(context.trainer, self.request(), self.accepting(context))
        return retrained_exits(twin, context.model, self._teachers(context), how, context)

    def accepting(self, context: Context) -> Callable[[Sequence[str]], bool]:
        """Whether a weight learns, by the labels of the nodes that read it."""
        selection = self.selection(context)
        wanted, thawed = replace(selection, skip=()), replace(selection, only=())

        def accepts(readers: Sequence[str]) -> bool:
            return any(map(wanted.accepts, readers)) and all(map(thawed.accepts, readers))

        return accepts

    def request(self) -> TrainingRequest:
        """How to train."""
        return TrainingRequest(
            Loss(self.loss),
            self.alpha,
            self.temperature,
            self.epochs,
            self.minutes,
            self.learning_rate,
            None if self.optimizer is None else Optimizer(self.optimizer),
            self.batch,
            self.patience,
            self.checkpoint,
            self.features,
            self.augment,
            self.augment_strength,
            zeros=ZeroMovement(self.zeros),
            codes=CodeMovement(self.codes),
            rounding=CodeRounding(self.rounding),
            regularizer=Penalty(self.regularizer),
            groups=WeightGroup(self.groups),
            decay=self.decay,
            start=self.start,
        )

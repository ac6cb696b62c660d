"""Put small blocks in the place of convolutions, fitted to what those returned.

Rewrite:
    `--passes simplify,substitute-blocks:block=separable --calib samples.npz`. A convolution of a
    kernel of several positions, strided, dilated or grouped too, becomes a block with the same
    input and output; with `convolutions=2` so does a run of two, with what lies between them.
    `block` says which:
    `separable` (MobileNet V1): `expand` filters for each channel, then a pointwise Conv;
    `mobilenet-v2`: `expand` times the channels, Relu, a filter for each, Relu, a pointwise Conv;
    `fire` (SqueezeNet): `squeeze` times as many channels as outputs, Relu, then half of the outputs
    from one position and half from the kernel;
    `shuffle` (ShuffleNet): a pointwise Conv in `groups` to `squeeze` times as many channels as
    outputs, Relu, channels shuffled, a filter for each, a pointwise Conv in groups;
    `shuffle-v2`: a separable branch and one of `squeeze` times the outputs, half of the outputs
    from each;
    `xception`: a pointwise Conv, then a filter for each output;
    `effnet`: `squeeze` times as many channels as outputs, filters along one axis and then along the
    other, with LeakyRelu, a pointwise Conv;
    `grouped`: a Conv in `groups`, then a pointwise Conv;
    `auto`: for each place what gains most. Where input and output are alike, `mobilenet-v2` and
    `shuffle` add the input.
    With `blockwise=EPOCHS`, each block is trained alone after it was fitted; with
    `finetune=EPOCHS`, all together at the end.

Why it is correct:
    It is not exact. A position of a block's output depends on one patch of its input, so a block is
    fitted to patches from the samples: the inputs as the model changed so far gives them, the
    outputs of the original model. Filters and directions start from the terms of the weight that
    carry most of the output under the moments of the inputs, in closed form; directions that go
    below zero stand before a Relu with both signs. The last Convs are least squares, before and
    after a few steps of descent over all weights, which stay where they lower the error. What a
    block loses is measured on samples held back. Block by block: targets are always the original's,
    so that a block makes up for those before it.

Declines when:
    1. The kernel has one position, or a group has a single input or output (a depthwise Conv).
    2. The weight is computed at run time, quantized, stored as a codebook, shared, or in a body.
    3. A kind cannot do what the place does: `fire` where pads do not keep sizes, `effnet` where one
       kernel axis alone is longer than 1.
    4. The block has no fewer weights than what it would replace.
    5. The block is not faster as measured on this machine at the real shapes (with `goal=bytes`:
       not smaller; without measuring: has no fewer multiply-accumulates).
    6. The block keeps less than `energy` of the output's variance, where no budget is given.
    7. There are no calibration samples.

Fidelity:
    LOSSY.

Reference:
    Howard et al., arXiv:1704.04861; Sandler et al., arXiv:1801.04381; Iandola et al.,
    arXiv:1602.07360; Zhang et al., arXiv:1707.01083; Ma et al., arXiv:1807.11164; Chollet,
    arXiv:1610.02357; Freeman et al., arXiv:1801.06434; Ioannou et al., arXiv:1605.06489. Guo et
    al., arXiv:1808.05517 (a convolution as depthwise separable ones); Crowley et al.,
    arXiv:1711.02613 (blocks replaced, then distilled). We differ: weights come from the network
    that is there, in closed form, and a block stays only where it is measured to pay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import linear_layers
from onnxslim.errors import NotApplicable
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.budgeted_pass import BudgetedPass, remaining_share_option
from onnxslim.pipeline.layer_filter import FilteredPass, only_option, skip_option
from onnxslim.pipeline.options import at_least, interval, one_of, option
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.policy import Goal
from onnxslim.pipeline.trained_pass import EPOCHS, TrainedPass
from onnxslim.records import Fidelity, PassResult
from onnxslim.services.training import TrainingRequest
from onnxslim.substitution.choices import BlockEntry, planned_blocks
from onnxslim.substitution.distilling import BlockTraining
from onnxslim.substitution.kinds.table import KINDS
from onnxslim.substitution.run import Substitution, SubstitutionOptions

_AUTO: Final = "auto"


@dataclass(frozen=True)
class SubstituteBlocks(TrainedPass, BudgetedPass, FilteredPass):
    """Put small blocks in the place of convolutions, fitted to what those returned."""

    name: ClassVar[str] = "substitute-blocks"
    examples: ClassVar[Mapping[str, str]] = {
        "simplify,substitute-blocks:macs=0.3": "the blocks that cost least, for each convolution",
        "simplify,substitute-blocks:block=separable:energy=0.5:finetune=3": "one kind, trained",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    idempotent: ClassVar[bool] = False
    budgets: ClassVar[tuple[str, ...]] = ("latency", "macs", "bytes")
    alternatives: ClassVar[tuple[str, ...]] = (*budgets, "plan")
    scale: ClassVar[Mapping[str, tuple[float, float]]] = {"energy": (1.0, 0.3)}
    strengths_of_layers: ClassVar[tuple[str, ...]] = ("plan",)

    block: str = option(_AUTO, one_of(_AUTO, *KINDS), "what a convolution becomes")
    energy: float = option(
        0.9,
        interval(0, 1, open_left=True),
        "share of a place's output variance that a block keeps at least, where no budget is given",
    )
    latency: float | None = remaining_share_option(
        "budget: milliseconds, as a share of what all places take"
    )
    macs: float | None = remaining_share_option(
        "budget: multiply-accumulates, as a share of what all places take"
    )
    bytes_: float | None = remaining_share_option(
        "budget: bytes of weights, as a share of what all places take"
    )
    expand: int | None = option(
        None, at_least(1), "of separable and mobilenet-v2: maps for each channel of the input"
    )
    squeeze: float | None = option(
        None,
        interval(0, 4, open_left=True),
        "of fire, shuffle, shuffle-v2 and effnet: inner channels for each output",
    )
    groups: int | None = option(None, at_least(1), "of grouped and shuffle: groups of channels")
    convolutions: int = option(1, at_least(1), "in a row that one block replaces at most")
    blockwise: float | None = option(
        None, EPOCHS, "epochs of training of each block alone, before the next one is fitted"
    )
    goal: str = option(
        "auto",
        one_of("auto", "latency", "bytes"),
        "what a block must make less, as measured; auto: bytes with `--goal bytes`, else latency",
    )
    plan: tuple[str, ...] = option(
        (), BlockEntry(), "exactly these blocks, without measuring; reports spell it"
    )
    only: tuple[str, ...] = only_option("convolutions to replace")
    skip: tuple[str, ...] = skip_option("convolutions")

    @property
    def trains(self) -> bool:
        """Whether blocks are trained alone."""
        return self.blockwise is not None

    def needs_calibration(self) -> str | None:
        """Blocks are fitted to samples."""
        return "to fit blocks to"

    def requires(self, graph: gs.Graph, context: Context) -> None:
        """Refuse runs without samples, and patterns that match no convolution.

        Raises:
            NotApplicable: saying what to give.
            UsageError: naming the pattern that matches nothing.
        """
        if context.calibration is None or context.model is None:
            raise NotApplicable("it needs calibration samples to fit blocks to: give --calib")
        self.check_stopwatch(context)
        self.check_patterns(context, self.targets(graph))

    def targets(self, graph: gs.Graph) -> tuple[str, ...]:
        """The convolutions."""
        return tuple(layer.name for layer in linear_layers(graph)[0] if layer.node.op == "Conv")

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Choose a block for each place, fit it, put it into the graph."""
        substitution = Substitution(Rewriter(graph), context, self._options(context))
        substitution.run()
        result = substitution.rw.result()
        if not (substitution.plan and substitution.is_timed):
            return result
        unset = {
            spec.field: spec.default
            for spec in self.options()
            if spec.name
            in ("block", "energy", *self.budgets, "goal", "expand", "squeeze", "groups")
        }
        planned = replace(self, **{**unset, "plan": tuple(substitution.plan)})  # type: ignore[arg-type]
        return replace(result, resolved=str(planned))

    def _options(self, context: Context) -> SubstitutionOptions:
        sizes = {"expand": self.expand, "squeeze": self.squeeze, "groups": self.groups}
        is_auto = self.goal == "auto"
        training = None
        if self.blockwise is not None:
            training = BlockTraining(TrainingRequest(epochs=self.blockwise))
        return SubstitutionOptions(
            kinds=tuple(KINDS) if self.block == _AUTO else (self.block,),
            sizes={name: value for name, value in sizes.items() if value is not None},
            every_size=self.block == _AUTO or self.budget is not None,
            energy=self.energy,
            budget=self.budget,
            for_bytes=context.goal is Goal.BYTES if is_auto else self.goal == "bytes",
            most=self.convolutions,
            places=self.selection(context),
            plan=planned_blocks(self.plan),
            training=training,
        )

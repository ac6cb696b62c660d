"""Remove whole channels, wherever they go through the graph, and refit the layers that read them.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[1, 2] x) => (float[1, 1] y)
        <float[2, 2] w = {1, 9, 2, 9}, float[2, 1] v = {1, 3}> {
        h = MatMul (x, w)
        r = Relu (h)
        y = MatMul (r, v)
    }
    ```
    becomes, with half of the channels removed,
    ```
    <opset_import: ["" : 17]>
    after (float[1, 2] x) => (float[1, 1] y)
        <float[2, 1] w = {9, 9}, float[1, 1] v = {3}> {
        h = MatMul (x, w)
        r = Relu (h)
        y = MatMul (r, v)
    }
    ```
    The pass removes channels of Conv, ConvTranspose, Gemm, MatMul and embeddings, and heads of
    attention. All that has an entry for each channel is cut with them: weights, biases,
    normalization parameters, constants, shapes, splits, indices, groups. `onnxslim groups MODEL`
    shows which layers share channels, which channels must stay, and why.

Why it is correct:
    Removing channels is not exact, but cutting them out is: to rounding, the smaller model returns
    what the model returns with zero columns, for the channels that leave, in the layers that read
    them. (LRN is the exception: channels that stay get other neighbours; the report says so.)
    With calibration data, these layers are refitted in closed form: if x are the channels that
    stay, as the smaller model produces them, and y is the output of the layer in the original
    model, the new weight is E[y xᵀ]·E[x xᵀ]⁻¹, and the bias corrects the mean.

Declines when:
    1. A channel reaches an output of the model (or meets the cache of keys or values that is an
       input, without `change-signature`), an operator that is not followed, or one that mixes
       it with others (Softmax, LayerNormalization); the group keeps the channel, and the report
       says why.
    2. `only` matches no layer that writes the group, or `skip` matches one.
    3. `criterion` needs data, and there are no calibration samples.
    4. The budget is `macs` or `latency`, and the sizes or times of layers are not known.

Fidelity:
    LOSSY.

Reference:
    Li et al., arXiv:1608.08710 (l1); Hu et al., arXiv:1607.03250 (APoZ); Molchanov et al.,
    arXiv:1611.06440 (Taylor, mean activation); Luo, Wu, arXiv:1706.05791 (entropy); Luo, Wu, Lin,
    arXiv:1707.06342 (ThiNet); He, Zhang, Sun, arXiv:1707.06168 (LASSO and least squares); He et
    al., arXiv:1811.00250 (FPGM); Liu et al., arXiv:1708.06519 (BatchNorm scales); LeCun, Denker,
    Solla (1990); Hassibi, Stork (1993); Fang et al., arXiv:2301.12900 (dependencies). We differ:
    `taylor` and `obd` refer to the outputs of the layers that read a channel, not to the loss of
    the network, as there are no labels and no gradients; `obs` works on groups of columns; groups
    are weighted by their measured effect on the outputs of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxslim.channels.alignment import UNMEASURED
from onnxslim.channels.criteria import CRITERIA, OPTION_HELP, criterion_of
from onnxslim.channels.groups import channel_groups
from onnxslim.channels.run import PruneOptions, Pruning
from onnxslim.channels.unpruned import unpruned_layers
from onnxslim.errors import UsageError
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.budgeted_pass import (
    DEFAULT_BUDGET,
    BudgetedPass,
    leaving_share_option,
    remaining_share_option,
)
from onnxslim.pipeline.layer_filter import FilteredPass, only_option, skip_option
from onnxslim.pipeline.options import Assigned, OptionValue, at_least, one_of, option
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.patterns import matches
from onnxslim.pipeline.trained_pass import TrainedPass
from onnxslim.records import Fidelity, PassResult
from onnxslim.services.layer_names import LayerNames

_PLAN = Assigned(at_least(1), whole=True)


@dataclass(frozen=True)
class PruneChannels(TrainedPass, BudgetedPass, FilteredPass):
    """Remove whole channels and refit the layers that read them."""

    name: ClassVar[str] = "prune-channels"
    examples: ClassVar[Mapping[str, str]] = {
        "simplify,prune-channels:macs=0.5": "half the multiply-accumulates",
        "prune-channels:latency=0.5:steps=2": "half the measured latency, in two steps",
        "prune-channels:ratio=0.3:skip='conv1*'": "30 % of the channels, those of conv1 excepted",
    }
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    idempotent: ClassVar[bool] = False
    strengths: ClassVar[Mapping[str, tuple[OptionValue, ...]]] = {"ratio": (0.25, 0.5, 0.75)}
    scale: ClassVar[Mapping[str, tuple[float, float]]] = {"ratio": (0.0, 0.95)}
    strengths_of_layers: ClassVar[tuple[str, ...]] = ("plan",)
    alternatives: ClassVar[tuple[str, ...]] = (*BudgetedPass.budgets, "plan")

    ratio: float | None = leaving_share_option(
        f"share of the channels to remove; {DEFAULT_BUDGET.amount} where no budget is given"
    )
    macs: float | None = remaining_share_option("share of the multiply-accumulates that may remain")
    latency: float | None = remaining_share_option(
        "share of the latency that may remain, as measured"
    )
    bytes_: float | None = remaining_share_option("share of the file's bytes that may remain")
    criterion: str = option(
        "auto",
        one_of("auto", *CRITERIA),
        OPTION_HELP,
    )
    scope: str = option(
        "auto",
        one_of("auto", "layer", "global"),
        "layer: every group loses the same share; global: groups lose by their effect on the "
        "output; auto: global with calibration samples, layer without",
    )
    reconstruct: bool = option(
        default=True, help="refit the layers that read pruned channels; needs calibration samples"
    )
    align: int | None = option(
        None,
        at_least(1),
        "channels of a layer stay a multiple of it; by default the multiple that runs fastest here",
    )
    steps: int = option(
        1, at_least(1), "number of times to remove and refit; finetune trains in between"
    )
    min_: int = option(1, at_least(1), "least number of channels that a layer keeps")
    only: tuple[str, ...] = only_option("layers to shrink")
    skip: tuple[str, ...] = skip_option()
    change_signature: bool = option(
        default=False,
        help="inputs and outputs that hold keys and values of earlier positions may lose heads",
    )
    plan: tuple[str, ...] = option(
        (),
        _PLAN,
        "number of units that a group keeps, as 'LAYER=COUNT'; in place of a budget",
    )

    def __post_init__(self) -> None:
        """Check options against each other.

        Raises:
            UsageError: two budgets, or training between steps towards a plan.
        """
        super().__post_init__()
        if self.plan and self.finetune is not None and self.steps > 1:
            raise UsageError(
                f"`{self.name}` with `plan` has no steps to train between: leave out `steps`."
            )

    def needs_calibration(self) -> str | None:
        """Some criteria look at data."""
        if not criterion_of(self.criterion, has_data=False).needs_data:
            return None
        others = ", ".join(name for name, other in CRITERIA.items() if not other.needs_data)
        return f"for criterion {self.criterion}; {others} need none"

    def requires(self, graph: gs.Graph, context: Context) -> None:
        """Refuse patterns that match no layer, and a budget without a clock.

        Raises:
            NotApplicable: saying what to give.
        """
        self.check_stopwatch(context)
        if self.only or self.skip or self.plan:
            channels = channel_groups(graph, changes_signature=self.change_signature)
            writers = [member.label for member in channels.trace.writers]
            unpruned = [skip.node for skip in unpruned_layers(graph, channels)]
            self.check_patterns(context, writers, unpruned)

    def targets(self, graph: gs.Graph) -> tuple[str, ...]:
        """The groups that have channels to remove."""
        channels = channel_groups(graph, changes_signature=self.change_signature)
        return tuple(group.name for group in channels.groups if len(channels.free(group)))

    @property
    def stage_count(self) -> int:
        """See `TrainedPass`."""
        return self.steps

    def part(self, before: float, after: float) -> PruneChannels:
        """What remains after the share `after` of the way, as a share of what remains before.

        Multiples come last: rounded at each step, channels would leave too soon.
        """
        done = replace(super().part(before, after), steps=1)
        if after < 1:
            done = replace(done, align=1)
        return done if self.plan else done.on_the_way(before, after)

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Choose channels, refit the layers that read them, and cut the channels out."""
        pruning = Pruning(Rewriter(graph), context, self._options(context))
        result = pruning.run()
        again = self._without_timing(pruning)
        if again is None or not result.changed:
            return result
        return replace(result, resolved=str(again))

    def _without_timing(self, pruning: Pruning) -> PruneChannels | None:
        """The options that repeat the decisions made by timing; None if there were none."""
        if pruning.kept is None:
            return None if pruning.align is None else replace(self, align=pruning.align)
        plan = tuple(f"{name}={count}" for name, count in pruning.kept.items())
        align = self.align or pruning.align or UNMEASURED
        return replace(self, latency=None, align=align, plan=plan)

    def _options(self, context: Context) -> PruneOptions:
        has_data = context.calibration is not None
        spread = has_data if self.scope == "auto" else self.scope == "global"
        return PruneOptions(
            budget=self.budget or DEFAULT_BUDGET,
            criterion=criterion_of(self.criterion, has_data=has_data),
            spread=spread and not self.plan,
            reconstruct=self.reconstruct and has_data,
            align=self.align,
            steps=self.steps,
            min_channels=self.min_,
            layers=self.selection(context),
            plan=partial(self._kept, context.names) if self.plan else None,
            changes_signature=self.change_signature,
        )

    def _kept(self, names: LayerNames, label: str) -> float | None:
        """The number that `plan` gives for a layer; its names go before patterns."""
        entries = [_PLAN.split(entry) for entry in self.plan]
        own = names.of_layer(label)
        named = (count for name in own for pattern, count in entries if pattern == name)
        matched = (count for pattern, count in entries if any(matches(n, pattern) for n in own))
        return next(named, next(matched, None))

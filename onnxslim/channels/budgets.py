"""How far to go: a budget becomes a level on each order.

What a budget counts is added up over layers (`work`); time is measured on the whole model, and what
layers take alone only says where to look. What may change here: how a budget is searched for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxslim.channels.alignment import layer_milliseconds
from onnxslim.channels.groups import ChannelGroup, Channels, shrink
from onnxslim.channels.groups import channel_groups as follow_channels
from onnxslim.channels.removal_order import RemovalOrder
from onnxslim.channels.work import LevelChoice, LevelChooser, Work, channel_work
from onnxslim.errors import NotApplicable
from onnxslim.graph.counts import node_macs
from onnxslim.graph.ir import Node, walk_graphs
from onnxslim.graph.operands import const_array, is_present
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.lossy.budgeted_pass import Budget, known_macs
from onnxslim.services.stopwatch import Stopwatch

Mask = npt.NDArray[np.bool_]

_TRIALS: Final = 8  # whole models that are timed
_NEAR: Final = 0.95  # of a budget of latency: near enough
_AIM: Final = 0.98  # of it: what is aimed at, as times vary
_ROUNDING: Final = 1e-9
_NEW_TENSOR: Final = 64  # bytes of a file for a tensor's name, type and shape


def work_for(
    budget: Budget,
    channels: Channels,
    groups: Sequence[ChannelGroup],
    model: Model | None,
    *,
    refitted: bool,
) -> Work:
    """What the budget counts, layer by layer; of latency there is `time_work`.

    Args:
        budget: of channels, multiply-accumulates or bytes.
        channels: of the graph.
        groups: those that may lose channels; a ratio is of theirs.
        model: whose graph it is.
        refitted: layers that read channels may get a bias.

    Raises:
        NotApplicable: the size of a layer is not known.
    """
    if budget.kind == "ratio":
        return channel_work(channels, groups)
    assert model is not None
    if budget.kind == "macs":
        return _macs_work(channels, model.graph)
    return _bytes_work(channels, model, refitted=refitted)


def layer_nodes(channels: Channels) -> list[Node]:
    """All layers that channels go through, depthwise ones too."""
    trace = channels.trace
    nodes = [member.node for member in (*trace.writers, *trace.readers)]
    nodes += [node for node, _ in trace.channelwise if node.op in ("Conv", "ConvTranspose")]
    return list(dict.fromkeys(node for node in nodes if node.op != "Gather"))


def _macs_work(channels: Channels, graph: gs.Graph) -> Work:
    sizes = known_macs(layer_nodes(channels))
    # products of activations lose channels too; as they count in full, less is left than promised
    others = (node for own in walk_graphs(graph) for node in own.nodes if node not in sizes)
    fixed = sum(node_macs(node) or 0 for node in others)
    return Work.of(channels, {node: float(macs) for node, macs in sizes.items()}, fixed)


def _bytes_work(channels: Channels, model: Model, *, refitted: bool) -> Work:
    trace = channels.trace
    places = [(member.node, member.operand) for member in (*trace.writers, *trace.readers)]
    places += [(node, 1) for node, _ in trace.channelwise if node.op in ("Conv", "ConvTranspose")]
    users: dict[int, list[Node]] = {}
    sizes: dict[int, int] = {}
    for node, operand in dict.fromkeys(places):
        weight = const_array(node.inputs[operand])
        assert weight is not None
        sizes[id(node.inputs[operand])] = weight.nbytes
        users.setdefault(id(node.inputs[operand]), []).append(node)
    # a weight that several layers share is in the file once
    costs = {node: sizes[key] / len(nodes) for key, nodes in users.items() for node in nodes}
    fixed = float(model.file_bytes()) - sum(costs.values())
    if refitted:
        fixed += sum(_new_bias_bytes(channels))
    return Work.of(channels, costs, max(0.0, fixed))


def _new_bias_bytes(channels: Channels) -> Sequence[float]:
    """What the biases take that a refit gives to layers without one."""
    return [
        float(layer.groups * layer.rows * layer.holder.dtype.itemsize + _NEW_TENSOR)
        for layer in (member.layer for member in channels.trace.readers)
        if layer is not None and layer.bias is not None and not is_present(layer.node, layer.bias)
    ]


# ---------------------------------------------------------------------------- choices


def chosen(chooser: LevelChooser, budget: Budget, progress: float, *, spread: bool) -> LevelChoice:
    """The levels at `progress` of the way to a budget that is added up.

    Args:
        chooser: of the orders, over what the budget counts.
        budget: not of latency.
        progress: share of the way.
        spread: by what groups do to the output; else all lose the same share.

    Raises:
        NotApplicable: the budget cannot be reached.
    """
    if budget.kind == "ratio":
        if not spread:
            return chooser.uniform(budget.amount * progress)
        return _within(chooser, budget.remaining(progress), spread=True)
    least = chooser.most().cost / chooser.work.whole
    if least > budget.remaining() + _ROUNDING:
        raise _out_of_reach(budget, least)
    return _within(chooser, budget.remaining(progress), spread=spread)


def _within(chooser: LevelChooser, share: float, *, spread: bool) -> LevelChoice:
    enough = (share + _ROUNDING) * chooser.work.whole
    return chooser.path(enough) if spread else chooser.within(enough)


def _out_of_reach(budget: Budget, least: float) -> NotApplicable:
    # rounded up, so that what is named can be asked for
    possible = ceil(1000 * least) / 1000
    return NotApplicable(
        f"a budget of {budget} is out of reach: {possible:g} remains when "
        "all channels are gone that may leave; ask for more, or give layers free with min, skip "
        "and only"
    )


def planned(
    chooser: LevelChooser, kept_of: Callable[[RemovalOrder], float], progress: float = 1.0
) -> LevelChoice:
    """The levels at `progress` of the way to given numbers of units that stay."""
    return chooser.choice(
        [order.nearest(progress * (order.group.size - kept_of(order))) for order in chooser.orders]
    )


def time_work(channels: Channels, stopwatch: Stopwatch, model: Model) -> Work:
    """What each layer takes alone.

    Raises:
        RuntimeFailure: onnxruntime refuses a layer.
    """
    return Work.of(channels, layer_milliseconds(stopwatch, model, layer_nodes(channels)))


class LatencySearch:
    """Rungs at which the whole model, timed against the original, is fast enough.

    Args:
        stopwatch: of this machine.
        model: whose graph is uncut.
        spread: as in `chosen`.
        tell: what goes on, in words.
    """

    def __init__(
        self, stopwatch: Stopwatch, model: Model, *, spread: bool, tell: Callable[[str], None]
    ) -> None:
        self.stopwatch, self.model, self.spread, self.tell = stopwatch, model, spread, tell
        self._shares: dict[tuple[int, ...], float] = {}

    def chosen(self, chooser: LevelChooser, budget: Budget) -> LevelChoice:
        """The choice that loses least, of those tried, within the budget.

        Layers alone do not add up to the model: the share of their time to look at next comes from
        a line through the last measured points. At most `_TRIALS` models are timed.

        Raises:
            NotApplicable: none was fast enough.
        """
        left = budget.remaining()
        slow, fast, best = _Point(1.0, 1.0), None, None
        wished = left
        for _ in range(_TRIALS):
            choice = _within(chooser, wished, spread=self.spread)
            point = _Point(wished, self._share(choice, left))
            if point.measured <= left:
                best, fast = choice, point
                if point.measured > _NEAR * left:
                    break
            elif choice.levels == chooser.most().levels:
                slow = point
                break  # nothing more can leave
            else:
                slow = point
            wished = _next(slow, fast, _AIM * left)
        if best is None:
            raise _out_of_reach(budget, slow.measured)
        return best

    def _share(self, choice: LevelChoice, left: float) -> float:
        """Latency without what a choice removes, as a share of the original's."""
        known = self._shares.get(choice.levels)
        if known is not None:
            return known
        share = 1.0
        if choice.gone.any():
            share = 1 / self.stopwatch.pair(self.model, without(self.model, choice.gone)).ratio
        self.tell(f"latency {share:.3f} of the original, {left:.3f} is asked for")
        self._shares[choice.levels] = share
        return share


@dataclass(frozen=True)
class _Point:
    """A share of the layers' time that was looked for, and the share that the model then takes."""

    wished: float
    measured: float


def _next(slow: _Point, fast: _Point | None, aim: float) -> float:
    """Where to look next: on the line between too slow and fast enough, away from its ends."""
    if fast is not None:
        run, rise = slow.wished - fast.wished, slow.measured - fast.measured
        guess = fast.wished + run * (aim - fast.measured) / rise if rise > 0 else slow.wished
        return min(max(guess, fast.wished + 0.1 * run), slow.wished - 0.1 * run)
    run, rise = 1.0 - slow.wished, 1.0 - slow.measured
    guess = 1.0 - run * (1.0 - aim) / rise if rise > 0 else 0.0
    return min(max(guess, 0.25 * slow.wished), 0.9 * slow.wished)


def without(model: Model, gone: Mask) -> Model:
    """A copy of the model without some units."""
    copy = model.clone()
    rewriter = Rewriter(copy.graph)
    shrink(rewriter, follow_channels(copy.graph), gone)
    rewriter.result()
    return copy


def units_kept(choice: LevelChoice, orders: Sequence[RemovalOrder]) -> Mapping[str, int]:
    """How many units each group keeps of which some leave, by the group's name."""
    return {
        order.group.name: order.group.size - order.counts[level]
        for order, level in zip(orders, choice.levels, strict=True)
        if level
    }


__all__ = [
    "LatencySearch",
    "chosen",
    "layer_nodes",
    "planned",
    "time_work",
    "units_kept",
    "without",
    "work_for",
]

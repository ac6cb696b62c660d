"""From a budget to a level of the removal order of each group.

Channels, multiply-accumulates and bytes are added up over layers (see `work`). Time is measured on
the whole model; the times of single layers only say where to look.

Owns: what a budget counts, and the search for latency. Not here: the choice of levels for a given
cost (see `levels`).
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
from onnxslim.channels.levels import LevelChoice, LevelChooser
from onnxslim.channels.removal_order import RemovalOrder
from onnxslim.channels.work import Work, channel_work
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
_NEAR: Final = 0.95  # of a budget of latency: a choice this near is taken
_AIM: Final = 0.98  # of a budget of latency: the aim, as times vary
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
    """The cost that the budget counts, layer by layer; for latency see `time_work`.

    Args:
        budget: of channels, multiply-accumulates or bytes.
        channels: of the graph.
        groups: that may lose channels; a ratio counts their channels.
        model: of the graph.
        refitted: whether layers that read channels may get a new bias.

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
    """All layers that write, read or pass on channels, once each."""
    trace = channels.trace
    nodes = [member.node for member in (*trace.writers, *trace.readers)]
    nodes += [node for node, _ in trace.channelwise if node.op in ("Conv", "ConvTranspose")]
    return list(dict.fromkeys(node for node in nodes if node.op != "Gather"))


def _macs_work(channels: Channels, graph: gs.Graph) -> Work:
    sizes = known_macs(layer_nodes(channels))
    # products of activations shrink too; as they count in full, even less is left than the budget
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
    """The sizes in bytes of the biases that a refit adds to layers without one."""
    return [
        float(layer.groups * layer.rows * layer.holder.dtype.itemsize + _NEW_TENSOR)
        for layer in (member.layer for member in channels.trace.readers)
        if layer is not None and layer.bias is not None and not is_present(layer.node, layer.bias)
    ]


# ---------------------------------------------------------------------------- choices


def choice_for_budget(
    chooser: LevelChooser, budget: Budget, progress: float, *, spread: bool
) -> LevelChoice:
    """The levels at `progress` (0 to 1) of the way to a budget.

    Args:
        chooser: with the work that the budget counts.
        budget: not one of latency.
        progress: share of the way.
        spread: by least error; otherwise all groups lose the same share.

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


def choice_for_plan(
    chooser: LevelChooser, kept_of: Callable[[RemovalOrder], float], progress: float = 1.0
) -> LevelChoice:
    """The levels at `progress` (0 to 1) of the way to the number of units that each group keeps."""
    return chooser.choice(
        [order.nearest(progress * (order.group.size - kept_of(order))) for order in chooser.orders]
    )


def time_work(channels: Channels, stopwatch: Stopwatch, model: Model) -> Work:
    """The time of each layer alone, in milliseconds, as a cost.

    Raises:
        RuntimeFailure: onnxruntime refuses a layer.
    """
    return Work.of(channels, layer_milliseconds(stopwatch, model, layer_nodes(channels)))


class LatencySearch:
    """Rungs at which the whole model, timed against the original, is fast enough.

    Args:
        stopwatch: of this machine.
        model: whose graph is uncut.
        spread: as in `choice_for_budget`.
        tell: receives a sentence for each model that is timed.
    """

    def __init__(
        self, stopwatch: Stopwatch, model: Model, *, spread: bool, tell: Callable[[str], None]
    ) -> None:
        self.stopwatch, self.model, self.spread, self.tell = stopwatch, model, spread, tell
        self._shares: dict[tuple[int, ...], float] = {}

    def choice(self, chooser: LevelChooser, budget: Budget) -> LevelChoice:
        """The choice within the budget that loses least, of at most `_TRIALS` that are timed.

        The times of layers do not add up to the time of the model. The share of their sum to try
        next comes from a line through the last measured points.

        Raises:
            NotApplicable: none was fast enough.
        """
        left = budget.remaining()
        slow, fast, best = _Point(1.0, 1.0), None, None
        asked = left
        for _ in range(_TRIALS):
            choice = _within(chooser, asked, spread=self.spread)
            point = _Point(asked, self._share(choice, left))
            if point.measured <= left:
                best, fast = choice, point
                if point.measured > _NEAR * left:
                    break
            elif choice.levels == chooser.most().levels:
                slow = point
                break  # nothing more can leave
            else:
                slow = point
            asked = _next(slow, fast, _AIM * left)
        if best is None:
            raise _out_of_reach(budget, slow.measured)
        return best

    def _share(self, choice: LevelChoice, left: float) -> float:
        """The latency after a choice, as a share of the original latency."""
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
    """The share of the sum of layer times that was asked for, and the measured share of latency."""

    asked: float
    measured: float


def _next(slow: _Point, fast: _Point | None, aim: float) -> float:
    """The share to ask for next: on the line between a slow and a fast point, away from both."""
    if fast is not None:
        run, rise = slow.asked - fast.asked, slow.measured - fast.measured
        guess = fast.asked + run * (aim - fast.measured) / rise if rise > 0 else slow.asked
        return min(max(guess, fast.asked + 0.1 * run), slow.asked - 0.1 * run)
    run, rise = 1.0 - slow.asked, 1.0 - slow.measured
    guess = 1.0 - run * (1.0 - aim) / rise if rise > 0 else 0.0
    return min(max(guess, 0.25 * slow.asked), 0.9 * slow.asked)


def without(model: Model, gone: Mask) -> Model:
    """A copy of the model without some units."""
    copy = model.clone()
    rewriter = Rewriter(copy.graph)
    shrink(rewriter, follow_channels(copy.graph), gone)
    rewriter.result()
    return copy


def units_kept(choice: LevelChoice, orders: Sequence[RemovalOrder]) -> Mapping[str, int]:
    """The number of units that each group keeps, by its name; groups that keep all are left out."""
    return {
        order.group.name: order.group.size - order.counts[level]
        for order, level in zip(orders, choice.levels, strict=True)
        if level
    }


__all__ = [
    "LatencySearch",
    "choice_for_budget",
    "choice_for_plan",
    "layer_nodes",
    "time_work",
    "units_kept",
    "without",
    "work_for",
]

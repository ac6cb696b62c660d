"""From a budget to a level of the removal order of each group.

Channels, multiply-accumulates and bytes are added up over layers (see `work`). Time is measured on
the whole model; the times of single layers only say where to look.

Owns: what a budget counts. Not here: the choice of levels for a given cost (see `levels`), the
search for latency (see `latency_search`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Final

from onnxslim.channels.groups import ChannelGroup, Channels
from onnxslim.channels.levels import LevelChoice, LevelChooser
from onnxslim.channels.removal_order import RemovalOrder
from onnxslim.channels.work import Work, channel_work
from onnxslim.errors import NotApplicable
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array, is_present
from onnxslim.io.model import Model
from onnxslim.lossy.budgets import Budget, known_macs, macs_by_node
from onnxslim.services.calibration import Calibration

_ROUNDING: Final = 1e-9
_NEW_TENSOR: Final = 64  # bytes of a file for a tensor's name, type and shape


def work_for(
    budget: Budget,
    channels: Channels,
    groups: Sequence[ChannelGroup],
    model: Model | None,
    *,
    refitted: bool,
    calibration: Calibration | None = None,
) -> Work:
    """The cost that the budget counts, layer by layer; for latency see `latency_search`.

    A ratio counts the channels of `groups`. Where layers that read channels are `refitted`, they
    may get a new bias, which counts as bytes. Multiply-accumulates of a model of open sizes are
    those of a sample of `calibration`.

    Raises:
        NotApplicable: the size of a layer is not known.
    """
    if budget.kind == "ratio":
        return channel_work(channels, groups)
    assert model is not None
    if budget.kind == "macs":
        return _macs_work(channels, macs_by_node(model, calibration))
    return _bytes_work(channels, model, refitted=refitted)


def layer_nodes(channels: Channels) -> list[Node]:
    """All layers that write, read or pass on channels, once each."""
    trace = channels.trace
    nodes = [member.node for member in (*trace.writers, *trace.readers)]
    nodes += [node for node, _ in trace.channelwise if node.op in ("Conv", "ConvTranspose")]
    return list(dict.fromkeys(node for node in nodes if node.op != "Gather"))


def _macs_work(channels: Channels, counts: Mapping[Node, int | None]) -> Work:
    sizes = known_macs(layer_nodes(channels), counts)
    # products of activations shrink too; as they count in full, even less is left than the budget
    fixed = sum(macs or 0 for node, macs in counts.items() if node not in sizes)
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

    The work of the chooser is what the budget, not one of latency, counts. With `spread` levels are
    chosen by least error; otherwise all groups lose the same share.

    Raises:
        NotApplicable: the budget cannot be reached.
    """
    if budget.kind == "ratio":
        if not spread:
            return chooser.uniform(budget.amount * progress)
        return choice_within(chooser, budget.remaining(progress), spread=True)
    least = chooser.most().cost / chooser.work.whole
    if least > budget.remaining() + _ROUNDING:
        raise out_of_reach(budget, least)
    return choice_within(chooser, budget.remaining(progress), spread=spread)


def choice_within(chooser: LevelChooser, share: float, *, spread: bool) -> LevelChoice:
    """The levels at which at most `share` of the work is left."""
    enough = (share + _ROUNDING) * chooser.work.whole
    return chooser.path(enough) if spread else chooser.within(enough)


def out_of_reach(budget: Budget, least: float) -> NotApplicable:
    """The error that says that no less than the share `least` can remain."""
    # rounded up, so that a budget of the share in the message is within reach
    possible = ceil(1000 * least) / 1000
    return NotApplicable(
        f"a budget of {budget} is out of reach: {possible:g} remains when "
        "all channels are gone that may leave; ask for more, or give layers free with min, skip "
        "and only"
    )


def units_kept(choice: LevelChoice, orders: Sequence[RemovalOrder]) -> Mapping[str, int]:
    """The number of units that each group keeps, by its name; groups that keep all are left out."""
    return {
        order.group.name: order.group.size - order.counts[level]
        for order, level in zip(orders, choice.levels, strict=True)
        if level
    }

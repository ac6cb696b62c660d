"""How labels go through operators that treat every position, or all positions of an axis, alike.

Channels that meet at one position of an elementwise operator leave together; a constant operand is
cut where the labels are. Reductions, Softmax and pooling go over positions of some axes: labels
along other axes pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from onnxslim.analysis.flow.shape_rules import REDUCTIONS
from onnxslim.channels.labels import ChannelLabels, LabelArray, labelled_axes, with_rank
from onnxslim.channels.pointwise import BROADCAST, UNARY
from onnxslim.channels.tracing import ChannelRule, ChannelTracer, Untraceable, on_data
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import axes_of, const_array, const_value, is_present, normalized
from onnxslim.graph.sizes import Shape

_BROADCAST_SINCE: Final = 7  # the opset in which operands are aligned at their last axes
_POOL: Final = (
    "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool",
)  # fmt: skip


def unary(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """Every output has the labels of the first input."""
    labels = tracer.labels(node.inputs[0])
    return tuple(labels for _ in node.outputs)


def broadcast(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """Merge labels that meet, cut constants, and pin labels that meet any other operand."""
    operands = [(i, t) for i, t in enumerate(node.inputs) if t.name]
    if not any(tracer.labels(tensor) for _, tensor in operands):
        return ()
    if tracer.opset < _BROADCAST_SINCE and (node.op == "PRelu" or "axis" in node.attrs):
        raise Untraceable(f"it broadcasts as before opset {_BROADCAST_SINCE}")
    rank = max(tracer.rank(tensor) for _, tensor in operands)
    found = [with_rank(f, rank) for _, tensor in operands for f in tracer.labels(tensor)]
    why = f"`{node_label(node)}` ({node.op}) joins them with channels that must stay"
    joined = tracer.joined(found, why)
    for index, tensor in operands:
        if const_value(tensor) is not None:
            tracer.slice_broadcast(node, index, joined, rank)
        else:
            _meet(node, tracer, index, joined, rank)
    return (joined,)


def _meet(node: Node, tracer: ChannelTracer, index: int, labels: ChannelLabels, rank: int) -> None:
    """Let labels meet an operand without them: positions along its own axes must all stay.

    Along axes where it holds the same values everywhere, its first position is enough.
    """
    tensor = node.inputs[index]
    shape = tracer.shape(tensor)
    whole: Shape = (*(1,) * (rank - len(shape)), *shape)
    own = {axis for f in tracer.labels(tensor) for axis in labelled_axes(with_rank(f, rank))}
    why = tracer.joins(node, tensor)
    for array in labels:
        met = frozenset(axis for axis in labelled_axes(array) - own if whole[axis] != 1)
        tracer.keep_whole(array, tracer.without_repeats(node, index, array, met, rank), why)


def _mixed(
    node: Node, tracer: ChannelTracer, labels: ChannelLabels, axes: Sequence[int]
) -> ChannelLabels:
    """The labels after the operator has mixed all positions along `axes`."""
    why = f"`{node_label(node)}` ({node.op}) goes over them"
    return tracer.collapsed(labels, frozenset(axes), why)


@on_data
def reduce(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> Sequence[ChannelLabels]:
    """Reductions let labels along other axes pass."""
    rank = tracer.rank(node.inputs[0])
    written = axes_of(node, tracer.opset)
    if written is None:
        raise Untraceable("its axes are computed at run time")
    if not written and int(node.attrs.get("noop_with_empty_axes", 0)):
        return (labels,)
    axes = normalized(written, rank) if written else tuple(range(rank))
    if axes is None:
        raise Untraceable("its axes do not fit its input")
    return _reduced(node, tracer, labels, axes)


def _reduced(
    node: Node, tracer: ChannelTracer, labels: ChannelLabels, axes: Sequence[int]
) -> Sequence[ChannelLabels]:
    left = _mixed(node, tracer, labels, axes)
    if not int(node.attrs.get("keepdims", 1)):
        left = tuple(array.squeeze(tuple(axes)) for array in left)
    return (left,)


@on_data
def arg_reduce(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> Sequence[ChannelLabels]:
    """ArgMax and ArgMin let labels along other axes pass."""
    axis = int(node.attrs.get("axis", 0)) % tracer.rank(node.inputs[0])
    return _reduced(node, tracer, labels, (axis,))


@on_data
def softmax(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> Sequence[ChannelLabels]:
    """Softmax and its like go over one axis; before opset 13 over all axes from `axis` on."""
    rank = tracer.rank(node.inputs[0])
    if tracer.opset < 13:
        first = int(node.attrs.get("axis", 1)) % rank
        return (_mixed(node, tracer, labels, range(first, rank)),)
    return (_mixed(node, tracer, labels, (int(node.attrs.get("axis", -1)) % rank,)),)


@on_data
def top_k(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> Sequence[ChannelLabels]:
    """TopK sorts along one axis; both outputs have the labels along the others."""
    axis = int(node.attrs.get("axis", -1)) % tracer.rank(node.inputs[0])
    labels = _mixed(node, tracer, labels, (axis,))
    return tuple(labels for _ in node.outputs)


@on_data
def triangle(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> Sequence[ChannelLabels]:
    """Trilu depends on the positions along the last two axes."""
    rank = tracer.rank(node.inputs[0])
    return (_mixed(node, tracer, labels, (rank - 2, rank - 1)),)


@on_data
def cum_sum(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> Sequence[ChannelLabels]:
    """CumSum goes over one axis."""
    axis = const_array(node.inputs[1])
    if axis is None:
        raise Untraceable("its axis is computed at run time")
    rank = tracer.rank(node.inputs[0])
    return (_mixed(node, tracer, labels, (int(axis.reshape(-1)[0]) % rank,)),)


@on_data
def pool(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> Sequence[ChannelLabels]:
    """Pooling goes over the spatial axes."""
    if any(tensor.name for tensor in node.outputs[1:]):
        raise Untraceable("the indices that it returns count channels")
    rank = tracer.rank(node.inputs[0])
    return (_mixed(node, tracer, labels, range(2, rank)),)


@on_data
def quantize(node: Node, tracer: ChannelTracer, labels: ChannelLabels) -> Sequence[ChannelLabels]:
    """QuantizeLinear and DequantizeLinear have one scale, or one for each channel."""
    scale = const_value(node.inputs[1])
    if scale is None or int(node.attrs.get("block_size", 0)):
        raise Untraceable("its scale is computed at run time, or stored in blocks")
    if scale.size > 1:
        axis = int(node.attrs.get("axis", 1)) % tracer.rank(node.inputs[0])
        for array in labels:
            _slice_scales(node, tracer, array, axis)
    return (labels,)


def _slice_scales(node: Node, tracer: ChannelTracer, array: LabelArray, axis: int) -> None:
    if axis not in labelled_axes(array):
        return
    for operand in (1, 2):
        if not is_present(node, operand):
            continue
        if const_value(node.inputs[operand]) is None:
            raise Untraceable("its zero point is computed at run time")
        tracer.slice_operand(node, operand, 0, array, axis)


RULES: Final[Mapping[str, ChannelRule]] = {
    **dict.fromkeys(UNARY, unary),
    **dict.fromkeys(BROADCAST, broadcast),
    **dict.fromkeys(REDUCTIONS, reduce),
    **dict.fromkeys(_POOL, pool),
    **dict.fromkeys(("ArgMax", "ArgMin"), arg_reduce),
    **dict.fromkeys(("Hardmax", "LogSoftmax", "Softmax"), softmax),
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), quantize),
    "CumSum": cum_sum,
    "TopK": top_k,
    "Trilu": triangle,
}

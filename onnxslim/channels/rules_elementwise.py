"""Operators that treat every position by itself, or all positions of an axis together.

Names that meet at one position of an elementwise operator leave together; a constant operand is cut
where the names are. Reductions, Softmax and pooling go over positions of some axes: names along
other axes pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import onnx_graphsurgeon as gs

from onnxslim.channels.labels import Facet, Facets, aligned, labelled
from onnxslim.channels.tracing import ChannelRule, ChannelTracer, Unfollowed
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import axes_of, const_array, const_value, is_present, normalized
from onnxslim.graph.sizes import Shape

_UNARY: Final = (
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseNot",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
)
_BROADCAST: Final = (
    "Add",
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Clip",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "Sub",
    "Sum",
    "Where",
    "Xor",
)
_BROADCAST_SINCE: Final = 7  # the opset in which operands are aligned at their last axes
_REDUCE: Final = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
)
_POOL: Final = (
    "AveragePool",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "LpPool",
    "MaxPool",
)


def unary(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """Every output has the names of the first input."""
    facets = follower.facets(node.inputs[0])
    return tuple(facets for _ in node.outputs)


def local_response(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """LRN divides each channel by the energy of its neighbours: those that stay close ranks.

    The one operator that is followed although cutting is not the same as masking.
    """
    facets = follower.facets(node.inputs[0])
    for facet in facets:
        if 1 in labelled(facet):
            follower.trail.mixed.append((node, facet.reshape(-1)))
    return (facets,)


def broadcast(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """Names that meet leave together; constants are cut; other operands pin what they meet."""
    operands = [(i, t) for i, t in enumerate(node.inputs) if t.name]
    if not any(follower.facets(tensor) for _, tensor in operands):
        return ()
    if follower.opset < _BROADCAST_SINCE and (node.op == "PRelu" or "axis" in node.attrs):
        raise Unfollowed(f"it broadcasts as before opset {_BROADCAST_SINCE}")
    rank = max(follower.rank(tensor) for _, tensor in operands)
    found = [aligned(f, rank) for _, tensor in operands for f in follower.facets(tensor)]
    why = f"`{node_label(node)}` ({node.op}) joins them with channels that must stay"
    joined = follower.joined(found, why)
    for index, tensor in operands:
        if const_value(tensor) is not None:
            follower.slice_broadcast(node, index, joined, rank)
        else:
            _meet(node, follower, tensor, joined, rank)
    return (joined,)


def _meet(
    node: Node, follower: ChannelTracer, tensor: gs.Tensor, facets: Facets, rank: int
) -> None:
    """Pin names that meet a tensor without names where it is not broadcast."""
    shape = follower.shape(tensor)
    whole: Shape = (*(1,) * (rank - len(shape)), *shape)
    own = {axis for f in follower.facets(tensor) for axis in labelled(aligned(f, rank))}
    for facet in facets:
        for axis in labelled(facet) - own:
            if whole[axis] != 1:
                why = f"`{node_label(node)}` ({node.op}) joins them with `{tensor.name}`"
                follower.pin(facet, why)


def mixed(
    node: Node, follower: ChannelTracer, axes: Sequence[int], tensor: gs.Tensor | None = None
) -> Facets:
    """Names on the first input after it was mixed along `axes`."""
    facets = follower.facets(tensor or node.inputs[0])
    why = f"`{node_label(node)}` ({node.op}) goes over them"
    return follower.collapsed(facets, frozenset(axes), why)


def reduce(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """Reductions; names along the axes that are left pass."""
    if not follower.facets(node.inputs[0]):
        return ()
    rank = follower.rank(node.inputs[0])
    written = axes_of(node, follower.opset)
    if written is None:
        raise Unfollowed("its axes are computed at run time")
    if not written and int(node.attrs.get("noop_with_empty_axes", 0)):
        return (follower.facets(node.inputs[0]),)
    axes = normalized(written, rank) if written else tuple(range(rank))
    if axes is None:
        raise Unfollowed("its axes do not fit its input")
    facets = mixed(node, follower, axes)
    return (_without_axes(facets, axes, keepdims=bool(node.attrs.get("keepdims", 1))),)


def _without_axes(facets: Facets, axes: Sequence[int], *, keepdims: bool) -> Facets:
    if keepdims:
        return facets
    return tuple(facet.squeeze(tuple(axes)) for facet in facets)


def arg_reduce(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """ArgMax and ArgMin."""
    if not follower.facets(node.inputs[0]):
        return ()
    axis = int(node.attrs.get("axis", 0)) % follower.rank(node.inputs[0])
    facets = mixed(node, follower, (axis,))
    return (_without_axes(facets, (axis,), keepdims=bool(node.attrs.get("keepdims", 1))),)


def softmax(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """Softmax and its like; before opset 13 over all axes from `axis` on."""
    if not follower.facets(node.inputs[0]):
        return ()
    rank = follower.rank(node.inputs[0])
    if follower.opset < 13:
        return (mixed(node, follower, range(int(node.attrs.get("axis", 1)) % rank, rank)),)
    return (mixed(node, follower, (int(node.attrs.get("axis", -1)) % rank,)),)


def top_k(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """TopK sorts along one axis; both outputs have the names along the others."""
    if not follower.facets(node.inputs[0]):
        return ()
    axis = int(node.attrs.get("axis", -1)) % follower.rank(node.inputs[0])
    facets = mixed(node, follower, (axis,))
    return tuple(facets for _ in node.outputs)


def triangle(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """Trilu looks at the places along the last two axes."""
    if not follower.facets(node.inputs[0]):
        return ()
    rank = follower.rank(node.inputs[0])
    return (mixed(node, follower, (rank - 2, rank - 1)),)


def cum_sum(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """CumSum goes over one axis."""
    if not follower.facets(node.inputs[0]):
        return ()
    axis = const_array(node.inputs[1])
    if axis is None:
        raise Unfollowed("its axis is computed at run time")
    rank = follower.rank(node.inputs[0])
    return (mixed(node, follower, (int(axis.reshape(-1)[0]) % rank,)),)


def pool(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """Pooling goes over the spatial axes."""
    if not follower.facets(node.inputs[0]):
        return ()
    if any(tensor.name for tensor in node.outputs[1:]):
        raise Unfollowed("the indices that it returns count channels")
    rank = follower.rank(node.inputs[0])
    return (mixed(node, follower, range(2, rank)),)


def quantize(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """QuantizeLinear and DequantizeLinear of an activation, with a scale for all or for each."""
    facets = follower.facets(node.inputs[0])
    if not facets:
        return ()
    scale = const_value(node.inputs[1])
    if scale is None or int(node.attrs.get("block_size", 0)):
        raise Unfollowed("its scale is computed at run time, or stored in blocks")
    if scale.size > 1:
        axis = int(node.attrs.get("axis", 1)) % follower.rank(node.inputs[0])
        for facet in facets:
            _slice_scales(node, follower, facet, axis)
    return (facets,)


def _slice_scales(node: Node, follower: ChannelTracer, facet: Facet, axis: int) -> None:
    if axis not in labelled(facet):
        return
    for operand in (1, 2):
        if not is_present(node, operand):
            continue
        if const_value(node.inputs[operand]) is None:
            raise Unfollowed("its zero point is computed at run time")
        follower.slice_operand(node, operand, 0, facet, axis)


RULES: Final[Mapping[str, ChannelRule]] = {
    **dict.fromkeys(_UNARY, unary),
    **dict.fromkeys(_BROADCAST, broadcast),
    **dict.fromkeys(_REDUCE, reduce),
    **dict.fromkeys(_POOL, pool),
    **dict.fromkeys(("ArgMax", "ArgMin"), arg_reduce),
    **dict.fromkeys(("Hardmax", "LogSoftmax", "Softmax"), softmax),
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), quantize),
    "CumSum": cum_sum,
    "LRN": local_response,
    "TopK": top_k,
    "Trilu": triangle,
}

__all__ = ["RULES"]

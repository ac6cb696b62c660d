"""Operators that mix channels: layers with weights, products of activations.

A layer with a constant weight ends the names of its inputs (it *reads* them) and makes new ones for
its outputs (it *writes* them). What it needs of its weight is in the edits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import RUN_TIME, WeightLayer
from onnxslim.channels.labels import Facet, Facets, aligned, along, ids_along, labelled
from onnxslim.channels.removal import CountAttribute, CutGroups
from onnxslim.channels.tracing import ChannelRule, ChannelTracer, Grouped, Ids, Member, Unfollowed
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import const_value, is_present

_CHANNELS: Final = 1  # the axis of channels of whatever Conv and its like read and write


def _layer(node: Node, follower: ChannelTracer) -> WeightLayer:
    layer = follower.layers.get(node)
    if layer is None:
        raise Unfollowed(follower.declined.get(node_label(node), "it has no constant weight"))
    return layer


def _channel_ids(node: Node, follower: ChannelTracer, tensor: gs.Tensor) -> Ids | None:
    """Names along the axis of channels; those along others are pinned or joined."""
    facets = follower.facets(tensor)
    if not facets:
        return None
    spatial = frozenset(range(follower.rank(tensor))) - {_CHANNELS}
    why = f"`{node_label(node)}` ({node.op}) mixes them as positions"
    return ids_along(follower.collapsed(facets, spatial, why), _CHANNELS)


def conv(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """Conv and ConvTranspose, with any number of groups."""
    layer = _layer(node, follower)
    inputs = _channel_ids(node, follower, node.inputs[0])
    groups, rank = layer.groups, len(layer.holder.stored.shape)
    bias = node.inputs[2] if is_present(node, 2) else None
    if bias is not None and const_value(bias) is None:
        raise Unfollowed("its bias is computed at run time")
    if _is_depthwise(layer):
        return _depthwise(node, follower, layer, inputs)
    outputs = follower.fresh(groups * layer.rows)
    if groups > 1:
        _grouped(node, follower, layer, inputs, outputs)
    else:
        _dense(node, follower, layer, inputs, outputs)
    if bias is not None:
        follower.slice_operand(node, 2, 0, outputs, 0)
    _remember(follower, layer, inputs, outputs)
    return ((along(outputs, _CHANNELS, rank),),)


def _is_depthwise(layer: WeightLayer) -> bool:
    """Whether each input channel has outputs of its own."""
    return layer.groups > 1 and layer.columns == int(np.prod(layer.holder.stored.shape[2:]))


def _dense(
    node: Node, follower: ChannelTracer, layer: WeightLayer, inputs: Ids | None, outputs: Ids
) -> None:
    out_axis, in_axis = _weight_axes(layer)
    follower.slice_operand(node, layer.weight, out_axis, outputs, 0)
    if inputs is not None:
        follower.slice_operand(node, layer.weight, in_axis, inputs, 0)


def _weight_axes(layer: WeightLayer) -> tuple[int, int]:
    """Axes of outputs and of inputs of the stored weight."""
    return (1, 0) if layer.swapped else (0, 1)


def _depthwise(
    node: Node, follower: ChannelTracer, layer: WeightLayer, inputs: Ids | None
) -> Sequence[Facets]:
    """Each input channel has outputs of its own: they leave with it."""
    if inputs is None:
        return ()
    outputs = np.repeat(inputs, layer.rows)
    # (groups·rows, 1, k) for Conv, (groups, rows, k) for ConvTranspose
    weight_ids = inputs if layer.swapped else outputs
    follower.slice_operand(node, layer.weight, 0, weight_ids, 0)
    if is_present(node, 2):
        follower.slice_operand(node, 2, 0, outputs, 0)
    follower.trail.edits.append(CountAttribute(node, "group", inputs))
    follower.trail.passed.append((node, outputs))
    return ((along(outputs, _CHANNELS, len(layer.holder.stored.shape)),),)


def _grouped(
    node: Node, follower: ChannelTracer, layer: WeightLayer, inputs: Ids | None, outputs: Ids
) -> None:
    groups = layer.groups
    rows = outputs.reshape(groups, -1)
    columns = None if inputs is None else inputs.reshape(groups, -1)
    follower.trail.grouped.append(Grouped(node_label(node), columns, rows))
    follower.trail.edits.append(CutGroups(node, columns, rows))


def _remember(
    follower: ChannelTracer, layer: WeightLayer, inputs: Ids | None, outputs: Ids
) -> None:
    out_axis, in_axis = _weight_axes(layer)
    if len(outputs) == 1:
        follower.pin(outputs, f"it is the only channel of `{node_label(layer.node)}`")
    follower.trail.writers.append(Member(layer.node, layer, layer.weight, out_axis, outputs))
    if inputs is not None:
        follower.trail.readers.append(Member(layer.node, layer, layer.weight, in_axis, inputs))
    if layer.shared:
        _share(follower, layer, inputs, outputs)


def _share(follower: ChannelTracer, layer: WeightLayer, inputs: Ids | None, outputs: Ids) -> None:
    """Layers with one weight keep the same along each axis of it, so that it stays one."""
    users = dict.fromkeys(user for user in layer.weight_tensor.outputs if user is not layer.node)
    own = dict(zip(_weight_axes(layer), (outputs, inputs), strict=True))
    for user in users:
        other = follower.layers.get(user)
        if other is None or _is_depthwise(other):
            why = f"their weight is also used by `{node_label(user)}` ({user.op})"
            _pin_both(follower, (*own.values(),), why)
            continue
        theirs = _swept(follower, other)
        if theirs is None:
            continue  # not reached yet: it will come back here
        why = f"`{layer.name}` and `{other.name}` have one weight, of which the other must stay"
        for axis in own:
            _keep_alike(follower, own[axis], theirs[axis], why)


def _swept(follower: ChannelTracer, layer: WeightLayer) -> dict[int, Ids | None] | None:
    """Names along the axes of the stored weight of a layer that was passed."""
    trail = follower.trail
    written = [member for member in trail.writers if member.node is layer.node]
    if not written:
        return None
    found: dict[int, Ids | None] = dict.fromkeys(_weight_axes(layer))
    for member in (*written, *(member for member in trail.readers if member.node is layer.node)):
        found[member.axis] = member.ids
    return found


def _keep_alike(follower: ChannelTracer, a: Ids | None, b: Ids | None, why: str) -> None:
    if a is None or b is None or len(a) != len(b):
        _pin_both(follower, (a, b), why)
    else:
        follower.merge(a, b, why)


def _pin_both(follower: ChannelTracer, names: Sequence[Ids | None], why: str) -> None:
    for ids in names:
        if ids is not None:
            follower.pin(ids, why)


def gemm(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """Gemm with a constant weight on either side."""
    layer = _layer(node, follower)
    if is_present(node, 2) and const_value(node.inputs[2]) is None:
        raise Unfollowed("its bias is computed at run time")
    data = node.inputs[layer.data]
    unfolding = layer.unfolding
    read_axis = int(getattr(unfolding, "axis", -1)) % 2
    out_axis = int(getattr(unfolding, "out_axis", -1) or 0) % 2
    inputs = _vector_ids(node, follower, data, read_axis)
    outputs = follower.fresh(layer.rows)
    _dense(node, follower, layer, inputs, outputs)
    _remember(follower, layer, inputs, outputs)
    result: Facets = (along(outputs, out_axis, 2),)
    rest = _kept_rows(follower.facets(data), read_axis)
    # names of the rows go on along the output's other axis
    result += tuple(along(facet.reshape(-1), 1 - out_axis, 2) for facet in rest if facet.size > 1)
    if is_present(node, 2):
        follower.slice_broadcast(node, 2, result, 2)
    return (result,)


def _vector_ids(node: Node, follower: ChannelTracer, tensor: gs.Tensor, axis: int) -> Ids | None:
    """Names of the inputs of a product, along `axis`; joined over other axes they also label."""
    facets = [f for f in follower.facets(tensor) if axis in labelled(f)]
    if not facets:
        return None
    others = frozenset(range(facets[0].ndim)) - {axis}
    why = f"`{node_label(node)}` ({node.op}) sums over them in every row"
    return ids_along(follower.collapsed(tuple(facets), others, why), axis)


def _kept_rows(facets: Facets, axis: int) -> Facets:
    return tuple(facet for facet in facets if axis not in labelled(facet))


def matmul(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """MatMul with a constant matrix on either side, or of two activations."""
    layer = follower.layers.get(node)
    if layer is None:
        if not any(follower.facets(tensor) for tensor in node.inputs):
            return ()
        if follower.declined.get(node_label(node)) != RUN_TIME:
            _layer(node, follower)
        return _product(node, follower)
    if len(layer.holder.stored.shape) != 2:
        raise Unfollowed("its weight is not a matrix")
    data = node.inputs[layer.data]
    rank = follower.rank(data)
    if rank < 2:
        raise Unfollowed("its input is a vector")
    axis = rank + int(getattr(layer.unfolding, "axis", -1))
    inputs = _vector_ids(node, follower, data, axis)
    outputs = follower.fresh(layer.rows)
    _dense(node, follower, layer, inputs, outputs)
    _remember(follower, layer, inputs, outputs)
    return ((along(outputs, axis, rank), *_kept_rows(follower.facets(data), axis)),)


def _product(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """A·B of two activations: names along the sum must agree; those of rows and columns go on.

    Names that also depend on the matrix of a stack (the head of attention) leave as a whole.
    """
    a, b = node.inputs
    shapes = follower.shape(a), follower.shape(b)
    if min(map(len, shapes)) < 2:
        raise Unfollowed("one of its operands is a vector")
    rank = max(map(len, shapes))
    # (…, M, K) and (…, N, K): the sum is the last axis of both
    left = [aligned(f, rank) for f in follower.facets(a)]
    right = [aligned(f, rank).swapaxes(-1, -2) for f in follower.facets(b)]
    why = f"`{node_label(node)}` (MatMul) sums over them with others that must stay"
    summed = [[f for f in side if rank - 1 in labelled(f)] for side in (left, right)]
    if bool(summed[0]) != bool(summed[1]):
        for facet in (*summed[0], *summed[1]):
            follower.pin(facet, why)
        met: Facets = ()
    else:
        met = _met(node, follower, summed, rank, why)
    ids = [facet for facet in met if facet.size > 1]
    rows = [f for f in left if rank - 1 not in labelled(f)]
    columns = [f.swapaxes(-1, -2) for f in right if rank - 1 not in labelled(f)]
    _check_stacks(follower, (a, b), rank, [*rows, *columns, *ids])
    joined = follower.joined([*ids, *rows, *columns], why)
    return (joined,)


def _met(
    node: Node, follower: ChannelTracer, summed: list[list[Facet]], rank: int, why: str
) -> Facets:
    """Names that meet in the sum, and what is left of them on the axes of the stack."""
    parts: list[Facet] = []
    for side in summed:
        # rows of one operand do not exist in the other
        parts += follower.collapsed(tuple(side), frozenset({rank - 2}), why)
    if len(parts) < 2:
        return ()
    whole = follower.merge(parts[0], parts[1], why)
    if labelled(whole) == {rank - 1}:
        follower.trail.blind.append((node, whole.reshape(-1)))
        return ()
    return follower.collapsed((whole,), frozenset({rank - 1}), why)


def _check_stacks(
    follower: ChannelTracer,
    tensors: tuple[gs.Tensor, gs.Tensor],
    rank: int,
    facets: Sequence[Facet],
) -> None:
    """Pin names of a stack of matrices where the other operand has as many that must stay."""
    for tensor in tensors:
        shape = follower.shape(tensor)
        shape = (*(1,) * (rank - len(shape)), *shape)
        own = {ax for f in follower.facets(tensor) for ax in labelled(aligned(f, rank))}
        for facet in facets:
            for axis in labelled(facet):
                if axis < rank - 2 and shape[axis] != 1 and axis not in own:
                    follower.pin(facet, f"`{tensor.name}` has as many matrices, which must stay")


def batch_normalization(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """One scale, shift, mean and variance for each channel."""
    facets = follower.facets(node.inputs[0])
    if not facets:
        return ()
    if any(const_value(tensor) is None for tensor in node.inputs[1:5]):
        raise Unfollowed("its parameters are computed at run time")
    if any(tensor.name for tensor in node.outputs[1:]):
        raise Unfollowed("it is in training mode")
    return (_per_channel(node, follower, facets, operands=(1, 2, 3, 4)),)


def _per_channel(
    node: Node, follower: ChannelTracer, facets: Facets, operands: Sequence[int]
) -> Facets:
    for facet in facets:
        if _CHANNELS in labelled(facet):
            for operand in operands:
                follower.slice_operand(node, operand, 0, facet, _CHANNELS)
            follower.trail.passed.append((node, facet.reshape(-1)))
    return facets


def instance_normalization(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """Each channel is normalized by itself."""
    facets = _normalized(node, follower, range(2, 99))
    if not facets:
        return ()
    if any(const_value(tensor) is None for tensor in node.inputs[1:3]):
        raise Unfollowed("its parameters are computed at run time")
    return (_per_channel(node, follower, facets, operands=(1, 2)),)


def _normalized(node: Node, follower: ChannelTracer, axes: Sequence[int]) -> Facets:
    facets = follower.facets(node.inputs[0])
    why = f"`{node_label(node)}` ({node.op}) normalizes over them"
    return follower.collapsed(facets, frozenset(axes), why)


def group_normalization(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """The channels of a group are normalized together, so they leave together."""
    facets = _normalized(node, follower, range(2, 99))
    ids = ids_along(facets, _CHANNELS)
    if ids is None:
        return (facets,) if facets else ()
    if any(const_value(tensor) is None for tensor in node.inputs[1:3]):
        raise Unfollowed("its parameters are computed at run time")
    groups = int(node.attrs["num_groups"])
    grid = ids.reshape(groups, -1)
    first = np.broadcast_to(grid[:, :1], grid.shape)
    follower.merge(first, grid, f"`{node_label(node)}` normalizes them with others that must stay")
    follower.trail.edits.append(CountAttribute(node, "num_groups", grid[:, 0]))
    for operand in (1, 2):
        stored = const_value(node.inputs[operand])
        assert stored is not None
        per_group = stored.shape[0] == groups and groups != len(ids)
        follower.slice_operand(node, operand, 0, grid[:, 0] if per_group else ids, 0)
    return (facets,)


def layer_normalization(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """All that is normalized together leaves together, and so mostly not at all."""
    if not follower.facets(node.inputs[0]):
        return ()
    rank = follower.rank(node.inputs[0])
    axis = int(node.attrs.get("axis", -1)) % rank
    return (_normalized(node, follower, range(axis, rank)),)


def normalize_axes(node: Node, follower: ChannelTracer) -> Sequence[Facets]:
    """MeanVarianceNormalization and LpNormalization."""
    if not follower.facets(node.inputs[0]):
        return ()
    rank = follower.rank(node.inputs[0])
    default = (0, 2, 3) if node.op == "MeanVarianceNormalization" else (-1,)
    axes = node.attrs.get("axes", default)
    if node.op == "LpNormalization":
        axes = (int(node.attrs.get("axis", -1)),)
    return (_normalized(node, follower, [int(axis) % rank for axis in axes]),)


RULES: Final[Mapping[str, ChannelRule]] = {
    "BatchNormalization": batch_normalization,
    "Conv": conv,
    "ConvTranspose": conv,
    "Gemm": gemm,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "LpNormalization": normalize_axes,
    "MatMul": matmul,
    "MeanVarianceNormalization": normalize_axes,
    "RMSNormalization": layer_normalization,
}

__all__ = ["RULES"]

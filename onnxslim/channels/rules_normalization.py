"""How labels go through normalizations: of each channel, of groups of channels, of all channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from onnxslim.channels.edits_operands import CountAttribute
from onnxslim.channels.labels import ChannelLabels, ids_along, labelled_axes
from onnxslim.channels.tracing import ChannelRule, ChannelTracer, Untraceable, on_data
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import const_value

_CHANNELS: Final = 1  # the axis of channels of what is normalized


@on_data
def batch_normalization(
    node: Node, tracer: ChannelTracer, labels: ChannelLabels
) -> Sequence[ChannelLabels]:
    """BatchNormalization has a scale, a shift, a mean and a variance for each channel."""
    if any(const_value(tensor) is None for tensor in node.inputs[1:5]):
        raise Untraceable("its parameters are computed at run time")
    if any(tensor.name for tensor in node.outputs[1:]):
        raise Untraceable("it is in training mode")
    return (_per_channel(node, tracer, labels, operands=(1, 2, 3, 4)),)


def _per_channel(
    node: Node, tracer: ChannelTracer, labels: ChannelLabels, operands: Sequence[int]
) -> ChannelLabels:
    for array in labels:
        if _CHANNELS in labelled_axes(array):
            for operand in operands:
                tracer.slice_operand(node, operand, 0, array, _CHANNELS)
            tracer.trace.channelwise.append((node, array.reshape(-1)))
    return labels


@on_data
def instance_normalization(
    node: Node, tracer: ChannelTracer, labels: ChannelLabels
) -> Sequence[ChannelLabels]:
    """InstanceNormalization normalizes each channel by itself."""
    labels = _normalized(node, tracer, labels, range(2, 99))
    if not labels:
        return ()
    if any(const_value(tensor) is None for tensor in node.inputs[1:3]):
        raise Untraceable("its parameters are computed at run time")
    return (_per_channel(node, tracer, labels, operands=(1, 2)),)


def _normalized(
    node: Node, tracer: ChannelTracer, labels: ChannelLabels, axes: Sequence[int]
) -> ChannelLabels:
    why = f"`{node_label(node)}` ({node.op}) normalizes over them"
    return tracer.collapsed(labels, frozenset(axes), why)


@on_data
def group_normalization(
    node: Node, tracer: ChannelTracer, labels: ChannelLabels
) -> Sequence[ChannelLabels]:
    """GroupNormalization normalizes the channels of a group together, so they leave together."""
    labels = _normalized(node, tracer, labels, range(2, 99))
    ids = ids_along(labels, _CHANNELS)
    if ids is None:
        return (labels,)
    if any(const_value(tensor) is None for tensor in node.inputs[1:3]):
        raise Untraceable("its parameters are computed at run time")
    groups = int(node.attrs["num_groups"])
    grid = ids.reshape(groups, -1)
    first = np.broadcast_to(grid[:, :1], grid.shape)
    tracer.merge(first, grid, f"`{node_label(node)}` normalizes them with others that must stay")
    tracer.trace.edits.append(CountAttribute(node, "num_groups", grid[:, 0]))
    for operand in (1, 2):
        stored = const_value(node.inputs[operand])
        assert stored is not None
        per_group = stored.shape[0] == groups and groups != len(ids)
        tracer.slice_operand(node, operand, 0, grid[:, 0] if per_group else ids, 0)
    return (labels,)


@on_data
def layer_normalization(
    node: Node, tracer: ChannelTracer, labels: ChannelLabels
) -> Sequence[ChannelLabels]:
    """LayerNormalization and RMSNormalization pin the channels that they normalize over."""
    rank = tracer.rank(node.inputs[0])
    axis = int(node.attrs.get("axis", -1)) % rank
    return (_normalized(node, tracer, labels, range(axis, rank)),)


@on_data
def normalize_axes(
    node: Node, tracer: ChannelTracer, labels: ChannelLabels
) -> Sequence[ChannelLabels]:
    """MeanVarianceNormalization and LpNormalization."""
    rank = tracer.rank(node.inputs[0])
    default = (0, 2, 3) if node.op == "MeanVarianceNormalization" else (-1,)
    axes = node.attrs.get("axes", default)
    if node.op == "LpNormalization":
        axes = (int(node.attrs.get("axis", -1)),)
    return (_normalized(node, tracer, labels, [int(axis) % rank for axis in axes]),)


@on_data
def local_response(
    node: Node, tracer: ChannelTracer, labels: ChannelLabels
) -> Sequence[ChannelLabels]:
    """LRN divides each channel by the energy of its neighbours.

    It is the one operator that is followed although removing a channel is not the same as setting
    it to zero: the channels that stay get other neighbours.
    """
    for array in labels:
        if 1 in labelled_axes(array):
            tracer.trace.neighbour_mixers.append((node, array.reshape(-1)))
    return (labels,)


RULES: Final[Mapping[str, ChannelRule]] = {
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": local_response,
    "LayerNormalization": layer_normalization,
    "LpNormalization": normalize_axes,
    "MeanVarianceNormalization": normalize_axes,
    "RMSNormalization": layer_normalization,
}

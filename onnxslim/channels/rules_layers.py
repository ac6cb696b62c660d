"""How labels go through layers with weights: Conv, ConvTranspose, Gemm, MatMul.

A layer with a constant weight *reads* the channels of its input, whose labels end there, and
*writes* channels with new labels. Its weight is cut along both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer
from onnxslim.analysis.linear_operators import RUN_TIME
from onnxslim.channels.edits_operands import CountAttribute, CutGroups
from onnxslim.channels.labels import (
    ChannelLabels,
    along_axis,
    ids_along,
    labelled_axes,
)
from onnxslim.channels.rules_products import product_of_activations
from onnxslim.channels.tracing import (
    ChannelRule,
    ChannelTracer,
    GroupedConv,
    Ids,
    Member,
    Untraceable,
)
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import const_value, is_present

_CHANNELS: Final = 1  # the axis of channels of whatever Conv and its like read and write


def _layer(node: Node, tracer: ChannelTracer) -> WeightLayer:
    layer = tracer.layers.get(node)
    if layer is None:
        raise Untraceable(tracer.declined.get(node_label(node), "it has no constant weight"))
    return layer


def _channel_ids(node: Node, tracer: ChannelTracer, tensor: gs.Tensor) -> Ids | None:
    """The labels along the axis of channels; labels along other axes are pinned or merged."""
    labels = tracer.labels(tensor)
    if not labels:
        return None
    spatial = frozenset(range(tracer.rank(tensor))) - {_CHANNELS}
    why = f"`{node_label(node)}` ({node.op}) mixes them as positions"
    return ids_along(tracer.collapsed(labels, spatial, why), _CHANNELS)


def conv(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """Conv and ConvTranspose read and write channels; a depthwise Conv passes them on."""
    layer = _layer(node, tracer)
    inputs = _channel_ids(node, tracer, node.inputs[0])
    groups, rank = layer.groups, len(layer.holder.stored.shape)
    bias = node.inputs[2] if is_present(node, 2) else None
    if bias is not None and const_value(bias) is None:
        raise Untraceable("its bias is computed at run time")
    if _is_depthwise(layer):
        return _depthwise(node, tracer, layer, inputs)
    outputs = tracer.fresh(groups * layer.rows)
    if groups > 1:
        _trace_groups(node, tracer, layer, inputs, outputs)
    else:
        _slice_matrix(node, tracer, layer, inputs, outputs)
    if bias is not None:
        tracer.slice_operand(node, 2, 0, outputs, 0)
    _add_to_trace(tracer, layer, inputs, outputs)
    return ((along_axis(outputs, _CHANNELS, rank),),)


def _is_depthwise(layer: WeightLayer) -> bool:
    """Whether each input channel has its own outputs."""
    return layer.groups > 1 and layer.columns == int(np.prod(layer.holder.stored.shape[2:]))


def _slice_matrix(
    node: Node, tracer: ChannelTracer, layer: WeightLayer, inputs: Ids | None, outputs: Ids
) -> None:
    """Cut the weight along its outputs, and along its inputs if they have labels."""
    out_axis, in_axis = _weight_axes(layer)
    tracer.slice_operand(node, layer.weight, out_axis, outputs, 0)
    if inputs is not None:
        tracer.slice_operand(node, layer.weight, in_axis, inputs, 0)


def _weight_axes(layer: WeightLayer) -> tuple[int, int]:
    """The axis of the outputs and the axis of the inputs of the stored weight."""
    return (1, 0) if layer.inputs_first else (0, 1)


def _depthwise(
    node: Node, tracer: ChannelTracer, layer: WeightLayer, inputs: Ids | None
) -> Sequence[ChannelLabels]:
    """Each input channel has its own outputs, which leave with it."""
    if inputs is None:
        return ()
    outputs = np.repeat(inputs, layer.rows)
    # (groups·rows, 1, k) for Conv, (groups, rows, k) for ConvTranspose
    weight_ids = inputs if layer.inputs_first else outputs
    tracer.slice_operand(node, layer.weight, 0, weight_ids, 0)
    if is_present(node, 2):
        tracer.slice_operand(node, 2, 0, outputs, 0)
    tracer.trace.edits.append(CountAttribute(node, "group", inputs))
    tracer.trace.channelwise.append((node, outputs))
    return ((along_axis(outputs, _CHANNELS, len(layer.holder.stored.shape)),),)


def _trace_groups(
    node: Node, tracer: ChannelTracer, layer: WeightLayer, inputs: Ids | None, outputs: Ids
) -> None:
    """Cut each group of the weight by its own channels, of which all groups lose as many."""
    groups = layer.groups
    rows = outputs.reshape(groups, -1)
    columns = None if inputs is None else inputs.reshape(groups, -1)
    tracer.trace.grouped_convs.append(GroupedConv(node_label(node), columns, rows))
    tracer.trace.edits.append(CutGroups(node, columns, rows))


def _add_to_trace(
    tracer: ChannelTracer, layer: WeightLayer, inputs: Ids | None, outputs: Ids
) -> None:
    """Add the layer to the writers and, if its inputs have labels, to the readers."""
    out_axis, in_axis = _weight_axes(layer)
    if len(outputs) == 1:
        tracer.pin(outputs, f"it is the only channel of `{node_label(layer.node)}`")
    tracer.trace.writers.append(Member(layer.node, layer, layer.weight, out_axis, outputs))
    if inputs is not None:
        tracer.trace.readers.append(Member(layer.node, layer, layer.weight, in_axis, inputs))
    if layer.shared:
        _merge_shared(tracer, layer, inputs, outputs)


def _merge_shared(
    tracer: ChannelTracer, layer: WeightLayer, inputs: Ids | None, outputs: Ids
) -> None:
    """Merge the channels of layers that share a weight, so that one weight still serves all."""
    users = dict.fromkeys(user for user in layer.weight_tensor.outputs if user is not layer.node)
    own = dict(zip(_weight_axes(layer), (outputs, inputs), strict=True))
    for user in users:
        other = tracer.layers.get(user)
        if other is None or _is_depthwise(other):
            why = f"their weight is also used by `{node_label(user)}` ({user.op})"
            _pin_both(tracer, (*own.values(),), why)
            continue
        others = _labels_by_axis(tracer, other)
        if others is None:
            continue  # the sweep has not reached it yet, and will merge the two there
        why = f"`{layer.name}` and `{other.name}` share a weight that the other needs whole"
        for axis in own:
            _keep_alike(tracer, own[axis], others[axis], why)


def _labels_by_axis(tracer: ChannelTracer, layer: WeightLayer) -> dict[int, Ids | None] | None:
    """The labels along each axis of the stored weight; None before the sweep reaches the layer."""
    trace = tracer.trace
    written = [member for member in trace.writers if member.node is layer.node]
    if not written:
        return None
    found: dict[int, Ids | None] = dict.fromkeys(_weight_axes(layer))
    for member in (*written, *(member for member in trace.readers if member.node is layer.node)):
        found[member.axis] = member.ids
    return found


def _keep_alike(tracer: ChannelTracer, a: Ids | None, b: Ids | None, why: str) -> None:
    """Merge two sides of layers that share a weight; pin both where one has no labels."""
    if a is None or b is None or len(a) != len(b):
        _pin_both(tracer, (a, b), why)
    else:
        tracer.merge(a, b, why)


def _pin_both(tracer: ChannelTracer, both: Sequence[Ids | None], why: str) -> None:
    for ids in both:
        if ids is not None:
            tracer.pin(ids, why)


def gemm(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """Gemm reads and writes channels; its constant weight may be on either side."""
    layer = _layer(node, tracer)
    if is_present(node, 2) and const_value(node.inputs[2]) is None:
        raise Untraceable("its bias is computed at run time")
    data = node.inputs[layer.data]
    unfolding = layer.unfolding
    read_axis = int(getattr(unfolding, "axis", -1)) % 2
    out_axis = int(getattr(unfolding, "out_axis", -1) or 0) % 2
    inputs = _vector_ids(node, tracer, data, read_axis)
    outputs = tracer.fresh(layer.rows)
    _slice_matrix(node, tracer, layer, inputs, outputs)
    _add_to_trace(tracer, layer, inputs, outputs)
    result: ChannelLabels = (along_axis(outputs, out_axis, 2),)
    rest = _kept_rows(tracer.labels(data), read_axis)
    # labels of the rows go on along the output's other axis
    result += tuple(
        along_axis(array.reshape(-1), 1 - out_axis, 2) for array in rest if array.size > 1
    )
    if is_present(node, 2):
        tracer.slice_broadcast(node, 2, result, 2)
    return (result,)


def _vector_ids(node: Node, tracer: ChannelTracer, tensor: gs.Tensor, axis: int) -> Ids | None:
    """The labels of the inputs of a product along `axis`, merged over other axes of their array."""
    labels = [array for array in tracer.labels(tensor) if axis in labelled_axes(array)]
    if not labels:
        return None
    others = frozenset(range(labels[0].ndim)) - {axis}
    why = f"`{node_label(node)}` ({node.op}) sums over them in every row"
    return ids_along(tracer.collapsed(tuple(labels), others, why), axis)


def _kept_rows(labels: ChannelLabels, axis: int) -> ChannelLabels:
    return tuple(array for array in labels if axis not in labelled_axes(array))


def matmul(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """MatMul with a constant matrix on either side reads and writes channels."""
    layer = tracer.layers.get(node)
    if layer is None:
        if not any(tracer.labels(tensor) for tensor in node.inputs):
            return ()
        if tracer.declined.get(node_label(node)) != RUN_TIME:
            _layer(node, tracer)
        return product_of_activations(node, tracer)
    if len(layer.holder.stored.shape) != 2:
        raise Untraceable("its weight is not a matrix")
    data = node.inputs[layer.data]
    rank = tracer.rank(data)
    if rank < 2:
        raise Untraceable("its input is a vector")
    axis = rank + int(getattr(layer.unfolding, "axis", -1))
    inputs = _vector_ids(node, tracer, data, axis)
    outputs = tracer.fresh(layer.rows)
    _slice_matrix(node, tracer, layer, inputs, outputs)
    _add_to_trace(tracer, layer, inputs, outputs)
    return ((along_axis(outputs, axis, rank), *_kept_rows(tracer.labels(data), axis)),)


RULES: Final[Mapping[str, ChannelRule]] = {
    "Conv": conv,
    "ConvTranspose": conv,
    "Gemm": gemm,
    "MatMul": matmul,
}

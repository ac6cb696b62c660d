"""Scales of channels, moved from one weight layer to another; `equalize` and `smooth` decide which.

This is exact up to rounding: a layer whose output channels are multiplied by a_o, and whose weights
of input channels by b_i, has the weight W[o, i]·a_o·b_i and the bias B_o·a_o.

Owns: peaks of scaled weights, and writing a scaled layer. Not here: the scales themselves.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxslim.analysis.absorption import LinearLayer, linear_layer, scale_weight
from onnxslim.analysis.affine import cast
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import const_array
from onnxslim.graph.rewrite import Rewriter

Array = npt.NDArray[np.float64]


class ScaledLayer:
    """A layer whose channels are being scaled.

    Attributes:
        layer: the layer as it is in the graph.
        outs: the factor of each output channel, (output channels,).
        ins: the factor of the weights of each input channel, (input channels,).
    """

    def __init__(self, layer: LinearLayer) -> None:
        self.layer = layer
        self.outs: Array = np.ones(layer.outs)
        self.ins: Array = np.ones(layer.ins)
        weight = layer.weight_array
        kernel = tuple(
            axis
            for axis in range(weight.ndim)
            if layer.out_index.shape[axis] == 1 and layer.in_index.shape[axis] == 1
        )
        # (the axes of both indices): the largest weight between each two channels
        self._peaks = np.abs(weight).max(axis=kernel, keepdims=True).astype(np.float64)

    def out_peaks(self) -> Array:
        """The largest weight of each output channel, as scaled so far."""
        scaled = self._peaks * self.ins[self.layer.in_index]
        return _most_by(scaled, self.layer.out_index, self.layer.outs) * self.outs

    def in_peaks(self) -> Array:
        """The largest weight of each input channel, as scaled so far."""
        scaled = self._peaks * self.outs[self.layer.out_index]
        return _most_by(scaled, self.layer.in_index, self.layer.ins) * self.ins

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None] | str:
        """The scaled weight and bias, None where there is no bias; or why it cannot be."""
        layer, bias = self.layer, self.layer.bias_tensor
        factor = self.outs[layer.out_index] * self.ins[layer.in_index]
        weight = scale_weight(layer.weight_array, factor)
        if weight is None:
            return f"a weight of `{node_label(layer.node)}` would overflow or underflow"
        if bias is None:
            return weight, None
        stored = const_array(bias)
        assert stored is not None  # `why_not_scalable` has looked
        scaled = cast(layer.as_bias(self.outs) * stored.astype(np.float64), stored.dtype)
        if scaled is None:
            return f"a bias of `{node_label(layer.node)}` would overflow"
        return weight, scaled

    def write(self, rewriter: Rewriter, arrays: tuple[np.ndarray, np.ndarray | None]) -> None:
        """Let the graph use `arrays`."""
        layer = self.layer
        for index, array in ((layer.weight, arrays[0]), (layer.bias, arrays[1])):
            if array is not None and index is not None:
                wish = layer.node.inputs[index].name
                rewriter.set_input(layer.node, index, rewriter.constant(array, wish))


def scalable_layer(rewriter: Rewriter, node: Node) -> LinearLayer | str | None:
    """The layer that `node` is; why its weights cannot be scaled; None where it is no layer."""
    layer = linear_layer(node)
    if layer is None:
        return None
    if rewriter.uses(layer.weight_tensor) > 1:
        return f"the weight of `{node_label(node)}` is used by several nodes"
    bias = layer.bias_tensor
    if bias is not None and const_array(bias) is None:
        return f"the bias of `{node_label(node)}` is computed at run time"
    return layer


def same_axis(a: int, b: int, rank: int | None) -> bool:
    """Whether two axes of a tensor are one; negative ones count from the end."""
    if a == b or rank is None:
        return a == b
    return a % rank == b % rank


def reads(layer: LinearLayer, tensor: gs.Tensor) -> bool:
    """Whether `tensor` is what the layer is linear in, and nothing else of it."""
    places = [index for index, item in enumerate(layer.node.inputs) if item is tensor]
    return places == [layer.data]


def _most_by(values: Array, index: np.ndarray, size: int) -> Array:
    """The largest of the non-negative `values` for each number in `index`."""
    index = _without_repeats(index)
    result = np.zeros(size)
    long = [axis for axis, length in enumerate(index.shape) if length > 1]
    if len(long) <= 1:  # the numbers lie along one axis, each but once
        others = tuple(axis for axis in range(values.ndim) if axis not in long)
        found = values.max(axis=others)
        result[index.reshape(-1)] = np.broadcast_to(found, index.size)
    else:
        np.maximum.at(result, np.broadcast_to(index, values.shape), values)
    return result


def _without_repeats(index: np.ndarray) -> np.ndarray:
    """`index`, of length one along the axes that it does not depend on."""
    for axis in range(index.ndim):
        first = index.take([0], axis)
        if index.shape[axis] > 1 and (index == first).all():
            index = first
    return index

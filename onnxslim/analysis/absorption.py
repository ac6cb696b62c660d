"""Layers that absorb a scale and shift of their input or output channels into weight and bias.

Each element of a weight connects one input channel to one output channel. `LinearLayer` names both
by two index arrays that broadcast against the weight, so that grouped, transposed and flipped
layouts need no cases of their own. With W[o, i, k] for kernel position k:

    y_o = Σ_i Σ_k W[o, i, k]·x_i + B_o
    a·y + b               is the layer with  W[o, i, k]·a_o            and  a_o·B_o + b_o
    the layer of a·x + b  is the layer with  W[o, i, k]·a_i            and  B_o + Σ W[o, i, k]·b_i

`linear_operators` says which input is the weight and how it lies; `affine` has the maps a·x + b.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import AffineMap, cast
from onnxslim.analysis.linear_operators import (
    LINEAR_OPS,
    ConvPatches,
    LinearOperator,
    Vectors,
    constant_weight,
)
from onnxslim.graph.dims import rank
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array, is_present


@dataclass(frozen=True, kw_only=True)
class LinearLayer(LinearOperator):
    """A linear operator with a constant weight, each element of it known by its two channels.

    Attributes:
        out_index, in_index: for each element of the weight, its output and its input channel.
        outs, ins: numbers of channels.
        ndim: rank of the output, None when unknown.
    """

    out_index: np.ndarray
    in_index: np.ndarray
    outs: int
    ins: int
    ndim: int | None

    @property
    def weight_tensor(self) -> gs.Tensor:
        """The constant that holds the weight."""
        return self.node.inputs[self.weight]

    @property
    def weight_array(self) -> np.ndarray:
        """The weight as it is stored."""
        array = const_array(self.weight_tensor)
        assert array is not None
        return array

    @property
    def bias_tensor(self) -> gs.Tensor | None:
        """The bias, None when there is none."""
        if self.bias is None or not is_present(self.node, self.bias):
            return None
        return self.node.inputs[self.bias]

    @property
    def bias_rank(self) -> int:
        """Number of axes of a bias that lies along the output channels."""
        return -self.out_axis if self.out_axis < 0 else 1

    def as_bias(self, vector: np.ndarray) -> np.ndarray:
        """A vector over output channels, shaped to be added to the output or given as bias."""
        return vector.reshape(-1, *[1] * (self.bias_rank - 1))

    def why_no_input_shift(self) -> str | None:
        """Why a shift of the input is not a shift of the output alone; None where it is."""
        patches = self.unfolding(self.weight_array.shape)
        if isinstance(patches, Vectors):
            return "its weight is a batch of matrices" if patches.batch else None
        assert isinstance(patches, ConvPatches)
        if patches.transposed:
            return None if _is_pointwise(patches) else _OVERLAP
        return None if _is_unpadded(patches) else _PADDED

    def push(self, shift: np.ndarray) -> np.ndarray:
        """Σ_i Σ_k W[o, i, k]·shift_i: the shift of outputs for one of inputs, (outs,), float64."""
        weight = self.weight_array
        # Σ_k: the axes that tell neither inputs nor outputs are those of the kernel
        kernel = tuple(
            axis
            for axis in range(weight.ndim)
            if self.out_index.shape[axis] == 1 and self.in_index.shape[axis] == 1
        )
        summed = weight.astype(np.float64).sum(axis=kernel, keepdims=True)
        # Σ_i: each product is added to its output channel
        summed = summed * shift[self.in_index]
        where = np.broadcast_to(self.out_index, summed.shape)
        pushed = np.bincount(where.ravel(), weights=summed.ravel(), minlength=self.outs)
        return pushed * self.scale


_PADDED: Final = "the Conv pads with zeros"
_OVERLAP: Final = "the ConvTranspose adds its kernel up differently near its borders"


def linear_layer(node: Node | None) -> LinearLayer | None:
    """`node` as a linear layer; None for other nodes, and where the weight is not constant."""
    if node is None or not node.is_onnx or node.op not in LINEAR_OPS:
        return None
    found = constant_weight(node)
    if isinstance(found, str) or len(found[1]) == 1:
        return None
    operator, shape = found
    if operator.is_conv:
        return _conv_layer(operator, shape)
    data_rank = rank(node.inputs[operator.data])
    if node.op == "MatMul" and operator.weight == 0 and (data_rank is None or data_rank < 2):
        return None  # a vector on the right has no columns
    return _product_layer(operator, shape)


def _conv_layer(operator: LinearOperator, shape: tuple[int, ...]) -> LinearLayer:
    first, second = shape[:2]  # Conv (outs, ins / group, k...), ConvTranspose (ins, outs / group)
    tail = [1] * (len(shape) - 2)
    row = np.arange(first).reshape(-1, 1, *tail)
    # the channels of axis 1 count from zero in each group: the group of a row shifts them
    group = row // (first // operator.groups)
    column = group * second + np.arange(second).reshape(1, -1, *tail)
    row_count, column_count = first, second * operator.groups
    if operator.inputs_first:
        return _layer(operator, (column, row), (column_count, row_count), len(shape))
    return _layer(operator, (row, column), (row_count, column_count), len(shape))


def _product_layer(operator: LinearOperator, shape: tuple[int, ...]) -> LinearLayer:
    def positions(dim: int) -> np.ndarray:
        place = [1] * len(shape)
        place[dim] = shape[dim]
        return np.arange(shape[dim]).reshape(place)

    last, before = len(shape) - 1, len(shape) - 2
    out_dim, in_dim = (last, before) if operator.inputs_first else (before, last)
    ndim = 2 if operator.node.op == "Gemm" else rank(operator.node.outputs[0])
    indices = positions(out_dim), positions(in_dim)
    return _layer(operator, indices, (shape[out_dim], shape[in_dim]), ndim)


def _layer(
    operator: LinearOperator,
    indices: tuple[np.ndarray, np.ndarray],
    counts: tuple[int, int],
    ndim: int | None,
) -> LinearLayer:
    """The layer, from the indices and numbers of its output and input channels."""
    (out_index, in_index), (outs, ins) = indices, counts
    return LinearLayer(
        **vars(operator), out_index=out_index, in_index=in_index, outs=outs, ins=ins, ndim=ndim
    )


def _is_unpadded(patches: ConvPatches) -> bool:
    if patches.auto_pad.startswith("SAME"):
        return all(size == 1 for size in patches.kernel)
    return patches.auto_pad == "VALID" or not any(patches.pads)


def _is_pointwise(patches: ConvPatches) -> bool:
    if patches.auto_pad not in ("NOTSET", "VALID"):
        return False
    is_grown = any(patches.output_padding) or any(patches.output_shape)
    sizes = (*patches.kernel, *patches.strides)
    return all(size == 1 for size in sizes) and not is_grown and not any(patches.pads)


def scale_weight(weight: np.ndarray, factor: np.ndarray) -> np.ndarray | None:
    """`weight · factor`, multiplied in float64 and rounded once to the type of `weight`.

    Returns:
        None when a result overflows, or when all of them would lose digits to underflow.
    """
    dtype = weight.dtype
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if dtype == ml_dtypes.bfloat16:
            result = (weight.astype(np.float64) * factor).astype(dtype)
        else:
            # no float64 copy of the weight: numpy casts block by block
            result = np.empty(weight.shape, dtype)
            np.multiply(weight, factor, out=result, dtype=np.float64, casting="same_kind")
    peak = max(float(result.max()), -float(result.min()))
    if not np.isfinite(peak):
        return None
    is_lost = peak < float(ml_dtypes.finfo(dtype).tiny)
    return None if is_lost and np.any(factor) and np.any(weight) else result


def absorb_after(layer: LinearLayer, mapping: AffineMap) -> list[gs.Tensor | np.ndarray] | str:
    """New weight and bias (array, or the tensor kept) of the layer followed by `mapping`.

    Returns:
        `[weight]` for a scale alone where there is no bias, `[weight, bias]`, or why not.
    """
    vectors = mapping.along(layer.out_axis, layer.outs, layer.ndim)
    if vectors is None:
        return "it varies along another axis than the channels of the layer"
    return _absorbed(layer, vectors, layer.out_index, vectors.scale, vectors.shift)


def absorb_before(layer: LinearLayer, mapping: AffineMap) -> list[gs.Tensor | np.ndarray] | str:
    """As `absorb_after`, for the layer whose input is mapped by `mapping`."""
    data = layer.node.inputs[layer.data]
    ndim = rank(data) if layer.node.op == "MatMul" else layer.ndim
    vectors = mapping.along(layer.in_axis, layer.ins, ndim)
    if vectors is None:
        return "it varies along another axis than the input channels of the layer"
    shift = np.zeros(layer.outs)
    if vectors.shifts:
        reason = layer.why_no_input_shift()
        if reason is not None:
            return reason
        shift = layer.push(vectors.shift)
    return _absorbed(layer, vectors, layer.in_index, np.ones(layer.outs), shift)


def _absorbed(
    layer: LinearLayer,
    vectors: AffineMap,
    index: np.ndarray,
    bias_scale: np.ndarray,
    bias_shift: np.ndarray,
) -> list[gs.Tensor | np.ndarray] | str:
    """Weight and bias when each weight is scaled by its channel of `index`, or why not."""
    weight: gs.Tensor | np.ndarray = layer.weight_tensor
    if vectors.scales:
        scaled = scale_weight(layer.weight_array, vectors.scale[index])
        if scaled is None:
            return "a weight would overflow or underflow"
        weight = scaled
    bias = _new_bias(layer, bias_scale, bias_shift)
    return bias if isinstance(bias, str) else [weight, *bias]


def _new_bias(
    layer: LinearLayer, scale: np.ndarray, shift: np.ndarray
) -> list[gs.Tensor | np.ndarray] | str:
    """The bias of `scale · layer + shift`, `[]` when there need be none, or why not."""
    old = layer.bias_tensor
    if not np.any(scale != 1) and not np.any(shift != 0):
        return [] if old is None else [old]
    if old is None and not np.any(shift != 0):
        return []
    if layer.bias is None:
        return "a MatMul has no bias"
    dtype = np.dtype(layer.weight_array.dtype)
    values = np.zeros(1)
    if old is not None:
        array = const_array(old)
        if array is None:
            return "the bias of the layer is computed at run time"
        if layer.is_conv and array.shape != (layer.outs,):
            return "the bias of the layer is not one number for each output channel"
        values, dtype = array.astype(np.float64), np.dtype(array.dtype)
    values = values * layer.bias_scale
    new = layer.as_bias(scale) * values + layer.as_bias(shift)
    if new.size > max(values.size, layer.outs):
        return "the bias of the layer would grow into a matrix"
    result = cast(new, dtype)
    return "a bias would overflow" if result is None else [result]

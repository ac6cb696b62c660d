"""Linear layers with a constant weight, seen alike: Conv, ConvTranspose, Gemm, MatMul.

Each element of a weight connects one input channel to one output channel. `LinearLayer` says which,
by two index arrays that broadcast against the weight; grouped, transposed and swapped layouts
differ in nothing else. With W[o, i, k] for kernel position k:

    y_o = Σ_i Σ_k W[o, i, k]·x_i + B_o
    a·y + b               is the layer with  W[o, i, k]·a_o            and  a_o·B_o + b_o
    the layer of a·x + b  is the layer with  W[o, i, k]·a_i            and  B_o + Σ W[o, i, k]·b_i
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import AffineMap, cast, is_float
from onnxslim.graph.dims import rank
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array, const_value, is_present


@dataclass(frozen=True)
class LinearLayer:
    """A node that is linear in its input `data`, with a constant weight.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        data, weight: indices of inputs.
        bias: index of the bias input, None when the operator has none.
        out_axis, in_axis: the channel axis of the output and of `data`; negative from the end.
        out_index, in_index: for each element of the weight, its output and its input channel.
        outs, ins: numbers of channels.
        ndim: rank of the output, None when unknown.
    """

    node: Node
    data: int
    weight: int
    bias: int | None
    out_axis: int
    in_axis: int
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
        """Dimensions that a bias vector needs so that it lies along the output channels."""
        return -self.out_axis if self.out_axis < 0 else 1

    def as_bias(self, vector: np.ndarray) -> np.ndarray:
        """A vector over output channels, shaped to be added to the output or given as bias."""
        return vector.reshape(-1, *[1] * (self.bias_rank - 1))

    def why_no_input_shift(self) -> str | None:
        """Why a constant added to the input is not a constant added to the output, if so."""
        if self.node.op == "Conv":
            return (
                None if _is_unpadded(self.node, self.weight_array) else "the Conv pads with zeros"
            )
        if self.node.op == "ConvTranspose":
            return None if _is_pointwise(self.node, self.weight_array) else _OVERLAP
        return "its weight is a batch of matrices" if self.weight_array.ndim > 2 else None

    def scaled(self, scale: np.ndarray, index: np.ndarray) -> np.ndarray | None:
        """The weight with each element times `scale[index]`; None when it leaves the type."""
        weight = self.weight_array
        return scale_weight(weight, scale[index])

    def push(self, shift: np.ndarray) -> np.ndarray:
        """What adding `shift` to each input channel adds to each output channel, float64."""
        weight = self.weight_array
        kernel = tuple(
            axis
            for axis in range(weight.ndim)
            if self.out_index.shape[axis] == 1 and self.in_index.shape[axis] == 1
        )
        summed = weight.astype(np.float64).sum(axis=kernel, keepdims=True)
        summed = summed * shift[self.in_index]
        where = np.broadcast_to(self.out_index, summed.shape)
        pushed = np.bincount(where.ravel(), weights=summed.ravel(), minlength=self.outs)
        return pushed * float(self.node.attrs.get("alpha", 1.0))


_PADDED: Final = "the Conv pads with zeros"
_OVERLAP: Final = "the ConvTranspose adds its kernel up differently near its borders"


def linear_layer(node: Node | None) -> LinearLayer | None:
    """The linear layer that `node` is, None when it is none or its weight is not constant."""
    if node is None or (node.domain or "") not in ("", "ai.onnx"):
        return None
    read = _LAYERS.get(node.op)
    return None if read is None else read(node)


def _weight_shape(tensor: gs.Tensor) -> tuple[int, ...] | None:
    stored = const_value(tensor)
    if stored is None or not is_float(stored.dtype) or 0 in stored.shape:
        return None
    return tuple(stored.shape)


def _read_conv(node: Node) -> LinearLayer | None:
    shape = _weight_shape(node.inputs[1])
    group = int(node.attrs.get("group", 1))
    if shape is None or len(shape) < 3 or shape[0] % group:
        return None
    transposed = node.op == "ConvTranspose"
    first, second = shape[:2]  # Conv (outs, ins / group, k...), ConvTranspose (ins, outs / group)
    tail = [1] * (len(shape) - 2)
    row = np.arange(first).reshape(-1, 1, *tail)
    column = row // (first // group) * second + np.arange(second).reshape(1, -1, *tail)
    out_index, in_index = (column, row) if transposed else (row, column)
    sizes = (second * group, first) if transposed else (first, second * group)
    return LinearLayer(node, 0, 1, 2, 1, 1, out_index, in_index, *sizes, len(shape))


def _read_gemm(node: Node) -> LinearLayer | None:
    if "broadcast" in node.attrs:  # opset < 7
        return None
    for weight in (1, 0):
        shape = _weight_shape(node.inputs[weight])
        if shape is not None and len(shape) == 2 and const_value(node.inputs[1 - weight]) is None:
            flipped = bool(node.attrs.get("transB" if weight else "transA", 0))
            data_flipped = bool(node.attrs.get("transA" if weight else "transB", 0))
            # A' is (M, K) and B' is (K, N): outputs along axis 1 of B', or along axis 0 of A'
            out_dim = (1 if weight else 0) ^ flipped
            in_axis = (-1 if weight else -2) if not data_flipped else (-2 if weight else -1)
            return _product(node, weight, 2, shape, out_dim, in_axis)
    return None


def _read_matmul(node: Node) -> LinearLayer | None:
    for weight in (1, 0):
        shape = _weight_shape(node.inputs[weight])
        data = node.inputs[1 - weight]
        if shape is None or len(shape) < 2 or const_value(data) is not None:
            continue
        ndim = rank(data)
        if weight == 0 and (ndim is None or ndim < 2):  # a vector on the right has no columns
            continue
        out_dim = len(shape) - (1 if weight else 2)
        return _product(node, weight, None, shape, out_dim, -1 if weight else -2)
    return None


def _product(
    node: Node, weight: int, bias: int | None, shape: tuple[int, ...], out_dim: int, in_axis: int
) -> LinearLayer:
    first = len(shape) - 2
    in_dim = 2 * first + 1 - out_dim  # the other one of the last two

    def positions(dim: int) -> np.ndarray:
        place = [1] * len(shape)
        place[dim] = shape[dim]
        return np.arange(shape[dim]).reshape(place)

    return LinearLayer(
        node,
        1 - weight,
        weight,
        bias,
        -1 if weight else -2,
        in_axis,
        positions(out_dim),
        positions(in_dim),
        shape[out_dim],
        shape[in_dim],
        2 if node.op == "Gemm" else rank(node.outputs[0]),
    )


_LAYERS: Final[dict[str, Callable[[Node], LinearLayer | None]]] = {
    "Conv": _read_conv,
    "ConvTranspose": _read_conv,
    "Gemm": _read_gemm,
    "MatMul": _read_matmul,
}
LINEAR_OPS: Final = tuple(_LAYERS)


def _is_unpadded(node: Node, weight: np.ndarray) -> bool:
    mode = _text(node.attrs.get("auto_pad", "NOTSET"))
    if mode.startswith("SAME"):
        return all(size == 1 for size in weight.shape[2:])
    return mode == "VALID" or not any(node.attrs.get("pads", ()))


def _is_pointwise(node: Node, weight: np.ndarray) -> bool:
    sizes = (*weight.shape[2:], *node.attrs.get("strides", ()))
    if _text(node.attrs.get("auto_pad", "NOTSET")) not in ("NOTSET", "VALID"):
        return False
    grown = any(any(node.attrs.get(name, ())) for name in ("output_padding", "output_shape"))
    return all(size == 1 for size in sizes) and not grown and not any(node.attrs.get("pads", ()))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


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
    """As `absorb_after`, for the layer of which `mapping` makes the input."""
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
        scaled = layer.scaled(vectors.scale, index)
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
        values, dtype = array.astype(np.float64), np.dtype(array.dtype)
    if layer.node.op == "Gemm":
        values = values * float(layer.node.attrs.get("beta", 1.0))
    new = layer.as_bias(scale) * values + layer.as_bias(shift)
    if new.size > max(values.size, layer.outs):
        return "the bias of the layer would grow into a matrix"
    result = cast(new, dtype)
    return "a bias would overflow" if result is None else [result]

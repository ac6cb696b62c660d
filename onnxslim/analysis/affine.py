"""BatchNormalization, Mul, Add, Sub, Div and Neg read as affine maps y = a·x + b along one axis.

`read_affine` reads the map of a node whose other operands are constant; maps compose. All
arithmetic is in float64; a result is cast once, to the type of the tensor that is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.graph.dims import rank
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array, const_value, is_present

_FLOATS: Final = frozenset(map(np.dtype, (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)))
# operators whose output has the rank of their first input
_KEEP_RANK: Final = frozenset(
    {
        *("Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Clip", "LeakyRelu", "PRelu", "Tanh"),
        *("Softmax", "BatchNormalization", "InstanceNormalization", "LRN", "Dropout", "Neg"),
        *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Transpose", "Resize"),
        *("Concat", "Identity", "Cast"),
    }
)
_ARITHMETIC: Final = frozenset({"Add", "Sub", "Mul", "Div", "Sum"})
_DEPTH: Final = 8


def is_float(dtype: Any) -> bool:
    """Whether a numpy dtype (or None) is one of the four floating types weights come in."""
    return dtype is not None and np.dtype(dtype) in _FLOATS


@dataclass(frozen=True)
class AffineMap:
    """y = scale·x + shift.

    Attributes:
        scale, shift: float64, of shape () or (C,).
        axis: along which scale and shift lie; from the end when negative, None for scalars.
        ndim: the least rank x must have for y to have the same rank.
        dtype: of the constants that the map was read from, None when there were none.
    """

    scale: np.ndarray
    shift: np.ndarray
    axis: int | None = None
    ndim: int = 0
    dtype: np.dtype[Any] | None = None

    @property
    def scales(self) -> bool:
        """Whether some scale is not one."""
        return bool(np.any(self.scale != 1))

    @property
    def shifts(self) -> bool:
        """Whether some shift is not zero."""
        return bool(np.any(self.shift != 0))

    @property
    def channels(self) -> int | None:
        """Length along `axis`, None for scalars."""
        return max(self.scale.size, self.shift.size) if self.axis is not None else None

    def then(self, other: AffineMap, ndim: int | None) -> AffineMap | None:
        """The map `other` after this one, None when they do not lie along one axis.

        Args:
            other: applied to this one's result.
            ndim: rank of x, None when unknown.
        """
        axis = self.axis if other.axis is None else other.axis
        mine = _from_end(self.axis, ndim)
        theirs = _from_end(other.axis, ndim)
        if self.axis is not None and other.axis is not None and mine != theirs:
            return None
        if self.channels and other.channels and self.channels != other.channels:
            return None
        return AffineMap(
            other.scale * self.scale,
            other.scale * self.shift + other.shift,
            axis,
            max(self.ndim, other.ndim),
            self.dtype or other.dtype,
        )

    def along(self, axis: int, size: int, ndim: int | None) -> AffineMap | None:
        """The same map with (size,) vectors, if it lies along `axis` of a tensor of rank `ndim`."""
        if self.axis is not None and _from_end(self.axis, ndim) != _from_end(axis, ndim):
            return None
        if self.channels not in (None, size) or (ndim is not None and ndim < self.ndim):
            return None
        if ndim is None and self.ndim > 1:
            return None
        full = (size,)
        scale, shift = np.broadcast_to(self.scale, full), np.broadcast_to(self.shift, full)
        return AffineMap(scale, shift, axis, 0, self.dtype)

    def moved(self, axis: int) -> AffineMap:
        """The same map for a tensor whose channels lie along another axis."""
        return AffineMap(self.scale, self.shift, axis, 0, self.dtype)

    def part(self, start: int, stop: int) -> AffineMap:
        """The map of channels `start` to `stop`."""
        cut = [v[start:stop] if v.ndim else v for v in (self.scale, self.shift)]
        return AffineMap(cut[0], cut[1], self.axis, 0, self.dtype)

    def without_shift(self) -> AffineMap:
        """The map y = scale·x."""
        return AffineMap(self.scale, np.zeros(()), self.axis, self.ndim, self.dtype)


def _from_end(axis: int | None, ndim: int | None) -> int | None:
    return axis if axis is None or axis < 0 or ndim is None else axis - ndim


def read_affine(node: Node, opset: int) -> tuple[gs.Tensor, AffineMap] | None:
    """The tensor that `node` maps and the map, None when it is no affine map along one axis."""
    read = _READERS.get(node.op)
    if read is None or "broadcast" in node.attrs:  # opset < 7: other broadcasting rules
        return None
    return read(node, opset)


Reading = tuple[gs.Tensor, AffineMap] | None


def _read_binary(node: Node, opset: int) -> Reading:
    if len(node.inputs) != 2:  # Sum takes any number
        return None
    for index in (1, 0):
        constant = _vector(node.inputs[index])
        if constant is None:
            continue
        values, axis, ndim, dtype = constant
        data = node.inputs[1 - index]
        if const_value(data) is not None:
            return None
        pair = _BINARY[node.op](values, index)
        return None if pair is None else (data, AffineMap(*pair, axis, ndim, dtype))
    return None


Pair = tuple[np.ndarray, np.ndarray] | None
_ONE: Final = np.ones(())
_ZERO: Final = np.zeros(())


def _sub(c: np.ndarray, index: int) -> Pair:
    return (_ONE, -c) if index == 1 else (-_ONE, c)


def _div(c: np.ndarray, index: int) -> Pair:
    if index == 0 or not np.all(c != 0):
        return None
    return 1 / c, _ZERO


# operator -> (scale, shift), from the constant and the index of its input
_BINARY: Final[dict[str, Callable[[np.ndarray, int], Pair]]] = {
    "Add": lambda c, index: (_ONE, c),
    "Sum": lambda c, index: (_ONE, c),
    "Mul": lambda c, index: (c, _ZERO),
    "Sub": _sub,
    "Div": _div,
}


def _vector(tensor: gs.Tensor) -> tuple[np.ndarray, int | None, int, np.dtype[Any]] | None:
    """A constant that varies along one axis at most: float64 values, axis, rank, dtype."""
    stored = const_value(tensor)
    if stored is None or stored.dtype.kind in "OUSbc":
        return None
    shape = tuple(stored.shape)
    long = [axis - len(shape) for axis, size in enumerate(shape) if size != 1]
    if len(long) > 1 or 0 in shape:
        return None
    array = const_array(tensor)
    assert array is not None
    values = array.astype(np.float64).reshape(-1 if long else ())
    return values, long[0] if long else None, len(shape), np.dtype(stored.dtype)


def _read_neg(node: Node, opset: int) -> Reading:
    if not is_float(node.inputs[0].dtype):
        return None
    return node.inputs[0], AffineMap(-_ONE, _ZERO, dtype=np.dtype(node.inputs[0].dtype))


def _read_batch_norm(node: Node, opset: int) -> Reading:
    if not is_inference(node, opset):
        return None
    constants = [const_array(tensor) for tensor in node.inputs[1:5]]
    if len(constants) != 4 or any(c is None or c.ndim != 1 for c in constants):
        return None  # `spatial` = 0 has one parameter for each element
    scale, bias, mean, var = (c.astype(np.float64) for c in constants if c is not None)
    epsilon = float(np.float32(node.attrs.get("epsilon", 1e-5)))
    # a = γ/√(σ² + ε), b = β − a·μ (Ioffe and Szegedy 2015, algorithm 2)
    a = scale / np.sqrt(var + epsilon)
    assert constants[0] is not None
    return node.inputs[0], AffineMap(a, bias - a * mean, 1, 2, constants[0].dtype)


def is_inference(node: Node, opset: int) -> bool:
    """Whether a BatchNormalization uses the mean and variance it is given."""
    if node.attrs.get("spatial", 1) != 1 or any(tensor.name for tensor in node.outputs[1:]):
        return False
    if opset < 7:
        return bool(node.attrs.get("is_test", 0))
    return not node.attrs.get("training_mode", 0)


_READERS: Final[dict[str, Callable[[Node, int], Reading]]] = {
    **dict.fromkeys(_BINARY, _read_binary),
    "Neg": _read_neg,
    "BatchNormalization": _read_batch_norm,
}
AFFINE_OPS: Final = tuple(_READERS)


def rank_of(tensor: gs.Tensor, depth: int = _DEPTH) -> int | None:
    """The rank of a tensor; where inference failed, as far as its operators determine it."""
    known = rank(tensor)
    node = _maker(tensor)
    if known is not None or node is None or depth == 0:
        return known
    if node.op in ("Conv", "ConvTranspose"):
        return rank(node.inputs[1])
    if node.op in _KEEP_RANK:
        return rank_of(node.inputs[0], depth - 1)
    if node.op in _ARITHMETIC and len(node.inputs) == 2:
        ranks = [rank_of(item, depth - 1) for item in node.inputs]
        return None if None in ranks else max(item for item in ranks if item is not None)
    return None


def min_rank(tensor: gs.Tensor, depth: int = _DEPTH) -> int:
    """A lower bound of the rank of a tensor."""
    known = rank_of(tensor, 2)
    node = _maker(tensor)
    if known is not None or node is None or depth == 0:
        return known or 0
    if node.op in _ARITHMETIC:
        return max(min_rank(item, depth - 1) for item in node.inputs)
    if node.op in _KEEP_RANK:
        return min_rank(node.inputs[0], depth - 1)
    if node.op == "MatMul" and is_present(node, 1):
        return max(0, max(rank(item) or 0 for item in node.inputs) - 1)
    return 0


def _maker(tensor: gs.Tensor) -> Node | None:
    """The standard operator that computes `tensor`."""
    if len(tensor.inputs) != 1:
        return None
    node: Node = tensor.inputs[0]
    return node if (node.domain or "") in ("", "ai.onnx") else None


def cast(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray | None:
    """`values` in `dtype`, None where one of them is not finite there."""
    with np.errstate(over="ignore", invalid="ignore"):
        result = np.asarray(values).astype(dtype)
    finite = np.isfinite(result.astype(np.float32) if dtype == ml_dtypes.bfloat16 else result)
    return result if bool(finite.all()) else None

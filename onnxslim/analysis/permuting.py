"""Operators that commute with a permutation of axes, and how their operands on axes move with it.

For an operator f of the table and a Transpose T, ``f(T(x)) = T(f'(x))``, where f' has other
attributes and constants: axis i behind the Transpose is axis ``perm[i]`` before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from onnxslim.analysis.flow.shape_rules import REDUCTIONS
from onnxslim.graph.dims import rank
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import axes_of, const_array, const_value, ints_operand, normalized

Perm = tuple[int, ...]


@dataclass(frozen=True)
class Moved:
    """How a node is written before a Transpose instead of behind it.

    Attributes:
        attrs: all its attributes.
        operands: other values for constant inputs, by index.
        rounds: whether sums are taken in another order.
    """

    attrs: Mapping[str, Any]
    operands: Mapping[int, np.ndarray] = field(default_factory=dict)
    rounds: bool = False


Rule = Callable[[Node, Perm, int], Moved | None]


def moved(node: Node, perm: Perm, opset: int) -> Moved | None:
    """`node`, whose operands are Transposes by `perm`, on the inputs of these; None if it cannot.

    Args:
        node: of an operator in `COMMUTING`, and of the rank of `perm`.
        perm: of the Transposes.
        opset: of the model.
    """
    return COMMUTING[node.op][1](node, perm, opset)


def permuted_inputs(node: Node) -> int:
    """How many of the first inputs are permuted with the output; the others are operands."""
    count = COMMUTING[node.op][0]
    return len(node.inputs) if count is None else count


def _unchanged(node: Node, perm: Perm, opset: int) -> Moved | None:
    return Moved(node.attrs)


def _broadcast(node: Node, perm: Perm, opset: int) -> Moved | None:
    return Moved(node.attrs) if opset >= 7 else None


def _axis(default: int) -> Rule:
    """An operator along one axis, given as an attribute."""

    def rule(node: Node, perm: Perm, opset: int) -> Moved | None:
        axis = int(node.attrs.get("axis", default))
        return Moved({**node.attrs, "axis": perm[axis]}) if -len(perm) <= axis < len(perm) else None

    return rule


def _softmax(node: Node, perm: Perm, opset: int) -> Moved | None:
    axis = int(node.attrs.get("axis", -1 if opset >= 13 else 1)) % len(perm)
    if opset < 13:  # all axes from this one on count as one
        tail = perm[axis:]
        return Moved({**node.attrs, "axis": axis}, rounds=True) if min(tail) >= axis else None
    return Moved({**node.attrs, "axis": perm[axis]}, rounds=True)


def _reduce(node: Node, perm: Perm, opset: int) -> Moved | None:
    axes = normalized(axes_of(node, opset), len(perm))
    if axes is None or not node.attrs.get("keepdims", 1):
        return None
    rounds = node.op not in ("ReduceMax", "ReduceMin")
    if not axes:  # all, or none
        return Moved(node.attrs, rounds=rounds)
    turned = sorted(perm[axis] for axis in axes)
    if "axes" in node.attrs:
        return Moved({**node.attrs, "axes": turned}, rounds=rounds)
    return Moved(node.attrs, {1: np.array(turned, np.int64)}, rounds)


def _arg_reduce(node: Node, perm: Perm, opset: int) -> Moved | None:
    return _axis(0)(node, perm, opset) if node.attrs.get("keepdims", 1) else None


def _cumulative_sum(node: Node, perm: Perm, opset: int) -> Moved | None:
    axis = const_array(node.inputs[1])
    if axis is None or axis.size != 1:
        return None
    turned = perm[int(axis.reshape(-1)[0])]
    return Moved(node.attrs, {1: np.full(axis.shape, turned, axis.dtype)}, rounds=True)


def _gather(node: Node, perm: Perm, opset: int) -> Moved | None:
    return _axis(0)(node, perm, opset) if rank(node.inputs[1]) == 1 else None


def _slice(node: Node, perm: Perm, opset: int) -> Moved | None:
    starts = ints_operand(node, opset, "starts", 1, 10)
    axes = axes_of(node, opset)
    if starts is None or axes is None:
        return None
    places = normalized(axes or tuple(range(len(starts))), len(perm))
    if places is None:
        return None
    turned = [perm[axis] for axis in places]
    if opset < 10:
        return Moved({**node.attrs, "axes": turned})
    return Moved(node.attrs, {3: np.array(turned, np.int64)})


def _pad(node: Node, perm: Perm, opset: int) -> Moved | None:
    pads = ints_operand(node, opset, "pads", 1, 11)
    axes = axes_of(node, opset)
    if not pads or axes is None:
        return None
    if axes:
        places = normalized(axes, len(perm))
        if places is None:
            return None
        return Moved(node.attrs, {3: np.array([perm[axis] for axis in places], np.int64)})
    if len(pads) != 2 * len(perm):
        return None
    order = np.argsort(perm)
    turned = np.array(pads, np.int64).reshape(2, -1)[:, order].reshape(-1)
    if opset < 11:
        return Moved({**node.attrs, "pads": turned.tolist()})
    return Moved(node.attrs, {1: turned})


def _layer_normalization(node: Node, perm: Perm, opset: int) -> Moved | None:
    axis = int(node.attrs.get("axis", -1)) % len(perm)
    stays = perm[axis:] == tuple(range(axis, len(perm)))  # scale and bias lie along these axes
    return Moved(node.attrs) if stays and len(node.outputs) == 1 else None


def _quantize(node: Node, perm: Perm, opset: int) -> Moved | None:
    scale = const_value(node.inputs[1])
    if scale is None or node.attrs.get("block_size", 0):
        return None
    if scale.size == 1 and len(scale.shape) == 0:
        return Moved(node.attrs)
    return _axis(1)(node, perm, opset) if len(scale.shape) == 1 else None


_UNARY_NAMES: Final = (
    "Abs Cast Ceil Celu Clip Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu "
    "Log Mish Neg Not Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Tanh "
    "ThresholdedRelu"
)
_BINARY_NAMES: Final = (
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow PRelu "
    "Sub Sum Where Xor"
)
ELEMENTWISE: Final = frozenset((*_UNARY_NAMES.split(), *_BINARY_NAMES.split()))
# operator -> inputs that are permuted (None: all) and how its other operands move
COMMUTING: Final[Mapping[str, tuple[int | None, Rule]]] = {
    **dict.fromkeys(_UNARY_NAMES.split(), (1, _unchanged)),
    **dict.fromkeys(_BINARY_NAMES.split(), (None, _broadcast)),
    **dict.fromkeys(("Softmax", "LogSoftmax"), (1, _softmax)),
    **dict.fromkeys(REDUCTIONS, (1, _reduce)),
    **dict.fromkeys(("ArgMax", "ArgMin"), (1, _arg_reduce)),
    "Concat": (None, _axis(1)),  # the default before opset 4
    "CumSum": (1, _cumulative_sum),
    "Gather": (1, _gather),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), (1, _layer_normalization)),
    "Pad": (1, _pad),
    "Slice": (1, _slice),
    "Split": (1, _axis(0)),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), (1, _quantize)),
}


def composed(first: Sequence[int], second: Sequence[int]) -> Perm:
    """The permutation of a Transpose by `first` and then one by `second`."""
    return tuple(first[axis] for axis in second)


def inverse(perm: Sequence[int]) -> Perm:
    """The permutation that undoes `perm`."""
    return tuple(int(axis) for axis in np.argsort(perm))


def is_identity(perm: Sequence[int]) -> bool:
    """Whether a Transpose by `perm` leaves every axis where it is."""
    return tuple(perm) == tuple(range(len(perm)))

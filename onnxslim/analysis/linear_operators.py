"""The one reading of operators with weights: which input is what, and how a weight lies.

Each of them has y = scale·W·x + bias_scale·b for a matrix W in one of its inputs, or one matrix per
group or per element of a stack:

    Conv            W from (outputs, inputs / groups, kernel...), x is a patch
    ConvTranspose   W from (inputs, outputs / groups, kernel...), x is what meets one output
                    position
    Gemm, MatMul    W from the right operand and x a row of the left one, or W from the left operand
                    and x a column of the right one; transA and transB may flip either
    LSTM, GRU, RNN  two weights with a group for each direction and the gates stacked in their rows:
                    W, where x is the input of a step, and R, where x is the hidden state before the
                    step; y is a term inside of the operator
    Gather          W is the table, and y is a row of it that an index picks

`linear_operator` reads attributes alone. `constant_weight` also finds the constant operand of the
first four, whose y is their output; `operator_weights` finds the weights of all, behind Identity,
Cast and Transpose too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import is_float
from onnxslim.graph.functions import DEQUANTIZE, is_codebook
from onnxslim.graph.ir import Constant, Node, to_numpy_dtype
from onnxslim.graph.moved_constants import why_no_constant
from onnxslim.graph.operands import const_value, constant_node_value


@dataclass(frozen=True)
class ConvPatches:
    """How a Conv, or a ConvTranspose, reads its input; the fields are the operator's attributes.

    Attributes:
        groups: number of blocks that channels are divided into.
        kernel, strides, dilations: one number per spatial axis.
        pads: begins, then ends, one of each per spatial axis.
        auto_pad: NOTSET, VALID, SAME_UPPER or SAME_LOWER.
        transposed: whether the operator is a ConvTranspose.
        output_padding, output_shape: of a ConvTranspose; () when absent.
    """

    groups: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str = "NOTSET"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Vectors:
    """Rows (axis -1) or columns (axis -2) of a matrix, or of each matrix in a stack.

    Attributes:
        axis: of the other operand, along which x lies.
        out_axis: of the output, along which y lies; None when the weight is a vector.
        batch: shape of the weight's stack of matrices; each of them is a group.
        scale: what x is multiplied by (Gemm's alpha).
    """

    axis: int
    out_axis: int | None
    batch: tuple[int, ...] = ()
    scale: float = 1.0

    @property
    def groups(self) -> int:
        """Number of matrices that the weight stacks."""
        return prod(self.batch)


@dataclass(frozen=True)
class RecurrentSteps:
    """What a recurrent operator multiplies by a weight, in each of its steps.

    Attributes:
        backwards: for each direction, whether it goes from the last step to the first.
        is_batch_first: whether the batch, and not time, is the first axis (`layout` is 1).
        of_states: whether x is the hidden state before a step; else it is the input of the step.
    """

    backwards: tuple[bool, ...]
    is_batch_first: bool
    of_states: bool

    @property
    def groups(self) -> int:
        """Number of directions, each of which has a matrix."""
        return len(self.backwards)


@dataclass(frozen=True)
class TableRows:
    """Rows of a table, which indices pick: y is a row of the weight, whatever x is."""

    groups: int = 1


Unfolding = ConvPatches | Vectors | RecurrentSteps | TableRows


@dataclass(frozen=True)
class LinearOperator:
    """How a node reads a weight: y = scale·W·x + bias_scale·b.

    Attributes:
        node: one of `WEIGHT_OPS`.
        data, weight: indices of the inputs that x and W come from.
        bias: index of the bias input, present or not; None where the operator has none.
        in_axis: axis of the data along which inputs (channels) lie; negative: from the end.
        out_axis: axis of the output along which outputs lie; negative: from the end.
        inputs_first: whether inputs come before outputs in the weight tensor.
        groups: number of blocks that channels are divided into.
        scale, bias_scale: Gemm's alpha and beta.
        has_second_bias: whether b is the second half of the bias input, as for R.
    """

    node: Node
    data: int
    weight: int
    bias: int | None
    in_axis: int
    out_axis: int
    inputs_first: bool
    groups: int = 1
    scale: float = 1.0
    bias_scale: float = 1.0
    has_second_bias: bool = False

    @property
    def is_conv(self) -> bool:
        """Whether the operator slides a kernel: a Conv or a ConvTranspose."""
        return self.node.op in ("Conv", "ConvTranspose")

    def unfolding(self, shape: tuple[int, ...]) -> Unfolding:
        """How x comes out of the data, for a weight tensor of `shape`."""
        if self.is_conv:
            return _patches(self, shape[2:])
        if self.node.op in RECURRENT_OPS:
            return _steps(self.node, of_states=self.weight == _R)
        if self.node.op in TABLE_OPS:
            return TableRows()
        out_axis = None if len(shape) == 1 else self.out_axis
        return Vectors(self.in_axis, out_axis, shape[:-2], self.scale)

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(rows, columns) of each group's W, for a weight tensor of `shape`: outputs, inputs."""
        if self.node.op in TABLE_OPS:
            return shape[0], prod(shape[1:])
        if len(shape) == 1:
            return 1, shape[0]
        if not self.is_conv:
            first, second = shape[-2:]
            return (second, first) if self.inputs_first else (first, second)
        taps = prod(shape[2:])
        if self.inputs_first:
            return shape[1], shape[0] // self.groups * taps
        return shape[0] // self.groups, shape[1] * taps


def linear_operator(node: Node, weight: int = 1) -> LinearOperator:
    """How `node`, one of `WEIGHT_OPS`, reads its input `weight`."""
    return _READERS[node.op](node, weight)


def _conv(node: Node, _weight: int) -> LinearOperator:
    transposed = node.op == "ConvTranspose"
    return LinearOperator(node, 0, 1, 2, 1, 1, transposed, int(node.attrs.get("group", 1)))


def _gemm(node: Node, weight: int) -> LinearOperator:
    own, other = ("transB", "transA") if weight else ("transA", "transB")
    is_right = bool(weight)
    # A' is (M, K), B' is (K, N): x is a row of A' (weight B) or a column of B' (weight A), and
    # the flip of an operand exchanges its axes
    in_axis = -1 if is_right != bool(node.attrs.get(other, 0)) else -2
    return LinearOperator(
        node,
        1 - weight,
        weight,
        2,
        in_axis,
        -1 if is_right else -2,
        inputs_first=is_right != bool(node.attrs.get(own, 0)),
        scale=float(node.attrs.get("alpha", 1.0)),
        bias_scale=float(node.attrs.get("beta", 1.0)),
    )


def _matmul(node: Node, weight: int) -> LinearOperator:
    axis = -1 if weight else -2
    return LinearOperator(node, 1 - weight, weight, None, axis, axis, inputs_first=bool(weight))


def _recurrent(node: Node, weight: int) -> LinearOperator:
    # the reset gate of a GRU scales the hidden state before its last third of R, so that the mean
    # of what this third reads is not that of the state
    is_scaled = node.op == "GRU" and weight == _R and not node.attrs.get("linear_before_reset", 0)
    return LinearOperator(
        node,
        0,
        weight,
        None if is_scaled else _B,
        -1,
        -1,
        inputs_first=False,
        has_second_bias=weight == _R,
    )


def _table(node: Node, _weight: int) -> LinearOperator:
    return LinearOperator(node, 1, 0, None, -1, -1, inputs_first=False)


_LINEAR: Final[dict[str, Callable[[Node, int], LinearOperator]]] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
LINEAR_OPS: Final = tuple(_LINEAR)
RECURRENT_OPS: Final = ("LSTM", "GRU", "RNN")
TABLE_OPS: Final = ("Gather",)
WEIGHT_OPS: Final = (*LINEAR_OPS, *RECURRENT_OPS, *TABLE_OPS)
_READERS: Final = {
    **_LINEAR,
    **dict.fromkeys(RECURRENT_OPS, _recurrent),
    **dict.fromkeys(TABLE_OPS, _table),
}
_W, _R, _B = 1, 2, 3  # inputs of a recurrent operator
SEQUENCE_LENS: Final = 4
INITIAL_STATE: Final = 5


def _steps(node: Node, *, of_states: bool) -> RecurrentSteps:
    direction = node.attrs.get("direction", "forward")
    word = direction.decode() if isinstance(direction, bytes) else direction
    backwards = {"forward": (False,), "reverse": (True,)}.get(word, (False, True))
    return RecurrentSteps(backwards, bool(node.attrs.get("layout", 0)), of_states)


def _patches(operator: LinearOperator, kernel: tuple[int, ...]) -> ConvPatches:
    node, ndim = operator.node, len(kernel)
    auto_pad = node.attrs.get("auto_pad", "NOTSET")
    return ConvPatches(
        groups=operator.groups,
        kernel=kernel,
        strides=_ints(node, "strides", (1,) * ndim),
        dilations=_ints(node, "dilations", (1,) * ndim),
        pads=_ints(node, "pads", (0,) * (2 * ndim)),
        auto_pad=auto_pad.decode() if isinstance(auto_pad, bytes) else auto_pad,
        transposed=operator.inputs_first,
        output_padding=_ints(node, "output_padding", ()),
        output_shape=_ints(node, "output_shape", ()),
    )


def _ints(node: Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = node.attrs.get(name)
    return default if value is None or not len(value) else tuple(int(item) for item in value)


# ---------------------------------------------------------------------------- constant weights

RUN_TIME: Final = "its weight is computed at run time"
_DEQUANTIZED: Final = "its weight is dequantized (DequantizeLinear)"
_CODEBOOK: Final = "its weight is a codebook (Lookup)"
_CONSTANT: Final = "all its operands are constant"


@dataclass(frozen=True)
class OperatorWeight:
    """A constant weight of a node.

    Attributes:
        operator: how the node reads it.
        shape: of the constant.
        views: the nodes between the constant and the operator, the one at the constant first:
            Identity, Cast between floats, and Transpose of a matrix.
    """

    operator: LinearOperator
    shape: tuple[int, ...]
    views: tuple[Node, ...] = ()


def operator_weights(node: Node) -> Iterator[OperatorWeight | str]:
    """The weights of `node`, one of `WEIGHT_OPS`; for each that cannot be replaced, why not.

    A Gather of anything but floats, or of a vector, has no weight; that is no reason to report.
    """
    if node.op in LINEAR_OPS:
        found = constant_weight(node)
        yield (_viewed_product(node) or found) if isinstance(found, str) else OperatorWeight(*found)
    elif node.op in RECURRENT_OPS:
        for weight in (_W, _R):
            yield _behind_views(node, weight)
    elif node.op in TABLE_OPS:
        table = _behind_views(node, 0)
        if isinstance(table, str):
            if is_codebook(node.inputs[0]):
                yield table
        elif const_value(node.inputs[1]) is None and len(table.shape) > 1:
            yield table


def _viewed_product(node: Node) -> OperatorWeight | None:
    """The weight of a product or convolution whose operand is a view of a constant."""
    for weight in (1, 0) if node.op in ("Gemm", "MatMul") else (1,):
        if const_value(node.inputs[weight]) is not None:
            return None
        found = _behind_views(node, weight)
        if isinstance(found, OperatorWeight):
            return found
    return None


def _behind_views(node: Node, weight: int) -> OperatorWeight | str:
    """The constant from which the input `weight` comes through views alone."""
    tensor, views = node.inputs[weight], []
    while (view := _view(tensor)) is not None:
        views.append(view)
        tensor = view.inputs[0]
    shape = _weight_shape(tensor)
    if isinstance(shape, str):
        return shape
    operator = linear_operator(node, weight)
    if sum(view.op == "Transpose" for view in views) % 2:
        if len(shape) != 2 or node.op not in ("Gemm", "MatMul"):
            return RUN_TIME
        operator = replace(operator, inputs_first=not operator.inputs_first)
    found = OperatorWeight(operator, shape, tuple(reversed(views)))
    return _why_no_shape(operator, shape) or found


def cast_type(node: Node) -> np.dtype[Any]:
    """The type that a Cast gives."""
    return to_numpy_dtype(int(node.attrs["to"]))


def _view(tensor: gs.Tensor) -> Node | None:
    """The node that makes `tensor` of all the numbers of another one, changing none of them."""
    if len(tensor.inputs) != 1 or not tensor.inputs[0].is_onnx:
        return None
    node: Node = tensor.inputs[0]
    if node.op == "Cast":
        return node if is_float(cast_type(node)) else None
    if node.op == "Transpose":
        return node if list(node.attrs.get("perm", (1, 0))) == [1, 0] else None
    return node if node.op == "Identity" else None


def constant_weight(node: Node) -> tuple[LinearOperator, tuple[int, ...]] | str:
    """How `node`, one of `LINEAR_OPS`, reads its constant weight, and the weight tensor's shape.

    Returns:
        Why not, in words, where the weight is not a constant float tensor that can be replaced, or
        where its shape does not go with the operator.
    """
    found = _weight_of_conv(node) if node.op.startswith("Conv") else _weight_of_product(node)
    if isinstance(found, str):
        return found
    weight, shape = found
    operator = linear_operator(node, weight)
    return _why_no_shape(operator, shape) or (operator, shape)


def _why_no_shape(operator: LinearOperator, shape: tuple[int, ...]) -> str | None:
    """Why a weight tensor of `shape` does not go with the operator."""
    node = operator.node
    if operator.is_conv and (len(shape) < 3 or shape[0] % operator.groups):
        return f"its weight of shape {list(shape)} does not fit {operator.groups} groups"
    if node.op == "Gemm" and (len(shape) != 2 or "broadcast" in node.attrs):
        return "it is not the Gemm of opset 7 and later on matrices"
    if node.op in RECURRENT_OPS and shape[:-2] != (operator.unfolding(shape).groups,):
        return f"its weight of shape {list(shape)} does not fit its direction"
    return None


def _weight_of_conv(node: Node) -> tuple[int, tuple[int, ...]] | str:
    shape = _weight_shape(node.inputs[1])
    return shape if isinstance(shape, str) else (1, shape)


def _weight_of_product(node: Node) -> tuple[int, tuple[int, ...]] | str:
    """Which of two operands is the weight, and its shape; or why neither is."""
    reason = ""
    for weight in (1, 0):
        shape = _weight_shape(node.inputs[weight])
        if not isinstance(shape, str):
            both = const_value(node.inputs[1 - weight]) is not None
            return _CONSTANT if both else (weight, shape)
        reason = shape if reason in ("", RUN_TIME) else reason
    return reason


def _weight_shape(tensor: gs.Tensor) -> tuple[int, ...] | str:
    """The shape of a float constant that can be replaced, or why it is none."""
    stored = const_value(tensor)
    if stored is None:
        if is_codebook(tensor):
            is_integer = str(tensor.inputs[0].op).startswith(DEQUANTIZE)
            return _DEQUANTIZED if is_integer else _CODEBOOK
        if any(node.op == "DequantizeLinear" and node.is_onnx for node in tensor.inputs):
            return _DEQUANTIZED
        why = why_no_constant(tensor)
        return RUN_TIME if why is None else f"its weight is {why}"
    if not is_float(stored.dtype):
        return f"its weight is of type {stored.dtype}"
    if stored.size == 0:
        return "its weight is empty"
    if not isinstance(tensor, Constant) and not _holds_tensor(tensor.inputs[0]):
        return "its weight is a Constant node of another kind than a tensor"
    return tuple(stored.shape)


def _holds_tensor(node: Node) -> bool:
    """Whether a `Constant` node keeps its value in the attribute `value`."""
    return isinstance(node.attrs.get("value"), Constant) and constant_node_value(node) is not None

"""Remove operators that return one of their inputs unchanged.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[2, 3] x) => (float[2, 3] y)
    <float one = {1.0}>
    {
        a = Identity (x)
        b = Cast <to = 1> (a)
        c = Mul (b, one)
        y = Relu (c)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[2, 3] x) => (float[2, 3] y) {
        y = Relu (x)
    }
    ```

Why it is correct:
    Each operator below maps x to x bit for bit under the condition in its row: in IEEE 754
    x * 1, x / 1, x - (+0), x + (-0) and pow(x, 1) are x for every x, NaN and -0 included. An
    idempotent operator does not change its own output, and Relu does not change values that are
    never negative.

Declines when:
    1. The node is the only thing between a graph input (or a constant, or another graph output)
       and a graph output: the output needs a node that computes it.
    2. The shape or type that decides whether the node is a no-op is not known.
    3. An output beside the first (mask, indices) is used.

Fidelity:
    EXACT. Not here: x + (+0) and AveragePool over single elements, which turn -0 into +0; Clip
    without bounds, which turns an infinity into the largest number; Where on floats, where
    onnxruntime's own loses the sign of -0.

Reference:
    The ONNX operator specification, one section per operator; IEEE 754-2019, section 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.same_grid import are_on_same_grid
from onnxslim.graph.dims import known_dim, rank, same_shape
from onnxslim.graph.ir import Constant, Node, to_onnx_dtype
from onnxslim.graph.operands import (
    axes_of,
    const_array,
    ints_operand,
    is_filled_with,
    is_present,
    is_training_dropout,
)
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult

_TO_THE_END: Final = 2**31 - 1  # exporters write it, or more, for "up to the end"


@dataclass(frozen=True)
class EliminateIdentity(RewritePass):
    """Remove operators that return one of their inputs unchanged."""

    name: ClassVar[str] = "eliminate-identity"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Bypass every operator that changes nothing."""
        rw = self.rewriter(graph)
        for node in rw.walk(*_NO_OPS):
            if node.op == "Concat":
                _drop_empty_inputs(rw, node)
            same = _NO_OPS[node.op](node, rw.opset)
            if same is not None:
                _bypass(rw, node, same)
        return rw.result()


def _bypass(rw: Rewriter, node: Node, same: gs.Tensor) -> None:
    """Replace ``node`` with ``same``, the input that it returns."""
    if any(rw.uses(tensor) for tensor in node.outputs[1:]):
        rw.skip(node, f"its output `{node.outputs[1].name}` is used as well")  # declines 3
        return
    # a constant that is returned needs a node in any case, and may be large
    if isinstance(same, Constant) and rw.is_output(node.outputs[0]):
        rw.skip(node, "is all there is between two fixed ends")  # declines 1
    elif not rw.substitute(node, same, f"removed a no-op {node.op}"):
        rw.skip(node, "is all there is between two fixed ends")


def _drop_empty_inputs(rw: Rewriter, node: Node) -> None:
    """Replace ``Concat(a, empty, b)`` with ``Concat(a, b)``."""
    axis = node.attrs.get("axis", 1)
    full = [tensor for tensor in node.inputs if known_dim(tensor, axis) != 0]
    # where all inputs are empty, onnxruntime takes the other sizes of the first one
    are_empty = any(0 in (tensor.shape or ()) for tensor in full)
    if 0 < len(full) < len(node.inputs) and not are_empty:
        rw.update(node, "dropped empty inputs", inputs=full)


# ----------------------------------------------------------------- types and shapes


def _first_if(condition: Callable[[Node, int], bool]) -> Callable[[Node, int], gs.Tensor | None]:
    """The first input under `condition`."""
    return lambda node, opset: node.inputs[0] if condition(node, opset) else None


def _is_same_cast(node: Node, opset: int) -> bool:
    dtype = node.inputs[0].dtype
    return dtype is not None and to_onnx_dtype(np.dtype(dtype)) == node.attrs.get("to")


def _is_same_cast_like(node: Node, opset: int) -> bool:
    dtype, target = (tensor.dtype for tensor in node.inputs)
    return dtype is not None and target is not None and np.dtype(dtype) == np.dtype(target)


def _keeps_shape(node: Node, opset: int) -> bool:
    return same_shape(node.inputs[0].shape, node.outputs[0].shape)


def _is_plain_reshape(node: Node, opset: int) -> bool:
    if _keeps_shape(node, opset):
        return True
    target = ints_operand(node, opset, "shape", 1, 5)
    ndim = rank(node.inputs[0])
    if not target or ndim is None or len(target) != ndim or node.attrs.get("allowzero", 0):
        return False
    # 0 copies a size; with all others equal, a single -1 stands for the size that is there
    changed = [
        axis
        for axis, size in enumerate(target)
        if size != 0 and size != known_dim(node.inputs[0], axis)
    ]
    return not changed or (len(changed) == 1 and target[changed[0]] == -1)


def _is_plain_expand(node: Node, opset: int) -> bool:
    if _keeps_shape(node, opset):
        return True
    target, ndim = const_array(node.inputs[1]), rank(node.inputs[0])
    return (
        target is not None
        and ndim is not None
        and target.size <= ndim
        and bool((target == 1).all())
    )


def _is_plain_tile(node: Node, opset: int) -> bool:
    if opset < 6:
        return False
    return _keeps_shape(node, opset) or is_filled_with(node.inputs[1], 1)


def _is_plain_flatten(node: Node, opset: int) -> bool:
    is_matrix = rank(node.inputs[0]) == 2 and node.attrs.get("axis", 1) in (1, -1)
    return is_matrix or _keeps_shape(node, opset)


def _is_plain_transpose(node: Node, opset: int) -> bool:
    shape, perm = node.inputs[0].shape, node.attrs.get("perm")
    if perm is None:
        return shape is not None and len(shape) < 2
    if list(perm) == list(range(len(perm))):
        return True
    # axes of size one may move as long as the shape stays
    moved = [axis for axis in perm if known_dim(node.inputs[0], axis) != 1]
    return moved == sorted(moved) and _keeps_shape(node, opset)


# ----------------------------------------------------------------- parts of a tensor


def _is_whole_slice(node: Node, opset: int) -> bool:
    starts = ints_operand(node, opset, "starts", 1, 10)
    ends = ints_operand(node, opset, "ends", 2, 10)
    steps = ints_operand(node, opset, "steps", 4, 10)
    if steps is None or any(step < 0 for step in steps):
        return False
    if _keeps_shape(node, opset):
        return True  # a forward slice as long as the axis takes all of it
    if not starts or ends is None or any(starts) or any(step != 1 for step in steps):
        return False
    axes = axes_of(node, opset)
    if axes is None:
        return False
    axes = axes or tuple(range(len(starts)))
    return all(
        end >= min(_TO_THE_END, known_dim(node.inputs[0], axis) or _TO_THE_END)
        for axis, end in zip(axes, ends, strict=True)
    )


def _is_zero_pad(node: Node, opset: int) -> bool:
    pads = ints_operand(node, opset, "paddings" if opset < 2 else "pads", 1, 11)
    return bool(pads) and not any(pads or ())


def _is_whole_gather(node: Node, opset: int) -> bool:
    size = known_dim(node.inputs[0], node.attrs.get("axis", 0))
    indices = node.inputs[1].shape
    if size is None or indices is None or list(indices) != [size]:
        return False
    values = const_array(node.inputs[1])
    return values is not None and bool(np.array_equal(values, np.arange(size)))


def _has_one_input(node: Node, opset: int) -> bool:
    return len(node.inputs) == 1


def _has_one_output(node: Node, opset: int) -> bool:
    return len(node.outputs) == 1


def _is_unit_block(node: Node, opset: int) -> bool:
    return bool(node.attrs.get("blocksize") == 1)


def _is_unit_pool(node: Node, opset: int) -> bool:
    attrs = node.attrs
    ones = (*attrs.get("kernel_shape", (0,)), *attrs.get("strides", ()))
    return all(size == 1 for size in ones) and not any(attrs.get("pads", ()))


def _is_unit_resize(node: Node, opset: int) -> bool:
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return False
    if opset < 11:  # Resize-10, Upsample-9
        return is_filled_with(node.inputs[1], 1)
    if is_present(node, 3):
        stretched = node.attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch"
        return stretched and _keeps_shape(node, opset)
    return is_present(node, 2) and is_filled_with(node.inputs[2], 1)


def _is_unit_upsample(node: Node, opset: int) -> bool:
    if opset >= 9:
        return _is_unit_resize(node, 10)
    scales = node.attrs.get("scales", ())
    return bool(scales) and all(scale == 1 for scale in scales)


def _reduces_nothing(node: Node, opset: int) -> bool:
    return bool(node.attrs.get("noop_with_empty_axes")) and axes_of(node, opset) == ()


def _drops_nothing(node: Node, opset: int) -> bool:
    if not is_training_dropout(node, opset):
        return True
    return opset >= 12 and is_present(node, 1) and is_filled_with(node.inputs[1], 0)


# ----------------------------------------------------------------- arithmetic


def _neutral(
    *values: float | bool, either: bool = False
) -> Callable[[Node, int], gs.Tensor | None]:
    """A rule that finds the operand beside a constant filled with the neutral element.

    Args:
        values: the neutral element for floats, then for integers and booleans if it differs.
        either: whether the constant may also be the first operand.
    """

    def other_operand(node: Node, opset: int) -> gs.Tensor | None:
        for index in (1, 0) if either else (1,):
            constant, other = node.inputs[index], node.inputs[1 - index]
            if const_array(constant) is None or not _keeps_shape_of(other, constant, node):
                continue
            is_float = np.dtype(constant.dtype).kind not in "biu"
            if is_filled_with(constant, values[0] if is_float else values[-1]):
                return other
        return None

    return other_operand


def _keeps_shape_of(tensor: gs.Tensor, operand: gs.Tensor, node: Node) -> bool:
    """Whether broadcasting `operand` against `tensor` leaves the shape of `tensor`."""
    if same_shape(tensor.shape, node.outputs[0].shape):
        return True
    shape, ndim = operand.shape, rank(tensor)
    if shape is None or any(size != 1 for size in shape):
        return False
    return len(shape) == 0 or (ndim is not None and len(shape) <= ndim)


def _branch_always_taken(node: Node, opset: int) -> gs.Tensor | None:
    """The branch of a Where that is taken everywhere."""
    dtype = node.outputs[0].dtype
    if dtype is None or np.dtype(dtype).kind not in "biuO":
        return None
    for index, value in ((1, True), (2, False)):
        tensor = node.inputs[index]
        if is_filled_with(node.inputs[0], value) and same_shape(
            tensor.shape, node.outputs[0].shape
        ):
            return tensor
    return None


def _is_open_clip(node: Node, opset: int) -> bool:
    if opset < 11:
        low, high = node.attrs.get("min"), node.attrs.get("max")
        return bool(low == -np.inf and high == np.inf)
    dtype = node.inputs[0].dtype
    if dtype is None:
        return False
    ends: tuple[float, float] = (-np.inf, np.inf)
    is_integer = np.dtype(dtype).kind in "iu"
    if is_integer:
        limits = np.iinfo(np.dtype(dtype))
        ends = (int(limits.min), int(limits.max))
    for index, end in ((1, ends[0]), (2, ends[1])):
        if not is_present(node, index):
            if not is_integer:  # for floats, the default is the largest number, not infinity
                return False
        elif not is_filled_with(node.inputs[index], end):
            return False
    return True


# ----------------------------------------------------------------- pairs

_NEVER_NEGATIVE: Final = frozenset(
    {"Relu", "Abs", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "ThresholdedRelu"}
)


def _producer(tensor: gs.Tensor) -> Node | None:
    node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    return node if node is not None and node.is_onnx else None


def _after_itself(node: Node, opset: int) -> gs.Tensor | None:
    """The input of an idempotent operator, when the same operator computed that input."""
    before = _producer(node.inputs[0])
    return node.inputs[0] if before is not None and before.op == node.op else None


def _undone(node: Node, opset: int) -> gs.Tensor | None:
    """The input of the first of two equal operators that undo each other (Neg, Not)."""
    before = _producer(node.inputs[0])
    return before.inputs[0] if before is not None and before.op == node.op else None


def _already_positive(node: Node, opset: int) -> gs.Tensor | None:
    """The input of a Relu that is never below zero."""
    before, dtype = _producer(node.inputs[0]), node.inputs[0].dtype
    if before is None or dtype is None or np.dtype(dtype).kind in "iu":  # |INT_MIN| is negative
        return None
    return node.inputs[0] if _is_never_negative(before, opset) else None


def _is_never_negative(node: Node, opset: int) -> bool:
    if node.op != "Clip":
        return node.op in _NEVER_NEGATIVE and node.attrs.get("alpha", 0) >= 0
    if opset < 11:
        return bool(node.attrs.get("min", -1) >= 0)
    low = const_array(node.inputs[1]) if is_present(node, 1) else None
    return low is not None and low.size == 1 and bool(low >= 0)


def _requantized(node: Node, opset: int) -> gs.Tensor | None:
    """The integers that a QuantizeLinear gets back from a DequantizeLinear on the same grid."""
    before = _producer(node.inputs[0])
    if before is None or before.op != "DequantizeLinear":
        return None
    return before.inputs[0] if are_on_same_grid(before, node) else None


_first = _first_if(lambda node, opset: True)
_REDUCTIONS: Final = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")

# operator -> the input that it returns unchanged, None when it does more
_NO_OPS: Final[dict[str, Callable[[Node, int], gs.Tensor | None]]] = {
    "Identity": _first,
    "Dropout": _first_if(_drops_nothing),
    "Cast": _first_if(_is_same_cast),
    "CastLike": _first_if(_is_same_cast_like),
    # shapes
    "Reshape": _first_if(_is_plain_reshape),
    "Expand": _first_if(_is_plain_expand),
    "Tile": _first_if(_is_plain_tile),
    "Flatten": _first_if(_is_plain_flatten),
    "Squeeze": _first_if(_keeps_shape),
    "Unsqueeze": _first_if(_keeps_shape),
    "Transpose": _first_if(_is_plain_transpose),
    # parts of a tensor
    "Slice": _first_if(_is_whole_slice),
    "Pad": _first_if(_is_zero_pad),
    "Gather": _first_if(_is_whole_gather),
    "Split": _first_if(_has_one_output),
    "Concat": _first_if(_has_one_input),
    "DepthToSpace": _first_if(_is_unit_block),
    "SpaceToDepth": _first_if(_is_unit_block),
    "MaxPool": _first_if(_is_unit_pool),
    "Resize": _first_if(_is_unit_resize),
    "Upsample": _first_if(_is_unit_upsample),
    **dict.fromkeys(_REDUCTIONS, _first_if(_reduces_nothing)),
    # arithmetic
    **dict.fromkeys(("Max", "Min", "Sum", "Mean"), _first_if(_has_one_input)),
    "Add": _neutral(-0.0, 0, either=True),
    "Sub": _neutral(0.0),
    "Mul": _neutral(1, either=True),
    "Div": _neutral(1),
    "Pow": _neutral(1),
    "BitShift": _neutral(0),
    "And": _neutral(True, either=True),
    "Or": _neutral(False, either=True),
    "Xor": _neutral(False, either=True),
    "BitwiseOr": _neutral(0, either=True),
    "BitwiseXor": _neutral(0, either=True),
    "Where": _branch_always_taken,
    "Clip": _first_if(_is_open_clip),
    # pairs
    "Relu": _already_positive,
    **dict.fromkeys(("Abs", "Floor", "Ceil", "Round", "Sign"), _after_itself),
    **dict.fromkeys(("Neg", "Not", "BitwiseNot"), _undone),
    "QuantizeLinear": _requantized,
}

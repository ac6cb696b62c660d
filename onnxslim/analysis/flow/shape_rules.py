"""Shapes of what operators return, as functions of symbolic input shapes: rules for `SizeFlow`.

Every rule returns one size per axis of the first output, None for a size it cannot tell, or None
when it cannot even tell the rank. A rule may rely on the model running without failing: where an
operator demands equal sizes, either one will do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.graph.ir import Node
from onnxslim.graph.operands import axes_of, const_array, ints_operand, is_present, normalized
from onnxslim.graph.sizes import (
    Shape,
    Size,
    Sizes,
    Sum,
    add,
    applied,
    divide,
    is_capped,
    is_natural,
    multiply,
    product,
    smaller,
    subtract,
)

MaybeShape = Sequence[Size | None] | None
_ADDRESSABLE: Final = 1 << 48


def shapes_of(node: Node, flow: Sizes) -> Iterator[MaybeShape]:
    """The shape of each output as far as it is known, in order."""
    if not node.is_onnx:
        found: MaybeShape = None
    elif node.op in _MULTI_OUTPUT_RULES:
        yield from _MULTI_OUTPUT_RULES[node.op](node, flow)
        return
    else:
        rule = RULES.get(node.op)
        found = None if rule is None else rule(node, flow)
    yield found
    for _ in node.outputs[1:]:
        yield None


def broadcast(shapes: Sequence[Shape | None]) -> MaybeShape:
    """The shape that multidirectional broadcasting gives."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) != len(shapes):
        return None
    ndim = max(map(len, known), default=0)
    columns = zip(*((1,) * (ndim - len(shape)) + shape for shape in known), strict=True)
    return [_broadcast_size(sizes) for sizes in columns]


def _broadcast_size(sizes: Sequence[Size]) -> Size | None:
    others = {size for size in sizes if size != 1}  # a 1 adapts to all others
    if not others:
        return 1
    plain = [size for size in others if isinstance(size, int)]
    if plain:  # beside an integer above 1, a symbol must be that integer or 1
        return plain[0]
    # a Slice of a table of positions up to the length is as long, or the sum fails
    whole = [a for a in others if all(a == b or is_capped(b, a) for b in others)]
    return whole[0] if len(whole) == 1 else None


def _same(node: Node, flow: Sizes) -> MaybeShape:
    return flow.shape(node.inputs[0])


def _elementwise(node: Node, flow: Sizes) -> MaybeShape:
    if "axis" in node.attrs or "broadcast" in node.attrs:  # before opset 7, one-directional
        return flow.shape(node.inputs[0])
    return broadcast([flow.shape(tensor) for tensor in node.inputs if tensor.name])


def _shape(node: Node, flow: Sizes) -> MaybeShape:
    shape = flow.shape(node.inputs[0])
    return None if shape is None else [len(shape[shape_range(node)])]


def shape_range(node: Node) -> slice:
    """The axes that a `Shape` node returns (attributes `start` and `end` since opset 15)."""
    return slice(node.attrs.get("start", 0), node.attrs.get("end"))


def _transpose(node: Node, flow: Sizes) -> MaybeShape:
    shape = flow.shape(node.inputs[0])
    if shape is None:
        return None
    perm = node.attrs.get("perm") or range(len(shape))[::-1]
    return [shape[axis] for axis in perm]


def _unsqueeze(node: Node, flow: Sizes) -> MaybeShape:
    shape = flow.shape(node.inputs[0])
    axes = axes_of(node, flow.opset)
    if shape is None or axes is None:
        return None
    places = normalized(axes, len(shape) + len(axes))
    if places is None:
        return None
    rest = iter(shape)
    return [1 if axis in places else next(rest) for axis in range(len(shape) + len(axes))]


def _squeeze(node: Node, flow: Sizes) -> MaybeShape:
    shape = flow.shape(node.inputs[0])
    axes = axes_of(node, flow.opset)
    if shape is None or axes is None:
        return None
    if not axes:
        if any(not isinstance(size, int) for size in shape):
            return None
        return [size for size in shape if size != 1]
    removed = normalized(axes, len(shape))
    return None if removed is None else [size for i, size in enumerate(shape) if i not in removed]


def _reshape(node: Node, flow: Sizes) -> MaybeShape:
    if not is_present(node, 1):
        return None
    target = flow.value(node.inputs[1])
    if target is None:
        length = flow.shape(node.inputs[1])
        known = length is not None and len(length) == 1 and isinstance(length[0], int)
        return [None] * int(str(length[0])) if known and length is not None else None
    copies = not node.attrs.get("allowzero", 0)
    return reshaped(flow.shape(node.inputs[0]), target.items, copies_zero=copies)


def reshaped(
    shape: Shape | None, target: Sequence[Size | None], *, copies_zero: bool
) -> list[Size | None]:
    """The shape that Reshape gives for `target`, whose -1 is solved where possible."""
    result: list[Size | None] = []
    for axis, size in enumerate(target):
        if size == 0 and copies_zero:
            size = shape[axis] if shape is not None and axis < len(shape) else None
        elif isinstance(size, Sum) and not is_natural(size):
            size = None  # its value may be -1
        result.append(size)
    if shape is None:
        return [None if size == -1 else size for size in result]
    # a single open axis holds what the elements of the input leave for it
    open_axes = [axis for axis, size in enumerate(result) if size is None or size == -1]
    if len(open_axes) == 1:
        result[open_axes[0]] = _quotient(shape, [size for size in result if size not in (None, -1)])
    return [None if size == -1 else size for size in result]


def _quotient(shape: Shape, rest: Sequence[Size | None]) -> Size | None:
    """The number of elements of `shape`, divided by the sizes in `rest`; None if that is open."""
    top = list(shape)
    bottom: list[Size] = []
    for size in rest:  # equal factors cancel, also those that no division would resolve
        if size in top:
            top.remove(size)
        elif size is not None:
            bottom.append(size)
    return divide(product(top), product(bottom))


def _flatten(node: Node, flow: Sizes) -> MaybeShape:
    shape = flow.shape(node.inputs[0])
    if shape is None:
        return [None, None]
    axis = int(node.attrs.get("axis", 1))
    axis += len(shape) if axis < 0 else 0
    return [product(shape[:axis]), product(shape[axis:])]


def _expand(node: Node, flow: Sizes) -> MaybeShape:
    target = flow.value(node.inputs[1])
    shape = flow.shape(node.inputs[0])
    if target is None or shape is None:
        return None
    if any(item is None or not is_natural(item) for item in target.items):
        return None
    return broadcast([shape, tuple(item for item in target.items if item is not None)])


def _concat(node: Node, flow: Sizes) -> MaybeShape:
    shapes = [flow.shape(tensor) for tensor in node.inputs]
    known = [shape for shape in shapes if shape is not None]
    if not known or "axis" not in node.attrs:
        return None
    axis = int(node.attrs["axis"]) % len(known[0])
    result: list[Size | None] = [_equal_size(sizes) for sizes in zip(*known, strict=True)]
    total: Size | None = 0 if len(known) == len(shapes) else None
    for shape in known:
        total = None if total is None else add(total, shape[axis])
    result[axis] = total
    return result


def _equal_size(sizes: Sequence[Size]) -> Size:
    """One of several sizes that must be equal: an integer if there is one."""
    return next((size for size in sizes if isinstance(size, int)), sizes[0])


def _split(node: Node, flow: Sizes) -> Iterator[MaybeShape]:
    shape = flow.shape(node.inputs[0])
    parts = ints_operand(node, flow.opset, "split", 1, 13)
    for index in range(len(node.outputs)):
        if shape is None:
            yield None
            continue
        result: list[Size | None] = list(shape)
        axis = int(node.attrs.get("axis", 0)) % len(shape)
        result[axis] = parts[index] if parts and index < len(parts) else None
        yield result


def _dropout(node: Node, flow: Sizes) -> Iterator[MaybeShape]:
    for _ in node.outputs:
        yield flow.shape(node.inputs[0])


def _top_k(node: Node, flow: Sizes) -> Iterator[MaybeShape]:
    for _ in node.outputs:
        shape = flow.shape(node.inputs[0])
        if shape is None:
            yield None
            continue
        result: list[Size | None] = list(shape)
        result[int(node.attrs.get("axis", -1))] = None
        yield result


def _attention(node: Node, flow: Sizes) -> Iterator[MaybeShape]:
    """Y is (batch, heads, queries, width) or (batch, queries, heads·width); the rest has 4 axes."""
    q, k, v = (flow.shape(tensor) for tensor in node.inputs[:3])
    if q is None or k is None or v is None or {len(q), len(k), len(v)} not in ({3}, {4}):
        yield from (None for _ in node.outputs)
        return
    heads, shared = (int(node.attrs.get(name, 0)) for name in ("q_num_heads", "kv_num_heads"))
    widths: tuple[Size | None, Size | None]
    if len(q) == 4:
        yield (*q[:3], v[3])
        batch, queries, scores, counts = q[0], q[2], q[1], (k[1], v[1])
        widths = k[3], v[3]
    else:
        columns = None if not shared else divide(v[2], shared)
        yield (q[0], q[1], None if columns is None else multiply(columns, heads))
        batch, queries, scores, counts = q[0], q[1], heads, (shared, shared)
        widths = (None if not shared else divide(k[2], shared)), columns
    length: Size | None = k[-2]
    if is_present(node, 4):
        past = flow.shape(node.inputs[4])
        length = None if past is None or len(past) != 4 else add(past[2], k[-2])
    yield (batch, counts[0], length, widths[0])
    yield (batch, counts[1], length, widths[1])
    yield (batch, scores, queries, length)


def _slice(node: Node, flow: Sizes) -> MaybeShape:
    shape = flow.shape(node.inputs[0])
    if shape is None:
        return None
    ranges = slice_ranges(node, flow)
    result: list[Size | None] = list(shape)
    if ranges is None:
        sliced = _sliced_axes(node, flow, len(shape))
        return [None if axis in sliced else size for axis, size in enumerate(shape)]
    for axis, (start, end, step) in ranges.items():
        most = max_elements(node.inputs[0].dtype, shape, axis)
        result[axis] = sliced_size(shape[axis], start, end, step, most)
    return result


def _sliced_axes(node: Node, flow: Sizes, rank: int) -> Container[int]:
    """The axes along which a Slice may take only a part; all where they are not known."""
    axes = _items(node, 3, flow) if flow.opset >= 10 else node.attrs.get("axes")
    known = [axis % rank for axis in axes or () if isinstance(axis, int)]
    return known if axes and len(known) == len(axes) else range(rank)


def max_elements(dtype: npt.DTypeLike | None, shape: Shape, axis: int) -> int:
    """A bound on the size along `axis`: the tensor must fit into 48 bits of address space.

    Exporters write ends like 1000000000 to mean "to the end".
    """
    others = (size for place, size in enumerate(shape) if place != axis)
    count = math.prod(size for size in others if isinstance(size, int) and size > 0)
    itemsize = 1 if dtype is None else np.dtype(dtype).itemsize
    return int(_ADDRESSABLE // (count * itemsize))


def slice_ranges(node: Node, flow: Sizes) -> dict[int, tuple[Size, Size, int]] | None:
    """(start, end, step) by axis of a Slice, as written; None when anything is unknown."""
    shape = flow.shape(node.inputs[0])
    if shape is None:
        return None
    if flow.opset < 10:
        starts, ends = node.attrs.get("starts"), node.attrs.get("ends")
        axes, steps = node.attrs.get("axes"), None
    else:
        starts, ends, axes, steps = (_items(node, index, flow) for index in range(1, 5))
    if starts is None or ends is None:
        return None
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if flow.opset >= 10 and any(
        is_present(node, index) and _items(node, index, flow) is None for index in (3, 4)
    ):
        return None
    result: dict[int, tuple[Size, Size, int]] = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if not isinstance(axis, int) or not isinstance(step, int) or start is None or end is None:
            return None
        result[axis % len(shape)] = (start, end, step)
    return result


def _items(node: Node, index: int, flow: Sizes) -> Sequence[Size | None] | None:
    if not is_present(node, index):
        return None
    value = flow.value(node.inputs[index])
    return None if value is None else value.items


def sliced_size(size: Size, start: Size, end: Size, step: int, most: int) -> Size | None:
    """Number of elements that a Slice takes of an axis of `size` elements, at most `most`."""
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(size)[as_slice(start, end, step)])
    if add(start, size) == 0:
        start = 0  # counted from the end, the first element
    if step == 1 and start == 0 and covers(end, size, most):
        return size
    if isinstance(start, int) and isinstance(end, int):
        if step > 0 and start >= end and (start < 0) == (end < 0):
            return 0  # both count from one side
        # equal Slices get equal symbols
        return applied("slice", size, start, end, step)
    return smaller(size, end) if step == 1 and start == 0 and is_natural(end) else None


def as_slice(start: int, end: int, step: int) -> slice:
    """The bounds of a Slice as Python's: going back, an end far below zero includes element 0."""
    return slice(start, None if step < 0 and end < -(2**30) else end, step)


def covers(end: Size, size: Size, most: int) -> bool:
    """Whether an end, not counted from the back, takes in the last element."""
    if isinstance(end, int) and end >= min(most, 2**31 - 1):
        return True
    return is_natural(end) and is_natural(subtract(end, size))


def _gather(node: Node, flow: Sizes) -> MaybeShape:
    shape, indices = flow.shape(node.inputs[0]), flow.shape(node.inputs[1])
    if shape is None or indices is None:
        return None
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    return [*shape[:axis], *indices, *shape[axis + 1 :]]


def _gather_nd(node: Node, flow: Sizes) -> MaybeShape:
    shape, indices = flow.shape(node.inputs[0]), flow.shape(node.inputs[1])
    if shape is None or not indices or not isinstance(indices[-1], int):
        return None
    picked = int(node.attrs.get("batch_dims", 0)) + indices[-1]
    return [*indices[:-1], *shape[picked:]]


def _reduce(node: Node, flow: Sizes) -> MaybeShape:
    shape = flow.shape(node.inputs[0])
    axes = axes_of(node, flow.opset)
    if shape is None or axes is None:
        return None
    if not axes and node.attrs.get("noop_with_empty_axes", 0):
        return shape
    removed = normalized(axes, len(shape)) if axes else tuple(range(len(shape)))
    if removed is None:
        return None
    return _without(shape, removed, keepdims=bool(node.attrs.get("keepdims", 1)))


def _arg_reduce(node: Node, flow: Sizes) -> MaybeShape:
    shape = flow.shape(node.inputs[0])
    if shape is None:
        return None
    removed = (int(node.attrs.get("axis", 0)) % len(shape),)
    return _without(shape, removed, keepdims=bool(node.attrs.get("keepdims", 1)))


def _without(shape: Shape, removed: tuple[int, ...], *, keepdims: bool) -> list[Size | None]:
    if keepdims:
        return [1 if axis in removed else size for axis, size in enumerate(shape)]
    return [size for axis, size in enumerate(shape) if axis not in removed]


def _matmul(node: Node, flow: Sizes) -> MaybeShape:
    a, b = flow.shape(node.inputs[0]), flow.shape(node.inputs[1])
    if a is None or b is None:
        return None
    # a vector on either side has no axis of its own in the result
    rows = a[-2:-1] if len(a) > 1 else ()
    columns = b[-1:] if len(b) > 1 else ()
    batch = broadcast([a[:-2], b[:-2]])
    return None if batch is None else [*batch, *rows, *columns]


def _gemm(node: Node, flow: Sizes) -> MaybeShape:
    a, b = flow.shape(node.inputs[0]), flow.shape(node.inputs[1])
    rows = None if a is None else a[1 if node.attrs.get("transA", 0) else 0]
    columns = None if b is None else b[0 if node.attrs.get("transB", 0) else 1]
    return [rows, columns]


def _conv(node: Node, flow: Sizes) -> MaybeShape:
    shape, weight = flow.shape(node.inputs[0]), flow.shape(node.inputs[1])
    if shape is None or weight is None or len(weight) != len(shape):
        return None
    kernel = [size for size in weight[2:] if isinstance(size, int)]
    return [shape[0], weight[0], *_windows(node, shape[2:], kernel)]


def _pool(node: Node, flow: Sizes) -> MaybeShape:
    shape = flow.shape(node.inputs[0])
    if shape is None:
        return None
    return [*shape[:2], *_windows(node, shape[2:], list(node.attrs.get("kernel_shape", ())))]


def _windows(node: Node, sizes: Shape, kernel: Sequence[int]) -> list[Size | None]:
    """Number of windows along each spatial axis; None where it depends on rounding or padding."""
    spatial = len(sizes)
    unknown: list[Size | None] = [None] * spatial
    auto_pad = node.attrs.get("auto_pad", "NOTSET")
    if len(kernel) != spatial or auto_pad not in ("NOTSET", "VALID"):
        return unknown
    strides = node.attrs.get("strides") or [1] * spatial
    dilations = node.attrs.get("dilations") or [1] * spatial
    pads = (node.attrs.get("pads") if auto_pad == "NOTSET" else None) or [0] * (2 * spatial)
    result: list[Size | None] = []
    for axis, size in enumerate(sizes):
        # windows = floor((size + pads − dilation·(kernel − 1) − 1) / stride) + 1
        room = add(
            size, pads[axis] + pads[axis + spatial] - dilations[axis] * (kernel[axis] - 1) - 1
        )
        steps = divide(room, strides[axis])
        if node.attrs.get("ceil_mode", 0):
            result.append(None)
        elif steps is not None:
            result.append(add(steps, 1))
        elif isinstance(room, int):
            result.append(room // strides[axis] + 1)
        else:
            result.append(applied("windows", room, strides[axis]))
    return result


def _global_pool(node: Node, flow: Sizes) -> MaybeShape:
    shape = flow.shape(node.inputs[0])
    return None if shape is None else [*shape[:2], *[1] * (len(shape) - 2)]


def _resize(node: Node, flow: Sizes) -> MaybeShape:
    """Integer scales give exact sizes; other scales round, and their sizes are left unknown."""
    shape = flow.shape(node.inputs[0])
    if shape is None:
        return None
    if is_present(node, 3):
        sizes = flow.value(node.inputs[3])
        plain = "axes" not in node.attrs
        stretch = node.attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch"
        if sizes is not None and plain and stretch:
            return sizes.items
        return [None] * len(shape)
    scales = const_array(node.inputs[2]) if is_present(node, 2) else None
    if scales is None or scales.size != len(shape) or "axes" in node.attrs:
        return [None] * len(shape)
    factors = scales.reshape(-1).tolist()
    return [
        multiply(size, int(factor)) if factor == int(factor) else None
        for size, factor in zip(shape, factors, strict=True)
    ]


def _pad(node: Node, flow: Sizes) -> MaybeShape:
    shape = flow.shape(node.inputs[0])
    pads = ints_operand(node, flow.opset, "pads", 1, 11)
    if shape is None or not pads or len(pads) != 2 * len(shape) or is_present(node, 3):
        return None if shape is None else [None] * len(shape)
    return [add(size, pads[i] + pads[i + len(shape)]) for i, size in enumerate(shape)]


def _constant_of_shape(node: Node, flow: Sizes) -> MaybeShape:
    value = flow.value(node.inputs[0])
    if value is None:
        return None
    return [item if item is not None and is_natural(item) else None for item in value.items]


def _range(node: Node, flow: Sizes) -> MaybeShape:
    bounds = [flow.value(tensor) for tensor in node.inputs]
    items = [value.items[0] for value in bounds if value is not None and len(value.items) == 1]
    if len(items) != 3 or items[0] is None or items[1] is None or items[2] != 1:
        return [None]
    length = subtract(items[1], items[0])
    return [length if is_natural(length) else None]


def _tile(node: Node, flow: Sizes) -> MaybeShape:
    if flow.opset < 6:  # Tile had other operands
        return None
    shape, repeats = flow.shape(node.inputs[0]), flow.value(node.inputs[1])
    if shape is None or repeats is None:
        return shape if shape is None else [None] * len(shape)
    return [
        None if times is None else multiply(size, times)
        for size, times in zip(shape, repeats.items, strict=True)
    ]


_SAME = (  # noqa: SIM905
    "Abs Acos Acosh Asin Asinh Atan Atanh BatchNormalization BitwiseNot Cast Ceil Celu Clip Cos "
    "Cosh CumSum DequantizeLinear Elu Erf Exp Floor Gelu GroupNormalization HardSigmoid HardSwish "
    "Hardmax Identity InstanceNormalization IsInf IsNaN LRN LayerNormalization LeakyRelu Log "
    "LogSoftmax LpNormalization MeanVarianceNormalization Mish Neg Not PRelu QuantizeLinear "
    "RMSNormalization Reciprocal Relu RotaryEmbedding Round ScatterElements ScatterND Selu Shrink "
    "Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh TensorScatter "
    "ThresholdedRelu Trilu"
).split()
_ELEMENTWISE = (  # noqa: SIM905
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less "
    "LessOrEqual Max Mean Min Mod Mul Or Pow Sub Sum Where Xor"
).split()
REDUCTIONS = (  # noqa: SIM905
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare"
).split()

_MULTI_OUTPUT_RULES: dict[str, Callable[[Node, Sizes], Iterator[MaybeShape]]] = {
    "Attention": _attention,
    "Split": _split,
    "Dropout": _dropout,
    "TopK": _top_k,
}

RULES: dict[str, Callable[[Node, Sizes], MaybeShape]] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg_reduce),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}

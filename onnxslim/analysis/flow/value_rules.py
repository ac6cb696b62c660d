"""Values of small integer tensors, as functions of symbolic input values: rules for `SizeFlow`.

Data movement (Gather, Concat, Transpose, ...) is done by numpy on arrays of sizes, so that every
axis and index convention is numpy's; arithmetic is that of `sizes`, declined where it could leave
the integer type or where symbols leave the result open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.shape_rules import as_slice, shape_range, slice_ranges
from onnxslim.graph.ir import Constant, Node
from onnxslim.graph.operands import axes_of, const_array, const_value, is_present, normalized
from onnxslim.graph.sizes import (
    Size,
    Sizes,
    Value,
    add,
    applied,
    divide,
    is_natural,
    is_positive,
    multiply,
    negate,
    product,
    smaller,
    subtract,
)

Items = npt.NDArray[Any]  # of Size or None
Arithmetic = Callable[[Size, Size], Size | None]

_MAX: Final = 1 << 12  # elements of an intermediate tensor; `SizeFlow` keeps far smaller ones
_RANGES: Final = {np.dtype("int32"): 1 << 31, np.dtype("int64"): 1 << 63}


def value_of(node: Node, flow: Sizes) -> Value | None:
    """The value of the first output of `node`, None when not even its shape is known."""
    rule = RULES.get(node.op) if node.is_onnx else None
    items = None if rule is None else rule(node, flow)
    if items is None or items.size > _MAX:
        return None
    dtype = node.outputs[0].dtype
    limit = None if dtype is None else _RANGES.get(np.dtype(dtype))
    kept = tuple(_in_range(item, limit) for item in items.reshape(-1))
    return Value(tuple(items.shape), kept)


def _in_range(item: Size | None, limit: int | None) -> Size | None:
    if limit is not None and isinstance(item, int) and not -limit <= item < limit:
        return None  # it would wrap around
    return item


def _items(node: Node, index: int, flow: Sizes) -> Items | None:
    value = flow.value(node.inputs[index]) if is_present(node, index) else None
    return None if value is None else _array(value.items, value.shape)


def _array(items: Iterable[Size | None], shape: tuple[int, ...]) -> Items:
    flat = np.empty(int(np.prod(shape, dtype=np.int64)), object)
    for place, item in enumerate(items):
        flat[place] = item
    return flat.reshape(shape)


def _shape(node: Node, flow: Sizes) -> Items | None:
    shape = flow.shape(node.inputs[0])
    if shape is None:
        return None
    part = shape[shape_range(node)]
    return _array(part, (len(part),))


def _size(node: Node, flow: Sizes) -> Items | None:
    shape = flow.shape(node.inputs[0])
    return None if shape is None else _array([product(shape)], ())


def _identity(node: Node, flow: Sizes) -> Items | None:
    return _items(node, 0, flow)


def _cast(node: Node, flow: Sizes) -> Items | None:
    items = _items(node, 0, flow)
    to = node.attrs.get("to")
    if items is None and to in (onnx.TensorProto.INT32, onnx.TensorProto.INT64):
        items = _truncated(node.inputs[0])
    if items is None:
        return None
    if to in (onnx.TensorProto.INT32, onnx.TensorProto.INT64):
        limit = 1 << (31 if to == onnx.TensorProto.INT32 else 63)
        return _mapped(lambda item: _in_range(item, limit), items)
    if to == onnx.TensorProto.BOOL:
        return _mapped(_truth, items)
    return None


def _truncated(tensor: gs.Tensor) -> Items | None:
    """The elements of a small float constant without their fractions, as a Cast takes them."""
    stored = const_value(tensor)
    if stored is None or stored.dtype.kind != "f" or stored.size > _MAX:
        return None
    array = const_array(tensor)
    if array is None:
        return None
    return _array((int(x) if np.isfinite(x) else None for x in array.reshape(-1)), array.shape)


def _truth(item: Size) -> Size | None:
    if isinstance(item, int):
        return int(item != 0)
    return 1 if is_positive(item) else None


def _mapped(rule: Callable[[Size], Size | None], items: Items) -> Items:
    return _array((None if item is None else rule(item) for item in items.flat), items.shape)


def _gather(node: Node, flow: Sizes) -> Items | None:
    items, indices = _items(node, 0, flow), _items(node, 1, flow)
    if items is None or indices is None or not all(isinstance(i, int) for i in indices.flat):
        return None
    axis = int(node.attrs.get("axis", 0))
    try:
        return np.asarray(np.take(items, indices.astype(np.int64), axis), object)
    except (IndexError, ValueError):
        return None


def _slice(node: Node, flow: Sizes) -> Items | None:
    items, ranges = _items(node, 0, flow), slice_ranges(node, flow)
    if items is None or ranges is None:
        return None
    selected = [slice(None)] * items.ndim
    for axis, (start, end, step) in ranges.items():
        if not isinstance(start, int) or not isinstance(end, int):
            return None
        selected[axis] = as_slice(start, end, step)
    return items[tuple(selected)]


def _concat(node: Node, flow: Sizes) -> Items | None:
    parts = [_items(node, index, flow) for index in range(len(node.inputs))]
    known = []
    for index, part in enumerate(parts):
        if part is None:  # unknown elements keep the others at their positions
            part = _unknown(flow.shape(node.inputs[index]))
        if part is None:
            return None
        known.append(part)
    try:
        return np.concatenate(known, int(node.attrs["axis"]))
    except (ValueError, KeyError):
        return None


def _unknown(shape: tuple[Size, ...] | None) -> Items | None:
    plain = [size for size in shape or () if isinstance(size, int)]
    if shape is None or len(plain) != len(shape) or np.prod(plain, dtype=float) > _MAX:
        return None
    return np.full(tuple(plain), None, object)


def _reshape(node: Node, flow: Sizes) -> Items | None:
    """An operator that keeps the elements in order: its output shape determines the result."""
    items, shape = _items(node, 0, flow), flow.shape(node.outputs[0])
    plain = [size for size in shape or () if isinstance(size, int)]
    if items is None or shape is None or len(plain) != len(shape):
        return None
    if int(np.prod(plain, dtype=np.int64)) != items.size:
        return None
    return items.reshape(plain)


def _transpose(node: Node, flow: Sizes) -> Items | None:
    items = _items(node, 0, flow)
    perm = node.attrs.get("perm")
    return None if items is None else np.transpose(items, perm or None)


def _range(node: Node, flow: Sizes) -> Items | None:
    bounds = [_items(node, index, flow) for index in range(3)]
    numbers = [int(b.item()) for b in bounds if b is not None and isinstance(b.item(), int)]
    if len(numbers) != 3 or numbers[2] == 0 or len(range(*numbers)) > _MAX:
        return None
    found = range(*numbers)
    return _array(found, (len(found),))


def _constant_of_shape(node: Node, flow: Sizes) -> Items | None:
    shape = flow.ints(node.inputs[0])
    if shape is None or min(shape, default=0) < 0 or np.prod(shape, dtype=float) > _MAX:
        return None
    fill = node.attrs.get("value")
    if not isinstance(fill, Constant) or fill.values.dtype not in (*_RANGES, np.dtype(bool)):
        return None  # float values are no sizes
    return np.full(shape, int(fill.values.reshape(-1)[0]), object)


def _expand(node: Node, flow: Sizes) -> Items | None:
    items, target = _items(node, 0, flow), flow.ints(node.inputs[1])
    if items is None or target is None:
        return None
    try:
        shape = np.broadcast_shapes(items.shape, target)
    except ValueError:
        return None
    if np.prod(shape, dtype=float) > _MAX:
        return None
    return np.broadcast_to(items, shape)


def _where(node: Node, flow: Sizes) -> Items | None:
    parts = [_items(node, index, flow) for index in range(3)]
    known = [part for part in parts if part is not None]
    if len(known) != 3:
        return None
    return _zipped(_choose, known)


def _choose(condition: Size | None, yes: Size | None, no: Size | None) -> Size | None:
    if yes == no:
        return yes
    if condition is None:
        return None
    return yes if _truth(condition) == 1 else no if condition == 0 else None


def _zipped(rule: Callable[..., Size | None], parts: list[Items]) -> Items | None:
    try:
        broadcast = np.broadcast_arrays(*parts)
    except ValueError:
        return None
    if broadcast[0].size > _MAX:
        return None
    columns = zip(*(part.flat for part in broadcast), strict=True)
    return _array((rule(*items) for items in columns), broadcast[0].shape)


def _arithmetic(rule: Arithmetic) -> Callable[[Node, Sizes], Items | None]:
    def known_only(a: Size | None, b: Size | None) -> Size | None:
        return None if a is None or b is None else rule(a, b)

    def apply(node: Node, flow: Sizes) -> Items | None:
        result = _items(node, 0, flow)
        for index in range(1, len(node.inputs)):
            other = _items(node, index, flow)
            if result is None or other is None:
                return None
            result = _zipped(known_only, [result, other])
        return result

    return apply


def _quotient(a: Size, b: Size) -> Size | None:
    """Integer division of ONNX: towards zero."""
    if b == 0:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    exact = divide(a, b)
    if exact is not None and (isinstance(b, int) or is_positive(b)):
        return exact
    return applied("div", a, b) if is_natural(a) and is_positive(b) else None


def _remainder(a: Size, b: Size) -> Size | None:
    if isinstance(a, int) and isinstance(b, int):
        return a % b if b > 0 and a >= 0 else None
    if is_positive(b) and divide(a, b) is not None:
        return 0
    return applied("mod", a, b) if is_natural(a) and is_positive(b) else None


def _largest(a: Size, b: Size) -> Size | None:
    gap = subtract(a, b)
    if is_natural(gap):
        return a
    if is_natural(negate(gap)):
        return b
    return applied("max", *sorted((a, b), key=str)) if is_natural(a) and is_natural(b) else None


def _smallest(a: Size, b: Size) -> Size | None:
    gap = subtract(a, b)
    is_known = is_natural(gap) or is_natural(negate(gap)) or (is_natural(a) and is_natural(b))
    return smaller(a, b) if is_known else None


def _equal(a: Size, b: Size) -> Size | None:
    gap = subtract(a, b)
    if gap == 0:
        return 1
    return 0 if is_positive(gap) or is_positive(negate(gap)) else None


def _greater(a: Size, b: Size) -> Size | None:
    gap = subtract(a, b)
    if is_positive(gap):
        return 1
    return 0 if is_natural(negate(gap)) else None


def _flipped(rule: Arithmetic) -> Arithmetic:
    return lambda a, b: rule(b, a)


def _denied(rule: Arithmetic) -> Arithmetic:
    def apply(a: Size, b: Size) -> Size | None:
        found = rule(a, b)
        return None if found is None else subtract(1, found)

    return apply


def _both(a: Size, b: Size) -> Size | None:
    x, y = _truth(a), _truth(b)
    return 0 if 0 in (a, b) else 1 if x == y == 1 else None


def _either(a: Size, b: Size) -> Size | None:
    x, y = _truth(a), _truth(b)
    return 1 if 1 in (x, y) else 0 if x == y == 0 else None


def _not(node: Node, flow: Sizes) -> Items | None:
    items = _items(node, 0, flow)
    if items is None:
        return None
    return _mapped(lambda item: 1 - item if isinstance(item, int) else None, items)


def _neg(node: Node, flow: Sizes) -> Items | None:
    items = _items(node, 0, flow)
    return None if items is None else _mapped(negate, items)


def _abs(node: Node, flow: Sizes) -> Items | None:
    items = _items(node, 0, flow)
    if items is None:
        return None
    return _mapped(
        lambda item: abs(item) if isinstance(item, int) else item if is_natural(item) else None,
        items,
    )


def _reduced(rule: Arithmetic) -> Callable[[Node, Sizes], Items | None]:
    def apply(node: Node, flow: Sizes) -> Items | None:
        items, axes = _items(node, 0, flow), axes_of(node, flow.opset)
        if items is None or axes is None or (not axes and node.attrs.get("noop_with_empty_axes")):
            return None
        places = normalized(axes, items.ndim) if axes else tuple(range(items.ndim))
        if places is None or items.ndim != len(places) or items.size == 0:
            return None  # only reductions to one element occur in shape arithmetic
        result: Size | None = items.flat[0]
        for item in items.flat[1:]:
            result = None if result is None or item is None else rule(result, item)
        keep = node.attrs.get("keepdims", 1)
        return _array([result], (1,) * items.ndim if keep else ())

    return apply


def _scatter(node: Node, flow: Sizes) -> Items | None:
    """ScatterND with constant indices on a vector, as exporters write `shape[i] = n`."""
    items, updates = _items(node, 0, flow), _items(node, 2, flow)
    indices = const_array(node.inputs[1])
    if items is None or updates is None or indices is None or items.ndim != 1:
        return None
    if indices.ndim != 2 or indices.shape[1] != 1 or node.attrs.get("reduction", "none") != "none":
        return None
    result = items.copy()
    for place, item in zip(indices[:, 0], updates.flat, strict=True):
        if not -len(result) <= place < len(result):
            return None
        result[int(place)] = item
    return result


RULES: dict[str, Callable[[Node, Sizes], Items | None]] = {
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten"), _reshape),
    "Abs": _abs,
    "Add": _arithmetic(add),
    "And": _arithmetic(_both),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _arithmetic(_quotient),
    "Equal": _arithmetic(_equal),
    "Expand": _expand,
    "Gather": _gather,
    "Greater": _arithmetic(_greater),
    "GreaterOrEqual": _arithmetic(_denied(_flipped(_greater))),
    "Identity": _identity,
    "Less": _arithmetic(_flipped(_greater)),
    "LessOrEqual": _arithmetic(_denied(_greater)),
    "Max": _arithmetic(_largest),
    "Min": _arithmetic(_smallest),
    "Mod": _arithmetic(_remainder),
    "Mul": _arithmetic(multiply),
    "Neg": _neg,
    "Not": _not,
    "Or": _arithmetic(_either),
    "Range": _range,
    "ReduceMax": _reduced(_largest),
    "ReduceMin": _reduced(_smallest),
    "ReduceProd": _reduced(multiply),
    "ReduceSum": _reduced(add),
    "ScatterND": _scatter,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Sub": _arithmetic(subtract),
    "Transpose": _transpose,
    "Where": _where,
}

"""One table: operator -> how a node of it is drawn.

A function of the table takes the scope and the operator, and appends a node, or raises `Unfit`.
Parameters that were attributes in one opset and are inputs in another are given by name; the scope
asks the schema. What onnxruntime refuses is dropped there, so the functions may be generous.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, Final

import numpy as np
from onnx import helper, numpy_helper
from random_graphs import Scope, Unfit, Value, schema_of

Draw = Callable[[Scope, str], None]

OPERATORS: Final[dict[str, Draw]] = {}
"""Every operator that can be drawn; `random_bodies` adds those that have bodies."""


def draws(*ops: str) -> Callable[[Draw], Draw]:
    """Enter a function into the table."""

    def enter(draw: Draw) -> Draw:
        for op in ops:
            OPERATORS[op] = draw
        return draw

    return enter


# ----------------------------------------------------------------- elementwise


@draws(
    "Abs", "Neg", "Relu", "Sigmoid", "Tanh", "Exp", "Erf", "Floor", "Ceil", "Round", "Sign",
    "Softplus", "Softsign", "HardSigmoid", "HardSwish", "LeakyRelu", "Elu", "Selu", "Celu",
    "ThresholdedRelu", "Mish", "Gelu", "Shrink", "Swish", "Sin", "Cos", "Sinh", "Cosh", "Tan",
    "Atan", "Asinh", "Identity", "IsNaN", "IsInf", "Not", "BitwiseNot", "Size",
)  # fmt: skip
def unary(s: Scope, op: str) -> None:
    """One tensor in; attributes that are floats at their defaults or at random."""
    schema = schema_of(op, s.opset)
    if schema is None:
        raise Unfit
    parameters: dict[str, Any] = {}
    for name, attribute in schema.attributes.items():
        if attribute.type.name == "FLOAT" and s.often():
            parameters[name] = s.rng.choice((0.0, 0.1, 0.5, 1.0, 1.5, 1 / 6))
        elif name == "approximate":
            parameters[name] = s.one("none", "tanh")
    s.add(op, s.take(op), **parameters)


@draws("Log", "Sqrt", "Reciprocal", "Acos", "Asin", "Atanh", "Acosh")
def partial_function(s: Scope, op: str) -> None:
    """A function that is not defined everywhere: its operand is moved to (0, 1) or beyond."""
    x = s.add("Sigmoid", s.take("Sigmoid"))
    if op == "Acosh":
        x = s.add("Add", x, s.constant(np.array(1, x.dtype)))
    s.add(op, x)


@draws("Dropout")
def dropout(s: Scope, op: str) -> None:
    outputs = s.one(1, 1, 2)
    s.add_all(op, s.take(op), outputs=outputs, **({"ratio": 0.3} if s.opset < 12 else {}))


@draws("Clip")
def clip(s: Scope, op: str) -> None:
    x = s.take(op)
    low, high = s.one((0, 6), (-1, 1), (0, None), (None, 1), (None, None), (0, 1))
    as_x = x.dtype.type if s.opset >= 11 else float
    if low is not None and x.dtype.kind == "u":
        low = 0
    limits = {"min": low, "max": high}
    s.add(op, x, **{name: as_x(v) for name, v in limits.items() if v is not None})


def partner(s: Scope, x: Value, array: Callable[[tuple[int, ...]], Any]) -> Value:
    """A value of the dtype of `x` that broadcasts against it."""

    def fits(value: Value) -> bool:
        if value.name == x.name or value.kind != x.kind:
            return False
        try:
            return prod(np.broadcast_shapes(value.shape, x.shape)) <= 1000
        except ValueError:
            return False

    found = [value for value in s.visible() if fits(value)]
    if found and s.often(0.4):
        return found[-1 - min(int(s.rng.expovariate(0.7)), len(found) - 1)]
    channels = (x.shape[1], *[1] * (x.rank - 2)) if x.rank > 1 else x.shape
    shape = s.one((), (), (1,), x.shape[-1:], channels, x.shape, (1, *x.shape))
    filled = array(shape)
    if s.often(0.2) and filled.dtype.kind != "b":
        filled = np.full_like(filled, s.one(0, 1, 1, 2))
    return s.made(filled)


@draws(
    "Add", "Sub", "Mul", "And", "Or", "Xor", "Equal", "Greater", "Less", "GreaterOrEqual",
    "LessOrEqual", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "PRelu",
)  # fmt: skip
def binary(s: Scope, op: str) -> None:
    x = s.take(op)
    y = partner(s, x, lambda shape: s.some(shape, x.dtype))
    if op == "PRelu" and np.broadcast_shapes(x.shape, y.shape) != x.shape:
        raise Unfit  # ONNX lets no slope repeat x, though onnxruntime does
    s.add(op, *((x, y) if s.often() or op == "PRelu" else (y, x)))


@draws("Div", "Mod", "Pow", "BitShift")
def binary_with_constant(s: Scope, op: str) -> None:
    """The second operand is a constant without zeros (a division by zero ends the process)."""
    x = s.take(op)
    y = partner(s, x, lambda shape: np.ones(shape, x.dtype))
    values = np.abs(s.some(y.shape, x.dtype)) if x.dtype.kind != "b" else s.some(y.shape)
    y = s.constant((values + 1).astype(x.dtype))
    if op == "Pow":
        exponent = s.one(0, 1, 2, 2, 3, 0.5, -1) if x.is_float else s.one(0, 1, 2)
        s.add(op, s.add("Abs", x), s.constant(np.full(s.one((), (1,)), exponent, x.dtype)))
    elif op == "Mod":
        s.add(op, x, y, fmod=1 if x.is_float or s.often() else 0)
    elif op == "BitShift":
        s.add(
            op, x, s.constant(np.array(s.one(0, 1, 2), x.dtype)), direction=s.one("LEFT", "RIGHT")
        )
    else:
        s.add(op, x, y)


@draws("Max", "Min", "Mean", "Sum")
def variadic(s: Scope, op: str) -> None:
    x = s.take(op)
    more = [partner(s, x, lambda shape: s.some(shape, x.dtype)) for _ in range(s.one(0, 1, 1, 2))]
    operands = [x, *more]
    s.rng.shuffle(operands)
    s.add(op, *operands)


@draws("Where")
def where(s: Scope, op: str) -> None:
    x = s.take(op, 1)
    y = partner(s, x, lambda shape: s.some(shape, x.dtype))
    shape = s.one((), x.shape, x.shape[-1:])
    known = [v for v in s.visible() if v.kind == "tensor(bool)" and v.shape == x.shape]
    condition = s.one(*known) if known else s.made(s.some(shape, np.bool_))
    s.add(op, condition, *((x, y) if s.often() else (y, x)))


_CASTS: Final = (
    np.float32, np.float32, np.float64, np.float16, np.int32, np.int64, np.int8, np.uint8, np.bool_,
)  # fmt: skip


@draws("Cast")
def cast(s: Scope, op: str) -> None:
    x = s.take(op, 0, lambda v: v.dtype.kind != "O")
    to = s.one(*_CASTS, x.dtype.type)
    s.add(op, x, to=helper.np_dtype_to_tensor_dtype(np.dtype(to)))


@draws("CastLike")
def cast_like(s: Scope, op: str) -> None:
    s.add(op, s.take(op), s.one(s.take(op, 1), s.made(s.some((1,), s.one(*_CASTS)))))


@draws("Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike")
def random_like(s: Scope, op: str) -> None:
    """Random numbers of a seed."""
    x = s.floats(op, *([2] if op == "Multinomial" else []))
    if op in ("Bernoulli", "Multinomial"):
        x = s.add("Sigmoid", x)
    s.add(op, x, seed=float(s.one(1, 2)))


@draws("RandomNormal", "RandomUniform")
def random_constant(s: Scope, op: str) -> None:
    s.append(op, "", [], 1, {"shape": [s.size(), s.size()], "seed": float(s.one(1, 2))})


# ----------------------------------------------------------------- shape and order


@draws("Transpose")
def transpose(s: Scope, op: str) -> None:
    x = s.take(op)
    perm = list(range(x.rank))
    s.rng.shuffle(perm)
    s.add(op, x, **({} if s.often(0.1) else {"perm": perm}))


@draws("Reshape")
def reshape(s: Scope, op: str) -> None:
    x = s.take(op)
    total, first = prod(x.shape), x.shape[0] if x.rank else 1
    shape = list(
        s.one(
            (total,), (first, total // max(first, 1)), (1, total), (*x.shape, 1), x.shape[::-1],
            x.shape, (*x.shape[:-2], prod(x.shape[-2:])), (first, 1, *x.shape[1:]),
        )
    )  # fmt: skip
    for axis in range(min(len(shape), x.rank)):
        if shape[axis] == x.shape[axis] and s.often(0.3):
            shape[axis] = 0
    if shape and 0 not in x.shape and s.often():
        shape[s.rng.randrange(len(shape))] = -1
    s.add(op, x, shape=np.array(shape, np.int64))


@draws("Flatten")
def flatten(s: Scope, op: str) -> None:
    x = s.take(op)
    s.add(op, x, axis=s.rng.randint(0, x.rank))


@draws("Squeeze")
def squeeze(s: Scope, op: str) -> None:
    x = s.take(op, 0, lambda v: 1 in v.shape)
    axes = [axis for axis, size in enumerate(x.shape) if size == 1 and s.often(0.7)]
    s.add(op, x, **({"axes": np.array(axes, np.int64)} if axes else {}))


@draws("Unsqueeze")
def unsqueeze(s: Scope, op: str) -> None:
    x = s.take(op, 0, lambda v: v.rank < 5)
    axes = [[0], [x.rank], [0, 1], [0, x.rank + 1], [-1] if s.opset >= 11 else [0]]
    s.add(op, x, axes=np.array(s.one(*axes), np.int64))


@draws("Expand")
def expand(s: Scope, op: str) -> None:
    x = s.take(op)
    wide = tuple(s.size() if size == 1 and s.often() else size for size in x.shape)
    shape = s.one(x.shape, wide, (2, *x.shape), (1,) * x.rank)
    s.add(op, x, shape=np.array(shape, np.int64))


@draws("Tile")
def tile(s: Scope, op: str) -> None:
    x = s.take(op)
    s.add(op, x, repeats=np.array([s.one(1, 1, 2) for _ in x.shape], np.int64))


@draws("Concat")
def concat(s: Scope, op: str) -> None:
    x = s.take(op, 0, lambda v: v.rank > 0)
    axis = s.rng.randrange(x.rank)

    def joins(v: Value) -> bool:
        rest = lambda shape: (*shape[:axis], *shape[axis + 1 :])  # noqa: E731
        return v.kind == x.kind and v.rank == x.rank and rest(v.shape) == rest(x.shape)

    others = [v for v in s.visible() if joins(v)]
    parts = [x, *(s.one(*others) for _ in range(s.one(0, 1, 1, 2)))]
    if s.often(0.3):
        shape = (*x.shape[:axis], s.one(0, 1, 2), *x.shape[axis + 1 :])
        parts.append(s.made(s.some(shape, x.dtype)))
    s.rng.shuffle(parts)
    s.add(op, *parts, axis=axis if s.often(0.7) or s.opset < 11 else axis - x.rank)


@draws("Split")
def split(s: Scope, op: str) -> None:
    x = s.take(op, 0, lambda v: v.rank > 0 and max(v.shape) > 1)
    axis = s.one(*(axis for axis, size in enumerate(x.shape) if size > 1))
    first = s.rng.randint(0 if s.often(0.1) else 1, x.shape[axis] - 1)
    given: dict[str, Any] = {"split": np.array([first, x.shape[axis] - first], np.int64)}
    if x.shape[axis] % 2 == 0 and s.often(0.4):
        given = {"num_outputs": 2}
    s.add_all(op, x, outputs=2, axis=axis, **given)


@draws("Slice")
def slice_(s: Scope, op: str) -> None:
    x = s.take(op, 0, lambda v: v.rank > 0 and max(v.shape) > 0)
    axes = sorted(s.rng.sample(range(x.rank), s.rng.randint(1, min(x.rank, 2))))
    starts, ends, steps = [], [], []
    for axis in axes:
        size = x.shape[axis]
        start = s.one(0, 0, 1, -1, size // 2, -size)
        end = s.one(2**63 - 1, size, size - 1, -1, 2**31 - 1)
        step = s.one(1, 1, 1, 2, -1)
        if step < 0:
            start, end = s.one((-1, -(2**63)), (size, 0), (2**31 - 1, -size - 1))
        starts.append(start)
        ends.append(end)
        steps.append(step)
    given = {"starts": starts, "ends": ends}
    if axes != list(range(len(axes))) or s.often(0.8):
        given["axes"] = axes
    if steps != [1] * len(steps) or s.often():
        given["steps"] = steps
    s.add(op, x, **{name: np.array(items, np.int64) for name, items in given.items()})


@draws("Gather")
def gather(s: Scope, op: str) -> None:
    x = s.take(op, 0, lambda v: v.rank > 0 and min(v.shape) > 0)
    axis = s.rng.randrange(x.rank)
    low = -x.shape[axis] if s.opset >= 11 else 0
    indices = [s.rng.randint(low, x.shape[axis] - 1) for _ in range(s.one(1, 2, 3))]
    array = np.array(s.one(indices, indices, [indices], indices[0]), s.one(np.int64, np.int32))
    s.add(op, x, s.made(array), axis=axis)


@draws("GatherElements")
def gather_elements(s: Scope, op: str) -> None:
    x = s.take(op, 0, lambda v: v.rank > 0 and min(v.shape) > 0)
    axis = s.rng.randrange(x.rank)
    noise = np.random.default_rng(s.rng.getrandbits(16))
    s.add(op, x, s.made(noise.integers(0, x.shape[axis], x.shape)), axis=axis)


@draws("Scatter", "ScatterElements", "ScatterND")
def scatter(s: Scope, op: str) -> None:
    x = s.take(op, 0, lambda v: v.rank > 0 and min(v.shape) > 0)
    if op == "ScatterND":
        rows = np.array([[s.rng.randrange(x.shape[0])]], np.int64)
        s.add(op, x, s.made(rows), s.made(s.some((1, *x.shape[1:]), x.dtype)))
        return
    shape = (1, *x.shape[1:])
    rows = np.full(shape, s.rng.randrange(x.shape[0]), np.int64)
    s.add(op, x, s.made(rows), s.made(s.some(shape, x.dtype)), axis=0)


@draws("Pad")
def pad(s: Scope, op: str) -> None:
    x = s.take(op, 0, lambda v: v.rank > 0)
    amounts = [s.one(0, 0, 1, 2) for _ in range(2 * x.rank)]
    if s.often(0.15):
        amounts[s.rng.randrange(len(amounts))] = -1
    if x.rank > 2 and s.often(0.6):
        amounts[:2] = amounts[x.rank : x.rank + 2] = [0, 0]
    mode = s.one("constant", "constant", "constant", "reflect", "edge")
    parameters: dict[str, Any] = {"mode": mode, "pads": np.array(amounts, np.int64)}
    if mode == "constant" and s.often(0.3):
        fill = s.one(0, 0, 1)
        name = "value" if s.opset < 11 else "constant_value"
        parameters[name] = float(fill) if s.opset < 11 else x.dtype.type(fill)
    s.add(op, x, **parameters)


@draws("DepthToSpace")
def depth_to_space(s: Scope, op: str) -> None:
    x = s.take(op, 0, lambda v: v.rank == 4 and v.shape[1] % 4 == 0)
    s.add(op, x, blocksize=2, mode=s.one("DCR", "CRD"))


@draws("SpaceToDepth")
def space_to_depth(s: Scope, op: str) -> None:
    x = s.take(op, 0, lambda v: v.rank == 4 and not any(size % 2 for size in v.shape[2:]))
    s.add(op, x, blocksize=2)


@draws("Resize", "Upsample")
def resize(s: Scope, op: str) -> None:
    x = s.floats(op, 2, 3, 4)
    scales = np.array(
        [1.0] * (x.rank - 2) + [s.one(1.0, 2.0, 0.5, 1.7) for _ in (0, 1)], np.float32
    )
    mode = s.one("nearest", "linear", *(["cubic"] if op == "Resize" else []))
    parameters: dict[str, Any] = {"mode": mode, "scales": scales}
    if s.opset >= 11:
        parameters["coordinate_transformation_mode"] = s.one(
            "half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"
        )
        parameters["nearest_mode"] = s.one("floor", "round_prefer_floor", "ceil")
        if s.often(0.3):
            del parameters["scales"]
            parameters["sizes"] = np.array([*x.shape[:-2], s.size(), s.size()], np.int64)
        if s.opset < 13:
            parameters["roi"] = np.zeros(0, np.float32)
            parameters.setdefault("scales", np.zeros(0, np.float32))
    s.add(op, x, **parameters)


@draws("Shape")
def shape(s: Scope, op: str) -> None:
    """A shape, and often arithmetic on it that ends in a Reshape."""
    x = s.take(op, 0, lambda v: v.rank > 0 and v.kind != "seq()")
    bounds = {"start": s.one(0, 1, -1), "end": x.rank} if s.often(0.3) else {}
    sizes = s.add(op, x, **bounds)
    if bounds or s.often(0.4):
        return
    first = s.add("Gather", sizes, s.constant(np.array(0, np.int64)), axis=0)
    rows = s.add("Unsqueeze", first, axes=np.array([0], np.int64))
    rest = s.one(np.array([-1], np.int64), np.array(x.shape[1:], np.int64))
    s.add("Reshape", x, s.add("Concat", rows, s.constant(rest), axis=0))


@draws("ConstantOfShape")
def constant_of_shape(s: Scope, op: str) -> None:
    sizes = np.array([s.size() for _ in range(s.one(0, 1, 2))], np.int64)
    filled = np.array([s.one(0, 1, 2)], s.one(np.float32, np.int64, np.bool_, np.float16))
    known = [v for v in s.visible() if v.kind == "tensor(int64)" and v.rank == 1 and _small(v)]
    x = s.one(*known) if known else s.constant(sizes)
    value = {} if s.often(0.3) else {"value": numpy_helper.from_array(filled)}
    s.append(op, "", [x], 1, value)


def _small(value: Value) -> bool:
    sizes = value.array
    return bool(len(sizes) < 5 and (sizes >= 0).all() and sizes.prod() < 500)


@draws("Constant")
def constant(s: Scope, op: str) -> None:
    if s.opset < 12 or s.often():
        s.constant(s.some((s.size(),), s.one(np.float32, np.int64)))
        return
    given = s.one({"value_float": 0.5}, {"value_ints": [1, 2]}, {"value_int": 3})
    s.append(op, "", [], 1, given)


@draws("Range")
def range_(s: Scope, op: str) -> None:
    dtype = s.one(np.int64, np.float32, np.int32)
    limits = s.one((0, 4, 1), (1, 6, 2), (3, 0, -1), (0, 0, 1))
    s.add(op, *(s.constant(np.array(limit, dtype)) for limit in limits))


@draws("OneHot")
def one_hot(s: Scope, op: str) -> None:
    indices = s.made(np.array([s.rng.randrange(4) for _ in range(3)], np.int64))
    values = s.constant(np.array([0, 1], s.one(np.float32, np.int64)))
    s.add(op, indices, s.constant(np.array(4, np.int64)), values)


@draws("TopK")
def top_k(s: Scope, op: str) -> None:
    x = s.floats(op)
    k = np.array([1], np.int64) if s.opset >= 10 else 1
    s.add_all(op, x, outputs=2, k=k, K=k)


@draws("Trilu")
def trilu(s: Scope, op: str) -> None:
    s.add(op, s.take(op, 0, lambda v: v.rank >= 2), upper=s.one(0, 1))


@draws("CumSum")
def cum_sum(s: Scope, op: str) -> None:
    x = s.take(op, 0, lambda v: v.rank > 0)
    axis = s.constant(np.array(s.rng.randrange(x.rank), np.int64))
    s.add(op, x, axis, exclusive=s.one(0, 1), reverse=s.one(0, 1))


@draws("Compress")
def compress(s: Scope, op: str) -> None:
    x = s.take(op, 0, lambda v: v.rank > 0)
    s.add(op, x, s.made(s.some((x.shape[0],), np.bool_)), axis=0)


@draws("NonZero", "Unique")
def of_data(s: Scope, op: str) -> None:
    """Sizes that depend on data."""
    s.add(op, s.take(op))


@draws("Einsum")
def einsum(s: Scope, op: str) -> None:
    x = s.floats(op, 2, 3)
    if x.rank == 2 and s.often():
        y = s.made(s.some((x.shape[1], s.size()), x.dtype))
        s.add(op, x, y, equation="ij,jk->ik")
    else:
        s.add(op, x, equation={2: "ij->ji", 3: "bij->bi"}[x.rank])


# ----------------------------------------------------------------- reductions


@draws(
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare",
)  # fmt: skip
def reduce(s: Scope, op: str) -> None:
    x = s.take(op, 0, lambda v: 0 not in v.shape)
    if op == "ReduceLogSum":
        x = s.add("Abs", x)
    parameters: dict[str, Any] = {"keepdims": s.one(0, 1)} if s.often(0.8) else {}
    if x.rank and s.often(0.8):
        axes = s.rng.sample(range(x.rank), s.rng.randint(1, min(2, x.rank)))
        shift = x.rank if s.opset >= 11 and s.often(0.3) else 0
        parameters["axes"] = np.array([axis - shift for axis in axes], np.int64)
    elif s.often(0.2):
        parameters["noop_with_empty_axes"] = 1
    s.add(op, x, **parameters)


@draws("ArgMax", "ArgMin")
def arg(s: Scope, op: str) -> None:
    x = s.take(op, 0, lambda v: v.rank > 0 and 0 not in v.shape)
    s.add(op, x, axis=s.rng.randrange(x.rank), keepdims=s.one(0, 1))


@draws("Softmax", "LogSoftmax", "Hardmax")
def softmax(s: Scope, op: str) -> None:
    x = s.floats(op)
    if not x.rank:
        raise Unfit
    s.add(op, x, **({"axis": s.rng.randrange(x.rank)} if s.often(0.8) else {}))


# ----------------------------------------------------------------- layers


def weight(s: Scope, x: Value, *shape: int) -> Value:
    """A weight, often shared with a layer of the same shape."""
    known = [v for v in s.visible() if v.is_constant and v.kind == x.kind and v.shape == shape]
    if known and s.often(0.4):
        return s.one(*known)
    array = s.some(shape, x.dtype)
    return s.constant(array) if s.often(0.85) else s.made(array)


def optional(s: Scope, value: Value) -> Value | None:
    """The value, or nothing where an optional input is left out."""
    return value if s.often(0.6) else None


def _operands(*values: Value | None) -> list[Value | None]:
    """Operands without those at the end that are left out."""
    found = list(values)
    while found and found[-1] is None:
        found.pop()
    return found


@draws("Conv", "ConvTranspose")
def conv(s: Scope, op: str) -> None:
    x = s.floats(op, 3, 4, 5)
    channels, spatial = x.shape[1], x.rank - 2
    group = s.one(1, 1, channels)
    width = s.one(1, 2, 4) * (group if op == "Conv" else 1)
    kernel = [s.one(1, 1, 2, 3) for _ in range(spatial)]
    parameters: dict[str, Any] = {"group": group} if group > 1 or s.often(0.3) else {}
    if s.often(0.6):
        parameters["pads"] = [size // 2 for size in kernel] * 2
    elif s.often(0.2):
        parameters["auto_pad"] = s.one("SAME_UPPER", "SAME_LOWER", "VALID")
    if s.often(0.3):
        parameters["strides"] = [2] * spatial
    if s.often(0.15):
        parameters["dilations"] = [2] * spatial
    if s.often():
        parameters["kernel_shape"] = kernel
    shape = (width, channels // group) if op == "Conv" else (channels, width)
    outs = width if op == "Conv" else width * group
    bias = weight(s, x, outs) if s.often() else None
    s.add(op, *_operands(x, weight(s, x, *shape, *kernel), bias), **parameters)


@draws("DeformConv")
def deform_conv(s: Scope, op: str) -> None:
    x = s.floats(op, 4)
    offsets = s.some((x.shape[0], 2, *x.shape[2:]), x.dtype)
    s.add(op, x, weight(s, x, 2, x.shape[1], 1, 1), s.made(offsets))


@draws("MaxPool", "AveragePool", "LpPool")
def pool(s: Scope, op: str) -> None:
    x = s.floats(op, 3, 4)
    spatial = x.rank - 2
    # a window larger than what it looks at has no meaning, and kernels of opsets differ in it
    kernel = [min(s.one(1, 2, 2, 3), size) for size in x.shape[2:]]
    parameters: dict[str, Any] = {"kernel_shape": kernel}
    if s.often():
        parameters["strides"] = [s.one(1, 2)] * spatial
    if s.often(0.4):
        parameters["pads"] = [size // 2 for size in kernel] * 2
    if s.often(0.3):
        parameters["ceil_mode"] = 1
    if op == "AveragePool" and s.often():
        parameters["count_include_pad"] = 1
    s.add_all(op, x, outputs=2 if op == "MaxPool" and s.often(0.1) else 1, **parameters)


@draws("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "MeanVarianceNormalization")
def over_maps(s: Scope, op: str) -> None:
    s.add(op, s.floats(op, *([4] if op.startswith("Mean") else [3, 4])))


@draws("BatchNormalization")
def batch_normalization(s: Scope, op: str) -> None:
    x = s.floats(op, 2, 3, 4)
    scale, shift, mean = (weight(s, x, x.shape[1]) for _ in range(3))
    variance = s.constant(np.abs(s.some((x.shape[1],), x.dtype)) + x.dtype.type(0.5))
    s.add(op, x, scale, shift, mean, variance, **({"epsilon": 1e-3} if s.often(0.3) else {}))


@draws("InstanceNormalization")
def instance_normalization(s: Scope, op: str) -> None:
    x = s.floats(op, 3, 4)
    s.add(op, x, weight(s, x, x.shape[1]), weight(s, x, x.shape[1]))


@draws("GroupNormalization")
def group_normalization(s: Scope, op: str) -> None:
    x = s.floats(op, 3, 4)
    groups = 2 if x.shape[1] % 2 == 0 else 1
    width = x.shape[1] if s.opset >= 21 else groups
    s.add(op, x, weight(s, x, width), weight(s, x, width), num_groups=groups)


@draws("LayerNormalization", "RMSNormalization")
def layer_normalization(s: Scope, op: str) -> None:
    x = s.floats(op, 2, 3)
    operands = [x, weight(s, x, x.shape[-1])]
    if op[0] == "L" and s.often():
        operands.append(weight(s, x, x.shape[-1]))
    s.add(op, *operands, **({"axis": -1} if s.often() else {}))


@draws("LpNormalization")
def lp_normalization(s: Scope, op: str) -> None:
    s.add(op, s.floats(op), p=s.one(1, 2))


@draws("LRN")
def lrn(s: Scope, op: str) -> None:
    s.add(op, s.floats(op, 4), size=3)


@draws("MatMul")
def matmul(s: Scope, op: str) -> None:
    x = s.floats(op, 1, 2, 3, 4)
    features = s.one(1, 2, 3)
    shape = s.one((x.shape[-1], features), (x.shape[-1], features), (x.shape[-1],))
    w = weight(s, x, *shape)
    if x.rank >= 2 and s.often(0.2):
        s.add(op, weight(s, x, features, x.shape[-2]), x)
        return
    y = s.add(op, x, w)
    if s.often(0.6):
        s.add("Add", *s.rng.sample([y, weight(s, x, *(y.shape[-1:] if y.rank else ()))], 2))


@draws("Gemm")
def gemm(s: Scope, op: str) -> None:
    x = s.floats(op, 2)
    flips = {name: 1 for name in ("transA", "transB") if s.often(0.4)}
    inner = x.shape[0] if "transA" in flips else x.shape[1]
    features = s.one(1, 2, 3)
    shape = (features, inner) if "transB" in flips else (inner, features)
    scales = {name: s.one(0.5, 1.0, 2.0) for name in ("alpha", "beta") if s.often(0.3)}
    bias = s.one(weight(s, x, features), weight(s, x, 1), weight(s, x, 1, features))
    if s.opset >= 11 and s.often(0.3):
        bias = None
    s.add(op, *_operands(x, weight(s, x, *shape), bias), **flips, **scales)


@draws("LSTM", "GRU", "RNN")
def recurrent(s: Scope, op: str) -> None:
    x = s.floats(op, 3)
    gates, hidden = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], s.one(1, 2, 3)
    ways = s.one(1, 1, 2)
    steps, batch, features = x.shape
    state = lambda: s.made(s.some((ways, batch, hidden), x.dtype))  # noqa: E731
    operands = _operands(
        x,
        weight(s, x, ways, gates * hidden, features),
        weight(s, x, ways, gates * hidden, hidden),
        optional(s, weight(s, x, ways, 2 * gates * hidden)),
        s.made(np.full(batch, steps, np.int32)) if s.often(0.3) else None,
        state() if s.often() else None,
        state() if op == "LSTM" and s.often() else None,
    )
    parameters: dict[str, Any] = {"hidden_size": hidden}
    if ways == 2:
        parameters["direction"] = "bidirectional"
    elif s.often(0.3):
        parameters["direction"] = s.one("forward", "reverse")
    if op == "GRU" and s.often():
        parameters["linear_before_reset"] = 1
    s.add_all(op, *operands, outputs=s.one(1, 2, 3 if op == "LSTM" else 2), **parameters)


@draws("Attention")
def attention(s: Scope, op: str) -> None:
    x = s.floats(op, 4)
    s.add(op, x, x, x, is_causal=s.one(0, 1))


@draws("RotaryEmbedding")
def rotary_embedding(s: Scope, op: str) -> None:
    x = s.floats(op, 4)
    batch, _, length, width = x.shape
    if width < 2 or width % 2:
        raise Unfit
    cos, sin = (s.made(s.some((batch, length, width // 2), x.dtype)) for _ in range(2))
    s.add(op, x, cos, sin, interleaved=s.one(0, 1))


@draws("GridSample")
def grid_sample(s: Scope, op: str) -> None:
    x = s.floats(op, 4)
    grid = np.tanh(s.some((x.shape[0], 2, 3, 2), x.dtype))
    s.add(op, x, s.made(grid))


@draws("RoiAlign")
def roi_align(s: Scope, op: str) -> None:
    x = s.floats(op, 4)
    rois = np.array([[0, 0, 1, 1]], x.dtype)
    s.add(op, x, s.made(rois), s.made(np.zeros(1, np.int64)), output_height=1, output_width=2)


@draws("NonMaxSuppression")
def non_max_suppression(s: Scope, op: str) -> None:
    boxes = np.sort(np.abs(s.some((1, 4, 4))), -1)
    most = s.constant(np.array([2], np.int64))
    threshold = s.constant(np.array([0.5], np.float32))
    s.add(op, s.made(boxes), s.made(np.abs(s.some((1, 1, 4)))), most, threshold)


@draws("DFT")
def dft(s: Scope, op: str) -> None:
    x = s.floats(op, 3)
    if x.shape[-1] not in (1, 2):
        x = s.add("Unsqueeze", x, axes=np.array([3], np.int64))
    s.add(op, x, axis=np.array(1, np.int64) if s.opset >= 20 else 1)


# ----------------------------------------------------------------- integers


@draws("QuantizeLinear")
def quantize(s: Scope, op: str) -> None:
    """A grid for the tensor or for each channel, often followed by its inverse."""
    x = s.floats(op)
    dtype = s.one(np.uint8, np.int8)
    axis = 1 if x.rank > 1 and s.opset >= 13 and s.often(0.3) else None
    sizes = () if axis is None else (x.shape[axis],)
    scale = s.constant((np.abs(s.some(sizes)) * 0.05 + 0.02).astype(x.dtype))
    zero = s.constant(np.full(sizes, 128 if dtype == np.uint8 and s.often() else 0, dtype))
    more = {} if axis is None else {"axis": axis}
    given = zero if dtype == np.int8 or s.often(0.8) else None
    q = s.add(op, *_operands(x, scale, given), **more)
    if s.often(0.7):
        s.add("DequantizeLinear", *_operands(q, scale, given), **more)


@draws("DequantizeLinear")
def dequantize(s: Scope, op: str) -> None:
    """Of a value, or of a constant: a weight."""
    dtype = s.one(np.uint8, np.int8, np.int32)
    if s.often():
        x = s.constant(s.some((s.size(), s.size()), dtype))
    else:
        x = s.take(op, 0, lambda v: v.dtype.kind in "iu")
    scale = s.constant(np.array(s.one(0.1, 0.5, 1.0), np.float32))
    zero = s.constant(np.array(s.one(0, 3) if x.dtype.itemsize == 1 else 0, x.dtype))
    y = s.add(op, *_operands(x, scale, optional(s, zero)))
    if s.often(0.5) and y.rank == 2:
        s.add("MatMul", s.made(s.some((2, y.shape[0]))), y)


@draws("DynamicQuantizeLinear")
def dynamic_quantize(s: Scope, op: str) -> None:
    s.add_all(op, s.floats(op), outputs=3)


@draws("MatMulInteger", "ConvInteger")
def integer_product(s: Scope, op: str) -> None:
    rank = 2 if op[0] == "M" else 4
    x = s.made(s.some([s.size() for _ in range(rank)], np.uint8))
    shape = (x.shape[1], 2) if rank == 2 else (2, x.shape[1], 1, 1)
    zero = s.constant(np.array(s.one(0, 2), np.uint8))
    s.add(op, *_operands(x, s.constant(s.some(shape, np.uint8)), optional(s, zero)))


@draws("QLinearConv", "QLinearMatMul")
def quantized_product(s: Scope, op: str) -> None:
    rank = 2 if op.endswith("MatMul") else 4
    x = s.made(s.some([s.size() for _ in range(rank)], np.uint8))
    shape = (x.shape[1], 2) if rank == 2 else (2, x.shape[1], 1, 1)
    grid = [s.constant(np.array(0.1, np.float32)), s.constant(np.array(1, np.uint8))]
    s.add(op, x, *grid, s.constant(s.some(shape, np.uint8)), *grid, *grid)


# ----------------------------------------------------------------- sequences and text


@draws("SplitToSequence", "SequenceAt")
def split_to_sequence(s: Scope, op: str) -> None:
    x = s.take("SplitToSequence", 0, lambda v: v.rank > 0 and 0 < v.shape[0] < 6)
    parts = s.add("SplitToSequence", x, axis=0, keepdims=s.one(0, 1))
    index = s.constant(np.array(s.rng.randrange(len(parts.array)), np.int64))
    s.add("SequenceAt", parts, index)


@draws("SequenceConstruct")
def sequence_construct(s: Scope, op: str) -> None:
    x = s.take("SplitToSequence", 0)
    parts = s.add(op, x, x)
    s.add("SequenceAt", parts, s.constant(np.array(s.one(0, 1, -1), np.int64)))


@draws("SequenceLength")
def sequence_length(s: Scope, op: str) -> None:
    x = s.take("SplitToSequence", 0, lambda v: v.rank > 0 and 0 < v.shape[0] < 6)
    s.add(op, s.add("SplitToSequence", x, axis=0))


@draws("StringSplit")
def string_split(s: Scope, op: str) -> None:
    s.add_all(op, s.made(np.array(["a b", "c"], object)), outputs=2, delimiter=" ")

"""Hypothesis strategies for small valid models: random graphs with every shape known.

A model is drawn one operator at a time; each step takes values that exist and appends nodes whose
output shape it knows, so every drawn model passes the checker and runs. Floats are only put through
continuous operators, so rounding in one place cannot become a jump in another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

OPSETS = (13, 17, 18, 21)


@dataclass(frozen=True)
class Value:
    """A tensor of the model that is being drawn."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        return self.dtype.kind == "f"


@dataclass
class Drawing:
    """A model on its way: what there is so far, and the source of choices."""

    draw: st.DrawFn
    opset: int
    rng: np.random.Generator
    values: list[Value] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def pick(self, accepts: Callable[[Value], bool] = lambda value: True) -> Value | None:
        """One of the values so far that `accepts`; later ones are likelier, so graphs get deep."""
        fitting = [value for value in self.values if accepts(value)]
        if not fitting:
            return None
        return fitting[-1 - min(self.draw(st.integers(0, 5)), len(fitting) - 1)]

    def choose(self, *items: Any) -> Any:
        """One of `items`."""
        return self.draw(st.sampled_from(items))

    def constant(self, array: np.ndarray) -> str:
        """An initializer, a `Constant` node, or an equal initializer that exists already."""
        for name, known in self.constants.items():
            same = known.dtype == array.dtype and known.shape == array.shape
            if same and known.tobytes() == array.tobytes() and self.draw(st.booleans()):
                return name
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        if self.draw(st.integers(0, 3)) == 3:
            tensor = numpy_helper.from_array(array, name)
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def ints(self, *items: int) -> str:
        """An int64 vector."""
        return self.constant(np.array(items, np.int64))

    def weight(self, *shape: int) -> str:
        """Random float32 weights, sometimes those of the same shape that were drawn before."""
        for name, known in self.constants.items():
            if known.shape == shape and known.dtype == np.float32 and self.draw(st.booleans()):
                return name
        return self.constant(self.rng.standard_normal(shape).astype(np.float32))

    def add(
        self, op: str, inputs: list[str], shape: tuple[int, ...], dtype: Any, **attrs: Any
    ) -> Value:
        """Append a node with one output."""
        value = Value(f"v{len(self.values)}", np.dtype(dtype), tuple(shape))
        self.nodes.append(helper.make_node(op, inputs, [value.name], **attrs))
        self.values.append(value)
        return value


def unary(d: Drawing) -> None:
    x = d.pick(lambda v: v.is_float)
    if x is not None:
        ops = ("Relu", "Sigmoid", "Tanh", "Abs", "Neg", "Identity", "Softplus", "HardSigmoid")
        d.add(d.choose(*ops), [x.name], x.shape, x.dtype)


def no_op(d: Drawing) -> None:
    x = d.pick()
    if x is None:
        return
    op = d.choose(
        "Identity", "Dropout", "Cast", "Transpose", "Concat", "Slice", "Reshape", "Expand"
    )
    attrs: dict[str, Any] = {}
    inputs = [x.name]
    if (op == "Dropout" and not x.is_float) or (op == "Transpose" and not x.shape):
        op = "Identity"
    if op == "Cast":
        attrs["to"] = helper.np_dtype_to_tensor_dtype(x.dtype)
    elif op == "Transpose":
        attrs["perm"] = list(range(len(x.shape)))
    elif op == "Concat":
        attrs["axis"] = -1
        op = op if x.shape else "Identity"
        attrs = attrs if x.shape else {}
    elif op == "Slice":
        op = op if x.shape else "Identity"
        inputs += [d.ints(0), d.ints(2**63 - 1), d.ints(0)] if x.shape else []
    elif op in ("Reshape", "Expand"):
        inputs.append(d.ints(*x.shape))
    d.add(op, inputs, x.shape, x.dtype, **attrs)


def with_constant(d: Drawing) -> None:
    x = d.pick()
    if x is None:
        return
    op = d.choose("Add", "Mul", "Sub", "Div")
    if x.is_float:
        channel = (x.shape[1], 1, 1) if len(x.shape) == 4 else x.shape[-1:]
        array = d.rng.uniform(0.5, 1.5, d.choose((), (1,), channel)).astype(x.dtype)
        array = d.choose(array, array, np.ones_like(array), np.full_like(array, -0.0))
        if op == "Div" and not array.all():
            op = "Sub"
    else:
        array = np.array(d.choose(0, 1, 2), x.dtype)
        op = "Mul" if op == "Div" else op
    shape = np.broadcast_shapes(x.shape, array.shape)
    inputs = [x.name, d.constant(array)]
    if op in ("Add", "Mul") and d.draw(st.booleans()):
        inputs.reverse()
    d.add(op, inputs, shape, x.dtype)


def binary(d: Drawing) -> None:
    x = d.pick()
    if x is None:
        return
    y = d.pick(lambda v: v.dtype == x.dtype and v.shape == x.shape) or x
    op = d.choose("Add", "Mul", "Max", "Min", "Sum" if x.is_float else "Add")
    d.add(op, [x.name, y.name], x.shape, x.dtype)


def repeat(d: Drawing) -> None:
    """The same node once more: a common subexpression."""
    known = [n for n in d.nodes if len(n.output) == 1 and n.output[0].startswith("v")]
    if known:
        node = d.choose(*known)
        value = next(v for v in d.values if v.name == node.output[0])
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.output[0] = f"v{len(d.values)}"
        d.nodes.append(copy)
        d.values.append(Value(copy.output[0], value.dtype, value.shape))


def transpose(d: Drawing) -> None:
    x = d.pick(lambda v: len(v.shape) > 1)
    if x is not None:
        perm = d.draw(st.permutations(range(len(x.shape))))
        d.add("Transpose", [x.name], tuple(x.shape[i] for i in perm), x.dtype, perm=perm)


def reshape(d: Drawing) -> None:
    x = d.pick(lambda v: prod(v.shape) > 0)
    if x is None:
        return
    size = prod(x.shape)
    first = x.shape[0] if x.shape else 1
    shape = d.choose((size,), (first, size // first), (1, size), (*x.shape, 1), x.shape[::-1])
    target = list(shape)
    if target and d.draw(st.booleans()):
        target[d.draw(st.integers(0, len(target) - 1))] = -1
    d.add("Reshape", [x.name, d.ints(*target)], shape, x.dtype)


def reshape_by_arithmetic(d: Drawing) -> None:
    """`x.view(x.size(0), -1)` as exporters write it."""
    x = d.pick(lambda v: len(v.shape) >= 2 and prod(v.shape) > 0)
    if x is None:
        return
    shape = d.add("Shape", [x.name], (len(x.shape),), np.int64)
    first = d.add("Gather", [shape.name, d.constant(np.array(0, np.int64))], (), np.int64, axis=0)
    column = d.add("Unsqueeze", [first.name, d.ints(0)], (1,), np.int64)
    target = d.add("Concat", [column.name, d.ints(-1)], (2,), np.int64, axis=0)
    d.add("Reshape", [x.name, target.name], (x.shape[0], prod(x.shape[1:])), x.dtype)


def flatten(d: Drawing) -> None:
    x = d.pick(lambda v: len(v.shape) >= 1)
    if x is not None:
        axis = d.draw(st.integers(0, len(x.shape)))
        shape = (prod(x.shape[:axis]), prod(x.shape[axis:]))
        d.add("Flatten", [x.name], shape, x.dtype, axis=axis)


def unsqueeze(d: Drawing) -> None:
    x = d.pick(lambda v: len(v.shape) < 5)
    if x is not None:
        axis = d.draw(st.integers(0, len(x.shape)))
        shape = (*x.shape[:axis], 1, *x.shape[axis:])
        d.add("Unsqueeze", [x.name, d.ints(axis)], shape, x.dtype)


def squeeze(d: Drawing) -> None:
    x = d.pick(lambda v: 1 in v.shape)
    if x is not None:
        axis = x.shape.index(1)
        shape = (*x.shape[:axis], *x.shape[axis + 1 :])
        d.add("Squeeze", [x.name, d.ints(axis)], shape, x.dtype)


def slice_(d: Drawing) -> None:
    x = d.pick(lambda v: any(size > 1 for size in v.shape))
    if x is None:
        return
    axis = next(i for i, size in enumerate(x.shape) if size > 1)
    start = d.draw(st.integers(0, 1))
    shape = (*x.shape[:axis], x.shape[axis] - start, *x.shape[axis + 1 :])
    end = d.choose(2**63 - 1, x.shape[axis])
    inputs = [x.name, d.ints(start), d.ints(end), d.ints(axis), d.ints(1)]
    d.add("Slice", inputs, shape, x.dtype)


def concat(d: Drawing) -> None:
    x = d.pick(lambda v: len(v.shape) >= 1 and prod(v.shape) < 500)
    if x is None:
        return
    y = d.pick(lambda v: v.dtype == x.dtype and v.shape == x.shape) or x
    axis = d.draw(st.integers(0, len(x.shape) - 1))
    shape = (*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])
    d.add("Concat", [x.name, y.name], shape, x.dtype, axis=axis)


def split(d: Drawing) -> None:
    x = d.pick(lambda v: len(v.shape) >= 1 and v.shape[-1] > 1)
    if x is None:
        return
    sizes = [1, x.shape[-1] - 1]
    parts = [Value(f"v{len(d.values) + i}", x.dtype, (*x.shape[:-1], sizes[i])) for i in (0, 1)]
    inputs = [x.name, d.ints(*sizes)]
    d.nodes.append(helper.make_node("Split", inputs, [part.name for part in parts], axis=-1))
    d.values += parts


def gather(d: Drawing) -> None:
    x = d.pick(lambda v: len(v.shape) >= 1 and v.shape[0] > 0)
    if x is not None:
        indices = d.choose([0], list(range(x.shape[0])), list(range(x.shape[0]))[::-1])
        shape = (len(indices), *x.shape[1:])
        d.add("Gather", [x.name, d.ints(*indices)], shape, x.dtype, axis=0)


def pad(d: Drawing) -> None:
    x = d.pick(lambda v: len(v.shape) == 4 and v.is_float and prod(v.shape) < 1000)
    if x is not None:
        before, after = d.draw(st.integers(0, 1)), d.draw(st.integers(0, 1))
        shape = (*x.shape[:2], x.shape[2] + before, x.shape[3] + after)
        pads = d.ints(0, 0, before, 0, 0, 0, 0, after)
        d.add("Pad", [x.name, pads], shape, x.dtype)


def conv(d: Drawing) -> None:
    x = d.pick(lambda v: len(v.shape) == 4 and min(v.shape) > 0 and v.dtype == np.float32)
    if x is None:
        return
    channels = x.shape[1]
    group = d.choose(1, channels)
    filters = d.choose(2, 4) * (group if group > 1 else 1)
    kernel, p = d.choose((1, 0), (3, 1))
    inputs = [x.name, d.weight(filters, channels // group, kernel, kernel)]
    if d.draw(st.booleans()):
        inputs.append(d.weight(filters))
    if filters * x.shape[2] * x.shape[3] < 2000:
        shape = (x.shape[0], filters, *x.shape[2:])
        d.add("Conv", inputs, shape, x.dtype, group=group, pads=[p, p, p, p])


def batch_norm(d: Drawing) -> None:
    x = d.pick(lambda v: len(v.shape) in (2, 4) and v.dtype == np.float32 and min(v.shape) > 0)
    if x is not None:
        c = x.shape[1]
        variance = d.constant(d.rng.uniform(0.5, 2, c).astype(np.float32))
        names = [d.weight(c), d.weight(c), d.weight(c), variance]
        d.add("BatchNormalization", [x.name, *names], x.shape, x.dtype)


def conv_block(d: Drawing) -> None:
    """Convolution, normalization, scaling, activation: what networks repeat."""
    for step in (conv, batch_norm, with_constant, unary):
        if d.draw(st.integers(0, 3)):
            step(d)


def pool(d: Drawing) -> None:
    x = d.pick(lambda v: len(v.shape) == 4 and v.dtype == np.float32 and min(v.shape[2:]) > 1)
    if x is not None:
        size = d.choose(1, 2)
        shape = (*x.shape[:2], x.shape[2] - size + 1, x.shape[3] - size + 1)
        op = d.choose("MaxPool", "AveragePool")
        d.add(op, [x.name], shape, x.dtype, kernel_shape=[size, size])


def dense(d: Drawing) -> None:
    x = d.pick(lambda v: len(v.shape) == 2 and v.dtype == np.float32 and 0 < v.shape[1] < 200)
    if x is None:
        return
    features = d.choose(2, 3)
    weight = d.weight(x.shape[1], features)
    shape = (x.shape[0], features)
    if d.draw(st.booleans()):
        d.add("Gemm", [x.name, weight, d.weight(features)], shape, x.dtype)
    else:
        y = d.add("MatMul", [x.name, weight], shape, x.dtype)
        d.add("Add", [y.name, d.weight(features)], shape, x.dtype)


def reduce(d: Drawing) -> None:
    x = d.pick(lambda v: len(v.shape) >= 1 and v.dtype == np.float32 and prod(v.shape) > 0)
    if x is None:
        return
    keep = d.draw(st.integers(0, 1))
    inputs = [x.name, d.ints(len(x.shape) - 1)]
    shape = (*x.shape[:-1], 1) if keep else x.shape[:-1]
    d.add("ReduceSum", inputs, shape, x.dtype, keepdims=keep)


def softmax(d: Drawing) -> None:
    x = d.pick(lambda v: len(v.shape) >= 1 and v.dtype == np.float32 and prod(v.shape) > 0)
    if x is not None:
        d.add("Softmax", [x.name], x.shape, x.dtype, axis=-1)


def cast(d: Drawing) -> None:
    x = d.pick()
    if x is not None:
        # never from a float to an integer: that would be a jump
        dtype = np.dtype(d.choose("float32", "float64") if x.is_float else "float32")
        d.add("Cast", [x.name], x.shape, dtype, to=helper.np_dtype_to_tensor_dtype(dtype))


def constant_arithmetic(d: Drawing) -> None:
    """A part that depends on constants only, large in the middle or at its end."""
    base = Value(d.weight(2, 3), np.dtype("float32"), (2, 3))
    kind = d.draw(st.integers(0, 3))
    if kind == 0:
        d.add("Transpose", [base.name], (3, 2), base.dtype, perm=[1, 0])
    elif kind == 1:
        d.add("Expand", [base.name, d.ints(20, 2, 3)], (20, 2, 3), base.dtype)
    elif kind == 2:
        big = d.add("Tile", [base.name, d.ints(20, 1)], (40, 3), base.dtype)
        d.add("ReduceSum", [big.name, d.ints(0)], (1, 3), base.dtype)
    else:
        d.add("ConstantOfShape", [d.ints(2, 3)], (2, 3), np.float32)


STEPS = (
    unary, unary, no_op, no_op, with_constant, with_constant, binary, repeat, transpose, reshape,
    reshape_by_arithmetic, flatten, unsqueeze, squeeze, slice_, concat, split, gather, pad, conv,
    conv, conv_block, conv_block, batch_norm, pool, dense, reduce, softmax, cast,
    constant_arithmetic,
)  # fmt: skip


@st.composite
def models(draw: st.DrawFn, max_steps: int = 12) -> onnx.ModelProto:
    """A valid model of one to `max_steps` steps, with some of its values as outputs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    d = Drawing(draw, draw(st.sampled_from(OPSETS)), rng)
    shapes = [(1, 4, 4, 4), (2, 4, 3, 3), (2, 6), (2, 3, 4)]
    inputs = [Value("x", np.dtype("float32"), draw(st.sampled_from(shapes)))]
    if draw(st.booleans()):
        inputs.append(Value("n", np.dtype("int64"), (2, 3)))
    d.values += inputs
    for _ in range(draw(st.integers(1, max_steps))):
        draw(st.sampled_from(STEPS))(d)
    made = d.values[len(inputs) :]
    if not made:
        made = [d.add("Relu", ["x"], inputs[0].shape, np.float32)]
    outputs = {made[-1].name: made[-1]}
    for value in draw(st.lists(st.sampled_from(made), max_size=2)):
        outputs[value.name] = value
    return _build(d, inputs, list(outputs.values()))


def _build(d: Drawing, inputs: list[Value], outputs: list[Value]) -> onnx.ModelProto:
    in_nodes = {name for node in d.nodes if node.op_type == "Constant" for name in node.output}
    graph = helper.make_graph(
        d.nodes,
        "drawn",
        [_info(value) for value in inputs],
        [_info(value) for value in outputs],
        [
            numpy_helper.from_array(array, name)
            for name, array in d.constants.items()
            if name not in in_nodes
        ],
    )
    imports = [helper.make_opsetid("", d.opset)]
    return helper.make_model(graph, ir_version=8, opset_imports=imports)


def _info(value: Value) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(value.name, kind, list(value.shape))

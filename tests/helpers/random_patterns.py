"""Runs of nodes that passes look for: operators behind each other, and formulas of exporters."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper
from random_graphs import Scope, Unfit, Value
from random_operators import OPERATORS, weight

from onnxslim import passes

CHAINS: Final = (
    ("Conv", "BatchNormalization", "Relu"),
    ("Conv", "Mul", "Add"),
    ("ConvTranspose", "BatchNormalization"),
    ("Pad", "Conv"),
    ("Pad", "Pad"),
    ("Pad", "AveragePool"),
    ("Mul", "Add", "Conv"),
    ("BatchNormalization", "MatMul"),
    ("Mul", "Mul"),
    ("Add", "Sub"),
    ("Div", "Gemm"),
    ("Neg", "Mul", "MatMul"),
    ("Transpose", "Transpose"),
    ("Transpose", "Relu", "Transpose"),
    ("Transpose", "Reshape"),
    ("Transpose", "Reshape", "Transpose", "Reshape"),
    ("Reshape", "Transpose", "Reshape", "Transpose"),
    ("Transpose", "MatMul"),
    ("Transpose", "Add", "Transpose"),
    ("Transpose", "Softmax", "Transpose"),
    ("Transpose", "ReduceMean"),
    ("Transpose", "Concat", "Transpose"),
    ("Transpose", "Split"),
    ("Transpose", "Pad", "Transpose"),
    ("Transpose", "ArgMax"),
    ("Transpose", "LayerNormalization"),
    ("Reshape", "Reshape"),
    ("Reshape", "Relu", "Reshape"),
    ("Unsqueeze", "Squeeze"),
    ("Squeeze", "Unsqueeze"),
    ("Flatten", "Reshape"),
    ("Unsqueeze", "Expand", "Reshape"),
    ("Slice", "Slice"),
    ("Slice", "Concat"),
    ("Split", "Concat"),
    ("Split", "Slice"),
    ("Gather", "Gather"),
    ("Concat", "Slice"),
    ("Concat", "Concat"),
    ("Concat", "Split"),
    ("Cast", "Cast"),
    ("Cast", "Relu", "Cast"),
    ("Cast", "Add", "Cast"),
    ("ReduceMean", "Unsqueeze"),
    ("ReduceSum", "ReduceSum"),
    ("ReduceMean", "Squeeze"),
    ("GlobalAveragePool", "Flatten", "Gemm"),
    ("QuantizeLinear", "Relu", "QuantizeLinear"),
    ("QuantizeLinear", "Transpose", "DequantizeLinear"),
    ("DequantizeLinear", "MaxPool", "Reshape", "QuantizeLinear"),
    ("Relu", "Clip"),
    ("Clip", "Clip"),
    ("Relu", "MaxPool", "Relu"),
    ("Shape", "Slice", "Concat", "Expand"),
    ("Shape", "Gather", "Mul"),
    ("Shape", "ConstantOfShape"),
    ("Expand", "Add"),
    ("Expand", "Cast", "Sub", "Add"),
    ("Expand", "MatMul"),
    ("ConstantOfShape", "Add"),
    ("Tile", "Slice"),
    ("Identity", "Dropout"),
    ("Not", "Not", "Where"),
    ("Equal", "Where"),
    ("Equal", "Not", "Where", "Where"),
    ("DepthToSpace", "SpaceToDepth"),
    ("Resize", "Resize"),
    ("Sum", "Mean"),
    ("Exp", "Log"),
    ("Abs", "Sqrt"),
    ("MatMul", "Mul", "MatMul"),
    ("LSTM", "Squeeze"),
)


def chain(s: Scope) -> None:
    """Operators that each take what the one before gave."""
    ops = s.one(*CHAINS)
    if s.often():
        s.focus = s.floats(ops[0], 4)
    else:
        s.focus = s.take(ops[0], 0, lambda value: not value.is_constant and 0 not in value.shape)
    for op in ops:
        OPERATORS[op](s, op)
        if s.focus is not None:  # it did not fit
            break
        s.focus = s.values[-1]
    s.focus = None


@cache
def _examples() -> tuple[onnx.ModelProto, ...]:
    """What the pages of passes show as their rewrites, before and after."""
    found = []
    for path in sorted(Path(passes.__file__).parent.glob("*.py")):
        documented = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        section = documented.partition("Rewrite:")[2].partition("Why it is correct:")[0]
        for text in re.findall(r"```\n(.*?)```", section, re.DOTALL):
            if "opset_import" in text:
                headed = text.replace("<opset_import", "<ir_version: 8, opset_import")
                found.append(onnx.parser.parse_model(headed))
    return tuple(found)


def example(s: Scope) -> None:
    """The example on the page of a pass, on inputs of its shapes."""
    model = s.one(*_examples())
    known = {}
    for info in model.graph.input:
        kind = info.type.tensor_type
        shape = [size.dim_value or 2 for size in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        alike = [
            v
            for v in s.values
            if v.shape == tuple(shape)
            and v.kind == Value("", np.empty(shape, dtype)).kind
            and not v.is_constant
        ]
        known[info.name] = s.one(*alike) if alike else s.made(np.asarray(s.some(shape, dtype)))
    for tensor in model.graph.initializer:
        known[tensor.name] = s.constant(numpy_helper.to_array(tensor))
    for node in model.graph.node:
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        operands = [known.get(name) for name in node.input]
        made = s.append(node.op_type, node.domain, operands, len(node.output), attributes)
        known |= dict(zip(node.output, made, strict=True))


def _scalar(s: Scope, x: Value, number: float) -> Value:
    return s.constant(np.array(number, x.dtype) if s.often() else np.array([number], x.dtype))


def gelu(s: Scope) -> None:
    """x·(1 + erf(x/√2))/2."""
    x = s.floats("Erf")
    scaled = (
        s.add("Div", x, _scalar(s, x, 2**0.5))
        if s.often()
        else s.add("Mul", x, _scalar(s, x, 0.5**0.5))
    )
    shifted = s.add("Add", s.add("Erf", scaled), _scalar(s, x, 1))
    if s.often():
        s.add("Mul", s.add("Mul", x, shifted), _scalar(s, x, 0.5))
    else:
        s.add("Mul", s.add("Mul", x, _scalar(s, x, 0.5)), shifted)


def gelu_tanh(s: Scope) -> None:
    """x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))/2."""
    x = s.floats("Tanh")
    cube = s.add("Mul", s.add("Mul", x, x), x)
    inner = s.add("Add", x, s.add("Mul", cube, _scalar(s, x, 0.044715)))
    bent = s.add("Tanh", s.add("Mul", inner, _scalar(s, x, (2 / np.pi) ** 0.5)))
    s.add("Mul", s.add("Mul", x, _scalar(s, x, 0.5)), s.add("Add", bent, _scalar(s, x, 1)))


def hard_swish(s: Scope) -> None:
    """x·clip(x + 3, 0, 6)/6."""
    x = s.floats("Clip")
    limit: Callable[[float], object] = x.dtype.type if s.opset >= 11 else float
    clipped = s.add("Clip", s.add("Add", x, _scalar(s, x, 3)), min=limit(0), max=limit(6))
    if s.often():
        clipped = s.add("Div", clipped, _scalar(s, x, 6))
        s.add("Mul", x, clipped)
    else:
        s.add("Div", s.add("Mul", x, clipped), _scalar(s, x, 6))


def mish(s: Scope) -> None:
    """x·tanh(softplus(x))."""
    x = s.floats("Softplus")
    s.add("Mul", x, s.add("Tanh", s.add("Softplus", x)))


def silu(s: Scope) -> None:
    """x·sigmoid(x)."""
    x = s.floats("Sigmoid")
    s.add("Mul", *s.rng.sample([x, s.add("Sigmoid", x)], 2))


def normalization(s: Scope) -> None:
    """(x - mean)/√(var + ε)·scale + shift, over the last axis."""
    x = s.floats("ReduceMean", 2, 3)
    axes = np.array([-1 if s.opset >= 11 else x.rank - 1], np.int64)
    centred = s.add("Sub", x, s.add("ReduceMean", x, axes=axes))
    square = (
        s.add("Mul", centred, centred) if s.often() else s.add("Pow", centred, _scalar(s, x, 2))
    )
    variance = s.add("Add", s.add("ReduceMean", square, axes=axes), _scalar(s, x, 1e-3))
    y = s.add("Div", centred, s.add("Sqrt", variance))
    if s.often(0.7):
        y = s.add("Mul", y, weight(s, x, x.shape[-1]))
        s.add("Add", y, weight(s, x, x.shape[-1]))


def attention(s: Scope) -> None:
    """softmax(q·kᵀ/√d)·v."""
    x = s.floats("MatMul", 3)
    q, k, v = (s.add("MatMul", x, weight(s, x, x.shape[-1], 2)) for _ in range(3))
    scores = s.add("MatMul", q, s.add("Transpose", k, perm=[0, 2, 1]))
    scores = s.add("Div", scores, _scalar(s, x, 2**0.5))
    s.add("MatMul", s.add("Softmax", scores, axis=-1 if s.opset >= 11 else 2), v)


def attention_of_heads(s: Scope) -> None:
    """Two heads, on an axis of their own or folded into the batch; the scores may be capped."""
    x = s.floats("MatMul", 3)
    if 0 in x.shape:
        raise Unfit
    n, length, _ = x.shape
    is_folded, is_capped = s.often(), s.often()
    turned = [0, 2, 1] if is_folded else [0, 1, 3, 2]
    parts = []
    for _ in range(2):
        part = s.add("MatMul", x, weight(s, x, x.shape[-1], 4))
        part = s.add("Reshape", part, shape=np.array([n, length, 2, 2], np.int64))
        part = s.add("Transpose", part, perm=[0, 2, 1, 3])
        if is_folded:
            part = s.add("Reshape", part, shape=np.array([s.one(-1, 2 * n), length, 2], np.int64))
        parts.append(part)
    q, k = parts
    scores = s.add("MatMul", q, s.add("Transpose", k, perm=turned))
    if is_capped:
        scores = s.add("Tanh", s.add("Div", scores, _scalar(s, x, 3.0)))
        scores = s.add("Mul", scores, _scalar(s, x, 3.0))
    weights = s.add("Softmax", scores, axis=-1 if s.opset >= 11 else len(turned) - 1)
    y = s.add("MatMul", weights, k)
    if is_folded:
        y = s.add("Reshape", y, shape=np.array([n, 2, length, 2], np.int64))
    y = s.add("Transpose", y, perm=[0, 2, 1, 3])
    s.add("Reshape", y, shape=np.array([n, length, 4], np.int64))


def shuffle(s: Scope) -> None:
    """Channels of two groups in turn."""
    x = s.take("Reshape", 0, lambda v: v.rank == 4 and v.shape[1] % 2 == 0 and 0 not in v.shape)
    n, c, h, w = x.shape
    apart = s.add("Reshape", x, shape=np.array([n, 2, c // 2, h, w], np.int64))
    moved = s.add("Transpose", apart, perm=[0, 2, 1, 3, 4])
    s.add("Reshape", moved, shape=np.array([s.one(n, -1), c, h, w], np.int64))


def repeat(s: Scope) -> None:
    """A node once more: a common subexpression."""
    known = {value.name: value for value in s.visible()}
    nodes = [n for n in s.nodes if n.op_type != "Constant" and set(n.input) <= {*known, ""}]
    if not nodes:
        raise Unfit
    node = s.one(*nodes)
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if [] in attributes.values():
        raise Unfit  # nothing says of what type the list is
    operands = [known.get(name) for name in node.input]
    s.append(node.op_type, node.domain, operands, len(node.output), attributes)


def unused(s: Scope) -> None:
    """A weight that nothing reads."""
    s.constant(s.some((3, 3)))


PATTERNS: Final = (
    *[chain] * 16, *[example] * 8, *[repeat] * 2, gelu, gelu_tanh, hard_swish, mish, silu,
    normalization, attention, attention_of_heads, shuffle, unused,
)  # fmt: skip

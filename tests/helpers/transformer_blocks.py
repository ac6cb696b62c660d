"""What transformers are made of, in the spellings of exporters, with random neighbours."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from math import pi, sqrt
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

WIDTH: Final = 8


class Block:
    """A graph written node after node; numbers and arrays among the inputs become constants."""

    def __init__(self, opset: int, seed: int = 0) -> None:
        self.opset = opset
        self.rng = random.Random(seed)
        self._arrays = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def add(self, op: str, *inputs: str | float | np.ndarray, **attrs: object) -> str:
        """The output of a new node."""
        names = [item if isinstance(item, str) else self._constant(item) for item in inputs]
        return self._append(op, names, attrs)

    def either(self, op: str, a: str, b: str | float | np.ndarray) -> str:
        """A commutative operator, with its inputs in either order."""
        return self.add(op, *self.rng.sample([a, b], 2))

    def mean(self, x: str) -> str:
        """ReduceMean over the last axis."""
        if self.opset < 18:
            return self.add("ReduceMean", x, axes=[-1], keepdims=1)
        return self.add("ReduceMean", x, np.array([-1], np.int64), keepdims=1)

    def weight(self, *shape: int) -> np.ndarray:
        """Random float32 values, not near zero on average."""
        return self._arrays.normal(0.5, 0.5, shape).astype(np.float32)

    def dense(self, x: str, ins: int = WIDTH, outs: int = WIDTH) -> str:
        """A product with a weight."""
        return self.add("MatMul", x, self.weight(ins, outs))

    def model(self, y: str) -> onnx.ModelProto:
        """The model of `x`, (batch, length, WIDTH), that returns `y`."""
        shape = ["batch", "length", WIDTH]
        graph = helper.make_graph(
            [*self._nodes, helper.make_node("Identity", [y], ["y"])],
            "block",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            self._constants,
        )
        imports = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        return onnx.shape_inference.infer_shapes(model)

    def _constant(self, value: float | np.ndarray) -> str:
        array = value if isinstance(value, np.ndarray) else np.array(value, np.float32)
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def _append(self, op: str, inputs: Sequence[str], attrs: dict[str, object]) -> str:
        name = f"{op}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], name, **attrs))
        return name


Part = Callable[[Block, str], str]


# ------------------------------------------------------------------------------ activations


def _gate(b: Block, x: str, factor: str) -> str:
    """x·factor/2 in one of three orders."""
    order = b.rng.randrange(3)
    if order == 0:
        return b.either("Mul", b.either("Mul", x, factor), 0.5)
    if order == 1:
        return b.either("Mul", b.either("Mul", x, 0.5), factor)
    return b.either("Mul", x, b.either("Mul", factor, 0.5))


def gelu(b: Block, x: str) -> str:
    """x·(1 + erf(x/√2))/2."""
    divides = b.rng.random() < 0.5
    inner = b.add("Div", x, sqrt(2)) if divides else b.either("Mul", x, sqrt(0.5))
    return _gate(b, x, b.either("Add", b.add("Erf", inner), 1.0))


def gelu_by_tanh(b: Block, x: str) -> str:
    """x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))/2, the cube by Pow or by Mul."""
    by_power = b.rng.random() < 0.5
    cube = b.add("Pow", x, 3.0) if by_power else b.either("Mul", b.add("Mul", x, x), x)
    inner = b.either("Mul", b.either("Add", x, b.either("Mul", cube, 0.044715)), sqrt(2 / pi))
    return _gate(b, x, b.either("Add", b.add("Tanh", inner), 1.0))


def gelu_by_factored_tanh(b: Block, x: str) -> str:
    """x·(1 + tanh(√(2/π)·x·(1 + 0.044715·x²)))/2."""
    square = b.either("Mul", b.add("Mul", x, x), 0.044715)
    inner = b.either("Mul", b.either("Mul", x, sqrt(2 / pi)), b.either("Add", square, 1.0))
    return _gate(b, x, b.either("Add", b.add("Tanh", inner), 1.0))


def quick_gelu(b: Block, x: str) -> str:
    """x·σ(1.702·x)."""
    return b.either("Mul", x, b.add("Sigmoid", b.either("Mul", x, 1.702)))


def silu(b: Block, x: str) -> str:
    """x·σ(x)."""
    return b.either("Mul", x, b.add("Sigmoid", x))


# ------------------------------------------------------------------------------ normalizations


def _square(b: Block, x: str) -> str:
    return b.add("Mul", x, x) if b.rng.random() < 0.5 else b.add("Pow", x, 2.0)


def layer_norm(b: Block, x: str) -> str:
    """(x - mean)/√(var + ε)·γ + β."""
    centred = b.add("Sub", x, b.mean(x))
    spread = b.add("Sqrt", b.either("Add", b.mean(_square(b, centred)), 1e-5))
    scaled = b.either("Mul", b.add("Div", centred, spread), b.weight(WIDTH))
    return b.either("Add", scaled, b.weight(WIDTH))


def layer_norm_by_gain(b: Block, x: str) -> str:
    """x·g + (β - mean·g) with g = γ/√(var + ε), as TensorFlow has it."""
    mean = b.mean(x)
    difference = b.add("Sub", x, mean)
    variance = b.mean(b.add("Mul", difference, difference))
    inverse = b.add("Reciprocal", b.add("Sqrt", b.either("Add", variance, 1e-3)))
    gain = b.either("Mul", inverse, b.weight(WIDTH))
    offset = b.add("Sub", b.weight(WIDTH), b.either("Mul", mean, gain))
    return b.either("Add", b.either("Mul", x, gain), offset)


def rms_norm(b: Block, x: str) -> str:
    """x/√(mean(x²) + ε)·γ, by Div or by a reciprocal."""
    spread = b.add("Sqrt", b.either("Add", b.mean(_square(b, x)), 1e-6))
    way = b.rng.randrange(3)
    if way == 0:
        scaled = b.add("Div", x, spread)
    else:
        inverse = b.add("Div", 1.0, spread) if way == 1 else b.add("Reciprocal", spread)
        scaled = b.either("Mul", x, inverse)
    return b.either("Mul", scaled, b.weight(WIDTH))


def mixed_norm(b: Block, x: str, *, is_centred: bool) -> str:
    """A normalization of float16 values in float32, scaled in float16 again."""
    half = b.add("Cast", x, to=onnx.TensorProto.FLOAT16)
    wide = b.add("Cast", b.add("Mul", half, half), to=onnx.TensorProto.FLOAT)
    if is_centred:
        wide = b.add("Sub", wide, b.mean(wide))
    spread = b.add("Sqrt", b.add("Add", b.mean(b.add("Pow", wide, 2.0)), 1e-3))
    half = b.add("Cast", b.add("Div", wide, spread), to=onnx.TensorProto.FLOAT16)
    half = b.add("Mul", half, b.weight(WIDTH).astype(np.float16))
    if is_centred:
        half = b.add("Add", half, b.weight(WIDTH).astype(np.float16))
    half = b.add("MatMul", half, b.weight(WIDTH, WIDTH).astype(np.float16))
    return b.add("Cast", half, to=onnx.TensorProto.FLOAT)


# ------------------------------------------------------------------------------ neighbours


def product(b: Block, x: str) -> str:
    """A MatMul."""
    return b.dense(x)


def biased_product(b: Block, x: str) -> str:
    """A MatMul and the Add of its bias."""
    return b.either("Add", b.dense(x), b.weight(WIDTH))


def scale(b: Block, x: str) -> str:
    """A factor for all elements."""
    return b.either("Mul", x, 0.25)


def channel_scale(b: Block, x: str) -> str:
    """A factor for each channel."""
    return b.either("Mul", x, b.weight(WIDTH))


def shift(b: Block, x: str) -> str:
    """An addend for each channel."""
    return b.either("Add", x, b.weight(WIDTH))


def residual(b: Block, x: str) -> str:
    """The sum of a tensor and a product of it."""
    return b.either("Add", b.dense(x), x)


def gated(b: Block, x: str) -> str:
    """A product times another one, as in SwiGLU."""
    return b.either("Mul", x, b.dense(x))


def turned(b: Block, x: str) -> str:
    """A Relu between a Transpose and its inverse."""
    relu = b.add("Relu", b.add("Transpose", x, perm=[0, 2, 1]))
    return b.add("Transpose", relu, perm=[0, 2, 1])


def scores(b: Block, x: str) -> str:
    """Attention with one head: softmax(x·xᵀ/√n)·x, scaled behind the product or on both sides."""
    transposed = b.add("Transpose", x, perm=[0, 2, 1])
    way = b.rng.randrange(3)
    if way == 0:
        found = b.add("Div", b.add("MatMul", x, transposed), sqrt(WIDTH))
    elif way == 1:
        found = b.either("Mul", b.add("MatMul", x, transposed), WIDTH**-0.5)
    else:
        sides = [b.either("Mul", side, WIDTH**-0.25) for side in (x, transposed)]
        found = b.add("MatMul", *sides)
    return b.add("MatMul", b.add("Softmax", found, axis=-1), x)


SPELLED: Final[dict[Part, str]] = {
    gelu: "Gelu",
    gelu_by_tanh: "Gelu",
    gelu_by_factored_tanh: "Gelu",
    quick_gelu: "QuickGelu",
    silu: "QuickGelu",
    layer_norm: "LayerNormalization",
    layer_norm_by_gain: "LayerNormalization",
    rms_norm: "RMSNormalization",
}
"""What each part spells."""
NEIGHBOURS: Final = (
    product,
    biased_product,
    scale,
    channel_scale,
    shift,
    residual,
    gated,
    turned,
    scores,
)


def composed(opset: int, seed: int) -> onnx.ModelProto:
    """Three spelled operators, each with a neighbour before and behind it."""
    b = Block(opset, seed)
    x = "x"
    for _ in range(3):
        x = b.rng.choice(NEIGHBOURS)(b, x)
        x = b.rng.choice(list(SPELLED))(b, x)
    return b.model(b.rng.choice(NEIGHBOURS)(b, x))

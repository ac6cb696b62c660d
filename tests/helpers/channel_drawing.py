"""Hypothesis strategies for nets whose channels are followed: random graphs of maps (N, C, H, W).

Each step takes maps that exist and appends the nodes of one building block whose output it knows.
Layers read the last maps, so that what is drawn has channels to lose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

_BATCH = 2
_MAX_CHANNELS = 24


@dataclass(frozen=True)
class Map:
    """A tensor (2, channels, size, size)."""

    name: str
    channels: int
    size: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (_BATCH, self.channels, self.size, self.size)


@dataclass
class Net:
    """A net on its way: the maps so far, and the source of choices."""

    draw: st.DrawFn
    rng: np.random.Generator
    maps: list[Map] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def choose(self, *items: Any) -> Any:
        return self.draw(st.sampled_from(items))

    def pick(self, accepts: Callable[[Map], bool] = lambda _: True) -> Map | None:
        """One of the maps, later ones likelier."""
        fitting = [value for value in self.maps if accepts(value)]
        if not fitting:
            return None
        return fitting[-1 - min(self.draw(st.integers(0, 3)), len(fitting) - 1)]

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def ints(self, *items: int) -> str:
        return self.constant(np.array(items, np.int64))

    def weight(self, *shape: int, fan_in: int = 1) -> str:
        """Random weights, sometimes those of the same shape that were drawn before."""
        for name, known in self.constants.items():
            if known.shape == shape and known.dtype == np.float32 and self.choose(True, False):
                return name
        values = self.rng.standard_normal(shape) / np.sqrt(fan_in)
        return self.constant(values.astype(np.float32))

    def node(self, op: str, inputs: list[str], outputs: int = 1, **attrs: Any) -> list[str]:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attrs))
        return names

    def one(self, op: str, *inputs: str, **attrs: Any) -> str:
        return self.node(op, list(inputs), **attrs)[0]

    def found(self, name: str, channels: int, size: int) -> None:
        self.maps.append(Map(name, channels, size))


def conv(d: Net, x: Map) -> None:
    groups = d.choose(*(g for g in (1, 1, 1, 2, 3, 4) if x.channels % g == 0))
    width = groups * d.choose(2, 3, 4) if groups > 1 else d.choose(4, 6, 8)
    kernel = d.choose(1, 3)
    fan_in = x.channels // groups * kernel**2
    inputs = [x.name, d.weight(width, x.channels // groups, kernel, kernel, fan_in=fan_in)]
    if d.choose(True, False):
        inputs.append(d.weight(width))
    d.found(d.node("Conv", inputs, group=groups, pads=[kernel // 2] * 4)[0], width, x.size)


def conv_transpose(d: Net, x: Map) -> None:
    groups = d.choose(*(g for g in (1, 2) if x.channels % g == 0))
    rows = d.choose(2, 3)
    weight = d.weight(x.channels, rows, 1, 1, fan_in=x.channels // groups)
    d.found(d.one("ConvTranspose", x.name, weight, group=groups), groups * rows, x.size)


def depthwise(d: Net, x: Map) -> None:
    times = d.choose(1, 1, 2) if x.channels <= _MAX_CHANNELS // 2 else 1
    width = times * x.channels
    weight = d.weight(width, 1, 3, 3, fan_in=9)
    name = d.one("Conv", x.name, weight, d.weight(width), group=x.channels, pads=[1] * 4)
    d.found(name, width, x.size)


def unary(d: Net, x: Map) -> None:
    d.found(d.one(d.choose("Relu", "Sigmoid", "Tanh", "Abs"), x.name), x.channels, x.size)


def normalization(d: Net, x: Map) -> None:
    op = d.choose("BatchNormalization", "InstanceNormalization")
    inputs = [x.name, d.weight(x.channels), d.weight(x.channels)]
    if op == "BatchNormalization":
        inputs.append(d.weight(x.channels))
        inputs.append(d.constant(np.full(x.channels, 0.5, np.float32)))
    d.found(d.node(op, inputs)[0], x.channels, x.size)


def group_normalization(d: Net, x: Map) -> None:
    groups = 2 if x.channels % 2 == 0 else 1
    apart = d.one("Reshape", x.name, d.ints(0, groups, -1))
    ones = d.constant(np.ones(groups, np.float32))
    done = d.one("InstanceNormalization", apart, ones, d.weight(groups))
    back = d.one("Reshape", done, d.ints(*x.shape))
    d.found(d.one("Mul", back, d.weight(x.channels, 1, 1)), x.channels, x.size)


def constant_operand(d: Net, x: Map) -> None:
    shape = d.choose((x.channels, 1, 1), (1, x.channels, x.size, x.size), (x.size, x.size), ())
    op = d.choose("Add", "Mul", "PRelu", "Max")
    d.found(d.one(op, x.name, d.weight(*shape)), x.channels, x.size)


def meet(d: Net, x: Map) -> None:
    other = d.pick(lambda v: v.channels == x.channels and v.size == x.size)
    if other is not None:
        d.found(d.one(d.choose("Add", "Mul", "Min"), x.name, other.name), x.channels, x.size)


def gate(d: Net, x: Map) -> None:
    pooled = d.one("GlobalAveragePool", x.name)
    if d.choose(True, False):
        weight = d.weight(x.channels, x.channels, 1, 1, fan_in=x.channels)
        scale = d.one("Sigmoid", d.one("Conv", pooled, weight))
    else:
        flat = d.one("Reshape", pooled, d.ints(_BATCH, x.channels))
        made = d.one("Gemm", flat, d.weight(x.channels, x.channels, fan_in=x.channels))
        scale = d.one("Reshape", d.one("Sigmoid", made), d.ints(0, x.channels, 1, 1))
    d.found(d.one("Mul", x.name, scale), x.channels, x.size)


def concat(d: Net, x: Map) -> None:
    other = d.pick(lambda v: v.size == x.size and v.channels + x.channels <= _MAX_CHANNELS)
    if other is not None:
        width = x.channels + other.channels
        d.found(d.one("Concat", x.name, other.name, axis=1), width, x.size)


def split(d: Net, x: Map) -> None:
    if x.channels < 4:
        return
    first = d.draw(st.integers(1, x.channels - 1))
    sizes = d.ints(first, x.channels - first)
    a, b = d.node("Split", [x.name, sizes], outputs=2, axis=1)
    d.found(a, first, x.size)
    d.found(b, x.channels - first, x.size)


def take(d: Net, x: Map) -> None:
    start = d.draw(st.integers(0, x.channels - 1))
    step = d.choose(1, 1, 2, -1)
    end = -x.channels - 1 if step < 0 else x.channels
    taken = len(range(x.channels)[start : None if step < 0 else end : step])
    inputs = [x.name, d.ints(start), d.ints(end), d.ints(1), d.ints(step)]
    d.found(d.node("Slice", inputs)[0], taken, x.size)


def gather(d: Net, x: Map) -> None:
    indices = d.draw(st.lists(st.integers(-x.channels, x.channels - 1), min_size=1, max_size=8))
    d.found(d.one("Gather", x.name, d.ints(*indices), axis=1), len(indices), x.size)


def pad(d: Net, x: Map) -> None:
    before, after = d.choose((1, 0), (0, 2))
    pads = d.ints(0, before, 0, 0, 0, after, 0, 0)
    d.found(d.one("Pad", x.name, pads), x.channels + before + after, x.size)


def shuffle(d: Net, x: Map) -> None:
    groups = d.choose(*(g for g in (2, 3, 4, 1) if x.channels % g == 0))
    apart = d.ints(0, groups, x.channels // groups, x.size, x.size)
    moved = d.one("Transpose", d.one("Reshape", x.name, apart), perm=[0, 2, 1, 3, 4])
    d.found(d.one("Reshape", moved, d.ints(*x.shape)), x.channels, x.size)


def blocks(d: Net, x: Map) -> None:
    if x.channels % 4 == 0 and x.size <= 4:
        mode = d.choose("DCR", "CRD")
        name = d.one("DepthToSpace", x.name, blocksize=2, mode=mode)
        d.found(name, x.channels // 4, 2 * x.size)
    elif x.size % 2 == 0 and x.channels <= 4:
        d.found(d.one("SpaceToDepth", x.name, blocksize=2), 4 * x.channels, x.size // 2)


def pool(d: Net, x: Map) -> None:
    kernel = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    d.found(d.one(d.choose("MaxPool", "AveragePool"), x.name, **kernel), x.channels, x.size)


def resize(d: Net, x: Map) -> None:
    if x.size <= 2:
        sizes = d.ints(_BATCH, x.channels, 2 * x.size, 2 * x.size)
        d.found(d.one("Resize", x.name, "", "", sizes, mode="nearest"), x.channels, 2 * x.size)


def channels_last(d: Net, x: Map) -> None:
    width = d.choose(4, 6)
    last = d.one("Transpose", x.name, perm=[0, 2, 3, 1])
    made = d.one("MatMul", last, d.weight(x.channels, width, fan_in=x.channels))
    biased = d.one("Add", made, d.weight(width))
    d.found(d.one("Transpose", biased, perm=[0, 3, 1, 2]), width, x.size)


def attention(d: Net, x: Map) -> None:
    heads, width, out = 2, d.choose(2, 3), d.choose(4, 6)
    tokens = x.size**2
    rows = d.one("Transpose", d.one("Reshape", x.name, d.ints(0, 0, -1)), perm=[0, 2, 1])
    apart = d.ints(0, tokens, heads, width)
    parts = []
    for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        made = d.one("MatMul", rows, d.weight(x.channels, heads * width, fan_in=x.channels))
        parts.append(d.one("Transpose", d.one("Reshape", made, apart), perm=perm))
    mixed = d.one("Softmax", d.one("MatMul", parts[0], parts[1]), axis=-1)
    back = d.one("Transpose", d.one("MatMul", mixed, parts[2]), perm=[0, 2, 1, 3])
    whole = d.one("Reshape", back, d.ints(0, 0, heads * width))
    made = d.one("MatMul", whole, d.weight(heads * width, out, fan_in=heads * width))
    square = d.ints(_BATCH, out, x.size, x.size)
    d.found(d.one("Reshape", d.one("Transpose", made, perm=[0, 2, 1]), square), out, x.size)


def single_head(d: Net, x: Map) -> None:
    """Positions attend to positions."""
    width = d.choose(4, 5)
    flat = d.one("Reshape", x.name, d.ints(0, 0, -1))  # (N, C, H·W)
    query = d.one("MatMul", d.weight(width, x.channels, fan_in=x.channels), flat)
    key = d.one("MatMul", d.weight(width, x.channels, fan_in=x.channels), flat)
    near = d.one("MatMul", d.one("Transpose", query, perm=[0, 2, 1]), key)
    mixed = d.one("MatMul", flat, d.one("Softmax", near, axis=1))
    d.found(d.one("Reshape", mixed, d.ints(*x.shape)), x.channels, x.size)


def softmax(d: Net, x: Map) -> None:
    d.found(d.one("Softmax", x.name, axis=d.choose(1, 2, 3, 3)), x.channels, x.size)


def reduce(d: Net, x: Map) -> None:
    """A mean over space that is stretched again, or one over channels that scales."""
    if d.choose(True, True, False):
        pooled = d.one("ReduceMean", x.name, axes=[2, 3])
        sizes = d.choose(d.ints(*x.shape), d.ints(1, 1, x.size, x.size))
        d.found(d.one("Expand", pooled, sizes), x.channels, x.size)
    else:
        d.found(d.one("Mul", x.name, d.one("ReduceMax", x.name, axes=[1])), x.channels, x.size)


def tile(d: Net, x: Map) -> None:
    if x.channels <= _MAX_CHANNELS // 2:
        d.found(d.one("Tile", x.name, d.ints(1, 2, 1, 1)), 2 * x.channels, x.size)


LAYERS = (conv, conv, conv, conv_transpose, channels_last, attention, single_head)
OTHERS = (
    depthwise,
    unary,
    normalization,
    group_normalization,
    constant_operand,
    meet,
    meet,
    gate,
    concat,
    concat,
    split,
    take,
    gather,
    pad,
    shuffle,
    blocks,
    pool,
    resize,
    softmax,
    reduce,
    tile,
)


@st.composite
def channel_nets(draw: st.DrawFn, steps: int = 8) -> onnx.ModelProto:
    """A net with some layers, of which the last maps are read by layers that make the outputs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    d = Net(draw, rng, [Map("x", 3, 4)])
    conv(d, d.maps[0])
    for _ in range(draw(st.integers(1, steps))):
        block = d.choose(*(LAYERS if d.choose(True, False, False) else OTHERS))
        x = d.pick(lambda v: v.name != "x")
        assert x is not None
        block(d, x)
    outputs = [_head(d, value) for value in d.maps[-2:]]
    graph = helper.make_graph(
        d.nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, d.maps[0].shape)],
        [helper.make_tensor_value_info(v.name, onnx.TensorProto.FLOAT, v.shape) for v in outputs],
        [numpy_helper.from_array(array, name) for name, array in d.constants.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model, full_check=True)
    return model


def _head(d: Net, x: Map) -> Map:
    if d.choose(True, True, True, False) or x.name == "x":
        weight = d.weight(5, x.channels, 1, 1, fan_in=x.channels)
        return Map(d.one("Conv", x.name, weight), 5, x.size)
    return Map(d.one("Identity", x.name), x.channels, x.size)

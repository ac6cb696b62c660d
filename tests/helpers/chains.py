"""Hypothesis strategy for chains of operators that move data, with a branch now and then."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxslim.pipeline.passes import Pass
from onnxslim.records import Fidelity
from support import apply, random_feeds, run

SYMBOL = 6  # the size of the first axis, whether it is declared or named `N`


class Chain:
    """A model on its way: the last tensor, its shape and type, and what was used on the way."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.opset: int = draw(st.sampled_from((11, 13, 17, 18)))
        tail = draw(st.lists(st.sampled_from((1, 2, 3, 4)), min_size=1, max_size=3))
        self.shape: list[int] = [SYMBOL, *tail]
        self.dtype = np.dtype(np.float32)
        self.last = "x"
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.outputs: dict[str, tuple[np.dtype, int]] = {}  # name -> type, rank

    def add(self, op: str, *operands: np.ndarray, outputs: int = 1, **attrs: object) -> list[str]:
        """Append a node that reads the last tensor."""
        names = [f"t{len(self.nodes)}_{index}" for index in range(outputs)]
        inputs = [self.last, *(self.constant(operand) for operand in operands)]
        self.nodes.append(helper.make_node(op, inputs, names, **attrs))
        self.last = names[0]
        return names

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def ints(self, *values: int) -> np.ndarray:
        return np.array(values, np.int64)

    def axis(self) -> int:
        return self.draw(st.integers(0, len(self.shape) - 1))

    def axes_form(self, op: str, axes: list[int], since: int) -> None:
        """A node whose axes are an attribute before opset `since`."""
        if self.opset < since:
            self.add(op, axes=axes)
        else:
            self.add(op, self.ints(*axes))


def reshape(chain: Chain) -> None:
    """Split one axis or merge two, with 0 and -1 where they fit."""
    shape = list(chain.shape)
    if len(shape) > 1 and chain.draw(st.booleans()):
        axis = chain.draw(st.integers(0, len(shape) - 2))
        shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
    elif len(shape) < 5:
        axis = chain.axis()
        factor = chain.draw(
            st.sampled_from([f for f in (1, 2, 3, shape[axis]) if shape[axis] % f == 0])
        )
        shape[axis : axis + 1] = [factor, shape[axis] // factor]
    target = list(shape)
    for axis in range(min(len(shape), len(chain.shape))):
        if shape[axis] == chain.shape[axis] and chain.draw(st.booleans()):
            target[axis] = 0
    if chain.draw(st.booleans()):
        target[chain.draw(st.integers(0, len(shape) - 1))] = -1
    chain.add("Reshape", chain.ints(*target))
    chain.shape = shape


def flatten(chain: Chain) -> None:
    axis = chain.draw(st.integers(0, len(chain.shape)))
    chain.add("Flatten", axis=axis)
    chain.shape = [int(np.prod(chain.shape[:axis])), int(np.prod(chain.shape[axis:]))]


def squeeze(chain: Chain) -> None:
    ones = [axis for axis, size in enumerate(chain.shape) if size == 1]
    if ones and len(chain.shape) > 1:
        axis = chain.draw(st.sampled_from(ones))
        chain.axes_form("Squeeze", [axis], 13)
        del chain.shape[axis]


def unsqueeze(chain: Chain) -> None:
    if len(chain.shape) < 5:
        axis = chain.draw(st.integers(0, len(chain.shape)))
        chain.axes_form("Unsqueeze", [axis], 13)
        chain.shape.insert(axis, 1)


def transpose(chain: Chain) -> None:
    perm = chain.draw(st.permutations(range(len(chain.shape))))
    chain.add("Transpose", perm=list(perm))
    chain.shape = [chain.shape[axis] for axis in perm]


def elementwise(chain: Chain) -> None:
    if chain.dtype.kind != "f" or chain.draw(st.booleans()):
        chain.add("Abs")
        return
    dims = [size if chain.draw(st.booleans()) else 1 for size in chain.shape]
    dims = dims[chain.draw(st.integers(0, len(dims))) :]
    array = np.arange(1, np.prod(dims, dtype=int) + 1, dtype=chain.dtype).reshape(dims)
    chain.add(chain.draw(st.sampled_from(("Add", "Mul"))), array)


def cut(chain: Chain) -> None:
    """A Slice, with steps and bounds from both ends."""
    axis = chain.axis()
    size = chain.shape[axis]
    start = chain.draw(st.integers(-size, size - 1))
    end = chain.draw(st.one_of(st.integers(-size, size), st.just(2**31 - 1)))
    step = chain.draw(st.sampled_from((1, 1, 2, -1)))
    picked = range(size)[slice(start, end, step)]
    if len(picked):
        operands = (chain.ints(b) for b in (start, end, axis, step))
        chain.add("Slice", *operands)
        chain.shape[axis] = len(picked)


def split(chain: Chain) -> None:
    """Take the last tensor apart by Slices or a Split, and put (some of) it together again."""
    axis = chain.axis()
    size = chain.shape[axis]
    if size < 2:
        return
    whole, middle = chain.last, chain.draw(st.integers(1, size - 1))
    bounds = ((0, middle), (middle, chain.draw(st.sampled_from((size, size - 1, 2**31 - 1)))))
    parts, lengths = [], []
    for start, end in bounds:
        chain.last = whole
        parts += chain.add("Slice", chain.ints(start), chain.ints(end), chain.ints(axis))
        lengths.append(len(range(size)[start:end]))
    if lengths[1] and chain.draw(st.booleans()):
        chain.nodes.append(helper.make_node("Concat", parts, [f"{parts[1]}_all"], axis=axis))
        chain.last = f"{parts[1]}_all"
        chain.shape[axis] = sum(lengths)
    else:
        chain.outputs[parts[0]] = (chain.dtype, len(chain.shape))
        chain.last = parts[1] if lengths[1] else parts[0]
        chain.shape[axis] = lengths[1] or lengths[0]


def join(chain: Chain) -> None:
    """A Concat with a constant and itself."""
    axis = chain.axis()
    if np.prod(chain.shape) * 3 > 5000:
        return
    constant = chain.constant(np.ones(chain.shape, chain.dtype))
    inputs = [chain.last, constant, chain.last, constant][: chain.draw(st.integers(2, 4))]
    name = f"t{len(chain.nodes)}_joined"
    chain.nodes.append(helper.make_node("Concat", inputs, [name], axis=axis - len(chain.shape)))
    chain.last = name
    chain.shape[axis] *= len(inputs)


def cast(chain: Chain) -> None:
    to = chain.draw(st.sampled_from(("float32", "float64", "int32", "int64", "uint8", "int8")))
    chain.add("Cast", to=helper.np_dtype_to_tensor_dtype(np.dtype(to)))
    chain.dtype = np.dtype(to)


def pick(chain: Chain) -> None:
    """A Slice of one element, then Squeeze."""
    if len(chain.shape) < 2:
        return
    axis = chain.axis()
    start = chain.draw(st.integers(-chain.shape[axis], chain.shape[axis] - 1))
    end = start + 1 if start != -1 else 2**31 - 1
    chain.add("Slice", chain.ints(start), chain.ints(end), chain.ints(axis))
    chain.axes_form("Squeeze", [axis], 13)
    del chain.shape[axis]


def reduce(chain: Chain) -> None:
    if len(chain.shape) < 2 or chain.dtype != np.float32:
        return
    axes = sorted(chain.draw(st.sets(st.integers(0, len(chain.shape) - 1), min_size=1, max_size=2)))
    keep = chain.draw(st.integers(0, 1))
    if len(axes) == len(chain.shape) and not keep:
        return
    op = chain.draw(st.sampled_from(("ReduceMax", "ReduceMean", "ReduceSum")))
    since = 13 if op == "ReduceSum" else 18
    if chain.opset < since:
        chain.add(op, axes=axes, keepdims=keep)
    else:
        chain.add(op, chain.ints(*axes), keepdims=keep)
    kept = [1 if axis in axes else size for axis, size in enumerate(chain.shape)]
    chain.shape = kept if keep else [s for axis, s in enumerate(chain.shape) if axis not in axes]


def fork(chain: Chain) -> None:
    """Make the value in the middle an output too."""
    if chain.nodes:
        chain.outputs[chain.last] = (chain.dtype, len(chain.shape))


@st.composite
def chains(draw: st.DrawFn, steps: tuple[Callable[[Chain], None], ...]) -> onnx.ModelProto:
    """A model of one input `x` and 2 to 7 of `steps` in a row."""
    chain = Chain(draw)
    shape = list(chain.shape)
    for step in draw(st.lists(st.sampled_from(steps), min_size=2, max_size=7)):
        step(chain)
    chain.add("Identity")
    named: list[int | str] = ["N", *shape[1:]] if draw(st.booleans()) else list(shape)
    fork(chain)
    chain.outputs.pop("x", None)
    graph = helper.make_graph(
        chain.nodes,
        "chain",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, named)],
        [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(dtype),
                [f"{name}_{axis}" for axis in range(ndim)],
            )
            for name, (dtype, ndim) in chain.outputs.items()
        ],
        chain.constants,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", chain.opset)], ir_version=8
    )


def check(rewrite: Pass, source: onnx.ModelProto) -> None:
    """`rewrite` keeps every output of `source`, and a second run finds nothing to do."""
    result, done = apply(rewrite, source)
    onnx.checker.check_model(result, full_check=True)
    assert len(result.graph.node) <= len(source.graph.node)
    feeds = random_feeds(source, symbol=SYMBOL)
    exact = rewrite.fidelity is Fidelity.EXACT or done.fidelity is Fidelity.EXACT
    for expected, found in zip(run(source, feeds), run(result, feeds), strict=True):
        assert found.dtype == expected.dtype
        if exact:
            np.testing.assert_array_equal(found, expected)
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not apply(rewrite, result)[1].changed

"""Graphs of many nodes, of the kinds in which time may grow faster than the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_UNARY: Final = ("Relu", "Sigmoid", "Neg", "Abs", "Tanh")
Parts = tuple[list[onnx.NodeProto], dict[str, np.ndarray], list[str]]


def _chain(count: int) -> Parts:
    names = ["x", *(f"t{i}" for i in range(count - 1)), "y"]
    nodes = [helper.make_node(_UNARY[i % 5], [names[i]], [names[i + 1]]) for i in range(count)]
    return nodes, {}, ["y"]


def _fan(count: int) -> Parts:
    names = [f"t{i}" for i in range(count - 1)]
    nodes = [helper.make_node("Mul", ["x", f"c{name}"], [name]) for name in names]
    constants = {f"c{name}": np.float32([i + 0.5]) for i, name in enumerate(names)}
    return [*nodes, helper.make_node("Sum", names, ["y"])], constants, ["y"]


def _constants(count: int) -> Parts:
    nodes, last = [], "x"
    for i in range(count // 2):
        value = numpy_helper.from_array(np.float32([1 + i / count, 0.1, 0.2, 0.3]))
        nodes.append(helper.make_node("Constant", [], [f"c{i}"], value=value))
        nodes.append(helper.make_node(("Mul", "Add")[i % 2], [last, f"c{i}"], [f"t{i}"]))
        last = f"t{i}"
    return nodes, {}, [last]


def _outputs(count: int) -> Parts:
    nodes = [helper.make_node(_UNARY[i % 5], ["x"], [f"y{i}"]) for i in range(count)]
    return nodes, {}, [f"y{i}" for i in range(count)]


def _shapes(count: int) -> Parts:
    nodes, last = [], "x"
    for i in range(count // 8):
        nodes += [
            helper.make_node("Shape", [last], [f"s{i}"]),
            helper.make_node("Gather", [f"s{i}", "zero"], [f"g{i}"]),
            helper.make_node("Mul", [f"g{i}", "two"], [f"m{i}"]),
            helper.make_node("Concat", [f"m{i}", "two"], [f"k{i}"], axis=0),
            helper.make_node("Reshape", [last, f"k{i}"], [f"r{i}"]),
            helper.make_node("Relu", [f"r{i}"], [f"q{i}"]),
            helper.make_node("Concat", [f"g{i}", "rest"], [f"z{i}"], axis=0),
            helper.make_node("Reshape", [f"q{i}", f"z{i}"], [f"w{i}"]),
        ]
        last = f"w{i}"
    numbers = {"zero": np.int64([0]), "two": np.int64([2]), "rest": np.int64([-1])}
    return nodes, numbers, [last]


LARGE_GRAPHS: Final[dict[str, Callable[[int], Parts]]] = {
    "in a chain": _chain,
    "in a wide fan": _fan,
    "with many constants": _constants,
    "with many outputs": _outputs,
    "of shape arithmetic": _shapes,
}


def large_graph(kind: str, count: int) -> onnx.ModelProto:
    """A model of about `count` nodes."""
    nodes, constants, outputs = LARGE_GRAPHS[kind](count)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)

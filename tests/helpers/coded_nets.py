"""Nets of one layer of each kind, and what the tests of passes that store codes look at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from layer_nets import net, node, normal, problems_of, samples

from onnxslim.codebook.nodes import codebook_nodes, values_of
from onnxslim.io.model import Model
from onnxslim.lossy.problems import Problem

Case = tuple[onnx.ModelProto, np.ndarray]
X = samples(200, 24)


def dense(rows: int = 40, columns: int = 24, seed: int = 1) -> onnx.ModelProto:
    """One MatMul, weight `w`."""
    weights = {"w": normal(columns, rows, seed=seed)}
    return net([node("MatMul", ["x", "w"], "y")], weights, ["N", columns])


def tiny(seed: int, columns: int, x: np.ndarray | None = None) -> Problem:
    """The problem of a MatMul with two outputs, small enough to try every answer."""
    weights = {"w": normal(columns, 2, seed=seed)}
    source = net([node("MatMul", ["x", "w"], "y")], weights, ["N", columns])
    (problem,) = problems_of(source, x)[0]
    return problem


def _conv(op: str, shape: tuple[int, ...], channels: int, **attrs: object) -> Case:
    nodes = [node(op, ["x", "w", "b"], "y", **attrs)]
    rows = shape[0] if op == "Conv" else shape[1] * int(str(attrs.get("group", 1)))
    weights = {"w": normal(*shape), "b": normal(rows)}
    return net(nodes, weights, ["N", channels, 6, 6]), samples(20, channels, 6, 6)


def _left_matmul() -> Case:
    return net([node("MatMul", ["w", "x"], "y")], {"w": normal(40, 24)}, [24, 30]), X.T[:, :30]


def _gemm() -> Case:
    weights = {"w": normal(40, 24), "b": normal(40)}
    nodes = [node("Gemm", ["x", "w", "b"], "y", transB=1, alpha=0.5, beta=2.0)]
    return net(nodes, weights, ["N", 24]), X


def _shared() -> Case:
    nodes = [
        node("MatMul", ["x", "w"], "h"),
        node("Relu", ["h"], "r"),
        node("MatMul", ["r", "w"], "y"),
    ]
    return net(nodes, {"w": normal(24, 24, scale=0.3)}, ["N", 24]), X


def _half() -> Case:
    half = onnx.TensorProto.FLOAT16
    source = net(
        [node("MatMul", ["x", "w"], "y")],
        {"w": normal(24, 60).astype(np.float16)},
        ["N", 24],
        dtype=half,
    )
    return source, X.astype(np.float16)


def _constant_node() -> Case:
    value = onnx.numpy_helper.from_array(normal(24, 40))
    nodes = [node("Constant", [], "w", value=value), node("MatMul", ["x", "w"], "y")]
    return net(nodes, {}, ["N", 24]), X


KINDS: dict[str, Callable[[], Case]] = {
    "MatMul": lambda: (dense(), X),
    "MatMul, weight left": _left_matmul,
    "Gemm": _gemm,
    "Conv": lambda: _conv("Conv", (16, 8, 3, 3), 8),
    "grouped Conv": lambda: _conv("Conv", (16, 4, 3, 3), 8, group=2),
    "depthwise Conv": lambda: _conv("Conv", (32, 1, 3, 3), 32, group=32),
    "ConvTranspose": lambda: _conv("ConvTranspose", (8, 16, 3, 3), 8),
    "grouped ConvTranspose": lambda: _conv("ConvTranspose", (8, 16, 3, 3), 8, group=2),
    "a shared weight": _shared,
    "float16": _half,
    "a Constant node": _constant_node,
}


def coded(model: Model) -> dict[str, np.ndarray]:
    """The tensors that are stored as codes, by name."""
    found = {}
    for codes in codebook_nodes(model.graph):
        values = values_of(model.graph, codes.outputs[0])
        assert values is not None
        found[codes.outputs[0].name] = values
    return found


def with_values(source: onnx.ModelProto, values: dict[str, np.ndarray]) -> onnx.ModelProto:
    """`source` with other initializers."""
    changed = onnx.ModelProto()
    changed.CopyFrom(source)
    for tensor in changed.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values[tensor.name], tensor.name))
    return changed

"""Size of a model: nodes, parameters, bytes, multiply-accumulates."""

from __future__ import annotations

from math import prod

import onnx_graphsurgeon as gs

from onnxslim.ir import Constant, walk_graphs
from onnxslim.model import Model
from onnxslim.report import Stats
from onnxslim.shapes import infer_shapes


def measure_stats(model: Model, *, infer: bool = True) -> Stats:
    """Count what `model` holds.

    Args:
        model: its tensors get inferred shapes when `infer` is true.
        infer: run shape inference first; without it, MACs rely on the shapes already there.
    """
    if infer:
        infer_shapes(model)
    constants = {id(c): c for graph in walk_graphs(model.graph) for c in constants_of(graph)}
    return Stats(
        nodes=count_nodes(model.graph),
        parameters=sum(constant.size for constant in constants.values()),
        initializer_bytes=sum(constant.nbytes for constant in constants.values()),
        file_bytes=model.file_bytes(),
        macs=count_macs(model.graph),
    )


def count_nodes(graph: gs.Graph) -> int:
    """Nodes of `graph` and of all graphs nested in it."""
    return sum(len(current.nodes) for current in walk_graphs(graph))


def constants_of(graph: gs.Graph) -> list[Constant]:
    """Initializers used by `graph` and values of its Constant nodes; bodies not included."""
    found = {id(c): c for c in getattr(graph, "unused", ())}
    for node in graph.nodes:
        for tensor in (*node.inputs, *node.attrs.values()):
            if isinstance(tensor, gs.Constant):
                found[id(tensor)] = tensor
    return list(found.values())


def count_macs(graph: gs.Graph) -> int | None:
    """Multiply-accumulates of one run of all matrix operators, None if a shape is unknown.

    A dimension that is only known by a symbol counts as one, so a symbolic batch gives the count
    for one sample.
    """
    total = 0
    for current in walk_graphs(graph):
        for node in current.nodes:
            macs = node_macs(node)
            if macs is None:
                return None
            total += macs
    return total


def node_macs(node: gs.Node) -> int | None:
    """Multiply-accumulates of one node; 0 for operators that are no matrix product."""
    if node.domain not in (None, "", "ai.onnx"):
        return 0
    if node.op in ("Conv", "ConvInteger", "QLinearConv"):
        weight = node.inputs[3 if node.op == "QLinearConv" else 1].shape
        return _times(_volume(node.outputs[0].shape), _volume(weight[1:] if weight else None))
    if node.op == "ConvTranspose":
        weight = node.inputs[1].shape
        return _times(_volume(node.inputs[0].shape), _volume(weight[1:] if weight else None))
    if node.op in ("MatMul", "MatMulInteger", "Gemm"):
        inner = node.inputs[0].shape
        if not inner:
            return None
        axis = 0 if node.op == "Gemm" and node.attrs.get("transA") else -1
        return _times(_volume(node.outputs[0].shape), _volume([inner[axis]]))
    return 0


def _volume(shape: list[int | str | None] | None) -> int | None:
    if shape is None:
        return None
    return prod(size if isinstance(size, int) and size >= 0 else 1 for size in shape)


def _times(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a * b

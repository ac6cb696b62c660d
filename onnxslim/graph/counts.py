"""Counts over a graph: nodes, constants, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod

import onnx_graphsurgeon as gs

from onnxslim.graph.ir import Constant, Node, subgraphs_of, walk_graphs


def count_nodes(graph: gs.Graph) -> int:
    """Nodes of `graph` and of all graphs nested in it."""
    return sum(len(current.nodes) for current in walk_graphs(graph))


def with_bodies(nodes: Iterable[Node]) -> Iterator[Node]:
    """Nodes, and those in their bodies."""
    for node in nodes:
        yield node
        for body in subgraphs_of(node):
            for inner in walk_graphs(body):
                yield from inner.nodes


def constants_of(graph: gs.Graph) -> list[Constant]:
    """Initializers used by `graph` and values of its Constant nodes; bodies not included."""
    found = {id(c): c for c in getattr(graph, "unused", ())}
    for node in graph.nodes:
        for tensor in (*node.inputs, *node.attrs.values()):
            if isinstance(tensor, gs.Constant):
                found[id(tensor)] = tensor
    return list(found.values())


def count_macs(graph: gs.Graph) -> int | None:
    """Multiply-accumulates of all matrix operators for one sample, None if a shape is unknown."""
    total = 0
    for current in walk_graphs(graph):
        for node in current.nodes:
            macs = node_macs(node)
            if macs is None:
                return None
            total += macs
    return total


def sized_macs(graph: gs.Graph) -> int:
    """Multiply-accumulates of the matrix operators whose shapes are known, bodies included."""
    return sum(node_macs(node) or 0 for node in with_bodies(graph.nodes))


def node_macs(node: gs.Node) -> int | None:
    """Multiply-accumulates of one node; 0 for operators that are no matrix product."""
    if (node.domain, node.op) == ("com.microsoft", "MatMulNBits"):
        return _times(_volume(node.outputs[0].shape), int(node.attrs["K"]))
    if node.domain not in (None, "", "ai.onnx"):
        return 0
    if node.op == "Attention":
        return _attention_macs(node)
    if node.op in ("Conv", "ConvInteger", "QLinearConv"):
        weight = node.inputs[3 if node.op == "QLinearConv" else 1].shape
        return _times(_volume(node.outputs[0].shape), _volume(weight[1:] if weight else None))
    if node.op == "ConvTranspose":
        weight = node.inputs[1].shape
        return _times(_volume(node.inputs[0].shape), _volume(weight[1:] if weight else None))
    if node.op in ("MatMul", "MatMulInteger", "Gemm"):
        return _matmul_macs(node)
    return 0


def _attention_macs(node: gs.Node) -> int | None:
    """Queries times keys, and weights times values; past keys and values included."""
    keys = [tensor for index, tensor in enumerate(node.inputs) if index in (1, 4) and tensor.name]
    lengths = [tensor.shape[-2] if tensor.shape else None for tensor in keys]
    known = [size for size in lengths if isinstance(size, int)]
    ends = [_volume(tensor.shape) for tensor in (node.inputs[0], node.outputs[0])]
    if len(known) < len(lengths) or None in ends:
        return None
    return sum(known) * sum(size for size in ends if size is not None)


def _matmul_macs(node: gs.Node) -> int | None:
    """Rows times inner times columns; the inner size is known from either factor."""
    left, right = (None if t.shape is None else list(t.shape) for t in node.inputs[:2])
    if node.op == "Gemm":
        left = left[::-1] if left and node.attrs.get("transA") else left
        right = right[::-1] if right and node.attrs.get("transB") else right
    output = node.outputs[0].shape
    if not output and right and node.op == "Gemm":  # a Gemm always returns a matrix
        output = [left[0] if left else None, right[-1]]
    inner = (left[-1] if left else None, right[max(len(right) - 2, 0)] if right else None)
    known = [size for size in inner if isinstance(size, int)]
    return _times(_volume(output), known[0] if known else None)


def _volume(shape: Sequence[int | str | None] | None) -> int | None:
    """Elements of one sample: an unknown first dimension is the batch and counts as one."""
    if shape is None:
        return None
    sizes = [size if isinstance(size, int) else None for size in shape]
    if sizes and sizes[0] is None:
        sizes[0] = 1
    return None if None in sizes else prod(size for size in sizes if size is not None)


def _times(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a * b

"""Nodes that compute a weight from codes: find them in a graph, and read the weight back.

Each form of storage has a module of its own that writes and reads its nodes: `lookup` (codes and
tables) and `fixed_point` (integers and one scale). Code that does not care which form a node has
asks here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.codebook import fixed_point, lookup
from onnxslim.codebook.fixed_point import FixedPointWeight
from onnxslim.codebook.weight import CodebookWeight
from onnxslim.graph.functions import is_codebook
from onnxslim.graph.ir import Graph, Node, walk_graphs


def codebook_nodes(graph: Graph) -> Iterator[Node]:
    """The nodes of `graph` and of its bodies that compute a weight from codes."""
    for current in walk_graphs(graph):
        yield from (
            n for n in current.nodes if lookup.is_lookup(n) or fixed_point.is_fixed_point(n)
        )


def stored_weight(graph: Graph, node: Node) -> FixedPointWeight | CodebookWeight | None:
    """The weight that `node` of `graph`, or of one of its bodies, computes from codes.

    Returns:
        None for another node, and where its function or its inputs are not as this package writes
        them.
    """
    read = fixed_point.read if fixed_point.is_fixed_point(node) else lookup.read
    return read(graph, node)


def values_of(graph: Graph, tensor: gs.Tensor) -> np.ndarray | None:
    """The dense values of a tensor that a codebook node computes; None for another tensor."""
    weight = stored_weight(graph, tensor.inputs[0]) if is_codebook(tensor) else None
    return None if weight is None else weight.dense()


def element_count(node: Node) -> int:
    """Number of elements of the weight that a codebook node computes; 0 if its shape is unknown."""
    if fixed_point.is_fixed_point(node):
        return fixed_point.element_count(node)
    return lookup.element_count(node)

"""How much memory the activations of a run take: what bounds the number of samples in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.graph.ir import needs


def live_bytes(graph: gs.Graph, shapes: Mapping[str, Sequence[int]]) -> int:
    """The most bytes of activations alive at once, where nodes run in the order of the graph.

    An activation lives from the node that computes it to its last reader; inputs and outputs of the
    graph live throughout. Bodies are not entered.

    Args:
        graph: its nodes in topological order.
        shapes: by tensor name; a tensor that is not there counts as nothing.
    """
    last = {tensor: at for at, node in enumerate(graph.nodes) for tensor in needs(node)}
    kept = {*graph.inputs, *graph.outputs}
    alive = most = sum(_nbytes(tensor, shapes) for tensor in graph.inputs)
    for at, node in enumerate(graph.nodes):
        alive += sum(_nbytes(tensor, shapes) for tensor in node.outputs)
        most = max(most, alive)
        ended = {tensor for tensor in (*needs(node), *node.outputs) if last.get(tensor, at) == at}
        alive -= sum(
            _nbytes(tensor, shapes) for tensor in ended - kept if tensor.inputs
        )  # of a constant nothing was added
    return most


def all_bytes(graph: gs.Graph, shapes: Mapping[str, Sequence[int]]) -> int:
    """The bytes of all activations together: what a run holds that returns each of them.

    Bodies are not entered; a tensor that is not in `shapes` counts as nothing.
    """
    return sum(_nbytes(tensor, shapes) for node in graph.nodes for tensor in node.outputs)


def _nbytes(tensor: gs.Tensor, shapes: Mapping[str, Sequence[int]]) -> int:
    size = prod(shapes.get(tensor.name, (0,)))
    # where inference has not told the type, that of most activations
    return size * np.dtype(np.float32 if tensor.dtype is None else tensor.dtype).itemsize

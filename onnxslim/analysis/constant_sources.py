"""Which constants alone determine a tensor: what a file stores of a weight, however it is coded."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_graphsurgeon as gs

from onnxslim.graph.ir import Constant, Node, subgraphs_of, walk_graphs
from onnxslim.graph.operands import is_random

Sources = tuple[Constant, ...]


class ConstantSources:
    """The constants behind each tensor of a graph and its bodies, as the graph stands now."""

    def __init__(self, graph: gs.Graph) -> None:
        self._known: dict[int, Sources] = {}
        self._opset = graph.opset
        for current in walk_graphs(graph):
            for node in current.nodes:
                found = self._of_node(node)
                if found is not None:
                    self._known.update((id(tensor), found) for tensor in node.outputs)

    def of(self, tensor: gs.Tensor) -> Sources | None:
        """The constants that determine `tensor`; None where a run determines it."""
        return (tensor,) if isinstance(tensor, Constant) else self._known.get(id(tensor))

    def of_all(self, tensors: Iterable[gs.Tensor]) -> Sources:
        """The constants behind those of `tensors` that constants determine, each once."""
        found = {id(c): c for tensor in tensors for c in self.of(tensor) or ()}
        return tuple(found.values())

    def determine(self, node: Node) -> bool:
        """Whether constants alone determine what `node` returns."""
        return bool(node.outputs) and all(id(tensor) in self._known for tensor in node.outputs)

    def _of_node(self, node: Node) -> Sources | None:
        if node.op == "Constant" and node.is_onnx:
            return tuple(value for value in node.attrs.values() if isinstance(value, Constant))
        given = [tensor for tensor in node.inputs if tensor.name]
        if not given or subgraphs_of(node) or is_random(node, self._opset):
            return None
        if any(self.of(tensor) is None for tensor in given):
            return None
        return self.of_all(given)

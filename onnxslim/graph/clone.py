"""Copies of a graph that share weight arrays; the manager hands one to each pass.

A copy costs a few microseconds a node and no weight is read. Tensors that belong to an outer graph
stay the same object within one copy, so a body of `If` refers to the copied outer tensors.
"""

from __future__ import annotations

from typing import Any, Final

import onnx_graphsurgeon as gs

from onnxslim.graph.collector import paused
from onnxslim.graph.ir import Constant, Graph, Node, Variable, walk_graphs

_CONTENT: Final = (
    "inputs",
    "outputs",
    "nodes",
    "unused",
    "opset",
    "import_domains",
    "ir_version",
    "local_functions",
    "extra",
)


@paused()
def clone_graph(graph: gs.Graph) -> Graph:
    """A deep copy of nodes and tensors; arrays, stored values and protos are shared."""
    return _Cloner().graph(graph)


def adopt(graph: gs.Graph, copy: gs.Graph) -> None:
    """Move the content of `copy`, an edited clone of `graph`, into `graph`; `copy` is used up."""
    for name in _CONTENT:
        setattr(graph, name, getattr(copy, name))
    for current in walk_graphs(graph):
        for node in current.nodes:
            for tensor in node.inputs:
                if getattr(tensor, "home", None) is copy:
                    tensor.home = graph
    for tensor in graph.unused:
        tensor.home = graph


class _Cloner:
    def __init__(self) -> None:
        self.tensors: dict[int, gs.Tensor] = {}
        self.graphs: dict[int, Graph] = {}
        self.imports: list[Any] | None = None
        self.functions: list[Any] | None = None

    def graph(self, graph: gs.Graph) -> Graph:
        copy = Graph(name=graph.name, doc_string=graph.doc_string)
        self.graphs[id(graph)] = copy
        if self.imports is None:
            self.imports = list(graph.import_domains or ())
            self.functions = list(getattr(graph, "local_functions", ()))
        copy.opset = graph.opset
        copy.import_domains = self.imports
        copy.ir_version = graph.ir_version
        copy.producer_name = graph.producer_name
        copy.producer_version = graph.producer_version
        copy.local_functions = self.functions or []
        copy.extra = getattr(graph, "extra", None)
        copy.inputs = [self.tensor(tensor) for tensor in graph.inputs]
        copy.nodes = [self.node(node) for node in graph.nodes]
        copy.outputs = [self.tensor(tensor) for tensor in graph.outputs]
        copy.unused = [self.tensor(tensor) for tensor in getattr(graph, "unused", ())]
        return copy

    def tensor(self, tensor: gs.Tensor) -> Any:
        if not tensor.name:
            return Variable("")
        copy = self.tensors.get(id(tensor))
        if copy is None:
            copy = self.tensors[id(tensor)] = self._copy(tensor)
        return copy

    def _copy(self, tensor: gs.Tensor) -> Variable | Constant:
        if isinstance(tensor, gs.Constant):
            constant = Constant(tensor.name, tensor._values)
            home = getattr(tensor, "home", None)
            constant.home = self.graphs.get(id(home)) if home is not None else None
            constant.info = getattr(tensor, "info", None)
            return constant
        shape = None if tensor.shape is None else list(tensor.shape)
        variable = Variable(tensor.name, tensor.dtype, shape, tensor.type)
        variable.info = getattr(tensor, "info", None)
        variable.default = getattr(tensor, "default", None)
        variable.kept = getattr(tensor, "kept", None)
        variable.renumbered = getattr(tensor, "renumbered", None)
        return variable

    def node(self, node: gs.Node) -> Node:
        inputs = [self.tensor(tensor) for tensor in node.inputs]
        outputs = [self.tensor(tensor) for tensor in node.outputs]
        attrs = {name: self._attribute(value) for name, value in node.attrs.items()}
        copy = Node(node.op, node.name, attrs, inputs, outputs, node.domain)
        copy.attr_types = dict(getattr(node, "attr_types", {}))
        copy.extra = getattr(node, "extra", None)
        return copy

    def _attribute(self, value: Any) -> Any:
        if isinstance(value, gs.Graph):
            return self.graph(value)
        if isinstance(value, list):
            return [self._attribute(item) for item in value]
        if isinstance(value, gs.Constant):
            return self._copy(value)
        return value

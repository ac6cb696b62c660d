"""Tensors inside a model, made readable: a copy of the model returns them as outputs.

The copy returns nothing else, and computes nothing that they do not need. A tensor in the body of
an If leaves it as one more output of the If; the other branch gives an empty tensor, so an empty
array means that the branch was not taken. What lies in the body of a Loop or a Scan stays hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer, weight_layers
from onnxslim.ir import Constant, Node, Variable, node_label, subgraphs_of, walk_graphs
from onnxslim.model import Model
from onnxslim.runtime.session import Feeds, Outputs, Session, open_session
from onnxslim.shapes import infer_shapes


class Taps:
    """A copy of a model whose inner tensors can be read. Tap first, then open.

    Attributes:
        layers: the weight layers of the copy, by name.
    """

    def __init__(self, model: Model) -> None:
        self._model = model.clone()
        infer_shapes(self._model)
        self._graph = self._model.graph
        found, skips = weight_layers(self._graph)
        self.layers = {layer.name: layer for layer in found}
        self.skips = skips
        self._outputs: dict[str, gs.Tensor] = {}
        self._names = {tensor.name for graph in walk_graphs(self._graph) for tensor in _made(graph)}
        self._tapped: dict[int, str] = {}

    def tap(self, tensor: gs.Tensor, layer: WeightLayer) -> str | None:
        """Make `tensor`, an input or output of `layer`, readable; returns its key in `run`.

        None when it lies in the body of a Loop or Scan: see `why_hidden`.
        """
        known = self._tapped.get(id(tensor))
        if known is not None:
            return known
        place = [*layer.bodies]
        while place and not _belongs(tensor, _body(place[-1])):
            place.pop()  # the body captures it from further out
        outer = tensor
        while place:
            node, body = place.pop()
            if node.op != "If" or not node.is_onnx:
                return None
            outer = self._lead_out(outer, node, body, layer)
        key = self._return(outer, layer)
        self._tapped[id(tensor)] = key
        return key

    def open(self, threads: int | None = None) -> Session | None:
        """A session of the copy; None where all that was tapped is fed.

        Raises:
            RuntimeFailure: onnxruntime refuses it.
        """
        if not self._outputs:
            return None
        self._graph.outputs = list(self._outputs.values())
        self._graph.nodes = list(_needed_nodes(self._graph))
        for graph in walk_graphs(self._graph):
            graph.unused = []
        return open_session(self._model, threads=threads, spin=False)

    def _return(self, tensor: gs.Tensor, layer: WeightLayer) -> str:
        fed = any(tensor is item for item in self._graph.inputs)
        if fed and getattr(tensor, "default", None) is None:
            return str(tensor.name)
        if fed or isinstance(tensor, gs.Constant):
            tensor = self._copied(tensor, self._graph, layer)
        if tensor.dtype is None:
            tensor.dtype = layer.holder.dtype
        tensor.shape = tensor.info = None  # what a file declares may be wrong
        self._outputs[tensor.name] = tensor
        return str(tensor.name)

    def _lead_out(self, tensor: gs.Tensor, node: Node, body: str, layer: WeightLayer) -> Variable:
        for name, branch in node.attrs.items():
            if not isinstance(branch, gs.Graph):
                continue
            if name == body:
                branch.outputs.append(self._copied(tensor, branch, layer))
            else:
                branch.outputs.append(self._empty(branch, layer))
        outer = self._variable(f"{tensor.name}_seen", layer)
        node.outputs.append(outer)
        return outer

    def _copied(self, tensor: gs.Tensor, graph: gs.Graph, layer: WeightLayer) -> Variable:
        copy = self._variable(f"{tensor.name}_copy", layer)
        graph.nodes.append(Node("Identity", inputs=[tensor], outputs=[copy]))
        return copy

    def _empty(self, graph: gs.Graph, layer: WeightLayer) -> Variable:
        value = Constant(self._fresh("empty"), np.zeros((0,), layer.holder.dtype))
        made = self._variable("empty", layer)
        graph.nodes.append(Node("Constant", attrs={"value": value}, outputs=[made]))
        return made

    def _variable(self, name: str, layer: WeightLayer) -> Variable:
        return Variable(self._fresh(name), layer.holder.dtype)

    def _fresh(self, wish: str) -> str:
        name, number = wish, 0
        while name in self._names:
            name, number = f"{wish}_{number}", number + 1
        self._names.add(name)
        return name


def read(key: str, feeds: Feeds, outputs: Outputs) -> np.ndarray:
    """What a run of the copy says about a tapped tensor."""
    return outputs[key] if key in outputs else feeds[key]


def why_hidden(layer: WeightLayer) -> str:
    """Why tensors around a layer cannot be tapped."""
    node = next(node for node, _ in layer.bodies if node.op != "If" or not node.is_onnx)
    return (
        f"it lies in the body of the {node.op} `{node_label(node)}`, whose inner tensors cannot be "
        "observed"
    )


def _body(place: tuple[Node, str]) -> gs.Graph:
    node, name = place
    body: gs.Graph = node.attrs[name]
    return body


def _belongs(tensor: gs.Tensor, graph: gs.Graph) -> bool:
    if tensor.inputs:
        return any(node is tensor.inputs[0] for node in graph.nodes)
    return any(tensor is item for item in graph.inputs)


def _made(graph: gs.Graph) -> Iterable[gs.Tensor]:
    yield from graph.inputs
    for node in graph.nodes:
        yield from node.inputs
        yield from node.outputs


def _needed_nodes(graph: gs.Graph) -> Sequence[Node]:
    """The nodes of `graph` that its outputs depend on, in their order."""
    needed: set[Node] = set()
    stack = [node for tensor in graph.outputs for node in tensor.inputs]
    while stack:
        node = stack.pop()
        if node in needed:
            continue
        needed.add(node)
        for tensor in _reads(node):
            stack.extend(tensor.inputs)
    return [node for node in graph.nodes if node in needed]


def _reads(node: Node) -> Iterable[gs.Tensor]:
    """Inputs of `node`, and whatever its bodies read or return."""
    yield from node.inputs
    for body in subgraphs_of(node):
        for graph in walk_graphs(body):
            yield from graph.outputs
            for inner in graph.nodes:
                yield from inner.inputs

"""Expose the inner tensors of a model as outputs of a copy of it.

A session of the copy returns the exposed tensors alone, and computes only what they need. A tensor
in the body of an If leaves it as an additional output of the If; the other branch returns an empty
tensor, so an empty array means that the branch was not taken. Tensors in the body of a Loop or a
Scan cannot be exposed.

Owns: the edits of the copy. Not here: keeping activations (see `activation_cache`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer, weight_layers
from onnxslim.analysis.linear_operators import RECURRENT_OPS
from onnxslim.analysis.token_inputs import PaddingMask, padding_mask
from onnxslim.graph.ir import Constant, Node, Variable, ancestors, needs, node_label, walk_graphs
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.runtime.session import Feeds, Outputs, Session, open_session


@dataclass(frozen=True)
class Segment:
    """The nodes that compute some tensors of a graph from others."""

    outputs: tuple[gs.Tensor, ...]
    inputs: tuple[gs.Tensor, ...]  # fed in addition to the inputs of the model
    nodes: frozenset[Node]


class ExposedTensors:
    """A copy of a model whose inner tensors can be read: `expose` them, then `open` a segment.

    Attributes:
        layers: the weight layers of the copy, by name.
        skips: operators that are no weight layers, and why.
        outputs: exposed tensors that are not inputs of the model, by key.
        defaults: values of the inputs that an initializer gives where no sample does, by name.
    """

    def __init__(self, model: Model) -> None:
        self._model = model.clone()
        infer_shapes(self._model)
        self.graph = self._model.graph
        # a session returns the outputs that are tensors alone
        self.graph.outputs = [
            tensor
            for tensor in self.graph.outputs
            if getattr(tensor, "type", "tensor_type") == "tensor_type"
        ]
        found, skips = weight_layers(self.graph)
        self.layers = {layer.name: layer for layer in found}
        self.skips = skips
        self._names = {
            tensor.name for graph in walk_graphs(self.graph) for tensor in _tensors(graph)
        }
        for layer in found:
            self._name_states(layer)
        self.outputs: dict[str, gs.Tensor] = {}
        self.defaults: dict[str, np.ndarray] = {
            tensor.name: tensor.default.load()
            for tensor in self.graph.inputs
            if getattr(tensor, "default", None) is not None
        }
        self._keys: dict[int, str] = {}

    @cached_property
    def padding(self) -> PaddingMask | None:
        """The input that says which positions of texts only fill up a batch."""
        return padding_mask(self.graph)

    def expose(self, tensor: gs.Tensor, layer: WeightLayer) -> str | None:
        """Expose `tensor`, an input or output of `layer`; the key that `read` takes.

        A tensor of unknown type has that of the weight. None when the tensor lies in the body of a
        Loop or Scan: see `why_hidden`.
        """
        dtype = layer.dtype if tensor.dtype is None else tensor.dtype
        known = self._keys.get(id(tensor))
        if known is not None:
            return known
        place = [*layer.bodies]
        # start at the graph that computes the tensor: a body may capture it from further out
        while place and not _belongs(tensor, _body(place[-1])):
            place.pop()
        outer = tensor
        while place:
            node, body = place.pop()
            if node.op != "If" or not node.is_onnx:
                return None
            outer = self._lead_out(outer, node, body, dtype)
        key = self._return(outer, dtype)
        self._keys[id(tensor)] = key
        return key

    def expose_main(self, tensor: gs.Tensor) -> str:
        """Expose a tensor of the main graph whose `dtype` is known; the key that `read` takes."""
        if id(tensor) not in self._keys:
            self._keys[id(tensor)] = self._return(tensor, tensor.dtype)
        return self._keys[id(tensor)]

    def segment(self, ends: Sequence[gs.Tensor], known: Iterable[gs.Tensor]) -> Segment:
        """The nodes to run for `ends` when the `known` tensors are fed."""
        begins = dict.fromkeys(known)
        # a known tensor whose node has to run anyway, for another output, is not fed; leaving it
        # out may make more nodes run, so repeat until nothing changes
        while True:
            nodes = ancestors(ends, begins)
            made = [tensor for tensor in begins if any(node in nodes for node in tensor.inputs)]
            if not made:
                break
            for tensor in made:
                del begins[tensor]
        used = {tensor for node in nodes for tensor in needs(node)}
        return Segment(tuple(ends), tuple(t for t in begins if t in used), frozenset(nodes))

    def open(
        self,
        segment: Segment,
        more: Sequence[gs.Tensor] = (),
        shapes: Mapping[str, Sequence[int | None]] | None = None,
        threads: int | None = None,
    ) -> Session | None:
        """A session that computes the outputs of `segment`, and `more` tensors of its nodes.

        It takes the inputs of the model and those of `segment`, whose shapes `shapes` gives by
        name. None where nothing runs.

        Raises:
            RuntimeFailure: onnxruntime refuses it.
        """
        ends = tuple(dict.fromkeys((*segment.outputs, *more)))
        if not ends:
            return None
        graph = self.graph
        whole = (graph.inputs, graph.outputs, graph.nodes)
        for tensor in (*ends, *segment.inputs):
            tensor.shape = tensor.info = None  # declared shapes may be wrong
        for tensor in segment.inputs:
            tensor.shape = None if shapes is None else list(shapes[tensor.name])
        graph.inputs = [*graph.inputs, *segment.inputs]
        graph.outputs = list(ends)
        graph.nodes = [node for node in graph.nodes if node in segment.nodes]
        for current in walk_graphs(graph):
            current.unused = []
        try:
            return open_session(self._model, threads=threads, spin=False)
        finally:
            graph.inputs, graph.outputs, graph.nodes = whole

    def _return(self, tensor: gs.Tensor, dtype: np.dtype[Any]) -> str:
        fed = any(tensor is item for item in self.graph.inputs)
        if fed and getattr(tensor, "default", None) is None:
            return str(tensor.name)
        if fed or isinstance(tensor, gs.Constant):
            tensor = self._copied(tensor, self.graph, dtype)
        if tensor.dtype is None:
            tensor.dtype = dtype
        self.outputs[tensor.name] = tensor
        return str(tensor.name)

    def _name_states(self, layer: WeightLayer) -> None:
        """Name the hidden states of a recurrent operator where the model does not use them."""
        if layer.node.op in RECURRENT_OPS and not layer.node.outputs[0].name:
            layer.node.outputs[0] = self._variable("states", layer.dtype)

    def _lead_out(self, tensor: gs.Tensor, node: Node, body: str, dtype: np.dtype[Any]) -> Variable:
        for name, branch in node.attrs.items():
            if not isinstance(branch, gs.Graph):
                continue
            if name == body:
                branch.outputs.append(self._copied(tensor, branch, dtype))
            else:
                branch.outputs.append(self._empty(branch, dtype))
        outer = self._variable(f"{tensor.name}_seen", dtype)
        node.outputs.append(outer)
        return outer

    def _copied(self, tensor: gs.Tensor, graph: gs.Graph, dtype: np.dtype[Any]) -> Variable:
        copy = Variable(self._fresh(f"{tensor.name}_copy"), dtype)
        graph.nodes.append(Node("Identity", inputs=[tensor], outputs=[copy]))
        return copy

    def _empty(self, graph: gs.Graph, dtype: np.dtype[Any]) -> Variable:
        value = Constant(self._fresh("empty"), np.zeros((0,), dtype))
        made = self._variable("empty", dtype)
        graph.nodes.append(Node("Constant", attrs={"value": value}, outputs=[made]))
        return made

    def _variable(self, name: str, dtype: np.dtype[Any]) -> Variable:
        return Variable(self._fresh(name), dtype)

    def _fresh(self, wish: str) -> str:
        name, number = wish, 0
        while name in self._names:
            name, number = f"{wish}_{number}", number + 1
        self._names.add(name)
        return name


def read(key: str, feeds: Feeds, outputs: Outputs) -> np.ndarray:
    """The value of an exposed tensor in one run of the copy."""
    return outputs[key] if key in outputs else feeds[key]


def why_hidden(layer: WeightLayer) -> str:
    """Why tensors around a layer cannot be exposed."""
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


def _tensors(graph: gs.Graph) -> Iterable[gs.Tensor]:
    yield from graph.inputs
    for node in graph.nodes:
        yield from node.inputs
        yield from node.outputs

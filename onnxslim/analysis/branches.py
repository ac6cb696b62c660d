"""Residual branches: terms of sums that can be left out, with the nodes that only they need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.analysis.layers import WeightLayer, linear_layers
from onnxslim.graph.ir import Node, needs
from onnxslim.graph.operands import const_value


@dataclass(frozen=True)
class Branch:
    """A term of a sum.

    Attributes:
        sum: the Add or Sum.
        term: index of the input that can be left out.
        nodes: the nodes that only this term needs.
        layers: the weight layers among these nodes.
    """

    sum: Node
    term: int
    nodes: tuple[Node, ...]
    layers: tuple[WeightLayer, ...]

    @property
    def label(self) -> str:
        """The name of the term's tensor."""
        return str(self.sum.inputs[self.term].name)


def residual_branches(graph: gs.Graph) -> Iterator[Branch]:
    """Terms of sums in the main graph that can be left out without changing a shape.

    Another term has the shape of the sum, no term is constant, and the branch has weights of its
    own. Where both terms of a sum fit, each is a branch.
    """
    flow = SizeFlow(graph, int(graph.opset or 17))
    layers = {layer.node: layer for layer in linear_layers(graph)[0] if not layer.bodies}
    before = set(_unneeded(graph))
    for node in graph.nodes:
        if not node.is_onnx or node.op not in ("Add", "Sum") or len(node.inputs) < 2:
            continue
        if any(const_value(tensor) is not None for tensor in node.inputs):
            continue
        whole = flow.shape(node.outputs[0])
        fits = [whole is not None and flow.shape(t) == whole for t in node.inputs]
        for term in range(len(node.inputs)):
            if not any(fit for index, fit in enumerate(fits) if index != term):
                continue
            if len({id(tensor) for tensor in node.inputs}) < len(node.inputs):
                continue
            alone = [inner for inner in _unneeded(graph, node, term) if inner not in before]
            own = tuple(layers[inner] for inner in alone if inner in layers)
            if own:
                yield Branch(node, term, tuple(alone), own)


def _unneeded(graph: gs.Graph, total: Node | None = None, term: int = 0) -> list[Node]:
    """The nodes that nothing needs when the sum `total` leaves out its input `term`."""
    wanted = {id(tensor) for tensor in graph.outputs}
    dead: list[Node] = []
    for node in reversed(graph.nodes):
        if not any(id(tensor) in wanted for tensor in node.outputs):
            dead.append(node)
            continue
        used = list(needs(node))
        if node is total:
            del used[term]
        wanted.update(id(tensor) for tensor in used)
    return dead[::-1]


def next_layers(graph: gs.Graph, tensor: gs.Tensor) -> tuple[WeightLayer, ...]:
    """The weight layers that read `tensor`, directly or through operators without weights."""
    layers = {layer.node: layer for layer in linear_layers(graph)[0]}
    found: dict[Node, WeightLayer] = {}
    stack, seen = [tensor], {id(tensor)}
    while stack:
        for user in stack.pop().outputs:
            layer = layers.get(user)
            if layer is not None:
                found[user] = layer
                continue
            fresh = [out for out in user.outputs if id(out) not in seen]
            seen.update(id(out) for out in fresh)
            stack += fresh
    return tuple(found.values())

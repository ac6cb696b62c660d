"""The names by which people know a node: its output's, its own, and those of its weights.

Reports and options name a node by its *label*, its first output (`node_label`), as no two nodes of
a graph share an output. Viewers show more: the node's own name, and the names of its weights. An
option that names a layer takes any of them, so one table says which names belong to which label.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import weight_layers
from onnxslim.graph.ir import Constant, Node, node_label, walk_graphs
from onnxslim.services.layer_names import LayerNames

_VIEWS: Final = frozenset(
    {
        "Cast",
        "Constant",
        "DequantizeLinear",
        "Flatten",
        "Identity",
        "Reshape",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
_FAR: Final = 8  # nodes between a weight and its operator that are looked through


def layer_names(graph: gs.Graph) -> LayerNames:
    """The names of all nodes of `graph` and its bodies, and of all weight layers."""
    found: dict[str, dict[str, None]] = {}
    for inner in walk_graphs(graph):
        for node in inner.nodes:
            found.setdefault(node_label(node), {}).update(dict.fromkeys(_names(node)))
    # of a recurrent operator each weight is a layer of its own; bodies may repeat a label
    for layer in weight_layers(graph)[0]:
        if layer.name not in found:
            own = (layer.node.name, node_label(layer.node), str(layer.weight_tensor.name))
            found[layer.name] = dict.fromkeys(own)
    return LayerNames(
        {
            label: tuple(name for name in names if name and name != label)
            for label, names in found.items()
        }
    )


def _names(node: Node) -> Iterator[str]:
    yield str(node.name or "")
    yield from (str(tensor.name) for tensor in node.outputs)
    for tensor in node.inputs:
        weight = _weight(tensor)
        if weight is not None:
            yield str(weight.name)


def _weight(tensor: gs.Tensor) -> gs.Tensor | None:
    """The constant that `tensor` is, or is a view of; None where it is computed at run time."""
    for _ in range(_FAR):
        if isinstance(tensor, Constant):
            return tensor
        if len(tensor.inputs) != 1 or tensor.inputs[0].op not in _VIEWS:
            return None
        producer = tensor.inputs[0]
        if not producer.inputs:
            return tensor if producer.op == "Constant" else None
        tensor = producer.inputs[0]
    return None

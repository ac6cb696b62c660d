"""Layers that write no channel group, each with the reason why nothing can be cut out of it.

Owns: which operators count as layers. Not here: which operators are followed (see `rules_*`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import linear_layers
from onnxslim.analysis.linear_operators import RUN_TIME
from onnxslim.channels.groups import RULES, Channels
from onnxslim.graph.functions import is_codebook
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import const_value
from onnxslim.records import Skip

_MIN_WEIGHT: Final = 16  # elements of an operand that counts as a weight


def unpruned_layers(graph: gs.Graph, channels: Channels) -> tuple[Skip, ...]:
    """Layers whose outputs are in no group, in the order of the graph, bodies last."""
    return tuple(dict.fromkeys([*_in_main(graph, channels), *_in_bodies(graph)]))


def _in_main(graph: gs.Graph, channels: Channels) -> Iterator[Skip]:
    layers, declined = linear_layers(graph)
    followed = {member.node for member in channels.trace.writers}
    followed |= {node for node, _ in channels.trace.channelwise}
    why_not = {skip.node: skip.why for skip in declined}
    own = {layer.node for layer in layers if not layer.bodies}
    for node in graph.nodes:
        label = node_label(node)
        if node in followed or is_codebook(node.outputs[0]):
            continue
        if node in own:
            yield Skip(
                label, channels.trace.untraceable.get(node, "it passes on channels of an input")
            )
        elif label in why_not and not _is_product(node, why_not[label]):
            yield Skip(label, why_not[label])
        elif (node.op not in RULES or not node.is_onnx) and _has_weight(node):
            yield Skip(label, f"it is a {node.op}, which is not followed")


def _is_product(node: Node, why: str) -> bool:
    """Whether a node is a product of two activations, which is followed but is no layer."""
    return node.op in ("MatMul", "Gemm") and why == RUN_TIME


def _has_weight(node: Node) -> bool:
    stored = [const_value(tensor) for tensor in node.inputs]
    return any(
        value is not None and len(value.shape) > 1 and value.size >= _MIN_WEIGHT for value in stored
    )


def _in_bodies(graph: gs.Graph) -> Iterator[Skip]:
    layers, _ = linear_layers(graph)
    for layer in layers:
        if layer.bodies:
            node, body = layer.bodies[0]
            where = f"`{body}` of `{node_label(node)}` ({node.op})"
            yield Skip(layer.name, f"it lies in the body {where}")

"""The normalizations over the last axis of a graph: as operators, and spelled out.

What reads a residual stream through one of them sees the direction of each vector, not its length;
LayerNormalization does not see the mean either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import onnx_graphsurgeon as gs

from onnxslim.analysis.compound_operators import (
    Compound,
    compounds,
    plain_normalization_at,
)
from onnxslim.graph.dims import known_dim, rank
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import const_value, is_present
from onnxslim.graph.rewrite import Rewriter

CENTRED_OPS: Final = ("LayerNormalization",)
NORM_OPS: Final = (*CENTRED_OPS, "RMSNormalization")


@dataclass(frozen=True)
class Normalization:
    """One normalization: γ·(x − mean)/√(variance + ε) + β, or γ·x/√(mean square + ε).

    Attributes:
        nodes: its nodes, the last one first.
        source: what it normalizes.
        result: what it returns.
        scale, bias: node and index of the input that holds γ and β, constants of one axis; None
            where there is none: simplify may have moved γ into the layers that read it.
        is_centred: whether it subtracts the mean.
    """

    nodes: tuple[Node, ...]
    source: gs.Tensor
    result: gs.Tensor
    scale: tuple[Node, int] | None
    bias: tuple[Node, int] | None
    is_centred: bool

    @property
    def label(self) -> str:
        """How messages name it."""
        return node_label(self.nodes[0])


def normalizations(rw: Rewriter) -> list[Normalization]:
    """All normalizations of the main graph over a last axis of known size, in its order."""
    found = {item.match.nodes[0]: item for item in compounds(rw) if not item.is_elementwise}
    inner = {node for item in found.values() for node in item.match.nodes}
    return [
        item
        for node in rw.main.nodes
        if node in found or node not in inner
        for item in _read(rw, node, found.get(node))
    ]


def _read(rw: Rewriter, node: Node, compound: Compound | None) -> Iterator[Normalization]:
    if node.op in NORM_OPS and node.is_onnx:
        known = _operator(node)
        if known is not None:
            yield known
        return
    compound = compound or plain_normalization_at(rw, node)
    if compound is not None:
        yield _spelled(compound)


def _operator(node: Node) -> Normalization | None:
    axis, ndim = int(node.attrs.get("axis", -1)), rank(node.inputs[0])
    if axis != -1 and (ndim is None or axis != ndim - 1):
        return None
    if any(tensor.name for tensor in node.outputs[1:]):
        return None
    operands = [i for i in (1, 2) if is_present(node, i)]
    if any(_vector_size(node.inputs[i]) is None for i in operands) or 1 not in operands:
        return None
    bias = (node, 2) if 2 in operands else None
    return Normalization(
        (node,), node.inputs[0], node.outputs[0], (node, 1), bias, node.op in CENTRED_OPS
    )


def _spelled(compound: Compound) -> Normalization:
    nodes, tensors = compound.match.nodes, compound.match.tensors

    def place(name: str) -> tuple[Node, int] | None:
        tensor = tensors.get(name)
        places = (
            (node, i) for node in nodes for i, item in enumerate(node.inputs) if item is tensor
        )
        return next(places, None)

    is_centred = compound.name == "LayerNormalization"
    return Normalization(
        nodes, tensors["x"], nodes[0].outputs[0], place("scale"), place("bias"), is_centred
    )


def _vector_size(tensor: gs.Tensor) -> int | None:
    return known_dim(tensor, 0) if const_value(tensor) is not None and rank(tensor) == 1 else None

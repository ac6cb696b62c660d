"""The pieces of a split layer put into the graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer
from onnxslim.graph.ir import node_label
from onnxslim.graph.operands import is_present
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lowrank.pieces import pieces_of
from onnxslim.records import Fidelity
from onnxslim.solvers.decompositions.base import Factors


@dataclass(frozen=True)
class PlannedSplit:
    """A split that is to be made.

    Attributes:
        layers: all that use the weight; the problem itself, with H, is let go.
        method: one of `solvers.decompositions.methods.METHODS`.
        factors: in the type that the weight has.
        what: was decided, in words.
        fidelity: `CLOSE` where the weight has no higher rank than the split.
    """

    layers: tuple[WeightLayer, ...]
    method: str
    factors: Factors
    what: str
    fidelity: Fidelity


def replace_layer(rw: Rewriter, split: PlannedSplit) -> None:
    """Put the pieces in the place of every layer that uses the weight."""
    stored: dict[int, gs.Tensor] = {}
    for layer in split.layers:
        _replace(rw, layer, split, stored)


def _replace(
    rw: Rewriter, layer: WeightLayer, split: PlannedSplit, stored: dict[int, gs.Tensor]
) -> None:
    node = layer.node
    label = node_label(node)
    pieces = pieces_of(layer, split.method, split.factors, rw.opset)
    tensors: dict[str, gs.Tensor] = {"x": layer.data_tensor}
    for number, piece in enumerate(pieces):
        inputs: list[gs.Tensor] = []
        for place, item in enumerate(piece.inputs):
            if isinstance(item, str):
                inputs.append(tensors[item])
                continue
            key = number * 8 + place  # layers that share the weight share its factors
            if key not in stored or stored[key].values.shape != item.shape:
                stored[key] = rw.constant(np.ascontiguousarray(item), f"{label}_factor{number}")
            inputs.append(stored[key])
        if piece is not pieces[-1]:
            (made,) = rw.insert(
                node,
                piece.op,
                inputs,
                piece.attrs,
                name=f"{label}_part{number}",
                dtype=node.outputs[0].dtype,
            )
            tensors[piece.output] = made
            continue
        if layer.bias is not None and is_present(node, layer.bias):
            inputs.append(node.inputs[layer.bias])
        attrs = dict(piece.attrs)
        rw.update(
            node, split.what, op=piece.op, inputs=inputs, attrs=attrs, fidelity=split.fidelity
        )

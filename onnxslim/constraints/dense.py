"""A copy of a model in which coded weights are constants: what training computes with.

The nodes that compute weights from codes leave, so that training has one dense tensor for each
weight, whatever the file packs it into.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.constraints.read import Constraints
from onnxslim.constraints.stored import (
    BiasWeight,
    CodedWeight,
    GridWeight,
    LookupWeight,
)
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import is_present
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model


@dataclass(frozen=True)
class DenseTwin:
    """A model that computes the same from dense weights.

    Attributes:
        model: the copy.
        names: of the constant that takes the place of a coded weight, by the record's name.
    """

    model: Model
    names: Mapping[str, str]


def dense_twin(model: Model, constraints: Constraints) -> DenseTwin:
    """A copy of `model` with constants in place of its coded weights.

    Args:
        model: the model whose graph `constraints` were read from.
        constraints: its weights.
    """
    copy = model.clone()
    rw = Rewriter(copy.graph)
    makers = {
        str(tensor.name): node
        for graph in list(rw.graphs())
        for node in graph.nodes
        for tensor in node.outputs
    }
    names = {}
    for weight in constraints.coded():
        constant = rw.constant(dense_values(weight), f"{weight.name}.dense")
        names[weight.name] = str(constant.name)
        for output in weight.outputs:
            _let_read(rw, makers[output], constant)
    rw.result()
    return DenseTwin(copy, names)


def dense_values(weight: CodedWeight) -> np.ndarray:
    """The weight as the graph computes it now; that of MatMulNBits as (inputs, outputs)."""
    if isinstance(weight, LookupWeight):
        return weight.weight.dense()
    if isinstance(weight, GridWeight):
        return weight.steps.dense(weight.scales.values).astype(weight.dtype)
    assert isinstance(weight, BiasWeight)
    scale = weight.scales.values
    return np.asarray(weight.holder.values.astype(scale.dtype) * scale)


def _let_read(rw: Rewriter, node: Node, constant: gs.Constant) -> None:
    """Let what reads the output of `node` read `constant`; a product takes it as its matrix."""
    if node.op != "MatMulNBits":
        rw.substitute(node, constant, "a coded weight as a constant")
        return
    what, inputs = "codes as a matrix", [node.inputs[0], constant]
    if not is_present(node, 5):
        rw.update(node, what, op="MatMul", inputs=inputs, attrs={})
        return
    bias = node.inputs[5]
    output = node.outputs[0]
    made = rw.insert(
        node,
        "MatMul",
        inputs,
        name=f"{output.name}_product",
        dtype=output.dtype,
        shape=output.shape,
    )
    rw.update(node, what, op="Add", inputs=[*made, bias], attrs={})

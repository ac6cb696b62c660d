"""What reads a matrix: products that multiply by it, and Gather nodes that pick its rows.

A table of embeddings whose transpose is the head of the model has both. `matrix_readers` finds them
behind Identity and Transpose; `untie` gives the product a weight of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer
from onnxslim.analysis.linear_operators import (
    LINEAR_OPS,
    LinearOperator,
    OperatorWeight,
    Vectors,
    operator_weights,
)
from onnxslim.graph.dims import rank
from onnxslim.graph.ir import Graph, Node
from onnxslim.graph.rewrite import Rewriter


@dataclass(frozen=True)
class MatrixReaders:
    """All nodes that read a matrix.

    Attributes:
        products: MatMul and Gemm nodes that multiply rows of their data by it.
        picks: Gather nodes that pick whole rows of it as it is stored.
    """

    products: tuple[LinearOperator, ...]
    picks: tuple[Node, ...]

    @property
    def are_ranks_known(self) -> bool:
        """Whether the number of axes is known of all indices."""
        return all(rank(pick.inputs[1]) is not None for pick in self.picks)


def matrix_readers(layer: WeightLayer) -> MatrixReaders | None:
    """The readers of the weight of `layer`; None where it is no matrix, or is read otherwise.

    Products of Gemm have no alpha, beta or transA, and all readers see the same outputs.
    """
    if len(layer.holder.stored.shape) != 2:
        return None
    products: list[LinearOperator] = []
    picks: list[Node] = []
    waiting = [layer.weight_tensor]
    while waiting:
        tensor = waiting.pop()
        if tensor is not layer.weight_tensor and any(tensor is out for out in layer.graph.outputs):
            return None
        for user in dict.fromkeys(tensor.outputs):
            if picks_rows(user, tensor) and tensor is layer.weight_tensor:
                picks.append(user)
            elif user.is_onnx and user.op in ("Identity", "Transpose"):
                waiting += user.outputs
            elif (product := _product(user, tensor, layer)) is not None:
                products.append(product)
            else:
                return None
    if picks and (layer.inputs_first or layer.rows != layer.holder.stored.shape[0]):
        return None
    return MatrixReaders(tuple(products), tuple(picks))


def picks_rows(user: Node, table: gs.Tensor) -> bool:
    """Whether `user` is a Gather that picks rows of `table`."""
    is_table = user.is_onnx and user.op == "Gather" and user.inputs[0] is table
    return is_table and int(user.attrs.get("axis", 0)) in (0, -2)


def _product(user: Node, tensor: gs.Tensor, layer: WeightLayer) -> LinearOperator | None:
    """How `user` multiplies by `tensor`; None where it does so in another way than `layer`."""
    if not user.is_onnx or user.op not in LINEAR_OPS or user.op.startswith("Conv"):
        return None
    for weight in operator_weights(user):
        if not isinstance(weight, OperatorWeight):
            continue
        found = weight.operator
        is_it = user.inputs[found.weight] is tensor is not user.inputs[found.data]
        has_one_layout = found.inputs_first == layer.inputs_first
        if is_it and has_one_layout and is_plain_product(found):
            return found
    return None


def is_plain_product(operator: LinearOperator) -> bool:
    """Whether the operator is x·W or x·W + b: W from the right, neither transA, alpha nor beta."""
    is_scaled = operator.scale != 1.0 or operator.bias_scale != 1.0
    return operator.weight == 1 and operator.in_axis == -1 and not is_scaled


# ---------------------------------------------------------------------------- untying


def tied_product(graph: Graph, layer: WeightLayer) -> LinearOperator | None:
    """The one product, in `graph` itself, that reads the table of `layer` beside Gather nodes."""
    readers = matrix_readers(layer)
    if readers is None or not readers.picks or len(readers.products) != 1:
        return None
    (product,) = readers.products
    return product if product.node in graph.nodes else None


def untie(rw: Rewriter, layer: WeightLayer, product: LinearOperator) -> None:
    """Let `product` read a copy of the table of `layer`, which lies as a plain product wants it."""
    node = product.node
    matrix = np.ascontiguousarray(layer.canonical()[0].T)  # (inputs, outputs)
    name = f"{layer.weight_tensor.name}_of_{node.outputs[0].name}"
    inputs = list(node.inputs)
    inputs[product.weight] = rw.constant(matrix, name)
    attrs = {key: value for key, value in node.attrs.items() if key != "transB"}
    what = "its weight is no longer the table of embeddings, but codes of its own"
    rw.update(node, what, inputs=inputs, attrs=attrs)


def is_matrix(layer: WeightLayer) -> bool:
    """Whether the weight is one matrix that vectors are multiplied by."""
    return isinstance(layer.unfolding, Vectors) and len(layer.holder.stored.shape) == 2

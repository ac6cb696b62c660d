"""Products with the identity where channels leave the basis of a stream.

    an output of the model      the product becomes the way back to the width that is promised
    a tied head                 it reads a table in the basis of the sums, behind a γ that is not
    a sum with another space    what a normalization, or an operator that is not linear, returns is
                                added to the stream itself

A rotation then turns each of them into a matrix like any other that reads the stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.graph.ir import Node, Variable, node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.records import Fidelity
from onnxslim.residual.streams import StreamGraph


class Exits:
    """The products, in a graph that gets them."""

    def __init__(self, rw: Rewriter, graph: StreamGraph) -> None:
        self.rw = rw
        self._made: dict[gs.Tensor, Variable] = {}
        self._identities: dict[Node, gs.Tensor] = {}
        for node, operand in (*graph.joined_spaces(), *graph.tied_readers()):
            size = graph.columns(node.inputs[operand])
            if size is not None:
                self._before(node, operand, size)
        for tensor in graph.outputs():
            size = graph.columns(tensor)
            if size is not None:
                self._behind(tensor, size)
        rw.result()

    def remove_unused(self) -> None:
        """Remove those that are still products with the identity."""
        for node, identity in self._identities.items():
            if node.inputs[1] is identity:
                self.rw.substitute(node, node.inputs[0], "removed a product with the identity")

    def _before(self, node: Node, operand: int, size: int) -> None:
        tensor = node.inputs[operand]
        if tensor not in self._made:
            identity = self._identity(tensor, size)
            (result,) = self.rw.insert(
                node, "MatMul", [tensor, identity], name=f"{tensor.name}_rotated",
                dtype=tensor.dtype, shape=tensor.shape,
            )  # fmt: skip
            self._made[tensor] = result
            self._identities[result.inputs[0]] = identity
        self.rw.set_input(node, operand, self._made[tensor])
        self.rw.note(node_label(node), "it reads the stream through a product", Fidelity.CLOSE)

    def _behind(self, tensor: gs.Tensor, size: int) -> None:
        """Let the node that computes an output compute another tensor, and the product it."""
        (node,) = tensor.inputs
        if len(node.outputs) > 1:
            return  # a Split: its channels stay
        (inner,) = self.rw.copied(node, "narrow")
        for user in dict.fromkeys(tensor.outputs):
            for operand, item in enumerate(user.inputs):
                if item is tensor:
                    self.rw.set_input(user, operand, inner)
        identity = self._identity(tensor, size)
        inputs: Sequence[gs.Tensor] = [inner, identity]
        self.rw.update(node, "made wide again", op="MatMul", inputs=inputs, attrs={})
        self._identities[node] = identity

    def _identity(self, tensor: gs.Tensor, size: int) -> gs.Tensor:
        return self.rw.constant(np.eye(size, dtype=tensor.dtype), f"{tensor.name}_basis")

"""Values that a Softmax makes zero: masked positions, at -10,000 or at the least float.

A range that covers them has no steps left for the values that count. Where Softmax operators alone
read a tensor, what lies `REACH` below the largest value of its row may as well lie there: e^-12 is
six millionths, a thousandth of a step of 8 bits. A mask that is added to the scores before needs
to reach further, because the scores differ as well.

Owns: how far the values of a tensor matter. Not here: who needs no more (see
`onnxslim.runtime.probes.observers`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.graph.dims import rank
from onnxslim.graph.ir import Node

REACH: Final = 12.0
ADDEND_REACH: Final = 10 * REACH  # scores of one row differ by less


@dataclass(frozen=True)
class SoftmaxReach:
    """How far the values of a tensor matter.

    Attributes:
        axis: along which Softmax operators normalize what becomes of it.
        below: the largest value along it; what lies further below becomes zero.
    """

    axis: int
    below: float

    def clipped(self, array: np.ndarray) -> np.ndarray:
        """`array` without the values that become zero; infinite ones are among them."""
        if not array.size or not -array.ndim <= self.axis < array.ndim:
            return array
        largest = array.max(axis=self.axis, keepdims=True)
        return np.asarray(np.maximum(array, largest - self.below))


def softmax_reach(tensor: gs.Tensor) -> SoftmaxReach | None:
    """How far the values of `tensor` matter; None where not only Softmax operators decide that.

    `tensor` is no output of the graph, whose opset is 13 or later.
    """
    found = [_through(node) for node in tensor.outputs]
    known = [item for item in found if item is not None]
    if not known or len(known) < len(found) or len({item.axis for item in known}) > 1:
        return None
    return max(known, key=lambda item: item.below)


def _through(node: Node) -> SoftmaxReach | None:
    """How far the values matter that `node` reads."""
    if not node.is_onnx or node.op not in ("Softmax", "Add"):
        return None
    result = node.outputs[0]
    if node.op == "Softmax":
        axis = int(node.attrs.get("axis", -1))
        return SoftmaxReach(-1 if axis + 1 == rank(result) else axis, REACH)
    behind = softmax_reach(result)
    if behind is None or behind.axis != -1:  # other axes of an addend are others of the sum
        return None
    return SoftmaxReach(-1, ADDEND_REACH)

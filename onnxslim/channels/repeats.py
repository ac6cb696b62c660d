"""Tensors that hold the same values at all positions along an axis: what Expand or Tile made.

A mask that was expanded to all heads needs no head cut out of it: one position can be broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.channels.pointwise import BROADCAST, UNARY
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import axes_of, const_array, normalized

_DEEPEST: Final = 40  # nodes between a tensor and the Expand that made it


class Repeats:
    """Answers for the tensors of one graph, each found once."""

    def __init__(self, flow: SizeFlow) -> None:
        self.flow = flow
        self._known: dict[tuple[gs.Tensor, int], bool] = {}
        self._depth = 0

    def along(self, tensor: gs.Tensor, axis: int) -> bool:
        """Whether a tensor certainly holds the same values all along `axis`.

        The axis counts from the front; a negative one is an axis that broadcasting adds.
        """
        if axis < 0:
            return True
        key = (tensor, axis)
        if key not in self._known and self._depth < _DEEPEST:
            self._depth += 1
            self._known[key] = self._found(tensor, axis)
            self._depth -= 1
        return self._known.get(key, False)

    def _found(self, tensor: gs.Tensor, axis: int) -> bool:
        shape = self.flow.shape(tensor)
        if shape is None:
            return False
        if shape[axis] == 1:
            return True
        node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
        rule = _RULES.get(node.op) if node is not None and node.is_onnx else None
        return node is not None and rule is not None and rule(node, axis, len(shape), self)

    def of_operand(self, node: Node, index: int, axis: int, rank: int) -> bool:
        """The same question about an operand that is broadcast to `rank` axes."""
        shape = self.flow.shape(node.inputs[index])
        return shape is not None and self.along(node.inputs[index], axis - rank + len(shape))


_Rule = Callable[[Node, int, int, Repeats], bool]
"""Whether the output of a node, with so many axes, is the same along an axis."""


def _elementwise(node: Node, axis: int, rank: int, repeats: Repeats) -> bool:
    operands = [index for index, tensor in enumerate(node.inputs) if tensor.name]
    return all(repeats.of_operand(node, index, axis, rank) for index in operands)


def _same(node: Node, axis: int, rank: int, repeats: Repeats) -> bool:
    return repeats.along(node.inputs[0], axis)


def _expand(node: Node, axis: int, rank: int, repeats: Repeats) -> bool:
    return repeats.of_operand(node, 0, axis, rank)


def _everywhere(node: Node, axis: int, rank: int, repeats: Repeats) -> bool:
    return True


def _transpose(node: Node, axis: int, rank: int, repeats: Repeats) -> bool:
    perm = node.attrs.get("perm") or list(reversed(range(rank)))
    return repeats.along(node.inputs[0], int(perm[axis]))


def _unsqueeze(node: Node, axis: int, rank: int, repeats: Repeats) -> bool:
    axes = axes_of(node, repeats.flow.opset)
    added = None if axes is None else normalized(axes, rank)
    if added is None:
        return False
    return repeats.along(node.inputs[0], axis - sum(place < axis for place in added))


def _gather(node: Node, axis: int, rank: int, repeats: Repeats) -> bool:
    """Another axis than the one that a scalar index takes away."""
    index = const_array(node.inputs[1])
    if index is None or index.ndim:
        return False
    picked = int(node.attrs.get("axis", 0)) % (rank + 1)
    return repeats.along(node.inputs[0], axis + (axis >= picked))


_RULES: Final[Mapping[str, _Rule]] = {
    **dict.fromkeys(UNARY, _same),
    **dict.fromkeys(BROADCAST, _elementwise),
    "ConstantOfShape": _everywhere,
    "Expand": _expand,
    "Gather": _gather,
    "Tile": _same,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}

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


def is_repeated(tensor: gs.Tensor, axis: int, flow: SizeFlow) -> bool:
    """Whether a tensor certainly holds the same values all along `axis`, counted from the front."""
    shape = flow.shape(tensor)
    if axis < 0 or (shape is not None and shape[axis] == 1):
        return True
    node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    rule = _RULES.get(node.op) if node is not None and node.is_onnx else None
    if node is None or rule is None or shape is None:
        return False
    return rule(node, axis, flow)


def _of_operand(node: Node, index: int, axis: int, rank: int, flow: SizeFlow) -> bool:
    """The same question about an operand that is broadcast to `rank` axes."""
    shape = flow.shape(node.inputs[index])
    return shape is not None and is_repeated(node.inputs[index], axis - rank + len(shape), flow)


def _elementwise(node: Node, axis: int, flow: SizeFlow) -> bool:
    rank = len(flow.shape(node.outputs[0]) or ())
    return all(
        _of_operand(node, index, axis, rank, flow)
        for index, tensor in enumerate(node.inputs)
        if tensor.name
    )


def _expand(node: Node, axis: int, flow: SizeFlow) -> bool:
    return _of_operand(node, 0, axis, len(flow.shape(node.outputs[0]) or ()), flow)


def _same(node: Node, axis: int, flow: SizeFlow) -> bool:
    return is_repeated(node.inputs[0], axis, flow)


def _tile(node: Node, axis: int, flow: SizeFlow) -> bool:
    shape = flow.shape(node.inputs[0])
    return shape is not None and axis < len(shape) and is_repeated(node.inputs[0], axis, flow)


def _transpose(node: Node, axis: int, flow: SizeFlow) -> bool:
    rank = len(flow.shape(node.outputs[0]) or ())
    perm = node.attrs.get("perm") or list(reversed(range(rank)))
    return is_repeated(node.inputs[0], int(perm[axis]), flow)


def _unsqueeze(node: Node, axis: int, flow: SizeFlow) -> bool:
    added = _normalized_axes(node, len(flow.shape(node.outputs[0]) or ()), flow)
    if added is None or axis in added:
        return added is not None
    return is_repeated(node.inputs[0], axis - sum(place < axis for place in added), flow)


def _normalized_axes(node: Node, rank: int, flow: SizeFlow) -> tuple[int, ...] | None:
    axes = axes_of(node, flow.opset)
    return None if axes is None else normalized(axes, rank)


def _gather(node: Node, axis: int, flow: SizeFlow) -> bool:
    """Other axes than that along which positions are picked; a scalar index takes that away."""
    picked, index = int(node.attrs.get("axis", 0)), const_array(node.inputs[1])
    rank = len(flow.shape(node.inputs[0]) or ())
    if not rank or index is None or index.ndim:
        return False
    return is_repeated(node.inputs[0], axis + (axis >= picked % rank), flow)


_RULES: Final[Mapping[str, Callable[[Node, int, SizeFlow], bool]]] = {
    **dict.fromkeys(UNARY, _same),
    **dict.fromkeys(BROADCAST, _elementwise),
    "ConstantOfShape": lambda _node, _axis, _flow: True,
    "Expand": _expand,
    "Gather": _gather,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}

"""Tensors that hold nothing but zeros, whatever the inputs are."""

from __future__ import annotations

from typing import Final

import onnx_graphsurgeon as gs

from onnxslim.graph.ir import Constant
from onnxslim.graph.operands import const_value, is_filled_with

_MOVING: Final = frozenset(
    {"Cast", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile"}
    | {"Transpose", "Unsqueeze"}
)


def is_zero(tensor: gs.Tensor) -> bool:
    """Whether every element of `tensor` is +0, as far as constants and data movement show."""
    stack, seen = [tensor], set[gs.Tensor]()
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        if const_value(current) is not None:
            if not is_filled_with(current, 0):
                return False
            continue
        node = current.inputs[0] if len(current.inputs) == 1 else None
        if node is None or not node.is_onnx:
            return False
        if node.op == "ConstantOfShape":
            fill = node.attrs.get("value")
            if isinstance(fill, Constant) and not is_filled_with(fill, 0):
                return False
        elif node.op in _MOVING:
            stack.append(node.inputs[0])
        elif node.op == "Concat":
            stack += node.inputs
        else:
            return False
    return True

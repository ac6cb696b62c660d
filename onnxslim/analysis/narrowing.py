"""What changes where a tensor that repeats values is replaced by the one that it repeats.

Operators that broadcast repeat values by themselves. So an Expand is not needed where everything
behind it is elementwise, or is a product whose batch axes it expanded, until the other operands
bring the size: what lies between works on fewer elements.

    mask (N, 1, 1, L) -> Expand -> (N, 1, L, L) -> Cast, Sub, Where -> Add to scores (N, H, L, L)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.shape_rules import shapes_of
from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.analysis.permuting import ELEMENTWISE
from onnxslim.graph.ir import Node
from onnxslim.graph.rewrite import Rewriter
from onnxslim.graph.sizes import Shape, Value

_BROADCASTING: Final = (ELEMENTWISE | {"IsInf", "IsNaN"}) - {"PRelu"}
_RESHAPING: Final = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_LONGEST: Final = 64  # tensors that get smaller


def narrowed(
    rw: Rewriter, flow: SizeFlow, wide: gs.Tensor, narrow: Shape
) -> dict[gs.Tensor, Shape] | None:
    """The tensors that get smaller, and their new shapes, when `wide` is one of shape `narrow`.

    None where an operator would fail or return something else, or a graph would. `wide` itself is
    one of them.
    """
    shapes, stack = {wide: narrow}, [wide]
    if rw.opset < 7:  # broadcasting was another then
        return None
    while stack:
        tensor = stack.pop()
        if rw.is_output(tensor) or len(shapes) > _LONGEST:
            return None
        for user in dict.fromkeys(tensor.outputs):
            shape = _narrowed_shape(user, _Narrower(flow, shapes))
            if shape is None or flow.shape(user.outputs[0]) is None:
                return None
            result = user.outputs[0]
            if shape != shapes.get(result, flow.shape(result)):
                shapes[result] = shape
                stack.append(result)
    return shapes


class _Narrower:
    """The sizes of a flow, with other shapes for some tensors."""

    def __init__(self, flow: SizeFlow, shapes: Mapping[gs.Tensor, Shape]) -> None:
        self.opset = flow.opset
        self.flow = flow
        self.shapes = shapes

    def shape(self, tensor: gs.Tensor) -> Shape | None:
        return self.shapes[tensor] if tensor in self.shapes else self.flow.shape(tensor)

    def value(self, tensor: gs.Tensor) -> Value | None:
        return self.flow.value(tensor)

    def ints(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        return self.flow.ints(tensor)


def _narrowed_shape(user: Node, sizes: _Narrower) -> Shape | None:
    """The shape that `user` returns for the smaller tensors; None where it is not to read them."""
    if not user.is_onnx or len(user.outputs) != 1:
        return None
    if not (
        user.op in _BROADCASTING
        or (user.op == "MatMul" and _keeps_matrices(user, sizes))
        or (user.op in _RESHAPING and _is_one_element(user, sizes))
    ):
        return None
    try:
        found = next(shapes_of(user, sizes))
    except (IndexError, ValueError):
        return None  # a smaller tensor lacks an axis that the operator names
    known = tuple(size for size in found or () if size is not None)
    if found is None or len(known) != len(found):
        return None
    if user.op in _RESHAPING and any(size != 1 for size in known):
        return None
    return known


def _keeps_matrices(product: Node, sizes: _Narrower) -> bool:
    """Whether only batch axes of the operands are narrower than they were."""
    for tensor in product.inputs:
        if tensor not in sizes.shapes:
            continue
        before, after = sizes.flow.shape(tensor), sizes.shapes[tensor]
        if before is None or len(after) < 2 or before[-2:] != after[-2:]:
            return False
    return True


def _is_one_element(node: Node, sizes: _Narrower) -> bool:
    """Whether the operator only regroups the axes of a single element."""
    shape = sizes.shape(node.inputs[0])
    is_operand = any(tensor in sizes.shapes for tensor in node.inputs[1:])
    if shape is None or is_operand or any(size != 1 for size in shape):
        return False
    if node.op != "Reshape":
        return True
    target = sizes.ints(node.inputs[1])  # a 0 names an axis, which a smaller tensor may lack
    return target is not None and 0 not in target

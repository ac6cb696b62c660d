"""Compute before run time what the graph computes from shapes.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[N, 4, 6] x) => (float[N, 24] y) {
        zero = Constant <value = int64 {0}> ()
        axes = Constant <value = int64[1] {0}> ()
        rest = Constant <value = int64[1] {24}> ()
        shape = Shape (x)
        n = Gather (shape, zero)
        n1 = Unsqueeze (n, axes)
        target = Concat <axis = 0> (n1, rest)
        y = Reshape (x, target)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[N, 4, 6] x) => (float[N, 24] y) <int64[2] target = {0, 24}> {
        y = Reshape (x, target)
    }
    ```
    In the same way:
    - an integer tensor whose elements are all known becomes a constant;
    - of two integer tensors that are equal element by element, the second is removed;
    - the target of an Expand gets a 1 for each dimension that stays, and an Expand in front of
      operators that broadcast is removed, so that those between work on fewer elements;
    - a ConstantOfShape in front of operators that broadcast becomes one element;
    - Slice to the end of an axis and Resize by a power of two get constant operands;
    - a Reshape, Slice, Expand or Tile that provably changes nothing is removed;
    - arithmetic on a ConstantOfShape is done on its value;
    - Gather or Slice of neighbouring elements of a Shape becomes one Shape (opset 15).

Why it is correct:
    `flow.SizeFlow` follows sizes as integers and symbols; two sizes are equal for every input when
    they are the same expression. 0 and -1 in the target of a Reshape mean what the spec says.

Declines when:
    1. More than one dimension of a target is unknown: one -1 cannot stand for two.
    2. The target has a literal 0 that means an empty dimension (`allowzero`).
    3. The constant would have more than 16 elements: `fold-constants`, which weighs bytes, decides.
    4. A size passes through a float: rounding above 2**24 is part of what the model computes.

    An axis may still be empty at run time where a 0 copies its size, or where it is the only
    unknown one.

Fidelity:
    EXACT.

Reference:
    The ONNX operator specification.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.flow import value_rules
from onnxslim.analysis.flow.shape_rules import (
    covers,
    max_elements,
    shape_range,
    slice_ranges,
)
from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.analysis.narrowing import narrowed
from onnxslim.analysis.reshaping import expand_target, reshape_target
from onnxslim.graph.ir import Constant, Node
from onnxslim.graph.operands import axes_of, const_array, const_value, is_present
from onnxslim.graph.rewrite import Rewriter
from onnxslim.graph.sizes import Size, divide
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult

_MAX_ELEMENTS: Final = 16
_TO_THE_END: Final = np.iinfo(np.int64).max
_SIZE_TYPES: Final = (np.dtype(np.int64), np.dtype(np.int32), np.dtype(bool))


@dataclass(frozen=True)
class FoldShapes(RewritePass):
    """Compute before run time what the graph computes from shapes."""

    name: ClassVar[str] = "fold-shapes"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Fold values, then make shape operands static."""
        rw = self.rewriter(graph)
        folder = _ShapeFolder(rw, SizeFlow(graph, rw.opset))
        for node in rw.walk(*_HANDLED):
            if node.op in value_rules.RULES and folder.fold_value(node):
                continue
            rule = _RULES.get(node.op)
            if rule is not None:
                rule(folder, node)
        return rw.result()


class _ShapeFolder:
    def __init__(self, rw: Rewriter, flow: SizeFlow) -> None:
        self.rw = rw
        self.flow = flow
        self.place = {
            node: index for graph in rw.graphs() for index, node in enumerate(graph.nodes)
        }
        self.known: dict[tuple[object, ...], Node] = {}

    # ------------------------------------------------------------- whole values

    def fold_value(self, node: Node) -> bool:
        """Replace a node by its value, or by an earlier node of the same value."""
        output = node.outputs[0]
        if output.dtype is None or np.dtype(output.dtype) not in _SIZE_TYPES:
            return False
        value = self.flow.value(output)
        if value is None or None in value.items:
            return False
        if value.ints is None:
            return self._share(node, (value, np.dtype(output.dtype)))
        if len(value.items) > _MAX_ELEMENTS:
            return False  # declines 3
        array = np.array(value.ints, output.dtype).reshape(value.shape)
        constant = self.rw.constant(array, "sizes")
        return self.rw.substitute(node, constant, f"{node.op} of known sizes became a constant")

    def _share(self, node: Node, value: tuple[object, ...]) -> bool:
        """Replace `node` with an earlier node of the same symbolic value."""
        key = (self.rw.graph_of(node), *value)
        other = self.known.get(key)
        if other is node or node not in self.place:
            return False
        if other is None or not self.rw.is_alive(other) or self.place[other] > self.place[node]:
            self.known[key] = node
            return False
        if not self.rw.can_substitute(node, other.outputs[0]):
            return False
        what = f"{node.op} gives the sizes that `{other.label}` holds already"
        return self.rw.substitute(node, other.outputs[0], what)

    # ------------------------------------------------------------- shape operands

    def fix_reshape(self, node: Node) -> None:
        """Drop a Reshape that changes nothing; else make its target constant."""
        if not is_present(node, 1):
            return
        data, target = node.inputs[:2]
        before, after = self.flow.shape(data), self.flow.shape(node.outputs[0])
        if after is None or (before == after and self._bypass(node)):
            return
        if const_value(target) is not None or self._has_literal_zero(node):
            return
        static = reshape_target(before, after)
        if static is None:
            self.rw.skip(node, "more than one dimension of its target is unknown")  # declines 1
            return
        self._set_operand(node, 1, static, "target", attrs={})

    def _has_literal_zero(self, node: Node) -> bool:
        value = self.flow.value(node.inputs[1])
        empty = node.attrs.get("allowzero", 0) and (value is None or 0 in value.items)
        if empty:
            self.rw.skip(node, "its target may hold a 0 that means an empty axis")  # declines 2
        return bool(empty)

    def fix_expand(self, node: Node) -> None:
        """Drop an Expand whose users broadcast by themselves; else make its target constant."""
        data, target = node.inputs[:2]
        before, wanted = self.flow.shape(data), self.flow.value(target)
        after = self.flow.shape(node.outputs[0])
        if before is None or (after == before and self._bypass(node)):
            return
        if self._broadcast_by_users(node, data):
            return
        if wanted is None or const_value(target) is not None:
            return
        static = expand_target(before, wanted.items)
        if static:
            self._set_operand(node, 1, static, "target")

    def _broadcast_by_users(self, node: Node, data: gs.Tensor) -> bool:
        """Let the users of `node`, which repeats `data`, repeat it, or work on less."""
        shape, wide = self.flow.shape(data), node.outputs[0]
        if shape is None or not wide.outputs:
            return False
        narrower = narrowed(self.rw, self.flow, wide, shape)
        if narrower is None:
            return False
        what = f"operators behind it broadcast as this {node.op} did"
        if not self.rw.substitute(node, data, what):
            return False
        for tensor in narrower:
            if tensor is not wide:
                tensor.shape = tensor.info = None
                self.flow.forget(tensor)
        return True

    def drop_fill(self, node: Node) -> None:
        """Replace a tensor of equal elements by one of them where its users broadcast."""
        fill = _fill_value(node)
        self._broadcast_by_users(node, self.rw.constant(fill.reshape(()), "fill"))

    def fix_slice(self, node: Node) -> None:
        """Drop a Slice that takes everything; make ends constant that lie behind all elements."""
        if self.shorten_shape(node):
            return
        shape, ranges = self.flow.shape(node.inputs[0]), slice_ranges(node, self.flow)
        if shape is None or ranges is None:
            return
        forward = all(step > 0 for _, _, step in ranges.values())
        if forward and shape == self.flow.shape(node.outputs[0]) and self._bypass(node):
            return
        if self.rw.opset < 10 or all(const_value(t) is not None for t in node.inputs[1:3]):
            return
        bounds = []
        for axis, (start, end, step) in ranges.items():
            most = max_elements(node.inputs[0].dtype, shape, axis)
            if step > 0 and not isinstance(end, int) and covers(end, shape[axis], most):
                end = int(_TO_THE_END)
            if not isinstance(start, int) or not isinstance(end, int):
                return
            bounds.append((axis, start, end, step))
        axes, starts, ends, steps = (np.array(c, np.int64) for c in zip(*bounds, strict=True))
        names = ("starts", "ends", "axes", "steps")
        columns = zip(names, (starts, ends, axes, steps), strict=True)
        operands = [self.rw.constant(column, name) for name, column in columns]
        self.rw.update(node, "its bounds became constants", inputs=[node.inputs[0], *operands])

    def drop_tile(self, node: Node) -> None:
        """Drop a Tile that repeats nothing."""
        shape = self.flow.shape(node.inputs[0])
        if shape is not None and shape == self.flow.shape(node.outputs[0]):
            repeats = self.flow.ints(node.inputs[1])
            if repeats is not None and set(repeats) <= {1}:
                self._bypass(node)

    def fix_resize(self, node: Node) -> None:
        """Write sizes that are the input's times powers of two as scales, which are exact."""
        shape = self.flow.shape(node.inputs[0])
        if shape is None or not is_present(node, 3) or const_value(node.inputs[3]) is not None:
            return
        sizes = self.flow.value(node.inputs[3])
        stretch = node.attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch"
        if sizes is None or len(sizes.items) != len(shape) or "axes" in node.attrs or not stretch:
            return
        factors = [_power_of_two(*pair) for pair in zip(sizes.items, shape, strict=True)]
        if None in factors:
            return
        scales = self.rw.constant(np.array(factors, np.float32), "scales")
        self.rw.update(node, "sizes are a known multiple", inputs=[*node.inputs[:2], scales])

    # ------------------------------------------------------------- small rewrites

    def fill_with_result(self, node: Node) -> None:
        """Replace arithmetic on a ConstantOfShape with a ConstantOfShape of the result."""
        for index, tensor in enumerate(node.inputs[:2]):
            filled = self.rw.private_producer(tensor, "ConstantOfShape")
            other = node.inputs[1 - index]
            operand = const_value(other)
            if filled is None or operand is None or operand.size != 1:
                continue
            shape = self.flow.shape(tensor)
            if shape is None or len(shape) < len(operand.shape):
                continue
            result = _combined(node, _fill_value(filled), const_array(other), first=index == 0)
            if result is None:
                continue
            self.rw.update(
                node,
                "arithmetic on a ConstantOfShape became its value",
                op="ConstantOfShape",
                inputs=[filled.inputs[0]],
                attrs={"value": Constant("", result)},
            )
            return

    def absorb_unsqueeze(self, node: Node) -> None:
        """Replace ``Unsqueeze(Gather(x, i))`` with ``Gather(x, [i])``."""
        gather = self.rw.private_producer(node.inputs[0], "Gather")
        if gather is None:
            return
        index, axis = const_array(gather.inputs[1]), int(gather.attrs.get("axis", 0))
        if index is None or index.shape != () or axis < 0:
            return
        if axes_of(node, self.rw.opset) != (axis,):
            return
        indices = self.rw.constant(np.array([index], index.dtype), "index")
        self.rw.update(
            node,
            "Gather of one element keeps its axis",
            op="Gather",
            inputs=[gather.inputs[0], indices],
            attrs={"axis": axis},
        )

    def shorten_shape(self, node: Node) -> bool:
        """Replace Gather or Slice of neighbouring elements of a Shape with Shape<start, end>."""
        shape = self.rw.private_producer(node.inputs[0], "Shape")
        sizes = None if shape is None else self.flow.shape(shape.inputs[0])
        if self.rw.opset < 15 or shape is None or sizes is None:
            return False
        axes = self._selected_axes(node, range(len(sizes))[shape_range(shape)])
        if not axes or list(axes) != list(range(axes[0], axes[-1] + 1)):
            return False
        attrs = {"start": axes[0], "end": axes[-1] + 1}
        self.rw.update(node, "part of a Shape", op="Shape", inputs=[shape.inputs[0]], attrs=attrs)
        return True

    def _selected_axes(self, node: Node, axes: range) -> list[int] | None:
        """The axes whose sizes `node` selects, as a list for a vector, None for anything else."""
        if node.op == "Gather":
            indices = const_array(node.inputs[1])
            if indices is None or indices.ndim != 1:
                return None
            return [axes[int(i)] for i in indices if -len(axes) <= i < len(axes)]
        ranges = slice_ranges(node, self.flow)
        start, end, step = (ranges or {}).get(0, (0, 0, 0))
        if not isinstance(start, int) or not isinstance(end, int) or step != 1:
            return None
        return list(axes[slice(start, end)])

    # ------------------------------------------------------------- helpers

    def _bypass(self, node: Node) -> bool:
        return self.rw.substitute(node, node.inputs[0], f"{node.op} provably changes nothing")

    def _set_operand(
        self,
        node: Node,
        index: int,
        values: tuple[int, ...],
        name: str,
        attrs: dict[str, int] | None = None,
    ) -> None:
        constant = self.rw.constant(np.array(values, np.int64), name)
        inputs = [*node.inputs[:index], constant, *node.inputs[index + 1 :]]
        what = f"the {name} of this {node.op} is {list(values)}"
        self.rw.update(node, what, inputs=inputs, attrs=attrs)


def _power_of_two(size: Size | None, given: Size) -> int | None:
    if size is None:
        return None
    factor = 1 if size == given else divide(size, given)
    if isinstance(factor, int) and factor > 0 and factor & (factor - 1) == 0:
        return factor
    return None


def _fill_value(node: Node) -> np.ndarray:
    value = node.attrs.get("value")
    return value.values if isinstance(value, Constant) else np.zeros(1, np.float32)


def _combined(
    node: Node, fill: np.ndarray, operand: np.ndarray | None, *, first: bool
) -> np.ndarray | None:
    """The result of `node` for one element, in IEEE arithmetic as at run time."""
    if operand is None or fill.dtype != operand.dtype or fill.dtype.kind != "f":
        return None
    pair = (fill.reshape(1), operand.reshape(1))
    left, right = pair if first else pair[::-1]
    with np.errstate(all="ignore"):
        return np.asarray(_ARITHMETIC[node.op](left, right), fill.dtype)


_ARITHMETIC: Final[dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
}
_RULES: Final[dict[str, Callable[[_ShapeFolder, Node], object]]] = {
    "Reshape": _ShapeFolder.fix_reshape,
    "Expand": _ShapeFolder.fix_expand,
    "ConstantOfShape": _ShapeFolder.drop_fill,
    "Slice": _ShapeFolder.fix_slice,
    "Tile": _ShapeFolder.drop_tile,
    "Resize": _ShapeFolder.fix_resize,
    "Unsqueeze": _ShapeFolder.absorb_unsqueeze,
    "Gather": _ShapeFolder.shorten_shape,
    **dict.fromkeys(_ARITHMETIC, _ShapeFolder.fill_with_result),
}
_HANDLED: Final = tuple(dict.fromkeys((*_RULES, *value_rules.RULES)))

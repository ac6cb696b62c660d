"""Symbolic sizes through a graph: the shape of every tensor, the value of every small integer one.

ONNX's own shape inference gives a fresh name to nearly every dimension that an operator computes.
`SizeFlow` goes further where it matters for shape arithmetic: two branches that do the same to the
same size get the same symbol, and the values of integer tensors (`Shape`, `Gather`, `Concat`, ...)
are followed element by element.

Its answers hold for every run of the model that does not fail. It trusts the names of the main
graph's input dimensions (equal names are equal sizes), and no declaration of interior tensors. It
assumes that a size fits the integer type that the model casts it to.

The flow is computed on demand, each node once, without recursion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.flow import shape_rules, value_rules
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_value
from onnxslim.graph.sizes import Shape, Size, Sum, Value, is_name

MAX_ELEMENTS: Final = 64  # of an integer tensor whose value is followed; shapes are far smaller


class SizeFlow:
    """Shapes and values of the tensors of one model; results stay true while a pass edits it."""

    def __init__(self, graph: gs.Graph, opset: int) -> None:
        self.opset = opset
        self._inputs = {id(tensor) for tensor in graph.inputs}
        self._shapes: dict[gs.Tensor, Shape | None] = {}
        self._values: dict[gs.Tensor, Value | None] = {}
        self._done: set[Node] = set()
        self._numbers: dict[gs.Tensor, int] = {}

    def shape(self, tensor: gs.Tensor) -> Shape | None:
        """One size per axis; None when not even the rank is known."""
        if tensor not in self._shapes:
            self._shapes[tensor] = self._find_shape(tensor)
        return self._shapes[tensor]

    def value(self, tensor: gs.Tensor) -> Value | None:
        """The elements of a small integer or boolean tensor, None for all others."""
        if tensor not in self._values:
            self._values[tensor] = self._find_value(tensor)
        return self._values[tensor]

    def ints(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """The elements of `tensor` if every one is a known integer."""
        value = self.value(tensor)
        return None if value is None else value.ints

    def forget(self, tensor: gs.Tensor) -> None:
        """Look at a tensor anew, whose shape an edit has changed."""
        self._shapes.pop(tensor, None)
        self._values.pop(tensor, None)
        self._done.difference_update(tensor.inputs)

    def symbol(self, tensor: gs.Tensor, axis: int) -> Sum:
        """The symbol for one dimension of `tensor` of which nothing else is known."""
        number = self._numbers.setdefault(tensor, len(self._numbers))
        return Sum.of(f"#{number}.{axis}")

    # ----------------------------------------------------------------- inside

    def _find_shape(self, tensor: gs.Tensor) -> Shape | None:
        given = tensor.shape
        is_known = isinstance(tensor, gs.Constant) or self._is_inferred(tensor)
        if is_known and given is not None and all(isinstance(size, int) for size in given):
            return tuple(int(size) for size in given)
        node = _producer(tensor)
        if node is not None:
            self._visit(node)
            if tensor in self._shapes:
                return self._shapes[tensor]
        return self._inferred(tensor)

    def _inferred(self, tensor: gs.Tensor) -> Shape | None:
        """The shape inferred for `tensor`, with a symbol of its own for each unknown size."""
        if tensor.shape is None or not self._is_inferred(tensor):
            return None
        return tuple(
            size
            if isinstance(size, int)
            else Sum.of(repr(str(size)))
            if is_name(size)
            else self.symbol(tensor, axis)
            for axis, size in enumerate(tensor.shape)
        )

    def _is_inferred(self, tensor: gs.Tensor) -> bool:
        """Whether its shape follows from others: what a body declares of inputs is not believed."""
        return bool(tensor.inputs) or id(tensor) in self._inputs

    def _find_value(self, tensor: gs.Tensor) -> Value | None:
        if const_value(tensor) is not None:
            return _constant(tensor)
        node = _producer(tensor)
        if node is None or not _may_be_followed(tensor):
            return None
        self._visit(node)
        return self._values.get(tensor)

    def _visit(self, last: Node) -> None:
        """Evaluate all nodes that `last` depends on, then `last`."""
        stack: list[tuple[Node, bool]] = [(last, False)]
        while stack:
            node, ready = stack.pop()
            if node in self._done:
                continue
            if ready:
                self._done.add(node)
                self._evaluate(node)
                continue
            stack.append((node, True))
            for tensor in node.inputs:
                producer = _producer(tensor)
                if producer is not None and producer not in self._done and not _settled(tensor):
                    stack.append((producer, False))

    def _evaluate(self, node: Node) -> None:
        if node.op == "Constant":
            return  # its value is read on demand
        try:
            self._apply_rules(node)
        except (IndexError, ValueError):
            return  # the node contradicts its inputs, and onnxruntime could not judge the model

    def _apply_rules(self, node: Node) -> None:
        for tensor, shape in zip(node.outputs, shape_rules.shapes_of(node, self), strict=False):
            self._shapes[tensor] = self._merged(tensor, shape)
        first = node.outputs[0]
        if _may_be_followed(first):
            value = value_rules.value_of(node, self)
            if value is not None and len(value.items) > MAX_ELEMENTS:
                value = None
            self._values[first] = value

    def _merged(self, tensor: gs.Tensor, found: Sequence[Size | None] | None) -> Shape | None:
        given = self._inferred(tensor)
        if found is None or (given is not None and len(found) != len(given)):
            return given
        if given is None:
            given = tuple(self.symbol(tensor, axis) for axis in range(len(found)))
        return tuple(
            theirs if ours is None or isinstance(theirs, int) else ours
            for ours, theirs in zip(found, given, strict=True)
        )


def _producer(tensor: gs.Tensor) -> Node | None:
    return tensor.inputs[0] if len(tensor.inputs) == 1 else None


def _settled(tensor: gs.Tensor) -> bool:
    """Whether producers can add nothing: the shape is static, and there is no value to follow."""
    if tensor.shape is None or not all(isinstance(size, int) for size in tensor.shape):
        return False
    return not _may_be_followed(tensor)


def _may_be_followed(tensor: gs.Tensor) -> bool:
    if tensor.dtype is None:
        return True
    if np.dtype(tensor.dtype) not in _FOLLOWED:
        return False
    shape = tensor.shape
    if shape is None:
        return True
    return len(shape) <= 1 or all(isinstance(size, int) and size <= 8 for size in shape)


_FOLLOWED: Final = frozenset(map(np.dtype, ("int32", "int64", "bool")))


def _constant(tensor: gs.Tensor) -> Value | None:
    stored = const_value(tensor)
    if stored is None or stored.dtype not in _FOLLOWED or stored.size > MAX_ELEMENTS:
        return None
    array = stored if isinstance(stored, np.ndarray) else stored.load()
    return Value(tuple(array.shape), tuple(int(item) for item in array.reshape(-1)))

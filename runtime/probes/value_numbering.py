"""Find tensors of two models that certainly hold equal values, by global value numbering.

Two tensors get the same `ValueNumber` when the same operator with the same attributes computes them
from inputs with the same numbers (Alpern, Wegman and Zadeck 1988). Leaves are graph inputs, known
by name, and constants, known by the identity of their array: copies of a model share arrays, and
nothing writes into one. Names of other tensors do not matter.

Owns: which nodes are repeatable, and what identifies an attribute. Not here: what is done with
equal tensors (see `replay` and `activation_cache`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final
from weakref import WeakValueDictionary, ref

import onnx
import onnx_graphsurgeon as gs

from onnxslim.graph.ir import Constant, Node
from onnxslim.graph.operands import RANDOM_OPS

_UNREPEATABLE: Final = RANDOM_OPS | {"Dropout"}

Signature = tuple[Hashable, ...]


class ValueNumber:
    """Stands for the value of a tensor; equal computations share one object.

    Attributes:
        varies: whether the value depends on an input of the graph.
    """

    __slots__ = ("__weakref__", "_parts", "varies")

    def __init__(self, parts: Hashable, *, varies: bool) -> None:
        self._parts, self.varies = parts, varies  # keeps the operands alive


class _Identity:
    """A hashable stand-in for an object: equal to itself while the object lives, never after.

    A weak reference, because an id can be given again to another object.
    """

    __slots__ = ("_hash", "_item")

    def __init__(self, item: object) -> None:
        self._hash = id(item)
        self._item: Callable[[], object]
        try:
            self._item = ref(item)
        except TypeError:  # this type has no weak references
            self._item = lambda: item

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and (
            other is self or (other._item() is (own := self._item()) and own is not None)
        )

    def __hash__(self) -> int:
        return self._hash


class ValueNumbering:
    """Numbers the values of any number of graphs, so that they can be compared."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[Hashable, ValueNumber] = WeakValueDictionary()

    def value_numbers(self, graph: gs.Graph) -> dict[gs.Tensor, ValueNumber]:
        """The numbers of the inputs of `graph` and of the outputs of its nodes."""
        imports = tuple((entry.domain, entry.version) for entry in graph.import_domains or ())
        found = {
            tensor: self._value(("input", tensor.name, imports, _new_ids(tensor)), varies=True)
            for tensor in graph.inputs
        }
        functions = {(f.domain, f.name): f for f in getattr(graph, "local_functions", ())}
        self._number(graph.nodes, found, functions)
        return found

    def signature(self, graph: gs.Graph) -> Signature:
        """Names and numbers of the outputs of `graph`; equal for graphs that compute the same."""
        values = self.value_numbers(graph)
        return tuple((tensor.name, self._of(tensor, values)) for tensor in graph.outputs)

    # ------------------------------------------------------------------ inside

    def _value(self, parts: Hashable, *, varies: bool) -> ValueNumber:
        value = self._known.get(parts)
        if value is None:
            value = self._known[parts] = ValueNumber(parts, varies=varies)
        return value

    def _of(self, tensor: gs.Tensor, values: dict[gs.Tensor, ValueNumber]) -> ValueNumber:
        if isinstance(tensor, Constant):
            return self._value(("constant", _Identity(tensor.stored)), varies=False)
        known = values.get(tensor)
        if known is not None:
            return known
        if not tensor.name:
            return self._value("absent", varies=False)
        return ValueNumber(None, varies=True)  # unknown: equal to no other

    def _number(
        self,
        nodes: Iterable[Node],
        values: dict[gs.Tensor, ValueNumber],
        functions: dict[tuple[str, str], onnx.FunctionProto],
    ) -> None:
        for node in nodes:
            number = self._node_number(node, values, functions)
            for place, tensor in enumerate(node.outputs):
                values[tensor] = self._value((number, place), varies=number.varies)

    def _node_number(
        self,
        node: Node,
        values: dict[gs.Tensor, ValueNumber],
        functions: dict[tuple[str, str], onnx.FunctionProto],
    ) -> ValueNumber:
        inputs = tuple(self._of(tensor, values) for tensor in node.inputs)
        bodies: list[ValueNumber] = []
        attrs = []
        for name in sorted(node.attrs):
            value = node.attrs[name]
            if isinstance(value, gs.Graph):
                value = self._body(value, values, functions)
                bodies.append(value)
            attrs.append((name, _frozen(value)))
        varies = any(value.varies for value in (*inputs, *bodies))
        function = functions.get((node.domain or "", node.op))
        if not _is_repeatable(node, function):
            return ValueNumber(None, varies=True)
        known = tuple(_Identity(item) for item in (function, node.extra) if item is not None)
        kind = (node.op, node.domain or "", known)
        return self._value((kind, tuple(attrs), inputs), varies=varies)

    def _body(
        self,
        body: gs.Graph,
        values: dict[gs.Tensor, ValueNumber],
        functions: dict[tuple[str, str], onnx.FunctionProto],
    ) -> ValueNumber:
        inner = dict(values)
        for place, tensor in enumerate(body.inputs):
            inner[tensor] = self._value(("formal", _Identity(body), place), varies=True)
        self._number(body.nodes, inner, functions)
        results = tuple(self._of(tensor, inner) for tensor in body.outputs)
        varies = any(value.varies for value in results)
        return self._value(("body", len(body.inputs), results), varies=varies)


def _is_repeatable(node: Node, function: onnx.FunctionProto | None) -> bool:
    """Whether equal inputs certainly give equal outputs.

    Operators of other domains are repeatable only where the model defines them as functions.
    """
    if function is not None:
        inner = {(item.domain, item.op_type) for item in function.node}
        return all(not domain and op not in _UNREPEATABLE for domain, op in inner)
    return node.is_onnx and node.op not in _UNREPEATABLE


def _frozen(value: Any) -> Hashable:
    """An attribute as a hashable value; objects other than plain values count by identity."""
    if isinstance(value, str | bytes | int | float | ValueNumber):
        return value
    if isinstance(value, Constant):
        return _Identity(value.stored)
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return _Identity(value)


def _new_ids(tensor: gs.Tensor) -> _Identity | None:
    """The ids that an input takes in place of those in samples; None: it takes those."""
    renumbered = getattr(tensor, "renumbered", None)
    return None if renumbered is None else _Identity(renumbered)

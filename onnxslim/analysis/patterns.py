"""Patterns of operators, matched against the graph that ends in a tensor.

A pattern is a small expression. `find` yields every way in which it matches, with what its names
stand for:

    Op("Mul", Var("x"), Op("Sigmoid", Var("x")))           x·sigmoid(x), in either order
    Affine("out", Op("Tanh", Affine("in", Var("x"))))       a·tanh(c·x + d) + b, however written
    Clamp("range", Var("x"))                               any run of Clip, Relu, Max, Min
    Poly("p", "x")                                         a polynomial in x, however written

A match can be replaced only if it `is_closed`: nothing outside uses an interior tensor of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import is_float, min_rank, read_affine
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array, const_value, is_present
from onnxslim.graph.rewrite import Rewriter

_COMMUTATIVE: Final = frozenset({"Add", "Mul", "Sum", "Max", "Min"})
_MAX_RUN: Final = 4
_SCALE_OPS: Final = ("Mul", "Div", "Neg")
_SCALAR_OPS: Final = (*_SCALE_OPS, "Add", "Sub", "Sum")
_HIGHEST_DEGREE: Final = 3


class Match(NamedTuple):
    """The tensors, numbers and nodes that a pattern's names are bound to, and the nodes covered.

    Attributes:
        tensors: by the name of a `Var` or `Vector`.
        numbers: by the name of an `Affine` (scale, shift), `Clamp` (low, high), `Poly`
            (coefficients, lowest degree first) or `Number` (its value).
        ops: nodes by the `bind` of an `Op`.
        nodes: all nodes covered, root first.
        dtype: of the first constant met, None when there was none.
        ndim: the highest rank of a `Number`.
    """

    tensors: Mapping[str, gs.Tensor] = MappingProxyType({})
    numbers: Mapping[str, tuple[float, ...]] = MappingProxyType({})
    ops: Mapping[str, Node] = MappingProxyType({})
    nodes: tuple[Node, ...] = ()
    dtype: np.dtype[Any] | None = None
    ndim: int = 0

    def with_tensor(self, name: str, tensor: gs.Tensor) -> Match:
        """This match with a tensor under `name`."""
        return self._replace(tensors={**self.tensors, name: tensor})

    def with_number(self, name: str, values: tuple[float, ...], ndim: int = 0) -> Match:
        """This match with numbers under `name`, from a constant of rank `ndim`."""
        return self._replace(numbers={**self.numbers, name: values}, ndim=max(ndim, self.ndim))

    def with_op(self, name: str, node: Node) -> Match:
        """This match with a node under `name`."""
        return self._replace(ops={**self.ops, name: node})

    def covering(self, *nodes: Node, dtype: Any = None) -> Match:
        """This match with more nodes, each once."""
        fresh = tuple(node for node in nodes if node not in self.nodes)
        return self._replace(nodes=self.nodes + fresh, dtype=self.dtype or dtype)


class Pattern(Protocol):
    """Something that can match a tensor."""

    def find(self, rw: Rewriter, tensor: gs.Tensor, match: Match) -> Iterator[Match]:
        """Every way to continue `match` so that this pattern stands for `tensor`."""

    def heads(self) -> frozenset[str]:
        """Operators a match can end in; empty for a pattern that covers no node."""

    def needs(self) -> frozenset[str]:
        """Operators without which there is no match."""


class _Leaf:
    """A pattern that covers no node: it ends in no operator and needs none."""

    def heads(self) -> frozenset[str]:
        """No operator."""
        return frozenset()

    def needs(self) -> frozenset[str]:
        """No operator."""
        return frozenset()


@dataclass(frozen=True)
class Var(_Leaf):
    """Any computed tensor; the same name is the same tensor everywhere."""

    name: str

    def find(self, rw: Rewriter, tensor: gs.Tensor, match: Match) -> Iterator[Match]:
        """The tensor itself, if the name is free or stands for it."""
        bound = match.tensors.get(self.name)
        if bound is tensor:
            yield match
        elif bound is None and const_value(tensor) is None:
            yield match.with_tensor(self.name, tensor)


@dataclass(frozen=True)
class Vector(_Leaf):
    """A constant of floating point, of any shape."""

    name: str

    def find(self, rw: Rewriter, tensor: gs.Tensor, match: Match) -> Iterator[Match]:
        """The match with the constant bound to `name`."""
        stored = const_value(tensor)
        if stored is not None and is_float(stored.dtype) and self.name not in match.tensors:
            bound = match.with_tensor(self.name, tensor)
            yield bound.covering(dtype=np.dtype(stored.dtype))


@dataclass(frozen=True)
class Number(_Leaf):
    """A constant with one element: any, or one that is nearly `value`."""

    name: str
    value: float | None = None

    def find(self, rw: Rewriter, tensor: gs.Tensor, match: Match) -> Iterator[Match]:
        """The match with the constant's value bound to `name`."""
        scalar = _scalar(tensor)
        if scalar is not None and (self.value is None or nearly(scalar, self.value)):
            found = match.with_number(self.name, (scalar,), len(tensor.shape or ()))
            yield found.covering(dtype=_dtype(tensor))


@dataclass(frozen=True, init=False)
class Op:
    """A node with the given operator and inputs; inputs of Add, Mul, Max, ... in any order."""

    op: str
    args: tuple[Pattern, ...]
    bind: str | None

    def __init__(self, op: str, *args: Pattern, bind: str | None = None) -> None:
        object.__setattr__(self, "op", op)
        object.__setattr__(self, "args", args)
        object.__setattr__(self, "bind", bind)

    def find(self, rw: Rewriter, tensor: gs.Tensor, match: Match) -> Iterator[Match]:
        """Matches of the inputs; inputs beyond those named must be constant (axes)."""
        node = rw.producer(tensor, self.op)
        if node is None or node.outputs[0] is not tensor:
            return
        given = [item for item in node.inputs if item.name]
        rest = given[len(self.args) :]
        if len(given) < len(self.args) or any(const_value(item) is None for item in rest):
            return
        if any(rw.uses(other) for other in node.outputs[1:]):
            return
        start = match.covering(node)
        if self.bind is not None:
            start = start.with_op(self.bind, node)
        if self.op in _COMMUTATIVE and (rest or node.attrs):
            return
        orders = permutations(given) if self.op in _COMMUTATIVE else [tuple(given)]
        for order in orders:
            yield from _find_all(rw, list(zip(self.args, order, strict=False)), start)

    def heads(self) -> frozenset[str]:
        """Its operator."""
        return frozenset({self.op})

    def needs(self) -> frozenset[str]:
        """Its operator and those of its inputs."""
        return frozenset({self.op}).union(*(arg.needs() for arg in self.args))


def _find_all(
    rw: Rewriter, pairs: list[tuple[Pattern, gs.Tensor]], match: Match
) -> Iterator[Match]:
    if not pairs:
        yield match
        return
    pattern, tensor = pairs[0]
    for found in pattern.find(rw, tensor, match):
        yield from _find_all(rw, pairs[1:], found)


@dataclass(frozen=True)
class Result(_Leaf):
    """The tensor that the `Op` with this `bind`, met earlier, computes."""

    bind: str

    def find(self, rw: Rewriter, tensor: gs.Tensor, match: Match) -> Iterator[Match]:
        """The match itself, if `tensor` is that output."""
        if self.bind in match.ops and tensor is match.ops[self.bind].outputs[0]:
            yield match


@dataclass(frozen=True)
class Either:
    """One pattern or another."""

    first: Pattern
    second: Pattern

    def find(self, rw: Rewriter, tensor: gs.Tensor, match: Match) -> Iterator[Match]:
        """Matches of the first, then of the second."""
        yield from self.first.find(rw, tensor, match)
        yield from self.second.find(rw, tensor, match)

    def heads(self) -> frozenset[str]:
        """The heads of both patterns."""
        return self.first.heads() | self.second.heads()

    def needs(self) -> frozenset[str]:
        """The operators that both patterns need."""
        return self.first.needs() & self.second.needs()


Pair = tuple[float, float]
Step = tuple[gs.Tensor, Pair, Any]
"""A node seen as a function of one tensor: that tensor, two numbers, the type of its constants."""


@dataclass(frozen=True)
class _UnaryRun:
    """A run, maybe empty, of nodes with one computed input each; longer runs match first."""

    name: str
    inner: Pattern

    def find(self, rw: Rewriter, tensor: gs.Tensor, match: Match) -> Iterator[Match]:
        """Matches of `inner` behind every run that ends in `tensor`."""
        heads = self.inner.heads()
        nodes = self._peek(rw, tensor, heads)
        if nodes is None:
            return
        # for each length of the run: the tensor above it, its numbers, the match that covers it
        levels: list[tuple[gs.Tensor, Pair, Match]] = [(tensor, self._neutral(), match)]
        for node in nodes:
            step = self._read(rw, node)
            if step is None:
                break
            tensor, pair, dtype = step
            match = match.covering(node, dtype=dtype)
            levels.append((tensor, self._compose(pair, levels[-1][1]), match))
        for source, numbers, covered in reversed(levels[self._shortest() :]):
            if not heads or rw.producer(source, *heads) is not None:
                yield from self.inner.find(rw, source, covered.with_number(self.name, numbers))

    def _peek(self, rw: Rewriter, tensor: gs.Tensor, heads: frozenset[str]) -> list[Node] | None:
        """Nodes that may be the run, last first; None when `inner` is not behind any of them.

        This looks at operators only, since reading numbers takes most of the time.
        """
        nodes: list[Node] = []
        found = not heads
        for _ in range(_MAX_RUN + 1):
            node = rw.producer(tensor)
            found = found or (node is not None and node.op in heads)
            if node is None or node.op not in self._ops():
                break
            computed = [item for item in node.inputs if item.name and const_value(item) is None]
            if len(computed) != 1:
                break
            nodes.append(node)
            tensor = computed[0]
        return nodes[:_MAX_RUN] if found else None

    def heads(self) -> frozenset[str]:
        """The operators of the run and, when it may be empty, those that `inner` ends in."""
        own = frozenset(self._ops())
        return own if self._shortest() else own | self.inner.heads()

    def needs(self) -> frozenset[str]:
        """The operators that `inner` needs."""
        return self.inner.needs()

    def _shortest(self) -> int:
        return 0

    def _ops(self) -> tuple[str, ...]:
        raise NotImplementedError

    def _neutral(self) -> Pair:
        raise NotImplementedError

    def _read(self, rw: Rewriter, node: Node) -> Step | None:
        raise NotImplementedError

    def _compose(self, first: Pair, then: Pair) -> Pair:
        raise NotImplementedError


class Affine(_UnaryRun):
    """scale·inner + shift, by a run of scalar Mul, Add, Sub, Div, Neg; numbers (scale, shift)."""

    def _ops(self) -> tuple[str, ...]:
        return _SCALAR_OPS

    def _neutral(self) -> Pair:
        return 1.0, 0.0

    def _read(self, rw: Rewriter, node: Node) -> Step | None:
        read = read_affine(node, rw.opset)
        if read is None or read[1].axis is not None or not is_float(read[1].dtype):
            return None
        source, mapping = read
        if min_rank(source) < mapping.ndim:
            return None
        return source, (float(mapping.scale), float(mapping.shift)), mapping.dtype

    def _compose(self, first: Pair, then: Pair) -> Pair:
        return then[0] * first[0], then[0] * first[1] + then[1]


class Scaled(Affine):
    """scale·inner, by a run of scalar Mul, Div, Neg; numbers (scale, 0)."""

    def _ops(self) -> tuple[str, ...]:
        return _SCALE_OPS


class Clamp(_UnaryRun):
    """inner cut to a range by one or more of Clip, Relu, Max, Min; numbers (low, high)."""

    def _shortest(self) -> int:
        return 1

    def _ops(self) -> tuple[str, ...]:
        return CLAMP_OPS

    def _neutral(self) -> Pair:
        return -np.inf, np.inf

    def _read(self, rw: Rewriter, node: Node) -> Step | None:
        return _read_clamp(node, rw.opset)

    def _compose(self, first: Pair, then: Pair) -> Pair:
        low, high = (min(max(bound, then[0]), then[1]) for bound in first)
        return low, high


CLAMP_OPS: Final = ("Clip", "Relu", "Max", "Min")


def _read_clamp(node: Node, opset: int) -> Step | None:
    if node.op == "Relu":
        return node.inputs[0], (0.0, np.inf), None
    if node.op == "Clip":
        bounds = _clip_bounds(node, opset)
        return None if bounds is None else (node.inputs[0], bounds[:2], bounds[2])
    if len(node.inputs) != 2:
        return None
    for index in (1, 0):
        bound, data = _scalar(node.inputs[index]), node.inputs[1 - index]
        if bound is None or const_value(data) is not None:
            continue
        if not is_float(_dtype(node.inputs[index])):
            return None
        if min_rank(data) < len(node.inputs[index].shape or ()):
            return None
        pair = (bound, np.inf) if node.op == "Max" else (-np.inf, bound)
        return data, pair, _dtype(node.inputs[index])
    return None


def _clip_bounds(node: Node, opset: int) -> tuple[float, float, Any] | None:
    if opset < 11:
        low, high = node.attrs.get("min", -np.inf), node.attrs.get("max", np.inf)
        return float(low), float(high), None
    bounds, dtype = [-np.inf, np.inf], None
    for index in (1, 2):
        if not is_present(node, index):
            continue
        bound = _scalar(node.inputs[index])
        dtype = _dtype(node.inputs[index])
        if bound is None or not is_float(dtype):
            return None
        bounds[index - 1] = bound
    return bounds[0], bounds[1], dtype


@dataclass(frozen=True)
class Poly:
    """A polynomial in the tensor bound to `var` before; numbers: coefficients."""

    name: str
    var: str

    def find(self, rw: Rewriter, tensor: gs.Tensor, match: Match) -> Iterator[Match]:
        """One match, if `tensor` is a polynomial of degree 1 to 3."""
        nodes: list[Node] = []
        found = _polynomial(rw, tensor, match.tensors[self.var], nodes)
        if found is not None and 1 < len(found) <= _HIGHEST_DEGREE + 1:
            yield match.with_number(self.name, tuple(found)).covering(*nodes)

    def heads(self) -> frozenset[str]:
        """The operators of polynomials."""
        return frozenset(_POLYNOMIALS)

    def needs(self) -> frozenset[str]:
        """No operator for certain."""
        return frozenset()


def _polynomial(
    rw: Rewriter, tensor: gs.Tensor, x: gs.Tensor, nodes: list[Node]
) -> np.ndarray | None:
    """Coefficients of `tensor` as a polynomial in `x`; its nodes are appended to `nodes`."""
    if tensor is x:
        return np.array([0.0, 1.0])
    scalar = _scalar(tensor)
    if scalar is not None:
        return np.array([scalar]) if len(tensor.shape or ()) <= min_rank(x) else None
    node = rw.producer(tensor, *_POLYNOMIALS)
    if node is None or len(node.inputs) > 2 or len(nodes) > 4 * _HIGHEST_DEGREE:
        return None
    nodes.append(node)
    parts = [_polynomial(rw, item, x, nodes) for item in node.inputs]
    known = [part for part in parts if part is not None]
    if len(known) != len(parts):
        return None
    result = _POLYNOMIALS[node.op](known)
    return None if result is None or len(result) > _HIGHEST_DEGREE + 1 else result


def _power(parts: list[np.ndarray]) -> np.ndarray | None:
    base, exponent = parts
    if len(exponent) != 1 or exponent[0] not in (1, 2, 3):
        return None
    result = base
    for _ in range(int(exponent[0]) - 1):
        result = np.convolve(result, base)
    return result


def _quotient(parts: list[np.ndarray]) -> np.ndarray | None:
    if len(parts[1]) != 1 or not parts[1][0]:
        return None
    result: np.ndarray = parts[0] / parts[1][0]
    return result


def _total(parts: list[np.ndarray]) -> np.ndarray:
    total = np.zeros(max(len(part) for part in parts))
    for part in parts:
        total[: len(part)] += part
    return total


_POLYNOMIALS: Final[dict[str, Callable[[list[np.ndarray]], np.ndarray | None]]] = {
    "Add": _total,
    "Sub": lambda parts: _total([parts[0], -parts[1]]),
    "Mul": lambda parts: np.convolve(parts[0], parts[1]),
    "Div": _quotient,
    "Neg": lambda parts: -parts[0],
    "Pow": _power,
}


def is_closed(rw: Rewriter, match: Match) -> bool:
    """Whether only nodes of the match use the outputs of its nodes other than the root."""
    root, *interior = match.nodes
    home = rw.graph_of(root)
    inside = set(match.nodes)
    if any(tensor.inputs and tensor.inputs[0] in inside for tensor in match.tensors.values()):
        return False
    return all(
        rw.graph_of(node) is home
        and not any(rw.is_output(tensor) for tensor in node.outputs)
        and all(user in inside for tensor in node.outputs for user in tensor.outputs)
        for node in interior
    )


def nearly(value: float, wanted: float) -> bool:
    """Whether a constant is `wanted` up to the digits that exporters write."""
    return abs(value - wanted) <= 1e-5 * abs(wanted) + 1e-9


def _scalar(tensor: gs.Tensor) -> float | None:
    stored = const_value(tensor)
    if stored is None or stored.size != 1 or stored.dtype.kind in "OUSbc":
        return None
    array = const_array(tensor)
    return None if array is None else float(array.reshape(-1)[0])


def _dtype(tensor: gs.Tensor) -> np.dtype[Any] | None:
    stored = const_value(tensor)
    return None if stored is None else np.dtype(stored.dtype)

"""Operators that files spell out, in the spellings that onnxruntime computes in one kernel.

What a session fuses is narrower than what the formula means: a Gelu with √½ as a factor, or a
LayerNormalization whose γ went into the next layer, runs node by node. Sessions of onnxruntime 1.32
were asked for the kernels that they make of each spelling (`tests/passes/test_session_kernels.py`
asks again):

    Gelu                 x·(1 + erf(x/√2))·½ or x·½·(1 + erf(x/√2)), with a Div
    Gelu by tanh         x·½·(1 + tanh(√(2/π)·(x + 0.044715·x³))), with a Pow, or
                         x·½·(1 + tanh(√(2/π)·x·(1 + 0.044715·x·x)))
    QuickGelu            x·σ(a·x), x·σ(x)
    LayerNormalization   (x − mean)/√(var + ε)·γ + β, with a Pow, over the last axis; γ and β of one
                         axis
    RMSNormalization     x/√(mean(x²) + ε)·γ, likewise

In each of them a division by the root may be a product with ``1/root``, and a Cast may stand before
γ. A match counts where nothing else uses what it computes on the way: then a session fuses it, and
an edit inside of it would take that away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import pi, sqrt
from typing import Final, NamedTuple

import onnx_graphsurgeon as gs

from onnxslim.analysis.patterns import (
    Either,
    Match,
    Number,
    Op,
    Pattern,
    Result,
    Var,
    Vector,
    is_closed,
)
from onnxslim.graph.dims import known_dim, rank
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import axes_of
from onnxslim.graph.rewrite import Rewriter

SINCE: Final[Mapping[str, int]] = {"LayerNormalization": 17, "Gelu": 20, "RMSNormalization": 23}
"""The opset that has an operator, where it has been spelled out before."""
TANH_SCALE: Final = sqrt(2 / pi)
TANH_CUBE: Final = 0.044715


class Compound(NamedTuple):
    """An operator that is spelled out.

    Attributes:
        name: of the operator.
        match: its nodes, the last one first, and what its formula is applied to.
    """

    name: str
    match: Match

    @property
    def is_elementwise(self) -> bool:
        """Whether it works on each element by itself."""
        return all(node.op != "ReduceMean" for node in self.match.nodes)

    @property
    def is_mixed(self) -> bool:
        """Whether it computes in float32 and scales in float16, for which ONNX has no operator."""
        return any(node.op == "Cast" for node in self.match.nodes)


def compound_at(rw: Rewriter, node: Node) -> Compound | None:
    """The operator whose spelling ends in `node`, if a session computes that in one kernel."""
    return _found(rw, node, _SPELLINGS)


def plain_normalization_at(rw: Rewriter, node: Node) -> Compound | None:
    """The normalization without γ and β whose spelling ends in `node`; no session fuses that."""
    return _found(rw, node, _PLAIN)


def _found(rw: Rewriter, node: Node, spellings: Mapping[str, Pattern]) -> Compound | None:
    for name, pattern in spellings.items():
        if node.op not in pattern.heads():
            continue
        for match in pattern.find(rw, node.outputs[0], Match()):
            if _is_over_last_axis(rw, match) and is_closed(rw, match):
                return Compound(name, match)
    return None


def compounds(rw: Rewriter) -> list[Compound]:
    """All operators that are spelled out as a session fuses them, none inside of another."""
    nodes = [node for graph in rw.graphs() for node in graph.nodes]
    present = {node.op for node in nodes}
    heads = {
        op
        for pattern in _SPELLINGS.values()
        if pattern.needs() <= present
        for op in pattern.heads()
    }
    ends = [node for node in nodes if node.op in heads and node.outputs]
    found = [item for node in ends if (item := compound_at(rw, node)) is not None]
    inner = {node for item in found for node in item.match.nodes[1:]}
    return [item for item in found if item.match.nodes[0] not in inner]


def waiting_for_opset(rw: Rewriter) -> Mapping[str, int]:
    """How many operators of each name are spelled out because the opset has none for them yet."""
    names = [item.name for item in compounds(rw) if not item.is_mixed]
    return {name: names.count(name) for name, since in SINCE.items() if rw.opset < since}


def kept_nodes(items: Iterable[Compound]) -> Mapping[Node, str]:
    """The nodes of operators that are to stay whole, each with the reason (see `Rewriter.keep`)."""
    return {
        node: f"is part of a {found.name}, which onnxruntime computes in one kernel"
        for found in items
        for node in found.match.nodes
    }


def reduced_axis(rw: Rewriter, node: Node, tensor: gs.Tensor) -> int | None:
    """The one axis of `tensor`, from the end, that a reduction with keepdims runs over."""
    axes = axes_of(node, rw.opset)
    if axes is None or len(axes) != 1 or not node.attrs.get("keepdims", 1):
        return None
    if axes[0] < 0:
        return axes[0]
    ndim = rank(tensor)
    return None if ndim is None else axes[0] - ndim


def _is_over_last_axis(rw: Rewriter, match: Match) -> bool:
    """Whether means run over the last axis, and vectors lie along it."""
    x = match.tensors["x"]
    vectors = [tensor for name, tensor in match.tensors.items() if name != "x"]
    sizes = {known_dim(vector, 0) for vector in vectors if rank(vector) == 1}
    if vectors and (len(sizes) != 1 or any(rank(vector) != 1 for vector in vectors)):
        return False
    if known_dim(x, -1) is not None:
        sizes.add(known_dim(x, -1))
    means = [node for name, node in match.ops.items() if name in ("mean", "square")]
    return not means or (len(sizes) == 1 and all(reduced_axis(rw, n, x) == -1 for n in means))


_X: Final = Var("x")
_HALF: Final = Number("half", 0.5)
_ONE: Final = Number("one", 1.0)
_TWO: Final = Number("two", 2.0)
_CUBE: Final = Number("cube", TANH_CUBE)
_TANH_SCALE: Final = Number("scale", TANH_SCALE)

_BY_ERF: Final = Op("Add", Op("Erf", Op("Div", _X, Number("root", sqrt(2)))), _ONE)
_HALF_X: Final = Op("Mul", _X, _HALF)
_GELU_BY_ERF: Final = Either(Op("Mul", Op("Mul", _X, _BY_ERF), _HALF), Op("Mul", _HALF_X, _BY_ERF))

_SUM: Final = Op("Add", _X, Op("Mul", Op("Pow", _X, Number("three", 3.0)), _CUBE))
_FACTOR: Final = Op("Add", Op("Mul", Op("Mul", _X, _CUBE), _X), _ONE)
_CUBIC: Final = Either(Op("Mul", _SUM, _TANH_SCALE), Op("Mul", Op("Mul", _X, _TANH_SCALE), _FACTOR))
_GELU_BY_TANH: Final = Op("Mul", _HALF_X, Op("Add", Op("Tanh", _CUBIC), _ONE))

_QUICK_GELU: Final = Op("Mul", _X, Op("Sigmoid", Either(_X, Op("Mul", _X, Number("alpha")))))


def _quotient(x: Pattern, deviation: Pattern) -> Pattern:
    """x/√(mean(deviation²) + ε)."""
    mean = Op("ReduceMean", Op("Pow", deviation, _TWO), bind="square")
    root = Op("Sqrt", Op("Add", mean, Number("eps")))
    return Either(Op("Div", x, root), Op("Mul", x, Op("Div", _ONE, root)))


def _scaled(x: Pattern, deviation: Pattern) -> Pattern:
    """x/√(mean(deviation²) + ε)·γ."""
    quotient = _quotient(x, deviation)
    return Op("Mul", Either(quotient, Op("Cast", quotient)), Vector("scale"))


_CENTRED: Final = Op("Sub", _X, Op("ReduceMean", _X, bind="mean"), bind="centred")
# some exporters subtract the mean once for the variance and once more for the quotient
_AGAIN: Final = Either(Result("centred"), Op("Sub", _X, Result("mean")))

_SPELLINGS: Final[Mapping[str, Pattern]] = {
    "Gelu": Either(_GELU_BY_ERF, _GELU_BY_TANH),
    "QuickGelu": _QUICK_GELU,
    "LayerNormalization": Op("Add", _scaled(_CENTRED, _AGAIN), Vector("bias")),
    "RMSNormalization": _scaled(_X, _X),
}
_PLAIN: Final[Mapping[str, Pattern]] = {
    "LayerNormalization": _quotient(_CENTRED, _AGAIN),
    "RMSNormalization": _quotient(_X, _X),
}

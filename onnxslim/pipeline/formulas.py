"""`Formula`: a formula, found in all its spellings, and the expression that replaces it.

A rewrite pays where nodes get fewer, or where the expression is one that onnxruntime computes in
one kernel (see `analysis/compound_operators.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import is_float, min_rank
from onnxslim.analysis.compound_operators import compound_at
from onnxslim.analysis.patterns import Match, Pattern, is_closed
from onnxslim.graph.ir import Node, Variable, node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.records import Fidelity

_SINGLE: Final = frozenset({"float32"})


@dataclass(frozen=True)
class Expr:
    """A node to insert; an input is a tensor, another `Expr`, a number, or absent (None).

    Attributes:
        is_fused: whether it is written in the nodes that onnxruntime computes in one kernel (see
            `analysis/compound_operators.py`).
    """

    op: str
    inputs: tuple[gs.Tensor | Expr | float | np.ndarray | None, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    is_fused: bool = False

    def count(self) -> int:
        """How many nodes it takes."""
        return 1 + sum(item.count() for item in self.inputs if isinstance(item, Expr))


@dataclass(frozen=True)
class Formula:
    """A pattern and its replacement.

    Attributes:
        name: what the nodes become, for the report.
        pattern: finds the formula.
        build: the replacement of a match; None where numbers or shapes do not fit.
        since: the opset from which the rule holds.
        types: names of the element types for which onnxruntime has a kernel.
    """

    name: str
    pattern: Pattern
    build: Callable[[Rewriter, Match], Expr | None]
    since: int = 1
    types: frozenset[str] = _SINGLE

    def apply(self, rw: Rewriter, node: Node) -> bool:
        """Replace what ends in `node`; whether it is now as the rule wants it."""
        if not rw.is_alive(node) or not any(tensor.name for tensor in node.outputs[:1]):
            return False
        is_open = False
        for match in self.pattern.find(rw, node.outputs[0], Match()):
            if not match.nodes or match.nodes[0] is not node or not self._suits(match):
                continue
            expr = self.build(rw, match)
            if expr is not None and expr.is_fused and compound_at(rw, node) is not None:
                return True  # it is written so already
            if expr is None or not _is_gain(expr, match):
                continue
            if is_closed(rw, match):
                _replace(rw, node, expr, match, self.name)
                return True
            is_open = True
        if is_open:
            rw.skip(node, f"{self.name}: an interior tensor is used elsewhere")
        return False

    def _suits(self, match: Match) -> bool:
        """Whether types are right and no constant adds dimensions."""
        dtype = dtype_of(match)
        if dtype is None or dtype.name not in self.types:
            return False
        return match.ndim <= max((min_rank(t) for t in match.tensors.values()), default=0)


def dtype_of(match: Match) -> np.dtype[Any] | None:
    """The element type that a match computes in, as far as it is known."""
    if match.dtype is not None:
        return match.dtype
    tensors = [tensor for node in match.nodes for tensor in (*node.inputs, *node.outputs)]
    found = [np.dtype(tensor.dtype) for tensor in tensors if is_float(tensor.dtype)]
    return found[0] if found else None


def _is_gain(expr: Expr, match: Match) -> bool:
    """Whether kernels or nodes get fewer, or a Relu or Identity has another spelling so far."""
    if expr.is_fused:
        return True
    before, after = len(match.nodes), expr.count()
    is_plain = expr.op in ("Relu", "Identity") and expr.op != match.nodes[0].op
    return after < before or (after == before == 1 and is_plain)


def _replace(rw: Rewriter, node: Node, expr: Expr, match: Match, name: str) -> None:
    dtype = dtype_of(match)
    assert dtype is not None
    words = ", ".join(item.op for item in reversed(match.nodes))
    label = node_label(node)
    made: dict[int, gs.Tensor] = {}
    inputs = [_emit(rw, node, item, dtype, label, made) for item in expr.inputs]
    what = f"{words} became {name}"
    rw.update(
        node, what, op=expr.op, inputs=inputs, attrs=dict(expr.attrs), fidelity=Fidelity.CLOSE
    )


def _emit(
    rw: Rewriter,
    before: Node,
    item: gs.Tensor | Expr | float | np.ndarray | None,
    dtype: np.dtype[Any],
    label: str,
    made: dict[int, gs.Tensor],
) -> gs.Tensor:
    """The tensor for `item`; `made` has those of the `Expr`s that stand in several places."""
    if item is None:
        return Variable("")
    if isinstance(item, Expr):
        if id(item) not in made:
            inputs = [_emit(rw, before, inner, dtype, label, made) for inner in item.inputs]
            name = f"{label}_{item.op.lower()}"
            (result,) = rw.insert(before, item.op, inputs, item.attrs, name=name, dtype=dtype)
            made[id(item)] = result
        return made[id(item)]
    if isinstance(item, float):
        return rw.constant(np.asarray(item, dtype), f"{label}_constant")
    if isinstance(item, np.ndarray):
        return rw.constant(item, f"{label}_constant")
    return item

"""Compute each value once: merge nodes that do the same to the same tensors.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[2, 3] x, float[2, 3] z) => (float[2, 3] y) {
        a = Add (x, z)
        b = Add (z, x)
        c = Exp (a)
        d = Exp (b)
        y = Mul (c, d)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[2, 3] x, float[2, 3] z) => (float[2, 3] y) {
        a = Add (x, z)
        c = Exp (a)
        y = Mul (c, c)
    }
    ```

Why it is correct:
    A deterministic operator with equal attributes and inputs gives equal outputs. Nodes are
    visited producers first, so inputs are merged before the nodes that use them and one visit
    finds all. A value that an enclosing graph computes before a body serves the body as well.
    a + b = b + a and a * b = b * a hold to the bit in floating point. max(a, b) = max(b, a) does
    not for +0 and -0, so Max and Min are merged for integers only.

Declines when:
    1. Both values are graph outputs, or a body returns one and the other lies outside it; or one is
       a graph output whose declared shape is not confirmed by inference: onnxruntime
       believes it where the output is read.
    2. The operator draws random numbers, or belongs neither to the ONNX standard nor to a codebook.
    3. The operator has bodies (If, Loop, Scan).

Fidelity:
    EXACT.

Reference:
    J. Cocke, "Global common subexpression elimination", 1970; here by hashing (value numbering).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.graph.functions import is_codebook
from onnxslim.graph.ir import Constant, Node, subgraphs_of
from onnxslim.graph.operands import content, is_random
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult

_STANDARD: Final = frozenset({"", "ai.onnx", "ai.onnx.ml"})
_COMMUTATIVE: Final = frozenset(
    {"Add", "Mul", "Sum", "Mean", "And", "Or", "Xor", "Equal"}
    | {"BitwiseAnd", "BitwiseOr", "BitwiseXor"}
)
_COMMUTATIVE_INTEGERS: Final = frozenset({"Min", "Max"})


@dataclass(frozen=True)
class DedupNodes(RewritePass):
    """Compute each value once: merge nodes that do the same to the same tensors."""

    name: ClassVar[str] = "dedup-nodes"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Visit producers first, bodies after what they may use."""
        rw = self.rewriter(graph)
        _visit(rw, graph, ())
        return rw.result()


def _visit(rw: Rewriter, graph: gs.Graph, outer: tuple[dict[Hashable, Node], ...]) -> None:
    """Merge nodes of `graph`; `outer` maps keys to nodes of enclosing graphs visited so far."""
    scopes = ({}, *outer)
    for node in list(graph.nodes):
        if not rw.is_alive(node):
            continue
        bodies = list(subgraphs_of(node))
        for body in bodies:
            _visit(rw, body, scopes)
        if bodies or not _is_known(node) or is_random(node, rw.opset) or not rw.allows(node):
            continue
        key = _key(node)
        first = next((scope[key] for scope in scopes if key in scope), None)
        if first is None:
            scopes[0][key] = node
        else:
            _merge(rw, node, first)


def _is_known(node: Node) -> bool:
    """Whether equal inputs are known to give equal outputs."""
    return (node.domain or "") in _STANDARD or is_codebook(node.outputs[0])


def _merge(rw: Rewriter, node: Node, first: Node) -> None:
    """Replace ``node`` with ``first``, which computes the same."""
    what = f"is the same {node.op} as `{first.label}`"
    used = [
        (old, new) for old, new in zip(node.outputs, first.outputs, strict=False) if rw.uses(old)
    ]
    if any(rw.is_doubtful(new) for _, new in used):
        rw.skip(node, f"equals `{first.label}`, whose declared shape may be wrong")  # declines 1
        return
    if len(used) == 1 and used[0][0] is node.outputs[0]:
        if not (rw.can_substitute(node, used[0][1]) and rw.substitute(node, used[0][1], what)):
            rw.skip(node, f"equals `{first.label}`, but both names are returned")  # declines 1
        return
    if any(rw.is_output(old) for old, _ in used):
        rw.skip(node, f"equals `{first.label}`, but one of its outputs is returned")
        return
    for old, new in used:
        rw.redirect(old, new)
    rw.remove(node, what)


def _key(node: Node) -> Hashable:
    """A key that is equal for nodes that compute the same."""
    inputs = [id(tensor) if tensor.name else 0 for tensor in node.inputs]
    if len(inputs) == 2 and _is_commutative(node):
        inputs.sort()
    # the number of outputs changes what some operators do (BatchNormalization)
    given = [bool(tensor.name) for tensor in node.outputs]
    attrs = sorted((name, _value_key(value)) for name, value in node.attrs.items())
    return (node.op, node.domain or "", tuple(attrs), tuple(inputs), tuple(given))


def _is_commutative(node: Node) -> bool:
    if node.op in _COMMUTATIVE:
        return not node.attrs  # before opset 7, `broadcast` treats the two differently
    dtype = node.inputs[0].dtype
    is_integer = dtype is not None and np.dtype(dtype).kind in "iu"
    return node.op in _COMMUTATIVE_INTEGERS and is_integer


def _value_key(value: object) -> Hashable:
    """A key for an attribute's value: floats by their digits, tensors by their bytes."""
    if isinstance(value, Constant):
        kind, data = content(value)
        return ("tensor", repr(kind), bytes(data))
    if isinstance(value, onnx.AttributeProto):
        return ("proto", "", value.SerializeToString(deterministic=True))
    return (type(value).__name__, repr(value), b"")  # repr tells -0.0 from 0.0

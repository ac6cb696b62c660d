"""Remove operators that return their input unchanged.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[2, 3] x) => (float[2, 3] y) {
        a = Identity (x)
        b = Cast <to = 1> (a)
        y = Relu (b)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[2, 3] x) => (float[2, 3] y) {
        y = Relu (x)
    }
    ```

Why it is correct:
    Each operator below maps x to x bit for bit under the condition that its row names.

Declines when:
    1. The node is the only thing between a graph input (or a constant, or another graph output)
       and a graph output: the output needs a node that makes it.
    2. A shape or type that decides whether it is a no-op is not known.

Fidelity:
    EXACT. Adding +0.0 is not here: it turns -0.0 into +0.0; `fuse-affine` does it.

Reference:
    The ONNX operator specification, one section per operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.contract import Context, Fidelity, Pass, PassResult
from onnxslim.ir import Node, to_onnx_dtype
from onnxslim.rewrite import Rewriter
from onnxslim.shapes import rank, same_shape


@dataclass(frozen=True)
class EliminateIdentity(Pass):
    """Remove operators that return their input unchanged."""

    name: ClassVar[str] = "eliminate-identity"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Bypass every no-op."""
        rw = Rewriter(graph)
        for node in rw.walk(*_NO_OPS):
            if not _NO_OPS[node.op](node, rw.opset):
                continue
            if not rw.substitute(node, node.inputs[0], f"removed a no-op {node.op}"):
                rw.skip(node, "is all there is between two fixed ends")  # declines 1
        return rw.result()


def _is_same_cast(node: Node, opset: int) -> bool:
    dtype = node.inputs[0].dtype
    return dtype is not None and to_onnx_dtype(np.dtype(dtype)) == node.attrs.get("to")


def _keeps_shape(node: Node, opset: int) -> bool:
    return same_shape(node.inputs[0].shape, node.outputs[0].shape)


def _is_plain_transpose(node: Node, opset: int) -> bool:
    ndim = rank(node.inputs[0])
    perm = node.attrs.get("perm")
    if perm is None:
        return ndim is not None and ndim < 2
    return list(perm) == list(range(len(perm)))


def _has_one_input(node: Node, opset: int) -> bool:
    return len(node.inputs) == 1


# operator -> when it is a no-op
_NO_OPS: dict[str, Callable[[Node, int], bool]] = {
    "Identity": lambda node, opset: True,
    "Cast": _is_same_cast,
    "Reshape": _keeps_shape,
    "Expand": _keeps_shape,
    "Transpose": _is_plain_transpose,
    "Concat": _has_one_input,
}

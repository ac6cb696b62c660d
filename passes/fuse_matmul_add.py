"""Fuse MatMul, Transpose and Add of matrices into Gemm.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[2, 3] x) => (float[2, 2] y)
        <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] b = {1, 2}> {
        m = MatMul (x, w)
        y = Add (m, b)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[2, 3] x) => (float[2, 2] y)
        <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] b = {1, 2}> {
        y = Gemm (x, w, b)
    }
    ```
    A Gemm without bias absorbs an Add behind it in the same way, and a Transpose of a matrix before
    a Gemm or MatMul becomes `transA` or `transB`.

Why it is correct:
    Gemm computes alpha·A'·B' + beta·C, where C broadcasts to the product and A' is A or Aᵀ.

Declines when:
    1. An operand is not known to be a matrix, or is not of floating point.
    2. The addend does not broadcast to the product: then the sum is larger than the product.
    3. The product, or the transposed matrix, is used elsewhere or is a graph output.

Fidelity:
    CLOSE. Products are equal; the sum may be rounded differently.

Reference:
    The ONNX operator specification of Gemm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import is_float
from onnxslim.graph.dims import rank
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import const_value, is_present
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult

_BROADCASTS_SINCE: Final = 7  # Gemm's C; an attribute before
_NO_BIAS_SINCE: Final = 11


@dataclass(frozen=True)
class FuseMatmulAdd(RewritePass):
    """Fuse MatMul, Transpose and Add of matrices into Gemm."""

    name: ClassVar[str] = "fuse-matmul-add"
    fidelity: ClassVar[Fidelity] = Fidelity.CLOSE

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Turn products with a sum behind or a transposition before them into Gemm."""
        rw = self.rewriter(graph)
        if rw.opset < _BROADCASTS_SINCE:
            return rw.result()
        for node in rw.walk("Add", "Sum", "Gemm", "MatMul"):
            if node.op in ("Add", "Sum"):
                _take_addend(rw, node)
            else:
                _take_transposes(rw, node)
        return rw.result()


def _take_addend(rw: Rewriter, add: Node) -> None:
    """Replace ``Add(MatMul(a, b), c)`` and ``Add(Gemm(a, b), c)`` with ``Gemm(a, b, c)``."""
    if len(add.inputs) != 2:
        return
    for index in (0, 1):
        product = rw.producer(add.inputs[index], "MatMul", "Gemm")
        if product is None or is_present(product, 2) or not _are_matrices(product):
            continue
        addend = add.inputs[1 - index]
        why = _why_not(rw, product, addend)
        if why is not None:
            rw.skip(add, why)
            continue
        what = f"became a Gemm with `{node_label(product)}`"
        attrs = dict(product.attrs) if product.op == "Gemm" else {}
        attrs.pop("beta", None)
        inputs = [*product.inputs[:2], addend]
        rw.update(add, what, op="Gemm", inputs=inputs, attrs=attrs, fidelity=Fidelity.CLOSE)
        return


def _why_not(rw: Rewriter, product: Node, addend: gs.Tensor) -> str | None:
    result = product.outputs[0]
    if rw.private_producer(result) is None:
        return f"the product `{result.name}` is used elsewhere"
    if not _broadcasts(addend, result):
        return f"`{addend.name}` is not known to broadcast to the product `{result.name}`"
    return None


def _are_matrices(product: Node) -> bool:
    """Whether both operands are known to be matrices of floating point."""
    operands = product.inputs[:2]
    is_real = any(is_float(tensor.dtype) for tensor in (*operands, *product.outputs))
    return is_real and all(rank(tensor) == 2 for tensor in operands)


def _broadcasts(addend: gs.Tensor, product: gs.Tensor) -> bool:
    """Whether `addend` broadcasts to `product` without making it larger."""
    if addend.shape is None or product.shape is None or len(addend.shape) > 2:
        return False
    padded = [1] * (2 - len(addend.shape)) + list(addend.shape)
    pairs = zip(padded, product.shape, strict=True)
    return all(size == 1 or (size is not None and size == full) for size, full in pairs)


def _take_transposes(rw: Rewriter, product: Node) -> None:
    """Replace ``Gemm(Transpose(a), b)`` with ``Gemm<transA = 1>(a, b)``, MatMul likewise."""
    if not _are_matrices(product) or (product.op == "MatMul" and rw.opset < _NO_BIAS_SINCE):
        return
    for index, name in enumerate(("transA", "transB")):
        swap = rw.producer(product.inputs[index], "Transpose")
        if swap is None or const_value(swap.inputs[0]) is not None:  # constants are folded
            continue
        if list(swap.attrs.get("perm", (1, 0))) != [1, 0]:
            continue
        if rw.private_producer(product.inputs[index]) is None:
            rw.skip(product, f"the transposed `{product.inputs[index].name}` is used elsewhere")
            continue
        attrs = {**product.attrs, name: 1 - int(product.attrs.get(name, 0))}
        inputs = list(product.inputs)
        inputs[index] = swap.inputs[0]
        what = f"took the Transpose `{node_label(swap)}`"
        rw.update(product, what, op="Gemm", inputs=inputs, attrs=attrs, fidelity=Fidelity.CLOSE)

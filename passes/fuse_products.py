"""Fuse products of one tensor with several weights into one product and a Split.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[2, 2] x) => (float[2, 1] q, float[2, 2] k)
        <float[2, 1] wq = {1, 2}, float[2, 2] wk = {3, 4, 5, 6}, float[2] bk = {7, 8}> {
        q = MatMul (x, wq)
        product = MatMul (x, wk)
        k = Add (product, bk)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[2, 2] x) => (float[2, 1] q, float[2, 2] k)
        <float[2, 3] w = {1, 3, 4, 2, 5, 6}, float[3] b = {0, 7, 8}, int64[2] sizes = {1, 2}> {
        product = MatMul (x, w)
        all = Add (product, b)
        q, k = Split <axis = -1> (all, sizes)
    }
    ```
    Groups are the projections to Q, K and V, those of K and V in cross attention, the gate and the
    other branch of SwiGLU, heads of a detector, and whatever else reads one tensor. Gemm likewise.

Why it is correct:
    A column of x·W is x times that column of W. A bias of zero changes no value.

    One product reads x once, and has more columns to share among threads and tiles; the Split
    copies what it returns. Which weighs more depends on the number of rows: 1.04 times as fast for
    a sentence of 16 tokens in MiniLM and in Llama, behind `fuse-attention`, and no difference, or a
    little slower, for 128 and for pictures. So the pass is no part of
    `simplify`, and a pipeline keeps it, or those of its groups, that are measured to pay.

Declines when:
    1. A weight is used elsewhere: the file would grow.
    2. Products are in other graphs, or of other types or attributes.
    3. The opset is below 11, where a Split must count its axis from the front.

Fidelity:
    CLOSE. onnxruntime may add the terms of a longer row of columns in another order.

Reference:
    Vaswani et al. 2017, arXiv:1706.03762, section 3.2; Shazeer 2020, arXiv:2002.05202 (SwiGLU).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import is_float
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import const_array, const_value, is_present
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult

_AXES_FROM_THE_END: Final = 11  # of Split
_SIZES_ARE_INPUT: Final = 13  # of Split


@dataclass(frozen=True)
class FuseProducts(RewritePass):
    """Fuse products of one tensor with several weights into one product and a Split."""

    name: ClassVar[str] = "fuse-products"
    fidelity: ClassVar[Fidelity] = Fidelity.CLOSE

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Fuse each group of products."""
        rw = self.rewriter(graph)
        if rw.opset < _AXES_FROM_THE_END:
            return rw.result()
        for node in rw.walk("MatMul", "Gemm"):
            first = _product(rw, node)
            if first is None:
                continue
            group = [
                other
                for user in dict.fromkeys(node.inputs[0].outputs)
                if (other := _product(rw, user)) is not None and other.key == first.key
            ]
            if len(group) > 1 and group[0].node is node:
                _fuse(rw, group)
        return rw.result()


@dataclass(frozen=True)
class _Product:
    """A product with a constant matrix, and the bias behind it.

    Attributes:
        node: the product.
        last: the Add of its bias, where there is one, else the product.
        weight: the matrix; columns are those of the result unless `is_turned`.
        bias: one number for each column, None for none.
        is_turned: whether rows of the matrix are the columns of the result.
        key: what products of one group have in common.
    """

    node: Node
    last: Node
    weight: gs.Tensor
    bias: gs.Tensor | None
    is_turned: bool
    key: tuple[Any, ...]

    @property
    def columns(self) -> int:
        """Columns of the result."""
        return int(self.weight.shape[0 if self.is_turned else 1])


def _product(rw: Rewriter, node: Node) -> _Product | None:
    """The product that `node` is, if it can be part of a group."""
    if not node.is_onnx or node.op not in ("MatMul", "Gemm"):
        return None
    source, weight = node.inputs[:2]
    stored = const_value(weight)
    if stored is None or len(stored.shape) != 2 or not is_float(stored.dtype):
        return None
    if const_value(source) is not None or not node.outputs[0].name:
        return None
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    attrs = {name: value for name, value in node.attrs.items() if plain.get(name) != value}
    is_turned = bool(attrs.pop("transB", 0))
    if attrs:
        return None
    columns = stored.shape[0 if is_turned else 1]
    bias = node.inputs[2] if is_present(node, 2) else None
    if bias is not None and not _is_bias(bias, columns):
        return None
    add = None if node.op == "Gemm" else _bias_behind(rw, node, columns)
    if add is not None:
        bias = add.inputs[1 if add.inputs[0] is node.outputs[0] else 0]
    key = (node.op, is_turned, np.dtype(stored.dtype), rw.graph_of(node))
    return _Product(node, add or node, weight, bias, is_turned, key)


def _bias_behind(rw: Rewriter, node: Node, columns: int) -> Node | None:
    """The Add of a constant vector that alone reads the product."""
    result = node.outputs[0]
    if rw.uses(result) != 1 or not result.outputs:
        return None
    add: Node = result.outputs[0]
    if not add.is_onnx or add.op != "Add" or rw.graph_of(add) is not rw.graph_of(node):
        return None
    return add if any(_is_bias(tensor, columns) for tensor in add.inputs) else None


def _is_bias(tensor: gs.Tensor, columns: int) -> bool:
    stored = const_value(tensor)
    return stored is not None and tuple(stored.shape) == (columns,)


def _fuse(rw: Rewriter, group: Sequence[_Product]) -> None:
    """Replace the products of a group, and the Adds behind them."""
    first = group[0]
    shared = next((item for item in group if rw.uses(item.weight) > 1), None)
    if shared is not None:
        rw.skip(first.node, f"the weight `{shared.weight.name}` is used elsewhere")  # declines 1
        return
    weights = [const_array(item.weight) for item in group]
    if any(weight is None for weight in weights):
        return
    arrays = [weight for weight in weights if weight is not None]
    label = node_label(first.node)
    made = rw.constant(np.concatenate(arrays, 0 if first.is_turned else 1), f"{label}_weights")
    inputs = [first.node.inputs[0], made]
    bias = _joined_bias(rw, group, arrays[0].dtype, label)
    if bias is not None and first.node.op == "Gemm":
        inputs.append(bias)
    dtype = arrays[0].dtype
    attrs = dict(first.node.attrs)
    (result,) = rw.insert(
        first.node, first.node.op, inputs, attrs, name=f"{label}_all", dtype=dtype
    )
    if bias is not None and first.node.op != "Gemm":
        (result,) = rw.insert(
            first.node, "Add", [result, bias], name=f"{label}_biased", dtype=dtype
        )
    parts = _split(rw, first.node, result, [item.columns for item in group])
    for item, part in zip(group, parts, strict=True):
        part.shape = item.last.outputs[0].shape
        what = f"became a part of one product of {len(group)}"
        rw.replace(item.last, [part], what)
    rw.note(label, f"{len(group)} products of one tensor became one", Fidelity.CLOSE)


def _joined_bias(
    rw: Rewriter, group: Sequence[_Product], dtype: np.dtype[Any], label: str
) -> gs.Tensor | None:
    """The biases of a group in a row, with zeros where there is none."""
    if all(item.bias is None for item in group):
        return None
    biases = [None if item.bias is None else const_array(item.bias) for item in group]
    rows = [
        np.zeros(item.columns, dtype) if bias is None else bias
        for item, bias in zip(group, biases, strict=True)
    ]
    return rw.constant(np.concatenate(rows), f"{label}_biases")


def _split(
    rw: Rewriter, before: Node, tensor: gs.Tensor, sizes: Sequence[int]
) -> Sequence[gs.Tensor]:
    attrs: dict[str, Any] = {"axis": -1}
    inputs = [tensor]
    if rw.opset >= _SIZES_ARE_INPUT:
        inputs.append(rw.constant(np.array(sizes, np.int64), f"{tensor.name}_sizes"))
    else:
        attrs["split"] = list(sizes)
    return rw.insert(
        before,
        "Split",
        inputs,
        attrs,
        name=f"{tensor.name}_part",
        dtype=tensor.dtype,
        outputs=len(sizes),
    )

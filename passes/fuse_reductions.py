"""Merge reductions with reshapes that only drop or add their axes, and with each other.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[N, 3, 4] x) => (float[N, 3] y) {
        axes = Constant <value = int64[1] {2}> ()
        a = ReduceMax <axes = [2], keepdims = 1> (x)
        y = Squeeze (a, axes)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[N, 3, 4] x) => (float[N, 3] y) {
        y = ReduceMax <axes = [2], keepdims = 0> (x)
    }
    ```
    In the same way:
    - a Reduce without keepdims takes up an Unsqueeze (or Reshape) that restores the axes;
    - Sum of Sum, Max of Max, ... over other axes is one reduction.

    Reductions are not turned into global poolings, nor poolings into reductions, although that
    would save nodes. A Reduce alone is up to 4 times as fast; behind a Conv, where onnxruntime
    keeps channels in blocks, the pooling is faster (SqueezeNet: 2 % of the whole model).

Why it is correct:
    keepdims only says whether the reduced axes stay as axes of size 1. Reducing one axis after the
    other equals reducing both; for means because all slices have the same number of elements.

Declines when:
    1. The value in between has other users.
    2. The two reductions differ in keepdims.

Fidelity:
    CLOSE where floating-point sums are taken in another order, else EXACT.

Reference:
    The ONNX operator specification: Reduce*, ArgMax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import axes_of, normalized
from onnxslim.graph.rewrite import Rewriter
from onnxslim.graph.sizes import Shape
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult

_RESHAPING: Final = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_ASSOCIATIVE: Final = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")
_OTHERS: Final = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")
_ARG: Final = ("ArgMax", "ArgMin")
_REDUCE: Final = (*_ASSOCIATIVE, *_OTHERS, *_ARG)


@dataclass(frozen=True)
class FuseReductions(RewritePass):
    """Merge reductions with reshapes that only drop or add their axes, and with each other."""

    name: ClassVar[str] = "fuse-reductions"
    fidelity: ClassVar[Fidelity] = Fidelity.CLOSE

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Visit every reduction, and every reshape behind one."""
        rw = self.rewriter(graph)
        fuser = _ReductionFuser(rw, SizeFlow(graph, rw.opset))
        for node in rw.walk(*_RESHAPING, *_ASSOCIATIVE):
            if node.op in _RESHAPING:
                fuser.absorb_reshape(node)
            else:
                fuser.merge_nested(node)
        return rw.result()


class _ReductionFuser:
    def __init__(self, rw: Rewriter, flow: SizeFlow) -> None:
        self.rw = rw
        self.flow = flow

    def axes(self, node: Node) -> tuple[int, ...] | None:
        """The reduced axes, from the front and in order."""
        shape = self.flow.shape(node.inputs[0])
        if shape is None:
            return None
        if node.op in _ARG:
            return normalized((int(node.attrs.get("axis", 0)),), len(shape))
        axes = axes_of(node, self.rw.opset)
        if axes == ():
            noop = node.attrs.get("noop_with_empty_axes", 0)
            return None if noop else tuple(range(len(shape)))
        found = normalized(axes, len(shape))
        return None if found is None else tuple(sorted(found))

    def absorb_reshape(self, node: Node) -> None:
        """Replace ``Squeeze(Reduce(x))`` with the Reduce that drops (or keeps) its axes."""
        reduce = self.rw.producer(node.inputs[0], *_REDUCE)
        if reduce is None:
            return
        axes, shape = self.axes(reduce), self.flow.shape(reduce.inputs[0])
        after = self.flow.shape(node.outputs[0])
        if axes is None or shape is None or after is None:
            return
        keeps = 1 - int(reduce.attrs.get("keepdims", 1))
        if after != _reduced(shape, axes, keepdims=bool(keeps)):
            return
        if self.rw.private_producer(node.inputs[0], *_REDUCE) is None:
            self.rw.skip(node, "the reduction before it has other users")  # declines 1
            return
        self.rw.update(
            node,
            f"{reduce.op} and {node.op} became one {reduce.op} with keepdims={keeps}",
            op=reduce.op,
            inputs=list(reduce.inputs),
            attrs={**reduce.attrs, "keepdims": keeps},
        )

    def merge_nested(self, node: Node) -> None:
        """Replace ``ReduceSum(ReduceSum(x))`` over different axes with one."""
        inner = self.rw.private_producer(node.inputs[0], node.op)
        if inner is None:
            return
        first, second = self.axes(inner), self.axes(node)
        shape = self.flow.shape(inner.inputs[0])
        if first is None or second is None or shape is None:
            return
        keeps = [int(item.attrs.get("keepdims", 1)) for item in (inner, node)]
        if keeps[0] != keeps[1]:
            self.rw.skip(node, "the reductions differ in keepdims")  # declines 2
            return
        if not keeps[0]:
            left = [axis for axis in range(len(shape)) if axis not in first]
            second = tuple(left[axis] for axis in second)
        axes = sorted({*first, *second})
        inputs, attrs = self._operands(inner.inputs[0], axes, node.op)
        self.rw.update(
            node,
            f"two {node.op} became one",
            inputs=inputs,
            attrs={**attrs, "keepdims": keeps[0]},
            fidelity=self._fidelity(node),
        )

    def _operands(
        self, data: gs.Tensor, axes: Sequence[int], op: str
    ) -> tuple[list[gs.Tensor], dict[str, Any]]:
        since = 13 if op == "ReduceSum" else 18
        if self.rw.opset < since:
            return [data], {"axes": list(axes)}
        return [data, self.rw.constant(np.array(axes, np.int64), "axes")], {}

    def _fidelity(self, node: Node) -> Fidelity:
        exact = node.op in ("ReduceMax", "ReduceMin")
        integer = node.inputs[0].dtype is not None and np.dtype(node.inputs[0].dtype).kind in "iu"
        return Fidelity.EXACT if exact or integer else Fidelity.CLOSE


def _reduced(shape: Shape, axes: tuple[int, ...], *, keepdims: bool) -> Shape:
    if keepdims:
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)

"""Merge reductions with what only drops or adds their axes, with each other, and into pooling.

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
    - a Reduce without keepdims and an Unsqueeze (or Reshape) that puts the axes back;
    - Sum of Sum, Max of Max, ... over other axes is one reduction;
    - GlobalAveragePool or GlobalMaxPool, and the Flatten (or Squeeze, Reshape) of its result, are
      ReduceMean or ReduceMax without keepdims;
    - AveragePool and MaxPool over the whole map are GlobalAveragePool and GlobalMaxPool.

    A Reduce is not made a global pooling: onnxruntime 1.31 takes 1.3 to 4 times as long for it.

Why it is correct:
    keepdims only says whether the reduced axes stay as axes of size 1. Reducing one axis after the
    other is reducing both, for means since every slice has the same number of elements.

Declines when:
    1. The value in between has other users.
    2. The two reductions differ in keepdims.
    3. The pooling pads, dilates, or its window is not provably the whole map.

Fidelity:
    CLOSE where floating-point sums are taken in another order, else EXACT.

Reference:
    The ONNX operator specification: Reduce*, ArgMax, GlobalAveragePool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.flow import SizeFlow
from onnxslim.analysis.operands import axes_of, normalized
from onnxslim.analysis.sizes import Shape
from onnxslim.contract import Context, Fidelity, Pass, PassResult
from onnxslim.ir import Node
from onnxslim.rewrite import Rewriter

_RESHAPING: Final = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_ASSOCIATIVE: Final = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")
_OTHERS: Final = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")
_ARG: Final = ("ArgMax", "ArgMin")
_REDUCE: Final = (*_ASSOCIATIVE, *_OTHERS, *_ARG)
_WHOLE_MAP: Final = {"AveragePool": "GlobalAveragePool", "MaxPool": "GlobalMaxPool"}
_AS_REDUCE: Final = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}
_FLOATS: Final = frozenset(map(np.dtype, ("float16", "float32", "float64")))


@dataclass(frozen=True)
class FuseReductions(Pass):
    """Merge reductions with what only drops or adds their axes, with each other, into pooling."""

    name: ClassVar[str] = "fuse-reductions"
    fidelity: ClassVar[Fidelity] = Fidelity.CLOSE

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Look at every reduction, and at what reads one."""
        rw = Rewriter(graph)
        fuse = _Fuse(rw, SizeFlow(graph, rw.opset))
        for node in rw.walk(*_RESHAPING, *_ASSOCIATIVE, "AveragePool", "MaxPool"):
            if node.op in _RESHAPING:
                fuse.keepdims(node)
                fuse.pooled(node)
            elif node.op in _ASSOCIATIVE:
                fuse.nested(node)
            else:
                fuse.whole_map(node)
        return rw.result()


class _Fuse:
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

    def keepdims(self, node: Node) -> None:
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

    def nested(self, node: Node) -> None:
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
        exact = node.op in ("ReduceMax", "ReduceMin", "MaxPool", "GlobalMaxPool")
        integer = node.inputs[0].dtype is not None and np.dtype(node.inputs[0].dtype).kind in "iu"
        return Fidelity.EXACT if exact or integer else Fidelity.CLOSE

    def pooled(self, node: Node) -> None:
        """Replace ``Flatten(GlobalAveragePool(x))`` with a ReduceMean of the spatial axes."""
        pool = self.rw.private_producer(node.inputs[0], *_AS_REDUCE)
        if pool is None:
            return
        shape, after = self.flow.shape(pool.inputs[0]), self.flow.shape(node.outputs[0])
        if shape is None or len(shape) < 3 or after != shape[:2]:
            return
        op = _AS_REDUCE[pool.op]
        inputs, attrs = self._operands(pool.inputs[0], range(2, len(shape)), op)
        self.rw.update(
            node,
            f"{pool.op} and {node.op} became one {op}",
            op=op,
            inputs=inputs,
            attrs={**attrs, "keepdims": 0},
            fidelity=self._fidelity(pool),
        )

    def whole_map(self, node: Node) -> None:
        """Replace pooling whose only window is the whole map with global pooling."""
        shape = self.flow.shape(node.inputs[0])
        kernel = tuple(node.attrs.get("kernel_shape", ()))
        dtype = node.inputs[0].dtype
        if shape is None or dtype is None or np.dtype(dtype) not in _FLOATS:
            return
        if len(node.outputs) > 1 or kernel != shape[2:]:
            return
        plain = node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        if any(node.attrs.get("pads") or ()) or not plain:
            self.rw.skip(node, "its window is the whole map, but it pads")  # declines 3
            return
        if set(node.attrs.get("dilations") or (1,)) == {1}:
            op = _WHOLE_MAP[node.op]
            inputs, fidelity = [node.inputs[0]], self._fidelity(node)
            what = f"{node.op} of the whole map is {op}"
            self.rw.update(node, what, op=op, inputs=inputs, attrs={}, fidelity=fidelity)


def _reduced(shape: Shape, axes: tuple[int, ...], *, keepdims: bool) -> Shape:
    if keepdims:
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)

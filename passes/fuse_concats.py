"""Merge Concat with Concat, and neighbouring inputs of a Concat with each other.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[N, 2] x, float[N, 3] z) => (float[N, 8] y) {
        a = Concat <axis = 1> (x, z)
        y = Concat <axis = -1> (a, z)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[N, 2] x, float[N, 3] z) => (float[N, 8] y) {
        y = Concat <axis = 1> (x, z, z)
    }
    ```
    In the same way:
    - neighbouring Slices of one tensor, one beginning where the other ends, become one Slice;
    - neighbouring constants become one constant;
    - inputs that are empty along the axis are removed.

Why it is correct:
    Concat along one axis is associative; x[a:b] followed by x[b:c] is x[a:c].

Declines when:
    1. The inner Concat has other users: its result would be computed twice.
    2. A constant has other users: it would be stored twice.
    3. The Slices have other bounds too, or other users.

Fidelity:
    EXACT.

Reference:
    The ONNX operator specification: Concat, Slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.shape_rules import slice_ranges
from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.graph.ir import Constant, Node
from onnxslim.graph.operands import const_array
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult

_MAX_BYTES: Final = 1 << 24  # of constants that are copied together


@dataclass(frozen=True)
class FuseConcats(RewritePass):
    """Merge Concat with Concat, and neighbouring inputs of a Concat with each other."""

    name: ClassVar[str] = "fuse-concats"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Flatten every Concat, then look at its neighbours."""
        rw = self.rewriter(graph)
        fuser = _ConcatFuser(rw, SizeFlow(graph, rw.opset))
        for node in rw.walk("Concat"):
            if not fuser.merge_nested(node):
                fuser.merge_neighbours(node)
        return rw.result()


class _ConcatFuser:
    def __init__(self, rw: Rewriter, flow: SizeFlow) -> None:
        self.rw = rw
        self.flow = flow

    def merge_nested(self, node: Node) -> bool:
        """Replace ``Concat(Concat(a, b), c)`` with ``Concat(a, b, c)``."""
        if not any(self.rw.producer(tensor, "Concat") for tensor in node.inputs):
            return False
        axis = self._axis(node)
        inputs: list[gs.Tensor] = []
        for tensor in node.inputs:
            inner = self.rw.producer(tensor, "Concat")
            if inner is None or axis is None or self._axis(inner) != axis:
                inputs.append(tensor)
            elif self.rw.private_producer(tensor, "Concat") is None:
                self.rw.skip(node, "the Concat it reads has other users")  # declines 1
                inputs.append(tensor)
            else:
                inputs += inner.inputs
        if len(inputs) == len(node.inputs):
            return False
        self.rw.update(node, "nested Concat merged", inputs=inputs, attrs={"axis": axis})
        return True

    def _axis(self, node: Node) -> int | None:
        axis = int(node.attrs.get("axis", 1))
        if axis >= 0:
            return axis
        shape = self.flow.shape(node.outputs[0])
        return None if shape is None else axis % len(shape)

    def merge_neighbours(self, node: Node) -> None:
        """Merge inputs of one Concat with each other."""
        axis = self._axis(node)
        if axis is None or len(node.inputs) < 2:
            return
        if all(0 in (self.flow.shape(tensor) or ()) for tensor in node.inputs):
            return  # onnxruntime takes the other sizes of the first one
        inputs: list[gs.Tensor] = []
        for tensor in node.inputs:
            if self._is_empty(tensor, axis):
                continue
            merged = self._merged(node, inputs[-1], tensor, axis) if inputs else None
            if merged is None:
                inputs.append(tensor)
            else:
                inputs[-1] = merged
        if inputs and len(inputs) < len(node.inputs):
            self.rw.update(node, "neighbouring inputs merged", inputs=inputs)

    def _is_empty(self, tensor: gs.Tensor, axis: int) -> bool:
        shape = self.flow.shape(tensor)
        return shape is not None and axis < len(shape) and shape[axis] == 0

    def _merged(self, node: Node, left: gs.Tensor, right: gs.Tensor, axis: int) -> gs.Tensor | None:
        constant = self._constants(left, right, axis)
        return constant if constant is not None else self._slices(node, left, right, axis)

    def _constants(self, left: gs.Tensor, right: gs.Tensor, axis: int) -> Constant | None:
        if not isinstance(left, Constant) or not isinstance(right, Constant):
            return None
        if self.rw.uses(left) > 1 or self.rw.uses(right) > 1:
            self.rw.skip(left.name, "this constant is used elsewhere too")  # declines 2
            return None
        a, b = const_array(left), const_array(right)
        if a is None or b is None or a.nbytes + b.nbytes > _MAX_BYTES:
            return None
        return self.rw.constant(np.concatenate([a, b], axis), left.name)

    def _slices(self, node: Node, left: gs.Tensor, right: gs.Tensor, axis: int) -> gs.Tensor | None:
        """One Slice for two that touch; both of them must be private to `node`."""
        first = self.rw.private_producer(left, "Slice")
        second = self.rw.private_producer(right, "Slice")
        if first is None or second is None or first is second:
            return None
        if first.inputs[0] is not second.inputs[0] or self.rw.opset < 10:
            return None
        a, b = slice_ranges(first, self.flow), slice_ranges(second, self.flow)
        if a is None or b is None or list(a) != [axis] or list(b) != [axis]:
            return None  # declines 3
        (start, middle, step), (again, end, other) = a[axis], b[axis]
        if middle != again or step != 1 or other != 1 or not _are_ordered(start, middle, end):
            return None
        bounds = [
            self.rw.constant(np.array([value], np.int64), name)
            for name, value in (("starts", start), ("ends", end), ("axes", axis))
        ]
        return self.rw.insert(
            node,
            "Slice",
            [first.inputs[0], *bounds],
            name=f"{node.label}_part",
            dtype=left.dtype,
            shape=None,
        )[0]


def _are_ordered(start: object, middle: object, end: object) -> bool:
    """Whether 0 <= start <= middle <= end, all known."""
    bounds = [bound for bound in (start, middle, end) if isinstance(bound, int)]
    return len(bounds) == 3 and 0 <= bounds[0] <= bounds[1] <= bounds[2]

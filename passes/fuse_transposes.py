"""Merge Transposes, and remove those that cancel across elementwise operators.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (float[N, 3, 4] x) => (float[N, 3, 4] y) {
        c = Constant <value = float[3] {1.0, 2.0, 3.0}> ()
        a = Transpose <perm = [0, 2, 1]> (x)
        b = Mul (a, c)
        r = Relu (b)
        y = Transpose <perm = [0, 2, 1]> (r)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (float[N, 3, 4] x) => (float[N, 3, 4] y) <float[3, 1] c = {1.0, 2.0, 3.0}> {
        b = Mul (x, c)
        y = Relu (b)
    }
    ```
    In the same way:
    - Transpose of a Transpose becomes one Transpose, or none;
    - an operator on two equal Transposes becomes the Transpose of that operator;
    - a Transpose that moves only axes of size 1 becomes part of a Reshape beside it;
    - a Reduce behind a Transpose reduces other axes of the Transpose's input, where the remaining
      axes are in order.

Why it is correct:
    Elementwise operators commute with a permutation of the axes when all operands are permuted
    alike; constants are permuted at compile time. Axes of size 1 do not affect the order of
    elements.

Declines when:
    1. No node would be saved: a value in between has other users, or nothing cancels.
    2. A constant in between is used elsewhere, and would be stored twice.
    3. The rank, or the operands in between, are not known.

Fidelity:
    CLOSE where a floating-point sum is taken in another order (Reduce), else EXACT.

Reference:
    The ONNX operator specification: Transpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.analysis.reshaping import reshape_target
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import axes_of, const_array, const_value, normalized
from onnxslim.graph.rewrite import Rewriter
from onnxslim.graph.sizes import Shape
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.records import Fidelity, PassResult

Perm = tuple[int, ...]

_UNARY_NAMES: Final = (
    "Abs Cast Ceil Celu Clip Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu "
    "Log Mish Neg Not Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Tanh "
    "ThresholdedRelu"
)
_UNARY: Final = frozenset(_UNARY_NAMES.split())  # of the first input; others are scalars
_BINARY_NAMES: Final = "Add And Div Equal Greater Less Max Min Mul Or Pow PRelu Sub Sum Where Xor"
_BINARY: Final = frozenset(_BINARY_NAMES.split())
_RESHAPING: Final = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_ORDER_FREE: Final = frozenset(("ReduceMax", "ReduceMin"))
_REDUCE: Final = (*_ORDER_FREE, "ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2")


@dataclass(frozen=True)
class FuseTransposes(Pass):
    """Merge Transposes, and remove those that cancel across elementwise operators."""

    name: ClassVar[str] = "fuse-transposes"
    fidelity: ClassVar[Fidelity] = Fidelity.CLOSE

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Search upwards from every Transpose, Reshape, Reduce and binary operator."""
        rw = Rewriter(graph)
        if not any(node.op == "Transpose" for part in rw.graphs() for node in part.nodes):
            return rw.result()
        fuser = _TransposeFuser(rw, SizeFlow(graph, rw.opset))
        for node in rw.walk("Transpose", *_RESHAPING, *_REDUCE, *_BINARY):
            if node.op == "Transpose":
                fuser.merge_upwards(node)
            elif node.op in _RESHAPING:
                fuser.absorb_into_reshape(node)
            elif node.op in _REDUCE:
                fuser.absorb_into_reduce(node)
            else:
                fuser.sink_below(node)
        return rw.result()


@dataclass
class _ElementwiseRegion:
    """Elementwise nodes between Transposes; each node has one user, inside the region.

    Attributes:
        perm: the permutation that all Transposes above the region share.
        nodes: consumers before producers.
        leaves: (node, input index, tensor above the Transpose) for each Transpose that is read.
        constants: (node, input index, constant) for each constant that is read.
        dying: Transposes that nothing outside the region uses.
    """

    perm: Perm | None = None
    nodes: list[Node] = field(default_factory=list)
    leaves: list[tuple[Node, int, gs.Tensor]] = field(default_factory=list)
    constants: list[tuple[Node, int, gs.Tensor]] = field(default_factory=list)
    dying: set[Node] = field(default_factory=set)


class _TransposeFuser:
    def __init__(self, rw: Rewriter, flow: SizeFlow) -> None:
        self.rw = rw
        self.flow = flow

    def perm(self, node: Node) -> Perm | None:
        """The permutation of a Transpose, None when its default is of unknown rank."""
        perm = node.attrs.get("perm")
        if perm:
            return tuple(perm)
        shape = self.flow.shape(node.inputs[0])
        return None if shape is None else tuple(range(len(shape)))[::-1]

    # ------------------------------------------------------------- from a Transpose

    def merge_upwards(self, node: Node) -> None:
        """Merge with the Transpose above, directly or across elementwise operators."""
        perm = self.perm(node)
        above = self.rw.producer(node.inputs[0], "Transpose")
        if perm is None:
            return  # declines 3
        if above is not None:
            self._merge(node, perm, above)
        elif not self._into_reshape(node, perm):
            self._cancel(node, perm)

    def _merge(self, node: Node, perm: Perm, above: Node) -> None:
        first = self.perm(above)
        if first is None or len(first) != len(perm):
            return
        both = tuple(first[axis] for axis in perm)
        if both == tuple(range(len(both))):
            self.rw.substitute(node, above.inputs[0], "a Transpose and its inverse")
        elif self.rw.private_producer(node.inputs[0], "Transpose") is None:
            self.rw.skip(node, "the Transpose before it has other users")  # declines 1
        else:
            attrs = {"perm": list(both)}
            what = "two Transposes became one"
            self.rw.update(node, what, inputs=[above.inputs[0]], attrs=attrs)

    def _into_reshape(self, node: Node, perm: Perm) -> bool:
        """Replace ``Transpose(Reshape(x))`` that moves only size-1 axes with a Reshape."""
        before = self.rw.private_producer(node.inputs[0], *_RESHAPING)
        shape = self.flow.shape(node.inputs[0])
        if before is None or shape is None or not _moves_only_ones(shape, perm):
            return False
        return self._as_reshape(node, before.inputs[0])

    def absorb_into_reshape(self, node: Node) -> None:
        """Replace ``Reshape(Transpose(x))`` that moves only size-1 axes with a Reshape."""
        above = self.rw.private_producer(node.inputs[0], "Transpose")
        perm = None if above is None else self.perm(above)
        shape = None if above is None else self.flow.shape(above.inputs[0])
        if above is None or perm is None or shape is None or not _moves_only_ones(shape, perm):
            return
        self._as_reshape(node, above.inputs[0])

    def _as_reshape(self, node: Node, source: gs.Tensor) -> bool:
        after = self.flow.shape(node.outputs[0])
        target = None if after is None else reshape_target(self.flow.shape(source), after)
        if target is None or self.rw.opset < 5:
            return False
        inputs = [source, self.rw.constant(np.array(target, np.int64), "target")]
        what = "a Transpose of size-1 axes became part of a Reshape"
        self.rw.update(node, what, op="Reshape", inputs=inputs, attrs={})
        return True

    def _cancel(self, node: Node, perm: Perm) -> None:
        """Merge with the Transposes on the other side of elementwise operators."""
        region = self._region(node.inputs[0], len(perm))
        if region is None or region.perm is None:
            return
        both = tuple(region.perm[axis] for axis in perm)
        cancels = both == tuple(range(len(both)))
        if not region.nodes or len(region.dying) + cancels < 1:
            self.rw.skip(node, "moving it would not save a node")  # declines 1
            return
        if cancels and not self.rw.can_substitute(node, node.inputs[0]):
            return
        result = self._rebuilt(region, node)
        if cancels:
            self.rw.substitute(node, result, "it cancels against an inverse Transpose")
        else:
            what = "merged with a Transpose across elementwise operators"
            self.rw.update(node, what, inputs=[result], attrs={"perm": list(both)})

    def sink_below(self, node: Node) -> None:
        """Replace ``Add(Transpose(x), Transpose(z))`` with ``Transpose(Add(x, z))``."""
        above = [self.rw.producer(tensor, "Transpose") for tensor in node.inputs]
        if sum(item is not None for item in above) < 2:
            return
        shape = self.flow.shape(node.outputs[0])
        if shape is None or node.op == "PRelu":
            return
        region = _ElementwiseRegion()
        if not self._visit(node, len(shape), region) or region.perm is None:
            return
        if len(region.dying) < 2:
            self.rw.skip(node, "moving Transposes behind it would not save a node")  # declines 1
            return
        result = self._rebuilt(region, node)
        what = f"{node.op} of Transposes became a Transpose of {node.op}"
        attrs = {"perm": list(region.perm)}
        self.rw.update(node, what, op="Transpose", inputs=[result], attrs=attrs)

    # ------------------------------------------------------------- regions

    def _region(self, tensor: gs.Tensor, ndim: int) -> _ElementwiseRegion | None:
        """The elementwise nodes above `tensor` up to Transposes and constants."""
        region = _ElementwiseRegion()
        stack = [tensor]
        while stack:
            node = self.rw.private_producer(stack.pop(), *_UNARY, *_BINARY)
            if node is None or not self._visit(node, ndim, region, stack):
                return None
        return region

    def _visit(
        self,
        node: Node,
        ndim: int,
        region: _ElementwiseRegion,
        stack: list[gs.Tensor] | None = None,
    ) -> bool:
        """Record the inputs of `node`; computed ones go on `stack`. False: it is no region."""
        region.nodes.append(node)
        if node.op in _BINARY and self.rw.opset < 7:
            return False
        count = 1 if node.op in _UNARY else len(node.inputs)
        for index, tensor in enumerate(node.inputs[:count]):
            above = self.rw.producer(tensor, "Transpose")
            if above is not None:
                perm = self.perm(above)
                if perm is None or len(perm) != ndim or region.perm not in (None, perm):
                    return False
                region.perm = perm
                region.leaves.append((node, index, above.inputs[0]))
                if self._dies(above, region):
                    region.dying.add(above)
            elif const_value(tensor) is not None:
                if not self._can_permute(tensor, ndim):
                    return False
                region.constants.append((node, index, tensor))
            elif stack is None:
                return False
            else:
                stack.append(tensor)
        return True

    def _dies(self, transpose: Node, region: _ElementwiseRegion) -> bool:
        """Whether nothing outside the region uses a Transpose."""
        output = transpose.outputs[0]
        inside = [n for n, i, _ in region.leaves if n.inputs[i] is output]
        return not self.rw.is_output(output) and len(output.outputs) == len(inside)

    def _can_permute(self, tensor: gs.Tensor, ndim: int) -> bool:
        value = const_value(tensor)
        if value is None or len(value.shape) > ndim:
            return False
        return value.size == 1 or self.rw.uses(tensor) == 1

    def _rebuilt(self, region: _ElementwiseRegion, before: Node) -> gs.Tensor:
        """The region without its Transposes, as new nodes in front of `before`."""
        inverse = _inverse(region.perm or ())
        given = {(node, index): source for node, index, source in region.leaves}
        for node, index, tensor in region.constants:
            given[node, index] = self._permuted(tensor, inverse)
        new: dict[gs.Tensor, gs.Tensor] = {}
        for node in reversed(region.nodes):  # producers first
            old = node.outputs[0]
            new[old] = self.rw.insert(
                before,
                node.op,
                [given.get((node, i), new.get(t, t)) for i, t in enumerate(node.inputs)],
                node.attrs,
                name=old.name,
                dtype=old.dtype,
                shape=_permuted_shape(old.shape, inverse),
            )[0]
        return new[region.nodes[0].outputs[0]]

    def _permuted(self, tensor: gs.Tensor, inverse: Perm) -> gs.Tensor:
        array = const_array(tensor)
        if array is None or array.size == 1:
            return tensor
        full = array.reshape((1,) * (len(inverse) - array.ndim) + array.shape).transpose(inverse)
        while full.ndim > 1 and full.shape[0] == 1:
            full = full[0]
        return self.rw.constant(np.ascontiguousarray(full), tensor.name)

    # ------------------------------------------------------------- from a Reduce

    def absorb_into_reduce(self, node: Node) -> None:
        """Replace ``Reduce(Transpose(x))`` with a Reduce of other axes of x."""
        above = self.rw.private_producer(node.inputs[0], "Transpose")
        perm = None if above is None else self.perm(above)
        if above is None or perm is None or node.op not in _REDUCE:
            return
        axes = normalized(axes_of(node, self.rw.opset), len(perm))
        if not axes:
            return
        kept = [axis for place, axis in enumerate(perm) if place not in axes]
        stays = not node.attrs.get("keepdims", 1) or all(
            place in axes or place == axis for place, axis in enumerate(perm)
        )
        if kept != sorted(kept) or not stays:
            return  # declines 1: the result would have to be transposed
        turned = sorted(perm[axis] for axis in axes)
        attrs = {name: value for name, value in node.attrs.items() if name != "axes"}
        inputs = [above.inputs[0]]
        if "axes" in node.attrs:
            attrs["axes"] = turned
        else:
            inputs.append(self.rw.constant(np.array(turned, np.int64), "axes"))
        exact = node.op in _ORDER_FREE or np.dtype(node.inputs[0].dtype or "f4").kind in "iu"
        self.rw.update(
            node,
            f"{node.op} of a Transpose reduces other axes instead",
            inputs=inputs,
            attrs=attrs,
            fidelity=Fidelity.EXACT if exact else Fidelity.CLOSE,
        )


def _inverse(perm: Sequence[int]) -> Perm:
    return tuple(int(axis) for axis in np.argsort(perm))


def _permuted_shape(
    shape: list[int | str | None] | None, perm: Perm
) -> list[int | str | None] | None:
    if shape is None or len(shape) != len(perm):
        return None
    return [shape[axis] for axis in perm]


def _moves_only_ones(shape: Shape, perm: Perm) -> bool:
    """Whether the axes that are not 1 stay in order; `shape` is that of the Transpose's input."""
    places = [axis for axis in perm if shape[axis] != 1]
    return places == sorted(places)

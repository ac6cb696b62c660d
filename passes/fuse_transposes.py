"""Merge Transposes, and remove those that cancel across operators that commute with them.

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
    - Transposes cancel across Softmax, reductions, Concat, Split, Slice, Pad, ArgMax,
      LayerNormalization, RMSNormalization and quantization as well, whose axes move with them;
    - a Transpose that moves only axes of size 1 becomes part of a Reshape beside it;
    - a chain of Reshapes and Transposes that in all is one of each, or less, is written so: such
      as the transposition of the last two axes of four, after the first two were joined;
    - a Reduce, ArgMax or ArgMin behind a Transpose reduces other axes of the Transpose's input,
      where the remaining axes are in order.

Why it is correct:
    Elementwise operators commute with a permutation of the axes when all operands are permuted
    alike; constants are permuted at compile time. An operator along an axis commutes when it works
    along the axis of that place before the permutation (`analysis/permuting.py`). Axes of size 1 do
    not affect the order of elements.

Declines when:
    1. No Transpose would be saved: values in between have other users, or nothing cancels.
    2. A constant in between is used elsewhere, and would be stored twice.
    3. The rank, or the operands in between, are not known.
    4. An operator that onnxruntime recognises by its nodes, such as a spelled LayerNormalization,
       would be torn or work along another axis than the last: it would run node by node.

Fidelity:
    CLOSE where a floating-point sum is taken in another order (Reduce, Softmax), else EXACT.

Reference:
    The ONNX operator specification: Transpose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.axis_factors import Layout, followed_chain, moving_chain
from onnxslim.analysis.compound_operators import Compound, compounds
from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.analysis.permuting import (
    COMMUTING,
    Moved,
    Perm,
    composed,
    inverse,
    is_identity,
    moved,
    permuted_inputs,
)
from onnxslim.analysis.reshaping import reshape_target
from onnxslim.graph.ir import Node, Variable
from onnxslim.graph.operands import axes_of, const_array, const_value, normalized
from onnxslim.graph.rewrite import Rewriter
from onnxslim.graph.sizes import Shape
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult

_RESHAPING: Final = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_ORDER_FREE: Final = frozenset(("ReduceMax", "ReduceMin", "ArgMax", "ArgMin"))
_REDUCE: Final = ("ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1")
_DROPPING: Final = (*_REDUCE, "ReduceL2", "ArgMax", "ArgMin")
_OF_ONES: Final = "a Transpose of size-1 axes became part of a Reshape"
_MAX_NODES: Final = 64  # of a region, which bounds what the search from one Transpose costs


@dataclass(frozen=True)
class FuseTransposes(RewritePass):
    """Merge Transposes, and remove those that cancel across operators that commute with them."""

    name: ClassVar[str] = "fuse-transposes"
    fidelity: ClassVar[Fidelity] = Fidelity.CLOSE

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Search upwards from every Transpose, Reshape, Reduce and binary operator."""
        rw = self.rewriter(graph)
        if not any(node.op == "Transpose" for part in rw.graphs() for node in part.nodes):
            return rw.result()
        found = {node: item for item in compounds(rw) for node in item.match.nodes}
        fuser = _TransposeFuser(rw, SizeFlow(graph, rw.opset), found)
        for node in rw.walk("Transpose", *_RESHAPING, *COMMUTING):
            if node.op in ("Transpose", *_RESHAPING) and fuser.shorten_chain(node):
                continue
            if node.op == "Transpose":
                fuser.merge_upwards(node)
            elif node.op in _RESHAPING:
                fuser.absorb_into_reshape(node)
            elif not fuser.absorb_into_reduce(node):
                fuser.sink_below(node)
        return rw.result()


@dataclass
class _Region:
    """Nodes that commute with the Transposes above them.

    Attributes:
        perm: the permutation that all Transposes above the region share.
        nodes: in the order in which they were found, with how they are written above.
        leaves: (node, input index) of each Transpose that is read -> the tensor above it.
        above: the Transposes that are read.
        constants: (node, input index) of each constant that is read.
    """

    perm: Perm
    nodes: dict[Node, Moved] = field(default_factory=dict)
    leaves: dict[tuple[Node, int], gs.Tensor] = field(default_factory=dict)
    above: set[Node] = field(default_factory=set)
    constants: list[tuple[Node, int]] = field(default_factory=list)


class _TransposeFuser:
    def __init__(self, rw: Rewriter, flow: SizeFlow, compounds: Mapping[Node, Compound]) -> None:
        self.rw = rw
        self.flow = flow
        self.compounds = compounds

    def perm(self, node: Node) -> Perm | None:
        """The permutation of a Transpose, None when its default is of unknown rank."""
        perm = node.attrs.get("perm")
        if perm:
            return tuple(perm)
        shape = self.flow.shape(node.inputs[0])
        return None if shape is None else tuple(range(len(shape)))[::-1]

    # ------------------------------------------------------------- chains with Reshapes

    def shorten_chain(self, node: Node) -> bool:
        """Replace a chain of Reshapes and Transposes by a Reshape, a Transpose, or both."""
        _, nodes = moving_chain(self.rw, node.outputs[0])
        ops = [item.op for item in nodes]
        if len(nodes) < 3 or "Transpose" not in ops[:-1] or not {*ops}.intersection(_RESHAPING):
            return False
        chain = followed_chain(self.rw, self.flow, node.outputs[0])
        if chain is None:
            return False
        spared = 0  # nodes that go away when `node` does not read them
        for place in range(len(chain.nodes) - 2, -1, -1):
            tensor = chain.nodes[place].outputs[0]
            if self.rw.private_producer(tensor) is None:
                break  # declines 1
            spared += 1
        home = self.rw.graph_of(node)
        for place in range(len(chain.nodes) - 2):
            source = chain.tensors[place]
            is_here = all(self.rw.graph_of(item) is home for item in chain.nodes[place:])
            last = len(chain.nodes) - 1
            if is_here and self._as_pair(
                node, source, chain.layout(place), chain.layout(-1), min(spared, last - place)
            ):
                return True
        return False

    def _as_pair(
        self, node: Node, source: gs.Tensor, before: Layout, after: Layout, spared: int
    ) -> bool:
        """Let a Reshape and `node` be all there is between tensors of two layouts.

        Either of them may be left out.
        """
        perm = _permutation(before, after)
        if perm is not None and spared:
            self._transpose(node, source, perm)
            return True
        order = _runs(before, after)
        if order is None or not spared:
            return False
        if is_identity(order):
            return self._as_reshape(node, source, "a chain of Reshapes and Transposes became one")
        shape = self.flow.shape(node.outputs[0])
        if spared < 2 or shape is None or self.rw.opset < 5:
            return False
        target = reshape_target(self.flow.shape(source), [shape[axis] for axis in order])
        if target is None:
            return False
        constant = self.rw.constant(np.array(target, np.int64), "target")
        (regrouped,) = self.rw.insert(
            node, "Reshape", [source, constant], name=f"{source.name}_axes", dtype=source.dtype
        )
        self._transpose(node, regrouped, inverse(order))
        return True

    def _transpose(self, node: Node, source: gs.Tensor, perm: Perm) -> None:
        what = "a chain of Reshapes and Transposes became one Transpose"
        attrs = {"perm": list(perm)}
        self.rw.update(node, what, op="Transpose", inputs=[source], attrs=attrs)

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
        both = composed(first, perm)
        if is_identity(both):
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
        return self._as_reshape(node, before.inputs[0], _OF_ONES)

    def absorb_into_reshape(self, node: Node) -> None:
        """Replace ``Reshape(Transpose(x))`` that moves only size-1 axes with a Reshape."""
        above = self.rw.private_producer(node.inputs[0], "Transpose")
        perm = None if above is None else self.perm(above)
        shape = None if above is None else self.flow.shape(above.inputs[0])
        if above is None or perm is None or shape is None or not _moves_only_ones(shape, perm):
            return
        self._as_reshape(node, above.inputs[0], _OF_ONES)

    def _as_reshape(self, node: Node, source: gs.Tensor, what: str) -> bool:
        after = self.flow.shape(node.outputs[0])
        target = None if after is None else reshape_target(self.flow.shape(source), after)
        if target is None or self.rw.opset < 5:
            return False
        inputs = [source, self.rw.constant(np.array(target, np.int64), "target")]
        self.rw.update(node, what, op="Reshape", inputs=inputs, attrs={})
        return True

    def _cancel(self, node: Node, perm: Perm) -> None:
        """Merge with the Transposes on the other side of operators that commute with them."""
        below = self.rw.producer(node.inputs[0], *COMMUTING)
        if below is not None and self.rw.graph_of(below) is self.rw.graph_of(node):
            self._rewrite(below, len(perm))

    def sink_below(self, node: Node) -> None:
        """Replace ``Add(Transpose(x), Transpose(z))`` with ``Transpose(Add(x, z))``."""
        above = [self.rw.producer(tensor, "Transpose") for tensor in node.inputs]
        perms = [self.perm(item) for item in above if item is not None]
        if len(perms) > 1 and perms[0] is not None:
            self._rewrite(node, max(len(perm) for perm in perms if perm is not None))

    # ------------------------------------------------------------- regions

    def _rewrite(self, seed: Node, ndim: int) -> None:
        """Take the Transposes above the region of `seed` to below it, where that saves some."""
        region = self._region(seed, ndim)
        if region is None:
            return
        if self._breaks_compound(region):
            self.rw.skip(seed, "a Transpose among its nodes would cost onnxruntime a fused kernel")
            return  # declines 4
        gone, made = self._gone(region), self._made(region)
        if not made and not self._below(region):
            return  # nothing reads it
        if any(self.rw.is_output(t) and len(t.inputs[0].outputs) > 1 for t in made):
            return  # an output of a Split keeps its name
        if len(gone) <= len(made) or sum(map(_volume, gone)) < sum(map(_volume, made)):
            self.rw.skip(seed, "moving Transposes across it would not save a node")  # declines 1
            return
        self._move(region, made)

    def _breaks_compound(self, region: _Region) -> bool:
        """Whether an operator of several nodes would be torn, or work along another axis."""
        touched = (self.compounds[node] for node in region.nodes if node in self.compounds)
        keeps_last = not region.perm or region.perm[-1] == len(region.perm) - 1
        return any(
            not region.nodes.keys() >= set(item.match.nodes)
            or (not keeps_last and not item.is_elementwise)
            for item in touched
        )

    def _region(self, seed: Node, ndim: int) -> _Region | None:
        """The nodes from `seed` up to Transposes by one permutation, and constants."""
        perm = self._perm_above(seed, ndim)
        if perm is None:
            return None
        region, stack = _Region(perm), [seed]
        while stack:
            node = stack.pop()
            if node in region.nodes:
                continue
            if len(region.nodes) == _MAX_NODES:
                return None
            how = moved(node, perm, self.rw.opset)
            if how is None:
                return None  # declines 3
            region.nodes[node] = how
            if not self._visit(node, region, stack):
                return None  # declines 3
        sources = [tensor.inputs[0] for tensor in region.leaves.values() if tensor.inputs]
        return None if any(node in region.nodes for node in sources) else region

    def _perm_above(self, seed: Node, ndim: int) -> Perm | None:
        """The permutation of the first Transpose of `ndim` axes that is found above `seed`."""
        stack, seen = [seed], set[Node]()
        while stack and len(seen) < _MAX_NODES:
            node = stack.pop()
            seen.add(node)
            for tensor in list(node.inputs)[: permuted_inputs(node)]:
                above = self.rw.producer(tensor, "Transpose", *COMMUTING)
                if above is None or above in seen:
                    continue
                if above.op != "Transpose":
                    stack.append(above)
                    continue
                perm = self.perm(above)
                if perm is not None and len(perm) == ndim:
                    return perm
        return None

    def _visit(self, node: Node, region: _Region, stack: list[Node]) -> bool:
        """Record the inputs of `node`; computed ones go on `stack`. False: it is no region."""
        is_full = False  # whether some input has all axes, and so the output
        for index, tensor in enumerate(list(node.inputs)[: permuted_inputs(node)]):
            above = self.rw.producer(tensor, "Transpose", *COMMUTING)
            if above is not None and self.rw.graph_of(above) is not self.rw.graph_of(node):
                return False
            if const_value(tensor) is not None:
                if not self._can_permute(node, tensor, len(region.perm)):
                    return False
                region.constants.append((node, index))
            elif above is not None and above.op == "Transpose":
                perm = self.perm(above)
                if perm is None or not _agrees(perm, region.perm):
                    return False
                is_full = is_full or len(perm) == len(region.perm)
                region.leaves[node, index] = above.inputs[0]
                region.above.add(above)
            elif self._is_single(tensor, len(region.perm)) and node.op != "Concat":
                continue
            elif above is not None:
                is_full = True
                stack.append(above)
            else:
                return False
        return is_full

    def _is_single(self, tensor: gs.Tensor, ndim: int) -> bool:
        """Whether a tensor has one element, which no permutation moves."""
        shape = self.flow.shape(tensor)
        return shape is not None and len(shape) <= ndim and all(size == 1 for size in shape)

    def _can_permute(self, node: Node, tensor: gs.Tensor, ndim: int) -> bool:
        value = const_value(tensor)
        if value is None or len(value.shape) > ndim:
            return False
        if node.op == "Concat":
            return self.rw.uses(tensor) == 1 and len(value.shape) == ndim
        return value.size == 1 or self.rw.uses(tensor) == 1  # declines 2

    def _gone(self, region: _Region) -> list[Node]:
        """The Transposes that nothing needs any more."""
        above = [
            node
            for node in region.above
            if not self.rw.is_output(node.outputs[0])
            and all(user in region.nodes for user in node.outputs[0].outputs)
        ]
        below = [user for _, user in self._below(region) if self._cancels(region, user)]
        return [*above, *below]

    def _cancels(self, region: _Region, user: Node) -> bool:
        perm = self._perm_below(region, user)
        return perm is not None and is_identity(composed(region.perm, perm))

    def _perm_below(self, region: _Region, user: Node) -> Perm | None:
        """The permutation of a Transpose below the region; None for any other node."""
        perm = self.perm(user) if user.op == "Transpose" and user.is_onnx else None
        return perm if perm is not None and len(perm) == len(region.perm) else None

    def _below(self, region: _Region) -> list[tuple[gs.Tensor, Node]]:
        """Each tensor of the region, and each node outside that reads it."""
        return [
            (tensor, user)
            for node in region.nodes
            for tensor in node.outputs
            for user in dict.fromkeys(tensor.outputs)
            if user not in region.nodes
        ]

    def _made(self, region: _Region) -> list[gs.Tensor]:
        """The tensors that others than Transposes read, each of which needs one of its own."""
        read = [t for t, user in self._below(region) if self._perm_below(region, user) is None]
        returned = [t for node in region.nodes for t in node.outputs if self.rw.is_output(t)]
        return list(dict.fromkeys((*read, *returned)))

    def _move(self, region: _Region, made: list[gs.Tensor]) -> None:
        """Rewrite the nodes of the region on the inputs of the Transposes above it."""
        below = self._below(region)
        rounds = any(how.rounds for how in region.nodes.values())
        new = self._rebuilt(region)
        for tensor, user in below:
            perm = self._perm_below(region, user)
            if perm is not None:
                self._take_over(user, new[tensor], composed(region.perm, perm), rounds=rounds)
        for tensor in made:
            node = tensor.inputs[0]
            attrs = {"perm": list(region.perm)}
            what = f"{node.op} of Transposes became a Transpose of {node.op}"
            fidelity = Fidelity.CLOSE if rounds else Fidelity.EXACT
            if len(node.outputs) == 1:
                inputs = [new[tensor]]
                self.rw.update(
                    node, what, op="Transpose", inputs=inputs, attrs=attrs, fidelity=fidelity
                )
            else:
                (turned,) = self.rw.insert(
                    node, "Transpose", [new[tensor]], attrs, name=tensor.name, dtype=tensor.dtype
                )
                turned.shape = tensor.shape
                self.rw.redirect(tensor, turned)
                self.rw.note(node.label, what, fidelity)

    def _take_over(self, user: Node, source: gs.Tensor, perm: Perm, *, rounds: bool) -> None:
        """Let a Transpose below the region read `source` and permute it by `perm`."""
        fidelity = Fidelity.CLOSE if rounds else Fidelity.EXACT
        if not is_identity(perm):
            what = "merged with a Transpose across operators"
            attrs = {"perm": list(perm)}
            self.rw.update(user, what, inputs=[source], attrs=attrs, fidelity=fidelity)
            return
        what = "it cancels against an inverse Transpose"
        if not self.rw.substitute(user, source, what, fidelity):
            self.rw.update(user, what, op="Identity", inputs=[source], attrs={}, fidelity=fidelity)

    def _rebuilt(self, region: _Region) -> dict[gs.Tensor, gs.Tensor]:
        """The region without its Transposes as new nodes: old tensors -> new ones."""
        back = inverse(region.perm)
        given = dict(region.leaves)
        for node, index in region.constants:
            given[node, index] = self._permuted(node, node.inputs[index], back)
        new: dict[gs.Tensor, gs.Tensor] = {}
        for node in self._in_order(region):
            how = region.nodes[node]
            inputs = [given.get((node, i), new.get(t, t)) for i, t in enumerate(node.inputs)]
            for index, values in how.operands.items():
                inputs += [Variable("") for _ in range(index + 1 - len(inputs))]
                inputs[index] = self.rw.constant(values, f"{node.label}_axes")
            results = self.rw.insert(
                node,
                node.op,
                inputs,
                dict(how.attrs),
                name=node.label,
                outputs=len(node.outputs),
            )
            for old, result in zip(node.outputs, results, strict=True):
                result.dtype, result.shape = old.dtype, _permuted_shape(old.shape, back)
                new[old] = result
        return new

    def _in_order(self, region: _Region) -> list[Node]:
        """The nodes of the region, producers first."""
        order: dict[Node, None] = {}
        stack = list(region.nodes)
        while stack:
            node = stack[-1]
            first = [
                tensor.inputs[0]
                for tensor in node.inputs
                if len(tensor.inputs) == 1
                and tensor.inputs[0] in region.nodes
                and tensor.inputs[0] not in order
            ]
            if first and node not in order:
                stack += first
            else:
                order[stack.pop()] = None
        return list(order)

    def _permuted(self, node: Node, tensor: gs.Tensor, back: Perm) -> gs.Tensor:
        array = const_array(tensor)
        if array is None or (array.size == 1 and node.op != "Concat"):
            return tensor
        full = array.reshape((1,) * (len(back) - array.ndim) + array.shape).transpose(back)
        while full.ndim > 1 and full.shape[0] == 1 and node.op != "Concat":
            full = full[0]
        return self.rw.constant(np.ascontiguousarray(full), tensor.name)

    # ------------------------------------------------------------- from a Reduce

    def absorb_into_reduce(self, node: Node) -> bool:
        """Replace ``Reduce(Transpose(x))`` with a Reduce of other axes of x."""
        if node.op not in _DROPPING:
            return False
        above = self.rw.private_producer(node.inputs[0], "Transpose")
        perm = None if above is None else self.perm(above)
        if above is None or perm is None:
            return False
        axes = self._reduced_axes(node, len(perm))
        if not axes:
            return False
        kept = [axis for place, axis in enumerate(perm) if place not in axes]
        stays = not node.attrs.get("keepdims", 1) or all(
            place in axes or place == axis for place, axis in enumerate(perm)
        )
        if kept != sorted(kept) or not stays:
            return False  # declines 1: the result would have to be transposed
        turned = sorted(perm[axis] for axis in axes)
        attrs = {name: value for name, value in node.attrs.items() if name != "axes"}
        inputs = [above.inputs[0]]
        if node.op in ("ArgMax", "ArgMin"):
            attrs["axis"] = turned[0]
        elif "axes" in node.attrs:
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
        return True

    def _reduced_axes(self, node: Node, ndim: int) -> tuple[int, ...] | None:
        if node.op in ("ArgMax", "ArgMin"):
            return normalized((int(node.attrs.get("axis", 0)),), ndim)
        return normalized(axes_of(node, self.rw.opset), ndim)


def _agrees(perm: Perm, other: Perm) -> bool:
    """Whether `perm`, of the last axes, does what `other` does, which leaves the rest in place."""
    lead = len(other) - len(perm)
    return lead >= 0 and other == (*range(lead), *(lead + axis for axis in perm))


def _volume(item: Node | gs.Tensor) -> int:
    """Elements of a tensor, or of what a node returns, as far as sizes are known."""
    shape = (item.outputs[0] if isinstance(item, Node) else item).shape or ()
    return math.prod(size for size in shape if isinstance(size, int))


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


def _permutation(before: Layout, after: Layout) -> Perm | None:
    """The permutation that takes the axes of one layout to those of the other."""
    if len(before) != len(after):
        return None
    left = list(range(len(before)))
    perm: list[int] = []
    for axis in after:
        place = next((place for place in left if before[place] == axis), None)
        if place is None:
            return None
        left.remove(place)
        perm.append(place)
    return tuple(perm)


def _runs(before: Layout, after: Layout) -> tuple[int, ...] | None:
    """The axes of `after` in the order in which `before` has what they hold.

    None where an axis holds what is not together, and in this order, in `before`.
    """
    flat = [factor for axis in before for factor in axis]
    if sorted(flat) != sorted(factor for axis in after for factor in axis):
        return None
    place = {factor: index for index, factor in enumerate(flat)}
    keys: list[tuple[int, int]] = []
    for index, axis in enumerate(after):
        found = [place[factor] for factor in axis]
        if found and found != list(range(found[0], found[0] + len(found))):
            return None
        # an axis of size 1 goes with the one before it
        keys.append((found[0] if found else keys[-1][0] if keys else -1, index))
    return tuple(index for _, index in sorted(keys))

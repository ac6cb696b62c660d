"""Axes as products of factors, followed through operators that only move data.

A Reshape that splits an axis of 768 into 12 heads of 64 cuts one factor in two; a Transpose moves
factors; an Expand makes one that repeats the same values. So whether two tensors hold the same
values in another order, and in which, is read from the factors of their axes, whatever chain of
operators lies between:

    (batch)(length)(heads·width)   -> Reshape, Transpose ->   (batch)(heads)(length)(width)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import min_rank, read_affine
from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array
from onnxslim.graph.rewrite import Rewriter
from onnxslim.graph.sizes import Size, divide, multiply

Axis = tuple[int, ...]
Layout = tuple[Axis, ...]

_RESHAPING: Final = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
_MOVING: Final = (*_RESHAPING, "Transpose", "Expand", "Tile", "Identity")
_LONGEST: Final = 16  # nodes of a chain


class AxisFactors:
    """The factors of the axes of some tensors, each a number; an axis of size 1 has none.

    Attributes:
        layouts: for each tensor, the factors of each axis, outermost first.
        sizes: of each factor.
        repeating: the factors along which all values are the same.
    """

    def __init__(self, flow: SizeFlow) -> None:
        self.layouts: dict[gs.Tensor, Layout] = {}
        self.sizes: list[Size] = []
        self.repeating: set[int] = set()
        self._flow = flow
        self._cuts: dict[int, Axis] = {}  # factors that were cut since the last `_recut`

    def begin(self, tensor: gs.Tensor) -> bool:
        """Give `tensor` a factor for each axis; False where its rank is not known."""
        shape = self._flow.shape(tensor)
        if shape is None:
            return False
        self.layouts[tensor] = tuple(() if size == 1 else (self._new(size),) for size in shape)
        return True

    def follow(self, nodes: Iterable[Node], source: gs.Tensor) -> bool:
        """Follow `source`, whose layout is known, through a chain; False where that fails."""
        for node in nodes:
            layout = self._behind(node, source)
            if layout is None:
                return False
            source = node.outputs[0]
            self.layouts[source] = layout
            self._recut()
        return True

    def size(self, axis: Axis) -> Size:
        """The product of the factors of an axis."""
        result: Size = 1
        for factor in axis:
            result = multiply(result, self.sizes[factor])
        return result

    # ----------------------------------------------------------------- inside

    def _new(self, size: Size) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1

    def _behind(self, node: Node, source: gs.Tensor) -> Layout | None:
        layout = self.layouts[source]
        if node.op == "Transpose":
            perm = node.attrs.get("perm", range(len(layout))[::-1])
            return tuple(layout[axis] for axis in perm)
        if node.op in ("Expand", "Tile"):
            return self._repeated(node, layout)
        if node.op in _RESHAPING:
            shape = self._flow.shape(node.outputs[0])
            return None if shape is None else self._regrouped(layout, shape)
        return layout  # Identity, and products with a number

    def _repeated(self, node: Node, layout: Layout) -> Layout | None:
        shape = self._flow.shape(node.outputs[0])
        if shape is None:
            return None
        aligned = ((),) * (len(shape) - len(layout)) + layout
        result: list[Axis] = []
        for axis, size in zip(aligned, shape, strict=True):
            times = divide(size, self.size(axis))
            if times is None:
                return None
            repeats = () if times == 1 else (self._new(times),)
            self.repeating.update(repeats)
            result.append((*repeats, *axis))
        return tuple(result)

    def _regrouped(self, layout: Layout, shape: Sequence[Size]) -> Layout | None:
        """The factors of `layout` in axes of sizes `shape`; one of them may be an unknown size."""
        rest = [factor for axis in layout for factor in axis]
        first: list[Axis] = []
        last: list[Axis] = []
        sizes = list(shape)
        while sizes and (axis := self._taken(rest, sizes[0], 0)) is not None:
            first.append(axis)
            del sizes[0]
        while sizes and (axis := self._taken(rest, sizes[-1], -1)) is not None:
            last.insert(0, axis)
            del sizes[-1]
        if len(sizes) > 1 or (rest and not sizes):
            return None
        return (*first, *([tuple(rest)] if sizes else []), *last)

    def _taken(self, rest: list[int], size: Size, end: int) -> Axis | None:
        """Factors from one end of `rest` whose product is `size`; takes them, or nothing."""
        kept, cuts, axis = list(rest), dict(self._cuts), []
        wanted: Size | None = size
        while wanted != 1:
            if wanted is None or not rest:
                break
            factor = rest.pop(end)
            left = divide(wanted, self.sizes[factor])
            if left is None:
                other = divide(self.sizes[factor], wanted)
                if other is None:
                    wanted = None
                    break
                pair = [self._new(wanted), self._new(other)]
                pair = pair if end == 0 else pair[::-1]
                self._cuts[factor] = tuple(pair)
                rest.insert(0 if end == 0 else len(rest), pair[1 if end == 0 else 0])
                factor, left = pair[0 if end == 0 else 1], 1
            axis.append(factor)
            wanted = left
        if wanted != 1:
            rest[:], self._cuts = kept, cuts
            return None
        return tuple(axis if end == 0 else axis[::-1])

    def _recut(self) -> None:
        """Write the parts of factors that were cut in their place, in all layouts."""
        cuts = self._cuts
        if not cuts:
            return

        def parts(factor: int) -> Axis:
            if factor not in cuts:
                return (factor,)
            return tuple(part for half in cuts[factor] for part in parts(half))

        for tensor, layout in self.layouts.items():
            self.layouts[tensor] = tuple(
                tuple(part for factor in axis for part in parts(factor)) for axis in layout
            )
        for factor in cuts:
            if factor in self.repeating:
                self.repeating.update(parts(factor))
        self._cuts = {}


@dataclass(frozen=True)
class MovingChain:
    """A tensor as a moved copy of others.

    Attributes:
        tensors: the tensors of the chain, the last one being the copy.
        nodes: between them.
        factors: of their axes.
    """

    tensors: tuple[gs.Tensor, ...]
    nodes: tuple[Node, ...]
    factors: AxisFactors

    def layout(self, place: int) -> Layout:
        """The factors of the axes of a tensor of the chain."""
        return self.factors.layouts[self.tensors[place]]


def followed_chain(
    rw: Rewriter, flow: SizeFlow, tensor: gs.Tensor, *, scaled: bool = False
) -> MovingChain | None:
    """The longest chain that ends in `tensor` and can be followed; None where not even its rank is.

    Args:
        rw: of the graph.
        flow: the shapes.
        tensor: where the chain ends.
        scaled: whether products with a number belong to the chain.
    """
    source, nodes = moving_chain(rw, tensor, scaled=scaled)
    factors = AxisFactors(flow)
    while not factors.begin(source) or not factors.follow(nodes, source):
        if not nodes:
            return None
        source, nodes, factors = nodes[0].outputs[0], nodes[1:], AxisFactors(flow)
    return MovingChain((source, *(node.outputs[0] for node in nodes)), tuple(nodes), factors)


def moving_chain(
    rw: Rewriter, tensor: gs.Tensor, *, scaled: bool = False
) -> tuple[gs.Tensor, list[Node]]:
    """The tensor of which `tensor` is a moved copy, and the nodes between them, first one first.

    Args:
        rw: of the graph.
        tensor: where the chain ends.
        scaled: whether products with a number belong to the chain.
    """
    nodes: list[Node] = []
    while len(nodes) < _LONGEST:
        node = rw.producer(tensor, *_MOVING)
        if node is not None and _moves(node):
            source = node.inputs[0]
        elif scaled and (read := scaling(rw, tensor)) is not None:
            node, source, _ = read
        else:
            break
        nodes.insert(0, node)
        tensor = source
    return tensor, nodes


def scaling(rw: Rewriter, tensor: gs.Tensor) -> tuple[Node, gs.Tensor, float] | None:
    """The product of a tensor with a constant number that makes `tensor`: node, tensor, number."""
    node = rw.producer(tensor, "Mul", "Div")
    read = None if node is None else read_affine(node, rw.opset)
    if node is None or read is None:
        return None
    source, mapping = read
    if mapping.axis is not None or mapping.shifts or min_rank(source) < mapping.ndim:
        return None
    return node, source, float(mapping.scale)


def _moves(node: Node) -> bool:
    return node.op != "Tile" or const_array(node.inputs[1]) is not None

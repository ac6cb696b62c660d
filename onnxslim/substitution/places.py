"""Places where a block fits: a convolution, or a run of them with what lies between.

A run of convolutions reads, at one position of its output, a patch as one convolution of a larger
kernel would: kernels add up, each stretched by the strides before it, and so do pads; strides
multiply. A block of that kernel returns as many positions, whatever the size of the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer, linear_layers
from onnxslim.analysis.linear_operators import ConvPatches
from onnxslim.channels.pointwise import UNARY
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import const_value
from onnxslim.graph.rewrite import Rewriter
from onnxslim.records import Skip
from onnxslim.substitution.patches.sketch import BlockCell

_BETWEEN: Final = frozenset((*UNARY, "BatchNormalization", "Clip", "PRelu")) - {"Cast", "CastLike"}


@dataclass(frozen=True)
class BlockPlace:
    """Where a block fits.

    Attributes:
        layers: the convolutions, the first one first.
        nodes: they and what lies between, in order.
        patches: how a position of the output reads the input.
    """

    layers: tuple[WeightLayer, ...]
    nodes: tuple[Node, ...]
    patches: ConvPatches

    @property
    def name(self) -> str:
        """That of the last convolution."""
        return self.layers[-1].name

    @property
    def node(self) -> Node:
        """The last one, whose output is that of the place."""
        return self.nodes[-1]

    @property
    def source(self) -> gs.Tensor:
        """The input."""
        return self.layers[0].data_tensor

    @property
    def output(self) -> gs.Tensor:
        """The output."""
        return self.node.outputs[0]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the weights."""
        return np.dtype(self.layers[0].holder.dtype)

    @property
    def is_run(self) -> bool:
        """Whether it has several convolutions."""
        return len(self.layers) > 1

    @property
    def groups(self) -> int:
        """Blocks of channels that do not meet."""
        return self.patches.groups

    @property
    def weights(self) -> int:
        """Elements of the weights of the convolutions."""
        return sum(layer.size for layer in self.layers)

    @property
    def cell(self) -> BlockCell:
        """What a block has to do for one group."""
        first, last = self.layers[0], self.layers[-1]
        channels = first.groups * first.columns // prod(_patches(first).kernel)
        outputs = last.groups * last.rows
        center = _center(self.patches)
        keeps = center is not None and all(stride == 1 for stride in self.patches.strides)
        return BlockCell(
            channels // self.groups, outputs // self.groups, self.patches.kernel, center, keeps
        )


def _patches(layer: WeightLayer) -> ConvPatches:
    assert isinstance(layer.unfolding, ConvPatches)
    return layer.unfolding


def _center(patches: ConvPatches) -> tuple[int, ...] | None:
    """See `BlockCell.center`: the middle of a kernel of odd size, if pads keep sizes."""
    ndim, found = len(patches.kernel), []
    if patches.auto_pad.startswith("SAME") and any(stride > 1 for stride in patches.strides):
        return None  # where the first position lies depends on the size of the input
    for axis, (size, dilation) in enumerate(zip(patches.kernel, patches.dilations, strict=True)):
        reach = (size - 1) * dilation
        pads = (patches.pads[axis], patches.pads[axis + ndim]) if patches.pads else (0, 0)
        if patches.auto_pad.startswith("SAME"):
            pads = (reach // 2, reach // 2)
        if patches.auto_pad == "VALID":
            pads = (0, 0)
        if size % 2 == 0 or pads != (reach // 2, reach // 2):
            return None
        found.append(size // 2)
    return tuple(found)


# ---------------------------------------------------------------------------- finding


def places_of(rw: Rewriter, most: int) -> tuple[list[BlockPlace], list[Skip]]:
    """The places of a graph in order, and convolutions that are none, with reasons.

    Args:
        rw: of the graph; nothing is edited.
        most: convolutions of a run at most.
    """
    layers, skips = linear_layers(rw.main)
    convs: dict[Node, WeightLayer] = {}
    reasons = [skip for skip in skips if _is_conv_label(rw, skip.node)]
    for layer in layers:
        if layer.node.op != "Conv":
            continue
        why = _why_not(layer)
        if why is None:
            convs[layer.node] = layer
        else:
            reasons.append(Skip(node_label(layer.node), why))
    found: list[BlockPlace] = []
    for nodes in _chains(rw, convs):
        for piece in _cut(nodes, convs, most):
            made = _place(piece, convs)
            if isinstance(made, str):
                reasons.append(Skip(node_label(piece[-1]), made))
            else:
                found.append(made)
    return found, reasons


def _is_conv_label(rw: Rewriter, label: str) -> bool:
    return any(
        node.op == "Conv" and node_label(node) == label for g in rw.graphs() for node in g.nodes
    )


def _why_not(layer: WeightLayer) -> str | None:
    if layer.bodies:
        return "it lies in a body of another node"
    if layer.shared:
        others = ", ".join(f"`{name}`" for name in layer.shared)
        return f"its weight is also used by {others}"
    return None


def _chains(rw: Rewriter, convs: dict[Node, WeightLayer]) -> Iterator[list[Node]]:
    """Convolutions that follow each other, with what lies between, as long as possible."""
    seen: set[Node] = set()
    for first in convs:
        if first in seen:
            continue
        chain = [first]
        seen.add(first)
        pending: list[Node] = []
        current = first
        while (follower := _follower(rw, current)) is not None:
            pending.append(follower)
            current = follower
            if follower in convs:
                if follower in seen:
                    break
                seen.add(follower)
                chain += pending
                pending = []
        yield chain


def _follower(rw: Rewriter, node: Node) -> Node | None:
    """The node that alone reads the output of `node`, if a run may go on with it."""
    tensor = node.outputs[0]
    if rw.uses(tensor) != 1 or not tensor.outputs:
        return None
    found: Node = tensor.outputs[0]
    if not found.is_onnx or rw.graph_of(found) is not rw.graph_of(node):
        return None
    if found.inputs[0] is not tensor or len(found.outputs) != 1:
        return None
    if found.op != "Conv" and found.op not in _BETWEEN:
        return None
    others = [other for other in found.inputs[1:] if other.name]
    return found if all(const_value(other) is not None for other in others) else None


def _cut(nodes: Sequence[Node], convs: dict[Node, WeightLayer], most: int) -> Iterator[list[Node]]:
    """Pieces of a chain with at most so many convolutions; what lies between stays."""
    piece: list[Node] = []
    count = 0
    for node in nodes:
        if node in convs and count == most:
            yield _without_tail(piece, convs)
            piece, count = [], 0
        if piece or node in convs:
            piece.append(node)
            count += node in convs
    if piece:
        yield _without_tail(piece, convs)


def _without_tail(piece: list[Node], convs: dict[Node, WeightLayer]) -> list[Node]:
    last = max(number for number, node in enumerate(piece) if node in convs)
    return piece[: last + 1]


def _place(nodes: Sequence[Node], convs: dict[Node, WeightLayer]) -> BlockPlace | str:
    """The place that some nodes make, or why they make none."""
    layers = tuple(convs[node] for node in nodes if node in convs)
    if len(layers) == 1:
        patches: ConvPatches | str = _patches(layers[0])
    else:
        patches = _run_patches([_patches(layer) for layer in layers])
    if isinstance(patches, str):
        return patches
    if prod(patches.kernel) == 1:
        return "its kernel has one position"
    place = BlockPlace(layers, tuple(nodes), patches)
    if place.cell.channels == 1 or place.cell.outputs == 1:
        return "each of its groups has a single input or a single output"
    return place


def _run_patches(every: Sequence[ConvPatches]) -> ConvPatches | str:
    """How convolutions in a row read the input of the first one."""
    if any(patches.auto_pad.startswith("SAME") for patches in every):
        return "a convolution of the run has an auto_pad, which does not add up with others"
    return reduce(_joined, every)


def _joined(first: ConvPatches, second: ConvPatches) -> ConvPatches:
    ndim = len(first.kernel)
    axes = range(ndim)
    reach = tuple(
        (first.kernel[a] - 1) * first.dilations[a]
        + (second.kernel[a] - 1) * second.dilations[a] * first.strides[a]
        for a in axes
    )
    pads = tuple(
        _pad(first, side) + _pad(second, side) * first.strides[side % ndim]
        for side in range(2 * ndim)
    )
    strides = tuple(a * b for a, b in zip(first.strides, second.strides, strict=True))
    return ConvPatches(1, tuple(r + 1 for r in reach), strides, (1,) * ndim, pads)


def _pad(patches: ConvPatches, side: int) -> int:
    return patches.pads[side] if patches.pads and patches.auto_pad != "VALID" else 0

"""Cutting channels out of a graph: what a sweep found that must change, and how each changes.

An edit is made for every operand and attribute that depends on a channel's being there. It says
what it cuts in terms of names; `Removal` says which names go. Edits are applied all at once, so
that constants that several nodes use are cut once where all of them cut alike.

What may change here: how operands are cut. Which are cut is found by the rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxslim.channels.labels import NONE, LabelArray
from onnxslim.graph.dims import known_dim, rank
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array, const_value
from onnxslim.graph.rewrite import Rewriter

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Removal:
    """Which names leave.

    Attributes:
        gone: for each name.
    """

    gone: Mask

    def keeps(self, ids: npt.NDArray[np.int64]) -> Mask:
        """Whether what bears each name stays; what has no name does."""
        if not self.gone.size:
            return np.ones(ids.shape, bool)
        return np.asarray((ids == NONE) | ~self.gone[ids])

    def along(self, array: LabelArray, axis: int) -> Mask:
        """Which positions along an axis stay."""
        others = tuple(other for other in range(array.ndim) if other != axis)
        return np.asarray(self.keeps(array).any(axis=others))


class Edit(Protocol):
    """Something about a node that changes when channels leave."""

    @property
    def node(self) -> Node:
        """The node concerned."""

    def apply(self, cutter: Cutter, removal: Removal) -> None:
        """Change the node."""


class Cutter:
    """Applies edits; cuts of constants are collected and made at the end."""

    def __init__(self, rewriter: Rewriter) -> None:
        self.rewriter = rewriter
        self._cuts: dict[tuple[Node, int], dict[int, Mask]] = {}
        self._new: dict[tuple[int, tuple[tuple[int, bytes], ...]], gs.Tensor] = {}
        self._own: dict[tuple[int, tuple[int, ...], bytes], gs.Tensor] = {}

    def run(self, edits: Sequence[Edit], removal: Removal) -> None:
        """Cut out of the graph what `removal` names."""
        for edit in edits:
            edit.apply(self, removal)
        for (node, operand), masks in self._cuts.items():
            self._cut(node, operand, masks)

    def slice(self, node: Node, operand: int, axis: int, mask: Mask) -> None:
        """Keep what `mask` says of a constant operand, along `axis`."""
        if not mask.all():
            masks = self._cuts.setdefault((node, operand), {})
            masks[axis] = masks[axis] & mask if axis in masks else mask

    def set_operand(self, node: Node, operand: int, values: np.ndarray) -> None:
        """Give a node another constant, the same for all that had one and now want equal ones."""
        old = node.inputs[operand]
        key = (id(old), values.shape, values.tobytes())
        if key not in self._own:
            name = old.name or f"{node.outputs[0].name}_cut"
            self._own[key] = self.rewriter.constant(values, name)
        inputs = list(node.inputs)
        inputs[operand] = self._own[key]
        self.rewriter.update(node, "its operand follows the channels", inputs=inputs)

    def _cut(self, node: Node, operand: int, masks: dict[int, Mask]) -> None:
        tensor = node.inputs[operand]
        key = (id(tensor), tuple((axis, masks[axis].tobytes()) for axis in sorted(masks)))
        if key not in self._new:
            values = const_array(tensor)
            assert values is not None
            for axis, mask in masks.items():
                values = np.compress(mask, values, axis)
            self._new[key] = self.rewriter.constant(np.ascontiguousarray(values), tensor.name)
        inputs = list(node.inputs)
        inputs[operand] = self._new[key]
        self.rewriter.update(node, "its constant lost channels", inputs=inputs)


# ---------------------------------------------------------------------------- edits


@dataclass(frozen=True)
class SliceOperand:
    """A constant operand loses along `axis` what the array loses along its axis `at`."""

    node: Node
    operand: int
    axis: int
    array: LabelArray
    at: int

    def apply(self, cutter: Cutter, removal: Removal) -> None:
        """See `Edit`."""
        cutter.slice(self.node, self.operand, self.axis, removal.along(self.array, self.at))


@dataclass(frozen=True)
class CountAttribute:
    """An attribute that counts names: `group` of a depthwise Conv, `num_groups`.

    Attributes:
        ids: one for each thing that is counted.
    """

    node: Node
    attribute: str
    ids: npt.NDArray[np.int64]

    def apply(self, cutter: Cutter, removal: Removal) -> None:
        """See `Edit`."""
        self.node.attrs[self.attribute] = int(removal.keeps(self.ids).sum())


@dataclass(frozen=True)
class CutGroups:
    """The weight of a grouped Conv or ConvTranspose: every group loses what is its own.

    Attributes:
        inputs: names as (groups, channels of a group), None where inputs have none.
        outputs: names as (groups, channels of a group).
    """

    node: Node
    inputs: npt.NDArray[np.int64] | None
    outputs: npt.NDArray[np.int64]

    def apply(self, cutter: Cutter, removal: Removal) -> None:
        """See `Edit`."""
        outputs = removal.keeps(self.outputs)
        weight = const_array(self.node.inputs[1])
        assert weight is not None
        groups, transposed = len(outputs), self.node.op == "ConvTranspose"
        # (C_out, C_in/g, k…) for Conv, (C_in, C_out/g, k…) for ConvTranspose
        channels = weight.shape[0] // groups if transposed else weight.shape[1]
        inputs = np.ones((groups, channels), bool)
        if self.inputs is not None:
            inputs = removal.keeps(self.inputs)
        if outputs.all() and inputs.all():
            return
        alive = inputs.any(axis=1) & outputs.any(axis=1)
        first, second = (inputs, outputs) if transposed else (outputs, inputs)
        by_group = weight.reshape(groups, -1, *weight.shape[1:])
        parts = [by_group[i][first[i]][:, second[i]] for i in np.flatnonzero(alive)]
        self.node.attrs["group"] = len(parts)
        cutter.set_operand(self.node, 1, np.concatenate(parts))


@dataclass(frozen=True)
class Permutation:
    """A node that puts channels in another order, or the last of several that do (a shuffle).

    Attributes:
        source: the tensor before.
        order: for each channel of the output its place in the source.
        array: of the source.
    """

    node: Node
    source: gs.Tensor
    axis: int
    order: npt.NDArray[np.int64]
    array: LabelArray

    def apply(self, cutter: Cutter, removal: Removal) -> None:
        """See `Edit`."""
        mask = removal.along(self.array, self.axis)
        if mask.all():
            return
        left = self.order[mask[self.order]]
        indices = (np.cumsum(mask) - 1)[left]
        rw = cutter.rewriter
        constant = rw.constant(indices.astype(np.int64), f"{self.node.outputs[0].name}_order")
        rw.update(
            self.node,
            "its order follows the channels",
            op="Gather",
            inputs=[self.source, constant],
            attrs={"axis": self.axis},
        )


@dataclass(frozen=True)
class SplitSizes:
    """Split: how long each part is.

    Attributes:
        labels: of the parts, in order; None for a part without names.
        sizes: of the parts, before.
    """

    node: Node
    axis: int
    labels: tuple[LabelArray | None, ...]
    sizes: tuple[int, ...]
    opset: int

    def apply(self, cutter: Cutter, removal: Removal) -> None:
        """See `Edit`."""
        left = [
            size if array is None else int(removal.along(array, self.axis).sum())
            for array, size in zip(self.labels, self.sizes, strict=True)
        ]
        if tuple(left) == self.sizes:
            return
        if self.opset < 13:
            self.node.attrs["split"] = left
            return
        self.node.attrs.pop("num_outputs", None)
        values = np.array(left, np.int64)
        inputs = [
            self.node.inputs[0],
            cutter.rewriter.constant(values, f"{self.node.outputs[0].name}_split"),
        ]
        cutter.rewriter.update(self.node, "its parts follow the channels", inputs=inputs)


@dataclass(frozen=True)
class SliceRange:
    """Slice: where it begins and ends along axes of channels, with step 1.

    Attributes:
        ranges: (start, end, step) of all its axes; those of channels counted from the front.
        cuts: these axes, each with the array of the input that labels it.
    """

    node: Node
    ranges: dict[int, tuple[int, int, int]]
    cuts: tuple[tuple[int, LabelArray], ...]
    opset: int

    def apply(self, cutter: Cutter, removal: Removal) -> None:
        """See `Edit`."""
        masks = {axis: removal.along(array, axis) for axis, array in self.cuts}
        if all(mask.all() for mask in masks.values()):
            return
        ranges = dict(self.ranges)
        for axis, mask in masks.items():
            start, end, _ = ranges[axis]
            first = int(mask[:start].sum())
            ranges[axis] = (first, first + int(mask[start:end].sum()), 1)
        starts, ends, steps = (list(column) for column in zip(*ranges.values(), strict=True))
        if self.opset < 10:
            attrs = {"starts": starts, "ends": ends, "axes": list(ranges)}
            cutter.rewriter.update(self.node, "its range follows the channels", attrs=attrs)
            return
        name = self.node.outputs[0].name
        lists = {"starts": starts, "ends": ends, "axes": list(ranges), "steps": steps}
        inputs = [self.node.inputs[0]] + [
            cutter.rewriter.constant(np.array(values, np.int64), f"{name}_{word}")
            for word, values in lists.items()
        ]
        cutter.rewriter.update(self.node, "its range follows the channels", inputs=inputs)


@dataclass(frozen=True)
class GatherIndices:
    """Gather with constant indices along an axis of channels; also a Slice with steps.

    Attributes:
        indices: as they are, counted from the front.
        array: of the data.
        result: of the output along the axes that the indices make; None where they make none.
        first: the first of these axes.
    """

    node: Node
    axis: int
    indices: npt.NDArray[np.int64]
    array: LabelArray
    result: LabelArray | None
    first: int

    def apply(self, cutter: Cutter, removal: Removal) -> None:
        """See `Edit`."""
        mask = removal.along(self.array, self.axis)
        if mask.all():
            return
        place = np.cumsum(mask) - 1
        values = place[self.indices]
        if self.result is not None:
            for offset in range(self.indices.ndim):
                kept = removal.along(self.result, self.first + offset)
                if len(kept) == values.shape[offset]:
                    values = np.compress(kept, values, offset)
        rw = cutter.rewriter
        constant = rw.constant(values.astype(np.int64), f"{self.node.outputs[0].name}_indices")
        rw.update(
            self.node,
            "its indices follow the channels",
            op="Gather",
            inputs=[self.node.inputs[0], constant],
            attrs={"axis": self.axis},
        )


@dataclass(frozen=True)
class ShapeOperand:
    """A list of sizes that an operator reads: of Reshape, of Expand, of Resize.

    Attributes:
        operand: index of the input.
        labels: of the output.
        offset: the axis of the output that the first size is about.
        right: places of sizes that are measured, and so right by themselves.
    """

    node: Node
    operand: int
    labels: tuple[LabelArray, ...]
    offset: int = 0
    right: frozenset[int] = frozenset()

    def apply(self, cutter: Cutter, removal: Removal) -> None:
        """See `Edit`."""
        sizes: dict[int, int] = {}
        for array in self.labels:
            for axis, length in enumerate(array.shape):
                left = int(removal.along(array, axis).sum()) if length > 1 else length
                if left != length and axis >= self.offset and axis - self.offset not in self.right:
                    sizes[axis - self.offset] = left
        if not sizes:
            return
        tensor = self.node.inputs[self.operand]
        values = const_array(tensor)
        if values is not None:
            cutter.set_operand(self.node, self.operand, _with_sizes(values, sizes))
            return
        self._patch_pieces(cutter, tensor.inputs[0], sizes)

    def _patch_pieces(self, cutter: Cutter, concat: Node, sizes: dict[int, int]) -> None:
        """The list is a Concat of pieces, of which the ones concerned are constant."""
        parts = list(concat.inputs)
        for index, (start, piece) in enumerate(_pieces(concat)):
            stored = const_array(piece)
            if stored is None:
                continue
            inside = {p - start: s for p, s in sizes.items() if 0 <= p - start < stored.size}
            if inside:
                parts[index] = cutter.rewriter.constant(_with_sizes(stored, inside), piece.name)
        (made,) = cutter.rewriter.insert(
            self.node,
            "Concat",
            parts,
            {"axis": 0},
            name=concat.outputs[0].name,
            dtype=concat.outputs[0].dtype,
            shape=concat.outputs[0].shape,
        )
        inputs = list(self.node.inputs)
        inputs[self.operand] = made
        cutter.rewriter.update(self.node, "its shape follows the channels", inputs=inputs)


def _with_sizes(values: np.ndarray, sizes: dict[int, int]) -> np.ndarray:
    """The list with other sizes; −1 stays, as it says what is left, and so does Expand's 1."""
    changed = values.copy()
    for place, size in sizes.items():
        if changed[place] not in (-1, 1):
            changed[place] = size
    return changed


def _pieces(concat: Node) -> Iterator[tuple[int, gs.Tensor]]:
    """The inputs of a Concat of lists, each with the place of its first element."""
    start = 0
    for piece in concat.inputs:
        stored = const_value(piece)
        length = stored.size if stored is not None else _length(piece)
        yield start, piece
        start += length


def _length(tensor: gs.Tensor) -> int:
    return known_dim(tensor, 0) or 0 if rank(tensor) == 1 else 0


def can_patch(node: Node, operand: int, places: Sequence[int]) -> bool:
    """Whether these elements of a list of sizes can be replaced: they are constant."""
    tensor = node.inputs[operand]
    if const_value(tensor) is not None:
        return True
    producer = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    if producer is None or producer.op != "Concat" or not producer.is_onnx:
        return False
    known: set[int] = set()
    for start, piece in _pieces(producer):
        stored = const_value(piece)
        if stored is None and not _length(piece):
            break  # what comes after lies nobody knows where
        if stored is not None:
            known.update(range(start, start + stored.size))
    return set(places) <= known


__all__ = [
    "CountAttribute",
    "CutGroups",
    "Cutter",
    "Edit",
    "GatherIndices",
    "Mask",
    "Permutation",
    "Removal",
    "ShapeOperand",
    "SliceOperand",
    "SliceRange",
    "SplitSizes",
    "can_patch",
]

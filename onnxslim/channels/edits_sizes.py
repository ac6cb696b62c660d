"""Edits of lists of sizes (of Reshape, Expand, Resize).

A list is a constant, a Concat of pieces, or computed in any other way: then the sizes that change
are replaced, or multiplied by the share that stays, after it has been computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.channels.cutting import Cutter, Removal
from onnxslim.channels.labels import LabelArray
from onnxslim.graph.dims import known_dim, rank
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array, const_value
from onnxslim.graph.sizes import Shape, Size


@dataclass(frozen=True)
class MeasuredSize:
    """The length of an axis of channels, as an element of a list of sizes that a Shape reads.

    Attributes:
        array: that labels the axis.
        axis: of the tensor whose Shape is read.
        why: the reason to pin the channels if the use of the element cannot be followed.
    """

    array: LabelArray
    axis: int
    why: str


_REST: Final = -1  # elements of the list of a Reshape that stand for a size
_COPY: Final = 0


@dataclass(frozen=True)
class ShapeOperand:
    """A list of sizes that Reshape, Expand or Resize is told.

    Attributes:
        labels: of the output.
        shape: of the output.
        offset: the axis of the output that the first size is for.
        items: the elements of the list, as far as they are known.
        right: places of sizes that are read by a Shape of the same channels: they follow.
        read: places of sizes that are read by a Shape of other channels: they must not follow.
    """

    node: Node
    operand: int
    labels: tuple[LabelArray, ...]
    shape: Shape
    offset: int = 0
    items: tuple[Size | None, ...] = ()
    right: frozenset[int] = frozenset()
    read: Mapping[int, MeasuredSize] = field(default_factory=lambda: MappingProxyType({}))

    def apply(self, cutter: Cutter, removal: Removal) -> None:
        """See `Edit`."""
        sizes, shares = self._changed(removal)
        tensor = self.node.inputs[self.operand]
        values = const_array(tensor)
        if values is not None:
            if sizes:
                cutter.set_operand(self.node, self.operand, _with_sizes(values, sizes))
        elif sizes or shares:
            is_patched = not shares and sizes.keys() <= _constant_places(tensor)
            graph = id(cutter.rewriter.graph_of(self.node))
            length = len(self.shape) - self.offset
            change = (graph, length, *sizes.items(), *shares.items())
            made = cutter.changed(
                tensor,
                change,
                lambda: (
                    self._patched(cutter, tensor.inputs[0], sizes)
                    if is_patched
                    else self._computed(cutter, tensor, sizes, shares)
                ),
            )
            inputs = list(self.node.inputs)
            inputs[self.operand] = made
            cutter.rewriter.update(self.node, "its shape follows the channels", inputs=inputs)

    def _changed(self, removal: Removal) -> tuple[dict[int, int], dict[int, tuple[int, int]]]:
        """By place: sizes that change, and channels that are left of a period with their number."""
        sizes: dict[int, int] = {}
        shares: dict[int, tuple[int, int]] = {}
        for place, read in self.read.items():
            if not removal.kept_along(read.array, read.axis).all():
                sizes[place] = int(str(self.shape[place + self.offset]))
        for array in self.labels:
            for axis, length in enumerate(array.shape):
                place = axis - self.offset
                left = int(removal.kept_along(array, axis).sum()) if length > 1 else length
                if left == length or place < 0 or place in self.right:
                    continue
                if self.items[place] == _REST:
                    continue
                if isinstance(self.shape[axis], int):
                    sizes[place] = left
                elif self.items[place] != _COPY:
                    shares[place] = left, length
        return sizes, shares

    def _computed(
        self,
        cutter: Cutter,
        tensor: gs.Tensor,
        sizes: dict[int, int],
        shares: dict[int, tuple[int, int]],
    ) -> gs.Tensor:
        """The list that follows the channels, computed from the one with all channels."""
        columns = np.array([(1, 1, 0)] * (len(self.shape) - self.offset), np.int64)
        for place, (left, length) in shares.items():
            columns[place] = left, length, 0
        for place, size in sizes.items():
            columns[place] = 0, 1, size
        # left · list / length + size
        for op, values in zip(("Mul", "Div", "Add"), columns.T, strict=True):
            if (values != (op != "Add")).any():
                name = f"{self.node.outputs[0].name}_sizes"
                constant = cutter.rewriter.constant(values.copy(), name)
                (tensor,) = cutter.rewriter.insert(
                    self.node,
                    op,
                    [tensor, constant],
                    name=name,
                    dtype=np.int64,
                    shape=[len(values)],
                )
        return tensor

    def _patched(self, cutter: Cutter, concat: Node, sizes: dict[int, int]) -> gs.Tensor:
        """The list that a Concat makes, with other constant pieces."""
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
        return made


def _with_sizes(values: np.ndarray, sizes: dict[int, int]) -> np.ndarray:
    """The list with other sizes; −1 (what is left) and 1 (broadcast by Expand) stay."""
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


def _constant_places(tensor: gs.Tensor) -> set[int]:
    """The places of a list that a Concat joins of pieces, where the piece is constant."""
    known: set[int] = set()
    producer = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    if producer is None or producer.op != "Concat" or not producer.is_onnx:
        return known
    for start, piece in _pieces(producer):
        stored = const_value(piece)
        if stored is None and not _length(piece):
            break  # the places of all later pieces are unknown
        if stored is not None:
            known.update(range(start, start + stored.size))
    return known

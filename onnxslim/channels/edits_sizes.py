"""Edits of lists of sizes (of Reshape, Expand, Resize): constants, or a Concat of pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.channels.cutting import Cutter, Removal
from onnxslim.channels.labels import LabelArray
from onnxslim.graph.dims import known_dim, rank
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array, const_value


@dataclass(frozen=True)
class ShapeOperand:
    """A list of sizes that Reshape, Expand or Resize is told.

    Attributes:
        labels: of the output.
        offset: the axis of the output that the first size is for.
        right: places of sizes that are read by a Shape, and so follow by themselves.
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
                left = int(removal.kept_along(array, axis).sum()) if length > 1 else length
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
        """Change the constant pieces of a list that a Concat makes."""
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
            break  # the places of all later pieces are unknown
        if stored is not None:
            known.update(range(start, start + stored.size))
    return set(places) <= known

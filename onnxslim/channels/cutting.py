"""Cut channels out of a graph: `Removal` says which labels leave, `Cutter` applies the edits.

Owns: what an edit is, and cuts of constants, which are collected so that a tensor that several
nodes use is cut once. Not here: the edits (see `edits_*`), which each rule adds to the trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxslim.channels.labels import NONE, LabelArray
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array
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


__all__ = ["Cutter", "Edit", "Mask", "Removal"]

"""Cut channels out of a graph: `Removal` says which labels leave, `Cutter` applies the edits.

Owns: what an edit is, and cuts of constants, which are collected so that a tensor that several
nodes use is cut once. Not here: the edits (see `edits_*`), which each rule adds to the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
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
    """Which labels leave."""

    gone: Mask  # (labels,)

    def kept(self, ids: npt.NDArray[np.int64]) -> Mask:
        """Whether each label stays; `NONE` does. In the shape of `ids`."""
        if not self.gone.size:
            return np.ones(ids.shape, bool)
        return np.asarray((ids == NONE) | ~self.gone[ids])

    def kept_along(self, array: LabelArray, axis: int) -> Mask:
        """Whether each position along an axis stays."""
        others = tuple(other for other in range(array.ndim) if other != axis)
        return np.asarray(self.kept(array).any(axis=others))


class Edit(Protocol):
    """A change of one node that follows the channels that leave."""

    @property
    def node(self) -> Node:
        """The node that changes."""

    def apply(self, cutter: Cutter, removal: Removal) -> None:
        """Change the node."""


class Cutter:
    """Applies edits; constants are cut at the end, each once, by all edits together."""

    def __init__(self, rewriter: Rewriter) -> None:
        self.rewriter = rewriter
        self._cuts: dict[tuple[Node, int], dict[int, Mask]] = {}
        self._new: dict[tuple[int, tuple[tuple[int, bytes], ...]], gs.Tensor] = {}
        self._own: dict[tuple[int, tuple[int, ...], bytes], gs.Tensor] = {}
        self._firsts: dict[tuple[gs.Tensor, int], gs.Tensor] = {}
        self._changed: dict[tuple[gs.Tensor, Hashable], gs.Tensor] = {}

    def run(self, edits: Sequence[Edit], removal: Removal) -> None:
        """Apply edits, so that the graph does without the channels that `removal` names."""
        for edit in edits:
            edit.apply(self, removal)
        for (node, operand), masks in self._cuts.items():
            self._cut(node, operand, masks)

    def slice(self, node: Node, operand: int, axis: int, mask: Mask) -> None:
        """Keep the positions of a constant operand along `axis` where `mask` is true."""
        if not mask.all():
            masks = self._cuts.setdefault((node, operand), {})
            masks[axis] = masks[axis] & mask if axis in masks else mask

    def set_operand(self, node: Node, operand: int, values: np.ndarray) -> None:
        """Give a node another constant; nodes that shared one share the new one if it is equal."""
        old = node.inputs[operand]
        key = (id(old), values.shape, values.tobytes())
        if key not in self._own:
            name = old.name or f"{node.outputs[0].name}_cut"
            self._own[key] = self.rewriter.constant(values, name)
        inputs = list(node.inputs)
        inputs[operand] = self._own[key]
        self.rewriter.update(node, "its operand follows the channels", inputs=inputs)

    def changed(
        self, tensor: gs.Tensor, change: Hashable, make: Callable[[], gs.Tensor]
    ) -> gs.Tensor:
        """What `make` computes in place of `tensor`; nodes that need the same change share it."""
        if (tensor, change) not in self._changed:
            self._changed[tensor, change] = make()
        return self._changed[tensor, change]

    def take_first(self, node: Node, operand: int, axis: int) -> None:
        """Give a node the first position of an operand along `axis`, of length 1."""
        tensor = node.inputs[operand]
        if (tensor, axis) not in self._firsts:
            name = f"{tensor.name}_first"
            place = self.rewriter.constant(np.zeros(1, np.int64), f"{name}_place")
            shape = None if tensor.shape is None else list(tensor.shape)
            if shape is not None:
                shape[axis] = 1
            (first,) = self.rewriter.insert(
                node, "Gather", [tensor, place], {"axis": axis},
                name=name, dtype=tensor.dtype, shape=shape,
            )  # fmt: skip
            self._firsts[tensor, axis] = first
        inputs = list(node.inputs)
        inputs[operand] = self._firsts[tensor, axis]
        self.rewriter.update(node, "its operand is the same for all channels", inputs=inputs)

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

"""Edits of constant operands and of attributes that count channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxslim.channels.cutting import Cutter, Removal
from onnxslim.channels.labels import LabelArray
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_array


@dataclass(frozen=True)
class SliceOperand:
    """Cut `axis` of a constant operand as channels leave along axis `at` of `array`."""

    node: Node
    operand: int
    axis: int
    array: LabelArray
    at: int

    def apply(self, cutter: Cutter, removal: Removal) -> None:
        """See `Edit`."""
        cutter.slice(self.node, self.operand, self.axis, removal.kept_along(self.array, self.at))


@dataclass(frozen=True)
class FirstPosition:
    """An operand that holds the same values all along `axis` is broadcast from its first position.

    Attributes:
        array: the labels that it meets.
        at: the axis of `array` that it meets with `axis`.
    """

    node: Node
    operand: int
    axis: int
    array: LabelArray
    at: int

    def apply(self, cutter: Cutter, removal: Removal) -> None:
        """See `Edit`."""
        if not removal.kept_along(self.array, self.at).all():
            cutter.take_first(self.node, self.operand, self.axis)


@dataclass(frozen=True)
class CountAttribute:
    """An attribute that counts channels or groups: `group` of a depthwise Conv, `num_groups`.

    Attributes:
        ids: a label for each channel or group that is counted.
    """

    node: Node
    attribute: str
    ids: npt.NDArray[np.int64]

    def apply(self, cutter: Cutter, removal: Removal) -> None:
        """See `Edit`."""
        self.node.attrs[self.attribute] = int(removal.kept(self.ids).sum())


@dataclass(frozen=True)
class CutGroups:
    """Cut the weight of a grouped Conv or ConvTranspose, each group by its own channels.

    Attributes:
        inputs: labels, (groups, channels of a group); None if the input has none.
        outputs: labels, (groups, channels of a group).
    """

    node: Node
    inputs: npt.NDArray[np.int64] | None
    outputs: npt.NDArray[np.int64]

    def apply(self, cutter: Cutter, removal: Removal) -> None:
        """See `Edit`."""
        outputs = removal.kept(self.outputs)
        weight = const_array(self.node.inputs[1])
        assert weight is not None
        groups, transposed = len(outputs), self.node.op == "ConvTranspose"
        # (C_out, C_in/g, k…) for Conv, (C_in, C_out/g, k…) for ConvTranspose
        channels = weight.shape[0] // groups if transposed else weight.shape[1]
        inputs = np.ones((groups, channels), bool)
        if self.inputs is not None:
            inputs = removal.kept(self.inputs)
        if outputs.all() and inputs.all():
            return
        # a group without inputs or without outputs leaves as a whole
        alive = inputs.any(axis=1) & outputs.any(axis=1)
        first, second = (inputs, outputs) if transposed else (outputs, inputs)
        by_group = weight.reshape(groups, -1, *weight.shape[1:])
        parts = [by_group[i][first[i]][:, second[i]] for i in np.flatnonzero(alive)]
        self.node.attrs["group"] = len(parts)
        cutter.set_operand(self.node, 1, np.concatenate(parts))

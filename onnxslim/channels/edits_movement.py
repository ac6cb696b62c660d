"""Edits of operators that pick or reorder channels: Split, Slice, Gather, shuffles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxslim.channels.cutting import Cutter, Removal
from onnxslim.channels.labels import LabelArray
from onnxslim.graph.ir import Node


@dataclass(frozen=True)
class Permutation:
    """A node that puts channels in another order, or the last of several that do (a shuffle).

    Attributes:
        source: the tensor before the channels are reordered.
        axis: along which the channels lie.
        order: the place in the source of each channel of the output.
        array: labels of the source.
    """

    node: Node
    source: gs.Tensor
    axis: int
    order: npt.NDArray[np.int64]
    array: LabelArray

    def apply(self, cutter: Cutter, removal: Removal) -> None:
        """See `Edit`."""
        mask = removal.kept_along(self.array, self.axis)
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
    """The sizes of the parts of a Split.

    Attributes:
        labels: of the parts, in order; None for a part without any.
        sizes: of the parts with all channels.
    """

    node: Node
    axis: int
    labels: tuple[LabelArray | None, ...]
    sizes: tuple[int, ...]
    opset: int

    def apply(self, cutter: Cutter, removal: Removal) -> None:
        """See `Edit`."""
        left = [
            size if array is None else int(removal.kept_along(array, self.axis).sum())
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
    """The range of a Slice with step 1 along axes of channels.

    Attributes:
        ranges: (start, end, step) by axis; along axes of channels counted from the front.
        cuts: the axes of channels, each with the array of the input that labels it.
    """

    node: Node
    ranges: dict[int, tuple[int, int, int]]
    cuts: tuple[tuple[int, LabelArray], ...]
    opset: int

    def apply(self, cutter: Cutter, removal: Removal) -> None:
        """See `Edit`."""
        masks = {axis: removal.kept_along(array, axis) for axis, array in self.cuts}
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
    """The indices of a Gather along an axis of channels; a Slice with steps becomes such a Gather.

    Attributes:
        indices: with all channels, counted from the front.
        array: labels of the data.
        result: labels of the output along the axes of the indices; None if the index is a scalar.
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
        mask = removal.kept_along(self.array, self.axis)
        if mask.all():
            return
        place = np.cumsum(mask) - 1
        values = place[self.indices]
        if self.result is not None:
            for offset in range(self.indices.ndim):
                kept = removal.kept_along(self.result, self.first + offset)
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

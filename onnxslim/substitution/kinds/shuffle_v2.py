"""`shuffle-v2`: two branches for half of the outputs each, put back into the original order.

Ma et al., arXiv:1807.11164 (ShuffleNet V2), the unit whose branches both compute: a convolution
hands no channel through. One branch has a filter for each channel and a pointwise Conv, the other a
pointwise Conv, Relu, a filter for each of its channels, a pointwise Conv. Which branch computes an
output is chosen by what it loses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from onnxslim.substitution.kinds.base import BlockKind, PositionGrid, Sizes, signs_of
from onnxslim.substitution.kinds.fire import order_of
from onnxslim.substitution.patches.sketch import (
    INPUT,
    Activation,
    BlockCell,
    Join,
    Linear,
    Sketch,
    Take,
    Values,
    rows_of,
)
from onnxslim.substitution.patches.terms import PatchMap, least_squares


class ShuffleV2(BlockKind):
    """The second branch has `squeeze` times as many channels as there are outputs."""

    name: ClassVar[str] = "shuffle-v2"
    sizes: ClassVar[Mapping[str, tuple[float, ...]]] = {"squeeze": (0.5, 1.0)}

    def sketch(self, cell: BlockCell, sizes: Sizes) -> Sketch:
        """See `BlockKind`."""
        c, few, half = cell.channels, _few(cell, sizes), cell.outputs // 2
        axes = cell.every_axis
        return Sketch(
            cell,
            (
                Linear("left_depthwise", INPUT, c, c, c, axes=axes),
                Linear("left", "left_depthwise", c, cell.outputs - half, has_bias=True),
                Linear("squeezed", INPUT, c, few),
                Activation("squeezed_relu", "squeezed"),
                Linear("depthwise", "squeezed_relu", few, few, few, axes=axes),
                Linear("right", "depthwise", few, half, has_bias=True),
                Join("joined", ("left", "right")),
                Take("ordered", "joined"),
            ),
        )

    def weights(self, cell: BlockCell, sizes: Sizes) -> int:
        """C·k + C·(O − O/2) + b·C + b·k + b·O/2."""
        c, few, half = cell.channels, _few(cell, sizes), cell.outputs // 2
        return c * (cell.taps + cell.outputs - half) + few * (c + cell.taps + half)

    def macs(self, cell: BlockCell, sizes: Sizes, grid: PositionGrid) -> int:
        """b·C at each position of the input, the rest at each of the output."""
        squeezed = _few(cell, sizes) * cell.channels
        return squeezed * grid.before + (self.weights(cell, sizes) - squeezed) * grid.after

    def start(self, sketch: Sketch, original: PatchMap) -> Values:
        """The filters and directions that carry most; outputs where they lose least."""
        cell = sketch.cell
        by_name = {step.output: step for step in sketch.linear}
        filters = [t[0].filter for t in original.terms_of_each(original.each_channel(), 1)]
        values: Values = {
            "left_depthwise": np.stack(filters)
            .reshape(by_name["left_depthwise"].shape(cell))
            .astype(np.float32)
        }
        every, few = original.mixed(), by_name["squeezed"].outs
        found = [
            (sign * every.rows[term.direction], term.filter)
            for term in original.terms(every, few)
            for sign in signs_of(original, every.rows[term.direction])
        ][:few]
        for name, place in (("squeezed", 0), ("depthwise", 1)):
            made = np.zeros(by_name[name].shape(cell), np.float32)
            made.reshape(few, -1)[: len(found)] = [item[place] for item in found]
            values[name] = made
        known = values | {
            name: np.zeros(by_name[name].shape(cell), np.float32) for name in ("left", "right")
        }
        order = np.arange(cell.outputs)
        tensors = sketch.tensors(original.evidence.patches, known | {"ordered": order})
        lost = [
            least_squares(
                rows_of(by_name[name], cell, tensors[by_name[name].x])[0][0],
                original.evidence.outputs,
            )[2]
            for name in ("left", "right")
        ]
        return values | {"ordered": order_of(lost[0] - lost[1], by_name["left"].outs)}


def _few(cell: BlockCell, sizes: Sizes) -> int:
    return max(round(sizes["squeeze"] * cell.outputs), 1)

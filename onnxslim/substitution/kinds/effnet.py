"""`effnet`: few channels, a filter for each along one axis and then along the others.

Freeman et al., arXiv:1801.06434 (EffNet), with its LeakyRelu. We differ: strides in place of
pooling, each at the axis that it is of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from onnxslim.substitution.kinds.base import BlockKind, PositionGrid, Sizes
from onnxslim.substitution.patches.sketch import (
    INPUT,
    Activation,
    BlockCell,
    Linear,
    Sketch,
    Values,
)
from onnxslim.substitution.patches.terms import PatchMap

_SLOPE = 0.3


class EffNet(BlockKind):
    """`squeeze` times as many channels as outputs, filtered along one axis, then the others."""

    name: ClassVar[str] = "effnet"
    sizes: ClassVar[Mapping[str, tuple[float, ...]]] = {"squeeze": (0.5, 0.25, 1.0)}

    def why_not(self, cell: BlockCell) -> str | None:
        """See `BlockKind`."""
        is_flat = sum(size > 1 for size in cell.kernel) < 2
        return "only one kernel axis is longer than 1" if is_flat else None

    def sketch(self, cell: BlockCell, sizes: Sizes) -> Sketch:
        """See `BlockKind`."""
        few = _few(cell, sizes)
        rest, last = cell.every_axis[:-1], cell.every_axis[-1:]
        return Sketch(
            cell,
            (
                Linear("squeezed", INPUT, cell.channels, few),
                Activation("squeezed_relu", "squeezed", _SLOPE),
                Linear("last_axis", "squeezed_relu", few, few, few, axes=last),
                Activation("last_axis_relu", "last_axis", _SLOPE),
                Linear("rest", "last_axis_relu", few, few, few, axes=rest, has_bias=True),
                Activation("rest_relu", "rest", _SLOPE),
                Linear("expanded", "rest_relu", few, cell.outputs, has_bias=True),
            ),
        )

    def weights(self, cell: BlockCell, sizes: Sizes) -> int:
        """b·C + b·k' + b·k/k' + b·O, k' along the last axis."""
        last = cell.kernel[-1]
        return _few(cell, sizes) * (cell.channels + last + cell.taps // last + cell.outputs)

    def macs(self, cell: BlockCell, sizes: Sizes, grid: PositionGrid) -> int:
        """b·C at each position of the input, b·k' where one axis is done, the rest after both."""
        last = cell.kernel[-1]
        between = grid.before // grid.inputs[-1] * grid.outputs[-1]
        after = cell.taps // last + cell.outputs
        work = cell.channels * grid.before + last * between + after * grid.after
        return _few(cell, sizes) * work

    def start(self, sketch: Sketch, original: PatchMap) -> Values:
        """The terms that are worth most, each filter as the nearest product along the axes."""
        cell, (first, along, rest, _) = sketch.cell, sketch.linear
        every = original.mixed()
        values: Values = {
            step.output: np.zeros(step.shape(cell), np.float32) for step in (first, along, rest)
        }
        for number, term in enumerate(original.terms(every, first.outs)):
            split = term.filter.reshape(-1, cell.kernel[-1])
            left, sizes, right = np.linalg.svd(split, full_matrices=False)
            values["squeezed"].reshape(first.outs, -1)[number] = every.rows[term.direction]
            values["last_axis"].reshape(first.outs, -1)[number] = right[0]
            values["rest"].reshape(first.outs, -1)[number] = left[:, 0] * sizes[0]
        return values


def _few(cell: BlockCell, sizes: Sizes) -> int:
    return max(round(sizes["squeeze"] * cell.outputs), 1)

"""`fire`: few channels, from which some outputs see one position and the others the whole kernel.

Iandola et al., arXiv:1602.07360 (SqueezeNet). Which outputs see the kernel is chosen: those that
lose most without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from onnxslim.substitution.kinds.base import BlockKind, PositionGrid, Sizes, signs_of
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


class Fire(BlockKind):
    """`squeeze` times as many channels as outputs, then half of the outputs at each kernel."""

    name: ClassVar[str] = "fire"
    sizes: ClassVar[Mapping[str, tuple[float, ...]]] = {"squeeze": (0.5, 0.25, 0.75)}

    def why_not(self, cell: BlockCell) -> str | None:
        """See `BlockKind`."""
        return None if cell.center is not None else _NO_CENTER

    def sketch(self, cell: BlockCell, sizes: Sizes) -> Sketch:
        """See `BlockKind`."""
        few, half = _few(cell, sizes), cell.outputs // 2
        return Sketch(
            cell,
            (
                Linear("squeezed", INPUT, cell.channels, few),
                Activation("squeezed_relu", "squeezed"),
                Linear(
                    "point",
                    "squeezed_relu",
                    few,
                    cell.outputs - half,
                    at_center=True,
                    has_bias=True,
                ),
                Linear("kernel", "squeezed_relu", few, half, axes=cell.every_axis, has_bias=True),
                Join("joined", ("point", "kernel")),
                Take("ordered", "joined"),
            ),
        )

    def weights(self, cell: BlockCell, sizes: Sizes) -> int:
        """s·C + s·(O − O/2) + s·O/2·k."""
        half = cell.outputs // 2
        return _few(cell, sizes) * (cell.channels + cell.outputs - half + half * cell.taps)

    def macs(self, cell: BlockCell, sizes: Sizes, grid: PositionGrid) -> int:
        """s·C at each position of the input, the rest at each of the output."""
        few, half = _few(cell, sizes), cell.outputs // 2
        expand = cell.outputs - half + half * cell.taps
        return few * (cell.channels * grid.before + expand * grid.after)

    def start(self, sketch: Sketch, original: PatchMap) -> Values:
        """The directions that carry most of the output, with both signs where both occur."""
        first, point, kernel = sketch.linear
        every = original.mixed()
        rows = [sign * row for row in every.rows for sign in signs_of(original, row)]
        found = np.zeros(first.shape(sketch.cell), np.float32)
        count = min(len(rows), first.outs)
        found.reshape(first.outs, -1)[:count] = rows[:count]
        values: Values = {first.output: found}
        squeezed = original.evidence.patches @ found.reshape(first.outs, -1).T
        features = np.maximum(squeezed, 0)
        lost = [
            least_squares(rows_of(step, sketch.cell, features)[0][0], original.evidence.outputs)[2]
            for step in (point, kernel)
        ]
        values["ordered"] = order_of(lost[0] - lost[1], point.outs)
        return values


def order_of(gains: np.ndarray, first: int) -> np.ndarray:
    """Where each output is found when the `first` with the least gain come first."""
    sorted_ = np.argsort(gains, kind="stable")
    joined = np.concatenate([np.sort(sorted_[:first]), np.sort(sorted_[first:])])
    return np.argsort(joined)


def _few(cell: BlockCell, sizes: Sizes) -> int:
    return max(round(sizes["squeeze"] * cell.outputs), 1)


_NO_CENTER = "its pads do not keep sizes, so that no pointwise Conv returns as many positions"

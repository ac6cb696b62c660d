"""`grouped`: a Conv within groups of channels, then a pointwise Conv that mixes the groups.

Ioannou et al., arXiv:1605.06489 (deep roots). 1/g + 1/k² of the weights of a convolution with as
many outputs as inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from onnxslim.substitution.kinds.base import BlockKind, PositionGrid, Sizes, divisor
from onnxslim.substitution.patches.sketch import INPUT, BlockCell, Linear, Sketch, Values
from onnxslim.substitution.patches.terms import PatchMap, principal


class Grouped(BlockKind):
    """A Conv in `groups` groups, as many channels as before, then a pointwise Conv."""

    name: ClassVar[str] = "grouped"
    sizes: ClassVar[Mapping[str, tuple[float, ...]]] = {"groups": (4, 2, 8, 16)}

    def sketch(self, cell: BlockCell, sizes: Sizes) -> Sketch:
        """See `BlockKind`."""
        c = cell.channels
        groups = divisor(sizes["groups"], c)
        return Sketch(
            cell,
            (
                Linear("grouped", INPUT, c, c, groups, axes=cell.every_axis),
                Linear("pointwise", "grouped", c, cell.outputs, has_bias=True),
            ),
        )

    def weights(self, cell: BlockCell, sizes: Sizes) -> int:
        """C·C/g·k + C·O."""
        c = cell.channels
        return c * (c // divisor(sizes["groups"], c)) * cell.taps + c * cell.outputs

    def macs(self, cell: BlockCell, sizes: Sizes, grid: PositionGrid) -> int:
        """(C·C/g·k + C·O) at each position of the output."""
        return self.weights(cell, sizes) * grid.after

    def start(self, sketch: Sketch, original: PatchMap) -> Values:
        """The filters of each group that carry most of what the group adds to the output."""
        cell, (first, _) = sketch.cell, sketch.linear
        width = first.ins // first.groups
        found = np.zeros(first.shape(cell), np.float32)
        for group in range(first.groups):
            own = original.of_channels(slice(group * width, (group + 1) * width))
            features = own.patches.transpose(0, 2, 1).reshape(len(own.patches), -1)
            wide = features.astype(np.float64)
            matrix = own.weight.reshape(len(own.weight), -1)  # (outputs, channels·taps)
            filters, _ = principal(matrix, wide.T @ wide / len(wide), width)
            found[group, : len(filters)] = filters.reshape(-1, width, *cell.kernel)
        return {"grouped": found}

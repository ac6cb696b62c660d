"""`separable`: filters for each channel by itself, then a pointwise Conv.

Sifre, Mallat (2014); Howard et al., arXiv:1704.04861 (MobileNet V1). 1/O + 1/k² of the weights of a
convolution. Without an activation between: what is replaced is linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from onnxslim.substitution.kinds.base import BlockKind, PositionGrid, Sizes
from onnxslim.substitution.patches.sketch import (
    INPUT,
    BlockCell,
    Join,
    Linear,
    Sketch,
    Step,
    Values,
)
from onnxslim.substitution.patches.terms import PatchMap


class Separable(BlockKind):
    """`expand` filters for each channel, then a pointwise Conv."""

    name: ClassVar[str] = "separable"
    sizes: ClassVar[Mapping[str, tuple[float, ...]]] = {"expand": (1, 2, 3)}

    def sketch(self, cell: BlockCell, sizes: Sizes) -> Sketch:
        """See `BlockKind`; a Conv for each filter: onnxruntime is fast with one output a group."""
        count = _filters(cell, sizes)
        names = tuple(f"depthwise{number}" for number in range(count))
        c = cell.channels
        steps: list[Step] = [Linear(n, INPUT, c, c, c, axes=cell.every_axis) for n in names]
        if count > 1:
            steps.append(Join("joined", names))
        steps.append(Linear("pointwise", steps[-1].output, count * c, cell.outputs, has_bias=True))
        return Sketch(cell, tuple(steps))

    def weights(self, cell: BlockCell, sizes: Sizes) -> int:
        """r·C·k + r·C·O."""
        return _filters(cell, sizes) * cell.channels * (cell.taps + cell.outputs)

    def macs(self, cell: BlockCell, sizes: Sizes, grid: PositionGrid) -> int:
        """(r·C·k + r·C·O) at each position of the output."""
        return self.weights(cell, sizes) * grid.after

    def start(self, sketch: Sketch, original: PatchMap) -> Values:
        """The filters of each channel that carry most of what the channel adds to the output."""
        cell = sketch.cell
        count = len(sketch.linear) - 1
        every = original.terms_of_each(original.each_channel(), count)
        found: Values = {}
        for number in range(count):
            filters = [
                terms[number].filter if number < len(terms) else np.zeros(cell.taps)
                for terms in every
            ]
            weight = np.stack(filters).reshape(cell.channels, 1, 1, *cell.kernel)
            found[f"depthwise{number}"] = weight.astype(np.float32)
        return found


def _filters(cell: BlockCell, sizes: Sizes) -> int:
    return min(int(sizes["expand"]), cell.taps)

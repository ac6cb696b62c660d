"""`mobilenet-v2`: more channels, one filter for each of them, then fewer; the input is added.

Sandler et al., arXiv:1801.04381 (inverted residuals with linear bottlenecks). We differ: Relu for
Relu6, and no bias in front of a Conv that pads with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from onnxslim.substitution.kinds.base import BlockKind, PositionGrid, Sizes, signs_of
from onnxslim.substitution.patches.sketch import (
    INPUT,
    Activation,
    AddInput,
    BlockCell,
    Linear,
    Sketch,
    Step,
    Values,
)
from onnxslim.substitution.patches.terms import PatchMap


class MobileNetV2(BlockKind):
    """`expand` times the channels, a filter for each, a pointwise Conv to the outputs."""

    name: ClassVar[str] = "mobilenet-v2"
    sizes: ClassVar[Mapping[str, tuple[float, ...]]] = {"expand": (2, 1, 4, 6)}

    def sketch(self, cell: BlockCell, sizes: Sizes) -> Sketch:
        """See `BlockKind`."""
        c = cell.channels
        wide = _wide(cell, sizes)
        steps: list[Step] = [
            Linear("expanded", INPUT, c, wide),
            Activation("expanded_relu", "expanded"),
            Linear(
                "depthwise", "expanded_relu", wide, wide, wide, axes=cell.every_axis, has_bias=True
            ),
            Activation("depthwise_relu", "depthwise"),
            Linear("projected", "depthwise_relu", wide, cell.outputs, has_bias=True),
        ]
        if cell.may_add_input:
            steps.append(AddInput("sum", "projected"))
        return Sketch(cell, tuple(steps))

    def weights(self, cell: BlockCell, sizes: Sizes) -> int:
        """t·C·C + t·C·k + t·C·O."""
        return _wide(cell, sizes) * (cell.channels + cell.taps + cell.outputs)

    def macs(self, cell: BlockCell, sizes: Sizes, grid: PositionGrid) -> int:
        """t·C·C at each position of the input, t·C·(k + O) at each of the output."""
        before, after = cell.channels * grid.before, (cell.taps + cell.outputs) * grid.after
        return _wide(cell, sizes) * (before + after)

    def start(self, sketch: Sketch, original: PatchMap) -> Values:
        """The filters of each channel that are worth most, with both signs.

        Relu(f) - Relu(-f) is f: two maps of one filter return what the filter alone would. Inputs
        that go below zero take two maps more.
        """
        cell, (first, second, _) = sketch.cell, sketch.linear
        every = original.each_channel()
        terms = original.terms(every, first.outs)
        rows, filters = [], []
        for term in terms:
            for side in signs_of(original, every.rows[term.direction]):
                for sign in (1, -1):
                    rows.append(side * every.rows[term.direction])
                    filters.append(sign * term.filter)
        count = min(len(rows), first.outs)
        found = {step.output: np.zeros(step.shape(cell), np.float32) for step in (first, second)}
        found["expanded"].reshape(first.outs, -1)[:count] = rows[:count]
        found["depthwise"].reshape(first.outs, -1)[:count] = filters[:count]
        return found


def _wide(cell: BlockCell, sizes: Sizes) -> int:
    return int(sizes["expand"]) * cell.channels

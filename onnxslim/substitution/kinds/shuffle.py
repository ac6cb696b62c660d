"""`shuffle`: pointwise Convs within groups, channels dealt to other groups between them.

Zhang et al., arXiv:1707.01083 (ShuffleNet): a pointwise Conv in groups, Relu, channels shuffled, a
filter for each, a pointwise Conv in groups; the input is added where it has the size of the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from onnxslim.substitution.kinds.base import BlockKind, PositionGrid, Sizes, divisor, signs_of
from onnxslim.substitution.patches.sketch import (
    INPUT,
    Activation,
    AddInput,
    BlockCell,
    Linear,
    Sketch,
    Step,
    Take,
    Values,
)
from onnxslim.substitution.patches.terms import PatchMap


class Shuffle(BlockKind):
    """`squeeze` times as many channels as outputs between pointwise Convs in `groups` groups."""

    name: ClassVar[str] = "shuffle"
    sizes: ClassVar[Mapping[str, tuple[float, ...]]] = {"squeeze": (0.5, 1.0), "groups": (2, 4)}

    def sketch(self, cell: BlockCell, sizes: Sizes) -> Sketch:
        """See `BlockKind`."""
        groups, few = _groups(cell, sizes), _few(cell, sizes)
        steps: list[Step] = [
            Linear("squeezed", INPUT, cell.channels, few, groups),
            Activation("squeezed_relu", "squeezed"),
            Take("shuffled", "squeezed_relu"),
            Linear("depthwise", "shuffled", few, few, few, axes=cell.every_axis, has_bias=True),
            Linear("expanded", "depthwise", few, cell.outputs, groups, has_bias=True),
        ]
        if cell.may_add_input:
            steps.append(AddInput("sum", "expanded"))
        return Sketch(cell, tuple(steps))

    def weights(self, cell: BlockCell, sizes: Sizes) -> int:
        """b·C/g + b·k + b·O/g."""
        groups = _groups(cell, sizes)
        return _few(cell, sizes) * (cell.channels // groups + cell.taps + cell.outputs // groups)

    def macs(self, cell: BlockCell, sizes: Sizes, grid: PositionGrid) -> int:
        """b·C/g at each position of the input, b·(k + O/g) at each of the output."""
        groups = _groups(cell, sizes)
        before = cell.channels // groups * grid.before
        after = (cell.taps + cell.outputs // groups) * grid.after
        return _few(cell, sizes) * (before + after)

    def start(self, sketch: Sketch, original: PatchMap) -> Values:
        """Terms of the map from each group of inputs to each group of outputs."""
        cell, (first, second, _) = sketch.cell, sketch.linear
        groups = first.groups
        order = shuffled_order(first.outs, groups)
        ins, outs, own = cell.channels // groups, cell.outputs // groups, first.outs // groups
        rows = np.zeros((first.outs, ins), np.float32)
        filters = np.zeros((first.outs, cell.taps), np.float32)
        for target in range(groups):
            places = np.arange(target * own, (target + 1) * own)  # behind the shuffle
            for source in range(groups):
                free = [place for place in places if order[place] // own == source]
                part = original.of_channels(
                    slice(source * ins, (source + 1) * ins),
                    slice(target * outs, (target + 1) * outs),
                )
                every = part.mixed()
                terms = part.terms(every, len(free))
                found = [
                    (sign * every.rows[term.direction], term.filter)
                    for term in terms
                    for sign in signs_of(part, every.rows[term.direction])
                ]
                for place, (row, filter_) in zip(free, found, strict=False):
                    rows[order[place]], filters[place] = row, filter_
        return {
            "squeezed": rows.reshape(first.shape(cell)),
            "shuffled": order,
            "depthwise": filters.reshape(second.shape(cell)),
        }


def shuffled_order(channels: int, groups: int) -> np.ndarray:
    """The channels dealt in turn: the first of each group, the second of each group, ..."""
    return np.arange(channels).reshape(groups, -1).T.reshape(-1)


def _groups(cell: BlockCell, sizes: Sizes) -> int:
    return divisor(sizes["groups"], cell.channels, cell.outputs)


def _few(cell: BlockCell, sizes: Sizes) -> int:
    """Channels between, as many for each pair of groups."""
    square = _groups(cell, sizes) ** 2
    return max(round(sizes["squeeze"] * cell.outputs / square), 1) * square

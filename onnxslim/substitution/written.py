"""A block as operators: the steps of its sketch, with the weights of all groups side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from onnxslim.analysis.layer_models import INPUT
from onnxslim.analysis.linear_operators import ConvPatches
from onnxslim.lowrank.pieces import OUTPUT, ConvBuilder, Piece
from onnxslim.substitution.patches.sketch import (
    Activation,
    AddInput,
    Join,
    Linear,
    Sketch,
    Step,
    Take,
    Values,
    bias_name,
)

_CHANNELS: Final = 1  # the axis of a map


def written(
    sketch: Sketch, values: Sequence[Values], patches: ConvPatches, dtype: np.dtype[Any]
) -> list[Piece]:
    """The operators of a block; `x` is its input, and the last one returns `y`.

    Args:
        sketch: of one group.
        values: of each group.
        patches: the geometry of all Convs that are not pointwise.
        dtype: of the weights.
    """
    writer = _BlockWriter(sketch, values, patches, dtype)
    for step in sketch.steps:
        writer.write(step)
    return writer.pieces


class _BlockWriter:
    def __init__(
        self,
        sketch: Sketch,
        values: Sequence[Values],
        patches: ConvPatches,
        dtype: np.dtype[Any],
    ) -> None:
        self.sketch, self.values, self.patches, self.dtype = sketch, values, patches, dtype
        self.build = ConvBuilder(patches)
        self.widths = sketch.widths()
        self.names = {INPUT: INPUT}  # tensors of the sketch -> tensors of the graph
        self.pieces: list[Piece] = []

    @property
    def groups(self) -> int:
        return len(self.values)

    def write(self, step: Step) -> None:
        last = step is self.sketch.steps[-1]
        output = OUTPUT if last else f"h_{step.output}"
        self.names[step.output] = output
        if isinstance(step, Linear):
            self.pieces.append(self._conv(step, output))
        elif isinstance(step, Join):
            self._join(step, output)
        elif isinstance(step, Take):
            orders = [values[step.output] for values in self.values]
            width = self.widths[step.x]
            order = np.concatenate([o + number * width for number, o in enumerate(orders)])
            self._gather(self.names[step.x], order, output)
        elif isinstance(step, Activation):
            op, attrs = ("LeakyRelu", {"alpha": step.slope}) if step.slope else ("Relu", {})
            self.pieces.append(Piece(op, (self.names[step.x],), output, attrs))
        else:
            assert isinstance(step, AddInput)
            self.pieces.append(Piece("Add", (self.names[step.x], INPUT), output))

    def _conv(self, step: Linear, output: str) -> Piece:
        weight = np.concatenate([values[step.output] for values in self.values])
        weight = np.ascontiguousarray(weight.astype(self.dtype))
        x = self.names[step.x]
        if step.axes:
            piece = self.build.over(weight, step.axes, x, output)
        else:
            piece = self.build.mix(weight.reshape(weight.shape[:3]), x, output)
        if step.at_center and any(stride > 1 for stride in self.patches.strides):
            attrs = {**piece.attrs, "strides": list(self.patches.strides)}
            piece = Piece(piece.op, piece.inputs, piece.output, attrs)
        if bias_name(step.output) not in self.values[0]:
            return piece
        biases = [values[bias_name(step.output)].reshape(-1) for values in self.values]
        bias = np.concatenate(biases).astype(self.dtype)
        return Piece(piece.op, (*piece.inputs, bias), piece.output, piece.attrs)

    def _join(self, step: Join, output: str) -> None:
        """Concat gives all groups of the first part, then all of the second: put them by group."""
        widths = [self.widths[part] for part in step.parts]
        parts = tuple(self.names[part] for part in step.parts)
        joined = output if self.groups == 1 else f"{output}_parts"
        self.pieces.append(Piece("Concat", parts, joined, {"axis": _CHANNELS}))
        if self.groups == 1:
            return
        starts = np.cumsum([0, *(width * self.groups for width in widths)])
        order = [
            start + group * width + np.arange(width)
            for group in range(self.groups)
            for start, width in zip(starts, widths, strict=False)
        ]
        self._gather(joined, np.concatenate(order), output)

    def _gather(self, x: str, order: np.ndarray, output: str) -> None:
        indices = np.ascontiguousarray(order, np.int64)
        before = self.pieces[-1] if self.pieces else None
        if before is not None and before.op == "Gather" and before.output == x:
            indices = np.ascontiguousarray(before.inputs[1])[indices]  # two orders make one
            x = str(before.inputs[0])
            self.pieces.pop()
        self.pieces.append(Piece("Gather", (x, indices), output, {"axis": _CHANNELS}))

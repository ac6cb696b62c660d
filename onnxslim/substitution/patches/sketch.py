"""A block as steps: what a position of its output is, and how that depends on weights.

Whatever a block of one spatial stage consists of, a position of its output depends on one patch of
its input. So a block can be computed, differentiated and fitted on patches alone, (rows, kernel...,
channels), without the maps that they come from. `written` lays the same steps out as operators.

Blocks are drawn for one group of channels; of a grouped convolution each group gets its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np

INPUT: Final = "x"
Values = dict[str, np.ndarray]
"""What a block has learned, by name: weights, biases (see `bias_name`) and orders of channels."""


@dataclass(frozen=True)
class BlockCell:
    """What a block of one group has to do.

    Attributes:
        channels, outputs: of the group.
        kernel: positions of the input that one of the output depends on, along each axis.
        center: the position in the kernel that the output lies at, where a pointwise Conv with the
            same strides and no pads returns as many positions; else None.
        keeps_size: whether the output is as large as the input.
    """

    channels: int
    outputs: int
    kernel: tuple[int, ...]
    center: tuple[int, ...] | None
    keeps_size: bool

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return prod(self.kernel)

    @property
    def every_axis(self) -> tuple[int, ...]:
        """The axes of the kernel."""
        return tuple(range(len(self.kernel)))

    @property
    def may_add_input(self) -> bool:
        """Whether the input can be added to the output."""
        return self.keeps_size and self.center is not None and self.channels == self.outputs


def bias_name(step: str) -> str:
    """Under which the bias of a step is among the values."""
    return f"{step}/bias"


# ---------------------------------------------------------------------------- steps


@dataclass(frozen=True)
class Linear:
    """A Conv over some axes of the kernel, none of them for a pointwise one.

    Attributes:
        output: its name, and that of its weight, (groups, outs / groups, ins / groups, kernel...).
        x: what it reads.
        ins, outs: channels.
        groups: blocks that channels are divided into.
        axes: of the kernel, that it treats.
        at_center: whether it reads only the center of the patches, with strides and no pads.
        has_bias: not where a Conv that pads with zeros comes behind.
    """

    output: str
    x: str
    ins: int
    outs: int
    groups: int = 1
    axes: tuple[int, ...] = ()
    at_center: bool = False
    has_bias: bool = False

    def kernel(self, cell: BlockCell) -> tuple[int, ...]:
        """The size of the Conv along each axis."""
        return tuple(size if axis in self.axes else 1 for axis, size in enumerate(cell.kernel))

    def shape(self, cell: BlockCell) -> tuple[int, ...]:
        """Of the weight."""
        groups = self.groups
        return (groups, self.outs // groups, self.ins // groups, *self.kernel(cell))


@dataclass(frozen=True)
class Activation:
    """Relu, or with a slope LeakyRelu."""

    output: str
    x: str
    slope: float = 0.0


@dataclass(frozen=True)
class Take:
    """The channels of `x` in another order, a permutation among the values."""

    output: str
    x: str


@dataclass(frozen=True)
class Join:
    """The channels of several tensors behind each other."""

    output: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class AddInput:
    """The input of the block added to `x`."""

    output: str
    x: str


Step = Linear | Activation | Take | Join | AddInput


# ---------------------------------------------------------------------------- on patches


@dataclass(frozen=True)
class Sketch:
    """The steps of a block for one group, producers first; the last one returns the output."""

    cell: BlockCell
    steps: tuple[Step, ...]

    @property
    def linear(self) -> tuple[Linear, ...]:
        """The Convs."""
        return tuple(step for step in self.steps if isinstance(step, Linear))

    @property
    def finals(self) -> tuple[Linear, ...]:
        """The Convs behind which only orders, joins and sums come: least squares finds them."""
        found, wanted = [], {self.steps[-1].output}
        for step in reversed(self.steps):
            if step.output not in wanted or isinstance(step, Activation):
                continue
            if isinstance(step, Linear):
                found.append(step)
            elif isinstance(step, Join):
                wanted |= set(step.parts)
            else:
                wanted.add(step.x)
        return tuple(reversed(found))

    def widths(self) -> dict[str, int]:
        """Channels of each tensor."""
        found = {INPUT: self.cell.channels}
        for step in self.steps:
            if isinstance(step, Linear):
                found[step.output] = step.outs
            elif isinstance(step, Join):
                found[step.output] = sum(found[part] for part in step.parts)
            else:
                found[step.output] = found[step.x]
        return found

    def weights(self) -> int:
        """Elements of all weights, without biases."""
        return sum(prod(step.shape(self.cell)) for step in self.linear)

    def tensors(self, x: np.ndarray, values: Values) -> dict[str, np.ndarray]:
        """Every tensor on patches, (rows, kernel..., channels); axes that were treated have size 1.

        Args:
            x: the patches.
            values: all that the steps need.
        """
        found = {INPUT: x}
        for step in self.steps:
            found[step.output] = self._result(step, found, values)
        return found

    def outputs(self, x: np.ndarray, values: Values) -> np.ndarray:
        """What the block returns, (rows, outputs)."""
        return self.tensors(x, values)[self.steps[-1].output].reshape(len(x), -1)

    def gradients(
        self, tensors: Mapping[str, np.ndarray], values: Values, gradient: np.ndarray
    ) -> Values:
        """The gradients of weights and biases, by the names of `values`.

        Args:
            tensors: as `tensors` found them.
            values: what they were computed with.
            gradient: of what is brought down, by the output, (rows, outputs).
        """
        last = tensors[self.steps[-1].output]
        back = {self.steps[-1].output: gradient.reshape(last.shape)}
        found: Values = {}
        for step in reversed(self.steps):
            own = back.pop(step.output)
            for name, part in self._sources(step, tensors, values, own, found):
                if name != INPUT:
                    back[name] = back[name] + part if name in back else part
        return found

    # ------------------------------------------------------------------ inside

    def _result(self, step: Step, known: Mapping[str, np.ndarray], values: Values) -> np.ndarray:
        if isinstance(step, Linear):
            rows, shape = rows_of(step, self.cell, known[step.x])
            made = np.matmul(rows, _matrices(values[step.output]))  # (g, rows, outs / g)
            if bias_name(step.output) in values:
                made += values[bias_name(step.output)].reshape(step.groups, 1, -1)
            return np.asarray(made.transpose(1, 0, 2).reshape(shape))
        if isinstance(step, Join):
            return np.concatenate([known[part] for part in step.parts], axis=-1)
        x = known[step.x]
        if isinstance(step, Activation):
            return np.where(x > 0, x, np.float32(step.slope) * x)
        if isinstance(step, Take):
            return np.asarray(x[..., values[step.output]])
        return np.asarray(x + self.centers(known[INPUT]))

    def centers(self, x: np.ndarray) -> np.ndarray:
        """(rows, kernel..., channels) at the center of the kernel, with axes of size 1."""
        assert self.cell.center is not None
        return np.asarray(x[(slice(None), *(slice(at, at + 1) for at in self.cell.center))])

    def _sources(
        self,
        step: Step,
        tensors: Mapping[str, np.ndarray],
        values: Values,
        own: np.ndarray,
        found: Values,
    ) -> list[tuple[str, np.ndarray]]:
        """Gradients of what a step reads; those of its values go into `found`."""
        if isinstance(step, Linear):
            return self._linear_sources(step, tensors[step.x], values, own, found)
        if isinstance(step, Join):
            ends = np.cumsum([tensors[part].shape[-1] for part in step.parts])[:-1]
            return list(zip(step.parts, np.split(own, ends, axis=-1), strict=True))
        if isinstance(step, Activation):
            slope = np.float32(step.slope)
            return [(step.x, np.where(tensors[step.x] > 0, own, slope * own))]
        if isinstance(step, Take):
            part = np.empty_like(own)
            part[..., values[step.output]] = own
            return [(step.x, part)]
        return [(step.x, own)]

    def _linear_sources(
        self, step: Linear, x: np.ndarray, values: Values, own: np.ndarray, found: Values
    ) -> list[tuple[str, np.ndarray]]:
        weight = values[step.output]
        rows, _ = rows_of(step, self.cell, x)
        back = own.reshape(-1, step.groups, step.outs // step.groups).transpose(1, 0, 2)
        # (g, k·ins / g, rows)·(g, rows, outs / g) -> (g, outs / g, ins / g, kernel...)
        by_weight = np.matmul(rows.transpose(0, 2, 1), back)
        kernel = step.kernel(self.cell)
        split = by_weight.reshape(step.groups, *kernel, -1, step.outs // step.groups)
        found[step.output] = np.moveaxis(split, (-1, -2), (1, 2))
        if bias_name(step.output) in values:
            found[bias_name(step.output)] = back.sum(axis=1).reshape(-1)
        if step.x == INPUT:
            return []
        by_rows = np.matmul(back, _matrices(weight).transpose(0, 2, 1))
        return [(step.x, _rows_back(step, self.cell, by_rows, x.shape))]


def _matrices(weight: np.ndarray) -> np.ndarray:
    """(groups, outs, ins, kernel...) as (groups, kernel·ins, outs)."""
    groups, outs = weight.shape[:2]
    return np.moveaxis(weight, (1, 2), (-1, -2)).reshape(groups, -1, outs)


def rows_of(step: Linear, cell: BlockCell, x: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """What the weight of a step is multiplied by, (groups, rows, kernel·ins / groups).

    Returns:
        It, and the shape of the step's output.
    """
    if step.at_center:
        assert cell.center is not None
        x = x[(slice(None), *(slice(at, at + 1) for at in cell.center))]
    sizes = x.shape[1:-1]
    treated = [axis for axis in step.axes if sizes[axis] > 1]
    kept = [axis for axis in range(len(sizes)) if axis not in treated]
    split = x.reshape(len(x), *sizes, step.groups, -1)
    order = (len(sizes) + 1, 0, *(a + 1 for a in kept), *(a + 1 for a in treated), len(sizes) + 2)
    count = len(x) * prod(sizes[axis] for axis in kept)
    rows = split.transpose(order).reshape(step.groups, count, -1)
    shape = (len(x), *(1 if axis in treated else size for axis, size in enumerate(sizes)))
    return rows, (*shape, step.outs)


def _rows_back(
    step: Linear, cell: BlockCell, rows: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """The inverse of `rows_of`, (rows, kernel..., channels), with zeros at what was not read."""
    sizes = (1,) * (len(shape) - 2) if step.at_center else shape[1:-1]
    treated = [axis for axis in step.axes if sizes[axis] > 1]
    kept = [axis for axis in range(len(sizes)) if axis not in treated]
    order = (len(sizes) + 1, 0, *(a + 1 for a in kept), *(a + 1 for a in treated), len(sizes) + 2)
    split = rows.reshape(
        step.groups,
        shape[0],
        *(sizes[axis] for axis in kept),
        *(sizes[axis] for axis in treated),
        -1,
    )
    made = split.transpose(np.argsort(order)).reshape(shape[0], *sizes, shape[-1])
    if not step.at_center:
        return made
    assert cell.center is not None
    whole = np.zeros(shape, made.dtype)
    whole[(slice(None), *(slice(at, at + 1) for at in cell.center))] = made
    return whole

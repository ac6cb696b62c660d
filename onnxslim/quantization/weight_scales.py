"""Scales of weights: their granularity, and how far the grid of each scale reaches.

A grid reaches as far as the largest weight, or less far: clipping a few weights may cost less than
the finer steps gain for all others. Of a few clipping ratios, each scale takes the one with the
least error of rounding to nearest (Nagel et al. 2021, arXiv:2106.08295, section 3.1, "MSE based"),
weighted by the diagonal of H = E[x xᵀ]. With data, clipping must also win by H itself.

Weights are in canonical layout here, (groups, rows, columns): a row is an output channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.layers import WeightLayer
from onnxslim.analysis.linear_operators import ConvPatches, TableRows
from onnxslim.lossy.problems import Problem
from onnxslim.quantization.grid import S8_SYMMETRIC, Codes, GridForm
from onnxslim.solvers import tables

_RATIOS: Final = np.linspace(1.0, 0.6, 9)  # clipping ratios: the grid's end over the largest weight
_CLEAR: Final = 0.9  # with data, clipping is considered where it leaves at most this share of error
_CHUNK: Final = 1 << 20  # weights converted to float64 at a time
_CACHED: Final = 1 << 15  # and where each is looked at often, which a processor's cache holds
Array = npt.NDArray[np.float64]
_Rows = slice | npt.NDArray[np.intp]


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole weight."""


@dataclass(frozen=True)
class PerChannel:
    """A scale for each output channel."""


@dataclass(frozen=True)
class PerBlock:
    """A scale for every `size` consecutive columns of an output channel."""

    size: int


Granularity = PerTensor | PerChannel | PerBlock


@dataclass(frozen=True)
class WeightForm:
    """Which codes a weight may have.

    Attributes:
        grid: the form of its grids.
        granularity: which weights share a scale.
        full_range: whether a symmetric grid uses its least code too, for the largest weight; where
            that weight is positive, the scale is negative. 4 bits have 16 levels then, not 15.
        clips: whether grids may reach less far than the largest weight.
    """

    grid: GridForm = S8_SYMMETRIC
    granularity: Granularity = PerChannel()
    full_range: bool = False
    clips: bool = True

    @property
    def is_per_tensor(self) -> bool:
        """Whether all weights share one scale."""
        return isinstance(self.granularity, PerTensor)

    @property
    def block(self) -> int | None:
        """How many consecutive columns of a channel share a scale; None: all of them."""
        return self.granularity.size if isinstance(self.granularity, PerBlock) else None


DEFAULT_FORM: Final = WeightForm()


def channel_axis(layer: WeightLayer) -> int | None:
    """The axis of the weight tensor along which rows have scales; None: it can have only one scale.

    Where groups are stacked along another axis than rows, groups share the scales of their rows.
    """
    ndim = len(layer.holder.stored.shape)
    if isinstance(layer.unfolding, ConvPatches):
        return 1 if layer.inputs_first else 0
    if isinstance(layer.unfolding, TableRows):
        return 0
    if ndim < 2:
        return None
    return ndim - 1 if layer.inputs_first else ndim - 2


@dataclass(frozen=True)
class RowGrids:
    """The grids of all rows and blocks of columns of a weight.

    Attributes:
        scale: (groups, rows, blocks).
        zero_point: (groups, rows, blocks), of the type of the codes.
        low, high: least and largest code that may be used.
        starts, sizes: (blocks,), the first column of each block, and the number of its columns.
    """

    scale: npt.NDArray[np.float32]
    zero_point: Codes
    low: int
    high: int
    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    @classmethod
    def over(cls, least: Array, most: Array, form: WeightForm, columns: int) -> RowGrids:
        """The grids that cover [least, most], each (groups, rows, blocks), of a weight."""
        grid = form.grid.over(least, most)
        scale, low = grid.scale.astype(np.float64), grid.low
        if form.full_range:
            low -= 1  # the end with the largest weight becomes this code
            scale *= np.where(most > -least, grid.high / low, grid.high / -low)
        starts = _starts(columns, form.block)
        sizes = np.diff(starts, append=columns)
        return cls(scale.astype(np.float32), grid.zero_point, low, grid.high, starts, sizes)

    def of(self, group: int, rows: slice) -> tables.IntegerGrid:
        """The grids of rows of one group's matrix, as `solvers.tables` takes them."""
        parts = (self.scale[group, rows], self.zero_point[group, rows])
        scale, zero = (x.T.astype(np.float64) for x in parts)
        return tables.IntegerGrid(scale, zero, self.low, self.high, int(self.sizes[0]))

    def codes(self, values: Array, group: int, rows: _Rows) -> Codes:
        """The nearest codes to `values`, (rows, columns) of one group."""
        scale, zero = self._by_column(group, rows)
        codes = np.clip(np.rint(values / scale) + zero, self.low, self.high)
        return codes.astype(self.zero_point.dtype)

    def nearest(self, values: Array, group: int, rows: _Rows) -> Array:
        """The nearest values on the grids to `values`, (rows, columns) of one group."""
        scale, zero = self._by_column(group, rows)
        found = np.asarray(values / scale)
        np.rint(found, out=found)
        low, high = (end - zero if zero.any() else end for end in (self.low, self.high))
        np.clip(found, low, high, out=found)
        found *= scale
        return found

    def _by_column(self, group: int, rows: _Rows) -> tuple[Array, Array]:
        scale, zero = (x[group, rows].astype(np.float64) for x in (self.scale, self.zero_point))
        if len(self.sizes) > 1:
            scale, zero = (np.repeat(x, self.sizes, axis=1) for x in (scale, zero))
        return scale, zero


def row_grids(problem: Problem, form: WeightForm) -> RowGrids:
    """The grids with the least error of rounding to nearest, over a few clipping ratios."""
    columns = problem.layer.columns
    shared = _shared_axes(problem.layer, form)
    starts = _starts(columns, form.block)
    shape = (problem.layer.groups, problem.layer.rows, len(starts))

    def whole(values: Array, reduce: np.ufunc) -> Array:
        """Reduce over the weights that share a scale, and give each the result."""
        return np.broadcast_to(reduce.reduce(values, axis=shared, keepdims=True), shape)

    values = problem.target if problem.has_data else problem.weight
    least, most = (
        whole(extreme.reduceat(values, starts, axis=2).astype(np.float64), extreme)
        for extreme in (np.minimum, np.maximum)
    )

    def at(ratio: Array | float) -> RowGrids:
        return RowGrids.over(least * ratio, most * ratio, form, columns)

    if not form.clips:
        return at(1.0)
    # Σ H_jj (w − ŵ)² at each ratio; every scale takes its best ratio
    errors = np.stack(
        [whole(_diagonal_errors(problem, values, at(ratio)), np.add) for ratio in _RATIOS]
    )
    chosen = _RATIOS[errors.argmin(axis=0)]
    if problem.has_data:
        # the diagonal ignores how errors of columns cancel: only where clipping gains much by it
        # is the full H asked, and clipping kept where E‖(w − ŵ)·x‖² is less as well
        chosen[errors.min(axis=0) > _CLEAR * errors[0]] = 1.0
        rows = (chosen < 1).any(axis=2)
        clipped, full = (
            whole(_errors(problem, at(ratio), rows), np.add) for ratio in (chosen, 1.0)
        )
        chosen[clipped >= full] = 1.0
    return at(chosen)


def _shared_axes(layer: WeightLayer, form: WeightForm) -> tuple[int, ...]:
    """The axes of (groups, rows, blocks) along which all scales are equal."""
    if form.is_per_tensor or channel_axis(layer) is None:
        return (0, 1)
    is_conv = isinstance(layer.unfolding, ConvPatches) and not layer.inputs_first
    return () if is_conv else (0,)


def _starts(columns: int, block: int | None) -> npt.NDArray[np.int64]:
    return np.arange(0, columns, block or columns)


def _diagonal_errors(problem: Problem, values: np.ndarray, grids: RowGrids) -> Array:
    """Σ H_jj (w − ŵ)² over each row and block, (groups, rows, blocks)."""
    result = np.empty(grids.scale.shape)
    for group, rows, part in in_parts(values, _CACHED):
        errors = grids.nearest(part, group, rows)
        np.subtract(part, errors, out=errors)
        np.square(errors, out=errors)
        if not problem.metrics[group].is_identity:
            errors *= problem.metrics[group].diagonal
        result[group, rows] = np.add.reduceat(errors, grids.starts, axis=1)
    return result


def _errors(problem: Problem, grids: RowGrids, rows: npt.NDArray[np.bool_]) -> Array:
    """E‖(w − ŵ)·x‖² of the rows selected by `rows`, (groups, rows); else 0; (groups, rows, 1)."""
    result = np.zeros(rows.shape)
    for group, metric in enumerate(problem.metrics):
        own = np.flatnonzero(rows[group])
        if len(own):
            part = problem.target[group][own]
            result[group, own] = metric.cost_by_row(part - grids.nearest(part, group, own))
    return result[:, :, None]


def in_parts(weight: np.ndarray, items: int = _CHUNK) -> Iterator[tuple[int, slice, Array]]:
    """Yield a weight in parts of some rows: group, rows, and the values as float64.

    A part has `items` values at most, or one row.
    """
    height = max(1, items // weight.shape[2])
    for group, matrix in enumerate(weight):
        for first in range(0, len(matrix), height):
            rows = slice(first, first + height)
            yield group, rows, matrix[rows].astype(np.float64)

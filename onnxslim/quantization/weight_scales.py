"""Scales of weights: how far the grid of each row, tensor or block of columns reaches.

As far as the largest weight does, or less far: what clipping costs may be less than what finer
steps gain. A few ratios are tried, and the one with the least error of rounding to nearest is
taken: by the diagonal of H, then by H itself where there are data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.layers import WeightLayer
from onnxslim.analysis.linear_operators import ConvPatches
from onnxslim.lossy.problems import Problem
from onnxslim.quantization.grid import S8_SYMMETRIC, Codes, GridForm
from onnxslim.solvers import tables

_RATIOS: Final = np.linspace(1.0, 0.6, 9)  # of the largest weight, that a scale may reach
_CLEAR: Final = 0.9  # of an error: with data, clipping is looked into where it leaves no more
_CHUNK: Final = 1 << 20  # weights that are float64 at once, where there are no data
Array = npt.NDArray[np.float64]
_Rows = slice | npt.NDArray[np.intp]


@dataclass(frozen=True)
class WeightForm:
    """Which codes a weight may have.

    Attributes:
        grid: of the codes.
        per_channel: a scale for each row; else one for the tensor.
        block: columns that share a scale; None: all.
        full_range: a symmetric grid has its least code too, for the largest weight: where that is
            positive, the scale is negative. Of 4 bits, that is 16 steps and not 15.
    """

    grid: GridForm = S8_SYMMETRIC
    per_channel: bool = True
    block: int | None = None
    full_range: bool = False


DEFAULT_FORM: Final = WeightForm()


def channel_axis(layer: WeightLayer) -> int | None:
    """The axis of the weight tensor that scales of rows go along; None: it has but one scale.

    Where groups are stacked along another axis than rows are, the groups share scales.
    """
    ndim = len(layer.holder.stored.shape)
    if isinstance(layer.unfolding, ConvPatches):
        return 1 if layer.inputs_first else 0
    if ndim < 2:
        return None
    return ndim - 1 if layer.inputs_first else ndim - 2


@dataclass(frozen=True)
class RowGrids:
    """The grids of all rows and blocks of columns.

    Attributes:
        scale, zero_point: (groups, rows, blocks).
        starts: the first column of each block.
        sizes: how many columns it has.
    """

    scale: npt.NDArray[np.float32]
    zero_point: Codes
    low: int
    high: int
    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    @classmethod
    def over(
        cls, ends: tuple[Array, Array], form: WeightForm, columns: int, bound: Array
    ) -> RowGrids:
        """The grids over given ends, (groups, rows, blocks), with scales of `bound` or more."""
        grid = form.grid.over(*ends)
        scale, low = np.maximum(grid.scale, bound), grid.low
        if form.full_range:
            low -= 1
            scale *= np.where(ends[1] > -ends[0], grid.high / low, grid.high / -low)
        scale = scale.astype(np.float32)
        starts = _starts(columns, form.block)
        sizes = np.diff(starts, append=columns)
        return cls(scale, grid.zero_point, low, grid.high, starts, sizes)

    def of(self, group: int) -> tables.IntegerGrid:
        """Those of one matrix, as the solver takes them."""
        scale, zero = (x[group].T.astype(np.float64) for x in (self.scale, self.zero_point))
        return tables.IntegerGrid(scale, zero, self.low, self.high, int(self.sizes[0]))

    def codes(self, values: Array, group: int, rows: _Rows) -> Codes:
        """The nearest codes of some rows."""
        scale, zero = self._by_column(group, rows)
        codes = np.clip(np.rint(values / scale) + zero, self.low, self.high)
        return codes.astype(self.zero_point.dtype)

    def nearest(self, values: Array, group: int, rows: _Rows) -> Array:
        """The nearest values to those of some rows."""
        scale, zero = self._by_column(group, rows)
        return np.asarray(
            np.clip(np.rint(values / scale), self.low - zero, self.high - zero) * scale
        )

    def _by_column(self, group: int, rows: _Rows) -> tuple[Array, Array]:
        pair = (x[group, rows].astype(np.float64) for x in (self.scale, self.zero_point))
        if len(self.sizes) == 1:
            scale, zero = pair
        else:
            scale, zero = (np.repeat(x, self.sizes, axis=1) for x in pair)
        return scale, zero


def row_grids(problem: Problem, form: WeightForm, least_scale: Array) -> RowGrids:
    """The grids with the least error of rounding to nearest, over a few ratios of clipping."""
    columns = problem.layer.columns
    bound = least_scale[..., None] if least_scale.ndim else least_scale
    shared = _shared_axes(problem.layer, form)
    shape = (problem.layer.groups, problem.layer.rows, len(_starts(columns, form.block)))

    def whole(values: Array, reduce: np.ufunc) -> Array:
        """One value for all that share a scale."""
        return np.broadcast_to(reduce.reduce(values, axis=shared, keepdims=True), shape)

    ends = [
        whole(x, f) for x, f in zip(_ends(problem, form), (np.minimum, np.maximum), strict=True)
    ]
    bounds = whole(np.broadcast_to(bound, shape), np.maximum)

    def at(ratio: Array | float) -> RowGrids:
        return RowGrids.over((ends[0] * ratio, ends[1] * ratio), form, columns, bounds)

    errors = np.stack([whole(_diagonal_errors(problem, at(ratio)), np.add) for ratio in _RATIOS])
    chosen = _RATIOS[errors.argmin(axis=0)]
    if problem.has_data:
        # the diagonal of H is not all of it: where clipping gains much, H itself is asked
        chosen[errors.min(axis=0) > _CLEAR * errors[0]] = 1.0
        rows = (chosen < 1).any(axis=2)
        clipped, full = (
            whole(_errors(problem, at(ratio), rows), np.add) for ratio in (chosen, 1.0)
        )
        chosen[clipped >= full] = 1.0
    return at(chosen)


def _shared_axes(layer: WeightLayer, form: WeightForm) -> tuple[int, ...]:
    """The axes of (groups, rows, blocks) along which all have one scale."""
    if not form.per_channel or channel_axis(layer) is None:
        return (0, 1)
    is_conv = isinstance(layer.unfolding, ConvPatches) and not layer.inputs_first
    return () if is_conv else (0,)


def _starts(columns: int, block: int | None) -> npt.NDArray[np.int64]:
    return np.arange(0, columns, block or columns)


def _ends(problem: Problem, form: WeightForm) -> tuple[Array, Array]:
    """The least and the largest weight of each row and block."""
    values = problem.target if problem.has_data else problem.weight
    starts = _starts(values.shape[2], form.block)
    return (
        np.minimum.reduceat(values, starts, axis=2).astype(np.float64),
        np.maximum.reduceat(values, starts, axis=2).astype(np.float64),
    )


def _diagonal_errors(problem: Problem, grids: RowGrids) -> Array:
    """Σ H_jj (w − ŵ)² over each row and block, (groups, rows, blocks)."""
    result = np.empty(grids.scale.shape)
    values = problem.target if problem.has_data else problem.weight
    for group, rows, part in in_parts(values):
        squares = np.square(part - grids.nearest(part, group, rows))
        squares *= problem.metrics[group].diagonal
        result[group, rows] = np.add.reduceat(squares, grids.starts, axis=1)
    return result


def _errors(problem: Problem, grids: RowGrids, rows: npt.NDArray[np.bool_]) -> Array:
    """E‖(w − ŵ)·x‖² of the given (groups, rows), zero for others; (groups, rows, 1)."""
    result = np.zeros(rows.shape)
    for group, metric in enumerate(problem.metrics):
        own = np.flatnonzero(rows[group])
        if len(own):
            part = problem.target[group][own]
            result[group, own] = metric.cost_by_row(part - grids.nearest(part, group, own))
    return result[:, :, None]


def in_parts(weight: np.ndarray) -> Iterator[tuple[int, slice, Array]]:
    """Group after group some rows after the others, float64."""
    height = max(1, _CHUNK // weight.shape[2])
    for group, matrix in enumerate(weight):
        for first in range(0, len(matrix), height):
            rows = slice(first, first + height)
            yield group, rows, matrix[rows].astype(np.float64)


__all__ = ["DEFAULT_FORM", "RowGrids", "WeightForm", "channel_axis", "in_parts", "row_grids"]

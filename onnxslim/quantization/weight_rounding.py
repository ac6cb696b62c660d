"""Integer codes for weights, rounded so that the layer's output changes least.

For a layer y = W·x all roundings minimise E‖(W − Ŵ)·x‖² = tr (W − Ŵ) H (W − Ŵ)ᵀ with H = E[x xᵀ],
over Ŵ = scale·(codes − zero point). Scales are fixed first (see `weight_scales`). Without data H =
I, and rounding is to nearest.

`feedback` rounds column by column; the columns not rounded yet make up for each error (GPTQ:
Frantar et al. 2022, arXiv:2210.17323, eqs. 2 and 3; see `solvers.feedback`). Two sweeps of
coordinate descent follow, in which each code is chosen anew given all others.

`adaround` minimises the objective of Nagel et al. 2020 (arXiv:2004.10568, eq. 13). They relax the
choice between rounding up and down to a number in [0, 1] and optimise it by Adam. We have the
quadratic form exactly, so we descend on the codes themselves, one at a time, until no single code
can improve (ten sweeps at most), from two roundings with feedback; each row keeps its best. A code
may move by more than one step, which the objective does not forbid.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.analysis.layers import WeightLayer
from onnxslim.analysis.linear_operators import ConvPatches
from onnxslim.lossy.problems import Problem, row_parts
from onnxslim.quantization.grid import Codes, Grid
from onnxslim.quantization.weight_scales import (
    DEFAULT_FORM,
    WeightForm,
    channel_axis,
    in_parts,
    row_grids,
)
from onnxslim.solvers import feedback, refinement, tables
from onnxslim.solvers.least_squares import refit
from onnxslim.solvers.metric import Metric

_SWEEPS: Final = 2
_MAX_SWEEPS: Final = 10
_SPARSE: Final = 0.1  # share of zeros from which zeros count as pruned, and stay zero
Array = npt.NDArray[np.float64]


class Rounding(enum.StrEnum):
    """How weights become codes.

    NEAREST: each weight by itself. FEEDBACK: column by column, each making up for errors of those
    before. ADAROUND: by coordinate descent, until no single code can improve.
    """

    NEAREST = "nearest"
    FEEDBACK = "feedback"
    ADAROUND = "adaround"


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as codes, in canonical layout (see `analysis.layers`).

    Attributes:
        codes: (groups, rows, columns).
        scale: (groups, rows, blocks).
        zero_point: (groups, rows, blocks), of the type of the codes.
        low, high: the least and the largest code that may be used.
        block: columns that share a scale; None: all of a row.
        error: E‖(W − Ŵ)·x‖² as a share of E‖y‖²; without data ‖W − Ŵ‖² as a share of ‖W‖².
    """

    codes: Codes
    scale: npt.NDArray[np.float32]
    zero_point: Codes
    low: int
    high: int
    block: int | None
    error: float

    @property
    def weight(self) -> npt.NDArray[np.float32]:
        """The values of the codes, (groups, rows, columns)."""
        steps = self.codes.astype(np.float32)
        steps -= self._by_column(self.zero_point)
        steps *= self._by_column(self.scale)
        return steps

    def stored(self, layer: WeightLayer) -> tuple[Codes, Grid]:
        """The codes as the weight tensor of `layer` is laid out, and their grid.

        Raises:
            ValueError: scales go by block; see `stored_in_blocks`.
        """
        if self.block is not None:
            raise ValueError("Scales that go by block are no grid with one axis.")
        axis = channel_axis(layer)
        scale, zero = self.scale[:, :, 0], self.zero_point[:, :, 0]
        if (scale == scale[0, 0]).all() and (zero == zero[0, 0]).all():
            axis, scale, zero = None, scale[0, 0], zero[0, 0]
        elif isinstance(layer.unfolding, ConvPatches) and not layer.inputs_first:
            scale, zero = scale.reshape(-1), zero.reshape(-1)
        else:
            scale, zero = scale[0], zero[0]  # all groups have the same
        grid = Grid(np.asarray(scale), np.asarray(zero), axis, self.low, self.high)
        return layer.laid_out(self.codes), grid

    def stored_in_blocks(
        self, layer: WeightLayer
    ) -> tuple[Codes, npt.NDArray[np.float32], Codes, int]:
        """Codes, scales and zero points as a Gemm's or MatMul's matrix is laid out.

        Returns:
            As DequantizeLinear takes them with `block_size`; and its `axis`.

        Raises:
            ValueError: the weight is no matrix.
        """
        if isinstance(layer.unfolding, ConvPatches) or layer.groups > 1:
            raise ValueError(f"The weight of `{layer.name}` is no matrix.")
        scale, zero = self.scale[0], self.zero_point[0]
        if layer.inputs_first:
            scale, zero = np.ascontiguousarray(scale.T), np.ascontiguousarray(zero.T)
        return layer.laid_out(self.codes), scale, zero, 0 if layer.inputs_first else 1

    def _by_column(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        wide = values.astype(np.float32)
        if self.block is None:
            return wide
        return np.repeat(wide, self.block, axis=2)[:, :, : self.codes.shape[2]]


def quantized_weight(
    problem: Problem,
    form: WeightForm = DEFAULT_FORM,
    rounding: Rounding = Rounding.FEEDBACK,
) -> QuantizedWeight:
    """The codes of the weight of `problem`; without data, rounded to nearest."""
    grids = row_grids(problem, form)
    codes = np.empty(problem.weight.shape, form.grid.dtype)
    if problem.has_data:
        error, energy = problem.irreducible_error, problem.energy or 0.0
        pruned = [1 - (matrix != 0).mean() >= _SPARSE for matrix in problem.weight]
        for group, rows in row_parts(codes.shape):
            mask = problem.weight[group][rows] != 0 if pruned[group] else None
            target, metric = problem.target[group][rows], problem.metrics[group]
            part = _rounded(target, metric, grids.of(group, rows), mask, rounding)
            codes[group, rows] = grids.codes(part, group, rows)
            error += problem.error_of(group, rows, part)
        error = max(0.0, error)
    else:
        error = energy = 0.0
        for group, rows, part in in_parts(problem.weight):
            codes[group, rows] = grids.codes(part, group, rows)
            error += float(np.square(part - grids.nearest(part, group, rows)).sum())
            energy += float(np.square(part).sum())
    own = (grids.scale, grids.zero_point, grids.low, grids.high, form.block)
    return QuantizedWeight(codes, *own, error / energy if energy else 0.0)


# ---------------------------------------------------------------------------- rounding


def _rounded(
    wished: Array,
    metric: Metric,
    grid: tables.IntegerGrid,
    own: npt.NDArray[np.bool_] | None,
    rounding: Rounding,
) -> Array:
    """The values on the grid for rows of one group's weight, (rows, columns).

    Zeros of a pruned weight, where `own` is false, stay; the weights that are left are refitted to
    what is wished first.
    """
    target = wished if own is None else refit(wished, metric, own)
    if rounding is Rounding.NEAREST:
        return tables.round_to_nearest(target, grid, metric, own)
    # GPTQ feedback, then coordinate descent from its result
    fed = feedback.round_with_feedback(target, metric, grid, mask=own, is_fitted=True)
    found = [fed, _descended(target, fed, metric, grid, own, _SWEEPS)]
    if rounding is Rounding.ADAROUND:
        # a second start: feedback over the columns in their own order, not by activity
        other = feedback.round_with_feedback(
            target, metric, grid, mask=own, is_fitted=True, by_activity=False
        )
        starts = (found[1], other)
        found += [_descended(target, w, metric, grid, own, _MAX_SWEEPS) for w in starts]
    return _best_rows(wished, found, metric)


def _descended(
    target: Array,
    weight: Array,
    metric: Metric,
    grid: tables.IntegerGrid,
    mask: np.ndarray | None,
    sweeps: int,
) -> Array:
    """`weight` after coordinate descent, until no single code improves or `sweeps` are done."""
    for _ in range(sweeps):
        before = weight
        weight = refinement.coordinate_descent(target, before, metric, grid, mask=mask, sweeps=1)
        if np.array_equal(weight, before):
            break
    return weight


def _best_rows(target: Array, found: Sequence[Array], metric: Metric) -> Array:
    """The weight with the least cost of several, row by row."""
    costs = np.stack([metric.cost_by_row(target - weight) for weight in found])
    best = costs.argmin(axis=0)
    return np.asarray(np.stack(found)[best, np.arange(len(target))])

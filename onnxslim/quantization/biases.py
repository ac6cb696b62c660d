"""Biases as 32-bit integers, in steps of the input's scale times the weight's.

Integer kernels add the bias to sums of products of codes, so its scale is input scale times weight
scale (Jacob et al. 2018, arXiv:1712.05877, eq. 11). Where a row of the weight is so small that its
bias does not fit into 32 bits, the weight takes a larger scale. Where the row is all zero, its
scale is free, and the bias decides.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.quantization.grid import MIN_SCALE, Codes, Grid

_MAX: Final = 2.0**30  # largest bias in steps; the accumulator needs the rest
_FINE: Final = 2.0**20  # steps of a bias whose scale is free


def with_bias(
    codes: Codes, grid: Grid, bias: np.ndarray, input_scale: float
) -> tuple[Codes, Grid, npt.NDArray[np.int32], Grid]:
    """Codes and grid of a weight, scaled by row, then codes and grid of its bias, (rows,)."""
    wished = _scales(codes, grid, bias, input_scale)
    if np.any(wished != grid.scale):
        moved = replace(grid, scale=wished)
        codes, grid = moved.quantized(grid.dequantized(codes)), moved
    scale = np.asarray(np.float32(input_scale) * grid.scale, np.float32)
    steps = np.rint(np.asarray(bias, np.float64) / scale.astype(np.float64))
    limit = 2**31 - 1
    own = Grid(scale, np.zeros(scale.shape, np.int32), 0 if scale.ndim else None, -limit, limit)
    return codes, grid, np.clip(steps, -limit, limit).astype(np.int32), own


def _scales(
    codes: Codes, grid: Grid, bias: np.ndarray, input_scale: float
) -> npt.NDArray[np.float32]:
    """Scales of the weight at which the bias fits 32 bits."""
    size = np.abs(np.asarray(bias, np.float64)) / input_scale
    old = grid.scale.astype(np.float64)
    if grid.axis is None:
        is_zero = np.asarray(not np.any(codes != grid.zero_point))
        size = np.asarray(size.max(initial=0.0))
    else:
        across = tuple(index for index in range(codes.ndim) if index != grid.axis)
        along = [-1 if index == grid.axis else 1 for index in range(codes.ndim)]
        is_zero = ~np.any(codes != grid.zero_point.reshape(along), axis=across)
    free = np.where(size > 0, size / _FINE, old)
    wished = np.where(is_zero, free, np.maximum(old, size / _MAX))
    # neither the scale nor its product with the input's scale may be lost by float32 kernels
    return np.asarray(np.maximum(wished, MIN_SCALE / min(input_scale, 1.0)), np.float32)

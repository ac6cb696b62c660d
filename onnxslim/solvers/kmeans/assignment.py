"""The nearest level of each value, and the error that leaves.

Level i is nearest to the values between the midpoints to its neighbours, so the code of a value is
the number of midpoints (thresholds) below it.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from onnxslim.solvers.kmeans.pieces import (
    NOT_FINITE,
    Arrays,
    FloatBins,
    split,
    weighted_pieces,
    with_weights,
)

_COMPARED: Final = 48  # levels up to which comparing with each threshold is fastest


def encode(values: np.ndarray, table: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The index of the nearest level of each value; of two as near, the lower one.

    Args:
        values: of any shape.
        table: ascending.
        out: an array of unsigned integers, of the shape of `values`, to write to.

    Raises:
        ValueError: the table does not ascend, or not all values are finite.
    """
    table = np.asarray(table, np.float64)
    if table.ndim != 1 or not len(table) or np.any(np.diff(table) < 0):
        raise ValueError("A table must be a list of at least one level, in ascending order.")
    if out is None:
        out = np.empty(values.shape, np.uint8 if len(table) <= 1 << 8 else np.uint16)
    counter = _ThresholdCounter((table[1:] + table[:-1]) / 2, values.dtype)
    for piece, codes in split(np.atleast_1d(values), np.atleast_1d(out)):
        if not np.isfinite(piece).all():
            raise ValueError(NOT_FINITE)
        counter.write(piece, codes)
    return out


def quantization_error(values: Arrays, table: np.ndarray, weights: Arrays | None = None) -> float:
    """Σ weight·(value − nearest level)², with the arguments of `cluster`."""
    table = np.asarray(table, np.float64)
    total = 0.0
    for array, own in with_weights(values, weights):
        for piece, weight in weighted_pieces(array, own):
            error = piece.astype(np.float64) - table[encode(piece, table)]
            np.square(error, out=error)
            total += float(error.sum() if weight is None else (error * weight).sum())
    return total


class _ThresholdCounter:
    """Counts the thresholds below each value: all of them, or from the value's bin on.

    Thresholds are rounded down to the type of the values, which changes no comparison.
    """

    def __init__(self, thresholds: np.ndarray, dtype: np.dtype) -> None:
        single = dtype != np.float64
        self.thresholds = _rounded_down(thresholds) if single else thresholds
        self.narrow = single and dtype != np.float32
        self.steps = 0
        if len(thresholds) < _COMPARED:
            return
        low, high = float(self.thresholds[0]), float(self.thresholds[-1])
        self.bins = FloatBins.between(low, high, dtype)
        own = self.bins.of(self.thresholds)
        self.below = np.searchsorted(own, np.arange(self.bins.count)).astype(np.uint16)
        self.steps = int(np.bincount(own).max())
        self.padded = np.append(self.thresholds, np.inf).astype(self.thresholds.dtype)

    def write(self, piece: np.ndarray, codes: np.ndarray) -> None:
        if self.narrow:
            piece = piece.astype(np.float32)
        if self.steps > 8:  # nearly all thresholds in one bin
            codes[...] = np.searchsorted(self.thresholds, piece)
        elif self.steps:
            # thresholds of lower bins are known; those of the value's own bin are compared
            found = self.below[self.bins.of(piece)].reshape(piece.shape)
            for _ in range(self.steps):
                found += piece > self.padded[found]
            codes[...] = found
        else:
            codes[...] = 0
            above = np.empty(piece.shape, bool)
            for threshold in self.thresholds:
                np.greater(piece, threshold, out=above)
                np.add(codes, above, out=codes, casting="unsafe")


def _rounded_down(values: np.ndarray) -> np.ndarray:
    """The largest float32 that is not above each value."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    return np.where(single > values, np.nextafter(single, np.float32(-np.inf)), single)

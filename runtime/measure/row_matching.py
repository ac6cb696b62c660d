"""The comparable part of two outputs of different sizes, where data decide on the size.

Where one axis differs, its rows (detections, frames) are matched in order, so that a row more or
less does not shift all that follow. Single numbers, such as audio, and outputs that differ along
several axes are compared as far as both go.

Owns: which entries are held against each other. Not here: which outputs may differ in size (see
`onnxslim.analysis.data_sizes`).
"""

from __future__ import annotations

from typing import Final

import numpy as np

MAX_PAIRS: Final = 1 << 22  # pairs of rows that are held against each other
_MAX_WORK: Final = 1 << 28  # entries in all these pairs


def comparable(ref: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The parts of two arrays of one rank that are held against each other, of one shape.

    Where nothing is left of a reference that had values, it is held against zeros.
    """
    if ref.shape == new.shape:
        return ref, new
    differing = [axis for axis in range(ref.ndim) if ref.shape[axis] != new.shape[axis]]
    pair = _matched(ref, new, differing[0]) if len(differing) == 1 else None
    if pair is None:
        cut = tuple(slice(min(a, b)) for a, b in zip(ref.shape, new.shape, strict=True))
        pair = ref[cut], new[cut]
    return pair if pair[0].size or not ref.size else (ref, np.zeros_like(ref))


def _matched(ref: np.ndarray, new: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows along `axis`, as many as the shorter array has; None where they cannot be matched."""
    if ref.dtype.kind not in "fiub" or not ref.size or not new.size:
        return None
    rows_ref, rows_new = _rows(ref, axis), _rows(new, axis)
    pairs, width = len(rows_ref) * len(rows_new), rows_ref.shape[1]
    if width < 2 or pairs > MAX_PAIRS or pairs * width > _MAX_WORK:
        return None
    if len(rows_ref) <= len(rows_new):
        return ref, np.take(new, best_places(rows_ref, rows_new), axis)
    return np.take(ref, best_places(rows_new, rows_ref), axis), new


def _rows(array: np.ndarray, axis: int) -> np.ndarray:
    moved = np.moveaxis(array, axis, 0)
    numbers = moved.reshape(moved.shape[0], -1).astype(np.float64)
    return np.nan_to_num(numbers, nan=0.0, posinf=0.0, neginf=0.0)


def best_places(few: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Increasing places of rows in `many` that are nearest to the rows of `few`, (n,).

    The sum of squared distances is the least of all choices that keep the order, by dynamic
    programming over the pairs of rows: (n, d) and (m, d) with n <= m.
    """
    steps = np.arange(1, len(many) + 1)
    best = np.zeros(len(many) + 1)  # best[j]: the rows so far within the first j of `many`
    taken = np.zeros((len(few), len(many)), np.int32)
    squares = np.einsum("md,md->m", many, many)
    for row, values in enumerate(few):
        distance = np.maximum(squares - 2 * (many @ values) + values @ values, 0)
        ending = best[:-1] + distance  # this row at place j - 1
        best = np.concatenate([[np.inf], np.minimum.accumulate(ending)])
        # the last place at which the running minimum went down
        fell = np.concatenate([[True], ending[1:] < best[1:-1]])
        taken[row] = np.maximum.accumulate(np.where(fell, steps - 1, 0))
    places = np.empty(len(few), np.intp)
    end = len(many)
    for row in range(len(few) - 1, -1, -1):
        end = places[row] = taken[row, end - 1]
    return places

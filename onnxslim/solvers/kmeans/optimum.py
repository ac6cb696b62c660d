"""The optimal levels of many sorted rows: exact for short rows, coarse to fine for long ones.

A long row is first solved exactly for runs of values merged where the values lie dense. Then
`partition` runs once more on the values themselves, with each threshold free to move by about the
length of a run (again while one moves far).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from onnxslim.solvers.kmeans.partition import TINY, SortedRows, best_edges, best_path, run_saving

_COARSE: Final = 4  # runs a level that rows are first merged into
_COARSEST: Final = 128  # runs that they are merged into at least
_WINDOW: Final = 128  # places to either side that a threshold may move to, at least


def optimal_levels(data: SortedRows, count: int) -> np.ndarray:
    """The best `count` levels of each row, (rows, count), ascending; the last one repeated."""
    # centred values leave less to cancel in prefix sums
    middle = data.prefix.sums[:, -1:] / data.prefix.totals[:, -1:]
    centred = SortedRows.of_sorted(data.values - middle, data.weights)
    merged = _merged_places(centred, max(_COARSE * count, _COARSEST))
    at = np.arange(len(merged))[:, None]
    edges = merged[at, best_edges(centred.prefix_at(merged, at[:, 0]), count)]
    if merged.shape[1] <= data.values.shape[1]:
        edges = refine_edges(centred, edges)
    used = np.diff(centred.prefix.totals[at, edges]) > 0
    return np.asarray(_padded(centred.means(edges), used) + middle)


def _merged_places(data: SortedRows, count: int) -> np.ndarray:
    """Where `count` runs begin and end that levels would be spread over evenly, (rows, count + 1).

    The density of the best levels is the cube root of that of the values (Panter and Dite 1951).
    """
    rows, size = data.values.shape
    if size <= count:
        return np.broadcast_to(np.arange(size + 1), (rows, size + 1))
    # weight / gap estimates the density, so that its cube root over the gap is ∛(gap²·weight)
    gaps = np.diff(data.values, axis=1, append=data.values[:, -1:])
    share = np.cbrt(gaps * gaps * data.weights).cumsum(axis=1)
    whole = np.maximum(share[:, -1:], TINY)
    which = np.minimum(share / whole * count, count - 1).astype(np.intp)
    which += np.arange(rows)[:, None] * count
    sizes = np.bincount(which.ravel(), minlength=rows * count).reshape(rows, count)
    return np.concatenate([np.zeros((rows, 1), np.intp), sizes.cumsum(axis=1)], axis=1)


def refine_edges(data: SortedRows, edges: np.ndarray) -> np.ndarray:
    """The best edges in windows of about a run to either side; again where one moved far."""
    rows, count = len(edges), edges.shape[1] - 1
    half = max(_WINDOW, 3 * data.values.shape[1] // (2 * count))
    result, active = edges.copy(), np.arange(rows)
    saved = _saving(data, result, active)
    while len(active):
        tried = _best_in_windows(data, active, result[active], half)
        now = _saving(data, tried, active)
        better = now > saved[active] * (1 + 1e-14)
        far = np.abs(tried - result[active]).max(axis=1) > half // 2
        result[active[better]], saved[active[better]] = tried[better], now[better]
        active = active[better & far]
    return result


def _saving(data: SortedRows, edges: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """How much the runs between `edges` save against one level at zero, (rows,)."""
    prefix = data.prefix_at(edges, rows)
    begins, ends = prefix.at(slice(None, -1)), prefix.at(slice(1, None))
    return np.asarray(run_saving(begins, ends).sum(axis=1))


def _best_in_windows(
    data: SortedRows, rows: np.ndarray, edges: np.ndarray, half: int
) -> np.ndarray:
    """The best edges of `rows` that are at most `half` places from `edges`."""
    size = data.values.shape[1]
    span = np.arange(-half, half + 1)
    windows = [np.clip(edges[:, [index]] + span, 0, size) for index in range(1, edges.shape[1] - 1)]
    # a place is past the one of the same index in the window before, so every end has a begin
    limits = [
        np.where(after == size, 2 * half, np.minimum(after - edges[:, [index]] + half, 2 * half))
        for index, after in enumerate(windows)
    ]
    inner = [data.prefix_at(window, rows) for window in windows]
    chosen = best_path(inner, data.prefix_of(rows), limits)
    result = edges.copy()
    for index, window in enumerate(windows, 1):
        result[:, index] = window[np.arange(len(rows)), chosen[:, index]]
    return result


def _padded(levels: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Used levels first, the last of them repeated."""
    order = np.argsort(~used, axis=1, kind="stable")
    packed = np.take_along_axis(levels, order, axis=1)
    last = np.minimum(np.arange(levels.shape[1]), used.sum(axis=1)[:, None] - 1)
    return np.take_along_axis(packed, last, axis=1)

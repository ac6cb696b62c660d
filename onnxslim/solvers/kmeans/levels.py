"""Tables of single values, the levels: k-means in one dimension.

`cluster` makes one table for any number of values, `cluster_rows` one for each row of a matrix.
Levels are the centroids of scikit-learn's `KMeans`, codes its labels, and the error its inertia.

Many values are first added up in fewer than 2¹⁶ bins, which hold their exact weights and sums (see
`pieces` for their width). What that costs is bounded: the best table has k − 1 thresholds, each
in one bin, and giving a whole bin of width b and weight m to one of two neighbours that lie g apart
costs at most 2·m·g·b. The table found is optimal for the bins, so its error exceeds the least
possible by no more than the sum of 2·m·g·b over those k − 1 thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxslim.solvers.kmeans.lloyd import TableInit, init_levels, lloyd
from onnxslim.solvers.kmeans.optimum import optimal_levels
from onnxslim.solvers.kmeans.partition import (
    SortedRows,
    best_edges,
    index_type,
    next_layer,
    run_saving,
)
from onnxslim.solvers.kmeans.pieces import (
    Arrays,
    FloatBins,
    WeightedArray,
    distinct_values,
    extremes,
    weighted_pieces,
    with_weights,
)

_SORTED: Final = 1 << 16  # up to here values are sorted, and the table is exactly optimal
_SORTED_LEVELS: Final = 1 << 22  # values times levels, likewise
_BATCH: Final = 1 << 17  # values of the rows that are solved together


def cluster(
    values: Arrays,
    count: int,
    weights: Arrays | None = None,
    *,
    start: TableInit = TableInit.OPTIMAL,
    fixed_zero: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """The table that minimises Σ weight·(value − nearest level)².

    Exactly optimal for up to 2¹⁶ values (with more than 64 levels, 2²² / levels); for more, optimal
    for values gathered in bins, with the bound that the module states. Read in two passes, in
    pieces: memory does not grow with the number of values.

    Args:
        values: an array of any shape, or several; may be mapped from a file.
        count: how many levels the table may have.
        weights: broadcastable to `values`, or one such array for each of several; values of
            weight zero do not matter, unless all of them are.
        start: another way than the optimum: Lloyd's iteration until it stands still.
        fixed_zero: zero is one of the levels; the others are the best beside it.
        seed: of kmeans++.

    Returns:
        At most `count` levels, ascending, float64; the distinct values when there are no more.

    Raises:
        ValueError: there are no values, or not all of them are finite.
    """
    if count < 1:
        raise ValueError(f"A table of {count} levels was asked for; it must have at least 1.")
    pairs = with_weights(values, weights)
    low, high = extremes(pairs)
    if all(own is not None and not np.any(own) for _, own in pairs):
        pairs = [(array, None) for array, _ in pairs]
    size = sum(array.size for array, _ in pairs)
    if size <= _SORTED and size * count <= _SORTED_LEVELS:
        return _Bins.of_values(pairs).table(count, start, seed, fixed_zero=fixed_zero)
    bins = _Bins.of_histogram(pairs, low, high)
    if len(bins.values) <= count:
        distinct = distinct_values(pairs, count)
        if distinct is not None:
            bins = _Bins(distinct, np.ones(len(distinct)), distinct)
    return bins.table(count, start, seed, fixed_zero=fixed_zero)


def cluster_rows(
    matrix: np.ndarray,
    count: int,
    weights: np.ndarray | None = None,
    *,
    start: TableInit = TableInit.OPTIMAL,
    seed: int = 0,
) -> np.ndarray:
    """A table for each row, as by `cluster`, but many rows at once.

    Up to 128 columns, or 4 · `count`, the optimum is exact; longer rows are solved coarse to fine
    (see `optimum`).

    Args:
        matrix: (rows, columns).
        count: levels a row.
        weights: broadcastable to `matrix`; a value of weight zero does not matter, so that levels
            for the non-zeros alone are had by weights of zero for the others.
        start: see `cluster`.
        seed: of kmeans++.

    Returns:
        (rows, count), ascending, float64. A row of fewer distinct values repeats its last level.

    Raises:
        ValueError: not all values are finite.
    """
    if count < 1:
        raise ValueError(f"A table of {count} levels was asked for; it must have at least 1.")
    if matrix.ndim != 2 or not matrix.shape[1]:
        raise ValueError(f"A matrix with columns was expected, not one of shape {matrix.shape}.")
    rng = np.random.default_rng(seed)
    tables = np.empty((len(matrix), count))
    step = max(1, _BATCH // matrix.shape[1])
    every = None if weights is None else np.broadcast_to(weights, matrix.shape)
    for first in range(0, len(matrix), step):
        at = slice(first, first + step)
        rows = SortedRows.of_matrix(matrix[at], None if every is None else every[at])
        if start is TableInit.OPTIMAL:
            tables[at] = optimal_levels(rows, count)
        else:
            tables[at] = np.sort(lloyd(rows, init_levels(rows, count, start, rng)), axis=1)
    return tables


# ---------------------------------------------------------------------------- one table


@dataclass(frozen=True)
class _Bins:
    """Values in ascending order, each with a weight and a sum of weighted values."""

    values: np.ndarray
    weights: np.ndarray
    sums: np.ndarray

    @classmethod
    def of_values(cls, pairs: Sequence[WeightedArray]) -> _Bins:
        """Every distinct value its own."""
        values = np.concatenate([array.reshape(-1).astype(np.float64) for array, _ in pairs])
        weights = np.concatenate([_full(*pair) for pair in pairs])
        values, weights = values[weights > 0], weights[weights > 0]
        distinct, which = np.unique(values + 0.0, return_inverse=True)
        total = np.bincount(which, weights)
        return cls(distinct, total, distinct * total)

    @classmethod
    def of_histogram(cls, pairs: Sequence[WeightedArray], low: float, high: float) -> _Bins:
        """Neighbouring floating-point numbers together."""
        wide = any(array.dtype == np.float64 for array, _ in pairs)
        bins = FloatBins.between(low, high, np.dtype(np.float64 if wide else np.float32))
        weights, sums = np.zeros(bins.count), np.zeros(bins.count)
        for array, own in pairs:
            for piece, weight in weighted_pieces(array, own):
                at, flat = bins.of(piece), piece.reshape(-1)
                if weight is None:
                    weights += np.bincount(at, minlength=bins.count)
                    sums += np.bincount(at, flat, bins.count)
                else:
                    paid = weight.reshape(-1).astype(np.float64)
                    weights += np.bincount(at, paid, bins.count)
                    sums += np.bincount(at, paid * flat, bins.count)
        used = weights > 0
        return cls(sums[used] / weights[used], weights[used], sums[used])

    def table(self, count: int, start: TableInit, seed: int, *, fixed_zero: bool) -> np.ndarray:
        if fixed_zero and count == 1:
            return np.zeros(1)
        distinct = np.union1d(self.values, [0.0]) if fixed_zero else self.values
        if len(distinct) <= count:
            return distinct
        exponent = int(np.frexp(np.abs(self.values).max())[1])
        scaled = np.ldexp(self.values, -exponent)
        if start is not TableInit.OPTIMAL:
            rows = SortedRows.of_sorted(scaled[None], self.weights[None])
            rng = np.random.default_rng(seed)
            initial = init_levels(rows, count, start, rng)
            levels = lloyd(rows, initial, fixed_zero=fixed_zero)[0]
        elif fixed_zero:
            levels = _around_zero(scaled, self.weights, count)
        else:
            levels = _best(scaled, self.weights, count)
        return np.unique(np.ldexp(levels, exponent) + 0.0)


def _full(array: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    if weights is None:
        return np.ones(array.size)
    return np.broadcast_to(weights, array.shape).astype(np.float64).reshape(-1)


def _best(values: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    middle = np.average(values, weights=weights)  # less to cancel
    rows = SortedRows.of_sorted(values[None] - middle, weights[None])
    edges = best_edges(rows.prefix, count)
    levels: np.ndarray = rows.means(edges)[0][np.diff(edges[0]) > 0] + middle
    return levels


def _around_zero(values: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Levels below zero and above it, each side optimal for every number of levels.

    Values nearest zero gain nothing from being zero, so no level is spent on them.
    """
    split = int(np.searchsorted(values, 0.0))
    sides = [
        (values[:split], weights[:split]),
        (values[split:][::-1], weights[split:][::-1]),
    ]
    solved = [_SideOfZero.of(*side, count - 1) for side in sides]
    savings = [side.savings() for side in solved]
    shares = savings[0] + savings[1][::-1]
    left = int(shares.argmax())
    return np.concatenate([solved[0].levels(left), [0.0], solved[1].levels(count - 1 - left)])


@dataclass(frozen=True)
class _SideOfZero:
    """The values on one side of zero, from the outermost inwards.

    Attributes:
        saved: (levels, values + 1), what so many levels save for so many values.
        begins: where the last of these levels begins.
    """

    rows: SortedRows
    saved: np.ndarray
    begins: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, weights: np.ndarray, count: int) -> _SideOfZero:
        rows = SortedRows.of_sorted(values[None], weights[None])
        every = rows.prefix
        saved = np.zeros((count + 1, every.totals.shape[1]))
        begins = np.zeros(saved.shape, index_type(saved.shape[1]))
        if count:
            saved[1] = run_saving(every.at(slice(1)), every)[0]
        limit = np.arange(saved.shape[1])
        for layer in range(2, count + 1):
            best, begin = next_layer(saved[None, layer - 1], every, every, limit)
            saved[layer], begins[layer] = best[0], begin[0]
        return cls(rows, saved, begins)

    def savings(self) -> np.ndarray:
        """The most that 0, 1, .. levels can save."""
        return np.asarray(self.saved.max(axis=1))

    def levels(self, count: int) -> np.ndarray:
        end = int(self.saved[count].argmax())
        edges = [end]
        for layer in range(count, 0, -1):
            edges.append(int(self.begins[layer, edges[-1]]))
        found = np.array(edges[::-1])[None]
        return np.asarray(self.rows.means(found)[0][np.diff(found[0]) > 0])

"""Many rows of ascending values at once: where levels start, Lloyd's iteration, and the optimum.

Short rows are solved by `kmeans_recursion`. Longer ones are first solved for runs of values merged
where the values lie dense; then the recursion is run once more on the values themselves, with each
threshold free to move by about the length of a run (again while one moves far).

What may change here: what is merged, how far a threshold may move, and when an iteration ends.
What `kmeans.cluster_rows` promises of the result must stay true.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxslim.solvers.kmeans.assignment import NOT_FINITE
from onnxslim.solvers.kmeans.partition import TINY, PrefixSums, best_edges, best_path, run_saving

_STEPS: Final = 5000  # of Lloyd's iteration, which nearly always stands still much earlier
_COARSE: Final = 4  # runs a level that rows are first merged into
_COARSEST: Final = 128  # runs that they are merged into at least
_WINDOW: Final = 128  # places to either side that a threshold may move to, at least


class TableInit(enum.StrEnum):
    """How a table is found: exactly, or by Lloyd's iteration from one of three starts.

    Han (2016) starts at equal steps between the extremes (linear) or at equal shares of the values
    (density); Arthur and Vassilvitskii (2007) at values drawn by their squared distance from those
    drawn before (kmeans++).
    """

    OPTIMAL = "optimal"
    LINEAR = "linear"
    DENSITY = "density"
    KMEANS_PLUS_PLUS = "kmeans++"


@dataclass(frozen=True)
class SortedRows:
    """Rows of ascending values, with running totals of weights and weighted values.

    Attributes:
        values, weights: (rows, values).
        totals, sums: (rows, values + 1).
    """

    values: np.ndarray
    weights: np.ndarray
    totals: np.ndarray
    sums: np.ndarray

    @classmethod
    def sorted(cls, values: np.ndarray, weights: np.ndarray) -> SortedRows:
        """Of rows that are in order already."""
        nothing = np.zeros((len(values), 1))
        totals = np.concatenate([nothing, weights.cumsum(axis=1)], axis=1)
        sums = np.concatenate([nothing, (weights * values).cumsum(axis=1)], axis=1)
        return cls(values, weights, totals, sums)

    @classmethod
    def of(cls, matrix: np.ndarray, weights: np.ndarray | None) -> SortedRows:
        """Of rows in any order; weights that are all zero count as ones."""
        if not np.isfinite(matrix).all():
            raise ValueError(NOT_FINITE)
        values = matrix.astype(np.float64)
        if weights is None:
            values.sort(axis=1)
            return cls.sorted(values, np.ones(values.shape))
        if not np.isfinite(weights).all() or np.any(weights < 0):
            raise ValueError("Weights of values must be finite, and not negative.")
        order = values.argsort(axis=1, kind="stable")
        own = np.take_along_axis(weights.astype(np.float64), order, axis=1)
        own[~own.any(axis=1)] = 1.0
        return cls.sorted(np.take_along_axis(values, order, axis=1), own)

    def tables(self, count: int, start: TableInit, rng: np.random.Generator) -> np.ndarray:
        """A table for each row, (rows, count): see `kmeans.cluster_rows`."""
        if start is not TableInit.OPTIMAL:
            return np.sort(self.lloyd(self.first(count, start, rng)), axis=1)
        middle = self.sums[:, -1:] / self.totals[:, -1:]  # less to cancel
        centred = SortedRows.sorted(self.values - middle, self.weights)
        merged = centred.merged(max(_COARSE * count, _COARSEST))
        at = np.arange(len(merged))[:, None]
        edges = merged[at, best_edges(centred._places(merged, at[:, 0]), count)]
        if merged.shape[1] <= self.values.shape[1]:
            edges = centred.moved(edges)
        used = np.diff(centred.totals[at, edges]) > 0
        return np.asarray(_padded(centred.means(edges), used) + middle)

    def merged(self, count: int) -> np.ndarray:
        """Where `count` runs begin and end that levels would be spread over evenly.

        The density of the best levels is the cube root of that of the values.
        """
        rows, size = self.values.shape
        if size <= count:
            return np.broadcast_to(np.arange(size + 1), (rows, size + 1))
        gaps = np.diff(self.values, axis=1, append=self.values[:, -1:])
        share = np.cbrt(gaps * gaps * self.weights).cumsum(axis=1)
        whole = np.maximum(share[:, -1:], TINY)
        which = np.minimum(share / whole * count, count - 1).astype(np.intp)
        which += np.arange(rows)[:, None] * count
        sizes = np.bincount(which.ravel(), minlength=rows * count).reshape(rows, count)
        return np.concatenate([np.zeros((rows, 1), np.intp), sizes.cumsum(axis=1)], axis=1)

    def means(self, edges: np.ndarray) -> np.ndarray:
        """The mean of each run; of an empty one, the value where it lies."""
        at = np.arange(len(edges))[:, None]
        totals = np.diff(self.totals[at, edges], axis=1)
        sums = np.diff(self.sums[at, edges], axis=1)
        inside = np.minimum(edges[:, :-1], max(0, self.values.shape[1] - 1))
        place = self.values[at, inside] if self.values.shape[1] else np.zeros(inside.shape)
        return np.asarray(np.divide(sums, totals, out=place.copy(), where=totals > 0))

    def moved(self, edges: np.ndarray) -> np.ndarray:
        """The best edges in windows of about a run to either side; again where one moved far."""
        rows, count = len(edges), edges.shape[1] - 1
        half = max(_WINDOW, 3 * self.values.shape[1] // (2 * count))
        result, active = edges.copy(), np.arange(rows)
        saved = self._saved(result, active)
        while len(active):
            tried = self._moved_once(active, result[active], half)
            now = self._saved(tried, active)
            better = now > saved[active] * (1 + 1e-14)
            far = np.abs(tried - result[active]).max(axis=1) > half // 2
            result[active[better]], saved[active[better]] = tried[better], now[better]
            active = active[better & far]
        return result

    def _saved(self, edges: np.ndarray, rows: np.ndarray) -> np.ndarray:
        places = self._places(edges, rows)
        totals, sums = places.totals, places.sums
        begins, ends = (
            PrefixSums(totals[:, :-1], sums[:, :-1]),
            PrefixSums(totals[:, 1:], sums[:, 1:]),
        )
        return np.asarray(run_saving(begins, ends).sum(axis=1))

    def _places(self, at: np.ndarray, rows: np.ndarray) -> PrefixSums:
        return PrefixSums(self.totals[rows[:, None], at], self.sums[rows[:, None], at])

    def _moved_once(self, rows: np.ndarray, edges: np.ndarray, half: int) -> np.ndarray:
        size = self.values.shape[1]
        span = np.arange(-half, half + 1)
        windows = [
            np.clip(edges[:, [index]] + span, 0, size) for index in range(1, edges.shape[1] - 1)
        ]
        # a place is past the one of the same index in the window before, so none has no begin
        limits = [
            np.where(
                after == size, 2 * half, np.minimum(after - edges[:, [index]] + half, 2 * half)
            )
            for index, after in enumerate(windows)
        ]
        every = PrefixSums(self.totals[rows], self.sums[rows])
        inner = [self._places(window, rows) for window in windows]
        chosen = best_path(inner, every, limits, np.arange(len(rows)))
        result = edges.copy()
        for index, window in enumerate(windows, 1):
            result[:, index] = window[np.arange(len(rows)), chosen[:, index]]
        return result

    def first(self, count: int, start: TableInit, rng: np.random.Generator) -> np.ndarray:
        """Levels to start at, (rows, count)."""
        if start is TableInit.LINEAR:
            used = self.weights > 0
            low = np.where(used, self.values, np.inf).min(axis=1)
            high = np.where(used, self.values, -np.inf).max(axis=1)
            return np.linspace(low, high, count, axis=1)
        if start is TableInit.DENSITY:
            share = (np.arange(count) + 0.5) / count * self.totals[:, -1:]
            return self._at(_positions(self.totals[:, 1:], share))
        return self._drawn(count, rng)

    def _at(self, positions: np.ndarray) -> np.ndarray:
        inside = np.minimum(positions, self.values.shape[1] - 1)
        return np.take_along_axis(self.values, inside, axis=1)

    def _drawn(self, count: int, rng: np.random.Generator) -> np.ndarray:
        levels = np.empty((len(self.values), count))
        chance = self.weights
        nearest = np.full(self.values.shape, np.inf)
        for index in range(count):
            running = chance.cumsum(axis=1)
            drawn = (1 - rng.random((len(levels), 1))) * running[:, -1:]
            level = self._at(_positions(running, drawn))
            levels[:, index : index + 1] = level
            np.minimum(nearest, np.square(self.values - level), out=nearest)
            chance = self.weights * nearest
        return np.sort(levels, axis=1)

    def lloyd(self, levels: np.ndarray, *, pinned: bool = False) -> np.ndarray:
        """Levels moved to the means of what is nearest to them, until none moves.

        Args:
            levels: (rows, count), ascending.
            pinned: the level nearest to zero becomes zero and stays.
        """
        levels = levels.copy()
        zero = np.abs(levels).argmin(axis=1)[:, None]
        if pinned:
            np.put_along_axis(levels, zero, 0.0, axis=1)
        size = self.values.shape[1]
        rows = np.arange(len(levels))
        edges = np.full((len(levels), levels.shape[1] + 1), -1, np.intp)
        edges[:, 0], edges[:, -1] = 0, size
        first = True
        for _ in range(_STEPS):
            now = levels[rows]
            inner = _positions(self.values[rows], (now[:, 1:] + now[:, :-1]) / 2, above=True)
            moves = (inner != edges[rows, 1:-1]).any(axis=1) | first
            first = False
            rows, now = rows[moves], now[moves]
            if not len(rows):
                break
            edges[rows, 1:-1] = inner[moves]
            places = self._places(edges[rows], rows)
            weight, total = np.diff(places.totals, axis=1), np.diff(places.sums, axis=1)
            np.divide(total, weight, out=now, where=weight > 0)
            if pinned:
                np.put_along_axis(now, zero[rows], 0.0, axis=1)
            levels[rows] = now
        return levels


def _positions(values: np.ndarray, sought: np.ndarray, *, above: bool = False) -> np.ndarray:
    """In each row how many values lie below those sought; `above`: or are equal to them."""
    size = values.shape[1]
    found = np.zeros(sought.shape, np.intp)
    step = 1 << (size.bit_length() - 1)
    while step:
        probe = found + step
        here = np.take_along_axis(values, np.minimum(probe, size) - 1, axis=1)
        passed = (here <= sought if above else here < sought) & (probe <= size)
        found = np.where(passed, probe, found)
        step >>= 1
    return found


def _padded(levels: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Used levels first, the last of them repeated."""
    order = np.argsort(~used, axis=1, kind="stable")
    packed = np.take_along_axis(levels, order, axis=1)
    last = np.minimum(np.arange(levels.shape[1]), used.sum(axis=1)[:, None] - 1)
    return np.take_along_axis(packed, last, axis=1)


__all__ = ["SortedRows", "TableInit"]

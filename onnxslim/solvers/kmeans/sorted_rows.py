"""Many rows of ascending values, with the prefix sums that give every run's mean at once.

A cluster of the best table is a run of neighbouring values. With the running totals of weights and
of weighted values, the weight, mean and error of any run i..j−1 come from two differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxslim.solvers.kmeans.pieces import NOT_FINITE

TINY: Final = 1e-300


@dataclass(frozen=True)
class PrefixSums:
    """Prefix sums at the places where runs may begin or end.

    Attributes:
        totals: weight of all values before each place, (rows, places), never falling.
        sums: sum of the weighted values before each place, (rows, places).
    """

    totals: np.ndarray
    sums: np.ndarray

    def at(self, places: slice) -> PrefixSums:
        """The sums at some of the places."""
        return PrefixSums(self.totals[:, places], self.sums[:, places])


@dataclass(frozen=True)
class SortedRows:
    """Rows of ascending values with their prefix sums.

    Attributes:
        values, weights: (rows, values).
        prefix: at every place, (rows, values + 1).
    """

    values: np.ndarray
    weights: np.ndarray
    prefix: PrefixSums

    @classmethod
    def of_sorted(cls, values: np.ndarray, weights: np.ndarray) -> SortedRows:
        """Rows that are in order already."""
        nothing = np.zeros((len(values), 1))
        totals = np.concatenate([nothing, weights.cumsum(axis=1)], axis=1)
        sums = np.concatenate([nothing, (weights * values).cumsum(axis=1)], axis=1)
        return cls(values, weights, PrefixSums(totals, sums))

    @classmethod
    def of_matrix(cls, matrix: np.ndarray, weights: np.ndarray | None) -> SortedRows:
        """Rows in any order; weights that are all zero count as ones.

        Raises:
            ValueError: not all values are finite, or weights are negative or not finite.
        """
        if not np.isfinite(matrix).all():
            raise ValueError(NOT_FINITE)
        values = matrix.astype(np.float64)
        if weights is None:
            values.sort(axis=1)
            return cls.of_sorted(values, np.ones(values.shape))
        if not np.isfinite(weights).all() or np.any(weights < 0):
            raise ValueError("Weights of values must be finite, and not negative.")
        order = values.argsort(axis=1, kind="stable")
        own = np.take_along_axis(weights.astype(np.float64), order, axis=1)
        own[~own.any(axis=1)] = 1.0
        return cls.of_sorted(np.take_along_axis(values, order, axis=1), own)

    def prefix_at(self, places: np.ndarray, rows: np.ndarray) -> PrefixSums:
        """Prefix sums of some `rows`, each at its own `places`, (len(rows), places)."""
        at = rows[:, None]
        return PrefixSums(self.prefix.totals[at, places], self.prefix.sums[at, places])

    def prefix_of(self, rows: np.ndarray) -> PrefixSums:
        """Prefix sums of some `rows` at every place."""
        return PrefixSums(self.prefix.totals[rows], self.prefix.sums[rows])

    def means(self, edges: np.ndarray) -> np.ndarray:
        """The mean of each run between `edges`; of an empty one, the value where it lies."""
        at = np.arange(len(edges))[:, None]
        prefix = self.prefix_at(edges, at[:, 0])
        totals, sums = np.diff(prefix.totals, axis=1), np.diff(prefix.sums, axis=1)
        inside = np.minimum(edges[:, :-1], max(0, self.values.shape[1] - 1))
        place = self.values[at, inside] if self.values.shape[1] else np.zeros(inside.shape)
        return np.asarray(np.divide(sums, totals, out=place.copy(), where=totals > 0))

    def values_at(self, places: np.ndarray) -> np.ndarray:
        """The value that begins at each place, (rows, places); the last one at the end."""
        inside = np.minimum(places, self.values.shape[1] - 1)
        return np.take_along_axis(self.values, inside, axis=1)

"""The best split of ascending values into runs: the dynamic programme of k-means in one dimension.

In one dimension the clusters of the best table are runs of the sorted values. With c(i, j) the
squared error of the values i..j−1 about their mean, the best k runs of the first j values cost

    D[k, j] = min over i ≤ j of D[k−1, i] + c(i, j)

(Wang and Song 2011). Since c has the Monge property, the best i never falls as j grows (Wu 1991;
Grønlund et al. 2017), so divide and conquer takes O(n log n) for a layer D[k, ·]: the best i of
every other j is sought between those of its neighbours, for all j of one round at once.

The error of a run about its mean is Σ w·x² − (Σ w·x)²/Σ w, and Σ w·x² does not depend on the split:
the programme maximises the savings (Σ w·x)²/Σ w, which two prefix sums give.

Many rows take part at once, each sorted, with its prefix sums (`SortedRows`). The runs found are
the best there are, and must stay so.
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


def best_edges(every: PrefixSums, count: int) -> np.ndarray:
    """Where each row's best `count` runs begin and end, (rows, count + 1)."""
    limit = np.arange(every.totals.shape[1])
    return best_path([every] * (count - 1), every, [limit] * (count - 1))


def best_path(inner: list[PrefixSums], every: PrefixSums, limits: list[np.ndarray]) -> np.ndarray:
    """The best choice among the places of each inner edge.

    Args:
        inner: the places of the edges but the first and the last.
        every: all places; the runs go from the first to the last of them.
        limits: for the places of an inner edge, the last place of the edge before it that does
            not come after.

    Returns:
        (rows, edges): indices of places, the first and last among all places.
    """
    rows = np.arange(len(every.totals))
    edges = np.zeros((len(rows), len(inner) + 2), np.intp)
    edges[:, -1] = every.totals.shape[1] - 1
    if not inner:
        return edges
    # one run, from the first place to each place of the first inner edge
    saved = run_saving(every.at(slice(1)), inner[0])
    # one more run a layer; `begins` remembers where it begins
    begins = []
    for before, places, limit in zip(inner, inner[1:], limits[1:], strict=False):
        saved, begin = next_layer(saved, before, places, limit)
        begins.append(begin)
    # the last run ends with the last value; its begin is the last inner edge
    last = every.at(slice(-1, None))
    edges[:, -2] = (saved + run_saving(inner[-1], last)).argmax(axis=1)
    # trace the begins back to the first inner edge
    for layer in range(len(begins), 0, -1):
        edges[:, layer] = begins[layer - 1][rows, edges[:, layer + 1]]
    return edges


def run_saving(begin: PrefixSums, end: PrefixSums) -> np.ndarray:
    """How much less a run costs about its mean than about zero, (Σ w·x)²/Σ w."""
    weight = end.totals - begin.totals
    np.maximum(weight, TINY, out=weight)
    saving = end.sums - begin.sums
    np.square(saving, out=saving)
    saving /= weight
    return np.asarray(saving)


def next_layer(
    saved: np.ndarray, begins: PrefixSums, ends: PrefixSums, limit: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One more run: what is saved up to each end, and where the last run then best begins.

    Args:
        saved: what the runs before it save up to each begin.
        begins: places where it may begin.
        ends: places where it may end.
        limit: for each end, the last begin that does not come after it.
    """
    rows, size = ends.totals.shape
    many = begins.totals.shape[1]
    best, chosen = np.empty((rows, size)), np.zeros((rows, size), index_type(many))
    limit = np.broadcast_to(limit, (rows, size))
    offset = np.arange(rows)[:, None]
    flat = saved.reshape(-1), PrefixSums(begins.totals.reshape(-1), begins.sums.reshape(-1))
    stride = 1 << (size.bit_length() - 1)
    while stride:
        # this round: odd multiples of `stride`, less one; known: multiples of 2·stride, less one
        at = np.arange(stride, size + 1, 2 * stride) - 1
        left, right = at - stride, at + stride
        # the best begin lies between those of the known ends to the left and to the right
        lower = np.where(left >= 0, chosen[:, np.maximum(left, 0)], 0).astype(np.intp)
        upper = np.where(right < size, chosen[:, np.minimum(right, size - 1)], many - 1)
        upper = np.minimum(upper, limit[:, at]).astype(np.intp)
        tails = PrefixSums(ends.totals[:, at].ravel(), ends.sums[:, at].ravel())
        start = offset * many
        found, value = _best_begins(*flat, (lower + start).ravel(), (upper + start).ravel(), tails)
        chosen[:, at] = found.reshape(rows, -1) - start
        best[:, at] = value.reshape(rows, -1)
        stride >>= 1
    return best, chosen


def index_type(count: int) -> type[np.uint16] | type[np.uint32]:
    """The type in which numbers below `count` are held."""
    return np.uint16 if count <= 1 << 16 else np.uint32


def _best_begins(
    saved: np.ndarray, begins: PrefixSums, lower: np.ndarray, upper: np.ndarray, ends: PrefixSums
) -> tuple[np.ndarray, np.ndarray]:
    """For each end, the best begin from `lower` to `upper`, and what is then saved."""
    # all candidates (end, begin) in one list, the begins of one end after those of another
    lengths = upper - lower + 1
    firsts = np.cumsum(lengths) - lengths
    tried = np.arange(int(lengths.sum())) + np.repeat(lower - firsts, lengths)
    saving = run_saving(
        PrefixSums(begins.totals[tried], begins.sums[tried]),
        PrefixSums(np.repeat(ends.totals, lengths), np.repeat(ends.sums, lengths)),
    )
    saving += saved[tried]
    value = np.maximum.reduceat(saving, firsts)
    hits = np.flatnonzero(saving == np.repeat(value, lengths))
    # of equal savings the first begin of each end
    return tried[hits[np.searchsorted(hits, firsts)]], value

"""Tables of single values: k-means in one dimension, which can be solved exactly.

`cluster` makes one table for any number of values, `cluster_rows` one for each row of a matrix,
`encode` finds the codes.

In one dimension the clusters of the best table are runs of the sorted values. With c(i, j) the
squared error of the values i..j−1 about their mean, the best k runs of the first j values cost

    D[k, j] = min over i ≤ j of D[k−1, i] + c(i, j)

and since c has the Monge property, the best i never falls as j grows (Wu 1991; Grønlund et al.
2017). So a row of D takes O(n log n): the best i is found for every other j after it is known for
the j between them, all of one round at once.

Many values are first added up in fewer than 2¹⁶ bins, which hold their exact weights and sums. A
bin is a run of neighbouring floating-point numbers, no wider than 2⁻¹¹ of its values; those below
about 2⁻¹⁶ of the largest share one for each sign. What that costs is bounded: the best table has
k − 1 thresholds, each in one bin, and giving a whole bin of width b and weight m to one of two
neighbours that lie g apart costs at most 2·m·g·b. The table found is optimal for the bins, so its
error exceeds the least possible by no more than the sum of 2·m·g·b over those k − 1 thresholds.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

_SORTED: Final = 1 << 16  # up to here values are sorted, and the table is exactly optimal
_SORTED_LEVELS: Final = 1 << 22  # values times levels, likewise
_BINS: Final = (1 << 16) - 2  # so that 16 bits count their edges
_OCTAVES: Final = 16  # below the largest value, in which bins are relative
_MANTISSA: Final = 23
_SIGNLESS: Final = 0x7FFFFFFF
_CHUNK: Final = 1 << 17
_COMPARED: Final = 48  # levels up to which comparing with each threshold is fastest
_TINY: Final = 1e-300
_STEPS: Final = 5000  # of Lloyd's iteration, which nearly always stands still much earlier
_BATCH: Final = 1 << 17  # values of the rows that are solved together
_COARSE: Final = 4  # runs a level that rows are first merged into
_COARSEST: Final = 128  # runs that they are merged into at least
_WINDOW: Final = 128  # places to either side that a threshold may move to, at least

Arrays = np.ndarray | Sequence[np.ndarray]


class Start(enum.StrEnum):
    """How a table is found: exactly, or by Lloyd's iteration from one of three starts.

    Han (2016) starts at equal steps between the extremes (linear) or at equal shares of the values
    (density); Arthur and Vassilvitskii (2007) at values drawn by their squared distance from those
    drawn before (kmeans++).
    """

    OPTIMAL = "optimal"
    LINEAR = "linear"
    DENSITY = "density"
    KMEANS_PLUS_PLUS = "kmeans++"


def cluster(
    values: Arrays,
    count: int,
    weights: Arrays | None = None,
    *,
    start: Start = Start.OPTIMAL,
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
    pairs = _paired(values, weights)
    low, high = _extremes(pairs)
    if all(own is not None and not np.any(own) for _, own in pairs):
        pairs = [(array, None) for array, _ in pairs]
    size = sum(array.size for array, _ in pairs)
    if size <= _SORTED and size * count <= _SORTED_LEVELS:
        return _Bins.of_values(pairs).table(count, start, seed, fixed_zero=fixed_zero)
    bins = _Bins.of_histogram(pairs, low, high)
    if len(bins.values) <= count:
        distinct = _distinct(pairs, count)
        if distinct is not None:
            bins = _Bins(distinct, np.ones(len(distinct)), distinct)
    return bins.table(count, start, seed, fixed_zero=fixed_zero)


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
    encoder = _Encoder((table[1:] + table[:-1]) / 2, values.dtype)
    for piece, codes in _split(np.atleast_1d(values), np.atleast_1d(out)):
        if not np.isfinite(piece).all():
            raise ValueError(_NOT_FINITE)
        encoder.write(piece, codes)
    return out


def quantization_error(values: Arrays, table: np.ndarray, weights: Arrays | None = None) -> float:
    """Σ weight·(value − nearest level)², with the arguments of `cluster`."""
    table = np.asarray(table, np.float64)
    total = 0.0
    for array, own in _paired(values, weights):
        for piece, weight in _weighted(array, own):
            error = piece.astype(np.float64) - table[encode(piece, table)]
            np.square(error, out=error)
            total += float(error.sum() if weight is None else (error * weight).sum())
    return total


def cluster_rows(
    matrix: np.ndarray,
    count: int,
    weights: np.ndarray | None = None,
    *,
    start: Start = Start.OPTIMAL,
    seed: int = 0,
) -> np.ndarray:
    """A table for each row, as by `cluster`, but many rows at once.

    Up to 128 columns, or 4 · `count`, the optimum is exact. Longer rows are first solved exactly
    for runs of values merged where the values lie dense; then the exact recursion is run once more
    on the values themselves, with each threshold free to move by about the length of a run (again
    while one moves far).

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
        rows = _Rows.of(matrix[at], None if every is None else every[at])
        tables[at] = rows.tables(count, start, rng)
    return tables


# ---------------------------------------------------------------------------- reading

_NOT_FINITE: Final = "Values to be clustered must be finite; there are infinities or NaN in them."

Pair = tuple[np.ndarray, np.ndarray | None]


def _paired(values: Arrays, weights: Arrays | None) -> list[Pair]:
    """Each array with its weights, not yet broadcast."""
    arrays = [values] if isinstance(values, np.ndarray) else list(values)
    if weights is None:
        return [(np.atleast_1d(array), None) for array in arrays]
    single = isinstance(values, np.ndarray) or isinstance(weights, np.ndarray)
    own = [np.asarray(weights)] * len(arrays) if single else list(weights)
    if len(own) != len(arrays):
        raise ValueError(f"There are weights for {len(own)} arrays of values, not {len(arrays)}.")
    for array in own:
        if not np.isfinite(array).all() or np.any(array < 0):
            raise ValueError("Weights of values must be finite, and not negative.")
    return [(np.atleast_1d(array), weight) for array, weight in zip(arrays, own, strict=True)]


def _split(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Matching parts of arrays of one shape, small enough to stay in the cache."""
    first = arrays[0]
    if first.size <= _CHUNK:
        yield arrays
        return
    inner = first.size // len(first)
    step = max(1, _CHUNK // inner)
    for begin in range(0, len(first), step):
        parts = tuple(array[begin : begin + step] for array in arrays)
        if inner > _CHUNK:
            yield from _split(*(part[0] for part in parts))
        else:
            yield parts


def _weighted(array: np.ndarray, weights: np.ndarray | None) -> Iterator[Pair]:
    if weights is None:
        yield from ((piece, None) for (piece,) in _split(array))
    else:
        full = np.broadcast_to(weights, array.shape)
        yield from ((piece, weight) for piece, weight in _split(array, full))


def _extremes(pairs: Sequence[Pair]) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    for array, _ in pairs:
        for (piece,) in _split(array):
            if piece.size:
                low, high = min(low, float(piece.min())), max(high, float(piece.max()))
                if not np.isfinite(piece.min()) or not np.isfinite(piece.max()):
                    raise ValueError(_NOT_FINITE)
    if low > high:
        raise ValueError("There are no values to cluster.")
    return low, high


def _distinct(pairs: Sequence[Pair], limit: int) -> np.ndarray | None:
    """The distinct values that have weight, or None when there are more than `limit`."""
    found = np.empty(0)
    for array, weights in pairs:
        for piece, weight in _weighted(array, weights):
            counted = piece if weight is None else piece[weight > 0]
            found = np.union1d(found, np.unique(counted).astype(np.float64))
            if len(found) > limit:
                return None
    return found + 0.0  # no negative zero


@dataclass(frozen=True)
class _Keys:
    """A map from floating-point numbers to bins that never falls.

    The bits of positive numbers, read as an integer, are in the order of the numbers, with as many
    of them between 1 and 2 as between 2 and 4. Magnitudes below `floor` share bin zero.
    """

    scale: float
    floor: int
    shift: int
    base: int
    bins: int

    @classmethod
    def between(cls, low: float, high: float, dtype: np.dtype) -> _Keys:
        # only float64 has values that do not fit into the bits of a float32
        peak = max(abs(low), abs(high))
        scale = 1.0 if dtype != np.float64 else float(np.ldexp(1.0, -int(np.frexp(peak)[1])))
        bits = [int(np.float32(abs(edge) * scale).view(np.int32)) for edge in (low, high)]
        # a little less than all octaves, so that both signs fit
        floor = max(0, max(bits) - (_OCTAVES << _MANTISSA) + (1 << 13))
        lowest, highest = (
            max(own - floor, 0) * (-1 if edge < 0 else 1)
            for own, edge in zip(bits, (low, high), strict=True)
        )
        shift = 0
        while (highest >> shift) - (lowest >> shift) >= _BINS:
            shift += 1
        base = lowest >> shift
        return cls(scale, floor, shift, base, (highest >> shift) - base + 1)

    def of(self, piece: np.ndarray) -> np.ndarray:
        """The bin of each value; those outside the range have the outermost."""
        if self.scale != 1.0:
            piece = piece * self.scale
        single = np.ascontiguousarray(piece, np.float32).reshape(-1)
        bits = single.view(np.int32)
        keys = bits & _SIGNLESS
        keys -= self.floor
        np.maximum(keys, 0, out=keys)
        sign = bits >> 31  # −1 or 0
        keys ^= sign
        keys -= sign
        keys >>= self.shift
        keys -= self.base
        wide = keys.astype(np.intp)
        return np.clip(wide, 0, self.bins - 1, out=wide)


class _Encoder:
    """Counts the thresholds below each value: at once, or from a bin on.

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
        self.keys = _Keys.between(low, high, dtype)
        own = self.keys.of(self.thresholds)
        self.below = np.searchsorted(own, np.arange(self.keys.bins)).astype(np.uint16)
        self.steps = int(np.bincount(own).max())
        self.padded = np.append(self.thresholds, np.inf).astype(self.thresholds.dtype)

    def write(self, piece: np.ndarray, codes: np.ndarray) -> None:
        if self.narrow:
            piece = piece.astype(np.float32)
        if self.steps > 8:  # nearly all thresholds in one bin
            codes[...] = np.searchsorted(self.thresholds, piece)
        elif self.steps:
            found = self.below[self.keys.of(piece)].reshape(piece.shape)
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


# ---------------------------------------------------------------------------- one table


@dataclass(frozen=True)
class _Bins:
    """Values in ascending order, each with a weight and a sum of weighted values."""

    values: np.ndarray
    weights: np.ndarray
    sums: np.ndarray

    @classmethod
    def of_values(cls, pairs: Sequence[Pair]) -> _Bins:
        """Every distinct value its own."""
        values = np.concatenate([array.reshape(-1).astype(np.float64) for array, _ in pairs])
        weights = np.concatenate([_full(*pair) for pair in pairs])
        values, weights = values[weights > 0], weights[weights > 0]
        distinct, which = np.unique(values + 0.0, return_inverse=True)
        total = np.bincount(which, weights)
        return cls(distinct, total, distinct * total)

    @classmethod
    def of_histogram(cls, pairs: Sequence[Pair], low: float, high: float) -> _Bins:
        """Neighbouring floating-point numbers together."""
        wide = any(array.dtype == np.float64 for array, _ in pairs)
        keys = _Keys.between(low, high, np.dtype(np.float64 if wide else np.float32))
        weights, sums = np.zeros(keys.bins), np.zeros(keys.bins)
        for array, own in pairs:
            for piece, weight in _weighted(array, own):
                at, flat = keys.of(piece), piece.reshape(-1)
                if weight is None:
                    weights += np.bincount(at, minlength=keys.bins)
                    sums += np.bincount(at, flat, keys.bins)
                else:
                    paid = weight.reshape(-1).astype(np.float64)
                    weights += np.bincount(at, paid, keys.bins)
                    sums += np.bincount(at, paid * flat, keys.bins)
        used = weights > 0
        return cls(sums[used] / weights[used], weights[used], sums[used])

    def table(self, count: int, start: Start, seed: int, *, fixed_zero: bool) -> np.ndarray:
        if fixed_zero and count == 1:
            return np.zeros(1)
        distinct = np.union1d(self.values, [0.0]) if fixed_zero else self.values
        if len(distinct) <= count:
            return distinct
        exponent = int(np.frexp(np.abs(self.values).max())[1])
        scaled = np.ldexp(self.values, -exponent)
        if start is not Start.OPTIMAL:
            rows = _Rows.sorted(scaled[None], self.weights[None])
            rng = np.random.default_rng(seed)
            levels = rows.lloyd(rows.first(count, start, rng), pinned=fixed_zero)[0]
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
    rows = _Rows.sorted(values[None] - middle, weights[None])
    edges = _edges(_Places(rows.totals, rows.sums), count)
    levels: np.ndarray = rows.means(edges)[0][np.diff(edges[0]) > 0] + middle
    return levels


def _around_zero(values: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Levels below zero and above it, each side optimal for every number of levels.

    What the values next to zero save by being zero is nothing, so that they are left to no level.
    """
    split = int(np.searchsorted(values, 0.0))
    sides = [
        (values[:split], weights[:split]),
        (values[split:][::-1], weights[split:][::-1]),
    ]
    solved = [_Side.of(*side, count - 1) for side in sides]
    savings = [side.savings() for side in solved]
    shares = savings[0] + savings[1][::-1]
    left = int(shares.argmax())
    return np.concatenate([solved[0].levels(left), [0.0], solved[1].levels(count - 1 - left)])


@dataclass(frozen=True)
class _Side:
    """The values on one side of zero, from the outermost inwards.

    Attributes:
        saved: (levels, values + 1), what so many levels save for so many values.
        begins: where the last of these levels begins.
    """

    rows: _Rows
    saved: np.ndarray
    begins: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, weights: np.ndarray, count: int) -> _Side:
        rows = _Rows.sorted(values[None], weights[None])
        every = _Places(rows.totals, rows.sums)
        saved = np.zeros((count + 1, rows.totals.shape[1]))
        begins = np.zeros(saved.shape, _index_type(saved.shape[1]))
        if count:
            saved[1] = _saving(_Places(rows.totals[:, :1], rows.sums[:, :1]), every)[0]
        limit = np.arange(saved.shape[1])
        for layer in range(2, count + 1):
            best, begin = _next_layer(saved[None, layer - 1], every, every, limit)
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


# ---------------------------------------------------------------------------- the recursion


@dataclass(frozen=True)
class _Places:
    """Where runs may begin or end: running totals and sums there, (rows, places), never falling."""

    totals: np.ndarray
    sums: np.ndarray


def _edges(every: _Places, count: int) -> np.ndarray:
    """Where each row's best `count` runs begin and end, (rows, count + 1)."""
    rows, size = every.totals.shape
    return _path([every] * (count - 1), every, [np.arange(size)] * (count - 1), np.arange(rows))


def _path(
    inner: list[_Places], every: _Places, limits: list[np.ndarray], rows: np.ndarray
) -> np.ndarray:
    """The best choice among the places of each inner edge.

    Args:
        inner: the places of the edges but the first and the last.
        every: all places; the runs go from the first to the last of them.
        limits: for the places of an inner edge, the last place of the edge before it that does
            not come after.
        rows: numbers of the rows.

    Returns:
        (rows, edges): indices of places, the first and last among all places.
    """
    edges = np.zeros((len(rows), len(inner) + 2), np.intp)
    edges[:, -1] = every.totals.shape[1] - 1
    if not inner:
        return edges
    first = _Places(every.totals[:, :1], every.sums[:, :1])
    last = _Places(every.totals[:, -1:], every.sums[:, -1:])
    saved = _saving(first, inner[0])
    begins = []
    for before, places, limit in zip(inner, inner[1:], limits[1:], strict=False):
        saved, begin = _next_layer(saved, before, places, limit)
        begins.append(begin)
    # of the last run only the one that ends with the last value matters
    edges[:, -2] = (saved + _saving(inner[-1], last)).argmax(axis=1)
    for layer in range(len(begins), 0, -1):
        edges[:, layer] = begins[layer - 1][rows, edges[:, layer + 1]]
    return edges


def _saving(begin: _Places, end: _Places) -> np.ndarray:
    """How much less a run costs about its mean than about zero, (Σ w·x)²/Σ w."""
    weight = end.totals - begin.totals
    np.maximum(weight, _TINY, out=weight)
    saving = end.sums - begin.sums
    np.square(saving, out=saving)
    saving /= weight
    return np.asarray(saving)


def _next_layer(
    saved: np.ndarray, begins: _Places, ends: _Places, limit: np.ndarray
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
    best, chosen = np.empty((rows, size)), np.zeros((rows, size), _index_type(many))
    limit = np.broadcast_to(limit, (rows, size))
    offset = np.arange(rows)[:, None]
    flat = saved.reshape(-1), _Places(begins.totals.reshape(-1), begins.sums.reshape(-1))
    stride = 1 << (size.bit_length() - 1)
    while stride:
        # known are the ends at multiples of 2·stride, less one
        at = np.arange(stride, size + 1, 2 * stride) - 1
        left, right = at - stride, at + stride
        lower = np.where(left >= 0, chosen[:, np.maximum(left, 0)], 0).astype(np.intp)
        upper = np.where(right < size, chosen[:, np.minimum(right, size - 1)], many - 1)
        upper = np.minimum(upper, limit[:, at]).astype(np.intp)
        tails = _Places(ends.totals[:, at].ravel(), ends.sums[:, at].ravel())
        start = offset * many
        found, value = _best_begins(*flat, (lower + start).ravel(), (upper + start).ravel(), tails)
        chosen[:, at] = found.reshape(rows, -1) - start
        best[:, at] = value.reshape(rows, -1)
        stride >>= 1
    return best, chosen


def _index_type(count: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if count <= 1 << 16 else np.uint32


def _best_begins(
    saved: np.ndarray, begins: _Places, lower: np.ndarray, upper: np.ndarray, ends: _Places
) -> tuple[np.ndarray, np.ndarray]:
    """For each end, the best begin from `lower` to `upper`, and what is then saved."""
    lengths = upper - lower + 1
    firsts = np.cumsum(lengths) - lengths
    tried = np.arange(int(lengths.sum())) + np.repeat(lower - firsts, lengths)
    saving = _saving(
        _Places(begins.totals[tried], begins.sums[tried]),
        _Places(np.repeat(ends.totals, lengths), np.repeat(ends.sums, lengths)),
    )
    saving += saved[tried]
    value = np.maximum.reduceat(saving, firsts)
    hits = np.flatnonzero(saving == np.repeat(value, lengths))
    # the first hit of each end
    return tried[hits[np.searchsorted(hits, firsts)]], value


# ---------------------------------------------------------------------------- many rows


@dataclass(frozen=True)
class _Rows:
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
    def sorted(cls, values: np.ndarray, weights: np.ndarray) -> _Rows:
        """Of rows that are in order already."""
        nothing = np.zeros((len(values), 1))
        totals = np.concatenate([nothing, weights.cumsum(axis=1)], axis=1)
        sums = np.concatenate([nothing, (weights * values).cumsum(axis=1)], axis=1)
        return cls(values, weights, totals, sums)

    @classmethod
    def of(cls, matrix: np.ndarray, weights: np.ndarray | None) -> _Rows:
        if not np.isfinite(matrix).all():
            raise ValueError(_NOT_FINITE)
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

    def tables(self, count: int, start: Start, rng: np.random.Generator) -> np.ndarray:
        if start is not Start.OPTIMAL:
            return np.sort(self.lloyd(self.first(count, start, rng)), axis=1)
        middle = self.sums[:, -1:] / self.totals[:, -1:]  # less to cancel
        centred = _Rows.sorted(self.values - middle, self.weights)
        merged = centred.merged(max(_COARSE * count, _COARSEST))
        at = np.arange(len(merged))[:, None]
        edges = merged[at, _edges(centred._places(merged, at[:, 0]), count)]
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
        whole = np.maximum(share[:, -1:], _TINY)
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
        begins, ends = _Places(totals[:, :-1], sums[:, :-1]), _Places(totals[:, 1:], sums[:, 1:])
        return np.asarray(_saving(begins, ends).sum(axis=1))

    def _places(self, at: np.ndarray, rows: np.ndarray) -> _Places:
        return _Places(self.totals[rows[:, None], at], self.sums[rows[:, None], at])

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
        every = _Places(self.totals[rows], self.sums[rows])
        inner = [self._places(window, rows) for window in windows]
        chosen = _path(inner, every, limits, np.arange(len(rows)))
        result = edges.copy()
        for index, window in enumerate(windows, 1):
            result[:, index] = window[np.arange(len(rows)), chosen[:, index]]
        return result

    def first(self, count: int, start: Start, rng: np.random.Generator) -> np.ndarray:
        """Levels to start at, (rows, count)."""
        if start is Start.LINEAR:
            used = self.weights > 0
            low = np.where(used, self.values, np.inf).min(axis=1)
            high = np.where(used, self.values, -np.inf).max(axis=1)
            return np.linspace(low, high, count, axis=1)
        if start is Start.DENSITY:
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

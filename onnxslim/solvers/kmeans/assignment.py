"""Arrays of values read in pieces, and the code of each: the index of its nearest level.

Values may be mapped from files, so they are read one piece at a time. `encode` finds codes; `Keys`
maps floating-point numbers to bins in their order, with which `encode` finds a level in a few
steps, and `kmeans` gathers values.

What may change here: how large a piece is, and how a level is found. How wide bins are is part of
the bound that `kmeans` states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

_BINS: Final = (1 << 16) - 2  # so that 16 bits count their edges
_OCTAVES: Final = 16  # below the largest value, in which bins are relative
_MANTISSA: Final = 23
_SIGNLESS: Final = 0x7FFFFFFF
_CHUNK: Final = 1 << 17
_COMPARED: Final = 48  # levels up to which comparing with each threshold is fastest

NOT_FINITE: Final = "Values to be clustered must be finite; there are infinities or NaN in them."

Arrays = np.ndarray | Sequence[np.ndarray]
Pair = tuple[np.ndarray, np.ndarray | None]


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
            raise ValueError(NOT_FINITE)
        encoder.write(piece, codes)
    return out


def quantization_error(values: Arrays, table: np.ndarray, weights: Arrays | None = None) -> float:
    """Σ weight·(value − nearest level)², with the arguments of `cluster`."""
    table = np.asarray(table, np.float64)
    total = 0.0
    for array, own in paired(values, weights):
        for piece, weight in weighted(array, own):
            error = piece.astype(np.float64) - table[encode(piece, table)]
            np.square(error, out=error)
            total += float(error.sum() if weight is None else (error * weight).sum())
    return total


# ---------------------------------------------------------------------------- reading


def paired(values: Arrays, weights: Arrays | None) -> list[Pair]:
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


def weighted(array: np.ndarray, weights: np.ndarray | None) -> Iterator[Pair]:
    """Pieces of an array, each with its weights."""
    if weights is None:
        yield from ((piece, None) for (piece,) in _split(array))
    else:
        full = np.broadcast_to(weights, array.shape)
        yield from ((piece, weight) for piece, weight in _split(array, full))


def extremes(pairs: Sequence[Pair]) -> tuple[float, float]:
    """The least value and the greatest.

    Raises:
        ValueError: there are no values, or not all of them are finite.
    """
    low, high = np.inf, -np.inf
    for array, _ in pairs:
        for (piece,) in _split(array):
            if piece.size:
                low, high = min(low, float(piece.min())), max(high, float(piece.max()))
                if not np.isfinite(piece.min()) or not np.isfinite(piece.max()):
                    raise ValueError(NOT_FINITE)
    if low > high:
        raise ValueError("There are no values to cluster.")
    return low, high


def distinct_values(pairs: Sequence[Pair], limit: int) -> np.ndarray | None:
    """The distinct values that have weight, or None when there are more than `limit`."""
    found = np.empty(0)
    for array, weights in pairs:
        for piece, weight in weighted(array, weights):
            counted = piece if weight is None else piece[weight > 0]
            found = np.union1d(found, np.unique(counted).astype(np.float64))
            if len(found) > limit:
                return None
    return found + 0.0  # no negative zero


# ---------------------------------------------------------------------------- keys and encoder


@dataclass(frozen=True)
class Keys:
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
    def between(cls, low: float, high: float, dtype: np.dtype) -> Keys:
        """For numbers of a type, from `low` to `high`."""
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
        self.keys = Keys.between(low, high, dtype)
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


__all__ = [
    "NOT_FINITE",
    "Arrays",
    "Keys",
    "Pair",
    "distinct_values",
    "encode",
    "extremes",
    "paired",
    "quantization_error",
    "weighted",
]

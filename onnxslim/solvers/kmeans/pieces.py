"""Values with weights: read in pieces that fit the cache, and gathered in bins.

Values may be mapped from files, so no step makes a copy of a whole array.

`FloatBins` puts floating-point numbers in at most 2¹⁶ bins, in their order. The bits of positive
numbers, read as an integer, are in the order of the numbers, with as many integers between 1 and 2
as between 2 and 4. A bin is a run of such integers: it is no wider than 2⁻¹¹ of its values.
Magnitudes below about 2⁻¹⁶ of the largest share one bin for each sign.

Owns: how wide bins are, which is part of the bound that `levels` states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

_CHUNK: Final = 1 << 17  # values of a piece
_BINS: Final = (1 << 16) - 2  # so that 16 bits count their edges
_OCTAVES: Final = 16  # below the largest value, in which bins are relative
_MANTISSA: Final = 23
_SIGNLESS: Final = 0x7FFFFFFF

NOT_FINITE: Final = "Values to be clustered must be finite; there are infinities or NaN in them."

Arrays = np.ndarray | Sequence[np.ndarray]
WeightedArray = tuple[np.ndarray, np.ndarray | None]


def with_weights(values: Arrays, weights: Arrays | None) -> list[WeightedArray]:
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


def split(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
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
            yield from split(*(part[0] for part in parts))
        else:
            yield parts


def weighted_pieces(array: np.ndarray, weights: np.ndarray | None) -> Iterator[WeightedArray]:
    """Pieces of an array, each with its weights."""
    if weights is None:
        yield from ((piece, None) for (piece,) in split(array))
    else:
        full = np.broadcast_to(weights, array.shape)
        yield from ((piece, weight) for piece, weight in split(array, full))


def extremes(pairs: Sequence[WeightedArray]) -> tuple[float, float]:
    """The least value and the greatest.

    Raises:
        ValueError: there are no values, or not all of them are finite.
    """
    low, high = np.inf, -np.inf
    for array, _ in pairs:
        for (piece,) in split(array):
            if piece.size:
                low, high = min(low, float(piece.min())), max(high, float(piece.max()))
                if not np.isfinite(piece.min()) or not np.isfinite(piece.max()):
                    raise ValueError(NOT_FINITE)
    if low > high:
        raise ValueError("There are no values to cluster.")
    return low, high


def distinct_values(pairs: Sequence[WeightedArray], limit: int) -> np.ndarray | None:
    """The distinct values that have weight, or None when there are more than `limit`."""
    found = np.empty(0)
    for array, weights in pairs:
        for piece, weight in weighted_pieces(array, weights):
            counted = piece if weight is None else piece[weight > 0]
            found = np.union1d(found, np.unique(counted).astype(np.float64))
            if len(found) > limit:
                return None
    return found + 0.0  # no negative zero


@dataclass(frozen=True)
class FloatBins:
    """A map from numbers to bins that never falls.

    Attributes:
        scale: factor that brings float64 values into the range of float32; else 1.
        floor: bits below which magnitudes share bin zero.
        shift: low bits that numbers of one bin do not share.
        base: shifted bits of the first bin.
        count: number of bins.
    """

    scale: float
    floor: int
    shift: int
    base: int
    count: int

    @classmethod
    def between(cls, low: float, high: float, dtype: np.dtype) -> FloatBins:
        """For numbers of a type, from `low` to `high`."""
        # only float64 has values that do not fit into the bits of a float32
        peak = max(abs(low), abs(high))
        scale = 1.0 if dtype != np.float64 else float(np.ldexp(1.0, -int(np.frexp(peak)[1])))
        bits = [int(np.float32(abs(edge) * scale).view(np.int32)) for edge in (low, high)]
        # where bins of their own begin; a little less than all octaves, so that both signs fit
        floor = max(0, max(bits) - (_OCTAVES << _MANTISSA) + (1 << 13))
        lowest, highest = (
            max(own - floor, 0) * (-1 if edge < 0 else 1)
            for own, edge in zip(bits, (low, high), strict=True)
        )
        # the finest bins of which there are not too many
        shift = 0
        while (highest >> shift) - (lowest >> shift) >= _BINS:
            shift += 1
        base = lowest >> shift
        return cls(scale, floor, shift, base, (highest >> shift) - base + 1)

    def of(self, piece: np.ndarray) -> np.ndarray:
        """The bin of each value; those outside the range have the outermost."""
        if self.scale != 1.0:
            piece = piece * self.scale
        # bits as an integer that rises with the magnitude, from `floor` on
        single = np.ascontiguousarray(piece, np.float32).reshape(-1)
        bits = single.view(np.int32)
        keys = bits & _SIGNLESS
        keys -= self.floor
        np.maximum(keys, 0, out=keys)
        # negative numbers count downwards: −k = (k ^ −1) − (−1)
        sign = bits >> 31  # −1 or 0
        keys ^= sign
        keys -= sign
        keys >>= self.shift
        keys -= self.base
        wide = keys.astype(np.intp)
        return np.clip(wide, 0, self.count - 1, out=wide)

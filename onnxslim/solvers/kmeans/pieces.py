"""Arrays of values with their weights, read in pieces that fit the cache.

Values may be mapped from files, so no step makes a copy of a whole array.

Owns: how large a piece is, and what values and weights are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

_CHUNK: Final = 1 << 17  # values of a piece

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

"""Lloyd's iteration on many rows of sorted values at once, and its starts.

In one dimension an assignment is a set of thresholds: each step puts every threshold halfway
between two levels, and every level at the mean of the values between its thresholds. The iteration
ends where no threshold passes a value, a local optimum.
"""

from __future__ import annotations

import enum
from typing import Final

import numpy as np

from onnxslim.solvers.kmeans.partition import SortedRows

_MAX_ITERATIONS: Final = 5000  # the iteration nearly always stands still much earlier


class TableInit(enum.StrEnum):
    """How a table is found: the optimum, or by Lloyd's iteration from one of three starts.

    Han (2016) starts at equal steps between the extremes (linear) or at equal shares of the values
    (density); Arthur and Vassilvitskii (2007) at values drawn by their squared distance from those
    drawn before (kmeans++).
    """

    OPTIMAL = "optimal"
    LINEAR = "linear"
    DENSITY = "density"
    KMEANS_PLUS_PLUS = "kmeans++"


def init_levels(
    data: SortedRows, count: int, start: TableInit, rng: np.random.Generator
) -> np.ndarray:
    """Levels to start at, (rows, count), ascending."""
    if start is TableInit.LINEAR:
        used = data.weights > 0
        low = np.where(used, data.values, np.inf).min(axis=1)
        high = np.where(used, data.values, -np.inf).max(axis=1)
        return np.linspace(low, high, count, axis=1)
    if start is TableInit.DENSITY:
        share = (np.arange(count) + 0.5) / count * data.prefix.totals[:, -1:]
        return data.values_at(_positions(data.prefix.totals[:, 1:], share))
    return _kmeans_plus_plus(data, count, rng)


def _kmeans_plus_plus(data: SortedRows, count: int, rng: np.random.Generator) -> np.ndarray:
    levels = np.empty((len(data.values), count))
    chance = data.weights
    nearest = np.full(data.values.shape, np.inf)  # squared distance to the nearest level so far
    for index in range(count):
        # draw each row's next level with probability weight · squared distance
        running = chance.cumsum(axis=1)
        drawn = (1 - rng.random((len(levels), 1))) * running[:, -1:]
        level = data.values_at(_positions(running, drawn))
        levels[:, index : index + 1] = level
        np.minimum(nearest, np.square(data.values - level), out=nearest)
        chance = data.weights * nearest
    return np.sort(levels, axis=1)


def lloyd(data: SortedRows, levels: np.ndarray, *, fixed_zero: bool = False) -> np.ndarray:
    """Move levels to the means of the values nearest to them, until none moves.

    Args:
        data: the values of each row.
        levels: where to start, (rows, count), ascending.
        fixed_zero: the level nearest to zero becomes zero and stays.
    """
    levels = levels.copy()
    zero = np.abs(levels).argmin(axis=1)[:, None]
    if fixed_zero:
        np.put_along_axis(levels, zero, 0.0, axis=1)
    rows = np.arange(len(levels))  # those that still move
    edges = np.full((len(levels), levels.shape[1] + 1), -1, np.intp)
    edges[:, 0], edges[:, -1] = 0, data.values.shape[1]
    first = True
    for _ in range(_MAX_ITERATIONS):
        # assign: thresholds lie halfway between levels
        now = levels[rows]
        inner = _positions(data.values[rows], (now[:, 1:] + now[:, :-1]) / 2, above=True)
        moves = (inner != edges[rows, 1:-1]).any(axis=1) | first
        first = False
        rows, now = rows[moves], now[moves]
        if not len(rows):
            break
        # update: levels move to the means of their runs; an empty run keeps its level
        edges[rows, 1:-1] = inner[moves]
        prefix = data.prefix_at(edges[rows], rows)
        weight, total = np.diff(prefix.totals, axis=1), np.diff(prefix.sums, axis=1)
        np.divide(total, weight, out=now, where=weight > 0)
        if fixed_zero:
            np.put_along_axis(now, zero[rows], 0.0, axis=1)
        levels[rows] = now
    return levels


def _positions(values: np.ndarray, sought: np.ndarray, *, above: bool = False) -> np.ndarray:
    """In each row how many values lie below those sought; `above`: or are equal to them."""
    # binary search, all rows in step
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

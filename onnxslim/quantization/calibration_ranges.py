"""Which range of an activation a grid should cover, from what was observed of it.

Five ways to choose, and one to order them: by the error that values *held back* come out with (what
that does to outputs, `range_choice` asks). The error of a grid, E (x − x̂)², is one function of grid
and histogram: rounding where the grid reaches, clipping where it does not, integrated exactly over
values that lie evenly within their bins.

Migacz, "8-bit inference with TensorRT", GTC 2017, for `entropy`. We differ: zeros are left out, the
threshold is one for |x| whatever the form of the grid, and a side that is not reached is not
covered.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.quantization.grid import U8, Grid, GridForm
from onnxslim.services.observations import BINS, Observation

PERCENTILE: Final = 0.9999
_MIN_SHARE: Final = 2.0**-8  # of a side of the range, that is tried for `mse`
_TRIED: Final = 17  # shares at once
_ROUNDS: Final = 2
_THRESHOLDS: Final = 64  # tried for `entropy`
Array = npt.NDArray[np.float64]
Ends = tuple[float, float]


class RangeMethod(enum.StrEnum):
    """How a range is chosen.

    MINMAX: all values. AVERAGE: the mean over samples of each one's least and most value.
    PERCENTILE: all but a few values. MSE: the least squared error. ENTROPY: the distribution that
    is closest, by Kullback and Leibler's divergence.
    """

    MINMAX = "minmax"
    AVERAGE = "average"
    PERCENTILE = "percentile"
    MSE = "mse"
    ENTROPY = "entropy"


@dataclass(frozen=True)
class CalibrationRange:
    """A range, and what a grid over it does to the values.

    Attributes:
        least, most: what it covers; zero is within.
        form: of the grid.
        method: how it was chosen; None: an integer kernel insists on it.
        error: E (x − x̂)².
        energy: E x².
    """

    least: float
    most: float
    form: GridForm
    method: RangeMethod | None
    error: float
    energy: float

    @property
    def grid(self) -> Grid:
        """The grid that covers it."""
        return self.form.over(self.least, self.most)

    @property
    def relative_error(self) -> float:
        """The error as a share of the energy."""
        return self.error / self.energy if self.energy else 0.0


def activation_range(
    observed: Observation,
    method: RangeMethod,
    form: GridForm = U8,
    *,
    percentile: float = PERCENTILE,
) -> CalibrationRange:
    """The range of one tensor.

    Args:
        observed: what was seen of it.
        method: how the range is chosen.
        form: of the grid that is to cover it.
        percentile: share of values that `PERCENTILE` covers on either side.
    """
    return _judged(_ends(observed, method, form, percentile), observed, form, method)


def all_ranges(
    observed: Observation,
    held: Observation | None = None,
    form: GridForm = U8,
    *,
    percentile: float = PERCENTILE,
) -> tuple[CalibrationRange, ...]:
    """What each method finds; the one with the least error on values held back comes first.

    Args:
        observed: what the methods look at.
        held: what the ranges are judged on; None: `observed`.
        form: of the grid that is to cover it.
        percentile: as of `activation_range`.
    """
    judge = observed if held is None or not held.count else held
    judged = [_judged(_ends(observed, m, form, percentile), judge, form, m) for m in RangeMethod]
    return tuple(sorted(judged, key=lambda item: item.error))


def _ends(observed: Observation, method: RangeMethod, form: GridForm, percentile: float) -> Ends:
    return _METHODS[method](observed, form, percentile) if observed.count else (0.0, 0.0)


def fixed_range(observed: Observation, ends: Ends, form: GridForm) -> CalibrationRange:
    """A range that nobody chose.

    Args:
        observed: what it is judged on.
        ends: what it covers.
        form: of the grid.
    """
    return _judged(ends, observed, form, None)


def _judged(
    ends: Ends, judge: Observation, form: GridForm, method: RangeMethod | None
) -> CalibrationRange:
    least, most = min(ends[0], 0.0), max(ends[1], 0.0)  # every grid holds zero
    error = expected_error(form.over(least, most), judge)
    return CalibrationRange(least, most, form, method, error, energy(judge))


# ---------------------------------------------------------------------------- error


def expected_error(grid: Grid, observed: Observation) -> float:
    """E (x − x̂)² of what was observed: rounding, and clipping where the grid ends.

    Args:
        grid: with one scale.
        observed: what was seen.
    """
    scale, low, high = float(grid.scale), grid.low, grid.high
    zero = int(grid.zero_point)
    edges, counts = _occupied(observed)
    if not observed.count or not len(counts):
        return 0.0
    errors = _errors(edges, counts, np.array([[scale]]), np.array([[low - zero, high - zero]]))
    return float(errors[0]) / observed.count


def energy(observed: Observation) -> float:
    """E x²."""
    edges, counts = _occupied(observed)
    if not observed.count or not len(counts):
        return 0.0
    a, b = edges[:-1], edges[1:]
    return float(counts @ (a * a + a * b + b * b)) / 3 / observed.count


def _errors(edges: Array, counts: Array, scale: Array, ends: Array) -> Array:
    """Σ (x − x̂)² of a histogram on several grids.

    With u = x / scale and k the code that u is rounded to (from `ends`), the integral of (u − k)²
    from 0 to u is k / 12 + (u − k)³ / 3: a step that lies wholly before u holds 1 / 12.

    Args:
        edges: (n + 1,), evenly spaced.
        counts: (n,).
        scale: (grids, 1).
        ends: (grids, 2), least and most code, less the zero point.
    """
    u = edges / scale  # (grids, n + 1)
    k = np.clip(np.rint(u), ends[:, :1], ends[:, 1:])
    u -= k
    integral = k / 12 + u * u * u / 3
    width = (edges[1] - edges[0]) / scale[:, 0]
    return np.asarray((np.diff(integral) @ counts) / width * scale[:, 0] ** 2)


def _occupied(observed: Observation) -> tuple[Array, Array]:
    """Edges and counts of the bins from the first to the last that holds a value."""
    own = observed.histogram.occupied
    edges = observed.histogram.edges[own.start : own.stop + 1]
    return edges, observed.histogram.counts[own].astype(np.float64)


# ---------------------------------------------------------------------------- methods


def _minmax(observed: Observation, form: GridForm, percentile: float) -> Ends:
    return observed.least, observed.most


def _average(observed: Observation, form: GridForm, percentile: float) -> Ends:
    return observed.average_least, observed.average_most


def _percentile(observed: Observation, form: GridForm, percentile: float) -> Ends:
    edges, counts = _occupied(observed)
    zeros = observed.zeros * observed.count
    outside = (1 - percentile) * observed.count

    def quantile(ascending: Array, numbers: Array) -> float:
        """Below which `outside` values lie; zeros lie where the sign changes."""
        below = np.concatenate(([0.0], np.cumsum(numbers)))
        past = np.where(ascending > 0, zeros, 0.0)
        return float(np.interp(outside, below + past, ascending))

    if not len(counts):
        return 0.0, 0.0
    least, most = quantile(edges, counts), -quantile(-edges[::-1], counts[::-1])
    return _within(observed, min(least, 0.0), max(most, 0.0))


def _mse(observed: Observation, form: GridForm, percentile: float) -> Ends:
    """Shrink one side after the other; a symmetric grid has but one."""
    edges, counts = _occupied(observed)
    least, most = min(observed.least, 0.0), max(observed.most, 0.0)
    if not len(counts):
        return 0.0, 0.0

    if form.symmetric:
        peak = max(most, -least)
        ends = _shrunk(edges, counts, form, (-peak, peak), (True, True))
        return _within(observed, *ends)
    widest = least, most
    for _ in range(_ROUNDS if least < 0 < most else 1):
        if most > 0:
            least, most = _shrunk(edges, counts, form, (least, widest[1]), (False, True))
        if least < 0:
            least, most = _shrunk(edges, counts, form, (widest[0], most), (True, False))
    return least, most


def _shrunk(
    edges: Array, counts: Array, form: GridForm, ends: Ends, moves: tuple[bool, bool]
) -> Ends:
    """`ends`, of which those that move are shrunk by the share with the least error.

    The share is looked for coarsely, then finely around the best.
    """
    shares = np.geomspace(1.0, _MIN_SHARE, _TRIED)
    for _ in range(2):
        bottoms, tops = (
            end * (shares if move else np.ones_like(shares))
            for end, move in zip(ends, moves, strict=True)
        )
        best = int(_grid_errors(edges, counts, form, bottoms, tops).argmin())
        around = shares[max(best - 1, 0)], shares[min(best + 1, len(shares) - 1)]
        shares = np.geomspace(*around, _TRIED)
    return float(bottoms[best]), float(tops[best])


def _grid_errors(edges: Array, counts: Array, form: GridForm, bottoms: Array, tops: Array) -> Array:
    grid = form.over(bottoms, tops, axis=0)
    zero = grid.zero_point.astype(np.int64)
    ends = np.stack((grid.low - zero, grid.high - zero), axis=1).astype(np.float64)
    return _errors(edges, counts, grid.scale.astype(np.float64)[:, None], ends)


def _entropy(observed: Observation, form: GridForm, percentile: float) -> Ends:
    edges, counts = _occupied(observed)
    if not len(counts):
        return 0.0, 0.0
    middles = np.abs((edges[1:] + edges[:-1]) / 2)
    width = max(edges[1] - edges[0], middles.max() / BINS)  # bins are narrow far from zero
    numbers = (middles / width).astype(np.int64)
    sizes = np.bincount(numbers, weights=counts).astype(np.float64)
    grid = form.over(observed.least, observed.most)
    levels = max(grid.high - int(grid.zero_point), int(grid.zero_point) - grid.low)
    threshold = _closest(sizes, levels) * width
    return _within(observed, -threshold, threshold)


def _closest(sizes: Array, levels: int) -> int:
    """How many bins of |x| to keep so that `levels` of equal width tell most of them."""
    if len(sizes) <= levels:
        return len(sizes)
    tried = np.unique(np.geomspace(levels, len(sizes), _THRESHOLDS).astype(np.int64))
    divergences = [_divergence(sizes, int(kept), levels) for kept in tried]
    return int(tried[int(np.argmin(divergences))])


def _divergence(sizes: Array, kept: int, levels: int) -> float:
    """Σ p log (p / q): p has what is beyond in its last bin, q one density in each level."""
    exact = sizes[:kept]
    clipped = exact.copy()
    clipped[-1] += sizes[kept:].sum()
    level = np.arange(kept) * levels // kept
    used = clipped > 0
    sums = np.bincount(level, weights=exact, minlength=levels)
    bins = np.bincount(level, weights=used, minlength=levels)
    shared = np.where(used, sums[level] / np.maximum(bins[level], 1), 0.0)
    p, q = clipped[used] / clipped.sum(), shared[used] / max(exact.sum(), 1.0)
    # a last bin that holds nothing but what is beyond: infinitely far, were it not for the floor
    return float((p * np.log(p / np.maximum(q, 1e-12))).sum())


def _within(observed: Observation, least: float, most: float) -> Ends:
    return max(least, observed.least), min(most, observed.most)


_METHODS: Final[Mapping[RangeMethod, Callable[[Observation, GridForm, float], Ends]]] = {
    RangeMethod.MINMAX: _minmax,
    RangeMethod.AVERAGE: _average,
    RangeMethod.PERCENTILE: _percentile,
    RangeMethod.MSE: _mse,
    RangeMethod.ENTROPY: _entropy,
}

__all__ = [
    "PERCENTILE",
    "CalibrationRange",
    "Ends",
    "RangeMethod",
    "activation_range",
    "all_ranges",
    "energy",
    "expected_error",
    "fixed_range",
]

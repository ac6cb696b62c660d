"""Calibration ranges: the range of an activation that its grid covers, chosen from a histogram.

Five methods (observers) propose a range each, and E (x − x̂)² on samples *held back* orders them.
The error of a grid is one function of grid and histogram: rounding error inside the grid, clipping
error outside, integrated exactly over values spread evenly within each bin.

    minmax      the least and largest value of all samples (Jacob et al. 2018, arXiv:1712.05877)
    average     the mean over samples of each sample's least and largest value
    percentile  all but a small share of values at either end (Wu et al. 2020, arXiv:2004.09602)
    mse         the range with the least E (x − x̂)², one side after the other
    entropy     the |x| threshold with the least KL divergence (Migacz, "8-bit inference with
                TensorRT", GTC 2017). We differ: zeros are left out, one threshold serves any form
                of grid, and a side that no value reaches is not covered.

Owns: ranges by the error of the tensor itself. Not here: their effect on the outputs (see
`range_choice`).
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

_PERCENTILE: Final = 0.9999  # share of values that `percentile` covers on either side
_MIN_SHARE: Final = 2.0**-8  # `mse`: the smallest share of a side of the range that is tried
_TRIED: Final = 17  # `mse`: shares tried at once
_ROUNDS: Final = 2  # `mse`: passes over both sides
_THRESHOLDS: Final = 64  # `entropy`: thresholds tried
Array = npt.NDArray[np.float64]
Ends = tuple[float, float]


class RangeMethod(enum.StrEnum):
    """How a range is chosen; the text of the module describes each method."""

    MINMAX = "minmax"
    AVERAGE = "average"
    PERCENTILE = "percentile"
    MSE = "mse"
    ENTROPY = "entropy"


@dataclass(frozen=True)
class CalibrationRange:
    """A range of an activation, and the error of the grid that covers it.

    Attributes:
        least, most: the ends of the range; it holds 0.
        form: the form of the grid that covers it.
        method: how the range was chosen; None: an integer kernel needs this one.
        error: E (x − x̂)², x̂ the value that x is rounded or clipped to.
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
        """The grid that covers the range."""
        return self.form.over(self.least, self.most)

    @property
    def relative_error(self) -> float:
        """The error as a share of the energy; 0 for an all-zero tensor."""
        return self.error / self.energy if self.energy else 0.0


def activation_range(
    observed: Observation, method: RangeMethod, form: GridForm = U8
) -> CalibrationRange:
    """The range of one tensor by one method, for a grid of `form`."""
    return _judged(_ends(observed, method, form), observed, form, method)


def all_ranges(
    observed: Observation, held: Observation | None = None, form: GridForm = U8
) -> tuple[CalibrationRange, ...]:
    """The ranges of all methods, that with the least error on held-back values first.

    Args:
        observed: the histogram that ranges are chosen from.
        held: the histogram that ranges are judged on; None: `observed`.
        form: the form of the grid that is to cover the range.
    """
    judge = observed if held is None or not held.count else held
    judged = [_judged(_ends(observed, m, form), judge, form, m) for m in RangeMethod]
    return tuple(sorted(judged, key=lambda item: item.error))


def _ends(observed: Observation, method: RangeMethod, form: GridForm) -> Ends:
    return _METHODS[method](observed, form) if observed.count else (0.0, 0.0)


def fixed_range(observed: Observation, ends: Ends, form: GridForm) -> CalibrationRange:
    """A range that is given, such as one that an integer kernel needs."""
    return _judged(ends, observed, form, None)


def _judged(
    ends: Ends, judge: Observation, form: GridForm, method: RangeMethod | None
) -> CalibrationRange:
    least, most = min(ends[0], 0.0), max(ends[1], 0.0)  # every grid holds zero
    error = expected_error(form.over(least, most), judge)
    return CalibrationRange(least, most, form, method, error, energy(judge))


# ---------------------------------------------------------------------------- error


def expected_error(grid: Grid, observed: Observation) -> float:
    """E (x − x̂)² of a tensor on a grid of one scale, whose ends clip what lies beyond them."""
    scale, low, high = float(grid.scale), grid.low, grid.high
    zero = int(grid.zero_point)
    edges, counts = _occupied(observed)
    if not observed.count or not len(counts):
        return 0.0
    errors = _errors(edges, counts, np.array([[scale]]), np.array([[low - zero, high - zero]]))
    return float(errors[0]) / observed.count


def energy(observed: Observation) -> float:
    """E x² of a tensor."""
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
    u = edges / scale  # (grids, n + 1), bin edges in steps of the grid
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


def _percentile(observed: Observation, _form: GridForm) -> Ends:
    edges, counts = _occupied(observed)
    zeros = observed.zeros * observed.count
    outside = (1 - _PERCENTILE) * observed.count

    def quantile(ascending: Array, numbers: Array) -> float:
        """The value below which `outside` values lie; zeros are counted apart, at 0."""
        below = np.concatenate(([0.0], np.cumsum(numbers)))
        past = np.where(ascending > 0, zeros, 0.0)
        return float(np.interp(outside, below + past, ascending))

    if not len(counts):
        return 0.0, 0.0
    least, most = quantile(edges, counts), -quantile(-edges[::-1], counts[::-1])
    return _within(observed, min(least, 0.0), max(most, 0.0))


def _mse(observed: Observation, form: GridForm) -> Ends:
    """Shrink one side of the range after the other; both sides of a symmetric grid at once."""
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
    """`ends`, those that move shrunk by the share with the least error.

    Shares are tried coarsely, then finely around the best; the error need not be convex.
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


def _entropy(observed: Observation, form: GridForm) -> Ends:
    """Clip |x| where the quantized distribution is closest to the exact one."""
    edges, counts = _occupied(observed)
    if not len(counts):
        return 0.0, 0.0
    # fold the histogram into one of |x|, with at most `BINS` bins of equal width
    middles = np.abs((edges[1:] + edges[:-1]) / 2)
    width = max(edges[1] - edges[0], middles.max() / BINS)  # bins are narrow far from zero
    numbers = (middles / width).astype(np.int64)
    sizes = np.bincount(numbers, weights=counts).astype(np.float64)
    grid = form.over(observed.least, observed.most)
    levels = max(grid.high - int(grid.zero_point), int(grid.zero_point) - grid.low)
    threshold = _closest(sizes, levels) * width
    return _within(observed, -threshold, threshold)


def _closest(sizes: Array, levels: int) -> int:
    """How many bins of |x| to keep so that `levels` levels of equal width describe them best."""
    if len(sizes) <= levels:
        return len(sizes)
    tried = np.unique(np.geomspace(levels, len(sizes), _THRESHOLDS).astype(np.int64))
    divergences = [_divergence(sizes, int(kept), levels) for kept in tried]
    return int(tried[int(np.argmin(divergences))])


def _divergence(sizes: Array, kept: int, levels: int) -> float:
    """KL(p ‖ q) = Σ p log (p / q) of clipping at bin `kept` and rounding to `levels` levels."""
    exact = sizes[:kept]
    # p: the kept bins, the last with all values beyond the threshold
    clipped = exact.copy()
    clipped[-1] += sizes[kept:].sum()
    # q: each level's values spread evenly over its occupied bins
    level = np.arange(kept) * levels // kept
    used = clipped > 0
    sums = np.bincount(level, weights=exact, minlength=levels)
    bins = np.bincount(level, weights=used, minlength=levels)
    shared = np.where(used, sums[level] / np.maximum(bins[level], 1), 0.0)
    p, q = clipped[used] / clipped.sum(), shared[used] / max(exact.sum(), 1.0)
    # without this floor, a last bin that holds clipped values alone would be infinitely far
    return float((p * np.log(p / np.maximum(q, 1e-12))).sum())


def _within(observed: Observation, least: float, most: float) -> Ends:
    return max(least, observed.least), min(most, observed.most)


_METHODS: Final[Mapping[RangeMethod, Callable[[Observation, GridForm], Ends]]] = {
    RangeMethod.MINMAX: lambda observed, _: (observed.least, observed.most),
    RangeMethod.AVERAGE: lambda observed, _: (observed.average_least, observed.average_most),
    RangeMethod.PERCENTILE: _percentile,
    RangeMethod.MSE: _mse,
    RangeMethod.ENTROPY: _entropy,
}

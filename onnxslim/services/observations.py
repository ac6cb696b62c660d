"""The range of a tensor over the calibration samples, and a histogram of fixed size.

The width of a bin is a power of two, and bins begin at multiples of it. When values fall outside,
pairs of bins are merged into one of twice the width. So a histogram does not depend on the order of
the values: it equals the histogram of all values together, and the histogram of tensors that share
a grid is the sum of theirs.

Exact zeros are counted apart: behind a Relu they are half of all values, every grid holds them
exactly, and they do not matter to the choice of a range.

Owns: the statistics of a tensor. Not here: counting (see `onnxslim.runtime.probes.observers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from math import floor
from typing import Final

import numpy as np
import numpy.typing as npt

BINS: Final = 4096
_MIN_WIDTH: Final = 2.0**-100  # of a bin: the inverse is still a float32
_MAX_NUMBER: Final = 2**30  # of a bin: values divided by the width are exact, and fit integers
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Histogram:
    """Counts of finite values other than zero.

    Attributes:
        counts: (BINS,).
        start: number of the first bin: bin i holds [(start + i)·width, (start + i + 1)·width).
        width: a power of two.
    """

    counts: npt.NDArray[np.int64]
    start: int
    width: float

    @classmethod
    def empty(cls) -> Histogram:
        """A histogram without values, with bins of the smallest width."""
        return cls(np.zeros(BINS, np.int64), 0, _MIN_WIDTH)

    @property
    def edges(self) -> Array:
        """Edges of the bins, (BINS + 1,)."""
        return np.asarray((self.start + np.arange(BINS + 1)) * self.width, np.float64)

    @cached_property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    @cached_property
    def occupied(self) -> slice:
        """The range from the first to the last bin with values; empty where there are none."""
        used = np.flatnonzero(self.counts)
        return slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)

    def plus(self, values: npt.NDArray[np.floating]) -> Histogram:
        """This histogram with more `values`, in the narrowest bins that hold all of them."""
        if not values.size:
            return self
        ends = (float(values.min()), float(values.max()), *self._ends())
        start, width = _window(min(ends), max(ends), self.width)
        # a power of two: neither the product nor its floor is rounded
        numbers = np.floor(values * values.dtype.type(1 / width)).astype(np.int64)
        counts = np.bincount(numbers - start, minlength=BINS)
        return Histogram(self._counts_in(start, width) + counts, start, width)

    def joined(self, other: Histogram) -> Histogram:
        """The histogram of the values of both."""
        ends = (*self._ends(), *other._ends())
        if not ends:
            return self
        start, width = _window(min(ends), max(ends), max(self.width, other.width))
        counts = self._counts_in(start, width) + other._counts_in(start, width)
        return Histogram(counts, start, width)

    def _ends(self) -> tuple[float, ...]:
        """A number in the first bin that is occupied, and one in the last."""
        own = self.occupied
        if not own.stop:
            return ()
        return (self.start + own.start) * self.width, (self.start + own.stop - 1) * self.width

    def _counts_in(self, start: int, width: float) -> npt.NDArray[np.int64]:
        """The counts of bins no narrower, numbered from `start`, that hold all of them."""
        own, counts = self.occupied, np.zeros(BINS, np.int64)
        if self.width == width:
            first = self.start + own.start - start
            counts[first : first + own.stop - own.start] = self.counts[own]
        elif own.stop:
            numbers = np.arange(self.start + own.start, self.start + own.stop)
            places = np.floor(numbers * (self.width / width)).astype(np.int64) - start
            np.add.at(counts, places, self.counts[own])
        return counts


def _window(least: float, most: float, width: float) -> tuple[int, float]:
    """First bin and width of the narrowest bins, of at least `width`, that hold both ends."""
    while True:
        first, last = floor(least / width), floor(most / width)
        if last - first < BINS and max(-first, last) <= _MAX_NUMBER:
            return first, width
        width *= 2


@dataclass(frozen=True)
class Observation:
    """Statistics of the values of a tensor.

    Attributes:
        tensor: name of the tensor.
        least, most: smallest and largest of all values.
        average_least, average_most: means over the samples of the smallest and largest value of
            each sample.
        histogram: of the values other than zero; of very many values, of evenly spread ones.
        count: number of values behind the histogram and `zeros`; 0: the tensor was always empty.
        zeros: share of exact zeros.
    """

    tensor: str
    least: float
    most: float
    average_least: float
    average_most: float
    histogram: Histogram
    count: int
    zeros: float


def joined(observations: Sequence[Observation], tensor: str) -> Observation:
    """The statistics of several tensors together, which are to share a grid.

    Args:
        observations: at least one.
        tensor: the name of the result.
    """
    return replace(reduce(_both, observations), tensor=tensor)


def _both(a: Observation, b: Observation) -> Observation:
    if not (a.count and b.count):
        return a if a.count else b
    count = a.count + b.count
    return Observation(
        a.tensor,
        min(a.least, b.least),
        max(a.most, b.most),
        min(a.average_least, b.average_least),
        max(a.average_most, b.average_most),
        a.histogram.joined(b.histogram),
        count,
        (a.zeros * a.count + b.zeros * b.count) / count,
    )

"""Parts of the samples, chosen by number.

Owns: which samples a part has, and keeping few of them in memory: to find two among a thousand, all
have to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from onnxslim.runtime.samples.stream import Sample, Samples

Keep = Callable[[int, int | None], bool]
"""Whether the sample of this number belongs to the part, given the number of all, if known."""

_GOLDEN: Final = 0.6180339887498949
_FOLDS: Final = 5
_HELD: Final = 1  # the second of each `_FOLDS` samples is held back: two samples are enough
_MAX_TRIED: Final = 10000  # samples to fit trials on, about
_KEPT_BYTES: Final = 16 << 20  # of a part that is kept in memory


def dealt(number: int, count: int) -> Keep:
    """About one sample in `count`, by multiples of the golden ratio modulo 1.

    They are equidistributed (Weyl 1916), so parts are nearly equal. Taking every `count`-th sample
    would drop classes from a part where samples of the classes alternate.
    """
    return lambda index, _: int(count * (index * _GOLDEN % 1.0)) == number


def evenly(most: int) -> Keep:
    """At most `most` samples, evenly spaced; the first ones where the count is unknown."""

    def keep(index: int, count: int | None) -> bool:
        return index < most if count is None else index % -(-count // most) == 0

    return keep


def is_tried(number: int, count: int | None) -> bool:
    """Whether a sample is one of those to fit trials on."""
    every = 1 if count is None else -(-count // _MAX_TRIED)
    return number % _FOLDS != _HELD and number // _FOLDS % every == 0


def is_held(number: int, count: int | None) -> bool:
    """Whether a sample is held back to judge trials."""
    return number % _FOLDS == _HELD


def chosen(samples: Samples, keep: Keep) -> Samples:
    """The samples that `keep` accepts; all of them where it accepts none."""
    count = samples.count
    if count is not None:
        count = sum(keep(number, count) for number in range(count)) or count
    return Samples(samples.name, _Part(samples, keep).read, count, batchable=samples.batchable)


class _Part:
    """The samples that `keep` accepts, kept in memory after the first way through if they fit."""

    def __init__(self, samples: Samples, keep: Keep) -> None:
        self._samples, self._keep = samples, keep
        self._kept: list[Sample] = []

    def read(self) -> Iterator[Sample]:
        if self._kept:
            yield from self._kept
            return
        found, taken = list[Sample](), 0
        for sample in self._accepted():
            yield sample
            taken += sum(array.nbytes for array in sample.feeds.values())
            if taken <= _KEPT_BYTES:
                found.append(_copied(sample))
        if taken <= _KEPT_BYTES:
            self._kept = found

    def _accepted(self) -> Iterator[Sample]:
        empty = True
        for number, sample in enumerate(self._samples):
            if self._keep(number, self._samples.count):
                empty = False
                yield sample
        if empty:
            yield from self._samples


def _copied(sample: Sample) -> Sample:
    """The sample without the rows around it, of which its arrays are views."""
    feeds = {name: np.array(array) for name, array in sample.feeds.items()}
    return Sample(feeds, sample.rows, sample.labels)

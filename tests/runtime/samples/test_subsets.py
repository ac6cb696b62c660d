"""Parts of samples: few are kept, whatever their source costs to read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from onnxslim.runtime.samples.stream import Sample, Samples
from onnxslim.runtime.samples.subsets import chosen, evenly

COUNT = 9


class Source:
    """Samples that are rows of one array, and how often they were read."""

    def __init__(self, width: int) -> None:
        self.rows = np.arange(COUNT * width, dtype=np.float32).reshape(COUNT, width)
        self.times = 0

    def samples(self) -> Samples:
        return Samples("rows", self._read, COUNT, batchable=True)

    def _read(self) -> Iterator[Sample]:
        self.times += 1
        yield from (Sample({"x": row[None]}, 1, None) for row in self.rows)


@pytest.mark.parametrize(("limit", "times"), [(1 << 20, 1), (1, 2)])
def test_a_part_that_fits_into_memory_is_read_once(
    limit: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxslim.runtime.samples.subsets._KEPT_BYTES", limit)
    source = Source(4)
    part = chosen(source.samples(), evenly(3))
    first, again = ([sample.feeds["x"] for sample in part] for _ in range(2))
    assert source.times == times
    assert part.count == 3
    for rows in (first, again):
        np.testing.assert_array_equal(np.concatenate(rows), source.rows[::3])


def test_what_is_kept_does_not_keep_the_rows_around_it() -> None:
    source = Source(4)
    part = chosen(source.samples(), evenly(3))
    _, again = ([sample.feeds["x"] for sample in part] for _ in range(2))
    assert not any(np.shares_memory(rows, source.rows) for rows in again)


def test_a_part_that_was_not_read_to_its_end_is_read_again() -> None:
    source = Source(4)
    part = chosen(source.samples(), evenly(3))
    next(iter(part))
    assert len(list(part)) == 3
    assert source.times == 2

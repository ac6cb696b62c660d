"""Histograms of fixed size: what they count does not depend on how values came."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from observed import histogram, observation

from onnxslim.services.observations import BINS, joined

SIZES = st.floats(1e-15, 1e15)  # what is 1e-45 of the largest value, float32 may call zero
FLOATS = st.one_of(SIZES, SIZES.map(lambda size: -size), st.just(0.0))
ARRAYS = st.lists(FLOATS, max_size=30).map(lambda values: np.array(values, np.float32))


@pytest.mark.slow
@given(st.lists(ARRAYS, max_size=5))
@settings(max_examples=200)
def test_the_order_of_values_does_not_matter(parts: list[np.ndarray]) -> None:
    there, back = histogram(*parts), histogram(*reversed(parts))
    at_once = histogram(np.concatenate([np.zeros(0, np.float32), *parts]))
    for other in (back, at_once):
        assert (there.start, there.width) == (other.start, other.width)
        np.testing.assert_array_equal(there.counts, other.counts)


@pytest.mark.slow
@given(st.lists(ARRAYS, min_size=1, max_size=4))
def test_joined_histograms_are_that_of_all_values(parts: list[np.ndarray]) -> None:
    together = joined([observation(part) for part in parts], "all")
    at_once = observation(np.concatenate(parts), "all")
    assert (together.tensor, together.count) == ("all", at_once.count)
    assert (together.least, together.most) == (at_once.least, at_once.most)
    assert together.zeros == pytest.approx(at_once.zeros)
    assert together.histogram.width == at_once.histogram.width
    np.testing.assert_array_equal(together.histogram.counts, at_once.histogram.counts)


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e30])
def test_counts_are_numpys_for_any_scale(scale: float) -> None:
    values = (scale * np.random.default_rng(0).standard_normal(5000)).astype(np.float32)
    found = histogram(*np.array_split(values, 7))
    assert found.total == 5000
    own = found.occupied
    assert own.stop - own.start > BINS // 2 - 2
    np.testing.assert_array_equal(found.counts, np.histogram(values, bins=found.edges)[0])


def test_a_single_value_has_a_bin_of_its_own() -> None:
    found = histogram(np.full(10, 5.0, np.float32))
    own = found.occupied
    assert found.counts[own].tolist() == [10]
    assert found.edges[own.start] == 5.0

"""Names on tensors move as values do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim.channels.labels import (
    along_axis,
    by_shared_axes,
    ids_along,
    labelled_axes,
    matching_blocks,
    reshaped,
    simplified,
    transposed,
    with_rank,
)
from onnxslim.graph.sizes import Sum, multiply

IDS = np.arange(6)
N = Sum.of("N")
N6 = multiply(N, 6)


def test_a_facet_labels_the_axes_along_which_it_is_long() -> None:
    assert labelled_axes(along_axis(IDS, 1, 4)) == {1}
    assert labelled_axes(IDS.reshape(1, 2, 3)) == {1, 2}
    assert labelled_axes(np.array([[5]])) == frozenset()


def test_names_along_an_axis_are_those_of_the_facet_that_labels_it_alone() -> None:
    labels = (along_axis(IDS, 1, 3), along_axis(IDS + 10, 2, 3))
    found = ids_along(labels, 2)
    assert found is not None
    assert found.tolist() == (IDS + 10).tolist()
    assert ids_along(labels, 0) is None
    assert ids_along((IDS.reshape(1, 2, 3),), 1) is None


def test_axes_in_front_are_added_as_broadcasting_does() -> None:
    assert with_rank(along_axis(IDS, 0, 1), 3).shape == (1, 1, 6)


def test_an_axis_along_which_nothing_changes_loses_its_label() -> None:
    repeated = np.broadcast_to(along_axis(IDS, 0, 2), (6, 4))
    simple = simplified(repeated)
    assert simple is not None
    assert simple.shape == (6, 1)
    assert simplified(np.zeros((3, 3), np.int64)) is None


def test_a_transpose_moves_labels() -> None:
    (array,) = transposed((along_axis(IDS, 1, 4),), [0, 2, 3, 1])
    assert labelled_axes(array) == {3}


@pytest.mark.parametrize(
    ("shape", "target", "expected"),
    [
        ((N, 6, 4, 4), (N, 96), (1, 96)),
        ((N, 6, 4, 4), (N, 6, 16), (1, 6, 1)),
        ((N, 6, 4, 4), (N, 2, 3, 4, 4), (1, 2, 3, 1, 1)),
        ((N, 6, 1, 1), (N, 6), (1, 6)),
        ((N, 6, N, N), (N, 6, Sum.of("N"), N), (1, 6, 1, 1)),
        ((1, 6, 1, 1), (6,), (6,)),
    ],
)
def test_a_reshape_moves_labels(
    shape: tuple[int | Sum, ...], target: tuple[int | Sum, ...], expected: tuple[int, ...]
) -> None:
    found = reshaped((along_axis(IDS, 1, 4),), shape, target)
    assert found is not None
    assert found[0].shape == expected
    assert np.unique(found[0]).tolist() == IDS.tolist()


def test_a_reshape_that_joins_channels_with_an_unknown_size_is_not_followed() -> None:
    assert reshaped((along_axis(IDS, 1, 3),), (N, 6, N), (N, Sum.of("L"))) is None
    assert reshaped((along_axis(IDS, 1, 3),), (2, 6, N), (2, Sum(((("N",), 6),)))) is None


@pytest.mark.parametrize(
    ("shape", "target", "expected"),
    [
        ((N, 6, N), (N6, N), (6, 1)),
        ((N, 6, N), (Sum.of("M"), N), (6, 1)),
        ((Sum.of("A"), 6, N), (Sum.of("B"), Sum.of("C"), 6, N), (1, 1, 6, 1)),
        ((Sum.of("A"), 6, 4), (N, Sum.of("C"), 24), (1, 1, 24)),
        ((N, 6, 2), (N6, 2), (6, 1)),
        ((N, 6, 2), (Sum.of("M"), 3), (4, 3)),
    ],
)
def test_a_reshape_of_symbolic_sizes_moves_labels(
    shape: tuple[int | Sum, ...], target: tuple[int | Sum, ...], expected: tuple[int, ...]
) -> None:
    found = reshaped((along_axis(IDS, 1, 3),), shape, target)
    assert found is not None
    assert found[0].shape == expected


@given(
    st.lists(st.integers(2, 4), min_size=1, max_size=3),
    st.integers(1, 4),
    st.data(),
)
def test_labels_of_a_period_are_those_of_all_elements(
    inner: list[int], rounds: int, data: st.DataObject
) -> None:
    """A symbol in front of known sizes, joined with some of them, and split off again."""
    values = np.broadcast_to(np.arange(math.prod(inner)).reshape(inner), (rounds, *inner))
    shape = (N, *inner)
    at = data.draw(st.integers(0, len(inner)))
    joined = math.prod(inner[:at])
    target = (multiply(N, joined), *inner[at:])
    found = reshaped((values[:1],), shape, target)
    assert found is not None
    sizes = (rounds * joined, *inner[at:])
    times = [size // own for size, own in zip(sizes, found[0].shape, strict=True)]
    tiled = np.tile(found[0], times)
    assert np.array_equal(tiled, values.reshape(sizes))
    back = reshaped(found, target, shape)
    assert back is not None
    assert np.array_equal(back[0], values[:1])


def test_blocks_of_a_reshape_are_as_short_as_possible() -> None:
    blocks = matching_blocks((2, 6, 4), (2, 2, 3, 4))
    assert blocks == [
        (slice(0, 1), slice(0, 1)),
        (slice(1, 2), slice(1, 3)),
        (slice(2, 3), slice(3, 4)),
    ]
    assert matching_blocks((2, 3), (7,)) is None


@given(st.permutations([2, 3, 4]), st.sampled_from([(24,), (6, 4), (2, 12), (3, 8), (4, 3, 2)]))
def test_a_reshape_moves_names_as_numpy_moves_values(
    shape: list[int], target: tuple[int, ...]
) -> None:
    values = np.arange(24).reshape(shape)
    found = reshaped((values,), tuple(shape), target)
    assert found is not None
    assert np.array_equal(np.broadcast_to(found[0], target), values.reshape(target))


def test_facets_that_share_an_axis_are_found_together() -> None:
    a, b, c = along_axis(IDS, 0, 3), along_axis(IDS, 1, 3), np.ones((6, 1, 2), np.int64)
    found = sorted(len(members) for members in by_shared_axes([a, b, c]))
    assert found == [1, 2]
    assert [len(members) for members in by_shared_axes([a, b, np.ones((6, 6, 1), np.int64)])] == [3]

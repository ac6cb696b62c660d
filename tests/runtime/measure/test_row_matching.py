from __future__ import annotations

from itertools import combinations

import numpy as np

from onnxslim.runtime.measure.row_matching import best_places, comparable


def test_rows_are_matched_in_order() -> None:
    rows = np.arange(12.0).reshape(6, 2)
    left, right = comparable(rows, np.delete(rows, 2, axis=0))
    np.testing.assert_array_equal(left, right)
    left, right = comparable(np.delete(rows, 5, axis=0).T, rows.T)
    np.testing.assert_array_equal(left, right)


def test_the_matching_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for few, many in ((1, 1), (1, 5), (3, 6), (4, 4), (5, 8)):
        a, b = rng.standard_normal((few, 3)), rng.standard_normal((many, 3))
        costs = [((a - b[list(p)]) ** 2).sum() for p in combinations(range(many), few)]
        places = best_places(a, b)
        assert (np.diff(places) > 0).all()
        assert np.isclose(((a - b[places]) ** 2).sum(), min(costs))


def test_single_numbers_are_compared_as_far_as_both_go() -> None:
    left, right = comparable(np.arange(5.0), np.arange(7.0)[::-1])
    np.testing.assert_array_equal(left, np.arange(5.0))
    np.testing.assert_array_equal(right, [6, 5, 4, 3, 2])
    left, right = comparable(np.zeros((3, 4)), np.ones((4, 3)))
    assert left.shape == right.shape == (3, 3)


def test_nothing_found_is_no_agreement() -> None:
    left, right = comparable(np.ones((3, 4)), np.ones((0, 4)))
    assert left.shape == right.shape == (3, 4)
    assert (right == 0).all()


def test_words_are_compared_as_far_as_both_go() -> None:
    words = np.array([["a", "b"], ["c", "d"]], object)
    left, right = comparable(words, words[:1])
    assert left.tolist() == right.tolist() == [["a", "b"]]

"""How far outputs are from each other: divergence, agreement, SQNR."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim.records import OutputKind
from onnxslim.runtime.measure.output_divergence import DivergenceMeter, combined_distance
from onnxslim.services.calibration import Distance

RNG = np.random.default_rng(3)


def divergence_of(
    *pairs: tuple[np.ndarray, np.ndarray], kind: OutputKind = OutputKind.CLASSES
) -> DivergenceMeter:
    meter = DivergenceMeter(kind)
    for reference, found in pairs:
        meter.update(reference, found)
    return meter


def softmax(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def kullback_leibler(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum(axis=-1).mean())


def test_of_scores_the_divergence_is_that_of_the_two_distributions() -> None:
    ref, new = RNG.standard_normal((50, 7)), RNG.standard_normal((50, 7))
    meter = divergence_of((ref, new))
    assert meter.divergence == pytest.approx(kullback_leibler(softmax(ref), softmax(new)))
    assert meter.agreement == (ref.argmax(axis=1) == new.argmax(axis=1)).mean()


def test_of_probabilities_it_is_the_same_without_another_softmax() -> None:
    ref, new = softmax(RNG.standard_normal((50, 7))), softmax(RNG.standard_normal((50, 7)))
    meter = divergence_of((ref, new))
    assert meter.divergence == pytest.approx(kullback_leibler(ref, new))


def test_probabilities_may_have_more_axes_than_a_matrix() -> None:
    ref, new = softmax(RNG.standard_normal((4, 5, 7))), softmax(RNG.standard_normal((4, 5, 7)))
    meter = divergence_of((ref, new))
    assert meter.divergence == pytest.approx(kullback_leibler(ref, new))
    assert meter.agreement == (ref.argmax(axis=-1) == new.argmax(axis=-1)).mean()


@pytest.mark.parametrize("shape", [(6,), (6, 1), (3, 4), (2, 3, 4, 4)])
def test_of_other_values_it_is_the_relative_squared_error(shape: tuple[int, ...]) -> None:
    ref, new = RNG.standard_normal(shape), RNG.standard_normal(shape)
    meter = divergence_of((ref, new), kind=OutputKind.VALUES)
    expected = np.square(ref - new).sum() / np.square(ref).sum()
    assert meter.divergence == pytest.approx(expected)
    assert meter.agreement is None
    assert meter.sqnr_db == pytest.approx(-10 * math.log10(expected))


@given(st.integers(1, 20), st.integers(0, 50))
def test_batches_do_not_matter(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ref, new = rng.standard_normal((20, 4)), rng.standard_normal((20, 4))
    whole = divergence_of((ref, new))
    parts = divergence_of(*((ref[i : i + size], new[i : i + size]) for i in range(0, 20, size)))
    assert parts.divergence == pytest.approx(whole.divergence)
    assert parts.agreement == whole.agreement
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db)


def test_small_independent_changes_add_up() -> None:
    ref = RNG.standard_normal((4000, 10))
    a, b = 0.01 * RNG.standard_normal((2, 4000, 10))
    alone = divergence_of((ref, ref + a)).divergence + divergence_of((ref, ref + b)).divergence
    assert divergence_of((ref, ref + a + b)).divergence == pytest.approx(alone, rel=0.1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int32, np.uint8, bool])
def test_equal_outputs_are_no_way_apart(dtype: type) -> None:
    values = RNG.integers(0, 2, (5, 4)).astype(dtype)
    meter = divergence_of((values, values.copy()))
    assert meter.divergence == 0
    assert meter.sqnr_db == math.inf


def test_bfloat16_is_a_number_too() -> None:
    ref = RNG.standard_normal((5, 4)).astype(ml_dtypes.bfloat16)
    assert divergence_of((ref, (2 * ref).astype(ml_dtypes.bfloat16))).divergence > 0


def test_text_is_not_compared() -> None:
    meter = divergence_of((np.array(["a"]), np.array(["b"])))
    assert (meter.divergence, meter.agreement, meter.sqnr_db) == (0, None, math.inf)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_infinitely_far(bad: float) -> None:
    ref = RNG.standard_normal((5, 4))
    new = ref.copy()
    new[2, 1] = bad
    meter = divergence_of((ref, ref), (ref, new), (ref, ref))
    assert meter.divergence == math.inf
    assert meter.sqnr_db == -math.inf


def test_another_shape_is_infinitely_far() -> None:
    meter = divergence_of((np.ones((5, 4)), np.ones((5, 3))))
    assert meter.divergence == math.inf
    assert meter.sqnr_db == -math.inf


def test_scores_masked_by_minus_infinity_count_where_they_are_not() -> None:
    ref, new = RNG.standard_normal((2, 50, 7))
    ref[:, 3] = new[:, 3] = -np.inf
    meter = divergence_of((ref, new))
    kept = [0, 1, 2, 4, 5, 6]
    expected = kullback_leibler(softmax(ref[:, kept]), softmax(new[:, kept]))
    assert meter.divergence == pytest.approx(expected)
    assert math.isfinite(meter.sqnr_db)
    everything = np.full((2, 3), -np.inf)
    assert divergence_of((everything, everything.copy())).divergence == 0


def test_a_probability_of_zero_costs_a_finite_amount() -> None:
    ref, new = np.array([[0.5, 0.5, 0]]), np.array([[1.0, 0, 0]])
    assert 1 < divergence_of((ref, new)).divergence < 30


def test_a_model_is_as_far_as_its_outputs_on_average_and_its_worst_one() -> None:
    scores = divergence_of((np.array([[1.0, 2]]), np.array([[2.0, 1]])))
    values = divergence_of((np.array([2.0]), np.array([2.2])))
    found = combined_distance({"s": scores, "v": values})
    assert found.divergence == pytest.approx((scores.divergence + values.divergence) / 2)
    assert found.agreement == 0
    assert found.sqnr_db == min(scores.sqnr_db, values.sqnr_db)
    assert found.outputs == {"s": scores.figures, "v": values.figures}
    alone = combined_distance({"v": values})
    assert alone == Distance(values.divergence, None, None, values.sqnr_db, {"v": values.figures})


def test_integers_are_equal_or_not() -> None:
    ids = divergence_of((np.array([[1, 900]]), np.array([[1, 7]])))
    assert (ids.divergence, ids.agreement, ids.expected_agreement) == (0.5, 0.5, None)
    values = divergence_of((np.array([2.0]), np.array([2.2])))
    assert combined_distance({"i": ids, "v": values}).sqnr_db == values.sqnr_db


def test_embeddings_have_cosines_beside_their_squared_error() -> None:
    ref, new = RNG.standard_normal((2, 5, 4))
    meter = divergence_of((ref, new), kind=OutputKind.EMBEDDING)
    assert meter.divergence == pytest.approx(np.square(ref - new).sum() / np.square(ref).sum())
    lengths = np.linalg.norm(ref, axis=1) * np.linalg.norm(new, axis=1)
    cosines = (ref * new).sum(axis=1) / lengths
    assert meter.figures.mean_cosine == pytest.approx(cosines.mean())
    assert meter.figures.least_cosine == pytest.approx(cosines.min())
    assert meter.agreement is None


# ------------------------------------------------------------------- what agreement to expect


def test_agreement_is_expected_from_margins_and_how_far_they_move() -> None:
    """Close to what counting gives where there is much to count."""
    ref = 2 * RNG.standard_normal((20000, 10))
    for size in (0.02, 0.1, 0.3):
        meter = divergence_of((ref, ref + size * RNG.standard_normal(ref.shape)))
        assert meter.expected_agreement is not None
        assert meter.agreement is not None
        missed, expected = 1 - meter.agreement, 1 - meter.expected_agreement
        assert 0.4 * missed < expected < 2.5 * missed


def test_equal_scores_are_expected_to_agree() -> None:
    ref = RNG.standard_normal((5, 4))
    assert divergence_of((ref, ref.copy())).expected_agreement == 1
    column = ref[:, :1]
    assert divergence_of((column, column)).expected_agreement is None


def test_a_class_that_stands_alone_has_no_margin() -> None:
    ref = np.full((3, 4), -np.inf)
    ref[:, 2] = 1
    ref[0, 1] = 0.5
    meter = divergence_of((ref, ref + 0.1))
    assert meter.expected_agreement == 1
    assert meter.divergence == pytest.approx(0, abs=1e-12)

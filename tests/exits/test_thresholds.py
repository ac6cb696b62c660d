"""How sure a head must be, and that a promise made of old samples holds on new ones."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from onnxslim.exits.promises import (
    AccuracyPromise,
    AgreementPromise,
    strongest_agreement,
    unconfirmable,
)
from onnxslim.exits.thresholds import (
    NEVER,
    HeadTrial,
    Risk,
    drop_bound,
    fitted_risk,
    loosest,
    min_samples,
    outcome,
    threshold_path,
    upper_bound,
)


def trial(count: int, seed: int, errs: float = 0.5) -> HeadTrial:
    """Confidences, and agreement that is the more likely the surer a head is."""
    rng = np.random.default_rng(seed)
    sure = rng.beta(3, 1, count)
    return HeadTrial(sure, rng.random(count) > errs * (1 - sure))


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    for count, samples in ((0, 100), (3, 100), (20, 3000)):
        bound = upper_bound(count, samples)
        assert stats.binom.cdf(count, samples, bound) == pytest.approx(0.01)
    assert upper_bound(5, 5) == 1.0


@pytest.mark.parametrize("target", [0.9, 0.99, 0.995])
def test_the_fewest_samples_are_just_enough(target: float) -> None:
    least = min_samples(target)
    assert 1 - upper_bound(0, least) >= target
    assert 1 - upper_bound(0, least - 1) < target


def test_samples_leave_at_the_first_exit_that_is_sure() -> None:
    first = HeadTrial(np.array([0.9, 0.5, 0.2, 0.1]), np.array([True, True, False, True]))
    second = HeadTrial(np.array([0.1, 0.9, 0.9, 0.3]), np.array([False, True, False, True]))
    found = outcome((0.6, 0.8), [first, second])
    assert found.shares == (0.25, 0.5, 0.25)
    assert found.agreements == (1.0, 0.5)
    assert found.agreement == 0.75
    assert found.latency((0.2, 0.5, 1.1)) == pytest.approx(0.05 + 0.25 + 0.275)
    assert found.median_latency((0.2, 0.5, 1.1)) == 0.5


def test_nobody_leaves_at_a_threshold_that_cannot_be_reached() -> None:
    sure = HeadTrial(np.ones(3), np.ones(3, bool))
    assert outcome((NEVER,), [sure]).shares == (0.0, 1.0)
    assert outcome((1.0,), [sure]).shares == (1.0, 0.0)


def test_the_risk_is_that_by_which_agreement_was_drawn() -> None:
    rng = np.random.default_rng(3)
    z = rng.normal(1.5, 2, 40000)
    risk = 1 / (1 + np.exp(-(0.5 - 1.5 * z)))
    found = fitted_risk(1 / (1 + np.exp(-z)), rng.random(40000) <= risk)
    assert found.intercept == pytest.approx(0.5, abs=0.1)
    assert found.slope == pytest.approx(-1.5, abs=0.1)


def test_a_head_that_never_errs_has_a_risk_all_the_same() -> None:
    found = fitted_risk(np.linspace(0.5, 0.999, 200), np.zeros(200, bool))
    assert found.slope < 0
    assert 0 <= found.threshold(0.05) < 1


def test_confidence_that_says_nothing_never_turns_around() -> None:
    rng = np.random.default_rng(0)
    sure = rng.random(500)
    assert fitted_risk(sure, sure >= 0.5).slope < 0


def test_thresholds_fall_as_the_price_rises_and_exits_that_save_more_are_left_sooner() -> None:
    risk = Risk(0.0, -1.0)
    way = list(threshold_path([risk, risk], [0.8, 0.2]))
    assert way[0] == (NEVER, NEVER)
    assert way[-1] == (0.0, 0.0)
    for before, after in pairwise(way):
        assert all(b >= a for b, a in zip(before, after, strict=True))
    assert all(first <= second for first, second in way)


def test_an_exit_that_saves_nothing_is_never_taken() -> None:
    assert {found[0] for found in threshold_path([Risk(0.0, -1.0)], [0.0])} == {NEVER}


def way_of(seen: HeadTrial) -> list[tuple[float, ...]]:
    return list(threshold_path([fitted_risk(seen.confidence, ~seen.agrees)], [1.0]))


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.95, 0.98])
def test_a_confirmed_target_holds_on_new_samples(target: float) -> None:
    """One promise in a hundred may be broken; more than four of a hundred would be strange."""
    broken = 0
    truth = trial(200_000, 12345)
    for seed in range(100):
        way = way_of(trial(300, 2 * seed))
        found = loosest(way, [trial(1500, 2 * seed + 1)], AgreementPromise(target).is_kept)
        if found is not None:
            broken += outcome(found, [truth]).agreement < target
    assert broken <= 4


@pytest.mark.parametrize(
    ("lost", "won", "samples"), [(0, 0, 500), (5, 0, 500), (10, 10, 800), (0, 9, 300), (0, 50, 50)]
)
def test_a_bound_of_a_drop_lies_above_the_drop(lost: int, won: int, samples: int) -> None:
    bound = drop_bound(lost, won, samples)
    assert (lost - won) / samples < bound < 1
    assert drop_bound(lost, won, 4 * samples) < bound or won > lost


@pytest.mark.parametrize(
    ("samples", "losing", "winning"),
    [(500, 0.01, 0.005), (500, 0.003, 0.0), (2000, 0.01, 0.006), (300, 0.05, 0.045)],
)
def test_the_bound_of_a_drop_holds_as_often_as_it_says(
    samples: int, losing: float, winning: float
) -> None:
    """Missed once in a hundred; of a thousand, more than 25 misses would be strange."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(samples, [losing, winning, 1 - losing - winning], size=1000)
    missed = sum(
        drop_bound(int(lost), int(won), samples) < losing - winning for lost, won, _ in drawn
    )
    assert missed <= 25


@pytest.mark.parametrize("points", [0.25, 1.0])
def test_the_fewest_labelled_samples_are_just_enough(points: float) -> None:
    least = AccuracyPromise(points).samples
    assert least is not None
    assert drop_bound(0, 0, least) <= points / 100 < drop_bound(0, 0, least - 2)


def test_a_promise_of_accuracy_lets_more_samples_leave_where_the_network_errs() -> None:
    """Head and network err apart from each other, so that they disagree more than one is worse."""
    rng = np.random.default_rng(3)
    sure = rng.beta(3, 1, 6000)
    is_right, own_right = rng.random((2, 6000)) > 0.5 * (1 - sure)
    gain = own_right.astype(np.int8) - is_right.astype(np.int8)
    seen = HeadTrial(sure, is_right == own_right, gain)
    way = way_of(seen)
    by_agreement = loosest(way, [seen], AgreementPromise(0.99).is_kept) or (NEVER,)
    by_accuracy = loosest(way, [seen], AccuracyPromise(1.0).is_kept) or (NEVER,)
    assert outcome(by_accuracy, [seen]).shares[0] > 2 * outcome(by_agreement, [seen]).shares[0] > 0
    assert outcome(by_accuracy, [seen]).is_labelled


def test_confirming_is_stricter_than_counting() -> None:
    seen = trial(1000, 1)
    way = way_of(seen)
    counted = loosest(way, [seen], lambda found: found.agreement >= 0.97)
    sure = loosest(way, [seen], AgreementPromise(0.97).is_kept)
    assert counted is not None
    assert sure is not None
    assert outcome(sure, [seen]).shares[0] < outcome(counted, [seen]).shares[0]
    assert outcome(sure, [seen]).promised >= 0.97


def test_what_too_few_samples_cannot_show_is_not_confirmed() -> None:
    seen = HeadTrial(np.linspace(0.5, 1, 50), np.ones(50, bool))
    assert loosest(way_of(seen), [seen], AgreementPromise(0.995).is_kept) is None


@pytest.mark.parametrize("samples", [1, 50, 500, 5000])
def test_the_strongest_promise_is_one_that_samples_can_confirm(samples: int) -> None:
    promise = strongest_agreement(samples, 0.995)
    assert unconfirmable(promise, samples) is None
    assert promise.target == 0.995 or unconfirmable(
        AgreementPromise(promise.target + 2e-4), samples
    )

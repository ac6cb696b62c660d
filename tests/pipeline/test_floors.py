"""Which floor a candidate misses, and how much of a floor it uses up."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from onnxslim.errors import UsageError
from onnxslim.pipeline.floors import (
    DEFAULT,
    Floors,
    JudgedBy,
    check_measured,
    default_floors,
    held_by_nothing,
    missed,
    missed_drop,
    share_used,
)
from onnxslim.records import OutputKind
from onnxslim.services.calibration import OutputDistance

ALL = Floors(
    max_drop=0.5,
    min_agreement=0.9,
    min_sqnr_db=20,
    min_cosine=0.99,
    min_row_cosine=0.95,
    max_kl=0.1,
    max_row_kl=2,
)
CLASSES = OutputDistance(OutputKind.CLASSES, 20.0, agreement=0.9, expected_agreement=0.9)
ROWS = OutputDistance(OutputKind.EMBEDDING, 20.0, mean_cosine=0.99, least_cosine=0.95)
STATES = replace(ROWS, kind=OutputKind.HIDDEN_STATES)
TOKENS = OutputDistance(
    OutputKind.TOKEN_LOGITS, 20.0, 0.9, expected_agreement=0.9, mean_kl=0.1, largest_kl=2.0
)
VALUES = OutputDistance(OutputKind.VALUES, 20.0)
IDS = OutputDistance(OutputKind.DISCRETE, -10.0, agreement=0.9)


def test_a_candidate_at_the_floors_holds_them() -> None:
    outputs = {"c": CLASSES, "e": ROWS, "h": STATES, "t": TOKENS, "v": VALUES, "i": IDS}
    assert missed(ALL, outputs) is None
    assert missed_drop(ALL, 0.5) is None


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (replace(VALUES, sqnr_db=19.0), "`y` would have an SQNR of 19.0 dB; --min-sqnr is 20"),
        (replace(CLASSES, sqnr_db=19.0), "`y` would have an SQNR of 19.0 dB"),
        (
            replace(CLASSES, agreement=0.89),
            "top-1 answers of output `y` would agree for 0.8900 of the samples; --min-agreement "
            "is 0.9",
        ),
        (replace(IDS, agreement=0.89), "values of output `y` would agree for 0.8900"),
        (replace(ROWS, mean_cosine=0.98), "a mean cosine of 0.9800; --min-cosine is 0.99"),
        (replace(ROWS, least_cosine=0.9), "a row with a cosine of 0.9000; --min-row-cosine is"),
        (replace(STATES, mean_cosine=0.98), "a mean cosine of 0.9800; --min-cosine is 0.99"),
        (
            replace(TOKENS, agreement=0.89),
            "top-1 tokens of output `y` would agree for 0.8900 of the positions; --min-agreement",
        ),
        (
            replace(TOKENS, mean_kl=0.2),
            "`y` would have a mean divergence of 0.2000 nats (Kullback-Leibler); --max-kl is 0.1",
        ),
        (replace(TOKENS, largest_kl=3.0), "a position with a divergence of 3.0000 nats"),
    ],
)
def test_the_sentence_names_the_floor_and_both_numbers(found: OutputDistance, said: str) -> None:
    assert said in str(missed(ALL, {"other": VALUES, "y": found}))


def test_a_drop_is_named_with_both_numbers() -> None:
    said = "accuracy would drop by 0.51 points; --max-drop is 0.5"
    assert missed_drop(ALL, 0.51) == said
    assert missed_drop(ALL, None) is None


def test_what_was_not_measured_misses_no_floor() -> None:
    assert missed(ALL, {}) is None
    assert missed(Floors(), {"y": replace(CLASSES, sqnr_db=-10, agreement=0)}) is None


def test_the_share_used_is_that_of_the_tightest_floor() -> None:
    found = replace(CLASSES, sqnr_db=30, agreement=0.95, expected_agreement=0.92)
    used = share_used(ALL, [found], drop=0.1)
    assert used == pytest.approx(0.8)  # 0.08 of the 0.1 that --min-agreement allows
    assert share_used(Floors(min_sqnr_db=20), [replace(VALUES, sqnr_db=10)]) == pytest.approx(10)
    turned = replace(ROWS, sqnr_db=90, mean_cosine=0.998, least_cosine=0.96)
    assert share_used(ALL, [turned]) == pytest.approx(0.8)  # 0.04 of 0.05
    near = replace(TOKENS, sqnr_db=90, agreement=1.0, expected_agreement=1.0, largest_kl=0.2)
    assert share_used(ALL, [replace(near, mean_kl=0.07)]) == pytest.approx(0.7)
    assert share_used(ALL, [replace(near, mean_kl=0.01)]) == pytest.approx(0.1)


def test_no_floor_on_what_was_measured_has_no_share() -> None:
    assert share_used(Floors(), [VALUES]) is None
    assert share_used(Floors(max_drop=1), [VALUES]) is None
    assert share_used(Floors(min_agreement=0.9), [VALUES]) is None


def test_a_floor_that_allows_nothing_is_used_up_at_once() -> None:
    assert share_used(Floors(max_drop=0), [VALUES], drop=0.1) == math.inf
    assert share_used(Floors(max_drop=0), [VALUES], drop=-0.1) == 0


# ------------------------------------------------------------------- the default floors


def test_by_default_each_kind_is_held_to_its_own_figure() -> None:
    floors = default_floors(JudgedBy(samples=True))
    assert floors == DEFAULT
    far = replace(CLASSES, sqnr_db=-3.0, agreement=0.99)  # scores moved, answers did not
    assert missed(floors, {"y": far}) is None
    assert "agree" in str(missed(floors, {"y": replace(far, agreement=0.5)}))
    assert missed(floors, {"y": replace(ROWS, sqnr_db=-3.0)}) is None
    assert "dB; the default floor is" in str(missed(floors, {"y": replace(VALUES, sqnr_db=3.0)}))
    near = replace(TOKENS, sqnr_db=-3.0, agreement=0.6, mean_kl=0.05)  # many tokens are as good
    assert missed(floors, {"y": near}) is None
    assert share_used(floors, [replace(near, expected_agreement=0.1)]) == pytest.approx(1)
    assert "nats" in str(missed(floors, {"y": replace(near, mean_kl=0.5)}))
    assert "cosine" in str(missed(floors, {"y": replace(STATES, mean_cosine=0.5)}))


def test_on_made_up_inputs_scores_are_held_to_db() -> None:
    floors = default_floors(JudgedBy())
    assert "SQNR" in str(missed(floors, {"y": replace(CLASSES, sqnr_db=1.0, agreement=1.0)}))


def test_labels_take_the_place_of_agreement_and_a_metric_that_of_everything() -> None:
    labels = default_floors(JudgedBy(samples=True, labels=True))
    assert missed(labels, {"y": replace(CLASSES, agreement=0.1)}) is None
    assert missed(labels, {"y": replace(VALUES, sqnr_db=1.0)}) is not None
    metric = default_floors(JudgedBy(metric=True))
    assert missed(metric, {"y": replace(VALUES, sqnr_db=1.0)}) is None
    for floors in (labels, metric):
        assert "the default floor is" in str(missed_drop(floors, 50.0))


# ------------------------------------------------------------------- floors that say nothing


@pytest.mark.parametrize(
    ("floors", "kind", "option"),
    [
        (Floors(min_agreement=0.9), OutputKind.VALUES, "--min-agreement"),
        (Floors(min_cosine=0.9), OutputKind.CLASSES, "--min-cosine"),
        (Floors(min_row_cosine=0.9), OutputKind.VALUES, "--min-row-cosine"),
        (Floors(max_kl=1), OutputKind.CLASSES, "--max-kl"),
        (Floors(max_row_kl=1), OutputKind.EMBEDDING, "--max-row-kl"),
        (Floors(min_sqnr_db=9), OutputKind.DISCRETE, "--min-sqnr"),
    ],
)
def test_a_floor_for_a_kind_that_no_output_is(
    floors: Floors, kind: OutputKind, option: str
) -> None:
    why = str(held_by_nothing(floors, {"y": kind}))
    assert why.startswith(f"{option} is a floor for outputs that hold")
    assert f"`y` ({kind})" in why
    assert held_by_nothing(floors, {}) is None


def test_a_floor_that_one_output_can_miss_says_something() -> None:
    kinds = {"a": OutputKind.VALUES, "b": OutputKind.CLASSES}
    assert held_by_nothing(Floors(min_agreement=0.9, min_sqnr_db=9), kinds) is None
    assert held_by_nothing(Floors(min_agreement=0.9), {"i": OutputKind.DISCRETE}) is None


def test_floors_that_a_run_does_not_measure_are_refused() -> None:
    with pytest.raises(UsageError, match="give --eval"):
        check_measured(Floors(max_drop=1), has_evaluation=False, verify=True)
    for floors in (Floors(min_cosine=0.9), Floors(min_agreement=0.9), Floors(min_sqnr_db=9)):
        with pytest.raises(UsageError, match="--no-verify"):
            check_measured(floors, has_evaluation=False, verify=False)
    check_measured(DEFAULT, has_evaluation=False, verify=False)

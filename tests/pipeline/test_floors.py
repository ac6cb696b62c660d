"""Which floor a candidate misses, and how much of a floor it uses up."""

from __future__ import annotations

import math

import pytest

from onnxslim.pipeline.floors import Floors, missed, share_used

ALL = Floors(max_drop=0.5, min_agreement=0.9, min_sqnr_db=20)


def test_a_candidate_at_the_floors_holds_them() -> None:
    assert missed(ALL, sqnr_db=20, agreement=0.9, drop=0.5) is None


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"drop": 0.51}, "accuracy would drop by 0.51 points; --max-drop is 0.5"),
        ({"sqnr_db": 19.0}, "an output would have an SQNR of 19.0 dB; --min-sqnr is 20"),
        ({"agreement": 0.89}, "would agree for 0.8900 of the samples; --min-agreement is 0.9"),
        ({"sqnr_db": 1.0, "output": "y"}, "output `y` would have"),
    ],
)
def test_the_sentence_names_the_floor_and_both_numbers(
    figures: dict[str, float], said: str
) -> None:
    assert said in str(missed(ALL, **figures))  # type: ignore[arg-type]


def test_what_was_not_measured_misses_no_floor() -> None:
    assert missed(ALL) is None
    assert missed(Floors(), sqnr_db=-10, agreement=0, drop=100) is None


def test_the_share_used_is_that_of_the_tightest_floor() -> None:
    used = share_used(ALL, sqnr_db=30, agreements=(0.95, None, 0.92), drop=0.1)
    assert used == pytest.approx(0.8)  # 0.08 of the 0.1 that --min-agreement allows
    assert share_used(Floors(min_sqnr_db=20), sqnr_db=10) == pytest.approx(10)


def test_no_floor_on_what_was_measured_has_no_share() -> None:
    assert share_used(Floors(), sqnr_db=10) is None
    assert share_used(Floors(max_drop=1), sqnr_db=10) is None


def test_a_floor_that_allows_nothing_is_used_up_at_once() -> None:
    assert share_used(Floors(max_drop=0), sqnr_db=10, drop=0.1) == math.inf
    assert share_used(Floors(max_drop=0), sqnr_db=10, drop=-0.1) == 0

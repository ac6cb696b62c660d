"""The choice of a variant for each layer is the best there is."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.tuning.front import non_dominated
from onnxslim.tuning.program import least_cost_within


@dataclass(frozen=True)
class Choice:
    cost: float
    error: float


def menus_of(numbers: list[list[tuple[int, int]]]) -> dict[str, list[Choice]]:
    return {
        f"layer {index}": [
            Choice(0.0, 0.0),
            *(Choice(-float(saved), error / 7) for saved, error in variants),
        ]
        for index, variants in enumerate(numbers)
    }


VARIANTS = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=4)


@settings(max_examples=40, deadline=None)
@given(st.lists(VARIANTS, min_size=1, max_size=4), st.floats(0, 20))
def test_no_other_choice_costs_less_within_the_limit(
    numbers: list[list[tuple[int, int]]], limit: float
) -> None:
    menus = menus_of(numbers)
    chosen = least_cost_within(menus, limit)
    assert set(chosen) == set(menus)
    assert sum(one.error for one in chosen.values()) <= limit + 1e-6
    best = min(
        sum(one.cost for one in every)
        for every in product(*menus.values())
        if sum(one.error for one in every) <= limit
    )
    assert sum(one.cost for one in chosen.values()) == pytest.approx(best)


def test_an_offer_above_the_hull_is_found() -> None:
    """No price selects it, so that a search over prices alone would miss it."""
    menus = {"a": [Choice(0.0, 0.0), Choice(-5.0, 3.0), Choice(-12.0, 6.0)]}
    assert least_cost_within(menus, 4.0)["a"].cost == -5.0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    named = [((index, point), tuple(map(float, point))) for index, point in enumerate(points)]
    front = [point for _, point in non_dominated(named)]
    assert len(set(front)) == len(front)
    for point in points:
        assert any(a <= point[0] and b <= point[1] for a, b in front)
    for a, b in front:
        assert not any((c <= a and d <= b and (c, d) != (a, b)) for c, d in points)

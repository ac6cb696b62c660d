"""`least_error` and `least_cost`: budgets are kept, and no choice of a price does better."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from onnxslim.lossy.spend import at_price, least_cost, least_error, total_cost, total_error


@dataclass(frozen=True)
class Offer:
    cost: float
    error: float


def menus(seed: int, layers: int = 4, offers: int = 5) -> dict[str, list[Offer]]:
    """Layers with random offers, the first of which costs most and errs least."""
    rng = np.random.default_rng(seed)
    return {
        f"layer{number}": [
            Offer(20.0, 0.0),
            *(Offer(float(cost), float(error)) for cost, error in rng.random((offers, 2)) * 10),
        ]
        for number in range(layers)
    }


@pytest.mark.parametrize("seed", range(5))
def test_least_error_keeps_the_budget_and_beats_every_price(seed: int) -> None:
    listed = menus(seed)
    for budget in (30.0, 45.0, 60.0, 80.0):
        found = least_error(listed, budget)
        assert total_cost(found) <= budget
        prices = (at_price(listed, float(price)) for price in np.geomspace(1e-6, 1e6, 200))
        others = [total_error(choice) for choice in prices if total_cost(choice) <= budget]
        assert total_error(found) <= min(others)


@pytest.mark.parametrize("seed", range(5))
def test_least_error_is_near_the_best_of_all_choices(seed: int) -> None:
    listed = menus(seed, layers=3)
    every = [dict(zip(listed, choice, strict=True)) for choice in product(*listed.values())]
    worst = max(offer.error for offers in listed.values() for offer in offers)
    for budget in (20.0, 35.0, 50.0):
        best = min(total_error(choice) for choice in every if total_cost(choice) <= budget)
        # a relaxed choice differs from the best one in the offer of one layer at most
        assert total_error(least_error(listed, budget)) <= best + worst


def test_a_budget_out_of_reach_gives_the_offers_of_least_cost() -> None:
    listed = menus(1)
    found = least_error(listed, 0.0)
    assert total_cost(found) == sum(min(o.cost for o in offers) for offers in listed.values())


def test_what_a_price_leaves_over_is_spent() -> None:
    above_the_hull = Offer(6.0, 0.9)
    found = least_error({"a": [Offer(10.0, 0.0), above_the_hull, Offer(0.0, 1.0)]}, 7.0)
    assert found == {"a": above_the_hull}


@pytest.mark.parametrize("seed", range(5))
def test_least_cost_keeps_the_allowed_error_and_is_the_cheapest_of_all_prices(seed: int) -> None:
    listed = menus(seed)
    for allowed in (0.0, 2.0, 8.0):
        found = least_cost(listed, allowed)
        assert total_error(found) <= allowed
        prices = (at_price(listed, float(price)) for price in np.geomspace(1e-6, 1e6, 200))
        others = [total_cost(choice) for choice in prices if total_error(choice) <= allowed]
        assert total_cost(found) <= min(others)

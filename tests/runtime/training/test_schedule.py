"""The learning rate rises and falls once; the range test finds one that training bears."""

from __future__ import annotations

import pytest

from onnxslim.runtime.training import schedule
from onnxslim.runtime.training.schedule import best_rate, one_cycle


def test_a_cycle_rises_to_the_largest_rate_and_ends_near_zero() -> None:
    shares = [one_cycle(step / 100) for step in range(101)]
    top = shares.index(max(shares))
    assert max(shares) == pytest.approx(1)
    assert shares[:top] == sorted(shares[:top])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert shares[0] == pytest.approx(0.1)
    assert shares[-1] < 0.01
    assert one_cycle(1.5) == one_cycle(1)


@pytest.mark.parametrize("best", [1e-4, 1e-3, 1e-2])
def test_the_rate_is_below_the_one_at_which_the_loss_was_least(best: float) -> None:
    """A loss that falls up to `best`, and grows beyond it."""
    total = 1.0

    def loss_at(rate: float) -> float:
        nonlocal total
        seen = total
        total *= 1 - min(rate / best, 1) * 0.5 if rate <= best else 2.0
        return seen

    found = best_rate(loss_at, schedule.tested_rates())
    assert best / 100 < found < best


def test_a_loss_that_is_no_number_ends_the_test() -> None:
    losses = iter([1.0, 0.9, float("nan")])
    rates = schedule.tested_rates()
    assert best_rate(lambda rate: next(losses), rates) < rates[2]

"""The learning rate rises and falls once; the range test finds one that training bears."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.runtime.training import schedule
from onnxslim.runtime.training.schedule import best_rate, one_cycle
from onnxslim.services.training import Optimizer


def test_a_cycle_rises_to_the_largest_rate_and_ends_near_zero() -> None:
    shares = [one_cycle(step / 100) for step in range(101)]
    top = shares.index(max(shares))
    assert max(shares) == pytest.approx(1)
    assert shares[:top] == sorted(shares[:top])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert shares[0] == pytest.approx(0.1)
    assert shares[-1] < 0.01
    assert one_cycle(1.5) == one_cycle(1)


@pytest.mark.parametrize("most", [1e-4, 1e-3, 1e-2])
def test_the_rate_is_a_part_of_the_one_that_doubles_losses(most: float) -> None:
    """Losses that fall below the rate `most`, and grow above it, with noise from batch to batch."""
    rng = np.random.default_rng(0)
    rates = schedule.tested_rates(Optimizer.ADAM)
    found = best_rate(lambda rate: max(0.9, rate / most) * rng.uniform(0.7, 1.4), rates)
    assert most / 10 <= found <= most


def test_losses_that_never_grow_give_the_largest_rate() -> None:
    rates = schedule.tested_rates(Optimizer.ADAM)
    assert best_rate(lambda rate: 0.9, rates) == pytest.approx(rates[-1] / 10)


def test_a_loss_that_is_no_number_ends_the_test() -> None:
    losses = iter([1.0, 0.9, float("nan")])
    rates = schedule.tested_rates(Optimizer.ADAM)
    assert best_rate(lambda rate: next(losses), rates) == pytest.approx(rates[2] / 10)

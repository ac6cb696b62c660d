"""The learning rate: one cycle (Smith, Topin 2018, arXiv:1708.07120), and a test of its range.

The range test (Smith 2017, arXiv:1506.01186, section 3.3) takes some steps with a rate that grows
by a constant factor. The rate at which the loss was least is about the largest that training
bears; a part of it is taken. Losses differ from batch to batch by more than a step changes them, so
each is taken relative to the loss of the same batch before the test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import cos, pi
from typing import Final

_WARM: Final = 0.2  # share of the steps in which the rate grows
_FIRST: Final = 0.1  # of the largest rate
_LAST: Final = 0.001
LEAST_RATE: Final = 1e-5
MOST_RATE: Final = 1e-1
TEST_STEPS: Final = 24
_SMOOTH: Final = 0.6
_DIVERGED: Final = 3.0
_SHARE: Final = 0.1


def one_cycle(done: float) -> float:
    """The rate as a share of the largest, when the share `done` of training is over."""
    done = min(max(done, 0.0), 1.0)
    if done < _WARM:
        return _FIRST + (1 - _FIRST) * (1 - cos(pi * done / _WARM)) / 2
    rest = (done - _WARM) / (1 - _WARM)
    return _LAST + (1 - _LAST) * (1 + cos(pi * rest)) / 2


def tested_rates() -> list[float]:
    """The rates of a range test."""
    factor = (MOST_RATE / LEAST_RATE) ** (1 / (TEST_STEPS - 1))
    return [LEAST_RATE * factor**number for number in range(TEST_STEPS)]


def best_rate(loss_at: Callable[[float], float], rates: Sequence[float]) -> float:
    """The largest rate to train with.

    Args:
        loss_at: takes a step with a rate, and gives the loss before it, relative to the loss of the
            same samples before the test.
        rates: ascending.
    """
    least, best, smooth = float("inf"), rates[0], None
    for rate in rates:
        loss = loss_at(rate)
        smooth = loss if smooth is None else _SMOOTH * smooth + (1 - _SMOOTH) * loss
        if smooth != smooth or smooth > _DIVERGED * least:  # NaN, or it leaves
            break
        if smooth < least:
            least, best = smooth, rate
    return best * _SHARE

"""The learning rate: one cycle (Smith, Topin 2018, arXiv:1708.07120), and a test of its range.

The range test (after Smith 2017, arXiv:1506.01186, section 3.3) takes some steps with a rate that
grows by a constant factor, until losses have about doubled. A tenth of that rate is taken. Losses
differ from batch to batch by more than a step changes them, so each is taken relative to the loss
of the same batch before the test, and logarithms are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import cos, isfinite, log, pi, sin
from typing import Final

from onnxslim.services.training import Optimizer

_WARM: Final = 0.2  # share of the steps in which the rate grows
_FIRST: Final = 0.1  # of the largest rate
_LAST: Final = 0.001
_LEAST: Final = 1e-6
_RATES: Final = {Optimizer.ADAM: (1e-5, 2e-2), Optimizer.SGD: (1e-4, 2.0)}
_TEST_STEPS: Final = 24
USUAL_RATES: Final = {Optimizer.ADAM: 1e-3, Optimizer.SGD: 0.05}
"""Rates for models without a loss that a test could let double."""
_SMOOTH: Final = 0.6
_DOUBLED: Final = log(2.0)
_SHARE: Final = 0.1


def one_cycle(done: float) -> float:
    """The rate as a share of the largest, when the share `done` of training is over."""
    done = min(max(done, 0.0), 1.0)
    if done < _WARM:
        return _FIRST + (1 - _FIRST) * (1 - cos(pi * done / _WARM)) / 2
    rest = (done - _WARM) / (1 - _WARM)
    return _LAST + (1 - _LAST) * (1 + cos(pi * rest)) / 2


def cycle_between(before: float, after: float) -> float:
    """The part of the whole cycle's rates that lies between two shares of training."""
    return _cycle_until(after) - _cycle_until(before)


def _cycle_until(done: float) -> float:
    """The integral of `one_cycle` from 0, as a share of all of it."""
    done = min(max(done, 0.0), 1.0)
    warm, rest = min(done, _WARM), max(done - _WARM, 0.0)
    whole = 1 - _WARM

    def rise(x: float) -> float:
        return _FIRST * x + (1 - _FIRST) * (x - _WARM / pi * sin(pi * x / _WARM)) / 2

    def fall(x: float) -> float:
        return _LAST * x + (1 - _LAST) * (x + whole / pi * sin(pi * x / whole)) / 2

    return (rise(warm) + fall(rest)) / (rise(_WARM) + fall(whole))


def tested_rates(optimizer: Optimizer) -> list[float]:
    """The rates of a range test."""
    least, most = _RATES[optimizer]
    factor = (most / least) ** (1 / (_TEST_STEPS - 1))
    return [least * factor**number for number in range(_TEST_STEPS)]


def best_rate(loss_at: Callable[[float], float], rates: Sequence[float]) -> float:
    """The largest rate to train with.

    Args:
        loss_at: takes a step with a rate, and gives the loss before it, relative to the loss of the
            same samples before the test.
        rates: ascending.
    """
    smooth = 0.0
    for rate in rates:
        loss = loss_at(rate)
        if not isfinite(loss):
            return rate * _SHARE
        smooth = _SMOOTH * smooth + (1 - _SMOOTH) * log(max(loss, _LEAST))
        if smooth > _DOUBLED:
            return rate * _SHARE
    return rates[-1] * _SHARE

"""Levels at which a model, timed as a whole against the original, is fast enough.

Owns: the search. Not here: the clock (see `services.stopwatch`), budgets that are added up over
layers (see `budgets`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.channels.budgets import choice_within, out_of_reach
from onnxslim.channels.groups import Channels, shrink
from onnxslim.channels.levels import LevelChoice, LevelChooser
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.lossy.budgets import Budget, BudgetMeter
from onnxslim.services.progress import Progress
from onnxslim.services.stopwatch import Stopwatch

Mask = npt.NDArray[np.bool_]

_TRIALS: Final = 8  # whole models that are timed
_NEAR: Final = 0.95  # of a budget of latency: a choice this near is taken
_AIM: Final = 0.98  # of a budget of latency: the aim, as times vary


class LatencySearch:
    """Finds levels at which the whole model, timed against the original, is fast enough.

    The graph of `model` is uncut; `spread` is that of `choice_for_budget`; each
    model that is timed is a step of `progress`.
    """

    def __init__(
        self,
        stopwatch: Stopwatch,
        model: Model,
        channels: Channels,
        *,
        spread: bool,
        progress: Progress,
    ) -> None:
        self.model, self.channels, self.spread, self.progress = model, channels, spread, progress
        self._meter = BudgetMeter.of("latency", model.graph, model, stopwatch)
        self._shares: dict[tuple[int, ...], float] = {}

    def choice(self, chooser: LevelChooser, budget: Budget) -> LevelChoice:
        """The choice within the budget that loses least, of at most `_TRIALS` that are timed.

        The times of layers do not add up to the time of the model. The share of their sum to try
        next comes from a line through the last measured points.

        Raises:
            NotApplicable: none was fast enough.
        """
        left = budget.remaining()
        slow, fast, best = _Point(1.0, 1.0), None, None
        asked = left
        for _ in range(_TRIALS):
            choice = choice_within(chooser, asked, spread=self.spread)
            point = _Point(asked, self._share(choice))
            if point.measured <= left:
                best, fast = choice, point
                if point.measured > _NEAR * left:
                    break
            elif choice.levels == chooser.most().levels:
                slow = point
                break  # nothing more can leave
            else:
                slow = point
            asked = _next(slow, fast, _AIM * left)
        if best is None:
            raise out_of_reach(budget, slow.measured)
        return best

    def _share(self, choice: LevelChoice) -> float:
        """The latency after a choice, as a share of the original latency."""
        known = self._shares.get(choice.levels)
        if known is not None:
            return known
        share = 1.0
        if choice.gone.any():
            with self.progress.step(
                f"timing a smaller model, number {len(self._shares) + 1} of at most {_TRIALS}"
            ):
                smaller = without(self.model, self.channels, choice.gone)
                share = self._meter.taken(smaller.graph, smaller)
        self._shares[choice.levels] = share
        return share


@dataclass(frozen=True)
class _Point:
    """The share of the sum of layer times that was asked for, and the measured share of latency."""

    asked: float
    measured: float


def _next(slow: _Point, fast: _Point | None, aim: float) -> float:
    """The share to ask for next: on the line between a slow and a fast point, away from both."""
    if fast is not None:
        run, rise = slow.asked - fast.asked, slow.measured - fast.measured
        guess = fast.asked + run * (aim - fast.measured) / rise if rise > 0 else slow.asked
        return min(max(guess, fast.asked + 0.1 * run), slow.asked - 0.1 * run)
    run, rise = 1.0 - slow.asked, 1.0 - slow.measured
    guess = 1.0 - run * (1.0 - aim) / rise if rise > 0 else 0.0
    return min(max(guess, 0.25 * slow.asked), 0.9 * slow.asked)


def without(model: Model, channels: Channels, gone: Mask) -> Model:
    """A copy of the model without some units of its channels."""
    copy = model.clone()
    rewriter = Rewriter(copy.graph)
    shrink(rewriter, channels.of(copy.graph), gone)
    rewriter.result()
    return copy

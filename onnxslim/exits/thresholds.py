"""How sure a head must be, so that a promise made of old samples holds on new ones.

An exit is left at when it is worth the risk: P(disagree | confidence) <= price · saving. The risk
is a logistic function of the confidence's logit (Platt, 1999), the saving what of the latency is
still to come. One price for all exits gives one threshold for each; as the price rises, thresholds
fall: a path from nobody leaves to everybody leaves.

How far to go on it is a test on samples that nothing else was chosen by. Walking from strict to
loose, a price is accepted when the upper confidence bound (Clopper and Pearson) of the share of
samples that leave with another answer than the network's is within what the target allows, and
the walk ends at the first that is not. This order is fixed in advance, so the promise holds with
the confidence of a single test (fixed sequence testing; Angelopoulos et al., 2021).

What may change here: what the path looks like. The test holds for any path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import Final

import numpy as np
from scipy import optimize, special, stats

SIGNIFICANCE: Final = 0.01  # probability with which a promise may be broken
NEVER: Final = 2.0  # a threshold that no confidence reaches
STEPS: Final = 300  # while exits are chosen
FINE_STEPS: Final = 3000  # while thresholds are confirmed
_PRICES: Final = (1e-7, 1e3)
_EDGE: Final = 1e-7  # confidences nearer to 0 or 1 count as this near


@dataclass(frozen=True)
class HeadTrial:
    """A head on samples.

    Attributes:
        confidence: (N,), from 0 to 1.
        agrees: (N,), whether head and network answer alike.
    """

    confidence: np.ndarray
    agrees: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """What thresholds lead to on samples.

    Attributes:
        shares: of the samples that leave at each exit, and of those that go all the way.
        agreements: for each exit, of those that leave there; None where nobody does.
        disagreeing: how many leave with another answer.
        samples: how many there are.
    """

    shares: tuple[float, ...]
    agreements: tuple[float | None, ...]
    disagreeing: int
    samples: int

    @property
    def agreement(self) -> float:
        """Share of all samples with the network's own answer."""
        return 1 - self.disagreeing / self.samples

    @property
    def promised(self) -> float:
        """What the agreement on new samples is at least, but for `SIGNIFICANCE`."""
        return 1 - upper_bound(self.disagreeing, self.samples)

    def latency(self, costs: Sequence[float]) -> float:
        """Mean latency where leaving at an exit, or not at all, costs so much."""
        return float(np.dot(self.shares, costs))

    def median_latency(self, costs: Sequence[float]) -> float:
        """Median latency."""
        order = np.argsort(costs)
        reached = np.cumsum(np.asarray(self.shares)[order])
        return float(np.asarray(costs)[order][np.searchsorted(reached, 0.5 - 1e-12)])


def upper_bound(count: int, samples: int, doubt: float = SIGNIFICANCE) -> float:
    """The one-sided upper confidence bound of a share (Clopper and Pearson, 1934).

    >>> round(upper_bound(0, 919), 4)
    0.005
    """
    if count >= samples:
        return 1.0
    return float(stats.beta.ppf(1 - doubt, count + 1, samples - count))


def min_samples(target: float) -> int:
    """How many samples it takes to confirm a target when not one disagrees.

    >>> min_samples(0.995)
    919
    """
    return ceil(log(SIGNIFICANCE) / log(target)) if target < 1 else 0


def outcome(thresholds: Sequence[float], trials: Sequence[HeadTrial]) -> Outcome:
    """Let samples leave at the first exit whose head is sure enough."""
    samples = len(trials[0].confidence)
    inside = np.ones(samples, bool)
    shares: list[float] = []
    agreements: list[float | None] = []
    disagreeing = 0
    for threshold, trial in zip(thresholds, trials, strict=True):
        # compared as the graph does, in float32
        leaves = inside & (trial.confidence.astype(np.float32) >= np.float32(threshold))
        count = int(leaves.sum())
        right = int((leaves & trial.agrees).sum())
        disagreeing += count - right
        shares.append(count / samples)
        agreements.append(right / count if count else None)
        inside &= ~leaves
    shares.append(float(inside.mean()))
    return Outcome(tuple(shares), tuple(agreements), disagreeing, samples)


@dataclass(frozen=True)
class Risk:
    """P(disagree) = 1 / (1 + exp(−(intercept + slope·logit(confidence)))), slope < 0."""

    intercept: float
    slope: float

    def threshold(self, most: float) -> float:
        """The confidence from which on the risk is at most `most`."""
        if most >= 1:
            return 0.0
        z = (special.logit(most) - self.intercept) / self.slope
        value = float(special.expit(z))
        return NEVER if value > 1 - _EDGE else round(value, 7)


def fitted_risk(trial: HeadTrial) -> Risk:
    """The logistic function that fits a head's disagreements best.

    Targets are those of Platt, a little off 0 and 1, so that a head that never errs has one too.
    """
    z = special.logit(np.clip(trial.confidence, _EDGE, 1 - _EDGE))
    bad = int((~trial.agrees).sum())
    good = len(z) - bad
    wished = np.where(trial.agrees, 1 / (good + 2), (bad + 1) / (bad + 2))
    middle, spread = float(z.mean()), max(float(z.std()), 1e-6)

    def loss(values: np.ndarray) -> float:
        shift, steepness = values
        logit = shift - np.exp(steepness) * (z - middle) / spread
        return float(np.mean(np.logaddexp(0.0, logit) - wished * logit))

    start = np.array([special.logit((bad + 1) / (len(z) + 2)), 0.0])
    shift, steepness = optimize.minimize(loss, start, method="Nelder-Mead").x
    slope = -float(np.exp(steepness)) / spread
    return Risk(float(shift) - slope * middle, slope)


def threshold_path(
    risks: Sequence[Risk], savings: Sequence[float], steps: int = STEPS
) -> Iterator[tuple[float, ...]]:
    """Thresholds at rising prices, those alike once.

    Args:
        risks: of each exit's head.
        savings: of leaving at each exit, in any unit.
        steps: how many prices.
    """
    last: tuple[float, ...] | None = None
    for price in np.geomspace(*_PRICES, steps):
        found = tuple(
            risk.threshold(price * max(saving, 0.0)) if saving > 0 else NEVER
            for risk, saving in zip(risks, savings, strict=True)
        )
        if found != last:
            yield found
        last = found


def confirmed_thresholds(
    way: Sequence[tuple[float, ...]], trials: Sequence[HeadTrial], target: float
) -> tuple[float, ...] | None:
    """The loosest thresholds on the way that keep the target on new samples; None: not one does.

    Args:
        way: from strict to loose, chosen without looking at `trials`.
        trials: each head on the same samples.
        target: agreement to promise.
    """
    found = None
    for thresholds in way:
        result = outcome(thresholds, trials)
        if result.promised < target:
            break
        found = thresholds
    return found


def empirical_thresholds(
    way: Sequence[tuple[float, ...]], trials: Sequence[HeadTrial], target: float
) -> tuple[float, ...] | None:
    """The loosest thresholds on the way that keep the target on these very samples."""
    found = None
    for thresholds in way:
        if outcome(thresholds, trials).agreement < target:
            break
        found = thresholds
    return found


def confidence_text(doubt: float = SIGNIFICANCE) -> str:
    """The confidence in words: `99 %`.

    >>> confidence_text()
    '99 %'
    """
    return f"{100 * (1 - doubt):.0f} %"


__all__ = [
    "FINE_STEPS",
    "NEVER",
    "SIGNIFICANCE",
    "STEPS",
    "HeadTrial",
    "Outcome",
    "Risk",
    "confidence_text",
    "confirmed_thresholds",
    "empirical_thresholds",
    "fitted_risk",
    "min_samples",
    "outcome",
    "threshold_path",
    "upper_bound",
]

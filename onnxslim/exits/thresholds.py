"""Confidence thresholds of exits, such that the agreement promised on calibration data holds later.

The thresholds come from a *path*, from strict (no sample leaves) to loose (all leave). A sample
leaves at exit e when the risk of another answer is worth the latency that is saved:

    P(harm | confidence) <= price · saving_e

Harm is another answer than the network's or, where the promise is one of accuracy, a wrong answer
instead of a right one (see `promises`). The risk is a logistic function of the logit of the
confidence (Platt 1999). One price for all exits gives one threshold for each of them; the path is
the thresholds at rising prices.

The step on the path is chosen by a sequential test on samples that nothing else was chosen by. From
strict to loose, a step is accepted while an upper confidence bound on the harm stays within what
was promised:

    upper(k, n) = Beta⁻¹(1 - alpha; k + 1, n - k)     (Clopper and Pearson 1934)

for k disagreeing of n samples, or Tango's (1998) bound of a drop in accuracy; the test ends at the
first step that fails. As the order is fixed in advance, alpha need not be divided among the steps
(fixed sequence testing; Angelopoulos et al. 2021). The test is valid for any path that does not
depend on these samples.

This is not the price search of `lossy.spend`: there, one price is found by bisection, from errors
and costs that add up over layers. Here the outcome of an exit depends on the exits before it, and
the test has to visit the steps in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import ceil, log
from typing import Final

import numpy as np
from scipy import optimize, special, stats

SIGNIFICANCE: Final = 0.01  # alpha: probability with which a promise may be broken
NEVER: Final = 2.0  # a threshold that no confidence reaches
STEPS: Final = 300  # prices on the path while exits are chosen
FINE_STEPS: Final = 3000  # prices on the path while thresholds are confirmed
_STEP: Final = 1e-9  # of a share
_PRICES: Final = (1e-7, 1e3)
_EDGE: Final = 1e-7  # confidences are clipped to [_EDGE, 1 - _EDGE], so that logits are finite


@dataclass(frozen=True)
class HeadTrial:
    """The answers of a head on N samples.

    Attributes:
        confidence: (N,), from 0 to 1.
        agrees: (N,), whether head and network predict the same class.
        gain: (N,), 1 where the head alone predicts the label, -1 where the network alone does,
            else 0; None without labels.
    """

    confidence: np.ndarray
    agrees: np.ndarray
    gain: np.ndarray | None = None


@dataclass(frozen=True)
class Outcome:
    """Where samples leave at given thresholds, and with which answers.

    Attributes:
        shares: share of the samples that leave at each exit; last, of those that never leave.
        agreements: for each exit, the agreement of the samples that leave there; None without any.
        disagreeing: number of samples that get another answer than the network's.
        lost: number of samples that get a wrong answer where the network's is right; 0 without
            labels.
        won: number of samples that get the right answer where the network's is wrong.
        is_labelled: whether `lost` and `won` were counted.
    """

    shares: tuple[float, ...]
    agreements: tuple[float | None, ...]
    disagreeing: int
    samples: int
    lost: int = 0
    won: int = 0
    is_labelled: bool = False

    @property
    def agreement(self) -> float:
        """Share of all samples that get the network's own answer."""
        return 1 - self.disagreeing / self.samples

    @property
    def promised(self) -> float:
        """Lower confidence bound of the agreement on new samples, at level 1 - `SIGNIFICANCE`."""
        return 1 - upper_bound(self.disagreeing, self.samples)

    @property
    def drop(self) -> float:
        """The share of the samples that is right no longer, less the share that is right now."""
        return (self.lost - self.won) / self.samples

    def latency(self, costs: Sequence[float]) -> float:
        """Mean latency; `costs` has the latency of each exit and, last, of samples that stay."""
        return float(np.dot(self.shares, costs))

    def median_latency(self, costs: Sequence[float]) -> float:
        """Median latency; `costs` as for `latency`."""
        order = np.argsort(costs)
        reached = np.cumsum(np.asarray(self.shares)[order])
        return float(np.asarray(costs)[order][np.searchsorted(reached, 0.5 - 1e-12)])


def upper_bound(count: int, samples: int, alpha: float = SIGNIFICANCE) -> float:
    """The one-sided upper confidence bound of a proportion (Clopper and Pearson 1934).

    >>> round(upper_bound(0, 919), 4)
    0.005
    """
    if count >= samples:
        return 1.0
    return float(stats.beta.ppf(1 - alpha, count + 1, samples - count))


def min_samples(target: float) -> int:
    """Samples needed to confirm a target if none disagrees: target**n <= alpha.

    >>> min_samples(0.995)
    919
    """
    return ceil(log(SIGNIFICANCE) / log(target)) if target < 1 else 0


def drop_bound(lost: int, won: int, samples: int, alpha: float = SIGNIFICANCE) -> float:
    """The one-sided upper confidence bound of the difference of two paired proportions.

    The score bound of Tango (1998), equations 4 and 6: the difference Δ > (lost − won) / n at which
    the statistic (lost − won − n·Δ) / √(n·(2·q + Δ·(1 − Δ))) is the quantile of `alpha`; q is the
    likeliest share of wins when the difference is Δ.

    Args:
        lost: samples that were right and are wrong.
        won: samples that were wrong and are right.
        samples: all samples, n.
        alpha: probability with which the bound may be broken.

    >>> round(drop_bound(0, 0, 1000), 4)
    0.0054
    """
    quantile = float(stats.norm.ppf(1 - alpha))

    def excess(difference: float) -> float:
        a = 2 * samples
        b = (2 * samples - lost + won) * difference - lost - won
        c = -won * difference * (1 - difference)
        share = (np.sqrt(b * b - 4 * a * c) - b) / (2 * a)
        spread = np.sqrt(samples * (2 * share + difference * (1 - difference)))
        return float(samples * difference - (lost - won) - quantile * spread)

    if lost >= samples:
        return 1.0
    # at the estimate itself the statistic is 0, or 0 / 0 where nothing is lost or won
    return float(optimize.brentq(excess, (lost - won) / samples + _STEP, 1.0))


def min_samples_for_drop(share: float) -> int:
    """Samples needed to confirm that at most `share` of the accuracy is lost, if none is.

    >>> drop_bound(0, 0, min_samples_for_drop(0.005)) <= 0.005
    True
    """
    quantile = float(stats.norm.ppf(1 - SIGNIFICANCE))
    return ceil(quantile**2 * (1 - share) / share)


def outcome(
    thresholds: Sequence[float], trials: Sequence[HeadTrial], rest: HeadTrial | None = None
) -> Outcome:
    """Let each sample leave at the first exit whose head reaches its threshold.

    Args:
        thresholds: of the exits, in order.
        trials: of their heads.
        rest: how samples that stay are answered; None: as the network that is agreed with does.
    """
    samples = len(trials[0].confidence)
    inside = np.ones(samples, bool)  # samples that have not left
    shares: list[float] = []
    agreements: list[float | None] = []
    disagreeing = lost = won = 0
    for threshold, trial in zip(thresholds, trials, strict=True):
        # compare in float32, as the graph does
        leaves = inside & (trial.confidence.astype(np.float32) >= np.float32(threshold))
        count = int(leaves.sum())
        right = int((leaves & trial.agrees).sum())
        disagreeing += count - right
        if trial.gain is not None:
            lost += int((trial.gain[leaves] < 0).sum())
            won += int((trial.gain[leaves] > 0).sum())
        shares.append(count / samples)
        agreements.append(right / count if count else None)
        inside &= ~leaves
    if rest is not None:
        disagreeing += int((inside & ~rest.agrees).sum())
        if rest.gain is not None:
            lost += int((rest.gain[inside] < 0).sum())
            won += int((rest.gain[inside] > 0).sum())
    shares.append(float(inside.mean()))
    is_labelled = all(trial.gain is not None for trial in trials)
    return Outcome(tuple(shares), tuple(agreements), disagreeing, samples, lost, won, is_labelled)


@dataclass(frozen=True)
class Risk:
    """P(harm) = 1 / (1 + exp(−(intercept + slope·logit(confidence)))), slope < 0."""

    intercept: float
    slope: float

    def threshold(self, most: float) -> float:
        """The least confidence at which the risk is at most `most`; `NEVER` where there is none."""
        if most >= 1:
            return 0.0
        z = (special.logit(most) - self.intercept) / self.slope
        value = float(special.expit(z))
        return NEVER if value > 1 - _EDGE else round(value, 7)


def fitted_risk(confidence: np.ndarray, harmed: np.ndarray) -> Risk:
    """Fit the risk that a sample is harmed by leaving, by maximum likelihood (Platt 1999).

    Platt's smoothed targets lie a little inside 0 and 1, so that the fit exists for a head that
    never harms.

    Args:
        confidence: (N,), of the head, from 0 to 1.
        harmed: (N,), whether the head's answer counts against it.
    """
    z = special.logit(np.clip(confidence, _EDGE, 1 - _EDGE))
    bad = int(harmed.sum())
    good = len(z) - bad
    targets = np.where(harmed, (bad + 1) / (bad + 2), 1 / (good + 2))
    middle, spread = float(z.mean()), max(float(z.std()), 1e-6)

    def loss(values: np.ndarray) -> float:  # cross entropy; exp keeps the slope negative
        shift, steepness = values
        logit = shift - np.exp(steepness) * (z - middle) / spread
        return float(np.mean(np.logaddexp(0.0, logit) - targets * logit))

    start = np.array([special.logit((bad + 1) / (len(z) + 2)), 0.0])
    shift, steepness = optimize.minimize(loss, start, method="Nelder-Mead").x
    slope = -float(np.exp(steepness)) / spread
    return Risk(float(shift) - slope * middle, slope)  # of z itself, no longer standardised


def threshold_path(
    risks: Sequence[Risk], savings: Sequence[float], steps: int = STEPS
) -> Iterator[tuple[float, ...]]:
    """The distinct thresholds at rising prices, from strict to loose.

    `risks` are those of the exits' heads, `savings` the latency that leaving at each exit saves, in
    any unit; `steps` counts the prices.
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


def loosest(
    path: Sequence[tuple[float, ...]],
    trials: Sequence[HeadTrial],
    is_kept: Callable[[Outcome], bool],
    rest: HeadTrial | None = None,
) -> tuple[float, ...] | None:
    """The last thresholds on a path before the first whose outcome is not kept; None if none is.

    The path goes from strict to loose. For a promise on new samples, it was chosen without looking
    at `trials`. `rest` as in `outcome`.
    """
    kept = list(takewhile(lambda thresholds: is_kept(outcome(thresholds, trials, rest)), path))
    return kept[-1] if kept else None


def confidence_text(alpha: float = SIGNIFICANCE) -> str:
    """The confidence level of a test as text.

    >>> confidence_text()
    '99 %'
    """
    return f"{100 * (1 - alpha):.0f} %"

"""Time models in turn, A B A B ..., so that a busy machine slows both alike.

Every ratio comes with a 95 % confidence interval; a difference inside it counts as none.

Two clocks run: the clock on the wall, which users wait by, and the processor time of the thread
that runs the model. That thread does its share of the work of all threads and spins while it waits
for the others, so on an idle machine both agree. On a busy one the first also counts the work of
other programs (measured: four times the time, and an interval ten times as wide), so the second
decides there. Processor seconds of all threads would not do: more threads do not lower them.

Owns: how long, how often and in which order models run. Not here: what a model runs on (see
`workload`), and remembering answers (see `stopwatch`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from onnxslim.errors import RuntimeFailure
from onnxslim.report import BUSY, Latency, LatencyPair
from onnxslim.runtime.explain import failure

Run = Callable[[], object]

CONFIDENCE: Final = 0.95  # of intervals
BUDGET_S: Final = 2.0  # seconds for each pair of models
MIN_ROUNDS, MAX_ROUNDS = 7, 200
PATIENCE: Final = 3  # times the budget, on a busy machine
SLOW_S: Final = 30.0  # fewer than seven rounds when those would take longer than this
FEWEST_ROUNDS: Final = 3
BLOCK_S: Final = 2e-4  # shorter runs are repeated, so that the clock's resolution is negligible
MAX_REPEATS: Final = 100
WARM_UPS: Final = 3
SESSION_SPREAD: Final = 0.01  # memory layout alone makes two sessions of one model differ by this
SESSION_SETS: Final = 5  # sessions opened for each small model: these differ by more
OTHER_WORK: Final = 16 << 20  # bytes read between runs: more than the caches of one core hold
_IS_FINE: Final = time.get_clock_info("thread_time").resolution < 1e-5  # not on Windows: 15 ms


@dataclass(frozen=True)
class RunTimes:
    """Times of models that ran in turn, in milliseconds, each (models, rounds).

    Attributes:
        wall: by the clock on the wall.
        own: processor time of the thread that ran the model.
    """

    wall: np.ndarray
    own: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[RunTimes]) -> RunTimes:
        """The rounds of all parts."""
        return cls(np.hstack([p.wall for p in parts]), np.hstack([p.own for p in parts]))

    def rows(self, *models: int) -> RunTimes:
        """The times of some of the models, in this order."""
        return RunTimes(self.wall[list(models)], self.own[list(models)])

    def per(self, count: int) -> RunTimes:
        """The times of one sample, where each run is of `count`."""
        return RunTimes(self.wall / count, self.own / count)

    @property
    def waiting(self) -> float:
        """Share of the time in which the thread did not run; 0 where the clock is too coarse."""
        if not _IS_FINE:
            return 0.0
        return max(0.0, 1 - float(self.own.sum() / max(self.wall.sum(), 1e-9)))

    @property
    def ms(self) -> np.ndarray:
        """The times to compare by: on a busy machine those of the processor."""
        return self.own if self.waiting > BUSY else self.wall


def time_many(
    runs: Sequence[Run], *, seed: int = 0, budget_s: float = BUDGET_S, cold: bool = True
) -> RunTimes:
    """The time of every run: each model runs once in each round.

    The order inside a round is drawn anew, so that no model always follows the same one.

    Args:
        runs: one function for each model.
        seed: of the order.
        budget_s: seconds for each pair of models; of the thread's own time, so that a busy machine
            gives as many pairs as an idle one, in up to `PATIENCE` times the time.
        cold: read other data before each run, as the application around a model does. A small
            model called in a loop finds its weights in the cache, which hides the gain of fewer
            bytes, most of all when few models take turns. False for a part of a model, whose
            inputs have just been written.

    Raises:
        RuntimeFailure: a run fails.
    """
    budget_s *= max(1.0, len(runs) / 2)
    try:
        return _measure(runs, np.random.default_rng(seed), budget_s, cold)
    except RuntimeFailure:
        raise
    except Exception as error:  # onnxruntime raises many kinds, with no common base
        raise failure("failed while the model was timed", error) from error


def time_sessions(
    opened: Callable[[], AbstractContextManager[Sequence[Run]]],
    *,
    seed: int = 0,
    budget_s: float = BUDGET_S,
    cold: bool = True,
    is_settled: Callable[[RunTimes], bool] | None = None,
) -> RunTimes:
    """As `time_many`, opening new sessions as long as the budget lasts.

    The memory layout of one session can move the run time of a small model by a tenth, so several
    sessions share the budget.

    Args:
        opened: opens one session for each model.
        seed: of the order.
        budget_s: seconds for each pair of models.
        cold: read other data before each run, see `time_many`.
        is_settled: whether times so far are enough; asked after every `SESSION_SETS`-th part of the
            budget but the first.

    Raises:
        RuntimeFailure: a session does not open, or a run fails.
    """
    timer, parts = _Timer(), list[RunTimes]()
    share_s = budget_s if is_settled is None else budget_s / SESSION_SETS
    while not parts or (len(parts) < SESSION_SETS and not timer.is_over(budget_s)):
        with opened() as runs:
            parts.append(time_many(runs, seed=seed + len(parts), budget_s=share_s, cold=cold))
        del runs  # they hold the sessions, whose memory the next ones need
        if is_settled is not None and len(parts) > 1 and is_settled(RunTimes.joined(parts)):
            break
    return RunTimes.joined(parts)


def compare_times(times: RunTimes) -> LatencyPair:
    """Latency of two models and the interval of their ratio, from their times.

    Rounds are paired, so that whatever slows a whole round cancels. The figures add up: before and
    after are means over the same pairs, those in the middle of all ratios, and the ratio is that of
    these means. It lies within the interval of the median ratio, which is never narrower than
    `SESSION_SPREAD`.
    """
    before, after = times.ms
    ratios = before / after
    low, _, high = median_interval(ratios)
    middle = _middle(ratios)
    means = float(before[middle].mean()), float(after[middle].mean())
    ratio = means[0] / means[1]
    return LatencyPair(
        replace(summarise(before), pairs_mean=means[0]),
        replace(summarise(after), pairs_mean=means[1]),
        ratio,
        min(low, ratio * (1 - SESSION_SPREAD)),
        max(high, ratio * (1 + SESSION_SPREAD)),
        times.waiting,
    )


def _middle(ratios: np.ndarray) -> np.ndarray:
    """Indices of the middle third of all pairs by their ratio, as far as the interval reaches."""
    order, count = np.argsort(ratios, kind="stable"), len(ratios)
    aside = max((count - 1) // 3, _interval_rank(count, CONFIDENCE))
    return order[aside : count - aside]


def confirm(measurements: Sequence[RunTimes]) -> LatencyPair:
    """Combine several measurements of one pair of models.

    Each has sessions of its own. The interval encloses all of theirs, so a difference counts only
    where every measurement shows it: on a busy machine a single one now and then finds a model
    slower than itself.
    """
    parts = [compare_times(times) for times in measurements]
    pooled = compare_times(RunTimes.joined(measurements))
    return replace(
        pooled,
        low=min(part.low for part in (pooled, *parts)),
        high=max(part.high for part in (pooled, *parts)),
    )


def summarise(times_ms: np.ndarray) -> Latency:
    """Median and spread of one model's times."""
    quantiles = tuple(map(float, np.percentile(times_ms, range(0, 101, 5))))
    p10, median, p90 = (quantiles[at] for at in (2, 10, 18))
    return Latency(median, p10, p90, int(times_ms.size), quantiles=quantiles)


def median_interval(
    values: np.ndarray, confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """A confidence interval of the true median: lower bound, sample median, upper bound.

    Distribution-free, from order statistics (David and Nagaraja, Order Statistics, 2003, section
    7.1): the true median lies below the k-th smallest of n values with probability
    P(Binomial(n, 1/2) ≤ k − 1), and by symmetry above the k-th largest. So x₍ₖ₎ and x₍ₙ₊₁₋ₖ₎
    enclose it with probability 1 − 2·P(Binomial(n, 1/2) ≤ k − 1). With fewer than six values the
    interval spans all of them, and its confidence is below 95 %.
    """
    ordered = np.sort(values)
    rank = _interval_rank(len(ordered), confidence)
    return float(ordered[rank]), float(np.median(ordered)), float(ordered[-1 - rank])


def _interval_rank(n: int, confidence: float) -> int:
    """How many of n ordered values lie below the interval of the median, and as many above it."""
    # the largest k whose tail, P(Binomial(n, 1/2) ≤ k − 1), is at most (1 − confidence) / 2
    k, tail = 0, 0.0
    while k < (n - 1) // 2:
        tail += math.comb(n, k) / 2**n
        if tail > (1 - confidence) / 2:
            break
        k += 1
    return max(k, 1) - 1


def _measure(
    runs: Sequence[Run], rng: np.random.Generator, budget_s: float, cold: bool
) -> RunTimes:
    between = _other_work() if cold else _nothing
    pause = _warm_up(between)
    seconds = [_warm_up(run) for run in runs]
    # a cold run cannot be repeated: the second would find its weights in the cache
    repeats = [1 if cold else min(MAX_REPEATS, math.ceil(BLOCK_S / max(s, 1e-9))) for s in seconds]
    a_round = sum(pause + s * repeat for s, repeat in zip(seconds, repeats, strict=True))
    rounds = rounds_within(budget_s, a_round)
    times = np.empty((2, len(runs), rounds))
    timer, done = _Timer(), 0
    # the warm-up can be too optimistic: the clock decides how many rounds fit
    while done < rounds and not (timer.is_over(budget_s) and done >= MIN_ROUNDS):
        for index in rng.permutation(len(runs)):
            between()
            times[:, index, done] = _time_block(runs[index], repeats[index])
        done += 1
    wall, own = times[:, :, :done] * 1e3
    return RunTimes(wall, own)


def _other_work() -> Run:
    """A function that reads enough to evict a model from the caches of the core."""
    data = np.ones(OTHER_WORK, np.uint8)  # written to: zeros would be one page, mapped many times
    return data.max


def _nothing() -> None:
    """Runs between the runs of parts of a model, which stay in the cache."""


def rounds_within(budget_s: float, a_round_s: float) -> int:
    """How many rounds to run when one takes `a_round_s` seconds."""
    fitting = int(budget_s / max(a_round_s, 1e-9))
    fewest = MIN_ROUNDS
    if a_round_s * MIN_ROUNDS > SLOW_S:
        fewest = max(FEWEST_ROUNDS, int(SLOW_S / a_round_s))
    return max(fewest, min(MAX_ROUNDS, fitting))


class _Timer:
    """Both clocks, from now on."""

    def __init__(self) -> None:
        self._wall, self._own = time.perf_counter(), time.thread_time()

    def seconds(self) -> tuple[float, float]:
        """Seconds on the wall, and of the processor."""
        return time.perf_counter() - self._wall, time.thread_time() - self._own

    def is_over(self, budget_s: float) -> bool:
        wall, own = self.seconds()
        return wall > PATIENCE * budget_s or (own if _IS_FINE else wall) > budget_s


def _warm_up(run: Run) -> float:
    """Seconds of the fastest of the first runs: three, or two when they are slow."""
    best = math.inf
    for done in range(WARM_UPS):
        wall, own = _time_block(run, 1)
        best = min(best, own if _IS_FINE else wall)
        if done and best > 1.0:
            break
    return best


def _time_block(run: Run, repeats: int) -> tuple[float, float]:
    """Seconds of a run on the wall, and of the processor."""
    timer = _Timer()
    for _ in range(repeats):
        run()
    wall, own = timer.seconds()
    return wall / repeats, own / repeats

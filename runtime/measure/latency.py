"""Time models in turn, A B A B ..., so that a busy machine slows both alike.

Every ratio comes with a 95 % confidence interval; a difference inside it counts as none.

Owns: how long, how often and in which order models run. Not here: what a model runs on (see
`workload`), and remembering answers (see `stopwatch`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final

import numpy as np

from onnxslim.errors import RuntimeFailure
from onnxslim.report import Latency, LatencyPair
from onnxslim.runtime.explain import failure

Run = Callable[[], object]

BUDGET_S: Final = 2.0  # seconds for each pair of models
MIN_ROUNDS, MAX_ROUNDS = 7, 200
SLOW_S: Final = 30.0  # fewer than seven rounds when those would take longer than this
FEWEST_ROUNDS: Final = 3
BLOCK_S: Final = 2e-4  # shorter runs are repeated, so that the clock's resolution is negligible
MAX_REPEATS: Final = 100
WARM_UPS: Final = 3
SESSION_SPREAD: Final = 0.01  # memory layout alone makes two sessions of one model differ by this
SESSION_SETS: Final = 5  # sessions opened for each small model: these differ by more
OTHER_WORK: Final = 16 << 20  # bytes read between runs: more than the caches of one core hold


def time_many(
    runs: Sequence[Run], *, seed: int = 0, budget_s: float = BUDGET_S, cold: bool = True
) -> np.ndarray:
    """Milliseconds of every run, (models, rounds): each model runs once in each round.

    The order inside a round is drawn anew, so that no model always follows the same one.

    Args:
        runs: one function for each model.
        seed: of the order.
        budget_s: seconds for each pair of models.
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
    is_settled: Callable[[np.ndarray], bool] | None = None,
) -> np.ndarray:
    """As `time_many`, opening new sessions as long as the budget lasts.

    The memory layout of one session can move the run time of a small model by a tenth, so several
    sessions share the budget.

    Args:
        opened: opens one session for each model.
        seed: of the order.
        budget_s: seconds for each pair of models.
        is_settled: whether times so far are enough; asked after every `SESSION_SETS`-th part of the
            budget but the first.

    Raises:
        RuntimeFailure: a session does not open, or a run fails.
    """
    started, parts = time.perf_counter(), list[np.ndarray]()
    share_s = budget_s if is_settled is None else budget_s / SESSION_SETS
    while not parts or (len(parts) < SESSION_SETS and not _is_over(started, budget_s)):
        with opened() as runs:
            parts.append(time_many(runs, seed=seed + len(parts), budget_s=share_s))
        del runs  # they hold the sessions, whose memory the next ones need
        if is_settled is not None and len(parts) > 1 and is_settled(np.hstack(parts)):
            break
    return np.hstack(parts)


def compare_times(before_ms: np.ndarray, after_ms: np.ndarray) -> LatencyPair:
    """Latency of two models and the interval of their ratio, from two rows of `time_many`.

    Rounds are paired, so that whatever slows a whole round cancels. The interval is never narrower
    than `SESSION_SPREAD`.
    """
    low, ratio, high = median_interval(before_ms / after_ms)
    return LatencyPair(
        summarise(before_ms),
        summarise(after_ms),
        ratio,
        min(low, ratio * (1 - SESSION_SPREAD)),
        max(high, ratio * (1 + SESSION_SPREAD)),
    )


def confirm(measurements: Sequence[np.ndarray]) -> LatencyPair:
    """Combine several measurements of one pair of models: milliseconds, each (2, rounds).

    Each has sessions of its own. The interval encloses all of theirs, so a difference counts only
    where every measurement shows it: on a busy machine a single one now and then finds a model
    slower than itself.
    """
    parts = [compare_times(*times) for times in measurements]
    pooled = compare_times(*np.hstack(list(measurements)))
    return replace(
        pooled,
        low=min(part.low for part in (pooled, *parts)),
        high=max(part.high for part in (pooled, *parts)),
    )


def summarise(times_ms: np.ndarray) -> Latency:
    """Median and spread of one model's times."""
    p10, median, p90 = (float(value) for value in np.percentile(times_ms, (10, 50, 90)))
    return Latency(median, p10, p90, int(times_ms.size))


def median_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """A confidence interval of the true median: lower bound, sample median, upper bound.

    Distribution-free, from order statistics (David and Nagaraja, Order Statistics, 2003, section
    7.1): the true median lies below the k-th smallest of n values with probability
    P(Binomial(n, 1/2) ≤ k − 1), and by symmetry above the k-th largest. So x₍ₖ₎ and x₍ₙ₊₁₋ₖ₎
    enclose it with probability 1 − 2·P(Binomial(n, 1/2) ≤ k − 1). With fewer than six values the
    interval spans all of them, and its confidence is below 95 %.
    """
    ordered = np.sort(values)
    # the largest k whose tail, P(Binomial(n, 1/2) ≤ k − 1), is at most (1 − confidence) / 2
    n, k, tail = len(ordered), 0, 0.0
    while k < (n - 1) // 2:
        tail += math.comb(n, k) / 2**n
        if tail > (1 - confidence) / 2:
            break
        k += 1
    rank = max(k, 1) - 1
    return float(ordered[rank]), float(np.median(ordered)), float(ordered[n - 1 - rank])


def _measure(
    runs: Sequence[Run], rng: np.random.Generator, budget_s: float, cold: bool
) -> np.ndarray:
    between = _other_work() if cold else _nothing
    pause = _warm_up(between)
    seconds = [_warm_up(run) for run in runs]
    # a cold run cannot be repeated: the second would find its weights in the cache
    repeats = [1 if cold else min(MAX_REPEATS, math.ceil(BLOCK_S / max(s, 1e-9))) for s in seconds]
    a_round = sum(pause + s * repeat for s, repeat in zip(seconds, repeats, strict=True))
    rounds = rounds_within(budget_s, a_round)
    times = np.empty((len(runs), rounds))
    started, done = time.perf_counter(), 0
    # the warm-up can be too optimistic: the clock decides how many rounds fit
    while done < rounds and not (_is_over(started, budget_s) and done >= MIN_ROUNDS):
        for index in rng.permutation(len(runs)):
            between()
            times[index, done] = _time_block(runs[index], repeats[index])
        done += 1
    return times[:, :done] * 1e3


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


def _is_over(started: float, budget_s: float) -> bool:
    return time.perf_counter() - started > budget_s


def _warm_up(run: Run) -> float:
    """Seconds of the fastest of the first runs: three, or two when they are slow."""
    best = math.inf
    for done in range(WARM_UPS):
        best = min(best, _time_block(run, 1))
        if done and best > 1.0:
            break
    return best


def _time_block(run: Run, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats

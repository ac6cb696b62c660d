"""Run times of models measured in turn: A B A B ..., so that a busy machine is fair to both.

What may change here: how long, how often and in which order models run. A ratio comes with the
interval in which it lies; a difference inside the interval is no difference.
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
from onnxslim.runtime.explain import explain

Run = Callable[[], object]

BUDGET_S: Final = 2.0  # for each pair of models
MIN_ROUNDS, MAX_ROUNDS = 7, 200
SLOW_S: Final = 30.0  # where seven rounds would take longer than this, fewer do
FEWEST_ROUNDS: Final = 3
BLOCK_S: Final = 2e-4  # shorter runs are repeated until the clock's resolution is no matter
MAX_REPEATS: Final = 100
WARM_UPS: Final = 3
SESSION_SPREAD: Final = 0.01  # two sessions of one model differ by this much in memory layout alone
SESSION_SETS: Final = 5  # of small models: they differ by more
OTHER_WORK: Final = 16 << 20  # bytes read between runs: more than a core has in caches of its own


def time_many(
    runs: Sequence[Run], *, seed: int = 0, budget_s: float = BUDGET_S, cold: bool = True
) -> np.ndarray:
    """Milliseconds of every run, shape (models, rounds), from rounds in which each model runs once.

    The order inside a round is drawn anew for each, so that no model always follows the same one.

    Args:
        runs: one for each model.
        seed: of that order.
        budget_s: seconds for each pair of models.
        cold: other data is read before each run, as by the application that a model runs in. A
            small model called in a loop finds its weights in the cache, which hides what fewer
            bytes are worth; more so the fewer models take turns. False for a part of a model: its
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
        raise RuntimeFailure(
            f"onnxruntime failed while the model was timed: {explain(error)}"
        ) from error


def time_sessions(
    opened: Callable[[], AbstractContextManager[Sequence[Run]]],
    *,
    seed: int = 0,
    budget_s: float = BUDGET_S,
) -> np.ndarray:
    """As `time_many`, with sessions opened anew as long as the budget lasts.

    Two hundred runs of a small model are over in an instant, and where the memory of its session
    happens to lie moves them by a tenth.

    Args:
        opened: opens one session for each model.
        seed: of the order of runs.
        budget_s: seconds for each pair of models.

    Raises:
        RuntimeFailure: a session does not open, or a run fails.
    """
    started, parts = time.perf_counter(), list[np.ndarray]()
    while not parts or (len(parts) < SESSION_SETS and not _is_over(started, budget_s)):
        with opened() as runs:
            parts.append(time_many(runs, seed=seed + len(parts), budget_s=budget_s))
    return np.hstack(parts)


def compare_times(before_ms: np.ndarray, after_ms: np.ndarray) -> LatencyPair:
    """What two rows of `time_many` say about each other."""
    low, ratio, high = median_interval(before_ms / after_ms)
    return LatencyPair(
        summarise(before_ms),
        summarise(after_ms),
        ratio,
        min(low, ratio * (1 - SESSION_SPREAD)),
        max(high, ratio * (1 + SESSION_SPREAD)),
    )


def confirm(measurements: Sequence[np.ndarray]) -> LatencyPair:
    """What several measurements, each with sessions of its own, say together.

    The bounds enclose those of all, so a difference is one only where every one shows it: on a busy
    machine one measurement in a while finds a model slower than itself.

    Args:
        measurements: each of shape (2, rounds), in milliseconds.
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
    """Lower bound, median, upper bound of the median that `values` are drawn around.

    Order statistics: the true median lies below the k-th smallest of n values with the probability
    P(Binomial(n, 1/2) < k), whatever the distribution. With fewer than six values the interval is
    all of them, which is a little less than 95 %.
    """
    ordered = np.sort(values)
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
    repeats = [1 if cold else min(MAX_REPEATS, math.ceil(BLOCK_S / max(s, 1e-9))) for s in seconds]
    a_round = sum(pause + s * repeat for s, repeat in zip(seconds, repeats, strict=True))
    rounds = rounds_within(budget_s, a_round)
    times = np.empty((len(runs), rounds))
    started, done = time.perf_counter(), 0
    # warm-up may have been lucky: the clock has the last word on how many rounds fit
    while done < rounds and not (_is_over(started, budget_s) and done >= MIN_ROUNDS):
        for index in rng.permutation(len(runs)):
            between()
            times[index, done] = _time_block(runs[index], repeats[index])
        done += 1
    return times[:, :done] * 1e3


def _other_work() -> Run:
    """Reads enough to leave nothing of a model in the caches of the core that calls it."""
    data = np.ones(OTHER_WORK, np.uint8)  # written to: zeros would be one page, mapped many times
    return data.max


def _nothing() -> None:
    """What runs between the runs of parts of a model."""


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
    """Seconds of the fastest of the first runs, of which there are fewer when they are slow."""
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

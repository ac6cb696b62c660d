from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.errors import RuntimeFailure
from onnxslim.report import LatencyPair
from onnxslim.runtime.measure import latency
from onnxslim.runtime.measure.latency import (
    MAX_ROUNDS,
    MIN_ROUNDS,
    SESSION_SETS,
    Run,
    RunTimes,
    compare_times,
    confirm,
    median_interval,
    rounds_within,
    time_many,
    time_sessions,
)


class Clock:
    """A clock that only runs while a pretended model does."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def model(self, name: str, seconds: float, noise: float = 0.0) -> Callable[[], None]:
        rng = np.random.default_rng(len(name))

        def run() -> None:
            self.order.append(name)
            self.now += seconds * (1 + noise * rng.standard_normal())

        return run


def time_pair(before: Run, after: Run, seed: int = 0) -> LatencyPair:
    return compare_times(time_many((before, after), seed=seed))


def idle(ms: list[list[float]] | np.ndarray) -> RunTimes:
    """Times on a machine that does nothing else."""
    return RunTimes(np.asarray(ms), np.asarray(ms))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for name in ("perf_counter", "thread_time"):
        monkeypatch.setattr(latency.time, name, lambda: clock.now)
    return clock


def test_ratio_above_one_means_that_the_second_is_faster(clock: Clock) -> None:
    pair = time_pair(clock.model("a", 0.02, 0.01), clock.model("bb", 0.01, 0.01))
    assert pair.ratio == pytest.approx(2.0, rel=0.05)
    assert pair.is_faster
    assert not pair.is_slower
    assert pair.before.median == pytest.approx(20, rel=0.05)
    assert pair.before.p10 <= pair.before.median <= pair.before.p90


def test_difference_inside_the_spread_is_no_difference(clock: Clock) -> None:
    pair = time_pair(clock.model("a", 0.01, 0.2), clock.model("bb", 0.0101, 0.2))
    assert not pair.is_faster
    assert not pair.is_slower


def test_even_a_noiseless_half_percent_is_no_difference(clock: Clock) -> None:
    pair = time_pair(clock.model("a", 0.01), clock.model("b", 0.01005))
    assert not pair.is_slower
    assert time_pair(clock.model("a", 0.01), clock.model("b", 0.0103)).is_slower


def test_models_take_turns_in_an_order_that_the_seed_decides(clock: Clock) -> None:
    time_pair(clock.model("a", 0.05), clock.model("b", 0.05), seed=1)
    turns = clock.order[6:]
    pairs = {tuple(turns[i : i + 2]) for i in range(0, len(turns), 2)}
    assert pairs == {("a", "b"), ("b", "a")}
    first, clock.order = clock.order, []
    time_pair(clock.model("a", 0.05), clock.model("b", 0.05), seed=1)
    assert clock.order == first


def test_tiny_parts_of_models_run_in_blocks(clock: Clock) -> None:
    runs = clock.model("a", 1e-5), clock.model("b", 1e-5)
    times = time_many(runs, cold=False).ms
    assert times.shape == (2, MAX_ROUNDS)
    assert clock.order.count("a") >= 20 * MAX_ROUNDS
    np.testing.assert_allclose(times, 0.01)


def test_other_work_comes_before_each_run_and_is_not_timed(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "_other_work", lambda: clock.model("-", 1e-4))
    times = time_many((clock.model("a", 2e-5), clock.model("b", 1e-5))).ms
    np.testing.assert_allclose(np.median(times, axis=1), [0.02, 0.01])
    turns = clock.order[-4 * MAX_ROUNDS :]
    assert turns[::2] == ["-"] * (2 * MAX_ROUNDS)
    assert sorted(turns[1::2]) == ["a"] * MAX_ROUNDS + ["b"] * MAX_ROUNDS


def test_other_work_counts_against_the_budget(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "_other_work", lambda: clock.model("-", 0.01))
    times = time_many((clock.model("a", 1e-4), clock.model("b", 1e-4)), budget_s=1.0).ms
    assert times.shape == (2, 49)
    assert clock.now == pytest.approx(1.0, abs=0.05)


def test_slow_models_run_fewer_rounds(clock: Clock) -> None:
    pair = time_pair(clock.model("a", 10.0), clock.model("b", 5.0))
    assert pair.before.runs == 3
    assert pair.is_faster


def test_budget_ends_the_rounds_when_warm_up_was_lucky(clock: Clock) -> None:
    calls = [0]

    def run() -> None:
        calls[0] += 1
        clock.now += 0.001 if calls[0] <= 6 else 0.1

    assert time_pair(run, run).before.runs < 30


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "sets"), [(2e-4, SESSION_SETS), (0.05, 1), (5.0, 1)])
def test_sessions_of_small_models_are_opened_anew(clock: Clock, seconds: float, sets: int) -> None:
    opened = [0]

    @contextmanager
    def sessions() -> Iterator[Sequence[Run]]:
        opened[0] += 1
        moved = 1 + 0.1 * opened[0]  # by where its memory lies
        yield clock.model("a", 2 * seconds * moved), clock.model("b", seconds)

    before, after = time_sessions(sessions).ms
    assert opened == [sets]
    assert len(before) == len(after)
    ratios = sorted({round(ratio, 3) for ratio in before / after})
    assert ratios == [pytest.approx(2 * (1 + 0.1 * n)) for n in range(1, sets + 1)]


@pytest.mark.parametrize(
    ("a_round", "rounds"), [(1e-6, MAX_ROUNDS), (0.1, 20), (1.0, MIN_ROUNDS), (6.0, 5), (60.0, 3)]
)
def test_rounds_follow_the_budget(a_round: float, rounds: int) -> None:
    assert rounds_within(2.0, a_round) == rounds


def test_many_models_share_each_round(clock: Clock) -> None:
    times = time_many([clock.model(name, 0.01 * n) for n, name in enumerate("abc", 1)])
    assert times.ms.shape[0] == 3
    np.testing.assert_allclose(np.median(times.ms, axis=1), [10, 20, 30])
    assert compare_times(times.rows(0, 2)).ratio == pytest.approx(1 / 3)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=60))
def test_interval_holds_the_median(values: list[float]) -> None:
    low, median, high = median_interval(np.array(values))
    assert min(values) <= low <= median <= high <= max(values)


@pytest.mark.parametrize("n", [7, 20, 101])
def test_interval_covers_the_true_median_in_95_of_100_cases(n: int) -> None:
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(1000):
        low, _, high = median_interval(rng.exponential(size=n))
        hits += low <= np.log(2) <= high
    assert hits >= 935


def test_slower_once_and_not_again_is_no_difference() -> None:
    slow, level = idle([[1.0] * 9, [1.1] * 9]), idle([[1.0] * 9, [1.0] * 9])
    assert compare_times(slow).is_slower
    assert confirm([slow, slow]).is_slower
    both = confirm([slow, level])
    assert not both.is_slower
    assert both.before.runs == 18


def test_failing_run_is_a_runtime_failure() -> None:
    def fail() -> None:
        raise ValueError("no such input")

    with pytest.raises(RuntimeFailure, match=r"while the model was timed: no such input\."):
        time_pair(fail, fail)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=60))
def test_before_and_after_give_the_ratio_which_lies_in_its_interval(
    pairs: list[tuple[float, float]],
) -> None:
    times = np.array(pairs).T
    pair = compare_times(idle(times))
    assert pair.before.ms / pair.after.ms == pytest.approx(pair.ratio)
    assert pair.low <= pair.ratio <= pair.high
    for latency_, row in ((pair.before, times[0]), (pair.after, times[1])):
        assert row.min() - 1e-9 <= latency_.ms <= row.max() + 1e-9


def test_times_of_other_programs_are_told_apart_and_left_out() -> None:
    rng = np.random.default_rng(0)
    own = np.stack([np.full(40, 10.0), np.full(40, 11.0)])
    pair = compare_times(RunTimes(own + rng.exponential(60, own.shape), own))
    assert pair.is_busy
    assert pair.waiting > 0.8
    assert (pair.before.ms, pair.after.ms) == (10, 11)
    assert pair.is_slower
    alone = compare_times(RunTimes(own * 1.05, own))
    assert not alone.is_busy
    assert alone.before.ms == pytest.approx(10.5)


def test_a_busy_machine_gives_as_many_pairs_in_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, share = Clock(), 0.4
    monkeypatch.setattr(latency.time, "thread_time", lambda: clock.now)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock.now / share)
    monkeypatch.setattr(latency, "_other_work", lambda: lambda: None)
    pair = time_pair(clock.model("a", 0.02), clock.model("b", 0.01))
    assert pair.waiting == pytest.approx(1 - share)
    assert pair.before.runs == rounds_within(latency.BUDGET_S, 0.03)
    share = 0.01  # next to nothing: the clock on the wall ends it
    assert time_pair(clock.model("a", 0.02), clock.model("b", 0.01)).before.runs == MIN_ROUNDS

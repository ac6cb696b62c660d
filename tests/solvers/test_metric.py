"""The solver lowers the output error that it is asked to lower, and keeps its constraints."""

from __future__ import annotations

import weakref
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.services.moments import BlockDiagonal
from onnxslim.solvers.column_sweep import sweep_out
from onnxslim.solvers.damping import inverse_factor
from onnxslim.solvers.feedback import round_with_feedback
from onnxslim.solvers.least_squares import refit, shifted_target, unexplained
from onnxslim.solvers.masks import (
    InMatrix,
    InRow,
    InRun,
    Saliency,
    ZeroScope,
    mask_of,
    saliencies,
    share_out,
)
from onnxslim.solvers.metric import Metric, objective, whitening
from onnxslim.solvers.refinement import coordinate_descent, solve_values, value_equations
from onnxslim.solvers.surgeon import eliminate, prune
from onnxslim.solvers.tables import IntegerGrid, Table, round_to_nearest

SEEDS = st.integers(0, 10_000)


def problem(
    seed: int, rows: int = 6, columns: int = 12, samples: int = 200, dead: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A weight, and second moments of correlated inputs some of which are always zero."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, columns)) @ rng.standard_normal((columns, columns))
    x += 0.5 * rng.standard_normal(x.shape)  # so that H is not singular when there are samples
    x[:, rng.permutation(columns)[:dead]] = 0
    return rng.standard_normal((rows, columns)), x.T @ x / samples


def density(weight: np.ndarray) -> int:
    return int(np.count_nonzero(weight))


# ---------------------------------------------------------------------------- metric


@given(SEEDS)
def test_the_objective_is_the_mean_squared_output_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w, v = rng.standard_normal((50, 7)), *rng.standard_normal((2, 3, 7))
    expected = np.square(x @ (w - v).T).sum(axis=1).mean()
    metric = Metric(x.T @ x / 50, 7)
    np.testing.assert_allclose(objective(w, v, metric), expected, rtol=1e-9)


def test_without_moments_the_metric_is_the_identity() -> None:
    w, v = np.ones((2, 3)), np.zeros((2, 3))
    assert objective(w, v, Metric(None, 3)) == 6


def test_a_well_conditioned_matrix_is_not_damped() -> None:
    _, h = problem(0)
    assert Metric(h, 12, max_condition=1e8).damping == 0


@pytest.mark.parametrize("bound", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("samples", [3, 12, 200])
def test_damping_goes_just_as_far_as_the_condition_number_asks(samples: int, bound: float) -> None:
    _, h = problem(1, samples=samples)
    metric = Metric(h, 12, max_condition=bound)
    found = np.linalg.cond(metric.blocks[0].matrix)
    if metric.damping == 0:
        assert np.linalg.cond(h) < 1.2 * bound
    else:
        assert 0.5 * bound < found < 1.2 * bound


def test_the_factor_is_that_of_the_inverse() -> None:
    _, h = problem(2)
    metric = Metric(h, 12, max_condition=1e12)
    upper = metric.blocks[0].inverse_factor()
    np.testing.assert_array_equal(np.tril(upper, -1), 0)
    np.testing.assert_allclose(upper.T @ upper, np.linalg.inv(h), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(metric.inverse_diagonal, np.diagonal(np.linalg.inv(h)), rtol=1e-6)


def test_moments_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="12 inputs, the weight has 5"):
        Metric(problem(0)[1], 5)


@settings(max_examples=25)
@given(SEEDS)
def test_blocks_act_as_the_matrix_they_stand_for(seed: int) -> None:
    w, h = problem(seed)
    split = BlockDiagonal((h[:5, :5], h[5:, 5:]))
    whole = np.zeros_like(h)
    whole[:5, :5], whole[5:, 5:] = split.blocks
    a, b = Metric(split, 12, max_condition=1e12), Metric(whole, 12, max_condition=1e12)
    v = np.where(np.abs(w) > 1, w, 0)
    np.testing.assert_allclose(objective(w, v, a), objective(w, v, b), rtol=1e-9)
    np.testing.assert_allclose(refit(w, a, v != 0), refit(w, b, v != 0), rtol=1e-6, atol=1e-8)
    for budget in (InMatrix(30), InRow(5), InRun(2, 4)):
        assert density(sweep_out(w, a, budget)) <= 42


# ---------------------------------------------------------------------------- least squares


@pytest.mark.slow
@given(SEEDS, st.booleans())
def test_entries_and_the_inverse_of_blocks_are_those_of_the_whole(seed: int, cut: bool) -> None:
    _, h = problem(seed, columns=9, dead=1)
    if cut:
        h[:5, 5:] = h[5:, :5] = 0
    metric = Metric(BlockDiagonal((h[:5, :5], h[5:, 5:])) if cut else h, 9)
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(9)[:4], rng.permutation(9)[:6]
    np.testing.assert_allclose(metric.entries(rows, columns), h[np.ix_(rows, columns)])
    damped = np.zeros_like(h)
    for block in metric.blocks:
        damped[block.at, block.at] = block.matrix
    found = metric.inverse_at(columns)
    np.testing.assert_allclose(found, np.linalg.inv(damped)[np.ix_(columns, columns)], rtol=1e-6)


@pytest.mark.slow
@given(SEEDS)
def test_moments_are_taken_about_the_mean_that_is_given(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((50, 7)) + rng.standard_normal(7)
    second, mean = x.T @ x / 50, x.mean(axis=0)
    given_ = second.copy()
    metric = Metric(given_, 7, mean=mean)
    about = (x - mean).T @ (x - mean) / 50
    np.testing.assert_allclose(metric.diagonal, np.diagonal(about), rtol=1e-9)
    np.testing.assert_allclose(metric.undamped_times(np.eye(7)), about, atol=1e-12)
    np.testing.assert_array_equal(given_, second)  # what was given stays as it is


def test_a_metric_lets_go_of_what_it_was_given() -> None:
    _, h = problem(0)
    reference = weakref.ref(h)
    metric = Metric(h, len(h))
    del h
    assert reference() is not None
    assert metric.damping >= 0
    assert reference() is None


@given(SEEDS)
def test_the_factor_of_an_inverse_can_take_the_memory_of_the_matrix(seed: int) -> None:
    _, h = problem(seed)
    h += np.eye(len(h))
    expected = inverse_factor(h)
    own = h.copy()
    found = inverse_factor(own, overwrite=True)
    assert np.shares_memory(found, own)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found.T @ found, np.linalg.inv(h), rtol=1e-8, atol=1e-12)


@pytest.mark.slow
@given(SEEDS, st.floats(0.1, 0.9))
def test_refit_satisfies_the_normal_equations(seed: int, share: float) -> None:
    w, h = problem(seed)
    support = np.random.default_rng(seed).random(w.shape) < share
    metric = Metric(h, 12)
    fitted = refit(w, metric, support)
    assert not fitted[~support].any()
    gradient = metric.times(w - fitted)
    np.testing.assert_allclose(gradient[support], 0, atol=1e-7 * np.abs(metric.times(w)).max())


def test_refit_groups_rows_with_the_same_support() -> None:
    w, h = problem(3, rows=8)
    support = np.zeros(12, bool)
    support[[1, 4, 7]] = True
    metric = Metric(h, 12, max_condition=1e12)
    kept = np.flatnonzero(support)
    expected = w @ h[:, kept] @ np.linalg.inv(h[np.ix_(kept, kept)])
    np.testing.assert_allclose(refit(w, metric, support)[:, kept], expected, rtol=1e-6)


def test_conjugate_gradients_agree_with_the_direct_solution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    w, h = problem(4)
    metric = Metric(h, 12)
    support = np.random.default_rng(4).random(w.shape) < 0.5
    direct = refit(w, metric, support)
    monkeypatch.setattr("onnxslim.solvers.least_squares._DIRECT_SHARE", -1.0)
    found = refit(w, metric, support)
    assert not found[~support].any()
    best, still = (objective(w, v, metric) for v in (direct, np.where(support, w, 0)))
    assert best - 1e-9 <= objective(w, found, metric) < best + 0.05 * (still - best)
    again = refit(w, metric, support, start=direct)
    np.testing.assert_allclose(again, direct, rtol=1e-5, atol=1e-6)


@settings(max_examples=25)
@given(SEEDS)
def test_whitening_turns_the_error_into_a_plain_norm(seed: int) -> None:
    w, h = problem(seed)
    metric = Metric(h, 12, max_condition=1e12)
    root, inverse = whitening(metric)
    np.testing.assert_allclose(root @ inverse, np.eye(12), atol=1e-6)
    np.testing.assert_allclose(
        np.square(w @ root).sum(), objective(w, np.zeros_like(w), metric), rtol=1e-6
    )


# ---------------------------------------------------------------------------- shifted inputs


def shifted(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A weight, its inputs, and inputs that differ in a way that it could make up for."""
    rng = np.random.default_rng(seed)
    w, x = rng.standard_normal((5, 8)), rng.standard_normal((300, 8)) + 0.5
    return w, x, x @ (np.eye(8) + 0.3 * rng.standard_normal((8, 8))) + 0.2


@given(SEEDS)
def test_the_target_for_shifted_inputs_is_least_squares_and_its_residual_is_what_is_left(
    seed: int,
) -> None:
    w, x, z = shifted(seed)
    y = x @ w.T
    metric = Metric(z.T @ z / 300, 8, max_condition=1e12)
    cross, energy = y.T @ z / 300, np.square(y).mean(axis=0)
    target = shifted_target(w, cross, metric)
    expected = np.linalg.lstsq(z, y)[0].T
    np.testing.assert_allclose(target, expected, rtol=1e-5, atol=1e-6)
    pruned = np.where(np.abs(target) > 0.5, target, 0)
    error = np.square(y - z @ pruned.T).sum(axis=1).mean()
    found = objective(target, pruned, metric) + unexplained(target, cross, energy)
    np.testing.assert_allclose(found, error, rtol=1e-6, atol=1e-9)


@settings(max_examples=25)
@given(SEEDS)
def test_a_target_for_the_shifted_inputs_beats_one_for_the_original(seed: int) -> None:
    w, x, z = shifted(seed)
    y = x @ w.T
    metric = Metric(z.T @ z / 300, 8)
    target = shifted_target(w, y.T @ z / 300, metric)
    errors = [np.square(y - z @ eliminate(goal, metric, InRow(5)).T).mean() for goal in (target, w)]
    assert errors[0] <= errors[1] + 1e-9


def test_where_the_data_says_nothing_the_target_stays_at_the_weight() -> None:
    w, h = problem(5, dead=4)
    metric = Metric(h, 12)
    target = shifted_target(w, w @ h * 0.5, metric)
    np.testing.assert_array_equal(target[:, metric.dead], w[:, metric.dead])


# ---------------------------------------------------------------------------- masks


def test_saliencies_are_what_a_removal_costs() -> None:
    w, h = problem(6)
    metric = Metric(h, 12, max_condition=1e12)
    obd, obs = (saliencies(w, metric, c) for c in (Saliency.OBD, Saliency.OBS))
    for column in range(12):
        removed = w.copy()
        removed[:, column] = 0
        np.testing.assert_allclose(metric.cost_by_row(w - removed), obd[:, column], rtol=1e-6)
        fitted = refit(w, metric, np.arange(12) != column)
        np.testing.assert_allclose(metric.cost_by_row(w - fitted), obs[:, column], rtol=1e-5)
    np.testing.assert_array_equal(saliencies(w, metric, Saliency.WANDA), obd)
    np.testing.assert_array_equal(saliencies(w, metric, Saliency.MAGNITUDE), w**2)


BUDGETS: list[ZeroScope] = [InMatrix(0), InMatrix(17), InMatrix(72), InRow(1), InRow(5),
                            InRun(2, 4), InRun(1, 5), InRow(12)]  # fmt: skip


def assert_within(weight: np.ndarray, budget: ZeroScope) -> None:
    if isinstance(budget, InMatrix):
        assert density(weight) <= budget.keep
    elif isinstance(budget, InRow):
        assert np.count_nonzero(weight, axis=1).max() <= budget.keep
    else:
        for start in range(0, weight.shape[1], budget.length):
            run = weight[:, start : start + budget.length]
            assert np.count_nonzero(run, axis=1).max() <= budget.keep


@pytest.mark.slow
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("criterion", list(Saliency))
@settings(max_examples=15)
@given(seed=SEEDS)
def test_every_criterion_keeps_to_every_budget(
    criterion: Saliency, budget: ZeroScope, seed: int
) -> None:
    w, h = problem(seed, dead=seed % 4)
    for metric in (Metric(h, 12), Metric(None, 12)):
        pruned = prune(w, metric, budget, criterion)
        assert_within(pruned, budget)
        assert np.isfinite(pruned).all()


def test_a_budget_of_everything_changes_nothing() -> None:
    w, h = problem(7)
    np.testing.assert_allclose(sweep_out(w, Metric(h, 12), InMatrix(72)), w)


@settings(max_examples=40)
@given(SEEDS, st.sampled_from([InMatrix(20), InMatrix(50), InRow(4), InRun(2, 4)]))
def test_moving_the_other_weights_is_never_worse_than_leaving_them(
    seed: int, budget: ZeroScope
) -> None:
    w, h = problem(seed)
    metric = Metric(h, 12)
    swept = sweep_out(w, metric, budget)
    mask = swept != 0
    still = objective(w, np.where(mask, w, 0.0), metric)
    assert objective(w, refit(w, metric, mask), metric) <= objective(w, swept, metric) + 1e-9
    assert objective(w, refit(w, metric, mask), metric) <= still + 1e-9


def test_with_updates_pruning_costs_less_on_correlated_inputs() -> None:
    w, h = problem(8, rows=40, columns=60, samples=500)
    metric = Metric(h, 60)
    costs = [objective(w, prune(w, metric, InMatrix(1200), c), metric) for c in
             (Saliency.OBS, Saliency.OBD, Saliency.MAGNITUDE, Saliency.RANDOM)]  # fmt: skip
    assert costs[0] < min(costs[1:])
    fine = objective(w, eliminate(w, metric, InMatrix(1200)), metric)
    assert fine < 0.7 * costs[0]


def greedy_by_brute_force(w: np.ndarray, metric: Metric, keep: int) -> np.ndarray:
    """Try every removal with a full refit, take the cheapest, repeat."""
    alive = list(range(len(w)))
    while len(alive) > keep:
        trials = []
        for column in alive:
            support = np.isin(np.arange(len(w)), [c for c in alive if c != column])
            trials.append((objective(w[None], refit(w[None], metric, support), metric), column))
        alive.remove(min(trials)[1])
    return np.isin(np.arange(len(w)), alive)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 5))
def test_a_round_for_each_weight_is_the_greedy_brute_force(seed: int, keep: int) -> None:
    w, h = problem(seed, rows=3, columns=6)
    metric = Metric(h, 6, max_condition=1e10)
    with pytest.MonkeyPatch.context() as patch:  # no round takes more than one weight of a row
        patch.setattr("onnxslim.solvers.surgeon._FIRST", 0.99)
        pruned = eliminate(w, metric, InRow(keep), rounds=60)
    for row, weight in zip(pruned, w, strict=True):
        expected = greedy_by_brute_force(weight, metric, keep)
        np.testing.assert_array_equal(row != 0, expected)


@settings(max_examples=20)
@given(SEEDS)
def test_removing_one_weight_is_the_best_there_is(seed: int) -> None:
    w, h = problem(seed, rows=2, columns=5)
    metric = Metric(h, 5, max_condition=1e10)
    found = objective(w, eliminate(w, metric, InMatrix(9)), metric)
    supports = [np.arange(10).reshape(2, 5) != gone for gone in range(10)]
    best = min(objective(w, refit(w, metric, support), metric) for support in supports)
    np.testing.assert_allclose(found, best, rtol=1e-6)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_many_rounds_come_close_to_one_removal_at_a_time(seed: int) -> None:
    w, h = problem(seed, rows=40, columns=8)
    metric = Metric(h, 8)
    supports = np.array([greedy_by_brute_force(row, metric, 5) for row in w])
    exact = objective(w, refit(w, metric, supports), metric)
    rounds = objective(w, eliminate(w, metric, InRow(5), rounds=40), metric)
    single = objective(w, eliminate(w, metric, InRow(5), rounds=1), metric)
    assert rounds < 1.5 * exact + 1e-9
    assert exact < 1.2 * single + 1e-9


def test_elimination_shares_out_over_rows() -> None:
    w, h = problem(9)
    w[0] *= 100
    pruned = eliminate(w, Metric(h, 12), InMatrix(30))
    assert density(pruned) == 30
    assert density(pruned[0]) > 10


@pytest.mark.parametrize("rounds", [1, 5])
def test_dead_inputs_lose_their_weights_first(rounds: int) -> None:
    w, h = problem(10, dead=6)
    metric = Metric(h, 12)
    for pruned in (
        eliminate(w, metric, InMatrix(36), rounds=rounds),
        sweep_out(w, metric, InMatrix(36)),
        prune(w, metric, InMatrix(36), Saliency.OBD),
    ):
        assert not pruned[:, metric.dead].any()
        assert objective(w, pruned, metric) < 1e-6


@pytest.mark.parametrize("samples", [1, 3, 8])
def test_singular_moments_are_no_obstacle(samples: int) -> None:
    w, h = problem(11, samples=samples)
    metric = Metric(h, 12)
    size = objective(w, np.zeros_like(w), metric)
    for pruned in (
        sweep_out(w, metric, InMatrix(60)),
        eliminate(w, metric, InMatrix(60)),
    ):
        assert np.abs(pruned).max() < 100 * np.abs(w).max()
        assert objective(w, pruned, metric) < 0.01 * size


def test_all_inputs_dead_is_no_obstacle() -> None:
    w = np.ones((3, 4))
    metric = Metric(np.zeros((4, 4)), 4)
    assert density(sweep_out(w, metric, InMatrix(5))) <= 5
    assert density(eliminate(w, metric, InMatrix(5))) <= 5
    table = Table.of(np.array([0.0, 0.9]))
    np.testing.assert_array_equal(round_with_feedback(w, metric, table), 0.9)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(0, 60))
def test_sharing_out_keeps_the_most_salient_of_all(sizes: list[int], keep: int) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.random((size, 1)) for size in sizes]
    counts = share_out(parts, keep)
    assert sum(counts) == min(keep, sum(sizes))
    kept = [np.sort(part.ravel())[len(part) - c :] for part, c in zip(parts, counts, strict=True)]
    left = [np.sort(part.ravel())[: len(part) - c] for part, c in zip(parts, counts, strict=True)]
    if keep and any(len(part) for part in left) and any(len(part) for part in kept):
        assert min(p.min() for p in kept if len(p)) >= max(p.max() for p in left if len(p))


def test_a_mask_takes_the_largest_of_every_run_even_when_the_last_is_short() -> None:
    saliency = np.array([[1.0, 5, 2, 3, 9], [4, 3, 2, 1, 0]])
    mask = mask_of(saliency, InRun(2, 4))
    np.testing.assert_array_equal(mask, [[0, 1, 0, 1, 1], [1, 1, 0, 0, 1]])


# ---------------------------------------------------------------------------- tables and grids


def test_a_table_gives_the_nearest_value() -> None:
    table = Table.of(np.array([2.0, -1.0, 0.5]))
    v = np.array([-3.0, -0.3, -0.2, 1.2, 1.3])
    found = table.project(v, slice(None), 0, np.ones(1))
    np.testing.assert_array_equal(found, [-1, -1, 0.5, 0.5, 2])


def test_tables_may_differ_by_row_and_by_group_of_columns() -> None:
    values = np.array([[[0.0, 1], [0, 10]], [[5, 6], [7, 8]]])  # (column groups, rows, L)
    table = Table(values, width=2)
    w = np.array([[0.9, 0.2, 5.1, 9], [0.9, 7, 7.4, 7.6]])
    np.testing.assert_array_equal(
        round_to_nearest(w, table, Metric(None, 4)), [[1, 0, 5, 6], [0, 10, 7, 8]]
    )
    _, h = problem(1, columns=4)
    found = round_with_feedback(
        w, Metric(h, 4), table, mask=np.array([[1, 0, 1, 1], [1, 1, 0, 1]], bool)
    )
    for row, column in np.argwhere(found):
        assert found[row, column] in values[column // 2, row]


def test_a_grid_rounds_and_saturates() -> None:
    grid = IntegerGrid(np.array([[0.5]]), np.array([[1.0]]), -8, 7)
    w = np.array([[0.3, 100.0, -100.0]])
    np.testing.assert_array_equal(round_to_nearest(w, grid, Metric(None, 3)), [[0.5, 3.0, -4.5]])


def test_a_price_moves_weights_to_the_cheap_value() -> None:
    values, v = np.array([0.0, 1.0]), np.array([0.6, 0.9])
    dear = Table.of(values, price=np.array([0.0, 0.5]))
    np.testing.assert_array_equal(dear.project(v, slice(None), 0, np.ones(1)), [0, 1])
    np.testing.assert_array_equal(dear.project(v, slice(None), 0, np.full(1, 100.0)), [1, 1])


TABLE = Table.of(np.linspace(-2, 2, 8))


@pytest.mark.slow
@settings(max_examples=60)
@given(SEEDS)
def test_feedback_and_descent_beat_rounding_to_nearest(seed: int) -> None:
    w, h = problem(seed, rows=30, columns=24, samples=100)
    metric = Metric(h, 24)
    plain = objective(w, round_to_nearest(w, TABLE, metric), metric)
    fed = round_with_feedback(w, metric, TABLE)
    assert objective(w, fed, metric) <= plain
    finer = coordinate_descent(w, fed, metric, TABLE)
    assert objective(w, finer, metric) <= objective(w, fed, metric) * (1 + 1e-6)
    assert set(np.unique(finer)) <= set(TABLE.values.ravel())


@settings(max_examples=30)
@given(SEEDS, st.floats(0.2, 0.8))
def test_zeros_stay_zero_and_the_rest_is_in_the_table(seed: int, share: float) -> None:
    w, h = problem(seed, dead=2)
    mask = np.random.default_rng(seed).random(w.shape) < share
    for metric in (Metric(h, 12), Metric(None, 12)):
        found = round_with_feedback(w, metric, TABLE, mask=mask)
        better = coordinate_descent(w, found, metric, TABLE, mask=mask)
        for result in (found, better):
            assert not result[~mask].any()
            assert set(np.unique(result[mask])) <= set(TABLE.values.ravel())


def test_a_factor_a_row_does_better_under_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    w, h = problem(12, rows=60, columns=40, samples=200)
    metric = Metric(h, 40)
    mask = eliminate(w, metric, InMatrix(600)) != 0
    own = objective(w, round_with_feedback(w, metric, TABLE, mask=mask), metric)
    monkeypatch.setattr("onnxslim.solvers.feedback._OWN_FLOPS", 0.0)
    shared = objective(w, round_with_feedback(w, metric, TABLE, mask=mask), metric)
    assert own < shared


def test_rows_with_the_same_zeros_share_a_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    w, h = problem(13, rows=20)
    metric = Metric(h, 12)
    mask = np.ones(w.shape, bool)
    mask[3, 5] = mask[8, 5] = mask[11, :7] = False
    apart = [round_with_feedback(w[[i]], metric, TABLE, mask=mask[[i]]) for i in range(20)]
    sizes = []

    def listening(matrix: np.ndarray, *, overwrite: bool) -> np.ndarray:
        sizes.append(len(matrix))
        return inverse_factor(matrix, overwrite=overwrite)

    monkeypatch.setattr("onnxslim.solvers.feedback.inverse_factor", listening)
    np.testing.assert_allclose(
        round_with_feedback(w, metric, TABLE, mask=mask), np.concatenate(apart)
    )
    assert sorted(sizes) == [5, 11, 12]


def test_a_matrix_that_is_not_positive_definite_has_no_factor() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        inverse_factor(np.array([[1.0, 2.0], [2.0, 1.0]]))


def test_rows_are_taken_in_portions_without_changing_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    w, h = problem(13, rows=20)
    mask = np.random.default_rng(0).random(w.shape) < 0.5
    metric = Metric(h, 12)
    whole = round_with_feedback(w, metric, TABLE, mask=mask)
    monkeypatch.setattr("onnxslim.solvers.feedback._OWN_ITEMS", 150)
    np.testing.assert_allclose(round_with_feedback(w, metric, TABLE, mask=mask), whole)


def test_without_correlations_feedback_is_rounding_to_nearest() -> None:
    w, _ = problem(14)
    metric = Metric(np.diag(np.arange(1.0, 13)), 12)
    np.testing.assert_array_equal(
        round_with_feedback(w, metric, TABLE), round_to_nearest(w, TABLE, metric)
    )


@settings(max_examples=30)
@given(SEEDS)
def test_refitted_values_are_the_best_for_their_codes(seed: int) -> None:
    w, h = problem(seed)
    metric = Metric(h, 12)
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 4, w.shape)
    values = solve_values(*value_equations(w, metric, codes, 4))

    def error(table: np.ndarray) -> float:
        return objective(w, np.where(codes >= 0, table[codes], 0.0), metric)

    best = error(values)
    for _ in range(5):
        assert best <= error(values + 0.01 * rng.standard_normal(4)) + 1e-9


def test_values_that_no_weight_uses_become_zero() -> None:
    w, h = problem(15)
    values = solve_values(*value_equations(w, Metric(h, 12), np.zeros(w.shape, int), 3))
    np.testing.assert_allclose(values[1:], 0, atol=1e-12)


def test_vectors_of_every_combination_agree_with_brute_force_on_a_tiny_table() -> None:
    """Feedback is a heuristic: it may miss the best of all 2^4 choices, but not by much."""
    w, h = problem(16, rows=1, columns=4)
    metric = Metric(h, 4)
    table = Table.of(np.array([-1.0, 1.0]))
    best = min(
        objective(w, np.where(np.isin(np.arange(4), chosen), 1.0, -1.0)[None], metric)
        for count in range(5)
        for chosen in combinations(range(4), count)
    )
    found = coordinate_descent(w, round_with_feedback(w, metric, table), metric, table, sweeps=5)
    assert best <= objective(w, found, metric) <= 2 * best


@pytest.mark.parametrize("depth", [1e-5, 1e-3, 0.1, 0.99])
def test_moments_that_rounding_left_indefinite_are_damped_until_they_can_be_used(
    depth: float,
) -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    values = np.linspace(0, 1, 12)
    values[0] = -depth  # as when a large mean is taken off again
    metric = Metric((basis * values) @ basis.T, 12)
    assert metric.damping > depth
    block = metric.blocks[0]
    np.testing.assert_allclose(block.inverse @ block.matrix, np.eye(12), atol=1e-6)

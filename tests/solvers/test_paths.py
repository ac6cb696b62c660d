"""Elimination in rounds, its path through ever smaller budgets, and the equations of tables."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_nets import moments_of, normal

from onnxslim.services.moments import BlockDiagonal
from onnxslim.solvers.column_sweep import sweep_out
from onnxslim.solvers.feedback import round_with_feedback
from onnxslim.solvers.least_squares import refit
from onnxslim.solvers.masks import InMatrix, InRow, InRun
from onnxslim.solvers.metric import Metric, objective
from onnxslim.solvers.refinement import (
    refit_row_values,
    solve_values,
    value_equations,
)
from onnxslim.solvers.surgeon import eliminate, elimination_path, surgeon
from onnxslim.solvers.tables import Table, round_to_nearest

SEEDS = st.integers(0, 1000)
FEW = settings(max_examples=20, deadline=None)


def problem(
    seed: int, rows: int = 6, columns: int = 12, dead: int = 0
) -> tuple[np.ndarray, Metric]:
    return normal(rows, columns, seed=seed).astype(float), Metric(
        moments_of(columns, seed, dead), columns
    )


# ------------------------------------------------------------------- surgeon


@FEW
@given(SEEDS, st.integers(0, 72))
def test_what_stays_is_the_best_for_its_zeros(seed: int, keep: int) -> None:
    target, metric = problem(seed)
    for budget in (InMatrix(keep), InRow(keep // 6), InRun(2, 4)):
        weight = surgeon(target, metric, budget)
        fitted = refit(target, metric, weight != 0)
        assert (
            objective(target, weight, metric) <= 1.0001 * objective(target, fitted, metric) + 1e-9
        )


@FEW
@given(SEEDS, st.integers(1, 71))
def test_it_never_keeps_more_than_it_may_and_no_less_where_inputs_live(
    seed: int, keep: int
) -> None:
    target, metric = problem(seed)
    assert np.count_nonzero(surgeon(target, metric, InMatrix(keep))) == keep
    each = surgeon(target, metric, InRow(keep // 6))
    assert set(np.count_nonzero(each, axis=1)) == {keep // 6}


def test_inverses_of_rows_are_taken_where_they_can_be_afforded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, metric = problem(0, 20, 24)
    budget = InMatrix(120)
    found = surgeon(target, metric, budget)
    np.testing.assert_array_equal(found, eliminate(target, metric, budget))
    monkeypatch.setattr("onnxslim.solvers.surgeon._OWN_FLOPS", 0.0)
    swept = surgeon(target, metric, budget)
    assert np.count_nonzero(swept) == 120
    np.testing.assert_array_equal(swept != 0, sweep_out(target, metric, budget) != 0)
    assert objective(target, found, metric) <= objective(target, swept, metric)


def test_blocks_of_moments_share_a_budget() -> None:
    second = BlockDiagonal((moments_of(8, 0), 100 * moments_of(8, 1)))
    target, metric = normal(5, 16).astype(float), Metric(second, 16)
    weight = surgeon(target, metric, InMatrix(40))
    assert np.count_nonzero(weight) <= 40
    assert np.count_nonzero(weight[:, 8:]) > np.count_nonzero(weight[:, :8])


@pytest.mark.parametrize("keep", [0, 1, 71, 72, 100])
def test_budgets_at_the_edge(keep: int) -> None:
    target, metric = problem(1)
    assert np.count_nonzero(surgeon(target, metric, InMatrix(keep))) == min(keep, 72)


def test_without_moments_it_keeps_the_largest() -> None:
    target = normal(6, 12).astype(float)
    weight = surgeon(target, Metric(None, 12), InMatrix(20))
    kept = weight != 0
    np.testing.assert_array_equal(weight[kept], target[kept])
    assert np.abs(target[~kept]).max() <= np.abs(target[kept]).min()


# ------------------------------------------------------------------- the path

KEPT_COUNTS = (72, 50, 36, 24, 12, 6, 1)


def test_the_path_gives_the_best_weights_for_ever_more_zeros() -> None:
    target, metric = problem(2)
    found = [weight for weight, _ in elimination_path(target, metric, KEPT_COUNTS)]
    assert [np.count_nonzero(weight) for weight in found] == list(KEPT_COUNTS)
    for before, after in pairwise(found):
        assert not after[before == 0].any()
    for weight in found:
        np.testing.assert_allclose(weight, refit(target, metric, weight != 0), atol=1e-8)
    errors = [objective(target, weight, metric) for weight in found]
    assert errors == sorted(errors)


def test_the_path_says_what_moving_a_weight_costs_when_the_others_make_up() -> None:
    target, metric = problem(3)
    for weight, inverse in elimination_path(target, metric, KEPT_COUNTS[:5]):
        support = weight != 0
        assert np.isinf(inverse[~support]).all()
        row = int(support.sum(axis=1).argmax())
        column = int(np.flatnonzero(support[row])[0])
        rest = support.copy()
        rest[row, column] = False
        step = np.zeros_like(target)
        step[row, column] = weight[row, column] + 1
        # one weight one further, the others fitted to what is left
        fitted = step + refit(target - step, metric, rest)
        cost = objective(target, fitted, metric) - objective(target, weight, metric)
        assert cost == pytest.approx(1 / inverse[row, column], rel=1e-3)


def test_the_path_ends_near_where_elimination_does() -> None:
    """Not quite there: it has fewer rounds for the last weights that go."""
    target, metric = problem(4, 12, 24)
    keeps = [round(float(k)) for k in np.geomspace(288, 60, 40)]
    *_, (weight, _) = elimination_path(target, metric, keeps)
    other = eliminate(target, metric, InMatrix(60))
    ratio = objective(target, weight, metric) / objective(target, other, metric)
    assert 0.7 < ratio < 1.5


def test_weights_of_dead_inputs_are_not_on_the_path() -> None:
    target, metric = problem(5, dead=5)
    for weight, inverse in elimination_path(target, metric, KEPT_COUNTS):
        assert not weight[:, :5].any()
        assert np.isinf(inverse[:, :5]).all()
        assert np.count_nonzero(weight) <= 42


# ------------------------------------------------------------------- values of tables


def some_codes(seed: int, rows: int = 6, columns: int = 12, count: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, count, (rows, columns))


def weight_of(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`values` (L,) or (rows, L), zero where the code is −1."""
    table = np.broadcast_to(values, (len(codes), values.shape[-1]))
    return np.where(codes < 0, 0.0, np.take_along_axis(table, np.maximum(codes, 0), axis=1))


def refit_values(target: np.ndarray, metric: Metric, codes: np.ndarray, count: int) -> np.ndarray:
    return solve_values(*value_equations(target, metric, codes, count))


@FEW
@given(SEEDS)
def test_equations_of_several_matrices_can_be_added(seed: int) -> None:
    (a, m), (b, n) = problem(seed), problem(seed + 1)
    codes = [some_codes(seed), some_codes(seed + 1)]
    sides = [value_equations(t, h, c, 4) for t, h, c in ((a, m, codes[0]), (b, n, codes[1]))]
    values = solve_values(sides[0][0] + sides[1][0], sides[0][1] + sides[1][1])

    def error(trial: np.ndarray) -> float:
        pairs = ((a, m, codes[0]), (b, n, codes[1]))
        return sum(objective(t, weight_of(c, trial), h) for t, h, c in pairs)

    best = error(values)
    rng = np.random.default_rng(seed)
    for size in (1e-3, 1e-2, 0.1):
        assert error(values + size * rng.standard_normal(4)) >= best - 1e-6 * best


@FEW
@given(SEEDS)
def test_a_table_for_each_row_is_refitted_as_each_row_by_itself(seed: int) -> None:
    target, metric = problem(seed)
    codes = some_codes(seed)
    found = refit_row_values(target, metric, codes, 4)
    assert found.shape == (6, 4)
    for row in range(6):
        alone = refit_values(target[row : row + 1], metric, codes[row : row + 1], 4)
        np.testing.assert_allclose(found[row], alone, atol=1e-7)
    shared = refit_values(target, metric, codes, 4)
    assert (
        objective(target, weight_of(codes, found), metric)
        <= objective(target, weight_of(codes, shared), metric) + 1e-9
    )


def test_values_that_no_weight_of_a_row_uses_are_zero() -> None:
    target, metric = problem(8)
    codes = np.zeros((6, 12), int)
    codes[2] = 1
    codes[3] = -1
    found = refit_row_values(target, metric, codes, 3)
    assert (found[[0, 1, 4, 5], 1:] == 0).all()
    assert found[2, 1] != 0
    assert (found[2, [0, 2]] == 0).all()
    assert (found[3] == 0).all()


def test_weights_of_dead_inputs_have_no_say_in_values() -> None:
    target, metric = problem(9, dead=5)
    codes = some_codes(9)
    other = codes.copy()
    other[:, :5] = np.random.default_rng(0).integers(0, 4, (6, 5))
    for fit in (refit_values, refit_row_values):
        np.testing.assert_allclose(
            fit(target, metric, codes, 4), fit(target, metric, other, 4), atol=1e-9
        )


# ------------------------------------------------------------------- rounding


def test_a_target_that_is_fitted_already_is_not_fitted_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, metric = problem(10)
    mask = np.abs(target) > 0.6
    fitted = refit(target, metric, mask)
    table = Table.of(np.array([-1.5, -0.5, 0.5, 1.5]))
    expected = round_with_feedback(target, metric, table, mask=mask)
    monkeypatch.setattr("onnxslim.solvers.feedback.refit", None)
    found = round_with_feedback(fitted, metric, table, mask=mask, is_fitted=True)
    np.testing.assert_array_equal(found, expected)


@FEW
@given(SEEDS, st.booleans())
def test_feedback_is_never_worse_than_rounding_in_any_row(seed: int, zeros: bool) -> None:
    target, metric = problem(seed)
    mask = np.abs(target) > 0.6 if zeros else None
    if mask is not None:
        target = refit(target, metric, mask)
    table = Table.of(np.array([-1.0, 0.2, 0.9]))
    fed = round_with_feedback(target, metric, table, mask=mask, is_fitted=True)
    plain = round_to_nearest(target, table, metric, mask)
    assert (
        metric.cost_by_row(target - fed) <= metric.cost_by_row(target - plain) * (1 + 1e-9)
    ).all()

"""Codebooks found for a problem: what they hold, that they are coherent, and how good they are."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_nets import (
    decoded,
    grouped_problem,
    matmul_problem,
    moments_of,
    net,
    node,
    normal,
    problem_of,
)

from onnxslim.codebook.weight import TableGranularity
from onnxslim.lossy.problems import Problem
from onnxslim.lossy.scalar_codebooks import TableSpec, find_scalar_codebook
from onnxslim.solvers.kmeans.lloyd import TableInit
from onnxslim.solvers.least_squares import refit

pytestmark = pytest.mark.slow

HALF = np.dtype(np.float16)


def masked(problem: Problem, share: float = 0.5) -> np.ndarray:
    limit = np.quantile(np.abs(problem.target), share)
    return np.abs(problem.target) > limit


FORMS = [
    pytest.param(TableSpec(4), id="tensor"),
    pytest.param(TableSpec(4, TableGranularity.ROW), id="row"),
    pytest.param(TableSpec(4, TableGranularity.RUN, 6), id="run"),
    pytest.param(TableSpec(2), id="two values"),
    pytest.param(TableSpec(7, table=HALF), id="float16"),
    pytest.param(TableSpec(5, start=TableInit.LINEAR, weighted=False), id="linear start"),
    pytest.param(
        TableSpec(5, TableGranularity.ROW, start=TableInit.DENSITY, feedback=False),
        id="no feedback",
    ),
]
PROBLEMS = [
    pytest.param(lambda: matmul_problem(columns=18), id="matmul"),
    pytest.param(lambda: matmul_problem(columns=18, data=False), id="matmul, no data"),
    pytest.param(lambda: matmul_problem(columns=18, dead=7), id="matmul, dead inputs"),
    pytest.param(lambda: matmul_problem(1, 18), id="one output"),
    pytest.param(grouped_problem, id="grouped conv"),
    pytest.param(lambda: grouped_problem(data=False), id="grouped conv, no data"),
]


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", PROBLEMS)
def test_codes_and_tables_are_coherent(make: object, form: TableSpec, zeros: bool) -> None:
    problem: Problem = make()  # type: ignore[operator]
    if not problem.has_data:
        form = TableSpec(**{**vars(form), "feedback": False})
    mask = masked(problem) if zeros else None
    if mask is not None:  # what pruning leaves
        problem.layer.holder.values = problem.layer.restored(np.where(mask, problem.weight, 0))
        problem = Problem(problem.layers, problem.metrics)
    found = find_scalar_codebook(problem, form, mask, seed=0)
    ((codes, table),) = found.stages
    blocks = {
        TableGranularity.TENSOR: 1,
        TableGranularity.ROW: problem.layer.groups * problem.layer.rows,
    }.get(form.per, problem.layer.groups * 3)
    assert codes.shape == problem.target.shape
    assert codes.dtype == np.uint8
    assert table.dtype == form.table
    assert table.shape[-1] <= form.levels
    assert table.shape[:-1] == (() if form.per is TableGranularity.TENSOR else (blocks,))
    assert (np.diff(table.astype(np.float64), axis=-1) >= 0).all()
    assert not np.signbit(table[table == 0]).any()
    weight = decoded(problem, form, found)
    assert found.error == pytest.approx(problem.relative_error(weight), rel=1e-4, abs=1e-9)
    if found.weight is not None:
        np.testing.assert_allclose(found.weight, weight, rtol=1e-6)
    if mask is not None:
        assert not weight[~mask].any()


@given(st.integers(1, 6), st.integers(2, 12), st.integers(2, 9), st.integers(0, 99), st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_size_gives_a_codebook(
    rows: int, columns: int, levels: int, seed: int, zeros: bool
) -> None:
    problem = matmul_problem(rows, columns, seed=seed)
    mask = masked(problem, 0.4) if zeros else None
    for per, width in (
        (TableGranularity.TENSOR, None),
        (TableGranularity.ROW, None),
        (TableGranularity.RUN, 1),
        (TableGranularity.RUN, columns),
    ):
        form = TableSpec(levels, per, width)
        found = find_scalar_codebook(problem, form, mask, seed=0)
        weight = decoded(problem, form, found)
        assert mask is None or not weight[~mask].any()
        for row in weight[0]:
            assert len(np.unique(row)) <= (
                levels if per is not TableGranularity.RUN else columns * levels
            )


# ------------------------------------------------------------------- how good


def test_without_data_one_table_is_the_best_in_squares() -> None:
    problem = matmul_problem(3, 4, data=False)
    values = np.sort(problem.weight.reshape(-1).astype(np.float64))
    best = min(
        sum(float(np.square(part - part.mean()).sum()) for part in np.split(values, cut))
        for cut in ([i, j] for i, j in product(range(1, 12), repeat=2) if i < j)
    )
    found = find_scalar_codebook(problem, TableSpec(3, feedback=False), None, seed=0)
    assert found.error == pytest.approx(best / np.square(values).sum(), rel=1e-6)


@pytest.mark.parametrize(
    "per", [TableGranularity.TENSOR, TableGranularity.ROW, TableGranularity.RUN]
)
@pytest.mark.parametrize("zeros", [False, True])
def test_feedback_beats_rounding_on_correlated_inputs(per: TableGranularity, zeros: bool) -> None:
    gains = []
    for seed in range(4):
        problem = matmul_problem(seed=seed)
        mask = masked(problem) if zeros else None
        errors = [
            find_scalar_codebook(
                problem, TableSpec(4, per, 8, feedback=feedback), mask, seed=0
            ).error
            for feedback in (True, False)
        ]
        if mask is not None:  # what the zeros alone leave is no merit of either
            weight = np.stack([refit(problem.target[0], problem.metrics[0], mask[0])])
            least = problem.relative_error(weight)
            errors = [error - least for error in errors]
        gains.append(errors[0] / errors[1])
    assert max(gains) < 0.7, gains


def test_weighting_by_what_moving_costs_beats_plain_k_means() -> None:
    columns = 16
    scale = np.geomspace(0.05, 5, columns)
    source = net([node("MatMul", ["x", "w"], "y")], {"w": normal(columns, 30)}, ["N", columns])
    second = moments_of(columns, 0) * scale * scale[:, None]
    problem = problem_of(source, second)
    errors = [
        find_scalar_codebook(
            problem, TableSpec(4, weighted=weighted, feedback=False), None, seed=0
        ).error
        for weighted in (True, False)
    ]
    assert errors[0] < errors[1]


def test_more_values_and_more_tables_cost_less() -> None:
    problem = matmul_problem(30)
    errors = [
        find_scalar_codebook(problem, TableSpec(levels), None, seed=0).error
        for levels in (2, 4, 8, 16, 32)
    ]
    assert all(b < a for a, b in pairwise(errors))
    own = [
        find_scalar_codebook(problem, TableSpec(4, per, 4), None, seed=0).error
        for per in TableGranularity
    ]
    assert own[1] < own[0]
    assert own[2] < 1.1 * own[0]  # without a refit of its tables


def test_two_values_are_near_the_best_that_there_is() -> None:
    """Against all 2^6 assignments, each with its best values."""
    ratios = []
    for seed in range(6):
        problem = matmul_problem(1, 6, seed=seed)
        target, metric = problem.target[0], problem.metrics[0]
        best = np.inf
        for bits in product((0.0, 1.0), repeat=6):
            parts = np.array([bits, 1 - np.array(bits)])
            h = metric.blocks[0].undamped()
            values = np.linalg.lstsq(parts @ h @ parts.T, parts @ h @ target[0], rcond=None)[0]
            best = min(best, problem.error((values @ parts)[None, None]))
        found = find_scalar_codebook(problem, TableSpec(2), None, seed=0)
        assert found.weight is not None
        ratios.append(problem.error(found.weight) / best)
    assert min(ratios) >= 1 - 1e-6
    assert np.median(ratios) < 2.0


# ------------------------------------------------------------------- edges


def test_as_many_values_as_weights_cost_nothing() -> None:
    for data in (True, False):
        problem = matmul_problem(3, 4, data=data)
        assert find_scalar_codebook(problem, TableSpec(16), None, seed=0).error < 1e-6


def test_a_weight_of_few_values_keeps_them() -> None:
    source = net(
        [node("MatMul", ["x", "w"], "y")],
        {"w": np.random.default_rng(0).choice([-1.5, 0.25, 2], (16, 9)).astype(np.float32)},
        ["N", 16],
    )
    for second in (None, moments_of(16, 0)):
        problem = problem_of(source, second)
        found = find_scalar_codebook(problem, TableSpec(8), None, seed=0)
        np.testing.assert_allclose(
            np.unique(decoded(problem, TableSpec(8), found)), [-1.5, 0.25, 2]
        )


@pytest.mark.parametrize("per", list(TableGranularity))
@pytest.mark.parametrize("data", [True, False])
def test_a_weight_of_zeros_alone_stays_so(per: TableGranularity, data: bool) -> None:
    source = net([node("MatMul", ["x", "w"], "y")], {"w": np.zeros((16, 9), np.float32)}, ["N", 16])
    problem = problem_of(source, moments_of(16, 0) if data else None)
    form = TableSpec(4, per, 4 if per is TableGranularity.RUN else None, feedback=data)
    found = find_scalar_codebook(problem, form, np.zeros((1, 9, 16), bool), seed=0)
    assert found.error == 0
    assert not decoded(problem, form, found).any()


@pytest.mark.parametrize("per", list(TableGranularity))
def test_rows_and_runs_without_a_weight_or_an_input_are_no_obstacle(per: TableGranularity) -> None:
    problem = matmul_problem(9, 16, dead=8)
    mask = masked(problem)
    mask[0, 0] = False
    mask[0, :, :4] = False
    form = TableSpec(4, per, 4 if per is TableGranularity.RUN else None)
    found = find_scalar_codebook(problem, form, mask, seed=0)
    assert np.isfinite(found.error)
    assert not decoded(problem, form, found)[~mask].any()


def test_two_values_with_a_mask_are_zero_and_one_other() -> None:
    problem = matmul_problem()
    mask = masked(problem)
    found = find_scalar_codebook(problem, TableSpec(2), mask, seed=0)
    values = np.unique(decoded(problem, TableSpec(2), found))
    assert len(values) == 2
    assert 0 in values


def test_a_start_at_random_depends_on_the_seed_alone() -> None:
    problem = matmul_problem(30)
    form = TableSpec(6, start=TableInit.KMEANS_PLUS_PLUS)
    first, second = (find_scalar_codebook(problem, form, None, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.stages[0][0], second.stages[0][0])
    np.testing.assert_array_equal(first.stages[0][1], second.stages[0][1])

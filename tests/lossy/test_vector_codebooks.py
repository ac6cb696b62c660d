"""Codes for sub-vectors and sums of codes, found for a problem."""

from __future__ import annotations

import numpy as np
import pytest
from layer_nets import decoded, grouped_problem, matmul_problem

from onnxslim.lossy.scalar_codebooks import TableSpec, find_scalar_codebook
from onnxslim.lossy.vector_codebooks import find_vector_codebook

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize(("length", "stages"), [(2, 1), (3, 1), (6, 2), (1, 2), (1, 3)])
@pytest.mark.parametrize("table", [np.float32, np.float16])
def test_codes_and_tables_are_coherent(
    data: bool, conv: bool, length: int, stages: int, table: type
) -> None:
    problem = grouped_problem(data=data) if conv else matmul_problem(20, 18, data=data)
    form = TableSpec(5, table=np.dtype(table), feedback=data)
    found = find_vector_codebook(problem, form, length, stages, seed=0)
    assert len(found.stages) == stages
    groups, rows, columns = problem.target.shape
    for codes, values in found.stages:
        assert codes.shape == (groups, rows, columns // length)
        assert values.dtype == table
        assert values.shape[0] <= 5
        assert values.shape[1:] == ((length,) if length > 1 else ())
    weight = decoded(problem, form, found)
    assert found.weight is not None
    np.testing.assert_allclose(found.weight, weight, rtol=1e-5, atol=1e-6)
    assert found.error == pytest.approx(problem.relative_error(weight), rel=1e-3)


@pytest.mark.parametrize(("length", "stages"), [(2, 1), (4, 1), (1, 2), (2, 2)])
def test_feedback_beats_rounding_on_correlated_inputs(length: int, stages: int) -> None:
    gains = []
    for seed in range(3):
        problem = matmul_problem(40, 16, seed=seed)
        errors = [
            find_vector_codebook(problem, TableSpec(8, feedback=on), length, stages, seed=0).error
            for on in (True, False)
        ]
        gains.append(errors[0] / errors[1])
    assert max(gains) < 0.9, gains


def test_pairs_of_weights_take_fewer_bits_for_the_same_error() -> None:
    """16 pairs of values are 2 bits a weight: as many as 4 single values."""
    problem = matmul_problem(60, 16, data=False)
    pairs = find_vector_codebook(problem, TableSpec(16, feedback=False), 2, 1, seed=0)
    single = find_scalar_codebook(problem, TableSpec(4, feedback=False), None, seed=0)
    assert pairs.error < single.error


def test_more_stages_cost_less() -> None:
    problem = matmul_problem(40, 16)
    errors = [find_vector_codebook(problem, TableSpec(3), 1, n, seed=0).error for n in (1, 2, 3)]
    assert errors[2] < errors[1] < errors[0]


def test_more_vectors_wanted_than_there_are() -> None:
    problem = matmul_problem(2, 4)
    found = find_vector_codebook(problem, TableSpec(64), 2, 1, seed=0)
    assert found.error < 1e-6


def test_the_result_depends_on_the_seed_alone() -> None:
    problem = matmul_problem(40, 16)
    first, second = (find_vector_codebook(problem, TableSpec(8), 4, 1, seed=5) for _ in range(2))
    for (a, s), (b, t) in zip(first.stages, second.stages, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(s, t)


def test_inputs_that_are_always_zero_are_no_obstacle() -> None:
    problem = matmul_problem(20, 16, dead=8)
    found = find_vector_codebook(problem, TableSpec(16), 2, 1, seed=0)
    assert np.isfinite(found.error)
    assert found.error < 0.5

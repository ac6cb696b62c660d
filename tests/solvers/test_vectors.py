"""Tables of vectors, and sums of tables: near what is known to be best, and never worse for it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.services.moments import BlockDiagonal
from onnxslim.solvers.feedback import round_with_feedback
from onnxslim.solvers.kmeans.assignment import quantization_error
from onnxslim.solvers.kmeans.levels import cluster
from onnxslim.solvers.metric import Metric, objective
from onnxslim.solvers.tables import Table
from onnxslim.solvers.vector_codes import (
    decoded,
    refit_residual,
    residual_codes,
)
from onnxslim.solvers.vectors import cluster_vectors, encode_vectors, residual_tables

SEEDS = st.integers(0, 10_000)


def blobs(seed: int, count: int = 8, v: int = 3, each: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Vectors scattered around centres that lie far apart, and the centres."""
    rng = np.random.default_rng(seed)
    centres = rng.permutation(count)[:, None] * 10.0 + rng.standard_normal((count, v))
    vectors = np.repeat(centres, each, axis=0) + 0.1 * rng.standard_normal((count * each, v))
    return rng.permutation(vectors), centres


def problem(seed: int, rows: int = 40, columns: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """A weight, and second moments of correlated inputs."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, columns)) @ rng.standard_normal((columns, columns))
    return rng.standard_normal((rows, columns)), x.T @ x / 400


def error_of(vectors: np.ndarray, table: np.ndarray, weights: np.ndarray | None = None) -> float:
    errors = np.square(vectors - table[encode_vectors(vectors, table, weights)])
    if weights is None:
        return float(errors.sum())
    return float((errors * (weights if weights.ndim == 2 else weights[:, None])).sum())


def vector_codes(weight: np.ndarray, metric: Metric, table: np.ndarray) -> np.ndarray:
    return np.asarray(residual_codes(weight, metric, [table])[0])


def quantize_vectors(weight: np.ndarray, metric: Metric, table: np.ndarray) -> np.ndarray:
    return decoded([table], residual_codes(weight, metric, [table]))


def refit_vectors(
    weight: np.ndarray, metric: Metric, codes: np.ndarray, table: np.ndarray
) -> np.ndarray:
    return refit_residual(weight, metric, codes[None], [table])[0]


# ---------------------------------------------------------------------------- one table


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_groups_that_lie_apart_are_found(seed: int) -> None:
    vectors, centres = blobs(seed)
    table = cluster_vectors(vectors, 8, seed=seed)
    distances = np.linalg.norm(table[:, None] - centres, axis=2)
    assert sorted(distances.argmin(axis=0)) == list(range(8))
    assert distances.min(axis=0).max() < 0.1


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 300), st.booleans())
def test_every_code_is_that_of_the_nearest_entry(seed: int, count: int, weighted: bool) -> None:
    rng = np.random.default_rng(seed)
    vectors, table = rng.standard_normal((500, 4)) + 9, rng.standard_normal((count, 4)) + 9
    weights = rng.exponential(size=(500, 4)) if weighted else None
    codes = encode_vectors(vectors, table, weights)
    assert codes.dtype == (np.uint8 if count <= 256 else np.uint16)
    squares = np.square(vectors[:, None] - table)
    costs = (squares if weights is None else squares * weights[:, None]).sum(axis=2)
    np.testing.assert_allclose(costs[np.arange(500), codes], costs.min(axis=1), rtol=1e-9)


@pytest.mark.parametrize("shape", ["none", "vectors", "components"])
def test_entries_are_the_weighted_means_of_their_vectors(shape: str) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((600, 2))
    weights = {
        "none": None,
        "vectors": rng.exponential(size=600),
        "components": rng.exponential(size=(600, 2)),
    }[shape]
    table = cluster_vectors(vectors, 6, weights, iterations=500)
    codes = encode_vectors(vectors, table, weights)
    full = np.ones((600, 2)) if weights is None else np.asarray(weights).reshape(600, -1)
    full = np.broadcast_to(full, (600, 2))
    for code in range(6):
        own = codes == code
        mean = (vectors[own] * full[own]).sum(axis=0) / full[own].sum(axis=0)
        np.testing.assert_allclose(table[code], mean, atol=1e-5)


def test_component_weights_lower_the_error_they_weigh() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((3000, 4))
    weights = np.broadcast_to([100.0, 1, 1, 0.01], (3000, 4)) * rng.exponential(size=(3000, 1))
    weighed, plain = cluster_vectors(vectors, 32, weights), cluster_vectors(vectors, 32)
    assert error_of(vectors, weighed, weights) < 0.7 * error_of(vectors, plain, weights)


def test_vectors_of_one_component_come_near_the_optimum_in_one_dimension() -> None:
    values = np.random.default_rng(2).standard_normal(2000)
    found = error_of(values[:, None], cluster_vectors(values[:, None], 8, iterations=200))
    best = quantization_error(values, cluster(values, 8))
    assert best * (1 - 1e-9) <= found <= 1.15 * best


def test_a_sample_is_nearly_as_good_as_all(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(3).standard_normal((40_000, 4)).astype(np.float32)
    whole = error_of(vectors, cluster_vectors(vectors, 16))
    monkeypatch.setattr("onnxslim.solvers.vectors._SAMPLE", 1000)
    monkeypatch.setattr("onnxslim.solvers.vectors._LEARNED", 4000)
    monkeypatch.setattr("onnxslim.solvers.vectors._LEARNED_EACH", 1)
    assert error_of(vectors, cluster_vectors(vectors, 16)) < 1.03 * whole


def test_no_entry_is_left_empty() -> None:
    rng = np.random.default_rng(4)
    vectors = np.concatenate([np.zeros((5000, 2)), rng.standard_normal((300, 2)) * 100])
    table = cluster_vectors(vectors, 64)
    assert len(np.unique(encode_vectors(vectors, table))) == 64


def test_fewer_distinct_vectors_than_entries_are_the_table() -> None:
    rng = np.random.default_rng(5)
    distinct = np.array([[0.0, 1.0], [2.0, 3.0], [-4.0, 0.5]])
    vectors = distinct[rng.integers(0, 3, 200)]
    table = cluster_vectors(vectors, 10)
    np.testing.assert_allclose(table[np.lexsort(table.T[::-1])], distinct[[2, 0, 1]])
    assert cluster_vectors(vectors, 4, np.zeros(200)).shape == (1, 2)


def test_a_seed_gives_the_same_table_again() -> None:
    vectors = np.random.default_rng(6).standard_normal((500, 3))
    a, b, c = (cluster_vectors(vectors, 16, seed=seed, iterations=3) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


# ---------------------------------------------------------------------------- several tables


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from(["none", "vectors", "components"]))
def test_rounds_of_refinement_never_raise_the_error(seed: int, shape: str) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((300, 3))
    weights = {
        "none": None,
        "vectors": rng.exponential(size=300),
        "components": rng.exponential(size=(300, 3)),
    }[shape]
    full = 1.0 if weights is None else weights.reshape(300, -1)
    errors = [
        float((full * np.square(vectors - found.values())).sum())
        for rounds in (0, 1, 2, 8)
        for found in [residual_tables(vectors, 4, 3, weights, rounds=rounds)]
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_each_stage_lowers_the_error() -> None:
    values = np.random.default_rng(7).standard_normal(2000)
    errors = [
        float(np.square(values - residual_tables(values, 2, stages).values()).sum())
        for stages in (1, 2, 3, 4)
    ]
    assert all(after < 0.6 * before for before, after in pairwise(errors))


def test_scalars_have_flat_tables() -> None:
    found = residual_tables(np.random.default_rng(8).standard_normal(100), 2, 3)
    assert [table.shape for table in found.tables] == [(2,), (2,), (2,)]
    assert found.codes.shape == (3, 100)
    assert found.values().shape == (100,)


def test_sums_are_found_again() -> None:
    rng = np.random.default_rng(9)
    coarse, fine = np.array([-8.0, 0, 8, 16]), np.array([-1.0, 0, 1, 2])
    values = coarse[rng.integers(0, 4, 500)] + fine[rng.integers(0, 4, 500)]
    np.testing.assert_allclose(residual_tables(values, 4, 2).values(), values, atol=1e-9)


# ---------------------------------------------------------------------------- error feedback


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from([1, 2, 3, 4, 8]))
def test_feedback_beats_the_nearest_entries(seed: int, v: int) -> None:
    w, h = problem(seed)
    metric = Metric(h, 24)
    table = cluster_vectors(w.reshape(-1, v), 16)
    plain = table[encode_vectors(w.reshape(-1, v), table)].reshape(w.shape)
    fed = quantize_vectors(w, metric, table)
    assert objective(w, fed, metric) < 0.95 * objective(w, plain, metric)


def test_the_weight_is_that_of_the_codes() -> None:
    w, h = problem(0)
    metric, table = Metric(h, 24), cluster_vectors(w.reshape(-1, 4), 16)
    codes = vector_codes(w, metric, table)
    assert codes.shape == (40, 6)
    assert codes.dtype == np.uint8
    weight = quantize_vectors(w, metric, table)
    np.testing.assert_array_equal(weight, table[codes].reshape(w.shape))


def test_vectors_of_one_column_are_quantized_like_scalars() -> None:
    w, h = problem(1)
    metric, table = Metric(h, 24), cluster(w, 8)
    scalars = round_with_feedback(w, metric, Table.of(table))
    found = quantize_vectors(w, metric, table[:, None])
    np.testing.assert_allclose(found, scalars)


def test_long_layers_are_handled_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    w, h = problem(2)
    metric, table = Metric(h, 24), cluster_vectors(w.reshape(-1, 3), 16)
    whole = quantize_vectors(w, metric, table)
    monkeypatch.setattr("onnxslim.solvers.vector_codes._BLOCK", 4)
    np.testing.assert_array_equal(quantize_vectors(w, metric, table), whole)


def test_without_moments_the_nearest_entries_are_taken() -> None:
    w, _ = problem(3)
    table = cluster_vectors(w.reshape(-1, 4), 16)
    codes = encode_vectors(w.reshape(-1, 4), table).reshape(40, 6)
    np.testing.assert_array_equal(vector_codes(w, Metric(None, 24), table), codes)


def test_dead_inputs_have_no_say() -> None:
    w, h = problem(4)
    dead = [1, 6, 7]
    h[dead] = h[:, dead] = 0
    metric, table = Metric(h, 24), cluster_vectors(w.reshape(-1, 4), 16)
    other = w.copy()
    other[:, dead] = 50
    np.testing.assert_array_equal(
        vector_codes(w, metric, table), vector_codes(other, metric, table)
    )
    codes = vector_codes(w, metric, table)
    np.testing.assert_allclose(
        refit_vectors(w, metric, codes, table), refit_vectors(other, metric, codes, table)
    )


@pytest.mark.parametrize("edge", [12, 10])
def test_vectors_may_lie_across_the_border_of_blocks(edge: int) -> None:
    w, h = problem(5)
    whole = h.copy()
    whole[:edge, edge:] = whole[edge:, :edge] = 0
    split = BlockDiagonal((h[:edge, :edge], h[edge:, edge:]))
    table = cluster_vectors(w.reshape(-1, 4), 16)
    a, b = (
        quantize_vectors(w, Metric(second, 24, max_condition=1e12), table)
        for second in (split, whole)
    )
    np.testing.assert_array_equal(a, b)


def test_feedback_is_never_worse_than_the_nearest_entries() -> None:
    rng = np.random.default_rng(6)
    w, h = problem(6)
    metric, table = Metric(h, 24), 0.05 * rng.standard_normal((4, 4))  # everything saturates
    own = np.broadcast_to(metric.diagonal, w.shape).reshape(-1, 4)
    plain = table[encode_vectors(w.reshape(-1, 4), table, own)].reshape(w.shape)
    fed = quantize_vectors(w, metric, table)
    assert np.all(metric.cost_by_row(w - fed) <= metric.cost_by_row(w - plain) + 1e-9)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.sampled_from([1, 4]))
def test_sums_of_tables_are_chosen_with_feedback_too(seed: int, v: int) -> None:
    w, h = problem(seed)
    metric = Metric(h, 24)
    found = residual_tables(w.reshape(-1, v) if v > 1 else w.ravel(), 8, 2)
    plain = found.values().reshape(w.shape)
    fed = decoded(found.tables, residual_codes(w, metric, found.tables))
    assert objective(w, fed, metric) < 0.95 * objective(w, plain, metric)
    codes = residual_codes(w, metric, found.tables)
    assert codes.shape == (2, 40, 24 // v)
    np.testing.assert_array_equal(decoded(found.tables, codes), fed)


def test_a_length_that_does_not_divide_the_columns_is_refused() -> None:
    w, h = problem(7)
    with pytest.raises(ValueError, match="do not divide a weight of 24 columns"):
        quantize_vectors(w, Metric(h, 24), np.zeros((4, 5)))


# ---------------------------------------------------------------------------- entries for codes


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from([1, 2, 4]), st.booleans())
def test_refitted_entries_leave_no_gradient(seed: int, v: int, identity: bool) -> None:
    w, h = problem(seed)
    metric = Metric(None if identity else h, 24)
    table = cluster_vectors(w.reshape(-1, v), 8)
    codes = vector_codes(w, metric, table)
    fitted = refit_vectors(w, metric, codes, table)
    before, after = (objective(w, decoded([t], codes[None]), metric) for t in (table, fitted))
    assert after <= before * (1 + 1e-12)
    error = w - decoded([fitted], codes[None])
    gradient = (error if identity else error @ h).reshape(-1, v)
    scale = np.abs(w if identity else w @ h).sum()
    for component in range(v):
        total = np.bincount(codes.ravel(), gradient[:, component], len(table))
        np.testing.assert_allclose(total, 0, atol=1e-6 * scale)


def test_all_stages_are_refitted_together() -> None:
    w, h = problem(8)
    metric = Metric(h, 24)
    found = residual_tables(w.reshape(-1, 4), 8, 2)
    codes = residual_codes(w, metric, found.tables)
    fitted = refit_residual(w, metric, codes, found.tables)
    assert [table.shape for table in fitted] == [(8, 4), (8, 4)]
    before, after = (objective(w, decoded(t, codes), metric) for t in (found.tables, fitted))
    assert after < before
    flat = residual_tables(w.ravel(), 2, 3)
    codes = residual_codes(w, metric, flat.tables)
    assert [t.shape for t in refit_residual(w, metric, codes, flat.tables)] == [(2,)] * 3


def test_entries_that_no_code_uses_stay() -> None:
    w, h = problem(9)
    table = np.concatenate([cluster_vectors(w.reshape(-1, 4), 8), [[1e3] * 4]])
    codes = vector_codes(w, Metric(h, 24), table)
    np.testing.assert_array_equal(refit_vectors(w, Metric(h, 24), codes, table)[8], [1e3] * 4)


# ---------------------------------------------------------------------------- refusals


def test_nonsense_is_refused() -> None:
    vectors = np.zeros((5, 2))
    with pytest.raises(ValueError, match="at least 1"):
        cluster_vectors(vectors, 0)
    with pytest.raises(ValueError, match="must be finite"):
        cluster_vectors(np.full((5, 2), np.nan), 2)
    with pytest.raises(ValueError, match=r"not \(4,\)"):
        cluster_vectors(vectors, 2, np.ones(4))
    with pytest.raises(ValueError, match="not negative"):
        cluster_vectors(vectors, 2, -np.ones(5))
    with pytest.raises(ValueError, match="length 3"):
        encode_vectors(vectors, np.zeros((4, 3)))

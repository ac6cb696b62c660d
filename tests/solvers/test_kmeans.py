"""Tables in one dimension: exactly optimal where that is said, near it elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement, pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.solvers.kmeans.assignment import encode, quantization_error
from onnxslim.solvers.kmeans.levels import cluster, cluster_rows
from onnxslim.solvers.kmeans.lloyd import TableInit

SEEDS = st.integers(0, 10_000)
LLOYD = [TableInit.LINEAR, TableInit.DENSITY, TableInit.KMEANS_PLUS_PLUS]


def run_cost(values: np.ndarray, weights: np.ndarray) -> float:
    if not weights.sum():
        return 0.0
    mean = np.average(values, weights=weights)
    return float((weights * (values - mean) ** 2).sum())


def least_cost(values: np.ndarray, count: int, weights: np.ndarray | None = None) -> float:
    """By trying all cuts of the sorted values."""
    order = np.argsort(values)
    values = values[order]
    weights = np.ones(len(values)) if weights is None else weights[order]
    if not count:
        return 0.0 if not len(values) else np.inf
    return min(
        sum(run_cost(values[a:b], weights[a:b]) for a, b in pairwise(cut))
        for inner in combinations_with_replacement(range(len(values) + 1), count - 1)
        for cut in [(0, *inner, len(values))]
    )


def least_cost_with_zero(values: np.ndarray, count: int) -> float:
    values = np.sort(values)
    size = len(values)
    return min(
        least_cost(values[:a], left)
        + float(np.square(values[a:b]).sum())
        + least_cost(values[b:], count - 1 - left)
        for a in range(size + 1)
        for b in range(a, size + 1)
        for left in range(count)
    )


@pytest.fixture
def binned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Histograms also for few values, read in small pieces."""
    monkeypatch.setattr("onnxslim.solvers.kmeans.levels._SORTED", 0)
    monkeypatch.setattr("onnxslim.solvers.kmeans.pieces._CHUNK", 1 << 10)


# ---------------------------------------------------------------------------- the optimum


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 5))
def test_no_cut_of_the_sorted_values_is_better(seed: int, count: int) -> None:
    values = np.random.default_rng(seed).standard_normal(11)
    table = cluster(values, count)
    assert len(table) == count
    np.testing.assert_allclose(quantization_error(values, table), least_cost(values, count))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_no_cut_is_better_under_weights(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    values, weights = rng.standard_normal(10), rng.exponential(size=10)
    weights[rng.random(10) < 0.2] = 0.0
    weights[0] = 1.0
    found = quantization_error(values, cluster(values, count, weights), weights)
    np.testing.assert_allclose(found, least_cost(values, count, weights), atol=1e-12)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 4), st.sampled_from([-2.0, -0.5, 0.0, 1.0, 3.0]))
def test_the_others_are_optimal_beside_a_fixed_zero(seed: int, count: int, shift: float) -> None:
    values = np.random.default_rng(seed).standard_normal(7) + shift
    table = cluster(values, count, fixed_zero=True)
    assert 0.0 in table
    assert len(table) <= count
    found = quantization_error(values, table)
    np.testing.assert_allclose(found, least_cost_with_zero(values, count), atol=1e-12)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(2, 20))
def test_more_levels_never_cost_more(seed: int, count: int) -> None:
    values = np.random.default_rng(seed).laplace(size=300)
    errors = [quantization_error(values, cluster(values, size)) for size in (count, count + 1)]
    assert errors[1] <= errors[0]


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(-30, 30), st.sampled_from([1e-200, 1e-8, 1.0, 1e9, 1e200]))
def test_scale_and_sign_do_not_matter(seed: int, shift: float, scale: float) -> None:
    values = np.random.default_rng(seed).standard_normal(50) + shift
    table = cluster(values, 4)
    np.testing.assert_allclose(cluster(values * scale, 4), table * scale, rtol=1e-9)
    np.testing.assert_allclose(-cluster(-values, 4)[::-1], table, rtol=1e-9)


@pytest.mark.parametrize("start", list(TableInit))
def test_few_distinct_values_are_the_table(start: TableInit) -> None:
    values = np.random.default_rng(0).choice(np.array([-1.5, 0.25, 3], np.float32), 1000)
    np.testing.assert_array_equal(cluster(values, 3, start=start), [-1.5, 0.25, 3])
    np.testing.assert_array_equal(cluster(values, 200, start=start), [-1.5, 0.25, 3])
    with_zero = cluster(values, 4, start=start, fixed_zero=True)
    np.testing.assert_array_equal(with_zero, [-1.5, 0, 0.25, 3])


@pytest.mark.usefixtures("binned")
@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_few_distinct_values_are_the_table_of_a_histogram_too(kind: type[np.generic]) -> None:
    levels = np.array([-1.1, 1e-7, 0.3, 0.30001, 7]).astype(kind)
    values = np.random.default_rng(0).choice(levels, 5000)
    np.testing.assert_array_equal(cluster(values, 16), np.unique(levels.astype(np.float64)))


def test_one_level_is_the_mean() -> None:
    values = np.array([1.0, 2.0, 6.0])
    np.testing.assert_allclose(cluster(values, 1), [3.0])
    np.testing.assert_allclose(cluster(values, 1, np.array([0, 1, 1])), [4.0])
    np.testing.assert_array_equal(cluster(values, 1, fixed_zero=True), [0.0])


def test_values_without_weight_do_not_matter_unless_all_are() -> None:
    values = np.array([1.0, 2.0, 9.0, 9.5])
    np.testing.assert_array_equal(cluster(values, 2, np.array([1, 1, 0, 0])), [1, 2])
    np.testing.assert_array_equal(cluster(values, 2, np.zeros(4)), cluster(values, 2))


@pytest.mark.slow
def test_large_tables_are_possible() -> None:
    values = np.random.default_rng(0).standard_normal(1500)
    table = cluster(values, 400)
    assert len(table) == 400
    assert encode(values, table).dtype == np.uint16


# ---------------------------------------------------------------------------- histograms


@pytest.mark.slow
@pytest.mark.usefixtures("binned")
@pytest.mark.parametrize("count", [2, 16, 32])
@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.standard_normal(20_000),
        lambda rng: rng.laplace(size=20_000),
        lambda rng: rng.standard_t(3, 20_000),
        lambda rng: rng.uniform(5, 6, 20_000),
        lambda rng: -rng.exponential(size=20_000),
    ],
    ids=["normal", "laplace", "student", "offset", "negative"],
)
def test_a_histogram_costs_next_to_nothing(
    draw: Callable[[np.random.Generator], np.ndarray],
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = draw(np.random.default_rng(0)).astype(np.float32)
    found = quantization_error(values, cluster(values, count))
    monkeypatch.setattr("onnxslim.solvers.kmeans.levels._SORTED", 1 << 16)
    exact = quantization_error(values, cluster(values, count))
    assert exact * (1 - 1e-9) <= found <= exact * (1 + 1e-4)


@pytest.mark.usefixtures("binned")
@pytest.mark.parametrize("fixed_zero", [False, True])
def test_a_histogram_takes_weights_that_broadcast(fixed_zero: bool) -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((50, 7, 40)).astype(np.float32)
    weights = rng.exponential(size=(7, 1))
    full = np.broadcast_to(weights, values.shape).copy()
    table = cluster(values, 8, weights, fixed_zero=fixed_zero)
    np.testing.assert_array_equal(table, cluster(values, 8, full, fixed_zero=fixed_zero))
    np.testing.assert_allclose(
        quantization_error(values, table, weights), quantization_error(values, table, full)
    )


@pytest.mark.usefixtures("binned")
def test_several_arrays_are_clustered_as_one() -> None:
    rng = np.random.default_rng(2)
    parts: list[np.ndarray] = [rng.standard_normal((30, 40)).astype(np.float32)]
    parts.append(rng.standard_normal(3000))
    weights: list[np.ndarray] = [rng.exponential(size=40), np.array(2.0)]
    flat: list[np.ndarray] = [part.reshape(-1).astype(np.float64) for part in parts]
    together = np.concatenate(flat)
    full = np.concatenate([np.tile(weights[0], 30), np.full(3000, 2.0)])
    a = cluster(parts, 8, weights)
    np.testing.assert_allclose(a, cluster(together, 8, full), rtol=1e-4)


@pytest.mark.usefixtures("binned")
def test_values_may_be_mapped_from_a_file_and_strided(tmp_path: Path) -> None:
    values = np.random.default_rng(3).standard_normal((300, 20)).astype(np.float32)
    np.save(tmp_path / "values.npy", values)
    mapped = np.load(tmp_path / "values.npy", mmap_mode="r")
    np.testing.assert_array_equal(cluster(mapped, 8), cluster(values, 8))
    np.testing.assert_allclose(cluster(values.T, 8), cluster(values, 8), rtol=1e-12)
    np.testing.assert_array_equal(
        encode(mapped.T, cluster(values, 8)).T, encode(values, cluster(values, 8))
    )


@pytest.mark.usefixtures("binned")
def test_float16_is_as_good_as_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).standard_normal(30_000).astype(np.float16)
    table = cluster(values, 16)
    monkeypatch.setattr("onnxslim.solvers.kmeans.levels._SORTED", 1 << 16)
    np.testing.assert_allclose(table, cluster(values, 16), rtol=1e-9)


@pytest.mark.usefixtures("binned")
def test_doubles_beyond_the_range_of_floats_are_binned_as_well() -> None:
    values = np.random.default_rng(5).standard_normal(20_000)
    np.testing.assert_allclose(cluster(values * 2.0**500, 8) / 2.0**500, cluster(values, 8))


# ---------------------------------------------------------------------------- Lloyd


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from(LLOYD), st.integers(1, 9), st.booleans())
def test_other_starts_end_where_no_level_moves(
    seed: int, start: TableInit, count: int, fixed_zero: bool
) -> None:
    values = np.random.default_rng(seed).laplace(size=400)
    table = cluster(values, count, start=start, fixed_zero=fixed_zero, seed=seed)
    codes = encode(values, table)
    for code, level in enumerate(table):
        if (codes == code).any() and not (fixed_zero and level == 0):
            np.testing.assert_allclose(values[codes == code].mean(), level, atol=1e-9)
    assert not fixed_zero or 0.0 in table
    best = cluster(values, count, fixed_zero=fixed_zero)
    assert quantization_error(values, best) <= quantization_error(values, table) * (1 + 1e-12)


def test_a_seed_gives_the_same_table_again() -> None:
    values = np.random.default_rng(0).standard_normal(1000)
    a, b, c = (
        cluster(values, 16, start=TableInit.KMEANS_PLUS_PLUS, seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


# ---------------------------------------------------------------------------- codes


@pytest.mark.parametrize("count", [1, 2, 3, 16, 47, 48, 49, 256, 300])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_every_code_is_that_of_the_nearest_level(count: int, kind: type[np.floating]) -> None:
    rng = np.random.default_rng(count)
    values = (rng.standard_normal(4000) * 10.0 ** rng.integers(-6, 2, 4000)).astype(kind)
    table = np.sort(rng.standard_normal(count) * 10.0 ** rng.integers(-4, 1, count))
    codes = encode(values, table)
    distances = np.abs(values.astype(np.float64)[:, None] - table)
    np.testing.assert_array_equal(codes, distances.argmin(axis=1))


@pytest.mark.parametrize("count", [4, 60])
def test_values_on_a_threshold_get_the_lower_code(count: int) -> None:
    table = np.arange(count, dtype=np.float64)
    values = (table[:-1] + 0.5).astype(np.float32)
    np.testing.assert_array_equal(encode(values, table), np.arange(count - 1))


def test_thresholds_close_together_are_told_apart() -> None:
    table = np.concatenate([[-1e6], 1 + np.arange(100) * 1e-9, [1e6]])
    values = np.concatenate([table, table[1:-1] + 2e-10])
    distances = np.abs(values[:, None] - table)
    np.testing.assert_array_equal(encode(values, table), distances.argmin(axis=1))


def test_codes_are_written_where_they_are_asked_for() -> None:
    values = np.random.default_rng(0).standard_normal((3, 5, 70_000)).astype(np.float32)
    table = cluster(values[0, 0], 16)
    wide = np.empty((3, 5, 140_000), np.uint16)
    out = wide[:, :, ::2]
    assert encode(values, table, out) is out
    np.testing.assert_array_equal(out, encode(values, table))


# ---------------------------------------------------------------------------- rows


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_short_rows_have_the_best_tables(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, weights = rng.standard_normal((5, 9)), rng.exponential(size=(5, 9))
    tables = cluster_rows(matrix, count, weights)
    assert tables.shape == (5, count)
    for row, table, own in zip(matrix, tables, weights, strict=True):
        cost = quantization_error(row, table, own)
        np.testing.assert_allclose(cost, least_cost(row, count, own), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 16, 40])
def test_long_rows_come_near_the_best_tables(count: int) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.laplace(size=(12, 900)) * rng.exponential(size=(12, 1)) + 5
    tables = cluster_rows(matrix, count)
    ratios = [
        quantization_error(row, table) / quantization_error(row, cluster(row, count))
        for row, table in zip(matrix, tables, strict=True)
    ]
    assert max(ratios) < 1.02
    assert np.mean(ratios) < 1.002


@pytest.mark.parametrize("start", list(TableInit))
def test_rows_of_few_distinct_values_repeat_their_last_level(start: TableInit) -> None:
    matrix = np.array([[1.0, 1, 1, 1, 2, 2], [3, 3, 3, 3, 3, 3], [0, 1, 2, 3, 4, 5]])
    tables = cluster_rows(matrix, 6, start=start)
    assert np.all(np.diff(tables, axis=1) >= 0)
    if start is TableInit.OPTIMAL:
        np.testing.assert_allclose(tables[0], [1, 2, 2, 2, 2, 2])
        np.testing.assert_allclose(tables[1], [3] * 6)
        np.testing.assert_allclose(tables[2], [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("start", LLOYD)
def test_rows_follow_the_same_iteration_as_one_array(start: TableInit) -> None:
    matrix = np.random.default_rng(1).standard_normal((4, 300))
    tables = cluster_rows(matrix, 5, start=start)
    if start is not TableInit.KMEANS_PLUS_PLUS:
        for row, table in zip(matrix, tables, strict=True):
            np.testing.assert_allclose(table, cluster(row, 5, start=start), rtol=1e-9)


@pytest.mark.parametrize("size", [20, 700])
@pytest.mark.parametrize("start", list(TableInit))
def test_weights_of_zero_leave_values_of_rows_out(start: TableInit, size: int) -> None:
    rng = np.random.default_rng(2)
    matrix = rng.standard_normal((3, size))
    weights = (rng.random((3, size)) < 0.5).astype(np.float64)
    weights[2] = 0
    tables = cluster_rows(matrix, 4, weights, start=start)
    assert np.isfinite(tables).all()
    for row, table, own in zip(matrix[:2], tables, weights, strict=False):
        best = cluster(row[own > 0], 4)
        ratio = quantization_error(row, table, own) / quantization_error(row, best, own)
        assert ratio > 1 - 1e-9
        assert start is not TableInit.OPTIMAL or ratio < 1 + 1e-9
    if start is TableInit.OPTIMAL:
        np.testing.assert_allclose(tables[2], cluster(matrix[2], 4), rtol=1e-9)


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [10, 100_000])
def test_values_that_are_not_finite_are_refused(bad: float, size: int) -> None:
    values = np.zeros(size, np.float32)
    values[size // 2] = bad
    with pytest.raises(ValueError, match="must be finite"):
        cluster(values, 4)
    with pytest.raises(ValueError, match="must be finite"):
        encode(values, np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="must be finite"):
        cluster_rows(values[None], 4)


def test_nonsense_is_refused() -> None:
    values = np.zeros(4)
    with pytest.raises(ValueError, match="at least 1"):
        cluster(values, 0)
    with pytest.raises(ValueError, match="at least 1"):
        cluster_rows(values[None], 0)
    with pytest.raises(ValueError, match="no values"):
        cluster(np.empty(0), 4)
    with pytest.raises(ValueError, match="not negative"):
        cluster(values, 2, np.array([1, 1, 1, -1]))
    with pytest.raises(ValueError, match="for 1 arrays of values, not 2"):
        cluster([values, values], 2, [values])
    with pytest.raises(ValueError, match="ascending"):
        encode(values, np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="matrix with columns"):
        cluster_rows(values, 2)

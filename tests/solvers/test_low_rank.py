from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.solvers.decompositions.base import Diverges, KernelShape
from onnxslim.solvers.decompositions.closed_form import Channel, Depthwise
from onnxslim.solvers.decompositions.iterative import _check_growth, alternate
from onnxslim.solvers.decompositions.methods import METHODS
from onnxslim.solvers.low_rank import (
    Components,
    Projection,
    balanced,
    least_squares,
    numerical_rank,
    rank_for,
    times_metric,
    variational_rank,
)
from onnxslim.solvers.metric import Metric, objective

SMALL = settings(max_examples=40, deadline=None, derandomize=True)
SHAPES = st.builds(
    KernelShape,
    st.integers(1, 7),
    st.integers(1, 6),
    st.sampled_from([(1,), (3,), (1, 1), (3, 3), (2, 3), (1, 3), (3, 1), (2, 1, 2)]),
)
METHOD = st.sampled_from(sorted(METHODS))


def correlated(count: int, columns: int, seed: int = 0, rank: int = 4) -> np.ndarray:
    """Inputs with a few strong directions."""
    rng = np.random.default_rng(seed)
    strong = rng.standard_normal((count, rank)) @ rng.standard_normal((rank, columns))
    return strong + 0.3 * rng.standard_normal((count, columns))


def metric_of(shape: KernelShape, seed: int, *, data: bool) -> Metric:
    columns = shape.channels * shape.taps
    if not data:
        return Metric(None, columns)
    x = correlated(5 * columns + 20, columns, seed)
    return Metric(x.T @ x / len(x), columns)


def target_of(shape: KernelShape, seed: int) -> np.ndarray:
    columns = shape.channels * shape.taps
    return np.random.default_rng(seed).standard_normal((shape.rows, columns))


# ------------------------------------------------------------------- decompositions


@SMALL
@given(METHOD, SHAPES, st.booleans(), st.integers(0, 99))
def test_at_full_rank_every_method_is_exact(
    method: str, shape: KernelShape, data: bool, seed: int
) -> None:
    target = target_of(shape, seed)
    kind = METHODS[method]
    made = kind(target, metric_of(shape, seed, data=data), shape)
    full = kind.exact_ranks(shape)
    factors = made.factors(full)
    assert tuple(f.shape for f in factors) == kind.factor_shapes(shape, full)
    np.testing.assert_allclose(kind.product(shape, factors), target, atol=1e-6)


@SMALL
@given(METHOD, SHAPES, st.booleans(), st.integers(0, 99), st.integers(1, 6))
def test_the_error_told_is_that_of_the_product(
    method: str, shape: KernelShape, data: bool, seed: int, rank: int
) -> None:
    target, metric = target_of(shape, seed), metric_of(shape, seed, data=data)
    kind = METHODS[method]
    made = kind(target, metric, shape, seed=seed)
    ranks = tuple(min(rank, most) for most in kind.exact_ranks(shape))
    try:
        factors = made.factors(ranks)
    except Diverges:
        return
    found = objective(target, kind.product(shape, factors), metric)
    whole = objective(target, np.zeros_like(target), metric)
    assert made.error(ranks) == pytest.approx(found, abs=1e-5 * whole)
    assert tuple(f.shape for f in factors) == kind.factor_shapes(shape, ranks)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("data", [False, True])
def test_a_kernel_made_at_a_rank_is_recovered_at_that_rank(method: str, *, data: bool) -> None:
    shape = KernelShape(8, 6, (3, 3))
    kind = METHODS[method]
    ranks = (2,) * len(kind.exact_ranks(shape))
    rng = np.random.default_rng(3)
    factors = tuple(rng.standard_normal(s) for s in kind.factor_shapes(shape, ranks))
    target = kind.product(shape, factors)
    made = kind(target, metric_of(shape, 1, data=data), shape)
    whole = float(np.square(target).sum())
    try:
        found = kind.product(shape, made.factors(ranks))
    except Diverges:
        assert method in ("cp", "flattened")
        return
    # alternating least squares stops when it gains little
    limit = 1e-2 if method in ("cp", "flattened") else 1e-10
    assert np.square(found - target).sum() / whole < limit


@pytest.mark.slow
@SMALL
@given(SHAPES, st.integers(0, 99), st.integers(1, 6))
def test_more_rank_never_costs_error(shape: KernelShape, seed: int, rank: int) -> None:
    target, metric = target_of(shape, seed), metric_of(shape, seed, data=True)
    whole = objective(target, np.zeros_like(target), metric)
    for method in ("channel", "spatial", "depthwise"):
        kind = METHODS[method]
        made = kind(target, metric, shape)
        full = kind.exact_ranks(shape)[0]
        errors = [made.error((r,)) for r in range(1, min(rank, full) + 1)]
        assert all(b <= a + 1e-9 * whole for a, b in itertools.pairwise(errors))


def test_terms_that_cancel_each_other_are_refused() -> None:
    """The limit of rank-2 tensors that has rank 3: two terms approach it by growing without end."""
    last = np.array([[1e4, -1e4]])
    with pytest.raises(Diverges):
        _check_growth(last, (np.ones((2, 3)), np.ones((2, 3))), np.ones((1, 9)))
    _check_growth(np.array([[1.0, -1.0]]), (np.ones((2, 3)), np.ones((2, 3))), np.ones((1, 9)))


@pytest.mark.parametrize("shape", [(5,), (1, 5), (1,), (1, 1)])
def test_alternating_on_a_vector_or_a_number_gives_it_back(shape: tuple[int, ...]) -> None:
    tensor = np.random.default_rng(0).standard_normal(shape)
    factors = alternate(tensor, 2, 0)
    letters = "abc"[: len(shape)]
    spec = ",".join(f"{c}r" for c in letters) + f"->{letters}"
    np.testing.assert_allclose(np.einsum(spec, *factors), tensor)


def test_a_channel_that_is_always_zero_does_not_stop_any_method() -> None:
    shape = KernelShape(5, 3, (3, 3))
    x = correlated(300, 27)
    x[:, :9] = 0
    metric = Metric(x.T @ x / 300, 27)
    target = target_of(shape, 0)
    for kind in (Channel, Depthwise, METHODS["spatial"], METHODS["tucker2"]):
        made = kind(target, metric, shape)
        product = kind.product(shape, made.factors(kind.exact_ranks(shape)))
        np.testing.assert_allclose(product, target, atol=1e-5)


# ------------------------------------------------------------------- matrices


@SMALL
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_the_bound_of_denton_holds(rows: int, columns: int, rank: int, seed: int) -> None:
    """‖X·(W − Ŵ)ᵀ‖_F ≤ σ_{t+1}·‖X‖_F for the plain decomposition at rank t."""
    rng = np.random.default_rng(seed)
    weight, x = rng.standard_normal((rows, columns)), rng.standard_normal((50, columns))
    made = Components(weight, Metric(None, columns))
    rank = min(rank, made.exact_rank)
    left, right = made.factors(rank)
    sigma = np.sqrt(np.append(made.energies, 0.0))[rank]
    moved = np.linalg.norm(x @ (weight - left @ right).T)
    assert moved <= sigma * np.linalg.norm(x) + 1e-6


@SMALL
@given(st.integers(2, 14), st.integers(2, 14), st.integers(0, 99))
def test_data_aware_is_never_above_plain_on_held_out_samples(
    rows: int, columns: int, seed: int
) -> None:
    weight = np.random.default_rng(seed).standard_normal((rows, columns))
    x = correlated(4000, columns, seed)
    fit, held = x[::2], x[1::2]
    aware = Components(weight, Metric(fit.T @ fit / len(fit), columns))
    plain = Components(weight, Metric(None, columns))
    for rank in range(1, min(rows, columns)):
        errors = []
        for made in (aware, plain):
            left, right = made.factors(rank)
            errors.append(np.square(held @ (weight - left @ right).T).sum())
        assert errors[0] <= 1.05 * errors[1]


def test_the_error_of_components_is_the_energy_left_out() -> None:
    x = correlated(500, 9)
    metric = Metric(x.T @ x / 500, 9)
    for rows in (5, 30):
        weight = np.random.default_rng(0).standard_normal((rows, 9))
        made = Components(weight, metric)
        for rank in range(1, made.exact_rank + 1):
            left, right = made.factors(rank)
            found = objective(weight, left @ right, metric)
            assert made.error(rank) == pytest.approx(found, rel=1e-4, abs=1e-5 * made.total)


def test_factors_are_of_equal_size_and_their_signs_are_settled() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 20)) * 1e3
    left, right = Components(weight, Metric(None, 20)).factors(4)
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1))
    assert all(row[np.abs(row).argmax()] > 0 for row in right)
    zero = balanced(np.zeros((3, 2)), np.ones((2, 3)))
    assert np.isfinite(zero[0]).all()


@pytest.mark.parametrize("size", [3, 5, 12, 13])
def test_a_projection_does_not_depend_on_the_slabs_it_is_made_in(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxslim.solvers.low_rank._SLAB", 5)
    rng = np.random.default_rng(size)
    x = rng.standard_normal((200, size))
    x[:, size // 2] = 0  # dead
    metric = Metric(x.T @ x, size)
    target, features = rng.standard_normal((4, size)), rng.standard_normal((7, size))
    found = Projection(target, metric, lambda rows: rows @ features.T)
    heavy = times_metric(metric, np.eye(size))
    np.testing.assert_allclose(found.gram, features @ heavy @ features.T, atol=1e-9)
    np.testing.assert_allclose(found.cross, target @ heavy @ features.T, atol=1e-9)
    first, some = found.solve(np.arange(3))[0], found.solve(np.array([2, 0, 1]))[0]
    np.testing.assert_allclose(first, some[:, [1, 2, 0]], rtol=1e-6)


def test_least_squares_takes_the_shortest_answer_where_there_are_many() -> None:
    second = np.array([[1.0, 1.0], [1.0, 1.0]])
    answer = least_squares(second, np.array([[2.0, 2.0]]))
    np.testing.assert_allclose(answer, [[1.0, 1.0]])
    np.testing.assert_array_equal(least_squares(np.zeros((2, 2)), np.zeros((1, 2))), [[0.0, 0.0]])


# ------------------------------------------------------------------- ranks


@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize("shape", [(20, 20), (40, 12), (12, 40)])
def test_the_rank_of_a_stored_weight_is_seen_through_its_rounding(
    rank: int, shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(rank)
    a, b = rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, shape[1]))
    assert numerical_rank((a @ b).astype(np.float32)) == rank
    assert numerical_rank(rng.standard_normal(shape).astype(np.float32)) == min(shape)


def test_a_weight_of_zeros_has_rank_zero() -> None:
    assert numerical_rank(np.zeros((3, 4), np.float32)) == 0


def test_the_least_rank_within_an_error() -> None:
    energies = np.array([8.0, 4.0, 2.0, 1.0])
    assert [rank_for(energies, limit) for limit in (20, 7, 6.9, 3, 1, 0.5, 0)] == [
        1, 1, 2, 2, 3, 4, 4,
    ]  # fmt: skip


@pytest.mark.parametrize("rank", [3, 10, 25])
@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_variational_bayes_finds_the_rank_under_noise(rank: int, noise: float) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((100, rank)) @ rng.standard_normal((rank, 150))
    weight += noise * rank**0.5 * rng.standard_normal(weight.shape)
    energies = np.linalg.svd(weight, compute_uv=False) ** 2
    assert variational_rank(energies, 100, 150) == rank
    assert variational_rank(energies, 150, 100) == rank


def test_variational_bayes_finds_nothing_in_noise_and_returns_one() -> None:
    noise = np.random.default_rng(0).standard_normal((80, 120))
    assert variational_rank(np.linalg.svd(noise, compute_uv=False) ** 2, 80, 120) == 1
    assert variational_rank(np.zeros(3), 3, 3) == 1

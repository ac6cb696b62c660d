"""Sums of products, added up in place."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.runtime.probes.products import CrossSum, FourthSum, SecondSum


@pytest.mark.slow
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("groups", "outputs", "features"), [(1, 3, 7), (1, 5, 1100), (3, 2, 5)])
def test_sums_are_those_of_all_rows_together(
    groups: int, outputs: int, features: int, *, exact: bool
) -> None:
    rng = np.random.default_rng(0)
    second = SecondSum(groups, features, exact=exact)
    cross = CrossSum(groups, outputs, features, exact=exact)
    xs, ys = [], []
    for rows in (1, 900, 3000, 2500, 0):
        xs.append(rng.standard_normal((groups, rows, features)).astype(second.dtype))
        ys.append(rng.standard_normal((groups, rows, outputs)).astype(cross.dtype))
        second.add(xs[-1])
        cross.add(ys[-1], xs[-1])
    x, y = (np.concatenate(parts, axis=1).astype(np.float64) for parts in (xs, ys))
    # rounding: of the largest entry, a few thousand
    atol = 1e-8 if exact else 5e-3
    np.testing.assert_allclose(second.total(), x.swapaxes(1, 2) @ x, rtol=0, atol=atol)
    np.testing.assert_allclose(cross.total(), y.swapaxes(1, 2) @ x, rtol=0, atol=atol)


def test_rows_may_lie_in_any_order_in_memory() -> None:
    x = np.asfortranarray(np.random.default_rng(0).standard_normal((40, 6)))[None]
    y = np.random.default_rng(1).standard_normal((1, 40, 8))[:, :, ::2]
    second, cross = SecondSum(1, 6, exact=True), CrossSum(1, 4, 6, exact=True)
    second.add(x)
    cross.add(y, x)
    np.testing.assert_allclose(second.total()[0], x[0].T @ x[0], atol=1e-12)
    np.testing.assert_allclose(cross.total()[0], y[0].T @ x[0], atol=1e-12)


def test_a_sum_of_nothing_is_zero() -> None:
    assert not SecondSum(2, 3, exact=True).total().any()
    assert CrossSum(1, 2, 3, exact=False).total().shape == (1, 2, 3)


def test_sums_that_overflow_are_not_finite() -> None:
    second = SecondSum(1, 2, exact=False)
    with np.errstate(over="ignore", invalid="ignore"):
        second.add(np.full((1, 3, 2), 1e30, np.float32))
    assert not np.isfinite(second.total()).any()


@pytest.mark.parametrize("centered", [False, True])
def test_scatter_is_that_of_the_products_of_rows(*, centered: bool) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 50, 4)) ** 2 + 0.5
    fourth, second = FourthSum(2, 4), SecondSum(2, 4, exact=True)
    for part in (x[:, :20], x[:, 20:]):
        fourth.add(part)
        second.add(part)
    mean = x.mean(axis=1) if centered else np.zeros((2, 4))
    rows = x - mean[:, None]
    products = rows[:, :, :, None] * rows[:, :, None, :]
    off = np.square(products - products.mean(axis=1, keepdims=True)).sum(axis=(2, 3))
    found = fourth.scatter(50, second.total() / 50, mean)
    np.testing.assert_allclose(found, off.mean(axis=1) / 50, rtol=1e-10)

"""Ranges of activations: the error that a histogram tells, and what each method makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from cases import case
from observed import observation
from scipy import stats

from onnxslim.quantization import calibration_ranges
from onnxslim.quantization.calibration_ranges import (
    RangeMethod,
    activation_range,
    all_ranges,
    energy,
    expected_error,
)
from onnxslim.quantization.grid import S8, S8_SYMMETRIC, U8, GridForm

RNG = np.random.default_rng(0)
COUNT = 200_000
DATA: Mapping[str, np.ndarray] = {
    "gauss": RNG.normal(size=COUNT),
    "laplace": RNG.laplace(size=COUNT),
    "relu": np.maximum(RNG.normal(size=COUNT), 0),
    "negative": -np.abs(RNG.normal(size=COUNT)),
    "shifted": RNG.normal(3, 0.5, size=COUNT),
    "outlier": np.append(RNG.normal(size=COUNT), 50.0),
    "uniform": RNG.uniform(-1, 2, size=COUNT),
}
FORMS = (U8, S8, S8_SYMMETRIC, replace(U8, reduced=True), replace(U8, symmetric=True))


def float32(name: str) -> np.ndarray:
    return DATA[name].astype(np.float32)


def actual_error(values: np.ndarray, form: GridForm, least: float, most: float) -> float:
    grid = form.over(least, most)
    return float(np.square(values - grid.dequantized(grid.quantized(values)).astype(float)).mean())


@pytest.mark.parametrize("name", DATA)
def test_the_error_of_a_histogram_is_that_of_its_values(name: str) -> None:
    values = float32(name)
    seen = observation(values)
    for form, share in product(FORMS, (1.0, 0.7, 0.3)):
        least, most = share * float(values.min()), share * float(values.max())
        told = expected_error(form.over(least, most), seen)
        with case(form, share):
            assert told == pytest.approx(actual_error(values, form, least, most), rel=0.02)


@pytest.mark.parametrize("name", list(DATA))
def test_the_energy_of_a_histogram_is_that_of_its_values(name: str) -> None:
    values = float32(name)
    assert energy(observation(values)) == pytest.approx(np.square(values).mean(), rel=1e-3)


@pytest.mark.parametrize("name", DATA)
def test_every_method_stays_within_what_was_seen(name: str) -> None:
    values = float32(name)
    seen = observation(values)
    for form, method in product(FORMS, RangeMethod):
        found = activation_range(seen, method, form)
        with case(form, method):
            assert min(float(values.min()), 0) <= found.least <= found.most
            assert found.most <= max(float(values.max()), 0)
            assert found.method is method


@pytest.mark.parametrize("name", DATA)
def test_mse_is_no_worse_than_any_other_method(name: str) -> None:
    seen = observation(float32(name))
    for form in FORMS:
        errors = {method: activation_range(seen, method, form).error for method in RangeMethod}
        with case(form):
            assert errors[RangeMethod.MSE] <= 1.03 * min(errors.values())


@pytest.mark.slow
def test_mse_finds_the_best_clipping_of_a_gaussian() -> None:
    """With 256 steps, clipping at about 4 σ is best; known of optimal uniform quantizers."""
    found = activation_range(observation(float32("gauss")), RangeMethod.MSE, S8_SYMMETRIC)
    wished = np.linspace(3, 5, 81)
    errors = [actual_error(float32("gauss"), S8_SYMMETRIC, -t, t) for t in wished]
    assert found.most == pytest.approx(wished[int(np.argmin(errors))], rel=0.05)
    assert found.error <= 1.01 * min(errors)


def test_minmax_and_average_are_what_was_observed() -> None:
    seen = replace(observation(float32("gauss")), average_least=-2.0, average_most=3.0)
    plain = activation_range(seen, RangeMethod.MINMAX)
    assert (plain.least, plain.most) == (seen.least, seen.most)
    average = activation_range(seen, RangeMethod.AVERAGE)
    assert (average.least, average.most) == (-2.0, 3.0)


@pytest.mark.parametrize("name", ["gauss", "laplace", "relu", "negative", "outlier"])
def test_a_percentile_is_numpys(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_ranges, "_PERCENTILE", 0.99)
    values = float32(name)
    found = activation_range(observation(values), RangeMethod.PERCENTILE)
    least, most = np.quantile(values, [0.01, 0.99])
    width = observation(values).histogram.width
    assert found.least == pytest.approx(min(least, 0), abs=2 * width)
    assert found.most == pytest.approx(max(most, 0), abs=2 * width)


def test_entropy_keeps_a_uniform_range_and_cuts_an_outlier_off() -> None:
    uniform = activation_range(observation(float32("uniform")), RangeMethod.ENTROPY)
    assert (uniform.least, uniform.most) == pytest.approx((-1, 2), abs=0.01)
    values = np.append(RNG.normal(size=COUNT), 30.0).astype(np.float32)
    cut = activation_range(observation(values), RangeMethod.ENTROPY, S8_SYMMETRIC)
    assert 3 < cut.most < 10


def test_entropy_cuts_a_heavy_tail() -> None:
    values = stats.t(3).rvs(COUNT, random_state=0).astype(np.float32)
    found = activation_range(observation(values), RangeMethod.ENTROPY, S8_SYMMETRIC)
    assert np.quantile(np.abs(values), 0.9) < found.most < np.abs(values).max() / 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", RangeMethod)
def test_a_constant_keeps_its_value(form: GridForm, method: RangeMethod) -> None:
    found = activation_range(observation(np.full(10, 5.0, np.float32)), method, form)
    assert found.grid.dequantized(found.grid.quantized(5.0)) == pytest.approx(5.0, rel=1e-3)


@pytest.mark.parametrize("method", RangeMethod)
@pytest.mark.parametrize("values", [np.zeros(0, np.float32), np.zeros(5, np.float32)])
def test_empty_and_zero_tensors_have_a_grid(values: np.ndarray, method: RangeMethod) -> None:
    found = activation_range(observation(values), method)
    assert (found.least, found.most, found.error, found.relative_error) == (0, 0, 0, 0)
    assert float(found.grid.scale) > 0


def test_a_side_that_is_not_reached_is_not_covered() -> None:
    for method in RangeMethod:
        assert activation_range(observation(float32("relu")), method).least == 0
        assert activation_range(observation(float32("negative")), method).most == 0


@pytest.mark.parametrize("name", list(DATA))
def test_the_best_range_is_that_with_the_least_error_on_what_is_held_back(name: str) -> None:
    seen, held = observation(float32(name)[::2]), observation(float32(name)[1::2])
    best = all_ranges(seen, held)[0]
    for method in RangeMethod:
        other = activation_range(seen, method)
        assert best.error <= expected_error(other.grid, held) * (1 + 1e-9)
    assert best.error == pytest.approx(expected_error(best.grid, held))


def test_without_anything_held_back_the_observation_judges() -> None:
    seen, nothing = observation(float32("gauss")), observation(np.zeros(0, np.float32))
    assert all_ranges(seen, nothing) == all_ranges(seen)


def test_one_outlier_among_the_samples_is_not_believed() -> None:
    """Held-back samples without it decide for a range without it."""
    seen, held = observation(float32("outlier")), observation(float32("gauss"))
    assert all_ranges(seen, held)[0].most < 10
    assert activation_range(seen, RangeMethod.MINMAX).most == 50

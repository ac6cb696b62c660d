"""What numbers show: zeros and few values that somebody chose, masks, sizes, sinusoids."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.constraints.values import (
    are_short,
    are_sinusoids,
    few_values,
    is_mask,
    on_levels,
    zero_code_stays,
    zeros_stay,
)

RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal((40, 24)).astype(np.float32)


def with_zeros(share: float) -> np.ndarray:
    values = NORMAL.copy()
    values.reshape(-1)[: int(share * values.size)] = 0
    return values


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (with_zeros(0.5), True),
        (with_zeros(0.02), True),
        (with_zeros(0.002), False),
        (NORMAL, False),
        (np.zeros(40, np.float32), False),
    ],
)
def test_zeros_stay_where_they_are_no_chance(values: np.ndarray, *, expected: bool) -> None:
    assert zeros_stay(values) is expected


def test_few_values_are_found_and_give_the_array_back() -> None:
    table = np.array([-0.3, 0, 0.7], np.float32)
    values = table[RNG.integers(0, 3, (10, 12))]
    found = few_values(values)
    assert found is not None
    np.testing.assert_array_equal(found[0][found[1]], values, strict=True)


def test_floats_that_agree_in_pairs_are_few_values() -> None:
    """Floats of 32 bits that learned hardly agree; so biases of a small layer stay a table."""
    values = np.repeat(NORMAL[0], 2)[:40]
    found = few_values(values)
    assert found is not None
    assert found[0].size == 20


@pytest.mark.parametrize(
    "values",
    [
        NORMAL,
        NORMAL.astype(np.float16),
        np.repeat(NORMAL[0], 2)[:40].astype(np.float16),
        np.ones(100, np.float32),
        np.array([1.0, 2.0, 1.0], np.float32),
        np.array([np.inf, 0] * 40, np.float32),
    ],
    ids=["all differ", "float16", "float16, pairs", "one value", "too few elements", "not finite"],
)
def test_what_no_step_made_is_no_table(values: np.ndarray) -> None:
    assert few_values(values) is None


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ([-0.5, -0.25, 0, 0.25, 2], True),
        ([-1.25, 0.75, 0.5], True),
        ([0.1, 0.2, 0.3], False),
        ([0, 0.5], False),
        (NORMAL[0], False),
        (NORMAL[0].astype(np.float16), False),
    ],
)
def test_levels_are_powers_of_two_and_fixed_point(table: np.ndarray, *, expected: bool) -> None:
    assert on_levels(np.asarray(table, getattr(table, "dtype", np.float32))) is expected


def test_short_numbers_are_sizes_and_corners() -> None:
    assert are_short(np.arange(0.5, 80, dtype=np.float32))
    assert are_short(np.array([8, 16, 32], np.float32))
    assert not are_short(np.array([0.1, 8], np.float32))
    assert not are_short(np.array([np.inf], np.float32))


def test_codes_of_zero_stay_where_rounding_does_not_explain_them() -> None:
    rounded = np.rint(20 * NORMAL).astype(np.int8)
    pruned = np.where(np.abs(NORMAL) < 0.8, 0, rounded)
    assert not zero_code_stays(rounded, 0)
    assert zero_code_stays(pruned, 0)
    assert zero_code_stays((pruned.astype(np.int16) + 128).astype(np.uint8), 128)
    assert not zero_code_stays(np.zeros(40, np.int8), 0)


def test_masks_leave_out_what_they_are_added_to() -> None:
    assert is_mask(np.array([0, -100], np.float32))
    assert is_mask(np.array([0, -np.inf], np.float32))
    assert not is_mask(np.array([0, -100, 1], np.float32))
    assert not is_mask(np.zeros(4, np.float32))


def test_tables_of_sinusoids_are_told_from_trained_ones() -> None:
    angles = np.arange(200)[:, None] * 10000.0 ** (-np.arange(16) / 16)
    table = np.concatenate([np.sin(angles), np.cos(angles)], -1).astype(np.float32)
    assert are_sinusoids(table)
    assert are_sinusoids(table[None, None])
    assert not are_sinusoids(NORMAL)
    assert not are_sinusoids(table + 0.05 * RNG.standard_normal(table.shape).astype(np.float32))
    assert not are_sinusoids(table[:4])

"""Codes become bytes and come back, whatever the number of levels."""

from __future__ import annotations

from itertools import product
from math import log2, prod

import numpy as np
import pytest
from cases import case
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.packing.radix import (
    MAX_LEVELS,
    bits_per_code,
    pack,
    packed_bytes,
    planes_for,
    unpack,
)


def codes_of(levels: int, count: int, seed: int = 0) -> np.ndarray:
    kind = np.uint8 if levels <= 256 else np.uint16
    return np.random.default_rng(seed).integers(0, levels, count).astype(kind)


@pytest.mark.slow
@given(levels=st.integers(1, 300), count=st.integers(0, 200), seed=st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_codes_come_back_equal(levels: int, count: int, seed: int) -> None:
    codes = codes_of(levels, count, seed)
    packed = pack(codes, levels)
    back = unpack(packed, levels, count)
    assert back.dtype == codes.dtype
    np.testing.assert_array_equal(back, codes)
    assert sum(data.nbytes for data in packed) == packed_bytes(levels, count)


@pytest.mark.parametrize("levels", [2, 3, 8, 16, 18, 100, 256, 1000, MAX_LEVELS])
def test_codes_longer_than_a_chunk_come_back_equal(levels: int) -> None:
    codes = codes_of(levels, 600_011)
    np.testing.assert_array_equal(unpack(pack(codes, levels), levels, codes.size), codes)


@pytest.mark.parametrize(
    ("levels", "bases"),
    [
        (1, [2]), (2, [2]), (3, [3]), (4, [4]), (5, [6]), (6, [6]), (8, [2, 4]),
        (9, [3, 3]), (12, [3, 4]), (13, [16]), (16, [16]), (18, [3, 6]), (32, [2, 16]),
        (64, [4, 16]), (128, [2, 4, 16]), (200, [256]), (256, [256]),
        (144, [3, 3, 16]), (145, [256]), (257, [3, 6, 16]),
    ],
)  # fmt: skip
def test_levels_have_the_planes_of_fewest_bytes(levels: int, bases: list[int]) -> None:
    assert [plane.base for plane in planes_for(levels)] == bases


def test_another_plane_saves_a_quarter_of_a_bit() -> None:
    largest = {d: max(b for b in range(2, 257) if b**d <= 256) for d in range(1, 9)}
    costs = [
        (prod(largest[d] for d in digits), sum(8 / d for d in digits) + count / 4)
        for count in (1, 2, 3)
        for digits in product(largest, repeat=count)
    ]
    for levels in range(1, 257):
        with case(levels):
            least = min(cost for most, cost in costs if most >= levels)
            assert bits_per_code(levels) + len(planes_for(levels)) / 4 == pytest.approx(least)
            assert bits_per_code(levels) >= log2(levels)
            assert all(plane.base**plane.per_byte <= 256 for plane in planes_for(levels))


def test_first_code_is_the_lowest_digit() -> None:
    assert pack(np.array([1, 0, 1, 1, 0, 0, 0, 0, 1], np.uint8), 2)[0].tolist() == [0b1101, 1]
    assert pack(np.array([5, 10, 3], np.uint8), 16)[0].tolist() == [0xA5, 0x03]
    assert pack(np.array([1, 2, 0], np.uint8), 3)[0].tolist() == [1 + 2 * 3]


def test_first_plane_is_the_lowest_digit_of_a_code() -> None:
    low, high = pack(np.array([0, 1, 2, 7], np.uint8), 8)
    assert low.tolist() == [0b1010]
    assert high.tolist() == [0 + 4 * 0 + 16 * 1 + 64 * 3]


def test_codes_in_any_shape_and_order_of_memory_are_taken_row_by_row() -> None:
    codes = codes_of(7, 24).reshape(4, 6)
    flat = unpack(pack(codes.T, 7), 7, 24)
    np.testing.assert_array_equal(flat, codes.T.reshape(-1))


def test_wide_codes_of_few_levels_are_taken() -> None:
    wide = codes_of(16, 11).astype(np.uint32)
    back = unpack(pack(wide, 16), 16, 11)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, wide)


@pytest.mark.parametrize("levels", [0, -1, MAX_LEVELS + 1])
def test_number_of_levels_outside_the_range_is_refused(levels: int) -> None:
    with pytest.raises(ValueError, match="1 to 65,536 levels"):
        planes_for(levels)


def test_code_beyond_the_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="Code 5 is not below the number of levels, 5"):
        pack(np.array([0, 5], np.uint8), 5)
    with pytest.raises(ValueError, match="Code 5 is not below the number of levels, 5"):
        unpack(pack(np.array([0, 5], np.uint8), 6), 5, 2)


def test_signed_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="unsigned integers, not int8"):
        pack(np.array([0, 1], np.int8), 2)


def test_planes_of_another_number_of_codes_are_refused() -> None:
    packed = pack(codes_of(8, 16), 8)
    with pytest.raises(ValueError, match=r"17 codes below 8 take planes of \[3, 5\] bytes"):
        unpack(packed, 8, 17)
    with pytest.raises(ValueError, match="take planes"):
        unpack(packed[:1], 8, 16)


def test_byte_that_holds_no_digits_is_refused() -> None:
    with pytest.raises(ValueError, match="Byte 243 holds no digits of base 3"):
        unpack([np.array([243], np.uint8)], 3, 5)

"""Mixed-radix packing of codes: a code is one to three digits, a byte holds several digits.

A *plane* holds one digit of every code. With `base` b and `per_byte` d, a byte v holds the digits
of d neighbouring codes: digit k is (v // b**k) % b, the first code's digit lowest. A code below
`levels` is  digit_0 + base_0 · (digit_1 + base_1 · digit_2)  over its one to three planes:

    levels   2    3    4    6    8    9     12    16   18    32    64    128       256
    planes   2    3    4    6    2x4  3x3   3x4   16   3x6   2x16  4x16  2x4x16    256
    bits     1   1.6   2   2.7   3   3.2   3.6   4    4.3    5     6     7         8

For each number of digits a byte, only the largest base is used. The last byte of a plane is padded
with zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement
from math import lcm, prod
from typing import Final

import numpy as np

MAX_LEVELS: Final = 1 << 16
_MAX_PLANES: Final = 3
_CHUNK_BYTES: Final = 1 << 18  # small enough for the processor's cache


@dataclass(frozen=True)
class Plane:
    """One digit of every code.

    Attributes:
        base: digits are below it; `base ** per_byte` is at most 256.
        per_byte: digits in a byte.
    """

    base: int
    per_byte: int

    def packed_bytes(self, count: int) -> int:
        """Bytes for the digits of `count` codes."""
        return -(-count // self.per_byte)


# for each number of digits in a byte, the largest base
_PLANES: Final = (
    Plane(2, 8),
    Plane(3, 5),
    Plane(4, 4),
    Plane(6, 3),
    Plane(16, 2),
    Plane(256, 1),
)


def plane_of(base: int) -> Plane | None:
    """The plane of this base; None where no plane has it."""
    return next((plane for plane in _PLANES if plane.base == base), None)


@cache
def planes_for(levels: int) -> tuple[Plane, ...]:
    """The planes for codes below `levels`: those of fewest bytes, with a charge for each plane.

    A plane costs time and memory when a session starts, and some bytes of its own, so each plane
    beyond the first has to save a quarter of a bit for each code.

    Raises:
        ValueError: `levels` is not between 1 and 65,536.
    """
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"A table has 1 to {MAX_LEVELS:,} levels, not {levels:,}.")
    choices = (
        planes
        for count in range(1, _MAX_PLANES + 1)
        for planes in combinations_with_replacement(_PLANES, count)
        if prod(plane.base for plane in planes) >= levels
    )
    return min(choices, key=lambda planes: (_bits(planes) + len(planes) / 4, len(planes)))


def bits_per_code(levels: int) -> float:
    """Bits for each of many codes below `levels`."""
    return _bits(planes_for(levels))


def packed_bytes(levels: int, count: int) -> int:
    """Bytes of all planes for `count` codes below `levels`."""
    return sum(plane.packed_bytes(count) for plane in planes_for(levels))


def pack(codes: np.ndarray, levels: int) -> list[np.ndarray]:
    """The planes of `codes`, of any shape, row after row: an array of bytes for each plane.

    Raises:
        ValueError: `codes` are no unsigned integers, or not all below `levels`.
    """
    planes = planes_for(levels)
    if codes.dtype.kind != "u":
        raise ValueError(f"Codes are unsigned integers, not {codes.dtype}.")
    flat = codes.reshape(-1)
    if flat.size and int(flat.max()) >= levels:
        raise ValueError(f"Code {flat.max()} is not below the number of levels, {levels}.")
    if levels <= 256 and flat.dtype != np.uint8:
        flat = flat.astype(np.uint8)
    packed = [np.empty(plane.packed_bytes(flat.size), np.uint8) for plane in planes]
    for piece in _pieces(planes, flat.size):
        rest = flat[piece]  # what the digits so far leave of each code, divided by their bases
        for index, (plane, out) in enumerate(zip(planes, packed, strict=True)):
            digits = rest
            if index < len(planes) - 1:  # digit = rest mod base, by one division
                base = flat.dtype.type(plane.base)
                rest = digits // base
                digits = digits - rest * base
            start = piece.start // plane.per_byte
            filled = _joined(digits, plane)
            out[start : start + filled.size] = filled
    return packed


def unpack(packed: Sequence[np.ndarray], levels: int, count: int) -> np.ndarray:
    """The `count` codes whose planes are `packed`: uint8, or uint16 above 256 levels.

    Raises:
        ValueError: the planes are not those of `count` codes below `levels`.
    """
    planes = planes_for(levels)
    _check_planes(packed, planes, levels, count)
    codes = np.empty(count, np.uint8 if levels <= 256 else np.uint16)
    for piece in _pieces(planes, count):
        out = codes[piece]
        scale = 1  # the weight of the digit: the product of the bases before it
        for plane, data in zip(planes, packed, strict=True):
            start = piece.start // plane.per_byte
            held = data[start : start + plane.packed_bytes(out.size)]
            digits = _digits(held, plane)[: out.size]
            if scale == 1:
                out[:] = digits
            else:
                np.add(out, digits * out.dtype.type(scale), out=out)
            scale *= plane.base
        if out.size and int(out.max()) >= levels:
            raise ValueError(f"Code {out.max()} is not below the number of levels, {levels}.")
    return codes


def _bits(planes: Sequence[Plane]) -> float:
    # in 120ths of a byte, which are whole numbers for all planes
    return sum(120 // plane.per_byte for plane in planes) / 15


def _pieces(planes: Sequence[Plane], count: int) -> Iterator[slice]:
    """Slices of the codes that start at a byte boundary in every plane."""
    whole = lcm(*(plane.per_byte for plane in planes))
    step = max(_CHUNK_BYTES // whole, 1) * whole
    yield from (slice(start, min(start + step, count)) for start in range(0, count, step))


def _joined(digits: np.ndarray, plane: Plane) -> np.ndarray:
    """The bytes that hold `digits`; the last byte is padded with zeros."""
    spare = -digits.size % plane.per_byte
    digits = digits.astype(np.uint8, copy=False)
    if spare:
        digits = np.concatenate([digits, np.zeros(spare, np.uint8)])
    columns = digits.reshape(-1, plane.per_byte)  # (bytes, digits of a byte)
    filled = columns[:, -1].copy()  # Horner's scheme, from the highest digit down
    for k in range(plane.per_byte - 2, -1, -1):
        filled *= np.uint8(plane.base)
        filled += columns[:, k]
    return filled


def _digits(held: np.ndarray, plane: Plane) -> np.ndarray:
    """The digits in the bytes `held`, lowest first."""
    if plane.per_byte == 1:
        return held
    digits = np.empty((held.size, plane.per_byte), np.uint8)
    rest, base = held, np.uint8(plane.base)
    for k in range(plane.per_byte - 1):
        carried = rest // base  # the digits above; what remains is digit k
        np.subtract(rest, carried * base, out=digits[:, k])
        rest = carried
    digits[:, -1] = rest
    return digits.reshape(-1)


def _check_planes(
    packed: Sequence[np.ndarray], planes: Sequence[Plane], levels: int, count: int
) -> None:
    sizes = [plane.packed_bytes(count) for plane in planes]
    found = [data.size for data in packed]
    if found != sizes or any(data.dtype != np.uint8 or data.ndim != 1 for data in packed):
        raise ValueError(
            f"{count:,} codes below {levels} take planes of {sizes} bytes; found {found}."
        )
    for plane, data in zip(planes, packed, strict=True):
        most = plane.base**plane.per_byte
        if most < 256 and data.size and int(data.max()) >= most:
            raise ValueError(f"Byte {data.max()} holds no digits of base {plane.base}.")

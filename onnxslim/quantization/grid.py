"""Affine grids: x ≈ scale·(code − zero point), as QuantizeLinear and DequantizeLinear define them.

What may change here: nothing but how codes are computed; which range a grid covers is decided by
its makers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Codes = npt.NDArray[np.integer]
_T = TypeVar("_T", np.float32, np.integer)

MIN_SCALE: Final = float(np.finfo(np.float32).tiny) * 2**8  # DequantizeLinear loses smaller ones


@dataclass(frozen=True)
class Grid:
    """Codes of `dtype` from `low` to `high`, and what they stand for.

    Attributes:
        scale: float32, () or one for each index of `axis`.
        zero_point: of `dtype`, shaped like `scale`.
        axis: of a tensor, that scales go along; None for one scale.
        low: least code that is used; `reduce-range` leaves a bit unused.
        high: largest code that is used.
    """

    scale: npt.NDArray[np.float32]
    zero_point: Codes
    axis: int | None
    low: int
    high: int

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """Of codes."""
        return self.zero_point.dtype

    @classmethod
    def over(
        cls,
        least: npt.ArrayLike,
        most: npt.ArrayLike,
        dtype: npt.DTypeLike,
        *,
        symmetric: bool = False,
        reduced: bool = False,
        bits: int = 8,
        axis: int | None = None,
    ) -> Grid:
        """The grid that covers [least, most] and holds zero exactly (Jacob 2018, section 2.1).

        Args:
            least: of the values, () or (channels,).
            most: of the values.
            dtype: int8 or uint8.
            symmetric: zero is the middle code: −128 is not used, nor is 0 of uint8.
            reduced: one bit less: products of two codes then add up in 16 bits without saturating.
            bits: of a code; below 8 not all codes of `dtype` are used.
            axis: of the tensor that `least` and `most` go along.
        """
        info = np.iinfo(np.dtype(dtype))
        unused = info.bits - bits + reduced
        low, high = int(info.min) >> unused, int(info.max) >> unused
        middle = (low + high + 1) // 2
        bottom = np.minimum(np.asarray(least, np.float64), 0.0)
        top = np.maximum(np.asarray(most, np.float64), 0.0)
        if symmetric:
            low = 2 * middle - high
            top = np.maximum(top, -bottom)
            scale = _scale(top / (high - middle))
            zero = np.full(scale.shape, middle)
        else:
            scale = _scale((top - bottom) / (high - low))
            zero = np.clip(np.rint(low - bottom / scale), low, high)
        return cls(scale, zero.astype(dtype), axis, low, high)

    def quantized(self, values: npt.ArrayLike) -> Codes:
        """Nearest codes, ties to even."""
        array = np.asarray(values, np.float64)
        steps = np.rint(array / self._along(self.scale, array.ndim))
        codes = steps + self._along(self.zero_point, array.ndim)
        return np.asarray(np.clip(codes, self.low, self.high), self.dtype)

    def dequantized(self, codes: Codes) -> npt.NDArray[np.float32]:
        """What codes stand for."""
        steps = codes.astype(np.int32) - self._along(self.zero_point, codes.ndim).astype(np.int32)
        return np.asarray(steps * self._along(self.scale, codes.ndim), np.float32)

    def rounded(self, values: Array) -> Array:
        """`values` put on the grid, in their own type: what a kernel would make of them."""
        scale = self._along(self.scale, values.ndim)
        zero = self._along(self.zero_point, values.ndim).astype(np.int32)
        steps = np.asarray(values / scale)
        np.rint(steps, out=steps)
        np.clip(steps, self.low - zero, self.high - zero, out=steps)
        steps *= scale
        return steps.astype(values.dtype, copy=False)

    def _along(self, values: npt.NDArray[_T], rank: int) -> npt.NDArray[_T]:
        if self.axis is None:
            return values
        shape: Sequence[int] = [-1 if axis == self.axis else 1 for axis in range(rank)]
        return values.reshape(shape)


@dataclass(frozen=True)
class GridForm:
    """What grids of one kind have in common; `over` makes one for a range.

    Attributes:
        dtype: of codes, int8 or uint8; of 4 bits, too.
        symmetric: see `Grid.over`.
        reduced: see `Grid.over`.
        bits: see `Grid.over`.
    """

    dtype: np.dtype[np.integer]
    symmetric: bool = False
    reduced: bool = False
    bits: int = 8

    def over(self, least: npt.ArrayLike, most: npt.ArrayLike, axis: int | None = None) -> Grid:
        """The grid of this form that covers [least, most]."""
        return Grid.over(
            least,
            most,
            self.dtype,
            symmetric=self.symmetric,
            reduced=self.reduced,
            bits=self.bits,
            axis=axis,
        )


U8: Final = GridForm(np.dtype(np.uint8))
S8: Final = GridForm(np.dtype(np.int8))
S8_SYMMETRIC: Final = GridForm(np.dtype(np.int8), symmetric=True)


def _scale(wished: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """A scale that is not lost: of a tensor that is all zero any will do."""
    return np.where(wished > MIN_SCALE, wished, 1.0).astype(np.float32)


__all__ = ["MIN_SCALE", "S8", "S8_SYMMETRIC", "U8", "Grid", "GridForm"]

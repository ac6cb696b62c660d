"""Affine grids: x ≈ scale·(code − zero point), as QuantizeLinear and DequantizeLinear define them.

Owns: how a scale and a zero point follow from a range, and the arithmetic of codes. Not here: which
range a grid covers (see `calibration_ranges` and `weight_scales`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Codes = npt.NDArray[np.integer]
_T = TypeVar("_T", np.float32, np.integer)

_AT_ONCE: Final = 1 << 22  # elements
MIN_SCALE: Final = float(np.finfo(np.float32).tiny) * 2**8  # DequantizeLinear loses smaller ones


@dataclass(frozen=True)
class Grid:
    """Codes of `dtype` from `low` to `high`, and the values that they stand for.

    Attributes:
        scale: float32, () or (indices of `axis`,).
        zero_point: the code of zero, of `dtype` and of the shape of `scale`.
        axis: the axis of the tensor along which scales differ; None: there is one scale.
        low, high: the least and the largest code in use; a reduced range leaves a bit unused.
    """

    scale: npt.NDArray[np.float32]
    zero_point: Codes
    axis: int | None
    low: int
    high: int

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """The type of codes."""
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
            least: the least value, () or (channels,).
            most: the largest value, of the same shape.
            dtype: int8 or uint8.
            symmetric: whether zero is the middle code; −128 of int8 and 0 of uint8 are not used.
            reduced: whether codes take a bit less, so that 16 bits hold the sum of two products.
            bits: the bits of a code; below 8 not all codes of `dtype` are used.
            axis: the axis of the tensor along which `least` and `most` go.
        """
        info = np.iinfo(np.dtype(dtype))
        unused = info.bits - bits + reduced
        low, high = int(info.min) >> unused, int(info.max) >> unused
        middle = (low + high + 1) // 2
        bottom = np.minimum(np.asarray(least, np.float64), 0.0)
        top = np.maximum(np.asarray(most, np.float64), 0.0)
        if symmetric:
            low = 2 * middle - high  # as many codes below the middle as above it
            top = np.maximum(top, -bottom)
            scale = _scale(top / (high - middle))
            zero = np.full(scale.shape, middle)
        else:
            scale = _scale((top - bottom) / (high - low))
            # the zero point is an integer, so that zero is exact; the range shifts by half a step
            zero = np.clip(np.rint(low - bottom / scale), low, high)
        return cls(scale, zero.astype(dtype), axis, low, high)

    def quantized(self, values: npt.ArrayLike) -> Codes:
        """The nearest codes, ties to even, as QuantizeLinear computes them."""
        array = np.asarray(values)
        found = np.empty(array.shape, self.dtype)
        scale = np.broadcast_to(self._along(self.scale, array.ndim), array.shape)
        zero = np.broadcast_to(self._along(self.zero_point, array.ndim), array.shape)
        for part in _parts(array):
            steps = np.rint(np.asarray(array[part], np.float64) / scale[part])
            found[part] = np.clip(steps + zero[part], self.low, self.high)
        return found

    def dequantized(self, codes: Codes) -> npt.NDArray[np.float32]:
        """The values of codes, as DequantizeLinear computes them."""
        steps = codes.astype(np.int32) - self._along(self.zero_point, codes.ndim).astype(np.int32)
        return np.asarray(steps * self._along(self.scale, codes.ndim), np.float32)

    def rounded(self, values: Array) -> Array:
        """Fake quantization: `values` rounded to the grid, in their own type."""
        scale = self._along(self.scale, values.ndim)
        zero = self._along(self.zero_point, values.ndim).astype(np.int32)
        with np.errstate(over="ignore"):  # the least float, of a mask, is clipped as the infinite
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
class LayerCodes:
    """The quantized weight of a layer, and its bias.

    Attributes:
        codes: the codes, in the layout of the weight tensor.
        grid: the grid of the weight.
        bias: the float bias, (rows,); None: the layer has no bias.
        words: the error of the rounding, for the report.
        factor: of a table, float32, (columns,): what the columns of its rows are multiplied by
            behind the grid; None: nothing.
    """

    codes: Codes
    grid: Grid
    bias: np.ndarray | None
    words: str = ""
    factor: np.ndarray | None = None


@dataclass(frozen=True)
class GridForm:
    """The properties that all grids of one kind share; `over` gives the grid of a range.

    Attributes:
        dtype: the type of codes in memory, int8 or uint8, for codes of 4 bits too.
        symmetric: whether zero is the middle code; see `Grid.over`.
        reduced: whether codes take a bit less; see `Grid.over`.
        bits: the bits of a code.
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


def _parts(array: np.ndarray) -> Iterator[tuple[slice, ...]]:
    """Indices of a few rows at a time, as float64 takes eight times the memory of codes."""
    if array.size <= _AT_ONCE:
        yield ()
        return
    rows = max(1, _AT_ONCE * len(array) // array.size)
    yield from ((slice(start, start + rows),) for start in range(0, len(array), rows))


def _scale(wished: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Scales that float32 kernels keep; an all-zero tensor takes 1, as any scale will do."""
    return np.where(wished > MIN_SCALE, wished, 1.0).astype(np.float32)

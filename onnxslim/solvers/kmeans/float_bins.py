"""Floating-point numbers in at most 2¹⁶ bins, in their order.

The bits of positive numbers, read as an integer, are in the order of the numbers, with as many
integers between 1 and 2 as between 2 and 4. A bin is a run of such integers: it is no wider than
2⁻¹¹ of its values. Magnitudes below about 2⁻¹⁶ of the largest share one bin for each sign.

Owns: how wide bins are, which is part of the bound that `levels` states. Not here: what is done
with bins (`levels` gathers values in them, `assignment` finds thresholds by them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

_BINS: Final = (1 << 16) - 2  # so that 16 bits count their edges
_OCTAVES: Final = 16  # below the largest value, in which bins are relative
_MANTISSA: Final = 23
_SIGNLESS: Final = 0x7FFFFFFF


@dataclass(frozen=True)
class FloatBins:
    """A map from numbers to bins that never falls.

    Attributes:
        scale: factor that brings float64 values into the range of float32; else 1.
        floor: bits below which magnitudes share bin zero.
        shift: low bits that numbers of one bin do not share.
        base: shifted bits of the first bin.
        count: number of bins.
    """

    scale: float
    floor: int
    shift: int
    base: int
    count: int

    @classmethod
    def between(cls, low: float, high: float, dtype: np.dtype) -> FloatBins:
        """For numbers of a type, from `low` to `high`."""
        # only float64 has values that do not fit into the bits of a float32
        peak = max(abs(low), abs(high))
        scale = 1.0 if dtype != np.float64 else float(np.ldexp(1.0, -int(np.frexp(peak)[1])))
        bits = [int(np.float32(abs(edge) * scale).view(np.int32)) for edge in (low, high)]
        # where bins of their own begin; a little less than all octaves, so that both signs fit
        floor = max(0, max(bits) - (_OCTAVES << _MANTISSA) + (1 << 13))
        lowest, highest = (
            max(own - floor, 0) * (-1 if edge < 0 else 1)
            for own, edge in zip(bits, (low, high), strict=True)
        )
        # the finest bins of which there are not too many
        shift = 0
        while (highest >> shift) - (lowest >> shift) >= _BINS:
            shift += 1
        base = lowest >> shift
        return cls(scale, floor, shift, base, (highest >> shift) - base + 1)

    def of(self, piece: np.ndarray) -> np.ndarray:
        """The bin of each value; those outside the range have the outermost."""
        if self.scale != 1.0:
            piece = piece * self.scale
        # bits as an integer that rises with the magnitude, from `floor` on
        single = np.ascontiguousarray(piece, np.float32).reshape(-1)
        bits = single.view(np.int32)
        keys = bits & _SIGNLESS
        keys -= self.floor
        np.maximum(keys, 0, out=keys)
        # negative numbers count downwards: −k = (k ^ −1) − (−1)
        sign = bits >> 31  # −1 or 0
        keys ^= sign
        keys -= sign
        keys >>= self.shift
        keys -= self.base
        wide = keys.astype(np.intp)
        return np.clip(wide, 0, self.count - 1, out=wide)

"""Codes on a grid: what QuantizeLinear and DequantizeLinear compute, with gradients.

Codes are held as floats that are whole numbers. Rounding passes gradients straight through inside
the range of the codes, and stops them outside (saturation), so a pair of the two operators is a
fake quantisation whose input, scale and zero point all learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from onnx import TensorProto
from torch import Tensor

from onnxslim.runtime.training.operators.element_types import NARROW_FLOATS, integer_bounds
from onnxslim.runtime.training.operators.straight_through import rounded, rounded_to

_FLOAT8_MAX: Final = {
    TensorProto.FLOAT8E4M3FN: 448.0,
    TensorProto.FLOAT8E4M3FNUZ: 240.0,
    TensorProto.FLOAT8E5M2: 57344.0,
    TensorProto.FLOAT8E5M2FNUZ: 57344.0,
}


@dataclass(frozen=True)
class GridLayout:
    """Which scale belongs to which element.

    Attributes:
        axis: the axis that scales lie along, where they are one-dimensional, or in blocks.
        block: elements of a block along that axis; 0: no blocks.
    """

    axis: int = 1
    block: int = 0

    def spread(self, values: Tensor, x: Tensor) -> Tensor:
        """Scales or zero points so that they broadcast against `x`."""
        if values.numel() == 1 and not self.block:
            return values.reshape(())
        if self.block:
            wide = values.repeat_interleave(self.block, self.axis)
            return wide.narrow(self.axis, 0, x.shape[self.axis])
        if values.dim() == x.dim() and values.dim() > 1:
            return values
        shape = [1] * x.dim()
        shape[self.axis] = values.numel()
        return values.reshape(shape)


def quantized(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    element_type: int,
    layout: GridLayout,
    *,
    saturates: bool = True,
) -> Tensor:
    """Codes of `x`, of an ONNX type, held as floats: round (x / scale) + zero point, saturated."""
    steps = x.to(scale.dtype) / layout.spread(scale, x)
    bounds = integer_bounds(element_type)
    if bounds is not None:
        codes = rounded(steps)
        if zero_point is not None:
            codes = codes + layout.spread(zero_point, x).to(codes.dtype)
        return torch.clamp(codes, *bounds)
    if saturates:
        most = _FLOAT8_MAX[TensorProto.DataType(element_type)]
        steps = torch.clamp(steps, -most, most)
    return rounded_to(steps, NARROW_FLOATS[element_type])


def dequantized(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, layout: GridLayout
) -> Tensor:
    """(codes - zero point) * scale, in the type of `scale`."""
    floats = codes.to(scale.dtype)
    if zero_point is not None:
        floats = floats - layout.spread(zero_point, codes).to(scale.dtype)
    return floats * layout.spread(scale, codes)


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """Codes of 2, 4 or 8 bits out of bytes, the lowest bits first, along the last axis."""
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    codes = torch.bitwise_right_shift(packed[..., None], shifts) & ((1 << bits) - 1)
    return codes.flatten(-2)

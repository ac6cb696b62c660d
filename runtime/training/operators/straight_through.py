"""Roundings whose gradient is that of the identity: straight-through estimators.

Bengio, Leonard, Courville 2013, arXiv:1308.3432. Inside the range of a grid the gradient passes,
outside it is zero. Sign, whose own derivative is zero nearly everywhere, gets that of the identity
clipped to [-1, 1]: Hubara et al. 2016, arXiv:1602.02830 (BNN), eq. 4. The polynomial of Bi-Real Net
(Liu et al. 2018, arXiv:1808.00278, eq. 6) trained LeNet-5 less well at the same learning rates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RoundStraightThrough(torch.autograd.Function):
    """Round half to even; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The rounded values."""
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The gradient as it came."""
        return gradient


class NarrowStraightThrough(torch.autograd.Function):
    """Round to a narrower type of floats, held in the type of the input; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The rounded values."""
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient as it came."""
        return gradient, None


def rounded(x: Tensor) -> Tensor:
    """`x` rounded half to even; the gradient passes."""
    return RoundStraightThrough.apply(x)


def rounded_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` rounded to a type of floats, held in its own type; the gradient passes."""
    return NarrowStraightThrough.apply(x, dtype)


class SignStraightThrough(torch.autograd.Function):
    """Sign; gradients pass where |x| <= 1, and stop elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The signs; that of zero is zero."""
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The gradient where |x| <= 1, else zero."""
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


def signs(x: Tensor) -> Tensor:
    """Signs of `x`, of integers too; floats get the gradient of `SignStraightThrough`."""
    return SignStraightThrough.apply(x) if x.is_floating_point() else torch.sign(x)

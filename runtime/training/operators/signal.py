"""Fourier transforms and what goes with them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from onnx import TensorProto
from torch import Tensor

from onnxslim.runtime.training.operators.element_types import torch_dtype
from onnxslim.runtime.training.operators.table import Computation, NodeForm, ints, operator


def _as_complex(x: Tensor) -> Tensor:
    """Last axis: real and imaginary part, or the real part alone."""
    if x.shape[-1] == 1:
        return torch.complex(x[..., 0], torch.zeros_like(x[..., 0]))
    return torch.view_as_complex(x.contiguous())


def _transformed(x: Tensor, length: int | None, axis: int, inverse: int, one_sided: int) -> Tensor:
    """The transform along `axis` of the signal `x`, whose last axis holds the complex parts."""
    if one_sided and inverse:
        return torch.fft.irfft(_as_complex(x), length, axis)[..., None]
    if one_sided:
        return torch.view_as_real(torch.fft.rfft(x[..., 0], length, axis))
    of = torch.fft.ifft if inverse else torch.fft.fft
    return torch.view_as_real(of(_as_complex(x), length, axis))


@operator("DFT", 17, sizes=(1,))
def _dft_by_attributes(form: NodeForm) -> Computation:
    inverse, one_sided = form.integer("inverse"), form.integer("onesided")
    axis = form.integer("axis", 1)

    def run(x: Tensor, length: Tensor | None = None) -> Tensor:
        size = None if length is None else ints(length)[0]
        return _transformed(x, size, axis % x.dim(), inverse, one_sided)

    return run


@operator("DFT", 20, sizes=(1, 2))
def _dft(form: NodeForm) -> Computation:
    inverse, one_sided = form.integer("inverse"), form.integer("onesided")

    def run(x: Tensor, length: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
        size = None if length is None else ints(length)[0]
        at = (-2 if axis is None else ints(axis)[0]) % x.dim()
        return _transformed(x, size, at, inverse, one_sided)

    return run


@operator("STFT", 17, sizes=(1, 3))
def _stft(form: NodeForm) -> Computation:
    one_sided = form.integer("onesided", 1)

    def run(
        x: Tensor, step: Tensor, window: Tensor | None = None, length: Tensor | None = None
    ) -> Tensor:
        size = ints(length)[0] if length is not None else len(window) if window is not None else 0
        frames = x.unfold(1, size, ints(step)[0])  # (N, frames, parts, size)
        frames = frames if window is None else frames * window
        if frames.shape[2] == 1 and one_sided:
            return torch.view_as_real(torch.fft.rfft(frames[:, :, 0]))
        whole = torch.fft.fft(_as_complex(frames.transpose(2, 3)))
        return torch.view_as_real(whole[..., : size // 2 + 1] if one_sided else whole)

    return run


def _window(of: Callable[[Tensor], Tensor]) -> Callable[[NodeForm], Computation]:
    """A window as a function of the angle, which runs from 0 to 2π."""

    def build(form: NodeForm) -> Computation:
        dtype = torch_dtype(form.integer("output_datatype", TensorProto.FLOAT), form.dtype)
        is_periodic = form.integer("periodic", 1)

        def run(size: Tensor) -> Tensor:
            count = ints(size)[0]
            angles = torch.arange(count, dtype=torch.float64) * (2 * math.pi)
            return of(angles / (count if is_periodic else count - 1)).to(form.device, dtype)

        return run

    return build


operator("HannWindow", 17, sizes=(0,))(_window(lambda a: 0.5 - 0.5 * torch.cos(a)))
operator("HammingWindow", 17, sizes=(0,))(_window(lambda a: 25 / 46 - (1 - 25 / 46) * torch.cos(a)))
operator("BlackmanWindow", 17, sizes=(0,))(
    _window(lambda a: 0.42 - 0.5 * torch.cos(a) + 0.08 * torch.cos(2 * a))
)

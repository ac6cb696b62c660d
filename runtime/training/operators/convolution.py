"""Convolutions, in one to three dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from onnxslim.runtime.training.operators.table import Computation, NodeForm, ints, operator

_CONV: Final = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE: Final = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def same_pads(total: int, mode: str) -> tuple[int, int]:
    """Padding in front and behind, of `total` that SAME_UPPER or SAME_LOWER asks for."""
    less, more = total // 2, total - total // 2
    return (less, more) if mode == "SAME_UPPER" else (more, less)


def window_pads(
    mode: str,
    pads: Sequence[int] | None,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[tuple[int, int]]:
    """Padding in front of and behind each axis that windows move along."""
    rank = len(sizes)
    if mode == "NOTSET":
        return list(zip(pads[:rank], pads[rank:], strict=True)) if pads else [(0, 0)] * rank
    if mode == "VALID":
        return [(0, 0)] * rank
    found = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        count = -(-size // stride)
        total = max((count - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        found.append(same_pads(total, mode))
    return found


def pad_axes(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0) -> Tensor:
    """`x` with its last axes padded."""
    flat = [size for both in reversed(pads) for size in both]
    return functional.pad(x, flat, value=value) if any(flat) else x


@operator("Conv", 1, 11, 22)
def convolution(form: NodeForm) -> Computation:
    """The convolution of a node with the attributes of Conv."""
    mode, pads = form.text("auto_pad", "NOTSET"), form.integers("pads")
    group, given = form.integer("group", 1), (form.integers("strides"), form.integers("dilations"))

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        rank = w.dim() - 2
        strides, dilations = (sizes or [1] * rank for sizes in given)
        both = window_pads(mode, pads, x.shape[2:], w.shape[2:], strides, dilations)
        if any(begin != end or begin < 0 for begin, end in both):
            x, both = pad_axes(x, both), [(0, 0)] * rank
        padding = [begin for begin, _ in both]
        return _CONV[rank](x, w, b, strides, padding, dilations, group)

    return run


@operator("ConvTranspose", 1, 11, 22)
def _conv_transpose(form: NodeForm) -> Computation:
    mode, pads = form.text("auto_pad", "NOTSET"), form.integers("pads")
    strides_, dilations_ = form.integers("strides"), form.integers("dilations")
    extra_, wanted = form.integers("output_padding"), form.integers("output_shape")
    group = form.integer("group", 1)

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        rank = w.dim() - 2
        strides, dilations = strides_ or [1] * rank, dilations_ or [1] * rank
        extra = extra_ or [0] * rank
        # the whole result, of which padding cuts off both ends
        whole = [
            (size - 1) * s + (k - 1) * d + 1 + e
            for size, s, k, d, e in zip(
                x.shape[2:], strides, w.shape[2:], dilations, extra, strict=True
            )
        ]
        if wanted is not None:
            totals = [all_ - size for all_, size in zip(whole, wanted[-rank:], strict=True)]
            both = [_cut(total, mode) for total in totals]
        elif mode in ("SAME_UPPER", "SAME_LOWER"):
            goals = [size * s for size, s in zip(x.shape[2:], strides, strict=True)]
            both = [_cut(all_ - goal, mode) for all_, goal in zip(whole, goals, strict=True)]
        else:
            both = window_pads(mode, pads, x.shape[2:], w.shape[2:], strides, dilations)
        if all(begin == end and begin >= 0 for begin, end in both) and all(
            e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)
        ):
            padding = [begin for begin, _ in both]
            return _CONV_TRANSPOSE[rank](x, w, b, strides, padding, extra, group, dilations)
        y = _CONV_TRANSPOSE[rank](x, w, b, strides, 0, 0, group, dilations)
        if b is None:
            return pad_axes(y, [(-i, e - j) for (i, j), e in zip(both, extra, strict=True)])
        y = y - b.reshape(-1, *[1] * rank)
        y = pad_axes(y, [(-i, e - j) for (i, j), e in zip(both, extra, strict=True)])
        return y + b.reshape(-1, *[1] * rank)

    return run


@operator("Col2Im", 18, sizes=(1, 2))
def _columns_to_image(form: NodeForm) -> Computation:
    given = [form.integers(name) for name in ("strides", "pads", "dilations")]

    def run(x: Tensor, image: Tensor, block: Tensor) -> Tensor:
        kernel, sizes = ints(block), ints(image)
        rank = len(kernel)
        strides, dilations = given[0] or [1] * rank, given[2] or [1] * rank
        pads = given[1] or [0] * 2 * rank
        # positions of windows: what a convolution with these sizes would give
        counts = [
            (size + pads[a] + pads[a + rank] - (kernel[a] - 1) * dilations[a] - 1) // strides[a] + 1
            for a, size in enumerate(sizes)
        ]
        n, inner = x.shape[0], math.prod(kernel)
        # each column holds one window: a transposed convolution with unit kernels adds them up
        ones = torch.eye(inner, dtype=x.dtype, device=x.device).reshape(inner, 1, *kernel)
        y = x.reshape(n * (x.shape[1] // inner), inner, *counts)
        y = _CONV_TRANSPOSE[rank](y, ones, None, strides, 0, 0, 1, dilations)
        short = [size + pads[a] + pads[a + rank] - y.shape[2 + a] for a, size in enumerate(sizes)]
        y = pad_axes(y, [(-pads[a], short[a] - pads[a + rank]) for a in range(rank)])
        return y.reshape(n, -1, *sizes)

    return run


def _cut(total: int, mode: str) -> tuple[int, int]:
    """What is cut off in front and behind; SAME_UPPER cuts more off behind."""
    if mode == "SAME_UPPER":
        return total // 2, total - total // 2
    return total - total // 2, total // 2

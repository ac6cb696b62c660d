"""Pools, in one to three dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from onnxslim.runtime.training.operators.convolution import pad_axes, window_pads
from onnxslim.runtime.training.operators.table import Computation, NodeForm, operator, plain

_MAX: Final = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE: Final = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


class WindowForm:
    """The attributes of an operator whose windows move over its input."""

    def __init__(self, form: NodeForm) -> None:
        self.mode, self.pads = form.text("auto_pad", "NOTSET"), form.integers("pads")
        self.kernel = form.integers("kernel_shape") or []
        rank = len(self.kernel)
        self.strides = form.integers("strides") or [1] * rank
        self.dilations = form.integers("dilations") or [1] * rank
        self.rounds_up = bool(form.integer("ceil_mode"))

    @property
    def rank(self) -> int:
        """Number of axes that windows move along."""
        return len(self.kernel)

    def pads_for(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """Padding in front of and behind each axis, for an input of these sizes."""
        return window_pads(self.mode, self.pads, sizes, self.kernel, self.strides, self.dilations)

    def takes(self, pads: Sequence[tuple[int, int]]) -> bool:
        """Whether torch pads so itself: alike at both ends, half a window at most."""
        pairs = zip(pads, self.kernel, strict=True)
        return all(begin == end and 0 <= begin <= size // 2 for (begin, end), size in pairs)

    def counts(self, sizes: Sequence[int], pads: Sequence[tuple[int, int]]) -> list[int]:
        """Windows along each axis."""
        found = []
        for axis in range(self.rank):
            free = sizes[axis] + sum(pads[axis]) - self.span(axis)
            stride = self.strides[axis]
            # onnxruntime divides towards zero: an input that is too small may have a window
            windows = (free // stride if free >= 0 else -(-free // stride)) + 1
            if self.rounds_up and self.mode == "NOTSET":
                windows = -(-free // stride) + 1
                # a window that would begin in the padding behind is left out
                windows -= (windows - 1) * stride >= sizes[axis] + pads[axis][0]
            found.append(max(windows, 0))
        return found

    def span(self, axis: int) -> int:
        """How many elements a window reaches over along an axis."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def reach(
        self, sizes: Sequence[int], pads: Sequence[tuple[int, int]], counts: Sequence[int]
    ) -> list[int]:
        """How far windows reach behind the padded input, along each axis."""
        return [
            max(
                (count - 1) * self.strides[axis] + self.span(axis) - sizes[axis] - sum(pads[axis]),
                0,
            )
            for axis, count in enumerate(counts)
        ]


def _none(x: Tensor, counts: Sequence[int]) -> Tensor:
    """What a pool without a window gives."""
    return x.new_zeros(*x.shape[:2], *counts)


@operator("MaxPool", 1, 8, 10, 11, 12, 22)
def _max_pool(form: NodeForm) -> Computation:
    window = WindowForm(form)
    pool = _MAX[window.rank]
    wants_places, by_columns = form.gives(1), form.integer("storage_order")
    kernel, strides, dilations = window.kernel, window.strides, window.dilations

    def run(x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        sizes = x.shape[2:]
        pads = window.pads_for(sizes)
        counts = window.counts(sizes, pads)
        if not all(counts):
            nothing = _none(x, counts)
            return (nothing, nothing.long()) if wants_places else nothing
        reach = window.reach(sizes, pads, counts)
        if not wants_places and not any(reach) and window.takes(pads):
            return pool(x, kernel, strides, [begin for begin, _ in pads], dilations)
        ends = [(begin, end + more) for (begin, end), more in zip(pads, reach, strict=True)]
        lowest = -math.inf if x.is_floating_point() else int(torch.iinfo(x.dtype).min)
        wide = pad_axes(x, ends, lowest)
        if not wants_places:
            return pool(wide, kernel, strides, 0, dilations)
        y, places = pool(wide, kernel, strides, 0, dilations, return_indices=True)
        begins = [begin for begin, _ in ends]
        return y, _unpadded_places(places, wide.shape, x.shape, begins, by_columns)

    return run


def _unpadded_places(
    places: Tensor,
    wide: Sequence[int],
    shape: Sequence[int],
    begins: Sequence[int],
    by_columns: int,
) -> Tensor:
    """Linear indices in the whole input, from those in one padded channel."""
    rank = len(begins)
    coordinates: list[Tensor] = []
    for axis in reversed(range(rank)):
        size = wide[2 + axis]
        coordinates.insert(0, places % size - begins[axis])
        places = places // size
    order = range(rank) if not by_columns else [*range(rank - 2), rank - 1, rank - 2]
    channels = torch.arange(shape[0] * shape[1], device=places.device)
    total = channels.reshape(shape[0], shape[1], *[1] * rank).expand_as(places)
    for axis in order:
        total = total * shape[2 + axis] + coordinates[axis]
    return total


@operator("AveragePool", 1, 7, 10, 11, 19, 22)
def _average_pool(form: NodeForm) -> Computation:
    window, counts_pads = WindowForm(form), bool(form.integer("count_include_pad"))
    kernel, strides = window.kernel, window.strides
    pool = _AVERAGE[window.rank]
    is_dilated = any(d != 1 for d in window.dilations)

    def total(x: Tensor) -> Tensor:
        """Sums of all windows of a padded input."""
        if not is_dilated:
            return pool(x, kernel, strides) * math.prod(kernel)
        ones = torch.ones(x.shape[1], 1, *kernel, dtype=x.dtype, device=x.device)
        conv = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[window.rank]
        return conv(x, ones, None, strides, 0, window.dilations, x.shape[1])

    def run(x: Tensor) -> Tensor:
        sizes = x.shape[2:]
        pads = window.pads_for(sizes)
        counts = window.counts(sizes, pads)
        if not all(counts):
            return _none(x, counts)
        reach = window.reach(sizes, pads, counts)
        if window.takes(pads) and not any(reach) and not is_dilated:
            return pool(x, kernel, strides, [b for b, _ in pads], False, counts_pads)
        behind = [(0, more) for more in reach]
        ones = torch.ones(1, 1, *sizes, dtype=x.dtype, device=x.device)
        counted = pad_axes(ones, pads, 1.0 if counts_pads else 0.0)
        return total(pad_axes(pad_axes(x, pads), behind)) / total(pad_axes(counted, behind))

    return run


@operator("LpPool", 2, 11, 18, 22)
def _lp_pool(form: NodeForm) -> Computation:
    window, order = WindowForm(form), form.integer("p", 2)
    conv = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[window.rank]

    def run(x: Tensor) -> Tensor:
        pads = window.pads_for(x.shape[2:])
        counts = window.counts(x.shape[2:], pads)
        if not all(counts):
            return _none(x, counts)
        reach = window.reach(x.shape[2:], pads, counts)
        ends = [(begin, end + more) for (begin, end), more in zip(pads, reach, strict=True)]
        powers = pad_axes(torch.abs(x) ** order, ends)
        ones = torch.ones(x.shape[1], 1, *window.kernel, dtype=x.dtype, device=x.device)
        sums = conv(powers, ones, None, window.strides, 0, window.dilations, x.shape[1])
        return sums ** (1.0 / order)

    return run


@plain("GlobalAveragePool", 1, 22)
def _global_average_pool(x: Tensor) -> Tensor:
    return torch.mean(x, tuple(range(2, x.dim())), keepdim=True)


@plain("GlobalMaxPool", 1, 22)
def _global_max_pool(x: Tensor) -> Tensor:
    return torch.amax(x, tuple(range(2, x.dim())), keepdim=True)


@operator("GlobalLpPool", 2, 22)
def _global_lp_pool(form: NodeForm) -> Computation:
    order = form.integer("p", 2)
    return lambda x: torch.linalg.vector_norm(x, order, tuple(range(2, x.dim())), keepdim=True)

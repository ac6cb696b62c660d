"""Resize and Upsample: each axis by itself, as weighted sums of neighbours.

An output position lies somewhere between input positions; the weights of its neighbours are those
of the mode. They are computed once for each pair of sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from torch import Tensor

from onnxslim.runtime.training.operators.table import Computation, NodeForm, ints, operator

_MEMORY: Final = 64  # axes whose weights are kept


@dataclass(frozen=True)
class Interpolation:
    """The attributes of Resize that say what an output is made of."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    excludes_outside: bool
    is_antialiased: bool


@dataclass(frozen=True)
class _Axis:
    """One axis: its sizes, the scale, and the part of the input that is taken (start, end)."""

    size: int
    wanted: int
    scale: float
    part: tuple[float, float]


def _positions(axis: _Axis, kind: str) -> np.ndarray:
    """Where the outputs lie in the input; float32, as onnxruntime has it."""
    at, scale, one = (
        np.arange(axis.wanted, dtype=np.float32),
        np.float32(axis.scale),
        axis.wanted == 1,
    )
    half = np.float32(0.5)
    if kind == "align_corners":
        return at * np.float32(0 if one else (axis.size - 1) / (axis.wanted - 1))
    if kind == "asymmetric":
        return at / scale
    if kind == "tf_crop_and_resize":
        start, end = axis.part
        if one:
            return np.full(1, 0.5 * (start + end) * (axis.size - 1), np.float32)
        step = (end - start) * (axis.size - 1) / (axis.wanted - 1)
        return (start * (axis.size - 1) + at * step).astype(np.float32)
    if kind == "pytorch_half_pixel" and one:
        return np.zeros(1, np.float32)
    offset = np.float32(0)
    if kind == "half_pixel_symmetric":
        size = np.float32(axis.size)
        offset = size / 2 * (1 - np.float32(axis.wanted) / (scale * size))
    return offset + (at + half) / scale - half


def _rounded(positions: np.ndarray, mode: str) -> np.ndarray:
    if mode == "round_prefer_floor":
        return np.ceil(positions - 0.5)
    if mode == "round_prefer_ceil":
        return np.floor(positions + 0.5)
    return np.ceil(positions) if mode == "ceil" else np.floor(positions)


def _kernel(distance: np.ndarray, how: Interpolation) -> np.ndarray:
    """The weight of a neighbour at a distance."""
    d = np.abs(distance)
    if how.mode == "linear":
        return np.clip(1 - d, 0, None)
    a = how.cubic
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


@lru_cache(_MEMORY)
def _taps(axis: _Axis, how: Interpolation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neighbours (outputs, taps) int64 and their weights float64; which outputs lie outside."""
    at = _positions(axis, how.coordinates).astype(np.float64)
    outside = (at < 0) | (at > axis.size - 1)
    if how.mode == "nearest":
        index = np.clip(_rounded(at, how.nearest), 0, axis.size - 1).astype(np.int64)
        return index[:, None], np.ones((len(at), 1)), outside
    if how.mode == "linear" and not how.is_antialiased:
        at = np.clip(at, 0, axis.size - 1)
    squeeze = min(axis.scale, 1.0) if how.is_antialiased else 1.0
    reach = math.ceil((1 if how.mode == "linear" else 2) / squeeze)
    index = np.floor(at)[:, None] + np.arange(1 - reach, reach + 1)
    weights = _kernel((index - at[:, None]) * squeeze, how)
    if how.excludes_outside:
        weights = np.where((index < 0) | (index >= axis.size), 0, weights)
    if how.excludes_outside or how.is_antialiased:
        weights = weights / weights.sum(1, keepdims=True)
    return np.clip(index, 0, axis.size - 1).astype(np.int64), weights, outside


def _resized_axis(x: Tensor, number: int, axis: _Axis, how: Interpolation) -> Tensor:
    index, weights, _ = _taps(axis, how)
    shape = [1] * x.dim()
    shape[number] = axis.wanted
    if not axis.wanted:
        return x.narrow(number, 0, 0)
    total = None
    for tap in range(index.shape[1]):
        if not weights[:, tap].any():
            continue
        part = x.index_select(number, torch.from_numpy(index[:, tap].copy()).to(x.device))
        if how.mode != "nearest":
            factors = torch.from_numpy(weights[:, tap].copy()).to(x.device, x.dtype)
            part = part * factors.reshape(shape)
        total = part if total is None else total + part
    assert total is not None
    return total


@dataclass(frozen=True)
class _Resizing:
    how: Interpolation
    axes: tuple[int, ...] | None
    policy: str
    extrapolated: float

    def __call__(
        self,
        x: Tensor,
        scales: Sequence[float] | None,
        sizes: Sequence[int] | None,
        roi: Sequence[float] | None,
    ) -> Tensor:
        """`x` resized, by scales or to sizes."""
        numbers = [
            axis % x.dim() for axis in (self.axes if self.axes is not None else range(x.dim()))
        ]
        axes = self._sized([x.shape[number] for number in numbers], scales, sizes, roi)
        was, source = x.dtype, x
        x = x if x.is_floating_point() or self.how.mode == "nearest" else x.to(torch.float32)
        for number, axis in zip(numbers, axes, strict=True):
            is_cropped = self.how.coordinates == "tf_crop_and_resize" and axis.part != (0.0, 1.0)
            if axis.wanted != axis.size or axis.scale != 1 or is_cropped:
                x = _resized_axis(x, number, axis, self.how)
        if self.how.coordinates == "tf_crop_and_resize":
            x = self._extrapolate(x, numbers, axes)
        return x if x.dtype == was or source.is_floating_point() else torch.round(x).to(was)

    def _sized(
        self,
        have: Sequence[int],
        scales: Sequence[float] | None,
        sizes: Sequence[int] | None,
        roi: Sequence[float] | None,
    ) -> list[_Axis]:
        parts = [(0.0, 1.0)] * len(have)
        if roi and len(roi) == 2 * len(have):
            parts = list(zip(roi[: len(have)], roi[len(have) :], strict=True))
        if sizes is not None:
            wanted = list(sizes)
            factors = [w / h for w, h in zip(wanted, have, strict=True)]
            if self.policy != "stretch":
                factor = (min if self.policy == "not_larger" else max)(factors)
                wanted = [math.floor(factor * h + 0.5) for h in have]
                factors = [factor] * len(have)
            return [_Axis(*all_) for all_ in zip(have, wanted, factors, parts, strict=True)]
        assert scales is not None
        wanted = [
            math.floor(np.float32(h) * np.float32(s)) for h, s in zip(have, scales, strict=True)
        ]
        return [_Axis(*all_) for all_ in zip(have, wanted, scales, parts, strict=True)]

    def _extrapolate(self, x: Tensor, numbers: Sequence[int], axes: Sequence[_Axis]) -> Tensor:
        for number, axis in zip(numbers, axes, strict=True):
            outside = _taps(axis, self.how)[2]
            if outside.any():
                shape = [1] * x.dim()
                shape[number] = axis.wanted
                mask = torch.from_numpy(outside.copy()).to(x.device).reshape(shape)
                x = torch.where(mask, torch.full_like(x, self.extrapolated), x)
        return x


def _floats(tensor: Tensor | None) -> list[float] | None:
    found = [] if tensor is None else [float(value) for value in tensor.tolist()]
    return found or None


def _interpolation(form: NodeForm, coordinates: str, nearest: str) -> Interpolation:
    mode = form.text("mode", "nearest")
    return Interpolation(
        {"bilinear": "linear"}.get(mode, mode),
        form.text("coordinate_transformation_mode", coordinates),
        form.text("nearest_mode", nearest),
        form.number("cubic_coeff_a", -0.75),
        bool(form.integer("exclude_outside")),
        bool(form.integer("antialias")),
    )


@operator("Resize", 11, 13, 18, 19, sizes=(1, 2, 3))
def _resize(form: NodeForm) -> Computation:
    axes = form.integers("axes")
    resizing = _Resizing(
        _interpolation(form, "half_pixel", "round_prefer_floor"),
        None if axes is None else tuple(axes),
        form.text("keep_aspect_ratio_policy", "stretch"),
        form.number("extrapolation_value"),
    )

    def run(
        x: Tensor,
        roi: Tensor | None = None,
        scales: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor:
        goal = None if sizes is None or not sizes.numel() else ints(sizes)
        return resizing(x, _floats(scales), goal, _floats(roi))

    return run


@operator("Upsample", 7)
@operator("Upsample", 9, sizes=(1,))
@operator("Resize", 10, sizes=(1,))
def _upsample(form: NodeForm) -> Computation:
    """Coordinates were asymmetric before opset 11."""
    how = _interpolation(form, "asymmetric", "floor")
    fixed, resizing = form.numbers("scales"), _Resizing(how, None, "stretch", 0.0)
    return lambda x, scales=None: resizing(x, fixed or _floats(scales), None, None)

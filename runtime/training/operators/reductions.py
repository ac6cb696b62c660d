"""Operators that reduce axes, and those that normalise along an axis alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from math import prod
from typing import Final

import torch
from torch import Tensor

from onnxslim.runtime.training.operators.element_types import FLOATS
from onnxslim.runtime.training.operators.table import Computation, NodeForm, ints, operator

_Reduce = Callable[[Tensor, Sequence[int], bool], Tensor]


def _log_sum(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    return torch.log(torch.sum(x, axes, keep))


def _log_sum_exp(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    return torch.logsumexp(x if x.is_floating_point() else x.double(), axes, keep)


def _product(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep)
    return x


def _mean(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keep)
    count = prod(x.shape[axis] for axis in axes)
    return torch.div(torch.sum(x, axes, keep), count, rounding_mode="trunc").to(x.dtype)


def _least(x: Tensor) -> float:
    return -math.inf if x.is_floating_point() else int(torch.iinfo(x.dtype).min)


def _most(x: Tensor) -> float:
    return math.inf if x.is_floating_point() else int(torch.iinfo(x.dtype).max)


def _extreme(
    of_numbers: Computation, of_bools: Computation, worst: Callable[[Tensor], float]
) -> _Reduce:
    def reduced(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
        if x.dtype == torch.bool:
            return of_bools(x, axes, keep)
        if not x.numel():  # the extreme of nothing
            return torch.sum(x, axes, keep, dtype=x.dtype) + worst(x)
        return of_numbers(x, axes, keep)

    return reduced


_REDUCTIONS: Final[dict[str, tuple[_Reduce, tuple[int, ...]]]] = {
    "ReduceSum": (lambda x, a, k: torch.sum(x, a, k, dtype=x.dtype), (1, 11, 13)),
    "ReduceMean": (_mean, (1, 11, 13, 18)),
    "ReduceMax": (_extreme(torch.amax, torch.any, _least), (1, 11, 12, 13, 18, 20)),
    "ReduceMin": (_extreme(torch.amin, torch.all, _most), (1, 11, 12, 13, 18, 20)),
    "ReduceProd": (_product, (1, 11, 13, 18)),
    "ReduceL1": (lambda x, a, k: torch.sum(torch.abs(x), a, k, dtype=x.dtype), (1, 11, 13, 18)),
    "ReduceL2": (lambda x, a, k: _square_root(torch.sum(x * x, a, k)), (1, 11, 13, 18)),
    "ReduceSumSquare": (lambda x, a, k: torch.sum(x * x, a, k, dtype=x.dtype), (1, 11, 13, 18)),
    "ReduceLogSum": (_log_sum, (1, 11, 13, 18, 28)),
    "ReduceLogSumExp": (_log_sum_exp, (1, 11, 13, 18, 28)),
}


def _square_root(x: Tensor) -> Tensor:
    """Its gradient at 0 is 0, not infinite: a sum of squares is 0 at its minimum."""
    is_zero = x == 0
    return torch.where(is_zero, 0, torch.sqrt(torch.where(is_zero, 1, x)))


def _reduction(reduce: _Reduce) -> Callable[[NodeForm], Computation]:
    def build(form: NodeForm) -> Computation:
        keep = bool(form.integer("keepdims", 1))
        attribute, skips = form.integers("axes"), bool(form.integer("noop_with_empty_axes"))
        holds_integers = form.element_type(0) not in (0, *FLOATS)

        def run(x: Tensor, given: Tensor | None = None) -> Tensor:
            axes = attribute if given is None else ints(given)
            if not axes and not skips:
                axes = list(range(x.dim()))
            axes = axes or []
            axes = [axis % x.dim() for axis in axes]
            y = reduce(x, axes, keep) if axes else reduce(x[None], [0], False)
            return torch.trunc(y).to(x.dtype) if holds_integers and y.is_floating_point() else y

        return run

    return build


for _name, (_reduce, _versions) in _REDUCTIONS.items():
    operator(_name, *_versions, sizes=(1,))(_reduction(_reduce))


def _arg(of: Computation) -> Callable[[NodeForm], Computation]:
    def build(form: NodeForm) -> Computation:
        axis, keep = form.integer("axis"), bool(form.integer("keepdims", 1))
        if not form.integer("select_last_index"):
            return lambda x: of(x, axis, keep)

        def last(x: Tensor) -> Tensor:
            return x.shape[axis] - 1 - of(torch.flip(x, [axis]), axis, keep)

        return last

    return build


operator("ArgMax", 1, 11, 12, 13)(_arg(torch.argmax))
operator("ArgMin", 1, 11, 12, 13)(_arg(torch.argmin))


def _along(of: Computation) -> Callable[[NodeForm], Computation]:
    def build(form: NodeForm) -> Computation:
        if form.version >= 13:
            axis = form.integer("axis", -1)
            return lambda x: of(x, axis)
        first = form.integer("axis", 1)

        def flattened(x: Tensor) -> Tensor:
            start = first % x.dim() if x.dim() else 0
            return of(x.reshape(*x.shape[:start], -1), -1).reshape(x.shape)

        return flattened

    return build


def _hardmax(x: Tensor, axis: int) -> Tensor:
    places = torch.argmax(x, axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, places, 1.0)


operator("Softmax", 1, 11, 13)(_along(torch.softmax))
operator("LogSoftmax", 1, 11, 13)(_along(torch.log_softmax))
operator("Hardmax", 1, 11, 13)(_along(_hardmax))


@operator("CumSum", 11, 14, sizes=(1,))
def _cumulative_sum(form: NodeForm) -> Computation:
    return _cumulative(form, torch.cumsum, 0)


@operator("CumProd", 26, sizes=(1,))
def _cumulative_product(form: NodeForm) -> Computation:
    return _cumulative(form, torch.cumprod, 1)


def _cumulative(form: NodeForm, of: Computation, neutral: int) -> Computation:
    exclusive, reverse = form.integer("exclusive"), form.integer("reverse")

    def run(x: Tensor, given: Tensor) -> Tensor:
        axis = ints(given)[0] % x.dim()
        x = torch.flip(x, [axis]) if reverse else x
        if exclusive:
            first = torch.full_like(x.narrow(axis, 0, 1), neutral)
            x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
        y = of(x, axis, dtype=x.dtype)
        return torch.flip(y, [axis]) if reverse else y

    return run


@operator("LpNormalization", 1, 22)
def _lp_normalization(form: NodeForm) -> Computation:
    axis, order = form.integer("axis", -1), form.integer("p", 2)

    def run(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, order, axis, keepdim=True)
        return torch.where(norm == 0, 0, x / torch.where(norm == 0, 1, norm))

    return run

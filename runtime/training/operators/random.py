"""Operators that draw: from torch's generator, so that `torch.manual_seed` decides."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from onnxslim.runtime.training.operators.element_types import torch_dtype
from onnxslim.runtime.training.operators.table import Computation, NodeForm, operator


def _dtype(form: NodeForm, default: torch.dtype | None) -> torch.dtype:
    found = torch_dtype(form.integer("dtype"), form.dtype) if form.has("dtype") else default
    return found or form.dtype


def _normal(form: NodeForm, like: Tensor) -> Tensor:
    return torch.randn_like(like) * form.number("scale", 1.0) + form.number("mean")


def _uniform(form: NodeForm, like: Tensor) -> Tensor:
    low, high = form.number("low"), form.number("high", 1.0)
    return torch.rand_like(like) * (high - low) + low


_Draw = Callable[[NodeForm, Tensor], Tensor]


def _of_shape(draw: _Draw) -> Callable[[NodeForm], Computation]:
    def build(form: NodeForm) -> Computation:
        shape, dtype = form.integers("shape") or [], _dtype(form, form.dtype)
        return lambda: draw(form, torch.empty(shape, dtype=dtype, device=form.device))

    return build


def _of_input(draw: _Draw) -> Callable[[NodeForm], Computation]:
    return lambda form: lambda x: draw(form, torch.empty_like(x, dtype=_dtype(form, x.dtype)))


for _name, _draw in (("RandomNormal", _normal), ("RandomUniform", _uniform)):
    operator(_name, 1, 22, is_random=True)(_of_shape(_draw))
    operator(f"{_name}Like", 1, 22, is_random=True)(_of_input(_draw))


@operator("Bernoulli", 15, 22, is_random=True)
def _bernoulli(form: NodeForm) -> Computation:
    return lambda x: torch.bernoulli(x).to(_dtype(form, x.dtype))


@operator("Multinomial", 7, 22, is_random=True)
def _multinomial(form: NodeForm) -> Computation:
    count = form.integer("sample_size", 1)
    dtype = _dtype(form, torch.int32)
    return lambda x: torch.multinomial(torch.softmax(x, -1), count, replacement=True).to(dtype)

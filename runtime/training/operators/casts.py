"""Operators that change the type of elements."""

from __future__ import annotations

import torch
from onnx import TensorProto
from torch import Tensor

from onnxslim.runtime.training.operators.element_types import (
    FLOATS,
    NARROW_FLOATS,
    torch_dtype,
)
from onnxslim.runtime.training.operators.straight_through import rounded_to
from onnxslim.runtime.training.operators.table import Computation, NodeForm, operator


@operator("Cast", 6, 9, 13, 19, 21, 23, 24, 25, 28)
def _cast(form: NodeForm) -> Computation:
    return cast_to(form, form.integer("to"))


@operator("CastLike", 15, 19, 21, 23, 24, 25)
def _cast_like(form: NodeForm) -> Computation:
    target = form.element_type(1)
    if not target:
        raise form.unsupported("the type that it casts to is not known")
    cast = cast_to(form, target)
    return lambda x, like: cast(x)


def cast_to(form: NodeForm, target: int) -> Computation:
    """The function that casts the first input of a node to an ONNX element type."""
    held = torch_dtype(target, form.dtype)
    if held is None:
        raise form.unsupported(f"it casts to {TensorProto.DataType.Name(target)}")
    if target in NARROW_FLOATS:
        narrow = NARROW_FLOATS[target]
        return lambda x: rounded_to(x.to(held), narrow)
    if target in FLOATS:
        return lambda x: x.to(held)
    if target == TensorProto.BOOL:
        return lambda x: x != 0
    holds_codes = form.element_type(0) not in (0, *FLOATS)

    def to_integer(x: Tensor) -> Tensor:
        # codes that are held as floats, so that gradients reach them, stay so
        return x if holds_codes and x.is_floating_point() else x.to(held)

    return to_integer


def held_tensor(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """A stored tensor in the type that it is computed with."""
    if not stored.is_floating_point() or stored.dtype == torch.float64:
        return stored
    return stored.to(dtype)

"""Operators that take each element alone, broadcasting."""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from onnxslim.graph.ir import MICROSOFT_DOMAIN
from onnxslim.runtime.training.operators.element_types import FLOATS, integer_bounds
from onnxslim.runtime.training.operators.straight_through import signs
from onnxslim.runtime.training.operators.table import Computation, NodeForm, operator, plain

for _name, _function, _versions in (
    ("Add", torch.add, (7, 13, 14)),
    ("Sub", torch.sub, (7, 13, 14)),
    ("Mul", torch.mul, (7, 13, 14)),
    ("And", torch.logical_and, (7,)),
    ("Or", torch.logical_or, (7,)),
    ("Xor", torch.logical_xor, (7,)),
    ("Not", torch.logical_not, (1,)),
    ("Equal", torch.eq, (7, 11, 13, 19)),
    ("Greater", torch.gt, (7, 9, 13)),
    ("GreaterOrEqual", torch.ge, (12, 16)),
    ("Less", torch.lt, (7, 9, 13)),
    ("LessOrEqual", torch.le, (12, 16)),
    ("BitwiseAnd", torch.bitwise_and, (18,)),
    ("BitwiseOr", torch.bitwise_or, (18,)),
    ("BitwiseXor", torch.bitwise_xor, (18,)),
    ("Abs", torch.abs, (6, 13)),
    ("Neg", torch.neg, (6, 13)),
    ("Sign", signs, (9, 13)),
    ("Ceil", torch.ceil, (6, 13)),
    ("Floor", torch.floor, (6, 13)),
    ("Round", torch.round, (11, 22)),
    ("Sqrt", torch.sqrt, (6, 13)),
    ("Reciprocal", torch.reciprocal, (6, 13)),
    ("Exp", torch.exp, (6, 13)),
    ("Log", torch.log, (6, 13)),
    ("Erf", torch.erf, (9, 13)),
    ("Sin", torch.sin, (7, 22)),
    ("Cos", torch.cos, (7, 22)),
    ("Tan", torch.tan, (7, 22)),
    ("Asin", torch.asin, (7, 22)),
    ("Acos", torch.acos, (7, 22)),
    ("Atan", torch.atan, (7, 22)),
    ("Sinh", torch.sinh, (9, 22)),
    ("Cosh", torch.cosh, (9, 22)),
    ("Tanh", torch.tanh, (6, 13)),
    ("Asinh", torch.asinh, (9, 22)),
    ("Acosh", torch.acosh, (9, 22)),
    ("Atanh", torch.atanh, (9, 22)),
    ("Relu", torch.relu, (6, 13, 14)),
    ("Sigmoid", torch.sigmoid, (6, 13)),
    ("HardSwish", functional.hardswish, (14, 22)),
    ("Softsign", functional.softsign, (1, 22)),
    ("Mish", functional.mish, (18, 22)),
    ("IsNaN", torch.isnan, (9, 13, 20)),
):
    plain(_name, *_versions)(_function)


@plain("Identity", 1, 13, 14, 16, 19, 21, 23, 24, 25)
def _identity(x: Tensor) -> Tensor:
    return x


@plain("Softplus", 1, 22)
def _softplus(x: Tensor) -> Tensor:
    return functional.softplus(x, threshold=math.inf)


@operator("Div", 7, 13, 14)
def _div(form: NodeForm) -> Computation:
    # integers may be held as floats
    divides_integers = form.element_type(0) not in (0, *FLOATS)

    def run(a: Tensor, b: Tensor) -> Tensor:
        if divides_integers or not (a.is_floating_point() or b.is_floating_point()):
            return torch.div(a, b, rounding_mode="trunc")
        return a / b

    return run


@plain("Pow", 7, 12, 13, 15)
def _pow(base: Tensor, exponent: Tensor) -> Tensor:
    if not exponent.requires_grad:
        return torch.pow(base, exponent).to(base.dtype)
    fixed = exponent.detach()
    power = torch.pow(base, fixed)
    # d/de bᵉ = bᵉ log b, where b has a logarithm; elsewhere the exponent gets no gradient
    logarithm = torch.log(torch.where(base > 0, base, 1).detach())
    return power + power.detach() * logarithm * (exponent - fixed)


@operator("Mod", 10, 13, 28)
def _mod(form: NodeForm) -> Computation:
    return torch.fmod if form.integer("fmod") else torch.remainder


@operator("BitwiseNot", 18)
def _bitwise_not(form: NodeForm) -> Computation:
    bounds = integer_bounds(form.element_type(0)) if form.element_type(0) else None
    if bounds is None or bounds[0]:
        return torch.bitwise_not
    return lambda x: bounds[1] - x  # torch holds most unsigned types in wider ones


@operator("BitShift", 11, 28)
def _bit_shift(form: NodeForm) -> Computation:
    if form.text("direction") == "LEFT":
        return torch.bitwise_left_shift
    return torch.bitwise_right_shift


@plain("Where", 9, 16)
def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition.bool(), a, b)


@plain("Sum", 6, 8, 13)
def _sum(*tensors: Tensor) -> Tensor:
    return reduce(torch.add, tensors)


@plain("Mean", 6, 8, 13)
def _mean(*tensors: Tensor) -> Tensor:
    return reduce(torch.add, tensors) / len(tensors)


@plain("Max", 6, 8, 12, 13)
def _max(*tensors: Tensor) -> Tensor:
    return reduce(torch.maximum, tensors)


@plain("Min", 6, 8, 12, 13)
def _min(*tensors: Tensor) -> Tensor:
    return reduce(torch.minimum, tensors)


@operator("Clip", 6)
def _clip_by_attributes(form: NodeForm) -> Computation:
    low = form.number("min", -math.inf)
    high = form.number("max", math.inf)
    return lambda x: torch.clamp(x, low, high)


@plain("Clip", 11, 12, 13)
def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


@operator("LeakyRelu", 6, 16)
def _leaky_relu(form: NodeForm) -> Computation:
    slope = form.number("alpha", 0.01)
    return lambda x: functional.leaky_relu(x, slope)


@plain("PRelu", 7, 9, 16)
def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@operator("Elu", 6, 22)
def _elu(form: NodeForm) -> Computation:
    alpha = form.number("alpha", 1.0)
    return lambda x: functional.elu(x, alpha)


@operator("Celu", 12, 28)
def _celu(form: NodeForm) -> Computation:
    alpha = form.number("alpha", 1.0)
    return lambda x: functional.celu(x, alpha)


@operator("Selu", 6, 22)
def _selu(form: NodeForm) -> Computation:
    alpha = form.number("alpha", 1.67326319217681884765625)
    gamma = form.number("gamma", 1.05070102214813232421875)
    return lambda x: gamma * functional.elu(x, alpha)


@operator("ThresholdedRelu", 10, 22)
def _thresholded_relu(form: NodeForm) -> Computation:
    alpha = form.number("alpha", 1.0)
    return lambda x: functional.threshold(x, alpha, 0.0)


@operator("HardSigmoid", 6, 22)
def _hard_sigmoid(form: NodeForm) -> Computation:
    alpha, beta = form.number("alpha", 0.2), form.number("beta", 0.5)
    return lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0)


@operator("Shrink", 9)
def _shrink(form: NodeForm) -> Computation:
    lambd, bias = form.number("lambd", 0.5), form.number("bias")

    def shrink(x: Tensor) -> Tensor:
        zero = torch.zeros_like(x)
        y = torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero))
        return y.to(x.dtype)

    return shrink


@operator("IsInf", 10, 20)
def _is_inf(form: NodeForm) -> Computation:
    negative, positive = form.integer("detect_negative", 1), form.integer("detect_positive", 1)
    if negative and positive:
        return torch.isinf
    if negative:
        return torch.isneginf
    return torch.isposinf if positive else lambda x: torch.zeros_like(x, dtype=torch.bool)


@operator("Gelu", 20)
def _gelu(form: NodeForm) -> Computation:
    approximate = form.text("approximate", "none")
    return lambda x: functional.gelu(x, approximate=approximate)


@operator("Swish", 24)
def _swish(form: NodeForm) -> Computation:
    alpha = form.number("alpha", 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


# ---------------------------------------------------------------------------- onnxruntime's own

plain("Gelu", domain=MICROSOFT_DOMAIN)(functional.gelu)


@plain("BiasGelu", domain=MICROSOFT_DOMAIN)
def _bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return functional.gelu(x + bias)


@plain("FastGelu", domain=MICROSOFT_DOMAIN)
def _fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("QuickGelu", domain=MICROSOFT_DOMAIN)
def _quick_gelu(form: NodeForm) -> Computation:
    alpha = form.number("alpha", 1.702)
    return lambda x: x * torch.sigmoid(alpha * x)

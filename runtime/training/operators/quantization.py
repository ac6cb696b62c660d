"""Operators of quantised models; integers that gradients flow through are held as floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from onnx import TensorProto
from torch import Tensor

from onnxslim.graph.ir import MICROSOFT_DOMAIN
from onnxslim.runtime.training.operators.convolution import convolution
from onnxslim.runtime.training.operators.element_types import NARROW_FLOATS, integer_bounds
from onnxslim.runtime.training.operators.grids import GridLayout, dequantized, quantized, unpacked
from onnxslim.runtime.training.operators.linear import product_of_matrices
from onnxslim.runtime.training.operators.straight_through import rounded
from onnxslim.runtime.training.operators.table import Computation, NodeForm, operator

_ONE_GRID: Final = GridLayout()


def _code_type(form: NodeForm, place: int) -> int:
    """The ONNX type of the codes that a zero point, if there is one, belongs to.

    Raises:
        ModelError: codes of that type cannot be held.
    """
    found = form.element_type(place) or form.integer("output_dtype") or int(TensorProto.UINT8)
    if integer_bounds(found) is None and found not in NARROW_FLOATS:
        raise form.unsupported(f"it makes codes of type {TensorProto.DataType.Name(found)}")
    return found


@operator("QuantizeLinear", 10, 13, 19, 21, 23, 24, 25, 28)
@operator("QuantizeLinear", domain=MICROSOFT_DOMAIN)
def _quantize_linear(form: NodeForm) -> Computation:
    layout = GridLayout(form.integer("axis", 1), form.integer("block_size"))
    kind, saturates = _code_type(form, 2), bool(form.integer("saturate", 1))
    return lambda x, scale, zero_point=None: quantized(
        x, scale, zero_point, kind, layout, saturates=saturates
    )


@operator("DequantizeLinear", 10, 13, 19, 21, 23, 24, 25, 28)
@operator("DequantizeLinear", domain=MICROSOFT_DOMAIN)
def _dequantize_linear(form: NodeForm) -> Computation:
    layout = GridLayout(form.integer("axis", 1), form.integer("block_size"))
    return lambda x, scale, zero_point=None: dequantized(x, scale, zero_point, layout)


@operator("DynamicQuantizeLinear", 11)
def _dynamic_quantize_linear(form: NodeForm) -> Computation:
    return dynamic_codes


def dynamic_codes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of 8 bits, scale and zero point; no gradient reaches the last two."""
    values = x.detach()
    low, high = (extreme.clamp(*bounds) for extreme, bounds in _extremes(values))
    scale = torch.where(high == low, 1, (high - low) / 255)
    zero_point = torch.clamp(torch.round(-low / scale), 0, 255)
    return torch.clamp(rounded(x / scale) + zero_point, 0, 255), scale, zero_point


def _extremes(values: Tensor) -> tuple[tuple[Tensor, tuple[float | None, float | None]], ...]:
    least, most = torch.aminmax(values) if values.numel() else (values.sum(), values.sum())
    return (least, (None, 0.0)), (most, (0.0, None))


# ---------------------------------------------------------------------------- integer products


def _centred(codes: Tensor, zero_point: Tensor | None, dtype: torch.dtype, axis: int = 1) -> Tensor:
    floats = codes if codes.is_floating_point() else codes.to(dtype)
    if zero_point is None:
        return floats
    return floats - GridLayout(axis).spread(zero_point, codes).to(floats.dtype)


@operator("MatMulInteger", 10)
def _mat_mul_integer(form: NodeForm) -> Computation:
    dtype = form.dtype

    def run(
        a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
    ) -> Tensor:
        return _centred(a, a_zero, dtype, -2) @ _centred(b, b_zero, dtype, -1)

    return run


@operator("ConvInteger", 10)
def _conv_integer(form: NodeForm) -> Computation:
    conv, dtype = convolution(form), form.dtype

    def run(
        x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
    ) -> Tensor:
        return conv(_centred(x, x_zero, dtype), _centred(w, w_zero, dtype, 0))

    return run


@operator("QLinearConv", 10)
def _qlinear_conv(form: NodeForm) -> Computation:
    conv, kind = convolution(form), _code_type(form, 7)

    def run(
        x: Tensor,
        x_scale: Tensor,
        x_zero: Tensor,
        w: Tensor,
        w_scale: Tensor,
        w_zero: Tensor,
        y_scale: Tensor,
        y_zero: Tensor,
        b: Tensor | None = None,
    ) -> Tensor:
        floats = _centred(x, x_zero, form.dtype)
        weight = _centred(w, w_zero, form.dtype, 0)
        total = conv(floats, weight, None if b is None else b.to(floats.dtype))
        step = y_scale / (x_scale * w_scale)
        return quantized(total, step, y_zero, kind, _ONE_GRID)

    return run


@operator("QLinearMatMul", 10, 21)
def _qlinear_mat_mul(form: NodeForm) -> Computation:
    kind = _code_type(form, 7)

    def run(
        a: Tensor,
        a_scale: Tensor,
        a_zero: Tensor,
        b: Tensor,
        b_scale: Tensor,
        b_zero: Tensor,
        y_scale: Tensor,
        y_zero: Tensor,
    ) -> Tensor:
        left, right = _centred(a, a_zero, form.dtype, -2), _centred(b, b_zero, form.dtype, -1)
        by_row, by_column = GridLayout(-2), GridLayout(-1)
        total = left @ right
        step = y_scale / (by_row.spread(a_scale, total) * by_column.spread(b_scale, total))
        return quantized(total, step, y_zero, kind, by_column)

    return run


# ---------------------------------------------------------------------------- onnxruntime's own


@operator("MatMulNBits", domain=MICROSOFT_DOMAIN)
def _mat_mul_n_bits(form: NodeForm) -> Computation:
    """Codes may be given as floats too, one for each weight: (N, blocks, block size)."""
    rows, columns, bits = form.integer("N"), form.integer("K"), form.integer("bits", 4)
    block = form.integer("block_size")
    blocks = -(-columns // block)
    if form.takes(4):
        raise form.unsupported("its weights are in the order of an index")

    def zeros(zero_points: Tensor | None, dtype: torch.dtype) -> Tensor | float:
        if zero_points is None:
            return float(1 << (bits - 1))
        if zero_points.is_floating_point():
            return zero_points.reshape(rows, blocks, 1)
        return unpacked(zero_points.reshape(rows, -1), bits)[:, :blocks, None].to(dtype)

    def run(
        a: Tensor,
        packed: Tensor,
        scales: Tensor,
        zero_points: Tensor | None = None,
        order: None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        codes = packed if packed.is_floating_point() else unpacked(packed, bits)
        steps = codes.reshape(rows, blocks, -1).to(a.dtype) - zeros(zero_points, a.dtype)
        weight = (steps * scales.reshape(rows, blocks, 1)).reshape(rows, -1)[:, :columns]
        return torch.nn.functional.linear(a, weight, bias)

    return run


@operator("MatMulIntegerToFloat", domain=MICROSOFT_DOMAIN)
def _mat_mul_integer_to_float(form: NodeForm) -> Computation:
    def run(
        a: Tensor,
        b: Tensor,
        a_scale: Tensor,
        b_scale: Tensor,
        a_zero: Tensor | None = None,
        b_zero: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        left = dequantized(a, a_scale, a_zero, GridLayout(-2))
        y = left @ dequantized(b, b_scale, b_zero, GridLayout(-1))
        return y if bias is None else y + bias

    return run


@operator("DynamicQuantizeMatMul", domain=MICROSOFT_DOMAIN)
def _dynamic_quantize_mat_mul(form: NodeForm) -> Computation:
    def run(
        a: Tensor,
        b: Tensor,
        b_scale: Tensor,
        b_zero: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        left = dequantized(*dynamic_codes(a), _ONE_GRID)
        y = left @ dequantized(b, b_scale, b_zero, GridLayout(-1))
        return y if bias is None else y + bias

    return run


@operator("QGemm", domain=MICROSOFT_DOMAIN)
def _q_gemm(form: NodeForm) -> Computation:
    product = product_of_matrices(form)
    kind = _code_type(form, 8)
    axis = 0 if form.integer("transB") else 1

    def run(
        a: Tensor,
        a_scale: Tensor,
        a_zero: Tensor,
        b: Tensor,
        b_scale: Tensor,
        b_zero: Tensor,
        c: Tensor | None = None,
        y_scale: Tensor | None = None,
        y_zero: Tensor | None = None,
    ) -> Tensor:
        left = dequantized(a, a_scale, a_zero, _ONE_GRID)
        right = dequantized(b, b_scale, b_zero, GridLayout(axis))
        bias = None if c is None else c.to(left.dtype) * (a_scale * b_scale).reshape(-1)
        y = product(left, right, bias)
        return y if y_scale is None else quantized(y, y_scale, y_zero, kind, _ONE_GRID)

    return run


def _all_floats(given: Sequence[Tensor]) -> list[Tensor]:
    """Floats of codes, given as codes, scale and zero point in turn."""
    threes = zip(given[::3], given[1::3], given[2::3], strict=True)
    return [dequantized(codes, scale, zero, _ONE_GRID) for codes, scale, zero in threes]


def _on_floats(name: str, inputs: int, of: Computation) -> None:
    """Enter an operator of onnxruntime that dequantises inputs, and quantises what `of` gives."""

    @operator(name, domain=MICROSOFT_DOMAIN)
    def build(form: NodeForm) -> Computation:
        kind = _code_type(form, 2)

        def run(*given: Tensor) -> Tensor:
            floats = _all_floats(given[: 3 * inputs])
            scale, zero_point = (*given[3 * inputs :], None)[:2]
            y = of(form, *floats)
            assert scale is not None
            return quantized(y, scale, zero_point, kind, _ONE_GRID)

        return run


def _pooled(form: NodeForm, x: Tensor) -> Tensor:
    axes = range(1, x.dim() - 1) if form.integer("channels_last") else range(2, x.dim())
    return torch.mean(x, tuple(axes), keepdim=True)


_on_floats("QLinearAdd", 2, lambda form, a, b: a + b)
_on_floats("QLinearMul", 2, lambda form, a, b: a * b)
_on_floats("QLinearSigmoid", 1, lambda form, x: torch.sigmoid(x))
_on_floats(
    "QLinearLeakyRelu",
    1,
    lambda form, x: torch.nn.functional.leaky_relu(x, form.number("alpha", 0.01)),
)
_on_floats("QLinearGlobalAveragePool", 1, _pooled)


@operator("QLinearConcat", domain=MICROSOFT_DOMAIN)
def _qlinear_concat(form: NodeForm) -> Computation:
    axis, kind = form.integer("axis"), _code_type(form, 1)

    def run(y_scale: Tensor, y_zero: Tensor, *given: Tensor) -> Tensor:
        parts = torch.cat(_all_floats(given), axis)
        return quantized(parts, y_scale, y_zero, kind, _ONE_GRID)

    return run

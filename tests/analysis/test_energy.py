"""Energy by arithmetic, held against figures computed by hand from Horowitz's table."""

from __future__ import annotations

import pytest

from onnxslim.analysis.energy import estimate_energy
from onnxslim.details import Energy
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from support import parse


def energy_of(text: str) -> Energy:
    model = Model.load(parse(text))
    infer_shapes(model)
    return estimate_energy(model.graph)


def test_a_product_counts_arithmetic_weights_and_activations() -> None:
    found = energy_of(
        """<opset_import: ["" : 17]> g (float[1, 4] x) => (float[1, 3] y)
        <float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> { y = MatMul (x, w) }"""
    )
    (part,) = found.parts
    assert (part.operator, part.arithmetic, part.operations) == ("MatMul", "float32", 12)
    assert part.compute_pj == pytest.approx(12 * (3.7 + 0.9))
    assert part.weights_pj == pytest.approx(12 * 640)  # 32 bits from DRAM each
    assert part.activations_pj == pytest.approx((4 + 3) * 5)  # 32 bits from 8 KB each
    assert found.total_pj == pytest.approx(part.total_pj)
    assert found.unsized == 0


def test_integers_take_less() -> None:
    found = energy_of(
        """<opset_import: ["" : 17]> g (uint8[1, 4] x) => (int32[1, 3] y)
        <int8[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> { y = MatMulInteger (x, w) }"""
    )
    (part,) = found.parts
    assert part.arithmetic == "int8"
    assert part.compute_pj == pytest.approx(12 * (0.2 + 0.1))
    assert part.weights_pj == pytest.approx(12 * 160)


def test_what_lies_between_quantize_and_dequantize_counts_in_integers() -> None:
    found = energy_of(
        """<opset_import: ["" : 17]> g (float[1, 8] x) => (float[1, 8] y)
        <float s = {0.1}, uint8 z = {0}>
        { q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) y = Relu (d) }"""
    )
    (part,) = found.parts
    assert part.operator == "Relu"
    assert part.activations_pj == pytest.approx((8 * 1 + 8 * 4) * 10 / 8)


def test_a_table_counts_the_rows_that_are_read() -> None:
    rows = ", ".join(map(str, range(40)))
    found = energy_of(
        f"""<opset_import: ["" : 17]> g (int64[2] x) => (float[2, 4] y)
        <float[10, 4] w = {{{rows}}}> {{ y = Gather (w, x) }}"""
    )
    assert found.parts[0].weights_pj == pytest.approx(2 * 4 * 640)


def test_moving_and_constant_nodes_compute_nothing() -> None:
    found = energy_of(
        """<opset_import: ["" : 17]> g (float[2, 3] x) => (float[3, 2] y)
        <float[2] a = {1, 2}> { c = Exp (a) t = Transpose <perm = [1, 0]> (x) y = Mul (t, c) }"""
    )
    parts = {part.operator: part for part in found.parts}
    assert set(parts) == {"Transpose", "Mul"}
    assert parts["Transpose"].compute_pj == 0
    assert parts["Mul"].compute_pj == pytest.approx(6 * 0.9)


def test_unknown_sizes_are_told() -> None:
    found = energy_of(
        """<opset_import: ["" : 17]> g (float[N, M] x) => (float[N, M] y) { y = Relu (x) }"""
    )
    assert found.unsized == 1

"""Grids: what codes stand for, and what QuantizeLinear makes of the same numbers."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import onnx
import pytest
from cases import case
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxslim.quantization import grid as grids
from onnxslim.quantization.grid import S8, S8_SYMMETRIC, U8, Grid, GridForm
from onnxslim.runtime.evaluate import evaluate

FORMS = [
    replace(base, symmetric=symmetric, reduced=reduced, bits=bits)
    for base, symmetric, reduced, bits in product((U8, S8), (False, True), (False, True), (8, 4))
]
ENDS = st.floats(-1e6, 1e6, width=32)


@given(st.sampled_from(FORMS), ENDS, ENDS, st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_within_its_range_a_grid_is_off_by_half_a_step(
    form: GridForm, a: float, b: float, shares: list[float]
) -> None:
    least, most = min(a, b, 0.0), max(a, b, 0.0)
    grid = form.over(least, most)
    values = least + np.array(shares) * (most - least)
    found = grid.dequantized(grid.quantized(values))
    # the zero point is rounded as well, so that the ends may be off by another half
    ends = np.isin(grid.quantized(values), (grid.low, grid.high))
    step = float(grid.scale)
    assert (np.abs(found - values) <= step * np.where(ends, 1.001, 0.501) + 1e-30).all()


@given(
    st.sampled_from(FORMS),
    st.sampled_from((np.float32, np.float64)),
    st.lists(st.floats(-8, 8), min_size=2, max_size=2),
    st.lists(st.lists(st.floats(-10, 10), min_size=3, max_size=3), min_size=2, max_size=2),
)
def test_values_put_on_a_grid_are_what_their_codes_stand_for(
    form: GridForm, dtype: type, ends: list[float], rows: list[list[float]]
) -> None:
    values = np.array(rows, dtype)
    for grid in (form.over(min(ends), max(ends)), form.over(np.minimum(ends, 0), [1.0, 2.0], 0)):
        found = grid.rounded(values)
        assert found.dtype == dtype
        steps = np.asarray(values, np.float64) / grid.scale.reshape(-1, 1)
        is_tie = np.abs(np.abs(steps % 1) - 0.5) < 1e-3  # float32 may take its other neighbour
        expected = grid.dequantized(grid.quantized(values))
        np.testing.assert_allclose(found[~is_tie], expected[~is_tie], rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_zero_is_exact(form: GridForm) -> None:
    for ends in ((-1, 3), (0, 5), (-2, 0), (1, 2), (0, 0)):
        grid = form.over(*ends)
        with case(ends):
            assert grid.dequantized(grid.quantized(0.0)) == 0
            assert grid.low <= int(grid.zero_point) <= grid.high


@pytest.mark.parametrize(
    ("form", "low", "high", "zero"),
    [
        (S8, -128, 127, -128),
        (U8, 0, 255, 0),
        (S8_SYMMETRIC, -127, 127, 0),
        (replace(U8, symmetric=True), 1, 255, 128),
        (replace(S8_SYMMETRIC, reduced=True), -63, 63, 0),
        (replace(U8, reduced=True), 0, 127, 0),
        (replace(S8_SYMMETRIC, bits=4), -7, 7, 0),
        (replace(U8, bits=4), 0, 15, 0),
    ],
)
def test_the_codes_that_a_form_uses(form: GridForm, low: int, high: int, zero: int) -> None:
    grid = form.over(0.0, 4.0)
    assert (grid.low, grid.high, int(grid.zero_point)) == (low, high, zero)
    assert grid.dequantized(np.array(grid.high, grid.dtype)) == pytest.approx(4.0)


@pytest.mark.parametrize("form", [S8, U8, S8_SYMMETRIC])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_codes_are_those_of_quantize_linear(form: GridForm, axis: int | None) -> None:
    values = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    across = tuple(place for place in range(2) if place != axis)
    grid = form.over(values.min(across), values.max(across), axis)
    codes, floats = _in_onnxruntime(values, grid)
    np.testing.assert_array_equal(grid.quantized(values), codes)
    np.testing.assert_array_equal(grid.dequantized(codes), floats)


def test_a_range_too_small_for_a_scale_gets_one() -> None:
    grid = U8.over([0.0, -1e-44], [0.0, 1e-44], 0)
    assert (grid.scale > np.finfo(np.float32).tiny).all()


def _in_onnxruntime(values: np.ndarray, grid: Grid) -> list[np.ndarray]:
    attributes = {} if grid.axis is None else {"axis": grid.axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    code = helper.np_dtype_to_tensor_dtype(grid.dtype)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [3, 4])],
        [
            helper.make_tensor_value_info("q", code, [3, 4]),
            helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3, 4]),
        ],
        [numpy_helper.from_array(grid.scale, "s"), numpy_helper.from_array(grid.zero_point, "z")],
    )
    opset = helper.make_opsetid("", 17)
    return evaluate(helper.make_model(graph, opset_imports=[opset], ir_version=8), {"x": values})


def test_values_beyond_all_floats_of_the_scale_are_clipped() -> None:
    grid = U8.over(-1.0, 1.0)
    extremes = np.array([np.finfo(np.float32).min, np.finfo(np.float32).max, -np.inf], np.float32)
    ends = np.array([-1.0, 1.0, -1.0])
    np.testing.assert_allclose(grid.rounded(extremes), ends, atol=float(grid.scale))


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_codes_of_large_arrays_are_those_of_small_ones(
    axis: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(3).standard_normal((7, 5)).astype(np.float32)
    across = None if axis is None else 1 - axis
    layout = U8.over(values.min(across), values.max(across), axis)
    wanted = layout.quantized(values)
    monkeypatch.setattr(grids, "_AT_ONCE", 10)
    np.testing.assert_array_equal(layout.quantized(values), wanted)

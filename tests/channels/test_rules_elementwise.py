"""Operators that treat every position by itself: channels that meet leave together."""

from __future__ import annotations

import pytest
from channel_nets import LAST, check, conv_net, free_channels, net, pins, writes


@pytest.mark.parametrize(
    "op",
    ["Relu", "Sigmoid", "LeakyRelu", "HardSwish", "Erf", "Dropout", "Identity", "Softplus"],
)
def test_channels_pass_operators_of_one_input(op: str) -> None:
    check(conv_net(f"b = {op} (a)", LAST), {"a": 8, "y": 0}, seeds=1)


@pytest.mark.parametrize("slope", ["8,1,1", "1,1,1", "1"])
def test_the_slope_of_a_prelu_is_cut(slope: str) -> None:
    check(conv_net("b = PRelu (a, slope)", f"float[{slope}] slope, {LAST}"), {"a": 8, "y": 0})


@pytest.mark.parametrize("op", ["Add", "Mul", "Sub", "Div", "Max", "Pow"])
@pytest.mark.parametrize("shape", ["8,1,1", "1,8,8,8", "8,8", ""])
def test_constants_of_any_shape_are_cut_where_channels_are(op: str, shape: str) -> None:
    dims = f"[{shape}]" if shape else ""
    body = f"p = Abs (a)\nb = {op} (p, c_var)"
    check(conv_net(body, f"float{dims} c_var, {LAST}"), {"a": 8, "y": 0}, seeds=1)


def test_a_residual_chain_with_fan_out_is_one_group() -> None:
    model = net("""
    g (float[N,3,6,6] x) => (float[N,5,6,6] y, float[N,4,6,6] z)
    <float[8,3,1,1] w0, float[6,8,1,1] w1, float[8,6,1,1] w2, float[8,8,1,1] w3,
     float[5,8,1,1] w4, float[4,8,1,1] w5> {
      a = Conv (x, w0)
      h = Conv (a, w1)
      b = Conv (h, w2)
      s = Add (a, b)
      r = Relu (s)
      c = Conv (r, w3)
      t = Sum (r, c, a)
      y = Conv (t, w4)
      z = Conv (s, w5)
    }""")
    check(model, {"a": 8, "h": 6, "b": 8, "c": 8, "y": 0, "z": 0})
    assert writes(model) == {("a", "b", "c"), ("h",), ("y",), ("z",)}


def test_a_residual_onto_an_input_of_the_model_pins_with_its_name() -> None:
    model = net("""
    g (float[N,8,6,6] x) => (float[N,5,6,6] y) <float[8,8,1,1] w, float[5,8,1,1] v> {
      a = Conv (x, w)
      s = Add (a, x)
      y = Conv (s, v)
    }""")
    assert free_channels(model) == {"a": 0, "y": 0}
    assert pins(model)["`s` (Add) joins them with `x`"] == 8


def test_a_gate_leaves_with_what_it_scales() -> None:
    model = conv_net(
        """
      g0 = GlobalAveragePool (a)
      g1 = Conv (g0, w_squeeze, b_squeeze)
      g2 = Relu (g1)
      g3 = Conv (g2, w_excite, b_excite)
      g4 = HardSigmoid (g3)
      b = Mul (a, g4)
        """,
        "float[4,8,1,1] w_squeeze, float[4] b_squeeze, float[8,4,1,1] w_excite,"
        f" float[8] b_excite, {LAST}",
    )
    check(model, {"a": 8, "g1": 4, "g3": 8, "y": 0})
    assert writes(model) == {("a", "g3"), ("g1",), ("y",)}


def test_a_gate_made_by_gemms_and_shaped_back_leaves_with_what_it_scales() -> None:
    model = conv_net(
        """
      g0 = ReduceMean <axes = [2,3], keepdims = 0> (a)
      g1 = Gemm (g0, w_squeeze)
      g2 = Relu (g1)
      g3 = Gemm (g2, w_excite)
      g4 = Sigmoid (g3)
      g5 = Reshape (g4, shape)
      b = Mul (a, g5)
        """,
        "float[8,4] w_squeeze, float[4,8] w_excite, int64[4] shape = {-1, 8, 1, 1}," + LAST,
    )
    check(model, {"a": 8, "g1": 4, "g3": 8, "y": 0})


def test_a_product_of_two_halves_joins_them() -> None:
    model = conv_net(
        """
      p, q = Split <axis = 1> (a)
      s = Sigmoid (q)
      b = Mul (p, s)
        """,
        "float[5,4,1,1] w_last",
    )
    channels = check(model, {"a": 8, "y": 0})
    assert channels.groups[0].size == 4


def test_where_and_clip_meet_all_their_operands() -> None:
    model = conv_net(
        """
      c = Greater (a, zero)
      w = Where (c, a, other)
      b = Clip (w, low, high)
        """,
        f"float zero = {{0}}, float[8,1,1] other, float low = {{-1}}, float high = {{1}}, {LAST}",
    )
    check(model, {"a": 8, "y": 0})


def test_quantized_activations_are_cut_with_their_scales() -> None:
    model = conv_net(
        """
      q = QuantizeLinear <axis = 1> (a, scale_var, zero)
      b = DequantizeLinear <axis = 1> (q, scale_var, zero)
        """,
        f"float[8] scale_var, uint8[8] zero = {{3, 1, 4, 1, 5, 9, 2, 6}}, {LAST}",
    )
    check(model, {"a": 8, "y": 0})


def test_operators_before_broadcasting_was_general_are_left_alone() -> None:
    model = conv_net("b = Add <axis = 1, broadcast = 1> (a, c)", f"float[8] c, {LAST}", opset=6)
    assert free_channels(model) == {"a": 0, "y": 0}

"""Conv, ConvTranspose, Gemm and MatMul: what they read and write, and weights that they share."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from channel_nets import LAST, check, conv_net, cut, follow, free_channels, net, pins, reads, writes

from support import random_feeds, run


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_channels_between_convs_of_any_rank_leave(dims: int) -> None:
    size, kernel = ",".join(["6"] * dims), ",".join(["3"] * dims)
    out = ",".join("ABC"[:dims])
    model = net(f"""
    g (float[N,3,{size}] x) => (float[N,5,{out}] y)
    <float[8,3,{kernel}] w, float[8] b, float[5,8,{kernel}] v> {{
      a = Conv (x, w, b)
      r = Relu (a)
      y = Conv (r, v)
    }}""")
    check(model, {"a": 8, "y": 0})
    assert pins(model) == {"`y` is an output of the model": 5}
    assert reads(model) == {"a": ("y",), "y": ()}
    assert writes(model) == {("a",), ("y",)}


def test_groups_of_a_conv_lose_as_many_inputs_and_as_many_outputs() -> None:
    model = conv_net(
        "b = Conv <group = 2> (a, w_mid, b_mid)",
        "float[12,4,3,3] w_mid, float[12] b_mid, float[5,12,1,1] w_last",
    )
    channels = check(model, {"a": 8, "b": 12, "y": 0}, seeds=6)
    assert sorted(parts.shape for parts in channels.units.balances) == [(2, 4), (2, 6)]


def test_groups_of_a_conv_on_an_input_of_the_model_lose_as_many_outputs() -> None:
    model = net("""
    g (float[N,4,6,6] x) => (float[N,5,4,4] y) <float[8,2,3,3] w, float[5,8,1,1] v> {
      a = Conv <group = 2> (x, w)
      y = Conv (a, v)
    }""")
    check(model, {"a": 8, "y": 0}, seeds=6)


@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_channels_leave_with_their_input(multiplier: int) -> None:
    width = 8 * multiplier
    model = conv_net(
        "b = Conv <group = 8> (a, w_mid, b_mid)",
        f"float[{width},1,3,3] w_mid, float[{width}] b_mid, float[5,{width},1,1] w_last",
    )
    channels = check(model, {"a": 8, "y": 0})
    assert [node.outputs[0].name for node, _ in channels.groups[0].channelwise] == ["b"]


def test_a_depthwise_conv_on_an_input_of_the_model_names_nothing() -> None:
    model = net("""
    g (float[N,4,6,6] x) => (float[N,5,4,4] y)
    <float[4,1,3,3] w, float[8,4,1,1] v, float[5,8,1,1] u> {
      d = Conv <group = 4> (x, w)
      a = Conv (d, v)
      y = Conv (a, u)
    }""")
    check(model, {"a": 8, "y": 0})


def test_a_transposed_conv_reads_and_writes() -> None:
    model = conv_net(
        "b = ConvTranspose <strides = [2,2]> (a, w_mid, b_mid)",
        "float[8,6,2,2] w_mid, float[6] b_mid, float[5,6,1,1] w_last",
    )
    check(model, {"a": 8, "b": 6, "y": 0})


def test_groups_of_a_transposed_conv_lose_alike() -> None:
    model = conv_net(
        "b = ConvTranspose <group = 2, strides = [2,2]> (a, w_mid, b_mid)",
        "float[8,3,2,2] w_mid, float[6] b_mid, float[5,6,1,1] w_last",
    )
    check(model, {"a": 8, "b": 6, "y": 0}, seeds=6)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_channels_of_a_depthwise_transposed_conv_leave_with_their_input(multiplier: int) -> None:
    width = 8 * multiplier
    model = conv_net(
        "b = ConvTranspose <group = 8, strides = [2,2]> (a, w_mid, b_mid)",
        f"float[8,{multiplier},2,2] w_mid, float[{width}] b_mid, float[5,{width},1,1] w_last",
    )
    check(model, {"a": 8, "y": 0})


@pytest.mark.parametrize("flipped", [0, 1])
@pytest.mark.parametrize("flipped_last", [0, 1])
@pytest.mark.parametrize("bias", ["8", "1,8", "1", ""])
def test_a_gemm_with_a_constant_on_the_right_is_cut(
    flipped: int, flipped_last: int, bias: str
) -> None:
    shape = "8,6" if flipped else "6,8"
    last = "4,8" if flipped_last else "8,4"
    more = f", float[{bias}] b" if bias else ""
    model = net(f"""
    g (float[N,6] x) => (float[N,4] y) <float[{shape}] w, float[{last}] v {more}> {{
      a = Gemm <transB = {flipped}, alpha = 0.5, beta = 2.0> (x, w {", b" if bias else ""})
      r = Relu (a)
      y = Gemm <transB = {flipped_last}> (r, v)
    }}""")
    check(model, {"a": 8, "y": 0}, seeds=2)


@pytest.mark.parametrize("flipped", [0, 1])
@pytest.mark.parametrize("flipped_last", [0, 1])
@pytest.mark.parametrize("bias", ["8,1", "1,3", "8,3", ""])
def test_a_gemm_with_a_constant_on_the_left_is_cut(
    flipped: int, flipped_last: int, bias: str
) -> None:
    shape = "6,8" if flipped else "8,6"
    last = "8,4" if flipped_last else "4,8"
    more = f", float[{bias}] b" if bias else ""
    model = net(f"""
    g (float[6,3] x) => (float[4,3] y) <float[{shape}] w, float[{last}] v {more}> {{
      a = Gemm <transA = {flipped}> (w, x {", b" if bias else ""})
      r = Relu (a)
      y = Gemm <transA = {flipped_last}> (v, r)
    }}""")
    check(model, {"a": 8, "y": 0}, seeds=2)


def test_a_gemm_reads_the_columns_of_a_transposed_activation() -> None:
    model = net("""
    g (float[3,6] x) => (float[4,3] y) <float[6,8] w, float[8,4] v> {
      a = Gemm (x, w)
      t = Transpose <perm = [1,0]> (a)
      h = Gemm <transA = 1> (t, v)
      y = Transpose <perm = [1,0]> (h)
    }""")
    check(model, {"a": 8, "h": 0})


def test_a_gemm_passes_names_of_rows_on() -> None:
    model = net("""
    g (float[6,5] x) => (float[4,3] y)
    <float[8,6] w, float[5,7] u, float[7,3] t, float[4,8] v, float[7] b> {
      a = MatMul (w, x)
      h = Gemm (a, u, b)
      k = Gemm (h, t)
      y = MatMul (v, k)
    }""")
    check(model, {"a": 8, "h": 7, "k": 0, "y": 0})


def test_a_gemm_with_a_bias_that_is_computed_is_left_alone() -> None:
    model = net("""
    g (float[2,6] x, float[8] c) => (float[2,4] y) <float[6,8] w, float[8,4] v> {
      b = Relu (c)
      a = Gemm (x, w, b)
      y = Gemm (a, v)
    }""")
    assert free_channels(model) == {"y": 0}


def test_a_conv_with_a_bias_that_is_computed_is_left_alone() -> None:
    model = net("""
    g (float[2,6,4,4] x, float[8] c) => (float[2,4,4,4] y)
    <float[6,6,1,1] u, float[8,6,1,1] w, float[4,8,1,1] v> {
      h = Conv (x, u)
      b = Relu (c)
      a = Conv (h, w, b)
      y = Conv (a, v)
    }""")
    assert free_channels(model) == {"h": 0, "y": 0}
    assert pins(model)["`a` (Conv): its bias is computed at run time"] == 6


def test_matmul_with_a_matrix_on_the_right_is_cut_in_stacks_too() -> None:
    model = net("""
    g (float[N,5,6] x) => (float[N,5,4] y) <float[6,8] w, float[8] b, float[8,4] v> {
      a = MatMul (x, w)
      s = Add (b, a)
      y = MatMul (s, v)
    }""")
    check(model, {"a": 8, "y": 0})


def test_matmul_with_a_matrix_on_the_left_is_cut_in_stacks_too() -> None:
    model = net("""
    g (float[N,6,5] x) => (float[N,4,5] y) <float[8,6] w, float[8,1] b, float[4,8] v> {
      a = MatMul (w, x)
      s = Add (a, b)
      y = MatMul (v, s)
    }""")
    check(model, {"a": 8, "y": 0})


def test_tokens_and_channels_of_a_mixer_both_leave() -> None:
    model = net("""
    g (float[N,6,5] x) => (float[N,4,3] y)
    <float[8,6] w, float[5,7] u, float[4,8] v, float[7,3] t> {
      a = MatMul (w, x)
      h = MatMul (a, u)
      r = Relu (h)
      k = MatMul (v, r)
      y = MatMul (k, t)
    }""")
    check(model, {"a": 8, "h": 7, "k": 0, "y": 0})


def test_of_two_axes_of_names_that_are_flattened_into_one_the_outer_may_leave() -> None:
    model = net("""
    g (float[N,6,5] x) => (float[N,3] y) <float[8,6] w, float[5,7] u, float[56,3] v> {
      a = MatMul (w, x)
      h = MatMul (a, u)
      f = Flatten (h)
      y = Gemm (f, v)
    }""")
    check(model, {"a": 8, "h": 0, "y": 0})


def test_a_stack_of_weights_is_left_alone() -> None:
    model = net("""
    g (float[2,3,6] x) => (float[2,3,4] y) <float[6,8] w, float[2,8,4] v> {
      a = MatMul (x, w)
      y = MatMul (a, v)
    }""")
    assert free_channels(model) == {"a": 0}
    assert pins(model) == {"`y` (MatMul): its weight is not a matrix": 8}


def test_a_weight_of_two_layers_is_cut_once() -> None:
    model = net("""
    g (float[N,6] x, float[N,6] z) => (float[N,4] y, float[N,4] u)
    <float[6,8] w, float[8,8] m, float[8,4] v> {
      a = MatMul (x, w)
      b = MatMul (z, w)
      c = MatMul (a, m)
      d = MatMul (b, m)
      y = MatMul (c, v)
      u = MatMul (d, v)
    }""")
    check(model, {"a": 8, "b": 8, "c": 8, "d": 8, "y": 0, "u": 0})
    assert writes(model) == {("a", "b"), ("c", "d"), ("y", "u")}


def test_a_weight_that_is_used_both_ways_joins_inputs_with_outputs() -> None:
    model = net("""
    g (float[N,6] x) => (float[N,6] y) <float[6,5] u, float[5,8] w, float[5,6] v> {
      e = Gemm (x, u)
      a = Gemm (e, w)
      r = Relu (a)
      b = Gemm <transB = 1> (r, w)
      y = Gemm (b, v)
    }""")
    check(model, {"e": 5, "a": 8, "b": 5, "y": 0})
    assert writes(model) == {("e", "b"), ("a",), ("y",)}


def test_dead_weights_leave_outputs_as_they_are() -> None:
    model = conv_net("b = Relu (a)", LAST)
    weight = next(t for t in model.graph.initializer if t.name == "w_first")
    bias = next(t for t in model.graph.initializer if t.name == "b_first")
    for tensor in (weight, bias):
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[[1, 4, 6]] = 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    gone = np.zeros(follow(model)[1].units.count, bool)
    gone[[1, 4, 6]] = True
    feeds = random_feeds(model)
    for ref, new in zip(run(model, feeds), run(cut(model, gone), feeds), strict=True):
        np.testing.assert_allclose(new, ref, rtol=1e-5, atol=1e-6)


def test_a_weight_of_two_grouped_convs_stays_one() -> None:
    model = conv_net(
        """
      c = Conv <group = 2> (a, w_mid)
      d = Conv <group = 2> (c, w_mid)
      b = Add (c, d)
        """,
        f"float[8,4,1,1] w_mid, {LAST}",
    )
    channels = check(model, {"a": 8, "c": 8, "d": 8, "y": 0}, seeds=4)
    gone = np.zeros(channels.units.count, bool)
    gone[[0, 4]] = True
    assert len(cut(model, gone).graph.initializer) == 4


def test_a_weight_that_a_depthwise_conv_uses_too_stays() -> None:
    model = net("""
    g (float[N,1,6,6] x) => (float[N,5,6,6] y)
    <float[8,1,3,3] w, float[5,8,1,1] v> {
      a = Conv <pads = [1,1,1,1]> (x, w)
      b = Conv <pads = [1,1,1,1], group = 8> (a, w)
      y = Conv (b, v)
    }""")
    assert free_channels(model) == {"a": 0, "y": 0}
    assert pins(model)["their weight is also used by `b` (Conv)"] == 8

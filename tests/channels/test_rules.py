"""What every operator does with the names of channels; and that cutting is masking."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from channel_nets import check, cut, follow, free_channels, net, pins, reads, writes

from onnxslim.channels.groups import shrink
from onnxslim.graph.ir import node_label
from onnxslim.graph.rewrite import Rewriter
from support import random_feeds, run


def conv_net(body: str, weights: str = "", *, opset: int = 17, spatial: int = 8) -> onnx.ModelProto:
    """A Conv `a` of 8 channels, `body` that makes `b`, and a Conv `y` over its channels."""
    text = f"""
    g (float[N,3,{spatial},{spatial}] x) => (float[N,O,H,W] y)
    <float[8,3,3,3] w_first, float[8] b_first {"," if weights else ""} {weights}> {{
      a = Conv <pads = [1,1,1,1]> (x, w_first, b_first)
      {body}
      y = Conv (b, w_last)
    }}"""
    return net(text, opset=opset)


LAST = "float[5,8,1,1] w_last"


# ---------------------------------------------------------------------------- layers


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
    assert sorted(balance.parts.shape for balance in channels.units.balances) == [(2, 4), (2, 6)]


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


def test_two_axes_of_names_that_are_flattened_into_one_stay() -> None:
    model = net("""
    g (float[N,6,5] x) => (float[N,3] y) <float[8,6] w, float[5,7] u, float[56,3] v> {
      a = MatMul (w, x)
      h = MatMul (a, u)
      f = Flatten (h)
      y = Gemm (f, v)
    }""")
    assert free_channels(model) == {"a": 0, "h": 0, "y": 0}


def test_a_stack_of_weights_is_left_alone() -> None:
    model = net("""
    g (float[2,3,6] x) => (float[2,3,4] y) <float[6,8] w, float[2,8,4] v> {
      a = MatMul (x, w)
      y = MatMul (a, v)
    }""")
    assert free_channels(model) == {"a": 0}
    assert pins(model) == {"`y` (MatMul): its weight is not a matrix": 8}


# ---------------------------------------------------------------------------- attention


def test_query_and_key_of_one_head_share_their_channels() -> None:
    model = net("""
    g (float[N,5,6] x) => (float[N,5,4] y)
    <float[6,8] wq, float[6,8] wk, float[6,7] wv, float[8] bq, float[8] bk, float[7,4] wo,
     float s = {0.35}> {
      q0 = MatMul (x, wq)
      q = Add (q0, bq)
      k0 = MatMul (x, wk)
      k = Add (k0, bk)
      v = MatMul (x, wv)
      t = Transpose <perm = [0,2,1]> (k)
      l = MatMul (q, t)
      m = Mul (l, s)
      p = Softmax (m)
      h = MatMul (p, v)
      y = MatMul (h, wo)
    }""")
    channels = check(model, {"q0": 8, "k0": 8, "v": 7, "y": 0})
    assert writes(model) == {("q0", "k0"), ("v",), ("y",)}
    assert [len(group.weightless_readers) for group in channels.groups] == [1, 0, 0]


HEADS = """
      q1 = Reshape (q, split)
      k1 = Reshape (k, split)
      v1 = Reshape (v, split)
      q2 = Transpose <perm = [0,2,1,3]> (q1)
      k2 = Transpose <perm = [0,2,3,1]> (k1)
      v2 = Transpose <perm = [0,2,1,3]> (v1)
      q3 = Mul (q2, s)
      l = MatMul (q3, k2)
      ml = Add (l, mask)
      p = Softmax (ml)
      h = MatMul (p, v2)
      h1 = Transpose <perm = [0,2,1,3]> (h)
      h2 = Reshape (h1, whole)
"""


@pytest.mark.parametrize(
    ("split", "whole"),
    [("0, 0, 4, 2", "0, 0, 8"), ("0, -1, 4, 2", "0, -1, 8"), ("0, 5, 4, -1", "-1, 5, 8")],
)
@pytest.mark.parametrize("mask", ["1,1,5,5", "1,4,5,5"])
def test_heads_of_attention_leave_as_a_whole(split: str, whole: str, mask: str) -> None:
    model = net(f"""
    g (float[N,5,6] x) => (float[N,5,4] y)
    <float[6,8] wq, float[6,8] wk, float[6,8] wv, float[8,4] wo, float[{mask}] mask,
     int64[4] split = {{{split}}}, int64[3] whole = {{{whole}}}, float s = {{0.35}}> {{
      q = MatMul (x, wq)
      k = MatMul (x, wk)
      v = MatMul (x, wv)
      {HEADS}
      y = MatMul (h2, wo)
    }}""")
    channels = check(model, {"q": 8, "k": 8, "v": 8, "y": 0})
    assert writes(model) == {("q", "k", "v"), ("y",)}
    assert [group.size for group in channels.groups] == [4, 4]


def test_a_mask_that_differs_between_heads_pins_them() -> None:
    model = net(f"""
    g (float[N,5,6] x, float[1,4,5,5] mask) => (float[N,5,4] y)
    <float[6,8] wq, float[6,8] wk, float[6,8] wv, float[8,4] wo,
     int64[4] split = {{0, 0, 4, 2}}, int64[3] whole = {{0, 0, 8}}, float s = {{0.35}}> {{
      q = MatMul (x, wq)
      k = MatMul (x, wk)
      v = MatMul (x, wv)
      {HEADS}
      y = MatMul (h2, wo)
    }}""")
    assert free_channels(model) == {"q": 0, "k": 0, "v": 0, "y": 0}
    assert any("with `mask`" in why for why in pins(model))


def test_heads_of_a_fused_projection_that_is_split_leave_as_a_whole() -> None:
    model = net(f"""
    g (float[N,5,6] x) => (float[N,5,4] y)
    <float[6,24] w, float[24] b, float[8,4] wo, float[1,1,5,5] mask, int64[3] parts = {{8, 8, 8}},
     int64[4] split = {{0, 0, 4, 2}}, int64[3] whole = {{0, 0, 8}}, float s = {{0.35}}> {{
      m = MatMul (x, w)
      a = Add (m, b)
      q, k, v = Split <axis = 2> (a, parts)
      {HEADS}
      y = MatMul (h2, wo)
    }}""")
    channels = check(model, {"m": 24, "y": 0})
    assert channels.groups[0].size == 4


@pytest.mark.parametrize(
    ("indices", "pick"),
    [
        ("int64", "{0} = Gather <axis = 0> (t, i_{0})"),
        ("int64[1]", "g_{0} = Gather <axis = 0> (t, i_{0}) {0} = Squeeze (g_{0}, zero)"),
    ],
)
def test_heads_of_a_fused_projection_that_is_gathered_leave_as_a_whole(
    indices: str, pick: str
) -> None:
    gathers = "\n".join(pick.format(name) for name in "qkv")
    model = net(f"""
    g (float[N,5,6] x) => (float[N,5,4] y)
    <float[6,24] w, float[24] b, float[8,4] wo, float s = {{0.35}}, int64[1] zero = {{0}},
     {indices} i_q = {{0}}, {indices} i_k = {{1}}, {indices} i_v = {{2}},
     int64[5] split = {{0, -1, 3, 4, 2}}, int64[3] whole = {{0, -1, 8}}> {{
      m = MatMul (x, w)
      a = Add (m, b)
      r = Reshape (a, split)
      t = Transpose <perm = [2,0,3,1,4]> (r)
      {gathers}
      q3 = Mul (q, s)
      k2 = Transpose <perm = [0,1,3,2]> (k)
      l = MatMul (q3, k2)
      p = Softmax (l)
      h = MatMul (p, v)
      h1 = Transpose <perm = [0,2,1,3]> (h)
      h2 = Reshape (h1, whole)
      y = MatMul (h2, wo)
    }}""")
    channels = check(model, {"m": 24, "y": 0})
    assert channels.groups[0].size == 4


def test_heads_that_share_one_key_and_value_stay() -> None:
    model = net("""
    g (float[N,5,6] x) => (float[N,5,4] y)
    <float[6,8] wq, float[6,2] wk, float[6,2] wv, float[8,4] wo,
     int64[4] split = {0, 0, 4, 2}, int64[4] one = {0, 0, 1, 2}, int64[3] whole = {0, 0, 8}> {
      q = MatMul (x, wq)
      k = MatMul (x, wk)
      v = MatMul (x, wv)
      q1 = Reshape (q, split)
      k1 = Reshape (k, one)
      v1 = Reshape (v, one)
      q2 = Transpose <perm = [0,2,1,3]> (q1)
      k2 = Transpose <perm = [0,2,3,1]> (k1)
      v2 = Transpose <perm = [0,2,1,3]> (v1)
      l = MatMul (q2, k2)
      p = Softmax (l)
      h = MatMul (p, v2)
      h1 = Transpose <perm = [0,2,1,3]> (h)
      h2 = Reshape (h1, whole)
      y = MatMul (h2, wo)
    }""")
    assert set(free_channels(model).values()) == {0}


# ---------------------------------------------------------------------------- normalization


def test_a_batch_normalization_that_is_not_folded_is_cut() -> None:
    model = conv_net(
        "b = BatchNormalization (a, scale, shift, mean, var)",
        f"float[8] scale, float[8] shift, float[8] mean, float[8] var, {LAST}",
    )
    channels = check(model, {"a": 8, "y": 0})
    assert [node.op for node, _ in channels.groups[0].channelwise] == ["BatchNormalization"]


def test_an_instance_normalization_is_cut() -> None:
    model = conv_net(
        "b = InstanceNormalization (a, scale, shift)", f"float[8] scale, float[8] shift, {LAST}"
    )
    check(model, {"a": 8, "y": 0})


@pytest.mark.parametrize("groups", [8, 4, 2])
def test_groups_of_a_group_normalization_leave_as_a_whole(groups: int) -> None:
    model = conv_net(
        f"b = GroupNormalization <num_groups = {groups}> (a, scale, shift)",
        f"float[8] scale, float[8] shift, {LAST}",
        opset=21,
    )
    channels = check(model, {"a": 8, "y": 0})
    assert channels.groups[0].size == groups


@pytest.mark.parametrize("groups", [8, 4])
def test_the_first_group_normalization_has_a_scale_for_each_group(groups: int) -> None:
    # the checker and onnxruntime refuse this version, but files with it exist
    text = f"""
    g (float[2,3,6,6] x) => (float[2,5,6,6] y)
    <float[8,3,1,1] w, float[{groups}] scale, float[{groups}] shift, float[5,8,1,1] v> {{
      a = Conv (x, w)
      b = GroupNormalization <num_groups = {groups}> (a, scale, shift)
      y = Conv (b, v)
    }}"""
    model, channels = follow(net(text, opset=18, checked=False))
    assert channels.groups[0].size == groups
    gone = np.zeros(channels.units.count, bool)
    gone[channels.groups[0].units[1]] = True
    shrink(Rewriter(model.graph), channels, gone)
    node = next(node for node in model.graph.nodes if node.op == "GroupNormalization")
    assert node.attrs["num_groups"] == groups - 1
    assert [list(tensor.shape) for tensor in node.inputs[1:]] == [[groups - 1]] * 2


@pytest.mark.parametrize("back", ["0, 8, 8, 8", "-1, 8, 8, 8", "0, -1, 8, 8"])
def test_a_group_normalization_as_it_is_exported_leaves_by_groups(back: str) -> None:
    model = conv_net(
        """
      r = Reshape (a, groups)
      n = InstanceNormalization (r, ones, zeros)
      s = Reshape (n, shape)
      m = Mul (s, scale)
      b = Add (m, shift)
        """,
        "float[4] ones, float[4] zeros, float[8,1,1] scale, float[1,8,1,1] shift,"
        f" int64[3] groups = {{0, 4, -1}}, int64[4] shape = {{{back}}}, {LAST}",
    )
    channels = check(model, {"a": 8, "y": 0})
    assert channels.groups[0].size == 4


def test_a_layer_normalization_over_channels_pins_them() -> None:
    model = net("""
    g (float[N,5,6] x) => (float[N,5,4] y) <float[6,8] w, float[8] s, float[8] b, float[8,4] v> {
      a = MatMul (x, w)
      n = LayerNormalization (a, s, b)
      y = MatMul (n, v)
    }""")
    assert free_channels(model) == {"a": 0, "y": 0}
    assert pins(model)["`n` (LayerNormalization) normalizes over them"] == 8


def test_a_layer_normalization_over_other_axes_lets_channels_pass() -> None:
    model = net("""
    g (float[N,6,5] x) => (float[N,4,5] y) <float[8,6] w, float[5] s, float[5] b, float[4,8] v> {
      a = MatMul (w, x)
      n = LayerNormalization (a, s, b)
      y = MatMul (v, n)
    }""")
    check(model, {"a": 8, "y": 0})


def test_normalization_over_neighbouring_channels_is_followed_and_remembered() -> None:
    model = conv_net("b = LRN <size = 3> (a)", LAST)
    assert free_channels(model)["a"] == 8
    ((node, ids),) = follow(model)[1].trace.neighbour_mixers
    assert node_label(node) == "b"
    assert len(ids) == 8


# ---------------------------------------------------------------------------- elementwise


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


# ---------------------------------------------------------------------------- over positions


def test_a_softmax_over_channels_pins_them() -> None:
    model = conv_net("b = Softmax <axis = 1> (a)", LAST)
    assert free_channels(model) == {"a": 0, "y": 0}
    assert pins(model)["`b` (Softmax) goes over them"] == 8


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_a_softmax_over_another_axis_lets_channels_pass(op: str) -> None:
    check(conv_net(f"b = {op} <axis = 2> (a)", LAST), {"a": 8, "y": 0}, seeds=1)


def test_an_old_softmax_goes_over_all_axes_from_its_own() -> None:
    assert free_channels(conv_net("b = Softmax <axis = 1> (a)", LAST, opset=11))["a"] == 0
    check(conv_net("b = Softmax <axis = 2> (a)", LAST, opset=11), {"a": 8, "y": 0}, seeds=1)


@pytest.mark.parametrize(
    "op", ["ReduceMean", "ReduceMax", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"]
)
@pytest.mark.parametrize("opset", [13, 18])
def test_reductions_over_space_let_channels_pass(op: str, opset: int) -> None:
    axes = "<axes = [-1,2], keepdims = 0> (a)" if opset < 18 else "<keepdims = 0> (a, axes)"
    model = net(
        f"""
    g (float[N,3,6,6] x) => (float[N,4] y)
    <float[8,3,1,1] w, float[8,4] v, int64[2] axes = {{-1, 2}}> {{
      a = Conv (x, w)
      b = {op} {axes}
      y = Gemm (b, v)
    }}""",
        opset=opset,
    )
    check(model, {"a": 8, "y": 0}, seeds=1)


def test_reductions_that_keep_axes_let_channels_pass() -> None:
    model = conv_net("b = ReduceSum <keepdims = 1> (a, axes)", f"int64[1] axes = {{3}}, {LAST}")
    check(model, {"a": 8, "y": 0})


def test_a_reduction_over_channels_pins_them() -> None:
    model = conv_net("b = ReduceMax <axes = [1]> (a)", "float[5,1,1,1] w_last")
    assert free_channels(model) == {"a": 0, "y": 0}
    assert pins(model)["`b` (ReduceMax) goes over them"] == 8


def test_an_argmax_over_space_lets_channels_pass() -> None:
    model = conv_net(
        """
      i = ArgMax <axis = 3, keepdims = 1> (a)
      b = Cast <to = 1> (i)
        """,
        LAST,
    )
    check(model, {"a": 8, "y": 0})


@pytest.mark.parametrize(
    "call",
    [
        "MaxPool <kernel_shape = [2,2], strides = [2,2]>",
        "AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]>",
        "LpPool <kernel_shape = [2,2]>",
        "GlobalAveragePool",
        "GlobalMaxPool",
    ],
)
def test_pooling_lets_channels_pass(call: str) -> None:
    check(conv_net(f"b = {call} (a)", LAST), {"a": 8, "y": 0}, seeds=1)


def test_indices_of_a_pooling_pin_channels() -> None:
    model = net("""
    g (float[N,3,6,6] x) => (float[N,5,3,3] y, int64[N,8,3,3] i)
    <float[8,3,1,1] w, float[5,8,1,1] v> {
      a = Conv (x, w)
      b, i = MaxPool <kernel_shape = [2,2], strides = [2,2]> (a)
      y = Conv (b, v)
    }""")
    assert free_channels(model) == {"a": 0, "y": 0}


@pytest.mark.parametrize(
    "call",
    [
        'Resize <mode = "nearest"> (a, , scales)',
        'Resize <mode = "linear"> (a, , , sizes)',
        'Resize <mode = "nearest"> (a, , , runtime)',
    ],
)
def test_resizing_leaves_channels_as_they_are(call: str) -> None:
    model = conv_net(
        f"""
      d = Shape (x)
      n = Slice (d, zero, one, zero)
      runtime = Concat <axis = 0> (n, tail)
      b = {call}
        """,
        "float[4] scales = {1, 1, 2, 2}, int64[4] sizes = {3, 8, 12, 9}, int64[1] zero = {0},"
        " int64[1] one = {1}, int64[3] tail = {8, 12, 12}," + LAST,
    )
    check(model, {"a": 8, "y": 0})


def test_resizing_channels_pins_them() -> None:
    model = conv_net(
        'b = Resize <mode = "nearest"> (a, , scales)',
        "float[4] scales = {1, 2, 2, 2}, float[5,16,1,1] w_last",
    )
    assert free_channels(model) == {"a": 0, "y": 0}


# ---------------------------------------------------------------------------- movement


@pytest.mark.parametrize("opset", [9, 13, 18])
def test_padding_in_space_leaves_channels_as_they_are(opset: int) -> None:
    if opset < 11:
        call, more = "Pad <pads = [0,0,1,1,0,0,2,2]> (a)", ""
    elif opset < 18:
        call, more = "Pad (a, pads)", "int64[8] pads = {0, 0, 1, 1, 0, 0, 2, 2}, "
    else:
        call, more = (
            'Pad <mode = "reflect"> (a, pads, , axes)',
            "int64[4] pads = {1, 1, 2, 2}, int64[2] axes = {2, -1}, ",
        )
    check(conv_net(f"b = {call}", more + LAST, opset=opset), {"a": 8, "y": 0}, seeds=2)


def test_padding_of_channels_adds_some_that_must_stay() -> None:
    model = conv_net(
        "b = Pad (a, pads)",
        "int64[8] pads = {0, 2, 0, 0, 0, 3, 0, 0}, float[5,13,1,1] w_last",
    )
    check(model, {"a": 8, "y": 0})


def test_channels_that_meet_padded_ones_stay() -> None:
    model = net("""
    g (float[N,3,6,6] x) => (float[N,5,6,6] y)
    <float[4,3,1,1] w, float[8,3,1,1] u, float[5,8,1,1] v,
     int64[8] pads = {0, 2, 0, 0, 0, 2, 0, 0}> {
      a = Conv (x, w)
      p = Pad (a, pads)
      c = Conv (x, u)
      s = Add (p, c)
      y = Conv (s, v)
    }""")
    check(model, {"a": 4, "c": 4, "y": 0})
    assert pins(model)["`s` (Add) joins them with channels that must stay"] == 4


def test_padding_that_repeats_or_cuts_channels_pins_them() -> None:
    for pads, mode, width in (("1, 0, 0, 0, 1", "reflect", 10), ("-1, 0, 0, 0, 0", "constant", 7)):
        model = conv_net(
            f'b = Pad <mode = "{mode}"> (a, pads)',
            f"int64[8] pads = {{0, {pads}, 0, 0}}, float[5,{width},1,1] w_last",
        )
        assert free_channels(model)["a"] == 0


def test_a_chain_of_concats_is_followed() -> None:
    model = net("""
    g (float[N,3,6,6] x) => (float[N,5,6,6] y)
    <float[8,3,1,1] w0, float[4,8,1,1] w1, float[4,12,1,1] w2, float[4,16,1,1] w3,
     float[20] s, float[20] t, float[20] m, float[20] var, float[5,20,1,1] w4> {
      a = Conv (x, w0)
      b = Conv (a, w1)
      ab = Concat <axis = 1> (a, b)
      c = Conv (ab, w2)
      abc = Concat <axis = 1> (ab, c)
      r = Relu (abc)
      d = Conv (r, w3)
      abcd = Concat <axis = -3> (abc, d)
      n = BatchNormalization (abcd, s, t, m, var)
      y = Conv (n, w4)
    }""")
    check(model, {"a": 8, "b": 4, "c": 4, "d": 4, "y": 0})
    assert reads(model)["a"] == ("b", "c", "d", "y")


def test_a_concat_with_an_input_and_a_constant_keeps_what_is_theirs() -> None:
    model = net("""
    g (float[2,3,6,6] x) => (float[2,5,6,6] y)
    <float[8,3,1,1] w0, float[2,2,6,6] c, float[5,13,1,1] w1> {
      a = Conv (x, w0)
      b = Concat <axis = 1> (x, a, c)
      y = Conv (b, w1)
    }""")
    check(model, {"a": 8, "y": 0})


def test_a_concat_along_another_axis_joins_channels() -> None:
    model = net("""
    g (float[2,3,6,6] x) => (float[2,5,12,6] y)
    <float[8,3,1,1] w0, float[8,3,1,1] w1, float[2,8,3,6] c, float[5,8,1,1] w2,
     int64[1] zero = {0}, int64[1] most = {9}, int64[1] two = {2}> {
      a = Conv (x, w0)
      b = Conv (x, w1)
      s = Concat <axis = 2> (a, b)
      h = Slice (s, zero, most, two)
      k = Concat <axis = 2> (h, c)
      y = Conv (k, w2)
    }""")
    check(model, {"a": 8, "b": 8, "y": 0})
    assert writes(model) == {("a", "b"), ("y",)}


def test_a_concat_with_an_input_along_another_axis_pins_with_its_name() -> None:
    model = net("""
    g (float[2,8,6,6] x) => (float[2,5,12,6] y) <float[8,8,1,1] w0, float[5,8,1,1] w2> {
      a = Conv (x, w0)
      s = Concat <axis = 2> (a, x)
      y = Conv (s, w2)
    }""")
    assert free_channels(model) == {"a": 0, "y": 0}
    assert pins(model)["`s` (Concat) joins them with `x`"] == 8


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("sizes", ["", "2, 3, 3", "4, 1, 3"])
def test_parts_of_a_split_lose_their_own_channels(opset: int, sizes: str) -> None:
    if not sizes:
        attrs = "axis = 1, num_outputs = 3" if opset == 18 else ""
        if opset < 18:
            return  # three equal parts of eight do not exist
        parts, call, more = [3, 3, 2], f"Split <{attrs}> (a)", ""
    elif opset < 13:
        parts, more = [int(size) for size in sizes.split(",")], ""
        call = f"Split <axis = 1, split = [{sizes}]> (a)"
    else:
        parts = [int(size) for size in sizes.split(",")]
        call, more = "Split <axis = 1> (a, parts)", f"int64[3] parts = {{{sizes}}}, "
    model = conv_net(
        f"""
      p, q, r = {call}
      t = Relu (q)
      b = Concat <axis = 1> (r, t, p)
        """,
        more + LAST,
        opset=opset,
    )
    alone = 1 if 1 in parts else 0
    check(model, {"a": 8 - alone, "y": 0})
    if alone:
        assert pins(model)["`p` (Split) takes it alone"] == 1


def test_a_split_along_space_lets_channels_pass() -> None:
    model = conv_net(
        """
      p, q = Split <axis = 2> (a)
      b = Add (p, q)
        """,
        LAST,
    )
    check(model, {"a": 8, "y": 0})


@pytest.mark.parametrize(
    ("start", "end", "step", "taken"),
    [
        (0, 5, 1, 5),
        (-6, -1, 1, 5),
        (2, 9223372036854775807, 1, 6),
        (0, 8, 2, 4),
        (7, -9, -1, 8),
        (-1, -9223372036854775807, -3, 3),
    ],
)
def test_a_slice_takes_its_channels_along(start: int, end: int, step: int, taken: int) -> None:
    model = conv_net(
        "b = Slice (a, start, end, axis, step)",
        f"int64[1] start = {{{start}}}, int64[1] end = {{{end}}}, int64[1] axis = {{-3}},"
        f" int64[1] step = {{{step}}}, float[5,{taken},1,1] w_last",
    )
    check(model, {"a": 8, "y": 0}, seeds=5)


def test_a_slice_of_channels_and_space_is_cut() -> None:
    model = conv_net(
        "b = Slice (a, start, end, axis)",
        "int64[2] start = {1, 2}, int64[2] end = {-1, 6}, int64[2] axis = {2, 1},"
        " float[5,4,1,1] w_last",
    )
    check(model, {"a": 8, "y": 0}, seeds=5)


def test_an_old_slice_with_attributes_is_cut() -> None:
    model = conv_net(
        "b = Slice <starts = [2,0], ends = [7,5], axes = [1,3]> (a)",
        "float[5,5,1,1] w_last",
        opset=9,
    )
    check(model, {"a": 8, "y": 0}, seeds=5)


def test_a_slice_in_space_with_bounds_at_run_time_lets_channels_pass() -> None:
    model = conv_net(
        """
      d = Shape (x)
      h = Gather (d, three)
      two = Constant <value_ints = [2]> ()
      half = Div (h, two)
      b = Slice (a, zero, half, three)
        """,
        f"int64[1] zero = {{0}}, int64[1] three = {{3}}, {LAST}",
    )
    check(model, {"a": 8, "y": 0})


def test_a_slice_of_one_channel_keeps_it() -> None:
    model = conv_net(
        """
      c = Slice (a, start, end, axis)
      b = Mul (a, c)
        """,
        f"int64[1] start = {{2}}, int64[1] end = {{3}}, int64[1] axis = {{1}}, {LAST}",
    )
    check(model, {"a": 7, "y": 0})
    assert pins(model)["`c` (Slice) takes it alone"] == 1


@pytest.mark.parametrize("indices", ["7, 5, 3, 1", "-1, -1, 0, 2", "0, 1, 2, 3, 4, 5, 6, 7, 0"])
def test_gathered_channels_move_with_their_names(indices: str) -> None:
    count = len(indices.split(","))
    model = conv_net(
        "b = Gather <axis = 1> (a, i)",
        f"int64[{count}] i = {{{indices}}}, float[5,{count},1,1] w_last",
    )
    check(model, {"a": 8, "y": 0}, seeds=5)


def test_gathered_positions_let_channels_pass() -> None:
    model = conv_net("b = Gather <axis = 3> (a, i)", f"int64[2] i = {{4, 2}}, {LAST}")
    check(model, {"a": 8, "y": 0})


def test_channels_that_are_picked_at_run_time_stay() -> None:
    model = net("""
    g (float[2,3,6,6] x, int64[4] i) => (float[2,5,6,6] y) <float[8,3,1,1] w, float[5,4,1,1] v> {
      a = Conv (x, w)
      b = Gather <axis = 1> (a, i)
      y = Conv (b, v)
    }""")
    assert free_channels(model) == {"a": 0, "y": 0}
    assert pins(model)["`b` (Gather): its indices are computed at run time"] == 8


def test_columns_of_an_embedding_leave() -> None:
    model = net("""
    g (int64[N,5] x) => (float[N,5,4] y)
    <float[9,8] table, float[3,8] places, int64[5] i = {0, 1, 2, 1, 0}, float[8,4] v> {
      a = Gather (table, x)
      p = Gather (places, i)
      s = Add (a, p)
      y = MatMul (s, v)
    }""")
    check(model, {"a": 8, "p": 8, "y": 0})
    assert writes(model) == {("a", "p"), ("y",)}


def test_an_embedding_of_one_column_keeps_it() -> None:
    model = net("""
    g (int64[N,5] x) => (float[N,5,1] y) <float[9,1] table> {
      a = Gather (table, x)
      y = Relu (a)
    }""")
    assert free_channels(model) == {"a": 0}


def test_an_embedding_that_is_a_weight_too_stays() -> None:
    model = net("""
    g (int64[N,5] x) => (float[N,5,9] y) <float[9,8] table> {
      a = Gather (table, x)
      t = Transpose <perm = [1,0]> (table)
      y = MatMul (a, t)
    }""")
    assert free_channels(model)["a"] == 0


def test_channels_go_to_the_last_axis_and_back() -> None:
    model = conv_net(
        """
      t = Transpose <perm = [0,2,3,1]> (a)
      m = MatMul (t, w_mid)
      s = Add (m, b_mid)
      b = Transpose <perm = [0,3,1,2]> (s)
        """,
        "float[8,6] w_mid, float[6] b_mid, float[5,6,1,1] w_last",
    )
    check(model, {"a": 8, "m": 6, "y": 0})


@pytest.mark.parametrize("shape", ["0, -1", "-1, 8", "3, 8", "0, 8"])
def test_sizes_hidden_in_a_reshape_follow(shape: str) -> None:
    model = net(f"""
    g (float[3,3,6,6] x) => (float[3,4] y)
    <float[8,3,1,1] w, float[8,4] v, int64[2] shape = {{{shape}}}> {{
      a = Conv (x, w)
      p = GlobalAveragePool (a)
      f = Reshape (p, shape)
      y = Gemm (f, v)
    }}""")
    check(model, {"a": 8, "y": 0})


@pytest.mark.parametrize(
    "body", ["f = Flatten (a)", "f = Reshape (a, shape)", "f = Flatten <axis = -3> (a)"]
)
def test_channels_with_real_spatial_extent_are_flattened(body: str) -> None:
    model = net(f"""
    g (float[N,3,4,3] x) => (float[N,4] y)
    <float[8,3,1,1] w, float[96,4] v, int64[2] shape = {{-1, 96}}> {{
      a = Conv (x, w)
      {body}
      y = Gemm (f, v)
    }}""")
    check(model, {"a": 8, "y": 0})


def test_space_becomes_a_sequence_and_back() -> None:
    model = conv_net(
        """
      f = Reshape (a, flat)
      t = Transpose <perm = [0,2,1]> (f)
      m = MatMul (t, w_mid)
      u = Transpose <perm = [0,2,1]> (m)
      b = Reshape (u, square)
        """,
        "int64[3] flat = {0, 8, -1}, int64[4] square = {0, 6, 8, 8}, float[8,6] w_mid,"
        " float[5,6,1,1] w_last",
    )
    check(model, {"a": 8, "m": 6, "y": 0})


def test_a_shape_that_is_computed_around_a_known_size_follows() -> None:
    model = net("""
    g (float[N,3,H,W] x) => (float[N,L,4] y)
    <float[8,3,1,1] w, float[8,4] v,
     int64[1] zero = {0}, int64[1] one = {1}, int64[2] tail = {8, -1}> {
      a = Conv (x, w)
      d = Shape (a)
      n = Slice (d, zero, one)
      shape = Concat <axis = 0> (n, tail)
      f = Reshape (a, shape)
      t = Transpose <perm = [0,2,1]> (f)
      y = MatMul (t, v)
    }""")
    check(model, {"a": 8, "y": 0})


@pytest.mark.parametrize("groups", [1, 2])
def test_a_channel_shuffle_is_followed(groups: int) -> None:
    model = conv_net(
        f"""
      c = Conv <group = {groups}> (a, w_mid)
      r = Reshape (c, apart)
      t = Transpose <perm = [0,2,1,3,4]> (r)
      s = Reshape (t, whole)
      b = Conv <group = {groups}> (s, w_next)
        """,
        f"float[8,{8 // groups},1,1] w_mid, float[8,{8 // groups},3,3] w_next,"
        " int64[5] apart = {0, 2, 4, 8, 8}, int64[4] whole = {0, 8, 8, 8}, " + LAST,
    )
    check(model, {"a": 8, "c": 8, "b": 8, "y": 0}, seeds=8)


def test_halves_of_a_shuffle_between_grouped_convs_are_followed() -> None:
    model = conv_net(
        """
      p, q = Split <axis = 1> (a)
      c = Conv (q, w_mid)
      k = Concat <axis = 1> (p, c)
      r = Reshape (k, apart)
      t = Transpose <perm = [0,2,1,3,4]> (r)
      b = Reshape (t, whole)
        """,
        "float[4,4,1,1] w_mid, int64[5] apart = {0, 2, 4, 8, 8}, int64[4] whole = {-1, 8, 8, 8}, "
        + LAST,
    )
    check(model, {"a": 8, "c": 4, "y": 0}, seeds=5)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_channels_that_become_space_leave_together(mode: str) -> None:
    model = conv_net(
        f'b = DepthToSpace <blocksize = 2, mode = "{mode}"> (a)', "float[5,2,1,1] w_last"
    )
    channels = check(model, {"a": 8, "y": 0})
    assert channels.groups[0].size == 2


def test_space_that_becomes_channels_bears_their_names() -> None:
    check(
        conv_net("b = SpaceToDepth <blocksize = 2> (a)", "float[5,32,1,1] w_last"), {"a": 8, "y": 0}
    )


def test_squeeze_and_unsqueeze_move_channels() -> None:
    model = net("""
    g (float[N,3,6,1] x) => (float[N,4,6] y)
    <float[8,3,1,1] w, float[4,8,1] v,
     int64[1] last = {-1}, int64[2] more = {0, 3}, int64[2] both = {0, 3}> {
      a = Conv (x, w)
      s = Squeeze (a, last)
      u = Unsqueeze (s, more)
      t = Squeeze (u, both)
      y = Conv (t, v)
    }""")
    check(model, {"a": 8, "y": 0})


@pytest.mark.parametrize("sizes", ["1, 8, 6, 6", "3, 1, 6, 6", "6, 6"])
def test_expanded_channels_are_cut_in_the_shape_too(sizes: str) -> None:
    count = len(sizes.split(","))
    model = net(f"""
    g (float[3,3,6,6] x) => (float[3,4,6,6] y)
    <float[8,3,1,1] w, float[4,8,1,1] v, int64[{count}] sizes = {{{sizes}}}> {{
      a = Conv (x, w)
      p = GlobalMaxPool (a)
      e = Expand (p, sizes)
      y = Conv (e, v)
    }}""")
    check(model, {"a": 8, "y": 0})


@pytest.mark.parametrize(("repeats", "width"), [("1, 1, 2, 1", 8), ("1, 3, 1, 2", 24)])
def test_tiled_channels_bear_their_names_again(repeats: str, width: int) -> None:
    model = conv_net(
        "b = Tile (a, repeats)", f"int64[4] repeats = {{{repeats}}}, float[5,{width},1,1] w_last"
    )
    check(model, {"a": 8, "y": 0})


def test_a_shape_that_is_read_pins_what_is_measured() -> None:
    model = conv_net(
        """
      d = Shape (a)
      c = Gather (d, one)
      f = Cast <to = 1> (c)
      b = Div (a, f)
        """,
        f"int64 one = {{1}}, {LAST}",
    )
    assert free_channels(model) == {"a": 0, "y": 0}
    assert pins(model)["`d` (Shape) reads how many there are"] == 8


@pytest.mark.parametrize("opset", [13, 15])
def test_a_shape_of_which_other_sizes_are_read_pins_nothing(opset: int) -> None:
    call = (
        "d = Shape <start = 2> (a)\nc = Gather (d, zero)"
        if opset == 15
        else ("d = Shape (a)\nc = Gather (d, two)")
    )
    model = conv_net(
        f"""
      {call}
      f = Cast <to = 1> (c)
      b = Div (a, f)
        """,
        f"int64 zero = {{0}}, int64 two = {{2}}, {LAST}",
        opset=opset,
    )
    check(model, {"a": 8, "y": 0})


# ---------------------------------------------------------------------------- what is left alone


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


def test_a_weight_that_other_operators_use_stays() -> None:
    model = net("""
    g (float[N,6] x) => (float[N,4] y, float[6,8] z) <float[6,8] w, float[8,4] v> {
      a = MatMul (x, w)
      y = MatMul (a, v)
      z = Relu (w)
    }""")
    assert free_channels(model) == {"a": 0, "y": 0}
    assert any("`z`" in why for why in pins(model))


def test_a_recurrent_layer_pins_what_it_reads() -> None:
    model = net("""
    g (float[5,N,6] x) => (float[5,1,N,3] y)
    <float[6,8] u, float[1,12,8] w, float[1,12,3] r> {
      a = MatMul (x, u)
      y, h, c = LSTM <hidden_size = 3> (a, w, r)
    }""")
    assert free_channels(model) == {"a": 0}
    assert pins(model) == {"`y` is a LSTM, which is not followed": 8}


def test_a_dequantized_weight_is_left_alone_with_its_reason() -> None:
    model = net(
        """
    g (float[N,6] x) => (float[N,4] y)
    <float[6,8] w, int8[8,4] q = {"""
        + ", ".join(["1"] * 32)
        + """}, float s = {0.5}> {
      a = MatMul (x, w)
      v = DequantizeLinear (q, s)
      y = MatMul (a, v)
    }"""
    )
    assert free_channels(model) == {"a": 0}
    assert pins(model) == {"`y` (MatMul): its weight is dequantized (DequantizeLinear)": 8}


def test_what_a_body_uses_stays() -> None:
    model = net("""
    g (float[2,3,4,4] x, bool c) => (float[2,5,4,4] y) <float[8,3,1,1] w, float[5,8,1,1] v> {
      a = Conv (x, w)
      b = If (c) <
        then_branch = t () => (float[2,8,4,4] p) { p = Relu (a) },
        else_branch = e () => (float[2,8,4,4] q) { q = Neg (a) }
      >
      y = Conv (b, v)
    }""")
    assert free_channels(model) == {"a": 0, "y": 0}
    assert pins(model)["it is used in a body of `b` (If)"] == 8


def test_a_layer_with_a_codebook_for_a_weight_is_left_alone_with_its_reason() -> None:
    model = net(
        """
    <ir_version: 8, opset_import: ["" : 17, "onnxslim" : 1]>
    g (float[N,6] x) => (float[N,4] y)
    <float[6,8] w, uint8[8,4] codes = {"""
        + ", ".join(["1"] * 32)
        + """}, float[2] table = {0.5, 1}> {
      a = MatMul (x, w)
      v = onnxslim.Lookup (codes, table)
      y = MatMul (a, v)
    }
    <domain: "onnxslim", opset_import: ["" : 17]>
    Lookup (codes, table) => (weight) {
      i = Cast <to = 6> (codes)
      weight = Gather (table, i)
    }"""
    )
    _, channels = follow(model)
    assert channels.units.pinned.all()
    assert "codebook" in next(iter(pins(model)))


def test_an_only_channel_stays() -> None:
    model = conv_net("b = Conv (a, w_mid)", "float[1,8,1,1] w_mid, float[5,1,1,1] w_last")
    check(model, {"a": 8, "b": 0, "y": 0})
    assert pins(model)["it is the only channel of `b`"] == 1


def test_every_reason_names_a_node_or_a_tensor() -> None:
    model = conv_net("b = Softmax <axis = 1> (a)", LAST)
    assert all(why.count("`") >= 2 for why in pins(model))


def test_groups_that_leave_as_a_whole_take_their_outputs_along() -> None:
    model = conv_net(
        """
      n = GroupNormalization <num_groups = 4> (a, scale, shift)
      c = Conv <group = 4> (n, w_mid)
      b = Relu (c)
        """,
        "float[8] scale, float[8] shift, float[12,2,1,1] w_mid, float[5,12,1,1] w_last",
        opset=21,
    )
    channels = check(model, {"a": 8, "c": 12, "y": 0}, seeds=5)
    assert channels.groups[0].size == 4


def test_outputs_that_leave_by_groups_take_the_inputs_of_their_group_along() -> None:
    model = conv_net(
        """
      c = Conv <group = 4> (a, w_mid)
      b = GroupNormalization <num_groups = 4> (c, scale, shift)
        """,
        "float[12,2,1,1] w_mid, float[12] scale, float[12] shift, float[5,12,1,1] w_last",
        opset=21,
    )
    check(model, seeds=5)


def test_outputs_that_would_leave_by_groups_of_an_input_of_the_model_stay() -> None:
    model = net(
        """
    g (float[N,8,4,4] x) => (float[N,5,4,4] y)
    <float[12,2,1,1] w, float[12] scale, float[12] shift, float[5,12,1,1] v> {
      c = Conv <group = 4> (x, w)
      b = GroupNormalization <num_groups = 4> (c, scale, shift)
      y = Conv (b, v)
    }""",
        opset=21,
    )
    assert free_channels(model) == {"c": 0, "y": 0}


def test_rows_of_which_some_have_no_name_stay_rectangular() -> None:
    model = net("""
    g (float[2,4,6] x) => (float[2,4,2,5] y)
    <float[6,4] w, float[4,5] v, int64[4] apart = {0, 0, 2, 4},
     int64[1] zero = {0}, int64[1] four = {4}, int64[1] last = {2}> {
      a = MatMul (x, w)
      s = Slice (x, zero, four, last)
      k = Concat <axis = 2> (a, s)
      b = Reshape (k, apart)
      y = MatMul (b, v)
    }""")
    assert free_channels(model) == {"a": 0, "y": 0}


def test_slicing_two_axes_of_names_cuts_both() -> None:
    model = net("""
    g (float[N,6,5] x) => (float[N,4,3] y)
    <float[8,6] w, float[5,7] u, float[4,5] v, float[4,3] t,
     int64[2] start = {1, 2}, int64[2] end = {6, 6}, int64[2] axes = {1, 2}> {
      a = MatMul (w, x)
      h = MatMul (a, u)
      s = Slice (h, start, end, axes)
      k = MatMul (v, s)
      y = MatMul (k, t)
    }""")
    check(model, {"a": 8, "h": 7, "k": 0, "y": 0}, seeds=8)


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


RESIZE_LIKE = """
      d = Shape (a)
      head = {pick}
      size = Concat <axis = 0> (head, spatial)
      b = {use}
"""


@pytest.mark.parametrize(
    "pick", ["Slice (d, zero, two)", "Gather (d, first)", "Slice (d, zero, two, zero, one)"]
)
@pytest.mark.parametrize(
    "use", ['Resize <mode = "nearest"> (a, , , size)', "Reshape (a, size)", "Expand (a, size)"]
)
def test_a_size_that_is_read_and_used_for_the_same_channels_follows_by_itself(
    pick: str, use: str
) -> None:
    model = conv_net(
        RESIZE_LIKE.format(pick=pick, use=use),
        "int64[1] zero = {0}, int64[1] two = {2}, int64[1] one = {1}, int64[2] first = {0, 1},"
        " int64[2] spatial = {8, 8}, " + LAST,
    )
    check(model, {"a": 8, "y": 0})


def test_the_shape_of_a_tensor_itself_may_be_what_another_is_stretched_to() -> None:
    model = conv_net(
        """
      p = GlobalMaxPool (a)
      d = Shape (a)
      e = Expand (p, d)
      b = Sub (a, e)
        """,
        LAST,
    )
    check(model, {"a": 8, "y": 0})


@pytest.mark.parametrize(
    "body",
    [
        "o = Slice (x, zero, one, one)\nb = Expand (o, d)",  # other channels get the size
        "k = Gather (d, order)\nr = ConstantOfShape (k)\nt = Transpose <perm = [0,3,1,2]> (r)"
        "\nb = Sub (a, t)",
        "z = ConstantOfShape (d)\nb = Add (a, z)",
        "one_size = Gather (d, one)\nf = Cast <to = 1> (one_size)\nb = Div (a, f)",
    ],
)
def test_a_size_that_is_read_for_anything_else_pins_what_it_measures(body: str) -> None:
    model = conv_net(
        f"d = Shape (a)\n{body}",
        f"int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[4] order = {{0, 2, 3, 1}}, {LAST}",
    )
    assert free_channels(model) == {"a": 0, "y": 0}
    assert pins(model)["`d` (Shape) reads how many there are"] == 8


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


@pytest.mark.parametrize(
    "body",
    [
        "b = Trilu <upper = 0> (a)",
        "b, i = TopK <axis = 3> (a, most)",
        "b = CumSum (a, axis)",
        "b = LpNormalization <axis = 2> (a)",
    ],
)
def test_what_looks_at_positions_of_other_axes_lets_channels_pass(body: str) -> None:
    model = conv_net(body, f"int64[1] most = {{3}}, int64 axis = {{2}}, {LAST}")
    check(model, {"a": 8, "y": 0}, seeds=2)


@pytest.mark.parametrize(
    ("body", "op"),
    [
        ("b, i = TopK <axis = 1> (a, most)", "TopK"),
        ("b = CumSum (a, axis)", "CumSum"),
        ("b = LpNormalization <axis = 1> (a)", "LpNormalization"),
        ("b = MeanVarianceNormalization <axes = [1,2,3]> (a)", "MeanVarianceNormalization"),
    ],
)
def test_what_looks_at_several_channels_pins_them(body: str, op: str) -> None:
    model = conv_net(body, f"int64[1] most = {{8}}, int64 axis = {{1}}, {LAST}")
    assert free_channels(model) == {"a": 0, "y": 0}
    assert any(f"`b` ({op})" in why for why in pins(model))


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

"""Normalizations: over single channels, over groups of them, over all."""

from __future__ import annotations

import numpy as np
import pytest
from channel_nets import LAST, check, conv_net, follow, free_channels, net, pins

from onnxslim.channels.groups import shrink
from onnxslim.graph.ir import node_label
from onnxslim.graph.rewrite import Rewriter


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

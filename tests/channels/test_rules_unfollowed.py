"""Channels that nothing can be said of stay, with the reason."""

from __future__ import annotations

from channel_nets import LAST, check, conv_net, follow, free_channels, net, pins


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


def test_channels_that_reach_another_operand_than_the_data_stay() -> None:
    model = net("""
    g (float[1,6] x, float[2,8] z) => (float[2,8] y) <float[6,8] w, int64[1] shape = {8}> {
      a = MatMul (x, w)
      s = Reshape (a, shape)
      y = LayerNormalization (z, s)
    }""")
    assert free_channels(model) == {"a": 0}
    assert pins(model) == {"`y` (LayerNormalization) does not move them": 8}

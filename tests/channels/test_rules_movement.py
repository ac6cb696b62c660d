"""Operators that rearrange, repeat or pad: labels go where the values go."""

from __future__ import annotations

import pytest
from channel_nets import LAST, check, conv_net, free_channels, net, pins


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

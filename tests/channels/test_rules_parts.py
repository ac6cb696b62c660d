"""Operators that join, split or pick channels along an axis."""

from __future__ import annotations

import pytest
from channel_nets import LAST, check, conv_net, free_channels, net, pins, reads, writes


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
        assert pins(model)["`p` (Split) takes it as a single channel"] == 1


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
    assert pins(model)["`c` (Slice) takes it as a single channel"] == 1


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

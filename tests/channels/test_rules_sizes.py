"""Sizes that operators are told, and sizes that are read."""

from __future__ import annotations

import numpy as np
import pytest
from channel_nets import LAST, check, conv_net, cut, follow, free_channels, net, pins, some_gone


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


def test_a_computed_shape_that_two_reshapes_read_stays_one() -> None:
    model = net("""
    g (float[N,3,H,W] x) => (float[N,L,4] y)
    <float[8,3,1,1] w, float[8,4] v,
     int64[1] zero = {0}, int64[1] one = {1}, int64[2] tail = {8, -1}> {
      a = Conv (x, w)
      r = Relu (a)
      d = Shape (a)
      n = Slice (d, zero, one)
      shape = Concat <axis = 0> (n, tail)
      f = Reshape (a, shape)
      g = Reshape (r, shape)
      s = Add (f, g)
      t = Transpose <perm = [0,2,1]> (s)
      y = MatMul (t, v)
    }""")
    check(model, {"a": 8, "y": 0})
    _, channels = follow(model)
    smaller = cut(model, some_gone(channels, np.random.default_rng(0)))
    ops = [node.op_type for node in smaller.graph.node]
    assert ops.count("Concat") == 1


def test_a_size_that_is_left_open_needs_no_edit_however_it_is_written() -> None:
    model = net("""
    g (float[N,3,6,6] x) => (float[N,4] y)
    <float[8,3,1,1] w, float[8,4] v, int64[1] zero = {0}, int64[1] one = {1}, int64 rest = {-1}> {
      a = Conv (x, w)
      p = GlobalAveragePool (a)
      d = Shape (p)
      n = Slice (d, zero, one)
      r = Unsqueeze (rest, zero)
      shape = Concat <axis = 0> (n, r)
      f = Reshape (p, shape)
      y = Gemm (f, v)
    }""")
    channels = check(model, {"a": 8, "y": 0})
    smaller = cut(model, some_gone(channels, np.random.default_rng(0)))
    assert len(smaller.graph.node) == len(model.graph.node)


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


def test_a_size_that_is_read_for_other_channels_keeps_its_value() -> None:
    model = conv_net("d = Shape (a)\ns = ReduceMean <axes = [1]> (x)\nb = Expand (s, d)", LAST)
    check(model, {"a": 8, "y": 0})


@pytest.mark.parametrize(
    "body",
    [
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

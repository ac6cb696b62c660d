"""Channels and heads of attention."""

from __future__ import annotations

import pytest
from channel_nets import check, free_channels, net, pins, writes


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


def test_heads_leave_one_key_and_value_that_they_share() -> None:
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
    check(model, {"q": 8, "k": 0, "v": 0, "y": 0})

"""Attention and RotaryEmbedding as operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from channel_nets import assert_cut_is_mask, check, follow, free_channels, net, pins, some_gone
from hypothesis import given, settings
from hypothesis import strategies as st


def flat(
    *,
    heads: int = 4,
    shared: int = 1,
    width: int = 2,
    mask: str = "",
    rotated: bool = False,
    inputs: str = "float[N,L,6] x",
    weights: str = "",
) -> onnx.ModelProto:
    """Attention over (N, L, heads·width); `shared` queries share a key and a value."""
    kv = heads // shared
    turn = "RotaryEmbedding <num_heads = {}> ({}, cos, sin)" if rotated else "Identity ({1})"
    return net(
        f"""
    g ({inputs}) => (float[N,L,4] y)
    <float[6,{heads * width}] wq, float[6,{kv * width}] wk, float[6,{kv * 3}] wv,
     float[{heads * 3},4] wo {"," if weights else ""} {weights}> {{
      q = MatMul (x, wq)
      k = MatMul (x, wk)
      v = MatMul (x, wv)
      q1 = {turn.format(heads, "q")}
      k1 = {turn.format(kv, "k")}
      h = Attention <q_num_heads = {heads}, kv_num_heads = {kv}> (q1, k1, v {mask})
      y = MatMul (h, wo)
    }}""",
        opset=23,
        ir_version=10,
    )


def test_heads_of_an_attention_leave_as_a_whole() -> None:
    channels = check(flat(), {"q": 8, "k": 8, "v": 12, "y": 0})
    assert channels.groups[0].size == 4


def test_a_key_and_a_value_leave_with_the_queries_that_share_them() -> None:
    channels = check(flat(shared=2), {"q": 8, "k": 4, "v": 6, "y": 0})
    assert channels.groups[0].size == 2


def test_queries_leave_one_key_and_value_that_all_share() -> None:
    check(flat(shared=4), {"q": 8, "k": 0, "v": 0, "y": 0})


@pytest.mark.parametrize("mask", ["L,L", "1,L,L", "N,1,L,L"])
def test_a_mask_without_heads_keeps_none(mask: str) -> None:
    model = flat(mask=", mask", inputs=f"float[N,L,6] x, float[{mask}] mask")
    check(model, {"q": 8, "k": 8, "v": 12, "y": 0})


def test_a_constant_bias_of_each_head_is_cut_with_it() -> None:
    model = flat(mask=", bias", inputs="float[N,5,6] x", weights="float[1,4,5,5] bias")
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    check(model, {"q": 8, "k": 8, "v": 12, "y": 0})


def test_a_mask_of_each_head_keeps_them() -> None:
    model = flat(mask=", mask", inputs="float[N,L,6] x, float[N,4,L,L] mask")
    assert set(free_channels(model).values()) == {0}
    assert any("joins them with `mask`" in why for why in pins(model))


def test_heads_that_are_rotated_leave_as_a_whole() -> None:
    model = flat(
        rotated=True,
        shared=2,
        inputs="float[N,L,6] x, float[N,L,1] cos, float[N,L,1] sin",
    )
    channels = check(model, {"q": 8, "k": 4, "v": 6, "y": 0})
    assert channels.groups[0].size == 2


def stacked(past: str = "", outputs: str = "float[N,L,4] y", cache: str = "") -> onnx.ModelProto:
    """Attention over (N, heads, L, width), with the cache that `past` and `outputs` name."""
    return net(
        f"""
    g (float[N,L,6] x {past}) => ({outputs})
    <float[6,8] wq, float[6,4] wk, float[6,4] wv, float[8,4] wo,
     int64[4] split = {{0, 0, 4, 2}}, int64[4] split_kv = {{0, 0, 2, 2}},
     int64[3] whole = {{0, 0, 8}}> {{
      q = MatMul (x, wq)
      k = MatMul (x, wk)
      v = MatMul (x, wv)
      q1 = Reshape (q, split)
      k1 = Reshape (k, split_kv)
      v1 = Reshape (v, split_kv)
      q2 = Transpose <perm = [0,2,1,3]> (q1)
      k2 = Transpose <perm = [0,2,1,3]> (k1)
      v2 = Transpose <perm = [0,2,1,3]> (v1)
      {"h, pk, pv" if cache else "h"} = Attention (q2, k2, v2 {cache})
      h1 = Transpose <perm = [0,2,1,3]> (h)
      h2 = Reshape (h1, whole)
      y = MatMul (h2, wo)
    }}""",
        opset=23,
        ir_version=10,
    )


def test_heads_on_an_axis_of_their_own_leave_as_a_whole() -> None:
    channels = check(stacked(), {"q": 8, "k": 4, "v": 4, "y": 0})
    assert channels.groups[0].size == 2


def test_a_cache_that_is_an_input_keeps_all_heads() -> None:
    model = stacked(
        ", float[N,2,P,2] a, float[N,2,P,2] b",
        "float[N,L,4] y, float[N,2,T,2] pk, float[N,2,T,2] pv",
        ", , a, b",
    )
    assert set(free_channels(model).values()) == {0}


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_any_heads_of_an_attention_are_cut_as_if_they_were_zero(
    groups: int, shared: int, width: int, rotated: bool, seed: int
) -> None:
    model = flat(
        heads=groups * shared,
        shared=shared,
        width=2 * width,
        rotated=rotated,
        inputs="float[N,L,6] x" + f", float[N,L,{width}] cos, float[N,L,{width}] sin" * rotated,
    )
    _, channels = follow(model)
    assert_cut_is_mask(model, some_gone(channels, np.random.default_rng(seed)))

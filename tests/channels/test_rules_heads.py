"""Heads in the forms that exporters write, with sizes that are known only at run time."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from channel_nets import (
    assert_cut_is_mask,
    check,
    follow,
    free_channels,
    net,
    pins,
    some_gone,
    writes,
)
from hypothesis import given, settings
from hypothesis import strategies as st


def attention(
    body: str,
    *,
    heads: int = 4,
    shared: int = 1,
    width: int = 2,
    inputs: str = "float[N,L,6] x",
    outputs: str = "float[N,L,4] y",
    weights: str = "",
    opset: int = 17,
) -> onnx.ModelProto:
    """Attention of `heads` heads, of which `shared` share a key and a value of `width` columns.

    `body` makes `h`, (N, L, heads·width), of the queries `q`, the keys `k` and the values `v`.
    """
    all_heads, kv_heads = heads * width, heads // shared * width
    return net(
        f"""
    g ({inputs}) => ({outputs})
    <float[6,{all_heads}] wq, float[6,{kv_heads}] wk, float[6,{kv_heads}] wv,
     float[{kv_heads}] bv, float[{all_heads},4] wo,
     int64[4] split = {{0, 0, {heads}, {width}}}, int64[3] whole = {{0, 0, {all_heads}}},
     int64[4] split_kv = {{0, 0, {heads // shared}, {width}}}, float s = {{0.35}},
     int64[1] n_heads = {{{heads}}}, int64[1] n_kv = {{{heads // shared}}},
     int64[1] n_shared = {{{shared}}}, int64[1] n_width = {{{width}}}, int64[1] rest = {{-1}},
     int64[1] i0 = {{0}}, int64[1] i1 = {{1}}, int64[1] i2 = {{2}}
     {"," if weights else ""} {weights}>
    {{
      q = MatMul (x, wq)
      k = MatMul (x, wk)
      v0 = MatMul (x, wv)
      v = Add (v0, bv)
      {body}
      y = MatMul (h, wo)
    }}""",
        opset=opset,
    )


SPLIT = """
      q1 = Reshape (q, split)
      k1 = Reshape (k, split_kv)
      v1 = Reshape (v, split_kv)
      q2 = Transpose <perm = [0,2,1,3]> (q1)
      k2 = Transpose <perm = [0,2,1,3]> (k1)
      v2 = Transpose <perm = [0,2,1,3]> (v1)
"""
PRODUCTS = """
      l = MatMul (q3, k4)
      p = Softmax (l)
      o = MatMul (p, v3)
"""
JOIN = """
      h1 = Transpose <perm = [0,2,1,3]> (o)
      h = Reshape (h1, whole)
"""
COLUMNS = "k4 = Transpose <perm = [0,1,3,2]> (k3)"


def sizes_of(*parts: str) -> str:
    """A list of sizes as a Concat of parts: sizes of `x`, constants, and what else has a name."""
    return "Concat <axis = 0> (" + ", ".join(parts) + ")"


# the keys as dynamo transposes them, (N, H, L, w) to (N·H, L, w) and back
FOLDED_KEYS = f"""
      k_sizes = Shape (k2)
      k_length = Slice (k_sizes, i2, three)
      k_stack = Slice (k_sizes, i0, i2)
      to_three = {sizes_of("rest", "k_length", "n_width")}
      k_three = Reshape (k2, to_three)
      k_turned = Transpose <perm = [0,2,1]> (k_three)
      to_four = {sizes_of("k_stack", "n_width", "k_length")}
      k4 = Reshape (k_turned, to_four)
"""
THREE = "int64[1] three = {3}"


def test_heads_that_are_folded_into_the_batch_leave_as_a_whole() -> None:
    body = SPLIT + FOLDED_KEYS + "q3 = Mul (q2, s)\nv3 = Identity (v2)" + PRODUCTS + JOIN
    model = attention(body, weights=THREE)
    channels = check(model, {"q": 8, "k": 8, "v0": 8, "y": 0})
    assert writes(model) == {("q", "k", "v0"), ("y",)}
    assert channels.groups[0].size == 4


BATCH = """
      x_sizes = Shape (x)
      n = Gather (x_sizes, i0)
      length = Gather (x_sizes, i1)
"""
# torch.bmm over (N·H, L, w), with the product N·H computed at run time
STACKED = f"""
      {BATCH}
      stack = Mul (n, n_heads)
      to_stack = {sizes_of("stack", "length", "n_width")}
      q3 = Reshape (q2, to_stack)
      k3 = Reshape (k2, to_stack)
      v3 = Reshape (v2, to_stack)
      k4 = Transpose <perm = [0,2,1]> (k3)
      {PRODUCTS}
      from_stack = {sizes_of("n", "n_heads", "length", "n_width")}
      o4 = Reshape (o, from_stack)
      h1 = Transpose <perm = [0,2,1,3]> (o4)
      h = Reshape (h1, whole)
"""


def test_the_product_of_batch_and_heads_follows_the_heads() -> None:
    model = attention(SPLIT + STACKED)
    check(model, {"q": 8, "k": 8, "v0": 8, "y": 0})


# torch.nn.MultiheadAttention: (L, N, E) to (L, N·H, w), and to (N·H, L, w)
TIME_FIRST = f"""
      {BATCH}
      stack = Mul (length, n_heads)
      to_stack = {sizes_of("n", "stack", "n_width")}
      q1 = Reshape (q, to_stack)
      k1 = Reshape (k, to_stack)
      v1 = Reshape (v, to_stack)
      q3 = Transpose <perm = [1,0,2]> (q1)
      k4 = Transpose <perm = [1,2,0]> (k1)
      v3 = Transpose <perm = [1,0,2]> (v1)
      {PRODUCTS}
      h1 = Transpose <perm = [1,0,2]> (o)
      rows = Mul (n, length)
      to_rows = {sizes_of("rows", "all_heads")}
      h2 = Reshape (h1, to_rows)
      to_whole = {sizes_of("n", "length", "all_heads")}
      h = Reshape (h2, to_whole)
"""


def test_heads_inside_of_the_batch_leave_as_a_whole() -> None:
    model = attention(TIME_FIRST, weights="int64[1] all_heads = {8}")
    check(model, {"q": 8, "k": 8, "v0": 8, "y": 0})


REPEATED = f"""
      {BATCH}
      k_one = Unsqueeze (k2, i2)
      v_one = Unsqueeze (v2, i2)
      repeats = {sizes_of("n", "n_kv", "n_shared", "length", "n_width")}
      k_all = Expand (k_one, repeats)
      v_all = Expand (v_one, repeats)
      to_heads = {sizes_of("n", "n_heads", "length", "n_width")}
      k3 = Reshape (k_all, to_heads)
      v3 = Reshape (v_all, to_heads)
      {COLUMNS}
      q3 = Mul (q2, s)
"""
TILED = f"""
      {BATCH}
      k_one = Unsqueeze (k2, i2)
      v_one = Unsqueeze (v2, i2)
      k_all = Tile (k_one, times)
      v_all = Tile (v_one, times)
      to_heads = {sizes_of("n", "n_heads", "length", "n_width")}
      k3 = Reshape (k_all, to_heads)
      v3 = Reshape (v_all, to_heads)
      {COLUMNS}
      q3 = Mul (q2, s)
"""


@pytest.mark.parametrize("repeats", [REPEATED, TILED])
def test_queries_leave_with_the_key_and_value_that_they_share(repeats: str) -> None:
    body = SPLIT + repeats + PRODUCTS + JOIN
    model = attention(body, shared=2, weights="int64[5] times = {1, 1, 2, 1, 1}")
    channels = check(model, {"q": 8, "k": 4, "v0": 4, "y": 0})
    assert channels.groups[0].size == 2


# x·cos + (−x₂, x₁)·sin, with tables that are computed from positions
ROTATED = """
      f_cos = Cos (angles)
      f_sin = Sin (angles)
      q_c = Mul (q2, f_cos)
      q_a, q_b = Split <axis = 3> (q2, halves)
      q_n = Neg (q_b)
      q_r = Concat <axis = -1> (q_n, q_a)
      q_s = Mul (q_r, f_sin)
      q3 = Add (q_c, q_s)
      k_c = Mul (k2, f_cos)
      k_a = Slice (k2, i0, i1, three)
      k_b = Slice (k2, i1, i2, three)
      k_n = Neg (k_b)
      k_r = Concat <axis = -1> (k_n, k_a)
      k_s = Mul (k_r, f_sin)
      k3 = Add (k_c, k_s)
"""


def test_rotated_heads_leave_as_a_whole() -> None:
    body = SPLIT + ROTATED + COLUMNS + "\nv3 = Identity (v2)" + PRODUCTS + JOIN
    model = attention(
        body,
        inputs="float[N,L,6] x, float[1,1,L,2] angles",
        weights=f"{THREE}, int64[2] halves = {{1, 1}}",
    )
    channels = check(model, {"q": 8, "k": 8, "v0": 8, "y": 0})
    assert channels.groups[0].size == 4


def test_a_rotation_by_constant_tables_lets_whole_heads_leave() -> None:
    body = (SPLIT + ROTATED).replace("angles", "table") + COLUMNS
    model = attention(
        body + "\nv3 = Identity (v2)" + PRODUCTS + JOIN,
        weights=f"{THREE}, int64[2] halves = {{1, 1}}, float[1,1,1,2] table",
    )
    check(model, {"q": 8, "k": 8, "v0": 8, "y": 0})


# x·cos + (−x₁, x₀, −x₃, x₂, ...)·sin of neighbouring columns, as slices with steps that are stacked
NEIGHBOURS = """
      f_cos = Cos (angles)
      f_sin = Sin (angles)
      {0}_c = Mul ({0}2, f_cos)
      {0}_a = Slice ({0}2, i0, most, three, i2)
      {0}_b = Slice ({0}2, i1, most, three, i2)
      {0}_n = Neg ({0}_b)
      {0}_n1 = Unsqueeze ({0}_n, last)
      {0}_a1 = Unsqueeze ({0}_a, last)
      {0}_r1 = Concat <axis = -1> ({0}_n1, {0}_a1)
      {0}_r = Reshape ({0}_r1, joined)
      {0}_s = Mul ({0}_r, f_sin)
      {0}3 = Add ({0}_c, {0}_s)
"""
# the same with pairs on an axis of their own
PAIRS = """
      {0}_p = Reshape ({0}2, pairs)
      {0}_a1, {0}_b1 = Split <axis = -1> ({0}_p, halves)
      f_cos = Cos (angles)
      {0}_x = Mul ({0}_a1, f_cos)
      {0}_y = Mul ({0}_b1, f_cos)
      {0}_xy = Concat <axis = -1> ({0}_x, {0}_y)
      {0}3 = Reshape ({0}_xy, joined)
"""
# only the first two columns of each head are turned
PARTIAL = """
      f_cos = Cos (angles)
      {0}_t, {0}_rest = Split <axis = 3> ({0}2, parts)
      {0}_turned = Mul ({0}_t, f_cos)
      {0}3 = Concat <axis = 3> ({0}_turned, {0}_rest)
"""


@pytest.mark.parametrize(
    ("rotation", "angles"),
    [(NEIGHBOURS, "1,1,L,4"), (PAIRS, "1,1,L,2,1"), (PARTIAL, "1,1,L,2")],
)
def test_rotations_of_other_spellings_let_whole_heads_leave(rotation: str, angles: str) -> None:
    turned = rotation.format("q") + rotation.format("k").replace("f_", "g_")
    model = attention(
        SPLIT + turned + COLUMNS + "\nv3 = Identity (v2)" + PRODUCTS + JOIN,
        inputs=f"float[N,L,6] x, float[{angles}] angles",
        weights=f"""{THREE}, int64[2] halves = {{1, 1}}, int64[1] most = {{99}},
        int64[1] last = {{-1}}, int64[4] joined = {{0, 0, -1, 4}},
        int64[5] pairs = {{0, 0, 0, 2, 2}}, int64[2] parts = {{2, 2}}""",
        width=4,
    )
    channels = check(model, {"q": 16, "k": 16, "v0": 16, "y": 0})
    assert channels.groups[0].size == 4


GATHERED = f"""
      k3 = Gather <axis = 1> (k2, which)
      v3 = Gather <axis = 1> (v2, which)
      {COLUMNS}
      q3 = Mul (q2, s)
"""


def test_keys_that_are_picked_several_times_leave_with_their_queries() -> None:
    model = attention(
        SPLIT + GATHERED + PRODUCTS + JOIN, shared=2, weights="int64[4] which = {0, 0, 1, 1}"
    )
    channels = check(model, {"q": 8, "k": 4, "v0": 4, "y": 0})
    assert channels.groups[0].size == 2


def test_heads_of_a_projection_that_lies_by_heads_leave_as_a_whole() -> None:
    """Query, key and value of a head beside each other: (N, L, H, 3, w)."""
    model = net("""
    g (float[N,L,6] x) => (float[N,L,4] y)
    <float[6,24] w, float[24] b, float[8,4] wo, int64[5] split = {0, 0, 4, 3, 2},
     int64[3] whole = {0, 0, 8}, int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}> {
      m = MatMul (x, w)
      a = Add (m, b)
      r = Reshape (a, split)
      q = Gather <axis = 3> (r, i0)
      k = Gather <axis = 3> (r, i1)
      v = Gather <axis = 3> (r, i2)
      q2 = Transpose <perm = [0,2,1,3]> (q)
      k2 = Transpose <perm = [0,2,3,1]> (k)
      v2 = Transpose <perm = [0,2,1,3]> (v)
      l = MatMul (q2, k2)
      p = Softmax (l)
      h = MatMul (p, v2)
      h1 = Transpose <perm = [0,2,1,3]> (h)
      h2 = Reshape (h1, whole)
      y = MatMul (h2, wo)
    }""")
    channels = check(model, {"m": 24, "y": 0})
    assert channels.groups[0].size == 4


def test_heads_in_shifted_windows_leave_as_a_whole() -> None:
    """A picture of 4·4 positions in windows of 2·2, with a bias of each head from a table."""
    model = net("""
    g (float[N,4,4,6] x) => (float[N,4,4,4] y)
    <float[6,8] wq, float[6,8] wk, float[6,8] wv, float[8,4] wo, float[9,4] table,
     int64[4,4] places = {4,3,1,0, 5,4,2,1, 7,6,4,3, 8,7,5,4},
     int64[6] windows = {-1, 2, 2, 2, 2, 6}, int64[3] rows = {-1, 4, 6},
     int64[4] split = {0, 0, 4, 2}, int64[3] whole = {0, 0, 8}, int64[6] back = {-1, 2, 2, 2, 2, 8},
     int64[4] picture = {-1, 4, 4, 8}, int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i9 = {9},
     int64[1] rows_axis = {1}> {
      w1 = Reshape (x, windows)
      w2 = Transpose <perm = [0,1,3,2,4,5]> (w1)
      t = Reshape (w2, rows)
      q = MatMul (t, wq)
      k = MatMul (t, wk)
      v = MatMul (t, wv)
      q1 = Reshape (q, split)
      k1 = Reshape (k, split)
      v1 = Reshape (v, split)
      q2 = Transpose <perm = [0,2,1,3]> (q1)
      k2 = Transpose <perm = [0,2,3,1]> (k1)
      v2 = Transpose <perm = [0,2,1,3]> (v1)
      l = MatMul (q2, k2)
      b = Gather (table, places)
      b1 = Transpose <perm = [2,0,1]> (b)
      l1 = Add (l, b1)
      p = Softmax (l1)
      h = MatMul (p, v2)
      h1 = Transpose <perm = [0,2,1,3]> (h)
      h2 = Reshape (h1, whole)
      r1 = Reshape (h2, back)
      r2 = Transpose <perm = [0,1,3,2,4,5]> (r1)
      r = Reshape (r2, picture)
      below = Slice (r, i1, i9, rows_axis)
      above = Slice (r, i0, i1, rows_axis)
      o = Concat <axis = 1> (below, above)
      y = MatMul (o, wo)
    }""")
    channels = check(model, {"q": 8, "k": 8, "v": 8, "b": 4, "y": 0})
    assert channels.groups[0].size == 4


EXPANDED_MASK = f"""
      {BATCH}
      to_mask = {sizes_of("n", "n_heads", "length", "length")}
      all_masks = Expand (mask, to_mask)
      zeros = ConstantOfShape (to_mask)
      bias0 = Sub (zeros, all_masks)
      bias = Mul (bias0, s)
      q3 = Mul (q2, s)
      k4 = Transpose <perm = [0,1,3,2]> (k2)
      l = MatMul (q3, k4)
      l2 = Add (l, bias)
      p = Softmax (l2)
      o = MatMul (p, v2)
"""


def test_a_mask_that_was_expanded_to_all_heads_does_not_keep_them() -> None:
    model = attention(SPLIT + EXPANDED_MASK + JOIN, inputs="float[N,L,6] x, float[N,1,L,L] mask")
    check(model, {"q": 8, "k": 8, "v0": 8, "y": 0})


def test_repeats_are_looked_for_once_however_operands_are_shared() -> None:
    doubled = "\n".join(f"d{n + 1} = Add (d{n}, d{n})" for n in range(30))
    body = EXPANDED_MASK.replace("bias = Mul (bias0, s)", f"d0 = Mul (bias0, s)\n{doubled}")
    model = attention(
        SPLIT + body.replace("(l, bias)", "(l, d30)") + JOIN,
        inputs="float[N,L,6] x, float[N,1,L,L] mask",
    )
    assert free_channels(model) == {"q": 8, "k": 8, "v0": 8, "y": 0}


def test_a_mask_of_each_head_keeps_them() -> None:
    model = attention(SPLIT + EXPANDED_MASK + JOIN, inputs="float[N,L,6] x, float[N,4,L,L] mask")
    assert set(free_channels(model).values()) == {0}
    assert any("`bias`" in why for why in pins(model))


def test_columns_leave_in_all_heads_where_the_heads_must_stay() -> None:
    """The scores have as many heads, but a column of the values can leave in all of them."""
    model = attention(
        SPLIT + "l = Softmax (scores)\no = MatMul (l, v2)" + JOIN,
        inputs="float[N,L,6] x, float[N,4,L,L] scores",
        width=3,
    )
    assert free_channels(model)["v0"] == 12
    channels = check(model)
    assert [group.size for group in channels.groups if group.name == "v0"] == [3]


def test_heads_whose_places_depend_on_a_length_stay() -> None:
    """(N, H, L, w) as (N, H·L, w): a head is a run of unknown length."""
    body = f"""
      {SPLIT}
      {BATCH}
      runs = Mul (length, n_heads)
      to_runs = {sizes_of("n", "runs", "n_width")}
      r = Reshape (v2, to_runs)
      t = Tanh (r)
      to_four = {sizes_of("n", "n_heads", "length", "n_width")}
      o = Reshape (t, to_four)
    """
    model = attention(body + JOIN)
    assert free_channels(model)["v0"] == 0
    assert any("it is not known where the axes" in why for why in pins(model))


_FORMS = {
    "folded keys": (1, SPLIT + FOLDED_KEYS + "q3 = Mul (q2, s)\nv3 = Tanh (v2)" + PRODUCTS + JOIN),
    "stacked": (1, SPLIT + STACKED),
    "repeated": (None, SPLIT + REPEATED + PRODUCTS + JOIN),
}


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(sorted(_FORMS)),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_any_heads_are_cut_as_if_they_were_zero(
    form: str, groups: int, shared: int, width: int, seed: int
) -> None:
    fixed, body = _FORMS[form]
    shared = fixed or shared
    model = attention(body, heads=groups * shared, shared=shared, width=width, weights=THREE)
    _, channels = follow(model)
    assert_cut_is_mask(model, some_gone(channels, np.random.default_rng(seed)))

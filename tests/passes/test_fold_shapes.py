from __future__ import annotations

import numpy as np
import onnx
import pytest
from chains import chains, check, cut, elementwise, flatten, reshape, squeeze, unsqueeze
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxslim.passes.fold_shapes import FoldShapes
from support import apply, assert_declines, assert_rewrites, parse, random_feeds, run

HEADER = '<opset_import: ["" : 17]>'


def test_target_made_of_the_batch_becomes_constant() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 4, 6] x) => (float[N, 24] y)
        <int64 zero = {{0}}, int64[1] axes = {{0}}, int64[1] rest = {{24}}> {{
            shape = Shape (x)
            n = Gather (shape, zero)
            n1 = Unsqueeze (n, axes)
            t = Concat <axis = 0> (n1, rest)
            y = Reshape (x, t)
        }}""",
        FoldShapes(),
        f"""{HEADER}
        g (float[N, 4, 6] x) => (float[N, 24] y) <int64[2] t = {{0, 24}}> {{
            y = Reshape (x, t)
        }}""",
    )


def test_sizes_that_went_through_int32_and_arithmetic_are_followed() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 4, H, 6] x) => (float[A, B, C] y)
        <int64[1] i = {{0}}, int64[1] j = {{2}}, int64[1] k = {{3}}, int32[1] two = {{2}},
         int32[1] eight = {{8}}> {{
            shape = Shape (x)
            short = Cast <to = 6> (shape)
            n = Gather (short, i)
            h = Gather (short, j)
            w = Gather (short, k)
            hw = Mul (h, w)
            half = Div (hw, two)
            t32 = Concat <axis = 0> (n, eight, half)
            t = Cast <to = 7> (t32)
            y = Reshape (x, t)
        }}""",
        FoldShapes(),
        f"""{HEADER}
        g (float[N, 4, H, 6] x) => (float[A, B, C] y) <int64[3] t = {{0, 8, -1}}> {{
            y = Reshape (x, t)
        }}""",
    )


def test_branches_that_stride_alike_have_the_same_size() -> None:
    """The size of x after stride 2 is copied to a tensor that was strided on its own."""
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 1, H, W] x) => (float[N, 1, A, B] y) <float f = {{0.0}}> {{
            p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)
            q = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)
            shape = Shape (p)
            e = Expand (q, shape)
            y = Add (e, f)
        }}""",
        FoldShapes(),
        f"""{HEADER}
        g (float[N, 1, H, W] x) => (float[N, 1, A, B] y) <float f = {{0.0}}> {{
            q = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)
            y = Add (q, f)
        }}""",
    )


def test_sizes_that_a_body_declares_of_its_inputs_are_not_believed() -> None:
    assert_declines(
        f"""{HEADER}
        g (float[N, 4] x, int64 n, bool c) => (float[A, B] y) {{
            y = Loop (n, c, x) <
                body = b (int64 i, bool d, float[5, 4] state) => (bool e, float[?, ?] s) {{
                    e = Identity (d)
                    sizes = Shape (state)
                    s = Reshape (state, sizes)
                }}
            >
        }}""".replace("[?, ?]", "[Q, R]"),
        FoldShapes(),
    )


def test_expand_in_front_of_a_broadcasting_operator_goes() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 4] x, float[N, 1] z) => (float[N, 4] y) {{
            shape = Shape (x)
            e = Expand (z, shape)
            y = Sub (x, e)
        }}""",
        FoldShapes(),
        f"""{HEADER}
        g (float[N, 4] x, float[N, 1] z) => (float[N, 4] y) {{
            y = Sub (x, z)
        }}""",
    )


def test_operators_behind_an_expand_work_on_what_it_repeats() -> None:
    """A mask of keys, expanded for queries before it is computed; lengths cut by a table."""
    assert_rewrites(
        f"""{HEADER}
        g (int64[N, L] m, float[N, L, 4] x, float[N, 2, L, L] s) => (float[N, 2, L, L] y)
        <float one = {{1}}, float low = {{-100}}, int64[2] ones = {{1, 2}},
         int64[1] single = {{1}}> {{
            n = Shape <start = 0, end = 1> (x)
            l = Shape <start = 1, end = 2> (x)
            u = Unsqueeze (m, ones)
            t = Concat <axis = 0> (n, single, l, l)
            e = Expand (u, t)
            c = Cast <to = 1> (e)
            d = Sub (one, c)
            b = Cast <to = 9> (d)
            w = Where (b, low, d)
            y = Add (s, w)
        }}""",
        FoldShapes(),
        f"""{HEADER}
        g (int64[N, L] m, float[N, L, 4] x, float[N, 2, L, L] s) => (float[N, 2, L, L] y)
        <float one = {{1}}, float low = {{-100}}, int64[2] ones = {{1, 2}}> {{
            u = Unsqueeze (m, ones)
            c = Cast <to = 1> (u)
            d = Sub (one, c)
            b = Cast <to = 9> (d)
            w = Where (b, low, d)
            y = Add (s, w)
        }}""",
    )


def test_product_repeats_along_the_batch_by_itself() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 1, L] x) => (float[N, 3, L] y)
        <float[1, 3, 1] w = {{1, 2, 3}}, int64[2] ones = {{1, 1}}> {{
            n = Shape <start = 0, end = 1> (x)
            t = Concat <axis = 0> (n, ones)
            e = Expand (w, t)
            y = MatMul (e, x)
        }}""",
        FoldShapes(),
        f"""{HEADER}
        g (float[N, 1, L] x) => (float[N, 3, L] y) <float[1, 3, 1] w = {{1, 2, 3}}> {{
            y = MatMul (w, x)
        }}""",
    )


def test_tensor_of_equal_elements_is_one_of_them() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (int64[N, L] x, bool[L, L] m) => (int64[N, L] y, bool[L, L] z)
        <float[1] one = {{1}}, int64[2] column = {{-1, 1}}> {{
            t = Shape (x)
            f = ConstantOfShape <value = int64[1] {{31}}> (t)
            y = Min (x, f)
            l = Shape <start = 1, end = 2> (x)
            e = Expand (one, l)
            c = Cast <to = 9> (e)
            r = Reshape (c, column)
            z = And (m, r)
        }}""",
        FoldShapes(),
        f"""{HEADER}
        g (int64[N, L] x, bool[L, L] m) => (int64[N, L] y, bool[L, L] z)
        <int64 f = {{31}}, float[1] one = {{1}}, int64[2] column = {{-1, 1}}> {{
            y = Min (x, f)
            c = Cast <to = 9> (one)
            r = Reshape (c, column)
            z = And (m, r)
        }}""",
    )


def test_rows_of_a_table_up_to_the_length_are_as_many() -> None:
    """Positions of a text: a sum of both has the length of the text, or fails."""
    assert_rewrites(
        f"""{HEADER}
        g (float[N, L, 2] x) => (float[N, L, 2] y, int64[3] z)
        <float[8, 2] table = {{1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8}},
         int64[1] zero = {{0}}> {{
            l = Shape <start = 1, end = 2> (x)
            t = Slice (table, zero, l)
            s = Add (x, t)
            y = Relu (s)
            a = Shape (s)
            b = Shape (x)
            z = Sub (a, b)
        }}""",
        FoldShapes(),
        f"""{HEADER}
        g (float[N, L, 2] x) => (float[N, L, 2] y, int64[3] z)
        <float[8, 2] table = {{1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8}},
         int64[1] zero = {{0}}> {{
            l = Shape <start = 1, end = 2> (x)
            t = Slice (table, zero, l)
            s = Add (x, t)
            y = Relu (s)
            z = Constant <value = int64[3] {{0, 0, 0}}> ()
        }}""",
    )


@pytest.mark.parametrize(
    "behind",
    [
        "c = Abs (e) y = Add (x, c) o = Relu (c)",  # an output would get smaller
        "c = Softmax <axis = 1> (e) y = Add (x, c) o = Relu (y)",  # reads neighbours
        "y = MatMul (x, e) o = Relu (y)",  # sums over what is repeated
        "y = Abs (e) o = Relu (x)",  # nothing else has the size
    ],
)
def test_expand_stays_where_its_size_matters(behind: str) -> None:
    assert_declines(
        f"""{HEADER}
        g (float[4, 4] x, float[4, 1] z) => (float[4, 4] y, float[4, 4] o)
        <int64[2] t = {{4, 4}}> {{
            e = Expand (z, t)
            {behind}
        }}""",
        FoldShapes(),
    )


def test_expand_stays_where_an_operator_behind_it_names_the_axes_that_it_adds() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (float[2, 3, 4] x, float[1] s) => (float[2, 3, 4] y) <int64[3] ones = {1, 1, 1}> {
            e = Expand (s, ones)
            t = Transpose <perm = [0, 2, 1]> (e)
            y = Add (x, t)
        }""",
        FoldShapes(),
    )


def test_expand_stays_where_a_reshape_behind_it_copies_an_axis_that_it_adds() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x, float s) => (float[2, 3] y) <int64[1] sizes = {2}, int64[1] t = {0}> {
            e = Expand (s, sizes)
            unread = Reshape (e, t)
            y = Relu (x)
        }""",
        FoldShapes(),
        """<opset_import: ["" : 17]>
        g (float[2, 3] x, float s) => (float[2, 3] y) {
            y = Relu (x)
        }""",
    )


def test_expand_keeps_a_dimension_by_one() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 1] x) => (float[N, 5] y) <int64[1] five = {{5}}> {{
            n = Shape <start = 0, end = 1> (x)
            t = Concat <axis = 0> (n, five)
            y = Expand (x, t)
        }}""",
        FoldShapes(),
        f"""{HEADER}
        g (float[N, 1] x) => (float[N, 5] y) <int64[1] t = {{5}}> {{
            y = Expand (x, t)
        }}""",
    )


def test_where_on_a_size_that_cannot_be_minus_one_is_decided() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 1] x) => (float[N, 3] y)
        <int64[1] three = {{3}}, int64 minus = {{-1}}, int64[2] ones = {{1, 1}}> {{
            n = Shape <start = 0, end = 1> (x)
            t = Concat <axis = 0> (n, three)
            unset = Equal (t, minus)
            target = Where (unset, ones, t)
            y = Expand (x, target)
        }}""",
        FoldShapes(),
        f"""{HEADER}
        g (float[N, 1] x) => (float[N, 3] y) <int64[1] t = {{3}}> {{
            y = Expand (x, t)
        }}""",
    )


def test_slice_of_the_last_elements_as_many_as_there_are_takes_everything() -> None:
    """As relative positions of queries are cut to those of a text with a cache, without one."""
    assert_rewrites(
        f"""{HEADER}
        g (float[N, L] x) => (float[N, L] y)
        <int64[1] one = {{1}}, int64[1] end = {{9223372036854775807}}> {{
            l = Shape <start = 1, end = 2> (x)
            n = Neg (l)
            r = Relu (x)
            y = Slice (r, n, end, one)
        }}""",
        FoldShapes(),
        f"""{HEADER}
        g (float[N, L] x) => (float[N, L] y) {{ y = Relu (x) }}""",
    )


def test_slice_up_to_the_size_takes_everything() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 4] x) => (float[N, 4] y) <int64[1] zero = {{0}}> {{
            r = Relu (x)
            n = Shape <start = 0, end = 1> (r)
            s = Slice (r, zero, n, zero)
            y = Abs (s)
        }}""",
        FoldShapes(),
        f"""{HEADER}
        g (float[N, 4] x) => (float[N, 4] y) {{
            r = Relu (x)
            y = Abs (r)
        }}""",
    )


def test_resize_to_twice_the_size_gets_scales() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 2, H, W] x) => (float[N, 2, A, B] y)
        <int64[2] i = {{0, 1}}, int64[2] j = {{2, 3}}, int64 two = {{2}}> {{
            shape = Shape (x)
            head = Gather (shape, i)
            tail = Gather (shape, j)
            twice = Mul (tail, two)
            sizes = Concat <axis = 0> (head, twice)
            y = Resize <mode = "linear"> (x, , , sizes)
        }}""",
        FoldShapes(),
        f"""{HEADER}
        g (float[N, 2, H, W] x) => (float[N, 2, A, B] y)
        <float[4] scales = {{1.0, 1.0, 2.0, 2.0}}> {{
            y = Resize <mode = "linear"> (x, , scales)
        }}""",
    )


def test_arithmetic_on_a_fill_is_done_on_its_value() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N] x) => (float[N] y) <float eight = {{8.0}}> {{
            shape = Shape (x)
            z = ConstantOfShape (shape)
            y = Add (eight, z)
        }}""",
        FoldShapes(),
        f"""{HEADER}
        g (float[N] x) => (float[N] y) {{
            shape = Shape (x)
            y = ConstantOfShape <value = float[1] {{8.0}}> (shape)
        }}""",
    )


def test_second_shape_of_the_same_sizes_is_shared_and_parts_are_taken_at_once() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, H, 4] x) => (int64[2] y, int64[2] z) <int64[2] i = {{0, 1}}> {{
            r = Relu (x)
            shape = Shape (x)
            again = Shape (r)
            y = Gather (shape, i)
            w = Gather (again, i)
            z = Neg (w)
        }}""",
        FoldShapes(),
        f"""{HEADER}
        g (float[N, H, 4] x) => (int64[2] y, int64[2] z) {{
            y = Shape <end = 2, start = 0> (x)
            z = Neg (y)
        }}""",
    )


def test_known_size_that_is_an_output_becomes_a_constant_node() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[2, 3] x) => (int64 y) {{
            y = Size (x)
        }}""",
        FoldShapes(),
        f"""{HEADER}
        g (float[2, 3] x) => (int64 y) {{
            y = Constant <value = int64 {{6}}> ()
        }}""",
    )


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (  # declines 1
            """g (float[N, M, K] x, float[A, B] z) => (float[C, D] y) {
                t = Shape (z)
                y = Reshape (x, t)
            }""",
            "more than one dimension of its target is unknown",
        ),
        (  # three times as large, by a scale that rounds
            """g (float[N, 1, H, W] x) => (float[A, B, C, D] y)
            <int64[4] k = {1, 1, 3, 3}> {
                s = Shape (x)
                t = Mul (s, k)
                y = Resize (x, , , t)
            }""",
            None,
        ),
    ],
)
def test_it_declines(body: str, why: str | None) -> None:
    assert_declines(f"{HEADER}\n{body}", FoldShapes(), why)


def test_target_with_a_zero_that_means_an_empty_axis_stays() -> None:
    source = parse(
        f"""{HEADER}
        g (float[N, 0] x, float[N, 0] z) => (float[A, B, C] y) <int64[1] o = {{5}}> {{
            s = Shape <start = 0, end = 1> (z)
            i = Shape <start = 1, end = 2> (x)
            t = Concat <axis = 0> (s, i, o)
            y = Reshape <allowzero = 1> (x, t)
        }}"""
    )
    _, result = apply(FoldShapes(), source)
    assert [change.node for change in result.changes] == ["i"]
    assert any("empty axis" in skip.why for skip in result.skips)


def test_size_that_passes_through_a_float_is_left_to_run_time() -> None:
    assert_declines(
        f"""{HEADER}
        g (float[N, 2] x, float[N] z) => (float[A, B] y) <int64[1] two = {{2}}> {{
            n = Shape (z)
            f = Cast <to = 1> (n)
            k = Cast <to = 7> (f)
            t = Concat <axis = 0> (k, two)
            y = Expand (x, t)
        }}""",
        FoldShapes(),
    )


def test_question_mark_names_no_size() -> None:
    source = parse(
        f"""{HEADER}
        g (float[Q, 1] x, float[Q, 4] z) => (float[A, B] y) {{
            s = Shape (z)
            y = Expand (x, s)
        }}"""
    )
    for info in source.graph.input:
        info.type.tensor_type.shape.dim[0].dim_param = "?"
    assert not apply(FoldShapes(), source)[1].changed


def test_body_of_an_if_is_folded_too() -> None:
    model, result = apply(
        FoldShapes(),
        parse(
            f"""{HEADER}
            g (float[2, 3] x, bool c) => (int64[2] y) {{
                y = If (c) <
                    then_branch = a () => (int64[2] s) {{ s = Shape (x) }},
                    else_branch = b () => (int64[2] t) {{ u = Shape (x) t = Neg (u) }}
                >
            }}"""
        ),
    )
    assert result.changed
    assert "Shape" not in str(model.graph.node[0].attribute)


@st.composite
def shape_programs(draw: st.DrawFn) -> str:
    """A target for Reshape that is computed in a roundabout way from the shape of x."""
    pieces = draw(st.permutations(["n", "c", "hw"]))
    lines = [
        "shape = Shape (x)",
        f"s = {draw(st.sampled_from(['Identity (shape)', 'Cast <to = 6> (shape)']))}",
        "s64 = Cast <to = 7> (s)",
        "n = Slice (s64, i0, i1)",
        f"c = {draw(st.sampled_from(['Gather (s64, i1)', 'Slice (s64, i1, i2)']))}",
        "h = Gather (s64, i2)",
        f"w = {draw(st.sampled_from(['Gather (s64, i3)', 'Slice (s64, m1, big)']))}",
        f"hw = {draw(st.sampled_from(['Mul (h, w)', 'Mul (w, h)']))}",
    ]
    if draw(st.booleans()):
        lines += ["hw2 = Add (hw, hw)", "hw3 = Sub (hw2, hw)"]
        pieces[pieces.index("hw")] = "hw3"
    if draw(st.booleans()):
        lines += ["c2 = Max (c, i1)"]
        pieces[pieces.index("c")] = "c2"
    lines += [f"t = Concat <axis = 0> ({', '.join(pieces)})", "y = Reshape (x, t)"]
    batch = draw(st.sampled_from(["N", "2"]))
    channels = draw(st.sampled_from(["C", "4"]))
    return f"""{HEADER}
    g (float[{batch}, {channels}, H, W] x) => (float[P, Q, R] y)
    <int64[1] i0 = {{0}}, int64[1] i1 = {{1}}, int64[1] i2 = {{2}}, int64[1] i3 = {{3}},
     int64[1] m1 = {{-1}}, int64[1] big = {{9223372036854775807}}> {{
        {" ".join(lines)}
    }}"""


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=shape_programs())
def test_random_shape_arithmetic_holds_at_every_size(text: str) -> None:
    source = parse(text)
    result, _ = apply(FoldShapes(), source)
    for symbol in (1, 2, 5):
        feeds = random_feeds(source, symbol=symbol)
        np.testing.assert_array_equal(run(source, feeds)[0], run(result, feeds)[0])


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(source=chains((reshape, flatten, squeeze, unsqueeze, cut, elementwise)))
def test_random_chains_keep_their_outputs(source: onnx.ModelProto) -> None:
    check(FoldShapes(), source)

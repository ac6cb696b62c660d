from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxslim.passes.fuse_affine import FuseAffine
from onnxslim.records import Fidelity
from support import (
    apply,
    assert_declines,
    assert_equivalent,
    assert_rewrites,
    parse,
    random_feeds,
    run,
)

# ------------------------------------------------------------------------------ fires


def ops_after(text: str, *, changed: bool = True) -> list[str]:
    """Operators of the rewritten model, whose outputs are compared with the original's."""
    source = parse(text)
    result_model, result = apply(FuseAffine(), source)
    assert result.changed is changed, result.skips
    assert_equivalent(source, result_model, Fidelity.CLOSE)
    again, second = apply(FuseAffine(), result_model)
    assert second.changes == ()
    assert again.SerializeToString(deterministic=True)
    return [node.op_type for node in result_model.graph.node]


def test_mul_and_add_behind_a_conv_become_its_weight_and_bias() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float[1, 2, 4, 4] x) => (float[1, 2, 3, 3] y)
            <float[2, 2, 2, 2] w = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8},
             float[2, 1, 1] a = {2, 3}, float[2, 1, 1] b = {5, 6}> {
            c = Conv (x, w)
            d = Mul (c, a)
            y = Add (d, b)
        }""",
        FuseAffine(),
        """<opset_import: ["" : 17]>
        g (float[1, 2, 4, 4] x) => (float[1, 2, 3, 3] y)
            <float[2, 2, 2, 2] w = {2, 4, 6, 8, 10, 12, 14, 16, 3, 6, 9, 12, 15, 18, 21, 24},
             float[2] b = {5, 6}> {
            y = Conv (x, w, b)
        }""",
    )


@pytest.mark.parametrize(
    ("shape", "group", "channels"),
    [((4, 2, 1, 3), 1, 2), ((4, 2, 3, 3), 2, 4), ((4, 1, 2, 2), 4, 4), ((8, 1, 2, 2), 4, 4)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_batch_normalization_goes_into_every_kind_of_conv(
    shape: tuple[int, ...], group: int, channels: int, bias: bool
) -> None:
    model = conv_model("Conv", shape, group, channels, bias, ["BatchNormalization"])
    assert fused(model) == ["Conv"]


@pytest.mark.parametrize(
    ("shape", "group"), [((4, 2, 3, 3), 1), ((4, 3, 2, 2), 2), ((4, 1, 3, 3), 4)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_batch_normalization_goes_into_every_kind_of_conv_transpose(
    shape: tuple[int, ...], group: int, bias: bool
) -> None:
    model = conv_model("ConvTranspose", shape, group, shape[0], bias, ["BatchNormalization"])
    assert fused(model) == ["ConvTranspose"]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_of_any_rank_take_a_map_behind_and_before_them(rank: int) -> None:
    model = conv_model("Conv", (4, 2) + (2,) * rank, 2, 4, True, ["Mul", "Add"], ["Mul", "Add"])
    assert fused(model) == ["Conv"]


def test_map_before_an_unpadded_grouped_conv_goes_into_it() -> None:
    model = conv_model("Conv", (4, 2, 3, 3), 2, 4, False, [], ["BatchNormalization"])
    assert fused(model) == ["Conv"]


def test_scale_before_a_grouped_conv_transpose_goes_into_it() -> None:
    model = conv_model("ConvTranspose", (4, 3, 3, 3), 2, 4, True, [], ["Mul"])
    assert fused(model) == ["ConvTranspose"]


def test_shift_before_a_pointwise_conv_transpose_goes_into_it() -> None:
    model = conv_model("ConvTranspose", (4, 3, 1, 1), 2, 4, True, [], ["Mul", "Add"])
    assert fused(model) == ["ConvTranspose"]


def test_scale_before_a_padded_conv_goes_into_it_and_leaves_an_add() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
            <float s = {2}, float t = {3}, float[1, 1, 3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> {
            a = Mul (x, s)
            b = Add (a, t)
            y = Conv <pads = [1, 1, 1, 1]> (b, w)
        }"""
    assert ops_after(text) == ["Add", "Conv"]


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("side", ["left", "right"])
def test_gemm_takes_maps_on_both_sides(trans_a: int, trans_b: int, side: str) -> None:
    # A' is (3, 4), B' is (4, 2); the constant one has outputs along its other axis
    a = "float[4, 3]" if trans_a else "float[3, 4]"
    b = "float[2, 4]" if trans_b else "float[4, 2]"
    weight, data = (b, a) if side == "right" else (a, b)
    eight = ", ".join(map(str, range(1, 9 if side == "right" else 13)))
    order = "m, w" if side == "right" else "w, m"
    # channels of the data lie along K, which is where A' and B' meet
    if side == "right":
        inner = "float[4, 1]" if trans_a else "float[4]"
        outer, bias = "float[2] s = {2, 3}", "float[2] c = {5, 6}"
    else:
        inner = "float[4]" if trans_b else "float[4, 1]"
        outer, bias = "float[3, 1] s = {2, 3, 4}", "float[3, 1] c = {5, 6, 7}"
    text = f"""<opset_import: ["" : 17]>
        g ({data} x) => (float[3, 2] y)
            <{weight} w = {{{eight}}}, {inner} k = {{1, 2, 3, 4}}, {outer}, {bias}> {{
            j = Mul (x, k)
            m = Add (j, k)
            n = Gemm <transA = {trans_a}, transB = {trans_b}, alpha = 0.5, beta = 2.0> ({order}, c)
            o = Mul (n, s)
            y = Sub (s, o)
        }}"""
    assert ops_after(text) == ["Gemm"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_matmul_takes_scales_and_lets_an_add_take_the_shifts(side: str) -> None:
    order, vector = ("b, w", "float[2]") if side == "right" else ("w, b", "float[2, 1]")
    text = f"""<opset_import: ["" : 17]>
        g (float[2, 2] x) => (float[2, 2] y)
            <float[2, 2] w = {{1, 2, 3, 4}}, {vector} s = {{2, 3}}, {vector} t = {{5, 6}}> {{
            a = Mul (x, s)
            b = Add (a, t)
            m = MatMul ({order})
            y = Add (m, t)
        }}"""
    assert ops_after(text) == ["MatMul", "Add"]


def test_batch_normalization_behind_a_matmul_becomes_an_add() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[3, 2] x) => (float[3, 2] y)
            <float[2, 2] w = {1, 2, 3, 4}, float[2] s = {2, 3}, float[2] t = {5, 6}> {
            m = MatMul (x, w)
            y = BatchNormalization (m, s, t, t, s)
        }"""
    assert ops_after(text) == ["MatMul", "Add"]


def test_run_with_a_batch_normalization_becomes_one() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[1, 2, 3, 3] x) => (float[1, 2, 3, 3] y)
            <float[2] s = {2, 3}, float[2] v = {0.5, 2}, float[2, 1, 1] t = {5, 6}> {
            a = Mul (x, t)
            b = BatchNormalization (a, s, s, v, v)
            c = Mul (b, t)
            d = Sub (t, c)
            y = Relu (d)
        }"""
    assert ops_after(text) == ["BatchNormalization", "Relu"]


def test_run_without_a_layer_becomes_one_mul_and_one_add() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[1, 2, 3, 3] x) => (float[1, 2, 3, 3] y)
            <float s = {2}, float[2, 1, 1] t = {5, 6}> {
            a = Add (x, s)
            b = Mul (a, t)
            c = Div (b, s)
            d = Neg (c)
            y = Sub (s, d)
        }"""
    assert ops_after(text) == ["Mul", "Add"]


@pytest.mark.parametrize(
    ("between", "out"),
    [
        ("MaxPool <kernel_shape = [2, 2], pads = [1, 1, 0, 0]> (c)", "[1, 2, 3, 3]"),
        ("AveragePool <kernel_shape = [2, 2], pads = [1, 1, 0, 0]> (c)", "[1, 2, 3, 3]"),
        ("GlobalAveragePool (c)", "[1, 2, 1, 1]"),
        ("Identity (c)", "[1, 2, 3, 3]"),
    ],
)
def test_map_behind_a_pool_goes_into_the_conv_before_it(between: str, out: str) -> None:
    text = f"""<opset_import: ["" : 17]>
        g (float[1, 1, 4, 4] x) => (float{out} y)
            <float[2, 1, 2, 2] w = {{1, 2, 3, 4, 5, 6, 7, 8}}, float[2, 1, 1] t = {{5, 6}}> {{
            c = Conv (x, w)
            p = {between}
            m = Mul (p, t)
            y = Add (m, t)
        }}"""
    expected = ["Conv", between.split()[0]]
    if between.startswith("Identity"):  # eliminate-identity runs before
        assert ops_after(text, changed=False) == [*expected, "Mul", "Add"]
    else:
        assert ops_after(text) == expected


def test_map_behind_a_concat_goes_into_all_its_branches() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[1, 1, 4, 4] x) => (float[1, 3, 4, 4] y)
            <float[2, 1, 1, 1] v = {1, 2}, float[1, 1, 1, 1] w = {3},
             float[3, 1, 1] t = {5, 6, 7}> {
            c = Conv (x, v)
            d = Conv (x, w)
            e = Concat <axis = 1> (c, d)
            m = Mul (e, t)
            y = Add (m, t)
        }"""
    assert ops_after(text) == ["Conv", "Conv", "Concat"]


def test_map_behind_transpose_and_squeeze_follows_its_axis() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[1, 1, 4, 1] x) => (float[1, 4, 2] y)
            <float[2, 1, 1, 1] w = {3, 4}, float[2] t = {5, 6}, int64[1] last = {3}> {
            c = Conv (x, w)
            s = Squeeze (c, last)
            p = Transpose <perm = [0, 2, 1]> (s)
            m = Mul (p, t)
            y = Add (m, t)
        }"""
    assert ops_after(text) == ["Conv", "Squeeze", "Transpose"]


def test_scalar_behind_a_reshape_goes_into_the_matmul_and_the_add_before_it() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[2, 3] x, float[2, 2, 2] z) => (float[2, 2, 2] y)
            <float[3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}, float[4] b = {1, 2, 3, 4},
             int64[3] shape = {2, 2, 2}, float eight = {8}> {
            m = MatMul (x, w)
            a = Add (m, b)
            r = Reshape (a, shape)
            t = Transpose <perm = [1, 0, 2]> (r)
            d = Div (t, eight)
            y = MatMul (d, z)
        }"""
    assert ops_after(text) == ["MatMul", "Add", "Reshape", "Transpose", "MatMul"]


@pytest.mark.parametrize(
    "expression", ["Mul (r, one)", "Div (r, one)", "Add (r, zero)", "Sub (r, zero)"]
)
@pytest.mark.parametrize("kind", ["float", "int64"])
def test_neutral_elements_vanish(expression: str, kind: str) -> None:
    text = f"""<opset_import: ["" : 17]>
        g ({kind}[2, 3] x) => ({kind}[2, 3] y) <{kind} one = {{1}}, {kind}[1] zero = {{0}}> {{
            r = Abs (x)
            y = {expression}
        }}"""
    source = parse(text)
    model, result = apply(FuseAffine(), source)
    assert [node.op_type for node in model.graph.node] == ["Abs"]
    expected = Fidelity.EXACT if kind == "int64" or "one" in expression else Fidelity.CLOSE
    assert result.fidelity is expected
    assert_equivalent(source, model, expected)


# ------------------------------------------------------------------------------ declines

_CONV = """<opset_import: ["" : 17]>
    g (float[1, 1, 4, 4] x{inputs}) => (float[1, 1, {size}, {size}] y{outputs})
        <float[1, 1, 3, 3] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9}}, float s = {{2}}> {{
        {body}
    }}"""


@pytest.mark.parametrize(
    ("inputs", "outputs", "size", "body", "why"),
    [
        ("", ", float[1, 1, 2, 2] c", 2, "c = Conv (x, w) y = Mul (c, s)", "is used elsewhere"),
        ("", "", 2, "c = Conv (x, w) d = Mul (c, s) y = Add (c, d)", "is used elsewhere"),
        (
            "",
            ", float[1, 1, 2, 2] z",
            2,
            "c = Conv (x, w) y = Mul (c, s) z = Conv (x, w)",
            "is used by several nodes",
        ),
        (", float[1] b", "", 2, "c = Conv (x, w, b) y = Mul (c, s)", "computed at run time"),
        ("", "", 2, "c = Conv (x, w, w) y = Mul (c, s)", "is not one number for each output"),
        (
            "",
            "",
            4,
            "a = Add (x, s) y = Conv <pads = [1, 1, 1, 1]> (a, w)",
            "the Conv pads with zeros",
        ),
        (
            "",
            "",
            4,
            'a = Add (x, s) y = Conv <auto_pad = "SAME_UPPER"> (a, w)',
            "the Conv pads with zeros",
        ),
        ("", "", 6, "a = Add (x, s) y = ConvTranspose (a, w)", "differently near its borders"),
    ],
)
def test_conv_keeps_its_neighbour(
    inputs: str, outputs: str, size: int, body: str, why: str
) -> None:
    text = _CONV.format(inputs=inputs, outputs=outputs, size=size, body=body)
    assert_declines(text, FuseAffine(), why)


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv (x, w) p = MaxPool <kernel_shape = [1, 1]> (c) n = Neg (p) y = Add (n, t)",
        "c = Conv (x, w) p = Relu (c) y = Add (p, t)",
        "c = Conv (x, w) y = Add (c, columns)",
        "a = Mul (columns, x) y = Conv (a, w)",
        "c = Conv (x, w) y = Div (t, c)",
    ],
)
def test_what_does_not_commute_stays(body: str) -> None:
    text = f"""<opset_import: ["" : 17]>
        g (float[1, 2, 2, 2] x) => (float[1, 2, 2, 2] y)
            <float[2, 2, 1, 1] w = {{1, 2, 3, 4}}, float[2, 1, 1] t = {{5, 6}},
             float[2] columns = {{5, 6}}> {{
            {body}
        }}"""
    ops_after(text, changed=False)


def test_channels_that_broadcasting_makes_stay() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[1, 2, 2, 2] x) => (float[1, 3, 2, 2] y)
            <float[1, 2, 1, 1] w = {1, 2}, float[3, 1, 1] t = {5, 6, 7}> {
            c = Conv (x, w)
            y = Mul (c, t)
        }"""
    assert_declines(text, FuseAffine(), "another axis")


@pytest.mark.parametrize("between", ["Mul (x, t)", "Sub (x, t)"])
def test_channels_that_broadcasting_may_make_in_front_of_a_layer_stay(between: str) -> None:
    assert_declines(
        f"""<opset_import: ["" : 17]>
        g (float[1, C, 2, 2] x) => (float[1, 1, 2, 2] y)
            <float[1, 3, 1, 1] w = {{1, 2, 3}}, float[3, 1, 1] t = {{5, 6, 7}}> {{
            m = {between}
            y = Conv (m, w)
        }}""",
        FuseAffine(),
    )


def test_batch_normalization_of_an_open_number_of_channels_goes_into_the_layer() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[1, C, 2, 2] x) => (float[1, 1, 2, 2] y)
            <float[1, 3, 1, 1] w = {1, 2, 3}, float[3] t = {5, 6, 7}> {
            m = BatchNormalization (x, t, t, t, t)
            y = Conv (m, w)
        }"""
    assert apply(FuseAffine(), parse(text))[1].changed


def test_constant_that_adds_dimensions_is_no_neutral_element() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[2] x) => (float[1, 2] y) <float[1, 1] one = {1}> { y = Mul (x, one) }"""
    assert_declines(text, FuseAffine())


def test_a_factor_that_adds_dimensions_stays_in_front_of_a_layer() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[N] x) => (float[1, 2] y) <float[1, 1] two = {2}, float[1, 2] w = {1, 2}> {
            m = Mul (two, x)
            y = MatMul (m, w)
        }"""
    assert_declines(text, FuseAffine())


def test_ones_that_broadcast_are_no_neutral_element() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[1, 3] x) => (float[2, 3] y) <float[2, 1] one = {1, 1}> { y = Mul (x, one) }"""
    assert_declines(text, FuseAffine())


def test_weight_that_would_overflow_stays() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y)
            <float[1, 1, 1, 1] w = {1e30}, float s = {1e30}> {
            c = Conv (x, w)
            y = Mul (c, s)
        }"""
    assert_declines(text, FuseAffine(), "overflow or underflow")


def test_float16_weight_that_would_lose_its_digits_stays() -> None:
    weight = numpy_helper.from_array(np.full((1, 1, 1, 1), 1e-4, np.float16), "w")
    scale = numpy_helper.from_array(np.full((), 1e-4, np.float16), "s")
    model = model_of(
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Mul", ["c", "s"], ["y"])],
        (1, 1, 2, 2),
        (1, 1, 2, 2),
        [weight, scale],
        onnx.TensorProto.FLOAT16,
    )
    _, result = apply(FuseAffine(), model)
    assert not result.changed
    assert any("underflow" in skip.why for skip in result.skips)


def test_training_batch_normalization_stays() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[2, 1, 2, 2] x) => (float[2, 1, 2, 2] y)
            <float[1, 1, 1, 1] w = {2}, float[1] s = {2}> {
            c = Conv (x, w)
            y, m, v = BatchNormalization <training_mode = 1> (c, s, s, s, s)
        }"""
    assert_declines(text, FuseAffine())


def test_zero_variance_without_epsilon_stays() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[2, 1, 2, 2] x) => (float[2, 1, 2, 2] y)
            <float[1, 1, 1, 1] w = {2}, float[1] s = {2}, float[1] zero = {0}> {
            c = Conv (x, w)
            y = BatchNormalization <epsilon = 0.0> (c, s, s, s, zero)
        }"""
    assert_declines(text, FuseAffine(), "overflow or underflow")


# ------------------------------------------------------------------------------ edges


def test_bodies_are_rewritten_and_keep_their_outputs() -> None:
    text = """<opset_import: ["" : 17]>
        g (bool b, float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y)
            <float[1, 1, 1, 1] w = {2}, float s = {3}> {
            y = If (b) <
                then_branch = t () => (float[1, 1, 2, 2] p) { c = Conv (x, w) p = Mul (c, s) },
                else_branch = e () => (float[1, 1, 2, 2] q) { q = Relu (x) }
            >
        }"""
    source = parse(text)
    model, result = apply(FuseAffine(), source)
    assert result.changed
    assert_equivalent(source, model, Fidelity.CLOSE)
    branches = {a.name: a.g for a in model.graph.node[0].attribute}
    assert [node.op_type for node in branches["then_branch"].node] == ["Conv"]
    assert branches["then_branch"].output[0].name == "p"


@pytest.mark.parametrize("opset", [7, 9, 13, 15, 21])
def test_batch_normalization_of_every_opset(opset: int) -> None:
    text = f"""<opset_import: ["" : {opset}]>
        g (float[1, 1, 2, 2] x) => (float[1, 2, 2, 2] y)
            <float[2, 1, 1, 1] w = {{2, 3}}, float[2] s = {{3, 4}}> {{
            c = Conv (x, w)
            y = BatchNormalization <epsilon = 0.1> (c, s, s, s, s)
        }}"""
    assert ops_after(text) == ["Conv"]


def test_weight_of_a_constant_node_is_a_weight() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y) {
            w = Constant <value = float[1, 1, 1, 1] {2}> ()
            s = Constant <value = float {3}> ()
            c = Conv (x, w)
            y = Mul (s, c)
        }"""
    assert ops_after(text) == ["Conv"]


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_other_floating_types_keep_their_type(dtype: type) -> None:
    constants = {"w": [[1, 2], [3, 4]], "c": [1, 2], "s": [2, 3]}
    model = model_of(
        [
            helper.make_node("Mul", ["x", "s"], ["a"]),
            helper.make_node("Gemm", ["a", "w", "c"], ["m"]),
            helper.make_node("Mul", ["m", "s"], ["y"]),
        ],
        (3, 2),
        (3, 2),
        [numpy_helper.from_array(np.array(v, dtype), k) for k, v in constants.items()],
        helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
    )
    model, _ = apply(FuseAffine(), model)
    assert [node.op_type for node in model.graph.node] == ["Gemm"]
    onnx.checker.check_model(model, full_check=True)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weight, bias = (arrays[name] for name in model.graph.node[0].input[1:])
    assert weight.dtype == bias.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(weight.astype(float), [[4, 12], [18, 36]])
    np.testing.assert_array_equal(bias.astype(float), [2, 6])


def test_unknown_ranks_behind_a_conv_do_not_matter() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[1, 1, 2, 2] x, int64[n] shape) => (float[a, b, c, d] y)
            <float[2, 1, 1, 1] w = {2, 3}, float[1, 2, 1, 1] t = {3, 4}> {
            r = Reshape (x, shape)
            c = Conv (r, w)
            m = Mul (c, t)
            y = Relu (m)
        }"""
    model, _ = apply(FuseAffine(), parse(text))
    assert [node.op_type for node in model.graph.node] == ["Reshape", "Conv", "Relu"]


def test_bias_of_a_gemm_that_would_become_a_matrix_stays() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[3, 2] x) => (float[3, 2] y)
            <float[2, 2] w = {1, 2, 3, 4}, float[3, 1] c = {1, 2, 3}, float[2] s = {2, 3}> {
            m = Gemm (x, w, c)
            y = Mul (m, s)
        }"""
    assert_declines(text, FuseAffine(), "grow into a matrix")


# ------------------------------------------------------------------------------ any algebra


def model_of(
    nodes: list[onnx.NodeProto],
    shape_in: tuple[int, ...],
    shape_out: tuple[int | str, ...],
    constants: list[onnx.TensorProto],
    kind: int = onnx.TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model with the input x and the output y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape_in)],
        [helper.make_tensor_value_info("y", kind, shape_out)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def affine_nodes(
    kinds: list[str], name: str, channels: int, ndim: int, rng: np.random.Generator
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], str]:
    """A run of affine nodes behind the tensor `name`; returns the name of its result too."""
    nodes, constants = [], []

    def constant(values: np.ndarray) -> str:
        label = f"{name}_c{len(constants)}"
        constants.append(numpy_helper.from_array(values.astype(np.float32), label))
        return label

    for kind in kinds:
        result = f"{name}_r{len(nodes)}"
        if kind == "BatchNormalization":
            vectors = [rng.uniform(0.5, 2, channels) for _ in range(4)]
            inputs = [name, *map(constant, vectors)]
        elif kind == "Neg":
            inputs = [name]
        else:
            shape = (channels,) + (1,) * (ndim - 2) if rng.random() < 0.7 else ()
            inputs = [name, constant(rng.uniform(0.5, 2, shape) * rng.choice([-1, 1]))]
            if rng.random() < 0.5 and kind != "Div":
                inputs.reverse()
        nodes.append(helper.make_node(kind, inputs, [result]))
        name = result
    return nodes, constants, name


def conv_model(
    op: str,
    shape: tuple[int, ...],
    group: int,
    channels: int,
    bias: bool,
    behind: list[str],
    before: tuple[str, ...] | list[str] = (),
    seed: int = 0,
    **attrs: object,
) -> onnx.ModelProto:
    """Affine maps, a convolution with a weight of `shape`, affine maps."""
    rng = np.random.default_rng(seed)
    ndim = len(shape)
    nodes, constants, name = affine_nodes(list(before), "x", channels, ndim, rng)
    outs = shape[0] if op == "Conv" else shape[1] * group
    weights = {"w": rng.standard_normal(shape), "b": rng.standard_normal(outs)}
    inputs = [name, *(["w", "b"] if bias else ["w"])]
    constants += [numpy_helper.from_array(weights[k].astype(np.float32), k) for k in inputs[1:]]
    nodes.append(helper.make_node(op, inputs, ["c"], group=group, **attrs))
    more, more_constants, _ = affine_nodes(behind, "c", outs, ndim, rng)
    nodes, constants = nodes + more, constants + more_constants
    nodes[-1].output[0] = "y"
    dims = ("a", "b", "c", "d", "e")[:ndim]
    return model_of(nodes, (2, channels) + (5,) * (ndim - 2), dims, constants)


def fused(model: onnx.ModelProto) -> list[str]:
    """Operators after the pass, with outputs compared."""
    result, _ = apply(FuseAffine(), model)
    onnx.checker.check_model(result, full_check=True)
    feeds = random_feeds(model)
    for ref, new in zip(run(model, feeds), run(result, feeds), strict=True):
        assert new.dtype == ref.dtype
        tolerance = 1e-6 + 1e-4 * float(np.ptp(ref))
        np.testing.assert_allclose(new, ref, rtol=0, atol=tolerance)
    return [node.op_type for node in result.graph.node]


_KINDS = st.lists(
    st.sampled_from(["BatchNormalization", "Mul", "Add", "Sub", "Div", "Neg"]), max_size=3
)


@settings(max_examples=60, deadline=None)
@given(
    op=st.sampled_from(["Conv", "ConvTranspose"]),
    group=st.integers(1, 3),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    pads=st.booleans(),
    stride=st.integers(1, 2),
    bias=st.booleans(),
    before=_KINDS,
    behind=_KINDS,
    seed=st.integers(0, 1000),
)
def test_any_maps_around_any_convolution_keep_its_outputs(
    op: str,
    group: int,
    per_group: tuple[int, int],
    kernel: list[int],
    pads: bool,
    stride: int,
    bias: bool,
    before: list[str],
    behind: list[str],
    seed: int,
) -> None:
    ins, outs = per_group
    shape = (group * outs, ins, *kernel) if op == "Conv" else (group * ins, outs, *kernel)
    attrs = {"strides": [stride] * len(kernel)}
    if pads:
        attrs["pads"] = [size // 2 for size in kernel] * 2
    model = conv_model(op, shape, group, group * ins, bias, behind, before, seed, **attrs)
    left = fused(model)
    assert len(left) <= len(model.graph.node)
    assert left[-1] == op  # a layer always takes what stands behind it


@settings(max_examples=30, deadline=None)
@given(kinds=_KINDS.filter(len), ndim=st.integers(2, 4), seed=st.integers(0, 1000))
def test_any_run_of_maps_keeps_its_result(kinds: list[str], ndim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes, constants, _ = affine_nodes(kinds, "x", 3, ndim, rng)
    nodes[-1].output[0] = "y"
    dims = (2, 3, 4, 5)[:ndim]
    left = fused(model_of(nodes, dims, dims, constants))
    assert len(left) <= min(len(kinds), 1 if "BatchNormalization" in kinds else 2)


# ------------------------------------------------------------------------------ spelled operators


def gelu(opset: int, half: str = "0.5", behind: str = "") -> str:
    """A Gelu spelled by erf before a layer that could take its last factor."""
    return f"""<opset_import: ["" : {opset}]>
        g (float[2, 4] x) => (float[2, 2] y)
            <float[4, 2] w = {{1, 2, 3, 4, 5, 6, 7, 8}}, float r = {{1.4142135}}, float one = {{1}},
             float half = {{{half}}}, float three = {{3}}> {{
            d = Div (x, r)
            e = Erf (d)
            a = Add (e, one)
            t = Mul (x, a)
            s = Mul (t, half) {behind}
            y = MatMul ({"k" if behind else "s"}, w)
        }}"""


def normalization(scale: str = "float[4] c", used: str = "s") -> str:
    """A LayerNormalization spelled out before a layer that could take its scale and bias."""
    return f"""<opset_import: ["" : 13]>
        g (float[2, 4] x) => (float[2, 2] y)
            <float[4, 2] w = {{1, 2, 3, 4, 5, 6, 7, 8}}, {scale} = {{1, 2, 3, 4}},
             float two = {{2}}, float eps = {{0.01}}, float[2] b = {{1, 2}}> {{
            m = ReduceMean <axes = [-1]> (x)
            s = Sub (x, m)
            q = Pow (s, two)
            v = ReduceMean <axes = [-1]> (q)
            e = Add (v, eps)
            r = Sqrt (e)
            d = Div ({used}, r)
            k = Mul (d, c)
            n = Add (k, c)
            p = MatMul (n, w)
            y = Add (p, b)
        }}"""


def test_the_factors_of_a_gelu_stay_where_onnxruntime_fuses_it() -> None:
    assert_declines(gelu(17), FuseAffine(), "is part of a Gelu")


def test_a_factor_behind_a_gelu_goes_into_the_layer() -> None:
    left = ops_after(gelu(17, behind="k = Mul (s, three)"))
    assert left == ["Div", "Erf", "Add", "Mul", "Mul", "MatMul"]


def test_factors_that_make_no_gelu_go_into_the_layer() -> None:
    assert ops_after(gelu(17, "0.7")) == ["Div", "Erf", "Add", "Mul", "MatMul"]
    assert ops_after(gelu(17, "0.7", "k = Mul (s, three)"))[-2:] == ["Mul", "MatMul"]


def test_scale_and_bias_stay_where_onnxruntime_fuses_a_normalization() -> None:
    assert_declines(normalization(), FuseAffine(), "is part of a LayerNormalization")


@pytest.mark.parametrize("changed", [{"scale": "float[1, 4] c"}, {"used": "x"}])
def test_scale_and_bias_go_into_the_layer_where_it_fuses_none(changed: dict[str, str]) -> None:
    assert ops_after(normalization(**changed))[-3:] == ["Div", "MatMul", "Add"]


@pytest.mark.parametrize("product", ["Gemm (a, w)", "MatMul (a, w)"])
@pytest.mark.parametrize("columns", ["1", "N"])  # N may be 1
def test_a_vector_that_repeats_what_it_scales_stays(product: str, columns: str) -> None:
    assert_declines(
        f"""<opset_import: ["" : 17]>
        g (float[2, {columns}] x) => (float[2, 2] y)
        <float[3] c = {{2, 4, 8}}, float[3, 2] w = {{1, 2, 3, 4, 5, 6}}> {{
            a = Div (x, c)
            y = {product}
        }}""",
        FuseAffine(),
    )

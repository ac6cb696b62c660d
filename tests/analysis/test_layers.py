"""Weight layers are found, laid out as y = W·x, and written back bit for bit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from recurrent_nets import GATES, HIDDEN, WIDTH, recurrent_net

from onnxslim.analysis.layers import WeightLayer, bias_of, linear_layers, weight_layers
from onnxslim.analysis.linear_operators import ConvPatches, Vectors
from onnxslim.io.model import Model
from onnxslim.records import Skip
from support import parse

FLOAT = onnx.TensorProto.FLOAT


def listed(source: onnx.ModelProto | str) -> tuple[list[WeightLayer], list[Skip]]:
    proto = parse(source) if isinstance(source, str) else source
    layers, skips = weight_layers(Model.load(proto).graph)
    return list(layers), list(skips)


def single(op: str, weight: np.ndarray, *, first: bool = False, **attrs: object) -> WeightLayer:
    """The layer of a model with one node and this weight."""
    names = ["w", "x"] if first else ["x", "w"]
    x = helper.make_tensor_value_info("x", FLOAT, None)
    y = helper.make_tensor_value_info("y", FLOAT, None)
    node = helper.make_node(op, names, ["y"], **attrs)
    graph = helper.make_graph([node], "g", [x], [y], [onnx.numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (layer,), _ = listed(model)
    return layer


def assert_round_trip(layer: WeightLayer) -> None:
    weight = layer.canonical()
    assert weight.shape == (layer.groups, layer.rows, layer.columns)
    assert layer.size == layer.holder.size
    back = layer.restored(weight)
    assert back.dtype == layer.holder.dtype
    np.testing.assert_array_equal(back, layer.holder.values)


@pytest.mark.slow
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3),
    st.lists(st.integers(1, 3), min_size=1, max_size=3), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_convs_of_any_rank_and_grouping_come_back_bit_for_bit(
    groups: int, outs: int, ins: int, kernel: list[int], transposed: bool, seed: int
) -> None:
    shape = (ins * groups, outs, *kernel) if transposed else (outs * groups, ins, *kernel)
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    layer = single("ConvTranspose" if transposed else "Conv", weight, group=groups)
    assert (layer.groups, layer.rows) == (groups, outs)
    assert layer.columns == ins * np.prod(kernel)
    assert_round_trip(layer)


@pytest.mark.slow
@given(st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99))
def test_gemms_come_back_bit_for_bit_whatever_is_transposed(
    first: bool, trans_a: bool, trans_b: bool, seed: int
) -> None:
    weight = np.random.default_rng(seed).standard_normal((3, 5)).astype(np.float32)
    layer = single("Gemm", weight, first=first, transA=int(trans_a), transB=int(trans_b), alpha=0.3)
    assert layer.groups == 1
    assert isinstance(layer.unfolding, Vectors)
    assert layer.unfolding.scale == pytest.approx(0.3)
    assert_round_trip(layer)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("shape", [(4,), (4, 3), (2, 4, 3), (5, 1, 4, 3)])
def test_matmuls_come_back_bit_for_bit_on_either_side(shape: tuple[int, ...], first: bool) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    layer = single("MatMul", weight, first=first)
    assert layer.groups == np.prod(shape[:-2], dtype=int)
    assert (layer.data, layer.weight, layer.bias) == ((1, 0, None) if first else (0, 1, None))
    assert_round_trip(layer)


def test_rows_are_outputs() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(single("MatMul", weight).canonical()[0], weight.T)
    np.testing.assert_array_equal(single("MatMul", weight, first=True).canonical()[0], weight)
    np.testing.assert_array_equal(single("Gemm", weight, transB=1).canonical()[0], weight)


def test_half_precision_weights_are_rounded_once() -> None:
    weight = np.linspace(-1, 1, 12, dtype=np.float16).reshape(3, 4)
    layer = single("MatMul", weight)
    back = layer.restored(layer.canonical().astype(np.float64) * (1 + 1e-6))
    assert back.dtype == np.float16
    np.testing.assert_array_equal(back, weight)


def test_codes_of_half_precision_weights_are_not_rounded() -> None:
    """float16 holds no integer above 2,048 exactly; codes keep their own type."""
    layer = single("MatMul", np.ones((2, 3), np.float16))
    codes = np.array([[[32767, 32766], [-32767, 4097], [0, 1]]], np.int16)  # (1, rows, columns)
    laid_out = layer.laid_out(codes)
    assert laid_out.dtype == np.int16
    np.testing.assert_array_equal(laid_out, codes[0].T)


def test_the_attributes_of_a_conv_are_kept() -> None:
    weight = np.ones((4, 1, 3, 3), np.float32)
    layer = single("Conv", weight, group=2, strides=[2, 1], pads=[1, 0, 2, 3], dilations=[1, 2])
    assert layer.unfolding == ConvPatches(2, (3, 3), (2, 1), (1, 2), (1, 0, 2, 3))
    same = single("Conv", weight, auto_pad="SAME_LOWER")
    assert isinstance(same.unfolding, ConvPatches)
    assert same.unfolding.auto_pad == "SAME_LOWER"


def test_a_layer_is_named_by_its_output_and_knows_who_shares_its_weight() -> None:
    layers, skips = listed("""
    <opset_import: ["" : 17]>
    net (float[3, 3] x, int64[2] i) => (float[3, 3] y, float[2, 3] e)
    <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}>
    {
        a = MatMul (x, w)
        y = Gemm (a, w)
        e = Gather (w, i)
    }
    """)
    assert not skips
    assert [layer.name for layer in layers] == ["a", "y", "e"]
    assert [layer.shared for layer in layers] == [("y", "e"), ("a", "e"), ("a", "y")]
    assert layers[0].holder is layers[1].holder


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_a_recurrent_operator_has_two_layers_with_a_group_for_each_direction(
    op: str, direction: str
) -> None:
    model = Model.load(recurrent_net(direction, op=op))
    layers, skips = weight_layers(model.graph)
    assert not skips
    assert [layer.name for layer in layers] == ["y/W", "y/R"]
    groups = 2 if direction == "bidirectional" else 1
    for number, (layer, columns) in enumerate(zip(layers, (WIDTH, HIDDEN), strict=True)):
        assert (layer.groups, layer.rows, layer.columns) == (groups, GATES[op] * HIDDEN, columns)
        assert_round_trip(layer)
        biases = layer.node.inputs[3].values.reshape(groups, 2, -1)
        wanted = np.zeros_like(biases[:, 0]) if layer.bias is None else biases[:, number]
        np.testing.assert_array_equal(bias_of(layer), wanted)
    assert linear_layers(model.graph) == ((), ())


def test_a_table_is_a_layer_and_what_picks_sizes_or_constants_is_none() -> None:
    layers, skips = listed("""
    <opset_import: ["" : 17]>
    net (int64[2] i, float[2, 3] x) => (float[2, 3] y, float[3] z, int64 n)
    <float[4, 3] t = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, int64 one = {1}>
    {
        y = Gather (t, i)
        z = Gather (t, one)
        s = Shape (x)
        n = Gather (s, one)
    }
    """)
    assert [layer.name for layer in layers] == ["y"]
    assert (layers[0].groups, layers[0].rows, layers[0].columns) == (1, 4, 3)
    assert not skips
    assert_round_trip(layers[0])


def test_a_weight_is_seen_behind_identity_cast_and_transpose() -> None:
    layers, _ = listed("""
    <opset_import: ["" : 17]>
    net (float[2, 3] x, int64[2] i) => (float[2, 4] y, float[2, 4] z, float16[2, 3] e)
    <float16[4, 3] t = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}>
    {
        e = Gather (t, i)
        u = Transpose <perm = [1, 0]> (t)
        v = Identity (u)
        w = Cast <to = 1> (v)
        y = MatMul (x, w)
        back = Transpose (w)
        z = Gemm <transB = 1> (x, back)
    }
    """)
    assert [layer.name for layer in layers] == ["e", "y", "z"]
    assert len({id(layer.holder) for layer in layers}) == 1
    assert [layer.shared for layer in layers] == [("y", "z"), ("e", "z"), ("e", "y")]
    assert [layer.dtype for layer in layers] == [np.float16, np.float32, np.float32]
    for layer in layers:
        np.testing.assert_array_equal(layer.canonical()[0], layer.holder.values)
        assert_round_trip(layer)


@pytest.mark.parametrize(
    "views",
    [
        "v = Transpose <perm = [1, 0, 2]> (w)\n y = MatMul (x, v)",
        "v = Relu (w)\n y = MatMul (x, v)",
        "v = Cast <to = 6> (w)\n u = Cast <to = 1> (v)\n y = MatMul (x, u)",
    ],
)
def test_a_weight_that_changes_on_its_way_is_no_layer(views: str) -> None:
    layers, skips = listed(f"""
    <opset_import: ["" : 17]>
    net (float[2, 2, 2] x) => (float[2, 2, 2] y)
    <float[2, 2, 2] w = {{1, 2, 3, 4, 5, 6, 7, 8}}>
    {{
        {views}
    }}
    """)
    assert not layers
    (skip,) = skips
    assert skip.why.startswith("its weight is ")


def test_the_weight_may_come_from_a_constant_node() -> None:
    (layer,), _ = listed("""
    <opset_import: ["" : 17]>
    net (float[2, 2] x) => (float[2, 2] y)
    {
        w = Constant <value = float[2, 2] {1, 2, 3, 4}> ()
        y = MatMul (x, w)
    }
    """)
    np.testing.assert_array_equal(layer.canonical()[0], [[1, 3], [2, 4]])
    assert_round_trip(layer)


def test_bodies_are_entered_and_equal_names_told_apart() -> None:
    layers, _ = listed("""
    <opset_import: ["" : 17]>
    net (float[2, 2] x, bool c) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
    {
        y = If (c) <
            then_branch = yes () => (float[2, 2] t) { t = MatMul (x, w) },
            else_branch = no () => (float[2, 2] t) { u = MatMul (x, w) t = MatMul (u, w) }
        >
    }
    """)
    assert [layer.name for layer in layers] == ["y/then_branch/t", "u", "y/else_branch/t"]
    assert [[body for _, body in layer.bodies] for layer in layers] == [
        ["then_branch"],
        ["else_branch"],
        ["else_branch"],
    ]
    assert all(layer.node in layer.graph.nodes for layer in layers)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("y = MatMul (x, v)", "its weight is computed at run time"),
        (
            "r = Relu (w)\n y = MatMul (x, r)",
            "its weight is computed from constants by Relu: run simplify first",
        ),
        ("y = MatMul (w, w)", "all its operands are constant"),
        ("y = Gemm <alpha = 0.0> (x, w)", "its alpha is 0, so its weight has no effect"),
    ],
)
def test_what_is_no_weight_layer_says_why(body: str, why: str) -> None:
    layers, skips = listed(f"""
    <opset_import: ["" : 17]>
    net (float[2, 2] x, float[2, 2] v) => (float[2, 2] y) <float[2, 2] w = {{1, 2, 3, 4}}>
    {{
        {body}
    }}
    """)
    assert not layers
    assert [skip.why for skip in skips] == [why]


def test_integer_weights_and_foreign_operators_are_not_layers() -> None:
    layers, skips = listed("""
    <opset_import: ["" : 17, "own" : 1]>
    net (int32[2, 2] x, float[2, 2] f) => (int32[2, 2] y, float[2, 2] z)
    <int32[2, 2] w = {1, 2, 3, 4}, float[2, 2] v = {1, 2, 3, 4}>
    {
        y = MatMul (x, w)
        z = own.MatMul (f, v)
    }
    """)
    assert not layers
    assert skips == [Skip("y", "its weight is of type int32")]

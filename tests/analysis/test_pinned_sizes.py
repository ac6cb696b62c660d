from __future__ import annotations

import onnx
import pytest

from onnxslim.analysis.input_demands import input_demands
from onnxslim.io.model import Model
from support import parse

CASES = {
    "MatMul": (
        "float[T, F] x",
        "w = ConstantOfShape (s) y = MatMul (x, w)",
        "int64[2] s = {180, 64}",
        {"x": (None, 180)},
    ),
    "sizes that a float constant holds": (
        "float[T, F] x",
        "t = Cast <to = 7> (s) w = ConstantOfShape (t) y = MatMul (x, w)",
        "float[2] s = {180.0, 64.9}",
        {"x": (None, 180)},
    ),
    "sizes that a float constant holds, in a chain": (
        "float[T, F] x",
        "a = Cast <to = 6> (s) b = Mul (a, two) t = Cast <to = 7> (b) "
        "w = ConstantOfShape (t) y = MatMul (x, w)",
        "double[2] s = {90, 32}, int32 two = {2}",
        {"x": (None, 180)},
    ),
    "MatMul, weight first": (
        "float[F, T] x",
        "w = ConstantOfShape (s) y = MatMul (w, x)",
        "int64[2] s = {180, 64}",
        {"x": (64, None)},
    ),
    "Gemm with transB": (
        "float[N, F] x",
        "w = ConstantOfShape (s) y = Gemm <transB = 1> (x, w)",
        "int64[2] s = {5, 9}",
        {"x": (None, 9)},
    ),
    "Conv in groups": (
        "float[N, C, H, W] x",
        "w = ConstantOfShape (s) y = Conv <group = 4> (x, w)",
        "int64[4] s = {8, 3, 1, 1}",
        {"x": (None, 12, None, None)},
    ),
    "ConvTranspose": (
        "float[N, C, L] x",
        "w = ConstantOfShape (s) y = ConvTranspose (x, w)",
        "int64[3] s = {6, 8, 2}",
        {"x": (None, 6, None)},
    ),
    "GRU behind Unsqueeze": (
        "float[T, F] x",
        "u = Unsqueeze (x, one) w = ConstantOfShape (s) r = ConstantOfShape (t) "
        "y, h = GRU <hidden_size = 25> (u, w, r)",
        "int64[1] one = {1}, int64[3] s = {1, 75, 180}, int64[3] t = {1, 75, 25}",
        {"x": (None, 180)},
    ),
    "states of an LSTM": (
        "float[T, N, F] x, float[D, N, H] h, float[D, N, H] c",
        "w = ConstantOfShape (s) r = ConstantOfShape (t) "
        "y = LSTM <hidden_size = 5> (x, w, r, , , h, c)",
        "int64[3] s = {1, 20, 7}, int64[3] t = {1, 20, 5}",
        {"x": (None, None, 7), "h": (1, None, 5), "c": (1, None, 5)},
    ),
    "folded BatchNormalization": (
        "float[N, C, T] x",
        "k = ConstantOfShape (s) y = Mul (x, k)",
        "int64[3] s = {1, 40, 1}",
        {"x": (None, 40, None)},
    ),
    "LayerNormalization": (
        "float[N, T, F] x",
        "k = ConstantOfShape (s) y = LayerNormalization (x, k)",
        "int64[1] s = {48}",
        {"x": (None, None, 48)},
    ),
    "Concat before MatMul": (
        "float[N, A] a, float[N, 16] b",
        "j = Concat <axis = 1> (a, b) w = ConstantOfShape (s) y = MatMul (j, w)",
        "int64[2] s = {20, 3}",
        {"a": (None, 4), "b": (None, 16)},
    ),
    "Split": (
        "float[N, C] x",
        "y, z = Split <axis = 1> (x, s)",
        "int64[2] s = {3, 4}",
        {"x": (None, 7)},
    ),
    "nothing": (
        "float[N, T] x",
        "y = Relu (x)",
        "int64[2] s = {3, 4}",
        {"x": (None, None)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_sizes_that_weights_pin(name: str) -> None:
    inputs, body, constants, expected = CASES[name]
    text = f"""<opset_import: ["" : 17]> g ({inputs}) => (float y) <{constants}> {{ {body} }}"""
    proto = onnx.parser.parse_model(text.replace("<opset", "<ir_version: 8, opset", 1))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    found = input_demands(Model.load(proto))
    assert {each: found.sizes(each) for each in expected} == expected


def test_one_name_is_one_size_in_all_inputs() -> None:
    source = parse("""<opset_import: ["" : 17]>
        g (float[N, F] x, float[F] v) => (float[N, 2] y) <int64[2] s = {9, 2}> {
            w = ConstantOfShape (s)
            p = Mul (x, v)
            y = MatMul (p, w)
        }""")
    found = input_demands(Model.load(source))
    assert (found.sizes("x"), found.sizes("v")) == ((None, 9), (9,))


def test_demands_of_a_model_leave_its_shapes_alone() -> None:
    model = Model.load(
        parse("""<opset_import: ["" : 17]> g (float[N] x) => (float[N] y) { y = Abs (x) }""")
    )
    input_demands(model)
    assert not model.has_shapes


@pytest.mark.parametrize(
    ("body", "least"),
    [
        ("y = Conv <pads = [2, 1]> (x, w)", 9 - 3),
        ("y = Conv <dilations = [2]> (x, w)", 17),
        ("y = MaxPool <kernel_shape = [5]> (x)", 5),
        ('y = Pad <mode = "reflect"> (x, p)', 8),
        ("a = MaxPool <kernel_shape = [5]> (x) y = Conv (a, w)", 13),
        ('y = Conv <auto_pad = "SAME_UPPER"> (x, w)', None),
        ("y = Pad (x, p)", None),
    ],
)
def test_windows_bound_sizes_from_below(body: str, least: int | None) -> None:
    source = parse(f"""<opset_import: ["" : 17]> g (float[N, 1, T] x) => (float[N, 1, S] y)
        <int64[6] p = {{0, 0, 3, 0, 0, 7}}, float[1, 1, 9] w = {{1, 1, 1, 1, 1, 1, 1, 1, 1}}>
        {{ {body} }}""")
    assert input_demands(Model.load(source)).symbols.least.get("'T'") == least


def test_chosen_sizes_settle_those_that_are_tied_to_them() -> None:
    source = parse("""<opset_import: ["" : 17]>
        g (float[N, P, 4] past, float[M, T, 4] x, float[K, L, 4] mask) => (float[?, ?, 4] y) {
            j = Concat <axis = 1> (past, x)
            y = Concat <axis = 0> (j, mask)
        }""")
    found = input_demands(Model.load(source)).symbols
    assert found.settled({"'N'": 2}) == {"'N'": 2, "'M'": 2}
    assert found.settled({"'P'": 5, "'L'": 9})["'T'"] == 4
    assert "'T'" not in found.settled({"'P'": 5, "'L'": 5})  # no size is zero

from __future__ import annotations

import onnx
import pytest

from onnxslim.analysis.input_demands import bound_size, input_demands
from onnxslim.analysis.input_roles import InputRole, RoleKind
from onnxslim.io.model import Model


def role(inputs: str, body: str, constants: str = "float one = {1}") -> InputRole | None:
    """The role of input `x`."""
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => (float y) <{constants}>'
    proto = onnx.parser.parse_model(f"{text} {{ {body} }}")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return input_demands(Model.load(proto)).roles.get("x")


def test_indices_lie_within_the_table_that_gather_looks_up() -> None:
    body = "s = Constant <value = int64[2] {500, 8}> () t = ConstantOfShape (s) y = Gather (t, i)"
    found = role("int32[N, T] x", f"i = Cast <to = 7> (x) {body}")
    assert found == InputRole(RoleKind.INDEX, 0, (500,))
    shifted = role(
        "int64[N, T] x", f"i = Add (x, k) {body}", "int64 k = {2}"
    )  # position ids of OPT: the first rows are not used
    assert shifted == InputRole(RoleKind.INDEX, 0, (498,))


def test_an_index_into_an_open_axis_is_bound_by_its_size() -> None:
    found = role("float[N, T, 4] h, int64[K] x", "y = Gather <axis = 1> (h, x)")
    assert found is not None
    assert [bound_size(top, {"'T'": 7}) for top in found.tops] == [7]
    assert [bound_size(top, {}) for top in found.tops] == [None]


@pytest.mark.parametrize(
    ("inputs", "body", "constants"),
    [
        ("int64[N, T] x", "f = Cast <to = 1> (x) i = Sub (one, f) y = Mul (i, k)",
         "float one = {1}, float k = {-10000}"),
        ("float[N, T] x", "i = Sub (one, x) y = Mul (i, k)",
         "float one = {1}, float k = {-3.4e38}"),
        ("int64[N, T] x", "f = Cast <to = 1> (x) i = Sub (f, one) y = Mul (i, k)",
         "float one = {1}, float k = {10000}"),
        ("int64[N, T] x", "y = Cast <to = 9> (x)", "float one = {1}"),
        ("int64[N, T] x", "y = Equal (x, zero)", "int64 zero = {0}"),
        ("bool[N, T] x, float[N, T] h", "y = Where (x, h, k)", "float k = {-1e9}"),
        ("int64[N, T] x, float[N, T, 8] h",
         "u = Unsqueeze (x, a) f = Cast <to = 1> (u) y = Mul (h, f)", "int64[1] a = {2}"),
    ],
    ids=["one minus", "float", "minus one", "bool", "equal", "where", "pooling"],
)  # fmt: skip
def test_masks(inputs: str, body: str, constants: str) -> None:
    assert role(inputs, body, constants) == InputRole(RoleKind.MASK)


def test_ids_that_are_held_against_padding_stay_ids() -> None:
    found = role(
        "int64[N, T] x",
        "p = Equal (x, pad) s = Shape (x) t = ConstantOfShape (z) y = Gather (t, x)",
        "int64 pad = {1}, int64[2] z = {30, 4}",
    )
    assert found == InputRole(RoleKind.INDEX, 0, (30,))


def test_lengths_are_at_least_one_and_at_most_their_axis() -> None:
    sizes = {"'T'": 6}
    recurrent = role(
        "float[T, N, 3] h, int32[N] x",
        "w = ConstantOfShape (s) r = ConstantOfShape (t) y = GRU <hidden_size = 2> (h, w, r, , x)",
        "int64[3] s = {1, 6, 3}, int64[3] t = {1, 6, 2}",
    )
    cut = role("float[T, 3] h, int64[1] x", "y = Slice (h, z, x)", "int64[1] z = {0}")
    places = role("int64[N, 1] x", "y = Less (k, x)", "int64[6] k = {0, 1, 2, 3, 4, 5}")
    for found in (recurrent, cut, places):
        assert found is not None
        assert found.kind is RoleKind.INDEX
        assert found.low == 1
        assert [bound_size(top, sizes) for top in found.tops] == [7]


def test_classes_and_numbers() -> None:
    one_hot = role("int64[N] x", "y = OneHot (x, d, v)", "int64 d = {11}, float[2] v = {0, 1}")
    assert one_hot == InputRole(RoleKind.INDEX, 0, (11,))
    assert role("float[N] x", "y = Log (x)") == InputRole(RoleKind.POSITIVE)
    pixels = role("float[N, 3] x", "y = Div (x, k)", "float k = {255}")
    assert pixels == InputRole(RoleKind.PIXELS)


@pytest.mark.parametrize(
    "body",
    ["y = Relu (x)", "y = Div (x, k)", "y = Mul (x, k)", "a = Relu (x) y = Log (a)"],
)
def test_other_inputs_have_no_role(body: str) -> None:
    assert role("float[N, 3] x", body, "float k = {2}") is None


def test_an_integer_that_is_held_against_others_is_a_choice() -> None:
    body = "p = Equal (x, a) q = Equal (i, b) y = Or (p, q)"
    constants = "int64 a = {16000}, int64 b = {7}, int64 c = {3}"
    found = role("int64 x", f"i = Add (x, c) {body}", constants)
    assert found is not None
    assert found.kind is RoleKind.CHOICE
    assert sorted(found.choices) == [4, 16000]
    many = role("int64[N, T] x", f"i = Add (x, c) {body}", constants)
    assert many is None
    assert role("int64 x", "y = Equal (x, a)", "int64 a = {1}") == InputRole(RoleKind.MASK)

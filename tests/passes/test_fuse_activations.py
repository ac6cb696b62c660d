from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.passes.fuse_activations import FuseActivations
from onnxslim.records import Fidelity
from support import apply, assert_declines, assert_equivalent, assert_rewrites, parse

_CONSTANTS = """float zero = {0}, float half = {0.5}, float one = {1}, float two = {2},
    float three = {3}, float six = {6}, float sixth = {0.16666667}, float tenth = {0.1},
    float k = {0.7978846}, float c = {0.044715}, float root = {1.4142135}, float eps = {0.00001},
    float[8] g = {1, 2, 3, 4, 5, 6, 7, 8}, int64[1] last = {-1}"""


def model(body: str, opset: int = 17, shape: str = "[2, 8]") -> str:
    """A model in which `body` makes `y` of `x`, both of `shape`."""
    return f"""<opset_import: ["" : {opset}]>
        g (float{shape} x) => (float{shape} y) <{_CONSTANTS}> {{ {body} }}"""


def ops_after(text: str) -> list[str]:
    """Operators after the pass; outputs are compared and a second run changes nothing."""
    source = parse(text)
    result_model, _ = apply(FuseActivations(), source)
    assert_equivalent(source, result_model, Fidelity.CLOSE)
    assert apply(FuseActivations(), result_model)[1].changes == ()
    return [node.op_type for node in result_model.graph.node]


# ------------------------------------------------------------------------------ fires


def test_clipped_line_times_x_becomes_a_hard_sigmoid_and_a_mul() -> None:
    assert_rewrites(
        """<opset_import: ["" : 13]>
        g (float[2, 8] x) => (float[2, 8] y)
            <float three = {3}, float zero = {0}, float six = {6}> {
            a = Add (x, three)
            b = Clip (a, zero, six)
            c = Mul (x, b)
            y = Div (c, six)
        }""",
        FuseActivations(),
        """<opset_import: ["" : 13]>
        g (float[2, 8] x) => (float[2, 8] y) {
            b = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)
            y = Mul (x, b)
        }""",
    )


_HARD_SWISHES = [
    "a = Add (three, x) b = Clip (a, zero, six) d = Div (b, six) y = Mul (d, x)",
    "a = Add (x, three) r = Relu (a) b = Min (r, six) d = Mul (b, sixth) y = Mul (x, d)",
    "a = Mul (x, sixth) r = Add (a, half) b = Clip (r, zero, one) y = Mul (b, x)",
    "d = Div (x, six) a = Add (x, three) b = Clip (a, zero, six) y = Mul (d, b)",
    "b = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul (b, x)",
]


@pytest.mark.parametrize("body", _HARD_SWISHES)
def test_every_spelling_of_hard_swish_becomes_one_where_it_exists(body: str) -> None:
    assert ops_after(model(body, 14)) == ["HardSwish"]


@pytest.mark.parametrize("body", _HARD_SWISHES)
def test_every_spelling_of_hard_swish_becomes_two_nodes_before(body: str) -> None:
    assert sorted(ops_after(model(body, 13))) == ["HardSigmoid", "Mul"]


_GELU_TANH = [
    "p = Pow (x, three) q = Mul (p, c) s = Add (x, q) u = Mul (s, k) t = Tanh (u)"
    " v = Add (t, one) w = Mul (x, half) y = Mul (w, v)",
    "q = Mul (c, x) p = Mul (x, q) s = Mul (x, p) a = Add (x, s) u = Mul (k, a) t = Tanh (u)"
    " v = Add (one, t) w = Mul (half, v) y = Mul (x, w)",
    "q = Mul (x, c) p = Mul (q, x) s = Add (p, one) a = Mul (x, k) u = Mul (a, s) t = Tanh (u)"
    " v = Add (t, one) w = Mul (x, v) y = Mul (w, half)",
]


@pytest.mark.parametrize("body", _GELU_TANH)
def test_every_spelling_of_gelu_by_tanh(body: str) -> None:
    assert ops_after(model(body, 20)) == ["Gelu"]
    assert "Sigmoid" not in ops_after(model(body, 13))  # onnxruntime fuses what has a Tanh


@pytest.mark.parametrize(
    "body",
    [
        "d = Div (x, root) e = Erf (d) a = Add (e, one) m = Mul (x, a) y = Mul (m, half)",
        "d = Div (x, root) e = Erf (d) a = Add (e, one) h = Mul (half, x) y = Mul (h, a)",
        "d = Div (x, root) e = Erf (d) a = Add (one, e) h = Mul (a, half) y = Mul (h, x)",
    ],
)
def test_every_spelling_of_gelu_by_erf(body: str) -> None:
    assert ops_after(model(body, 20)) == ["Gelu"]
    assert "Erf" in ops_after(model(body, 17))  # onnxruntime has no Gelu there


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("t = Tanh (x) a = Add (t, one) y = Mul (a, half)", ["Mul", "Sigmoid"]),
        ("h = Mul (x, half) t = Tanh (h) m = Mul (t, half) y = Add (m, half)", ["Sigmoid"]),
        ("n = Neg (x) e = Exp (n) a = Add (e, one) y = Div (one, a)", ["Sigmoid"]),
        ("n = Neg (x) e = Exp (n) a = Add (e, one) y = Reciprocal (a)", ["Sigmoid"]),
        ("n = Neg (x) e = Exp (n) a = Add (one, e) y = Div (x, a)", ["Sigmoid", "Mul"]),
        ("e = Exp (x) a = Add (e, one) y = Log (a)", ["Softplus"]),
        ("r = Relu (x) y = Clip (r, zero, six)", ["Clip"]),
        ("r = Clip (x, half, six) y = Relu (r)", ["Clip"]),
        ("r = Clip (x, one, six) s = Max (r, two) y = Min (s, three)", ["Clip"]),
        ("y = Max (x, zero)", ["Relu"]),
        ("y = Clip (x, zero)", ["Relu"]),
        ("m = Mul (x, tenth) y = Max (x, m)", ["LeakyRelu"]),
        ("r = Relu (x) n = Neg (x) s = Relu (n) m = Mul (g, s) y = Sub (r, m)", ["PRelu"]),
        ("r = Relu (x) n = Neg (x) s = Relu (n) m = Mul (s, g) y = Add (m, r)", ["PRelu"]),
        ("e = Exp (x) s = ReduceSum (e, last) y = Div (e, s)", ["Softmax"]),
        (
            "m = ReduceMax <axes = [1]> (x) d = Sub (x, m) e = Exp (d) s = ReduceSum (e, last)"
            " y = Div (e, s)",
            ["Softmax"],
        ),
        ("a = Mul (x, two) y = HardSigmoid (a)", ["HardSigmoid"]),
    ],
)
def test_activation_gets_its_name(body: str, expected: list[str]) -> None:
    assert ops_after(model(body)) == expected


def test_mish_where_it_exists() -> None:
    body = "e = Exp (x) a = Add (e, one) s = Log (a) t = Tanh (s) y = Mul (t, x)"
    assert ops_after(model(body, 18)) == ["Mish"]
    assert ops_after(model(body, 17)) == ["Softplus", "Tanh", "Mul"]


@pytest.mark.parametrize("square", ["Mul (s, s)", "Pow (s, two)"])
@pytest.mark.parametrize("quotient", ["v = Div (s, r)", "i = Reciprocal (r) v = Mul (s, i)"])
@pytest.mark.parametrize("affine", [True, False])
def test_every_spelling_of_layer_normalization(square: str, quotient: str, affine: bool) -> None:
    body = f"""m = ReduceMean <axes = [-1]> (x) s = Sub (x, m) q = {square}
        w = ReduceMean <axes = [-1]> (q) e = Add (w, eps) r = Sqrt (e) {quotient}"""
    body += " a = Mul (v, g) y = Add (a, g)" if affine else " y = Neg (v)"
    left = ops_after(model(body))
    assert left == (["LayerNormalization"] if affine else ["LayerNormalization", "Neg"])
    assert "LayerNormalization" not in ops_after(model(body, 13))


_RMS = "w = ReduceMean <axes = [-1]> (q) e = Add (w, eps) r = Sqrt (e)"


@pytest.mark.parametrize("square", ["Mul (x, x)", "Pow (x, two)"])
@pytest.mark.parametrize(
    "scaled",
    [
        "v = Div (x, r) y = Mul (v, g)",
        "i = Reciprocal (r) v = Mul (i, x) y = Mul (g, v)",
        "i = Div (one, r) v = Mul (x, i) y = Mul (v, g)",
        "i = Reciprocal (r) v = Mul (g, i) y = Mul (v, x)",
    ],
)
def test_every_spelling_of_rms_normalization_is_the_one_that_is_fused(
    square: str, scaled: str
) -> None:
    left = ops_after(model(f"q = {square} {_RMS} {scaled}", 17))
    fused = ["Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]
    assert left in (fused, [*fused, "Mul"])  # 1/r as a factor is fused as well


def test_rms_normalization_where_it_exists() -> None:
    body = "q = Mul (x, x) w = ReduceMean (q, last) e = Add (w, eps) r = Sqrt (e) v = Div (x, r)"
    assert ops_after(model(f"{body} y = Mul (v, g)", 23)) == ["RMSNormalization"]
    assert ops_after(model(f"{body} y = Neg (v)", 23)) == ["RMSNormalization", "Neg"]


def test_the_mean_may_be_subtracted_twice() -> None:
    body = """m = ReduceMean <axes = [-1]> (x) s = Sub (x, m) t = Sub (x, m) q = Pow (s, two)
        w = ReduceMean <axes = [-1]> (q) e = Add (w, eps) r = Sqrt (e) v = Div (t, r)
        a = Mul (v, g) y = Add (a, g)"""
    assert ops_after(model(body)) == ["LayerNormalization"]


@pytest.mark.parametrize("square", ["Mul (x, x)", "Pow (x, two)"])
def test_root_of_a_sum_of_squares_is_a_norm(square: str) -> None:
    body = f"q = {square} s = ReduceSum (q, last) r = Sqrt (s) y = Div (x, r)"
    assert ops_after(model(body)) == ["ReduceL2", "Div"]


def test_sum_over_a_known_size_divided_by_it_is_a_mean() -> None:
    eighth = model("s = ReduceSum (x, last) d = Div (s, eight) y = Sub (x, d)")
    text = eighth.replace("float zero", "float eight = {8}, float zero")
    assert ops_after(text) == ["ReduceMean", "Sub"]


# ------------------------------------------------------------------------------ declines


@pytest.mark.parametrize(
    "body",
    [
        "a = Add (x, two) b = Clip (a, zero, six) d = Mul (x, b) y = Div (d, three)",
        "a = Add (x, three) b = Clip (a, one, six) y = Div (b, six)",
        "a = Add (x, three) b = Clip (a, zero, six) d = Mul (x, b) f = Sub (d, six) y = Div (f, x)",
        "t = Tanh (x) a = Add (t, half) y = Mul (a, half)",
        "e = Exp (x) a = Add (e, two) y = Log (a)",
        "e = Exp (x) s = ReduceSum <keepdims = 0> (e) y = Div (e, s)",
        "m = Mul (x, two) y = Max (x, m)",
        "r = Relu (x) n = Mul (x, two) s = Relu (n) m = Mul (g, s) y = Sub (r, m)",
        "s = ReduceSum (x, last) d = Div (s, six) y = Sub (x, d)",
        "s = Sigmoid (x) y = Mul (x, s)",
    ],
)
def test_what_only_looks_similar_stays(body: str) -> None:
    assert_declines(model(body), FuseActivations())


def test_interior_tensor_with_another_user_stays() -> None:
    body = "t = Tanh (x) a = Add (t, one) b = Mul (a, half) y = Sub (b, a)"
    assert_declines(model(body), FuseActivations(), "used elsewhere")


def test_interior_tensor_that_is_an_output_stays() -> None:
    text = model("e = Exp (x) a = Add (e, one) y = Log (a)")
    text = text.replace("[2, 8] y)", "[2, 8] y, float[2, 8] a)")
    assert_declines(text, FuseActivations(), "used elsewhere")


def test_types_without_a_kernel_stay() -> None:
    text = model("a = Add (x, three) b = Clip (a, zero, six) y = Div (b, six)")
    assert_declines(text.replace("float", "double"), FuseActivations())


def test_a_relu_made_before_a_clip_goes_into_it_where_onnxruntime_does_not_load_both() -> None:
    text = model("r = Clip (x, zero) i = Identity (six) y = Clip (r, zero, i)", 13)
    assert ops_after(text.replace("float", "double")) == ["Identity", "Clip"]
    assert ops_after(text) == ["Relu", "Identity", "Clip"]
    two = model("r = Max (x, zero) y = Max (r, zero)", 13)
    assert ops_after(two.replace("float", "double")) == ["Relu"]


def test_softmax_over_another_axis_stays_where_softmax_flattens() -> None:
    body = "e = Exp (x) s = ReduceSum <axes = [0]> (e) y = Div (e, s)"
    assert_declines(model(body, 11), FuseActivations())


def test_constant_that_adds_dimensions_stays() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[2] x) => (float[1, 2] y) <float[1, 1] zero = {0}> { y = Max (x, zero) }"""
    assert_declines(text, FuseActivations())


@pytest.mark.parametrize(
    "body",
    [
        f"q = Mul (x, x) {_RMS} v = Div (x, r) a = Mul (v, g) y = Add (a, r)",  # the root is used
        f"q = Mul (x, x) {_RMS} v = Div (g, r) y = Mul (v, g)",  # not of x
        "q = Mul (x, x) w = ReduceMean <axes = [0]> (q) e = Add (w, eps) r = Sqrt (e)"
        " v = Div (x, r) y = Mul (v, g)",
        "d = Mul (x, sixth) e = Erf (d) a = Add (e, one) m = Mul (x, a) y = Mul (m, half)",
    ],
)
def test_what_is_nearly_an_operator_keeps_its_spelling(body: str) -> None:
    assert_declines(model(body, 17), FuseActivations())


def test_layer_normalization_of_unknown_size_stays() -> None:
    body = """m = ReduceMean <axes = [-1]> (x) s = Sub (x, m) q = Mul (s, s)
        w = ReduceMean <axes = [-1]> (q) e = Add (w, eps) r = Sqrt (e) y = Div (s, r)"""
    assert_declines(model(body, shape="[2, N]"), FuseActivations())


# ------------------------------------------------------------------------------ edges


def test_clip_of_old_opsets_has_attributes() -> None:
    assert_rewrites(
        model("a = Clip <min = 1.0, max = 9.0> (x) b = Clip <min = 2.0> (a) y = Relu (b)", 10),
        FuseActivations(),
        model("y = Clip <min = 2.0, max = 9.0> (x)", 10),
    )


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_axes_are_written_as_the_opset_wants_them(opset: int) -> None:
    axes = " <axes = [-1]> (q)" if opset < 13 else " (q, last)"
    body = f"q = Mul (x, x) s = ReduceSum{axes} r = Sqrt (s) y = Div (x, r)"
    assert ops_after(model(body, opset)) == ["ReduceL2", "Div"]


def test_gate_of_another_tensor_keeps_it() -> None:
    body = "a = Add (x, three) b = Clip (a, zero, six) s = Abs (x) d = Mul (s, b) y = Div (d, six)"
    assert ops_after(model(body)) == ["Abs", "HardSigmoid", "Mul"]


def test_x_that_is_itself_a_shifted_tensor_is_kept_for_the_gate() -> None:
    body = """n = Neg (x) z = Add (n, half)
        a = Add (z, three) b = Clip (a, zero, six) d = Mul (z, b) y = Div (d, six)"""
    assert ops_after(model(body)) == ["Neg", "Add", "HardSwish"]


def test_output_keeps_its_name_in_a_body() -> None:
    text = """<opset_import: ["" : 17]>
        g (bool b, float[2] x) => (float[2] y) <float one = {1}> {
            y = If (b) <
                then_branch = t () => (float[2] p) { e = Exp (x) a = Add (e, one) p = Log (a) },
                else_branch = e () => (float[2] q) { q = Relu (x) }
            >
        }"""
    source = parse(text)
    result_model, result = apply(FuseActivations(), source)
    assert result.changed
    assert_equivalent(source, result_model, Fidelity.CLOSE)


# ------------------------------------------------------------------------------ any algebra


@settings(max_examples=60, deadline=None)
@given(
    inner=st.lists(st.sampled_from(["Mul", "Add", "Sub", "Div", "Neg"]), max_size=3),
    clamps=st.lists(st.sampled_from(["Clip", "Relu", "Max", "Min"]), min_size=1, max_size=3),
    seed=st.integers(0, 10_000),
    gated=st.booleans(),
    exact=st.booleans(),
)
def test_any_clipped_line_keeps_its_values(
    inner: list[str], clamps: list[str], seed: int, gated: bool, exact: bool
) -> None:
    rng = np.random.default_rng(seed)
    lines: list[str] = []
    name = "x"
    for number, op in enumerate([*inner, *clamps]):
        low, high = sorted(rng.uniform(-2, 2, 2))
        first, second = (f"u{number}", f"v{number}")
        lines.append(f"{first} = Constant <value_float = {low:.4f}> ()")
        lines.append(f"{second} = Constant <value_float = {high + 0.5:.4f}> ()")
        operands = {
            "Neg": name,
            "Relu": name,
            "Clip": f"{name}, {first}, {second}",
            "Min": f"{second}, {name}",
        }.get(op, f"{name}, {first}")
        lines.append(f"r{number} = {op} ({operands})")
        name = f"r{number}"
    if exact:  # a range that becomes [0, 1]
        lines.append(f"cut = Clip ({name}, zero, six) unit = Div (cut, six)")
        name = "unit"
    lines.append(f"y = Mul ({name}, x)" if gated else f"y = Identity ({name})")
    source = parse(model(" ".join(lines)))
    result_model, _ = apply(FuseActivations(), source)
    assert_equivalent(source, result_model, Fidelity.CLOSE, seed)
    assert len(result_model.graph.node) <= len(source.graph.node)

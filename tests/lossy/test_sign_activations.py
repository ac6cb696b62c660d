"""Inputs of layers as signs times a scale: which of them, and what the model then returns."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from layer_nets import Given, context, net, node, normal, outputs, residual_net, samples

from onnxslim.analysis.layers import weight_layers
from onnxslim.io.check import check_model
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.lossy.sign_activations import signed_inputs
from onnxslim.records import PassResult
from support import parse

X = samples(200, 6)
FIRST = "its input stays: no layer lies between it and the inputs of the graph"


def signed(source: Model | onnx.ModelProto, x: Given | None) -> tuple[Model, PassResult]:
    """The model with signs in front of all layers that take them."""
    model = source if isinstance(source, Model) else Model.load(source)
    infer_shapes(model)
    result = signed_inputs(model.graph, weight_layers(model.graph)[0], context(model, x))
    check_model(model)
    return model, result


def two_layers(
    *between: onnx.NodeProto, dtype: type = np.float32, **constants: np.ndarray
) -> onnx.ModelProto:
    """MatMul, what lies between `h` and `v`, MatMul; weights `w0` and `w1`."""
    nodes = [node("MatMul", ["x", "w0"], "h"), *between, node("MatMul", ["v", "w1"], "y")]
    weights = {"w0": normal(6, 8), "w1": normal(8, 4, seed=2), **constants}
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return net(nodes, {n: w.astype(dtype) for n, w in weights.items()}, ["N", 6], dtype=kind)


def relu_net(dtype: type = np.float32) -> onnx.ModelProto:
    return two_layers(node("Relu", ["h"], "v"), dtype=dtype)


def ops(model: Model) -> list[str]:
    return [item.op for item in model.graph.nodes]


# ------------------------------------------------------------------- fires


@pytest.mark.parametrize("has_data", [False, True], ids=["no data", "data"])
def test_a_layer_reads_signs_times_the_mean_magnitude_of_what_is_not_zero(has_data: bool) -> None:
    model, result = signed(relu_net(), X if has_data else None)
    v = np.maximum(X @ normal(6, 8), 0)
    scale = v[v > 0].mean() if has_data else 1.0
    wanted = (scale * np.sign(v)) @ normal(8, 4, seed=2)  # Sign(0) = 0
    np.testing.assert_allclose(outputs(model, X)["y"], wanted, rtol=2e-3, atol=2e-3)
    assert ops(model) == ["MatMul", "Relu", "Div", "Sign", "Mul", "MatMul"]
    assert [(item.node, item.what) for item in result.changes] == [
        ("y", f"its input as signs times {scale:.3g}")
    ]
    assert [(item.node, item.why) for item in result.skips] == [("h", FIRST)]


def test_no_other_number_is_nearer_to_the_input() -> None:
    model, _ = signed(relu_net(), X)
    (scale,) = (n.inputs[1].values for n in model.graph.nodes if n.op == "Mul")
    v = np.maximum(X @ normal(6, 8), 0).astype(np.float64)
    errors = [np.square(v - k * float(scale) * np.sign(v)).sum() for k in (0.99, 1.0, 1.01)]
    assert errors[1] == min(errors)


def test_half_precision_stays_half_precision() -> None:
    model, _ = signed(relu_net(np.float16), X.astype(np.float16))
    added = [n for n in model.graph.nodes if n.op in ("Div", "Sign", "Mul")]
    assert {t.dtype for n in added for t in (*n.inputs, *n.outputs)} == {np.dtype(np.float16)}
    assert outputs(model, X.astype(np.float16))["y"].dtype == np.float16


def test_layers_share_the_signs_of_an_input_and_other_nodes_keep_the_input() -> None:
    nodes = [
        node("MatMul", ["x", "w0"], "a"),
        node("MatMul", ["a", "w1"], "b"),
        node("MatMul", ["a", "w2"], "c"),
        node("Sum", ["a", "b", "c"], "y"),
    ]
    weights = {f"w{i}": normal(6, 6, seed=i, scale=0.4) for i in range(3)}
    model, result = signed(net(nodes, weights, ["N", 6]), X)
    assert sorted(ops(model)) == ["Div", *["MatMul"] * 3, "Mul", "Sign", "Sum"]
    assert [change.node for change in result.changes] == ["b", "c"]
    a = X @ weights["w0"]
    signs = np.abs(a).mean() * np.sign(a)
    wanted = a + signs @ weights["w1"] + signs @ weights["w2"]
    np.testing.assert_allclose(outputs(model, X)["y"], wanted, rtol=2e-3, atol=5e-3)


def test_a_sum_behind_a_layer_is_signed_where_a_layer_reads_it() -> None:
    model, result = signed(residual_net(), X)
    assert [change.node for change in result.changes] == ["b", "c", "y"]
    (total,) = (n for n in model.graph.nodes if n.op == "Add")
    assert [t.inputs[0].op for t in total.inputs] == ["MatMul", "Relu"]


# ------------------------------------------------------------------- declines


@pytest.mark.parametrize(
    "prepared",
    [
        "p = Identity (x)",
        "p = Sub (x, mean)",
        "q = Div (x, mean) p = Transpose <perm = [1, 0]> (q)",
        "q = Relu (x) s = Sign (q) p = Mul (s, mean)",
    ],
)
def test_the_first_layer_keeps_its_input_however_that_is_prepared(prepared: str) -> None:
    model = parse(
        f"""<opset_import: ["" : 17]> g (float[6, 6] x) => (float[6, 4] y)
            <float mean = {{2.0}}, float[6, 4] w = {{{", ".join(map(str, range(24)))}}}> {{
            {prepared}
            y = MatMul (p, w)
        }}"""
    )
    found, result = signed(model, X[:6][None])
    assert not result.changed
    assert [item.why for item in result.skips] == [FIRST]
    assert len(found.graph.nodes) == len(model.graph.node)


def test_a_layer_behind_a_coded_one_is_not_the_first() -> None:
    nodes = [
        node("Mul", ["a", "b"], "w"),
        node("MatMul", ["x", "w"], "h"),
        node("MatMul", ["h", "v"], "y"),
    ]
    weights = {"a": normal(6, 8), "b": normal(6, 8, seed=3), "v": normal(8, 4)}
    assert [change.node for change in signed(net(nodes, weights, ["N", 6]), X)[1].changes] == ["y"]


@pytest.mark.parametrize(
    "between",
    [
        [node("Sign", ["h"], "v")],
        [node("Sign", ["h"], "s"), node("Mul", ["s", "k"], "v")],
        [node("Sign", ["h"], "s"), node("Mul", ["k", "s"], "m"), node("Identity", ["m"], "v")],
    ],
)
def test_signs_are_not_taken_of_signs(between: list[onnx.NodeProto]) -> None:
    source = two_layers(*between, k=np.float32([3]))
    _, result = signed(source, X)
    assert not result.changed
    assert [item.why for item in result.skips] == [FIRST, "its input stays: it is a sign already"]


def test_signs_times_other_values_are_no_signs() -> None:
    source = two_layers(node("Sign", ["h"], "s"), node("Mul", ["s", "h"], "v"))
    assert [change.node for change in signed(source, X)[1].changes] == ["y"]


def test_an_input_that_is_always_zero_stays() -> None:
    source = two_layers(node("Sub", ["h", "h"], "v"))
    _, result = signed(source, X)
    assert [item.why for item in result.skips][1:] == ["its input stays: it is zero in all samples"]


def test_recurrent_layers_keep_their_inputs() -> None:
    source = parse(
        """<opset_import: ["" : 17]> g (float[3, 2, 4] x) => (float[3, 1, 2, 5] y)
            <float[4, 4] k, float[1, 5, 4] w, float[1, 5, 5] r> {
            h = MatMul (x, k)
            y = RNN <hidden_size = 5> (h, w, r)
        }""".replace("float[4, 4] k, float[1, 5, 4] w, float[1, 5, 5] r", _values())
    )
    _, result = signed(source, None)
    assert not result.changed
    assert "its input stays: the operator makes its own hidden states" in {
        item.why for item in result.skips
    }


def _values() -> str:
    shapes = {"k": (4, 4), "w": (1, 5, 4), "r": (1, 5, 5)}
    return ", ".join(
        f"float[{','.join(map(str, shape))}] {name} = "
        f"{{{', '.join(['0.5'] * int(np.prod(shape)))}}}"
        for name, shape in shapes.items()
    )


@pytest.mark.parametrize("has_data", [False, True], ids=["no data", "data"])
def test_in_bodies_there_is_no_scale_to_measure(has_data: bool) -> None:
    source = parse(
        """<opset_import: ["" : 17]> g (float[2, 4] x, bool c) => (float[2, 4] y)
            <float[4, 4] w = {1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4}> {
            h = MatMul (x, w)
            y = If (c) <
                then_branch = t () => (float[2, 4] r) { i = Relu (h) r = MatMul (i, w) },
                else_branch = e () => (float[2, 4] s) { s = MatMul (h, w) }
            >
        }"""
    )
    x = {"x": normal(2, 4), "c": np.array(True)}
    model, result = signed(source, [x] if has_data else None)
    changed = {change.node.split("/")[-1] for change in result.changes}
    assert changed == ({"s"} if has_data else {"r", "s"})
    wanted = np.maximum(x["x"] @ np.tile(np.float32([1, 2, 3, 4]), (4, 1)), 0)
    if not has_data:
        wanted = np.sign(wanted)
    wanted = wanted @ np.tile(np.float32([1, 2, 3, 4]), (4, 1))
    np.testing.assert_allclose(outputs(model, x)["y"], wanted, rtol=1e-5)

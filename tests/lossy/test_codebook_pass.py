"""What all passes that store codes do alike: every kind of layer, bytes, data, declining."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from cases import case
from coded_nets import KINDS, X, coded, dense, with_values
from layer_nets import (
    context,
    dense_net,
    net,
    node,
    normal,
    output_error,
    outputs,
    rewritten,
    weights_of,
    whats,
    whys,
)

import onnxslim
from onnxslim.codebook.nodes import codebook_nodes
from onnxslim.io.check import check_model
from onnxslim.io.model import Model
from onnxslim.passes.binarize_weights import BinarizeWeights
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.stats import measure_stats
from onnxslim.records import Fidelity

pytestmark = pytest.mark.slow

SPECS = [
    "binarize-weights",
    "binarize-weights:bases=3",
    "ternarize-weights",
    "ternarize-weights:per=tensor:symmetric=false",
    "quantize-power-of-two",
    "quantize-power-of-two:bits=3",
    "quantize-fixed-point:fl=2",
    "quantize-fixed-point:il=4:fl=8",
]
WITH_ZERO = [spec for spec in SPECS if not spec.startswith("binarize")]
EVERY_SPEC = pytest.mark.parametrize("spec", SPECS)
DATA = pytest.mark.parametrize("has_data", [False, True], ids=["no data", "data"])


# ------------------------------------------------------------------- fires


@EVERY_SPEC
@DATA
def test_every_kind_of_layer_is_stored_in_fewer_bytes_and_runs(spec: str, has_data: bool) -> None:
    for kind in KINDS:
        if "il=4" in spec and kind in ("float16", "depthwise Conv"):
            continue  # 16-bit integers take no fewer bytes
        with case(kind):
            assert_stored_in_fewer_bytes_and_runs(spec, kind, has_data=has_data)


def assert_stored_in_fewer_bytes_and_runs(spec: str, kind: str, *, has_data: bool) -> None:
    source, x = KINDS[kind]()
    model, (report,) = rewritten(source, x if has_data else None, spec)
    assert len(whats([report])) == 1, whys([report])
    assert report.fidelity is Fidelity.LOSSY
    check_model(model)
    assert len(coded(model)) == 1
    assert output_error(source, model, x) < 0.7
    before, after = measure_stats(Model.load(source)), measure_stats(model)
    assert after.initializer_bytes < before.initializer_bytes
    assert after.macs == before.macs
    again, (second,) = rewritten(model, x if has_data else None, spec)
    assert whats([second]) == []
    assert "its weight is a codebook (Lookup)" in whys([second])
    assert again.to_bytes() == model.to_bytes()


@EVERY_SPEC
def test_outputs_are_those_of_the_dense_values(spec: str) -> None:
    source = dense()
    model, _ = rewritten(source, X, spec)
    same = with_values(source, coded(model))
    np.testing.assert_array_equal(outputs(model, X)["y"], outputs(same, X)["y"])


@EVERY_SPEC
def test_feedback_beats_plain_rounding_on_correlated_inputs(spec: str) -> None:
    source = dense(60)
    plain, _ = rewritten(source, None, spec)
    fitted, _ = rewritten(source, X, spec)
    assert output_error(source, fitted, X) < 0.6 * output_error(source, plain, X)


@EVERY_SPEC
def test_the_error_that_is_reported_is_that_of_the_output(spec: str) -> None:
    source = dense()
    model, reports = rewritten(source, X, spec)
    said = float(whats(reports)[0].rpartition(" ")[2])
    assert said == pytest.approx(output_error(source, model, X), rel=0.06, abs=1e-6)


@EVERY_SPEC
def test_the_bias_keeps_the_mean_output(spec: str) -> None:
    source, x = KINDS["Conv"]()
    model, _ = rewritten(source, x, spec)
    ref, new = (outputs(m, x)["y"].mean(axis=(0, 2, 3)) for m in (source, model))
    np.testing.assert_allclose(new, ref, atol=1e-4)


@EVERY_SPEC
def test_later_layers_make_up_for_earlier_ones(spec: str) -> None:
    source = dense_net(24, 40, 40, 40)
    errors = [
        output_error(source, rewritten(source, X, spec + more)[0], X)
        for more in ("", ":aim=own", ":sequential=false")
    ]
    assert errors[0] < 1.02 * min(errors[1:])


@pytest.mark.parametrize("spec", WITH_ZERO)
@DATA
def test_zeros_stay_zero(spec: str, has_data: bool) -> None:
    weight = normal(24, 60)
    weight[np.abs(weight) < 0.5] = 0
    source = with_values(dense(60), {"w": weight})
    model, _ = rewritten(source, X if has_data else None, spec)
    (values,) = coded(model).values()
    assert not values[weight == 0].any()
    assert values.any()


@EVERY_SPEC
@DATA
def test_a_repeat_gives_the_same_bytes(spec: str, has_data: bool) -> None:
    x = X if has_data else None
    made = [rewritten(dense_net(24, 40, 30), x, spec)[0].to_bytes() for _ in range(2)]
    assert made[0] == made[1]


@EVERY_SPEC
def test_simplify_leaves_the_result_alone(spec: str) -> None:
    source, x = KINDS["Gemm"]()
    model, _ = rewritten(source, x, spec)
    simple, _ = onnxslim.compress(model.to_bytes(), passes="simplify", measure=False)
    assert coded(simple).keys() == coded(model).keys()
    np.testing.assert_allclose(outputs(simple, x)["y"], outputs(model, x)["y"], rtol=1e-5)


@EVERY_SPEC
def test_a_weight_in_a_branch_is_stored(spec: str) -> None:
    numbers = ", ".join(f"{v:g}" for v in normal(400))
    source = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 20] x, bool c) => (float[N, 20] y) {{
            y = If (c) <
                then_branch = t () => (float[N, 20] r)
                    <float[20, 20] w = {{{numbers}}}> {{ r = MatMul (x, w) }},
                else_branch = e () => (float[N, 20] r) {{ r = Identity (x) }}
            >
        }}"""
    )
    model, reports = rewritten(source, None, spec)
    assert len(whats(reports)) == 1
    assert len(coded(model)) == 1
    check_model(model)
    feeds = {"x": X[:3, :20], "c": np.array(True)}
    assert output_error(source, model, feeds) < 0.6


@EVERY_SPEC
def test_only_and_skip_choose_layers(spec: str) -> None:
    source = dense_net(24, 40, 40)
    for more, left in ((":only=h0", "y"), (":skip=h0", "h0")):
        model, _ = rewritten(source, None, spec + more)
        assert list(weights_of(model)) == [left]


def test_the_ir_version_is_raised_and_the_report_says_so() -> None:
    source = dense()
    source.ir_version = 6
    model, reports = rewritten(source, None, "ternarize-weights")
    assert model.graph.ir_version == 8
    assert any("IR version raised from 6 to 8" in what for what in whats(reports))


# ------------------------------------------------------------------- declines


@EVERY_SPEC
def test_a_weight_whose_codes_would_take_as_many_bytes_is_left(spec: str) -> None:
    source = dense(4, 4)
    model, reports = rewritten(source, None, spec)
    assert whats(reports) == []
    assert "the weight takes 64" in whys(reports)[0]
    assert model.to_bytes() == Model.load(source).to_bytes()


@pytest.mark.parametrize("spec", [*SPECS[:-1], "cluster-weights"])
def test_an_old_opset_is_raised_as_far_as_codes_need(spec: str) -> None:
    source = net([node("MatMul", ["x", "w"], "y")], {"w": normal(24, 40)}, ["N", 24], opset=9)
    model, reports = rewritten(source, None, spec)
    assert f"opset raised from 9 to {model.graph.opset}: codebooks need it" in whats(reports)
    assert model.graph.opset in (10, 11)


@pytest.mark.parametrize("spec", [*SPECS[:-1], "cluster-weights"])
def test_an_old_opset_that_cannot_be_raised_is_declined_with_the_reason(spec: str) -> None:
    nodes = [node("MatMul", ["x", "w"], "a"), node("Dropout", ["a"], "y")]
    nodes[1].output.append("mask")
    source = net(nodes, {"w": normal(24, 40)}, ["N", 24], opset=9)
    mask = onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, ["N", 40])
    source.graph.output.append(mask)
    model, reports = rewritten(source, None, spec)
    assert whats(reports) == []
    (why,) = whys(reports)
    assert why.startswith("codebooks need opset 1")
    assert "its opset is 9" in why
    assert "`y` (Dropout): its mask is used" in why
    assert model.to_bytes() == Model.load(source).to_bytes()


@pytest.mark.parametrize("spec", [*SPECS, "cluster-weights"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_declined(spec: str, value: float) -> None:
    weight = normal(24, 40)
    weight[3, 5] = value
    source = with_values(dense(), {"w": weight})
    _, reports = rewritten(source, None, spec)
    assert whats(reports) == []
    assert whys(reports) == ["it has values that are not finite"]


@pytest.mark.parametrize("spec", [*SPECS, "cluster-weights"])
def test_weights_of_another_float_type_are_declined(spec: str) -> None:
    weight = onnx.helper.make_tensor(
        "w", onnx.TensorProto.BFLOAT16, [24, 40], normal(24, 40).reshape(-1).tolist()
    )
    graph = onnx.helper.make_graph(
        [node("MatMul", ["x", "w"], "y")],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.BFLOAT16, ["N", 24])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.BFLOAT16, ["N", 40])],
        [weight],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = Model.load(onnx.helper.make_model(graph, ir_version=8, opset_imports=opsets))
    result = parse_pipeline(spec).passes[0].run(model.graph, context(model, None))
    assert not result.changed
    assert "bfloat16" in result.skips[0].why


def test_a_weight_shared_with_a_layer_that_is_not_selected_is_left() -> None:
    source, x = KINDS["a shared weight"]()
    _, reports = rewritten(source, x, "binarize-weights:only=h")
    assert whats(reports) == []
    assert "shares its weight with `y`" in whys(reports)[0]


def test_a_weight_that_is_an_output_is_left() -> None:
    source = dense()
    source.graph.output.append(
        onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [24, 40])
    )
    _, reports = rewritten(source, None, str(BinarizeWeights()))
    assert whats(reports) == []
    assert whys(reports) == ["it is an output of a graph"]


def test_a_shared_weight_gives_one_lookup() -> None:
    source, x = KINDS["a shared weight"]()
    for spec in SPECS:
        model, _ = rewritten(source, x, spec)
        (made,) = codebook_nodes(model.graph)
        assert len(made.outputs[0].outputs) == 2

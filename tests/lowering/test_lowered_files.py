"""Files of every pass, for every target: an independent reader finds nothing that it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import onnx
import pytest
from layer_nets import net, node, normal, rewritten, samples
from recurrent_nets import BATCH, STEPS, WIDTH, recurrent_net
from target_rules import BROKEN, broken

from onnxslim.io.model import Model
from onnxslim.lowering.obstacles import obstacles
from onnxslim.lowering.run import lower
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.targets import Trait, target_of, targets
from onnxslim.records import Fidelity
from onnxslim.runtime.evaluate import evaluate
from support import parse, run

X = samples(16, 2, 6, 6)
FORMS = (
    "prune-weights:ratio=0.97:criterion=magnitude",
    "cluster-weights:values=16",
    "binarize-weights",
    "ternarize-weights",
    "quantize-power-of-two",
    "quantize-fixed-point",
    "quantize-weights:bits=8:form=native",
    "quantize-weights:bits=8:form=folded",
    "quantize-weights:bits=4:form=dequantize",
    "quantize-weights:bits=4:form=folded",
    "quantize-weights:bits=4:form=matmul-nbits",
    "quantize-weights:bits=8:form=matmul-nbits",
    "quantize-weights:bits=4:form=matmul-nbits:symmetric=false",
    "quantize-weights:bits=8:form=dequantize:symmetric=false",
    "quantize-int8:placement=all:activation-ranges=static",
    "quantize-int8:placement=all:activation-ranges=dynamic",
    "convert-fp16",
    "convert-fp16:compute=float16",
    "raise-opset:to=23",
)


@cache
def source() -> onnx.ModelProto:
    """Conv and two products; 36 columns are no multiple of 16."""
    nodes = [
        node("Conv", ["x", "k", "c"], "f", pads=[1, 1, 1, 1]),
        node("Relu", ["f"], "r"),
        node("Flatten", ["r"], "v"),
        node("Gemm", ["v", "w", "b"], "h"),
        node("Relu", ["h"], "g"),
        node("MatMul", ["g", "u"], "y"),
    ]
    weights = {
        "k": normal(4, 2, 3, 3, scale=0.3),
        "c": normal(4),
        "w": normal(144, 36, scale=0.1),
        "b": normal(36),
        "u": normal(36, 40, scale=0.1),
    }
    return net(nodes, weights, ["N", 2, 6, 6])


@cache
def made(form: str) -> Model:
    model, (*_, step) = rewritten(source(), X, form)
    assert step.changes, [skip.why for skip in step.skips]
    return model


def error(model: onnx.ModelProto, reference: onnx.ModelProto) -> float:
    """‖y − reference‖ / ‖reference‖, with onnxruntime's optimisations off."""
    (y,), (ref,) = (run(item, {"x": X}) for item in (model, reference))
    return float(np.linalg.norm(y - ref) / np.linalg.norm(ref))


@pytest.mark.parametrize("form", FORMS)
def test_no_rule_of_any_target_is_broken(form: str) -> None:
    written = made(form).to_proto()
    for name in BROKEN:
        model, target = made(form).clone(), target_of(name)
        result = lower(model, target, Context(evaluate=evaluate, model=model))
        lowered = model.to_proto()
        onnx.checker.check_model(lowered)
        assert broken(lowered, name) == [], name
        if "QuantizeLinear" not in {n.op_type for n in written.graph.node}:
            # the same numbers in another form; MatMulNBits, and ranges of run time, round inputs
            is_rounded = "nbits" in form or "dynamic" in form or "symmetric=false" in form
            assert error(lowered, written) < (0.05 if is_rounded else 1e-5), name
        elif result.changed:
            assert result.fidelity is Fidelity.LOSSY
            assert error(lowered, written) < 0.1, name


def test_the_rules_find_what_the_passes_write() -> None:
    """The reader is no better than what it can see: each rule fires on some file."""
    fired = {
        rule
        for form in (*FORMS[:2], *FORMS[8:16], "convert-fp16:compute=float16")
        for rules in BROKEN.values()
        for rule in rules
        if rule(made(form).to_proto())
    }
    silent = {rule.__name__ for rules in BROKEN.values() for rule in rules if rule not in fired}
    # blocks that are not whole are never written; no form here has an If or a high opset
    assert silent == {"uneven", "misread", "rule"}


@pytest.mark.parametrize("name", ["openvino", "tract", "tensorrt", "portable"])
@pytest.mark.parametrize("form", FORMS[8:15:3])
def test_passes_know_the_target(name: str, form: str) -> None:
    model, (step, _) = rewritten(source(), X, form, f"retarget:to={name}")
    assert broken(model.to_proto(), name) == []
    declined = [skip.why for skip in step.skips if f"the target {name}" in skip.why]
    assert step.changes or declined, [skip.why for skip in step.skips]


def test_the_table_says_of_every_trait_how_it_is_known() -> None:
    for target in targets().values():
        assert set(target.facts) == set(Trait)
        assert all(fact.source for fact in target.facts.values())
        assert list(obstacles(made("convert-fp16").graph, target_of("onnxruntime"))) == []


@pytest.mark.parametrize(
    ("form", "name", "why"),
    [
        ("cluster-weights", "tensorrt", "operators that compute weights from codes"),
        ("convert-fp16:compute=float16", "tract", "arithmetic in float16"),
        ("quantize-int8:placement=all", "mnn", "QuantizeLinear and DequantizeLinear"),
        ("quantize-weights:bits=4", "opencv", "codes of 4 bits"),
    ],
)
def test_a_pass_declines_with_the_target_as_the_reason(form: str, name: str, why: str) -> None:
    model, (step, _) = rewritten(source(), X, form, f"retarget:to={name}")
    assert not step.changes
    assert any(f"the target {name} takes no {why}" in skip.why for skip in step.skips)
    assert error(model.to_proto(), source()) < 1e-6


def test_what_a_step_saves_is_measured_as_the_target_gets_it() -> None:
    """Zeros save nothing where a file cannot be sparse."""
    texts: Mapping[str, str] = {"onnxruntime": "", "openvino": ",retarget:to=openvino"}
    sizes = {}
    for name, end in texts.items():
        _, (step, *_) = rewritten(source(), X, f"prune-weights:ratio=0.97{end}")
        assert step.stats is not None
        sizes[name] = step.stats.file_bytes
    assert sizes["onnxruntime"] < 0.3 * sizes["openvino"]


@pytest.mark.parametrize("columns", [100, 500, 90, 33])
@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_of_dequantize_linear_divide_the_axis(columns: int, bits: int) -> None:
    weights = {"w": normal(columns, 40)}
    model = net([node("MatMul", ["x", "w"], "y")], weights, ["N", columns])
    for form in ("native", "dequantize", "auto"):
        text = f"quantize-weights:bits={bits}:block=32:form={form}"
        written, _ = rewritten(model, None, text)
        assert broken(written.to_proto(), "openvino") == [] or written.graph.local_functions
        for rule in BROKEN["openvino"][3:5]:
            assert rule(written.to_proto()) == []


@pytest.mark.parametrize("used", [True, False])
def test_operators_with_several_outputs_are_moved_to_float32(used: bool) -> None:
    """Outputs of the model keep their types; others are read in float32."""
    text = f"""<opset_import: ["" : 17]>
        g (float16[2, 6] x) => (float16[2, 3] y, int64[2, 3] z{", float16[2, 3] w" if used else ""})
            <int64[1] k = {{3}}> {{
            y, i = TopK (x, k)
            z = Identity (i)
            {"w = Add (y, y)" if used else ""}
        }}"""
    model = parse(text)
    written, _ = rewritten(model, None, "retarget:to=tract")
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 6)).astype(np.float16)}
    for a, b in zip(run(model, feeds), run(written.to_proto(), feeds), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3)


def test_a_body_in_float16_is_named_and_left_as_it_is() -> None:
    text = """<opset_import: ["" : 17]>
        g (bool c, float16[2] x) => (float16[2] y) {
            y = If (c) <then_branch = t () => (float16[2] a) { a = Neg (x) },
                else_branch = e () => (float16[2] b) { b = Abs (x) }>
        }"""
    _, (step,) = rewritten(parse(text), None, "retarget:to=tract")
    assert any("its body computes in float16" in skip.why for skip in step.skips)


BRANCHES = """<opset_import: ["" : 17]>
    g (float[N, 4] x) => (float[N, 4] y, float s)
        <float[1] edge = {{0}}, float[4] w = {{1, 2, 3, 4}}, int64[1] one = {{1}}> {{
        total = ReduceSum <keepdims: int = 0> (x)
        c = Greater ({left}, edge)
        a = Mul (x, w)
        y, s = If (c) <
            then_branch = t () => (float[N, 4] p, float u) {{
                p = Add (a, x)
                u = Identity (total)
            }},
            else_branch = e () => (float[N, 4] q, float v) {{
                d = If (c) <
                    then_branch = tt () => (float[N, 4] i) {{ i = Abs (a) }},
                    else_branch = ee () => (float[N, 4] j) {{ j = Neg (x) }}>
                q = Relu (d)
                v = Neg (total)
            }}>
    }}"""


@pytest.mark.parametrize("left", ["total", "flat"])
def test_an_if_becomes_both_of_its_branches(left: str) -> None:
    text = BRANCHES.format(left=left)
    if left == "flat":  # a condition of one element that is no scalar
        text = text.replace("c = Greater", "flat = Reshape (total, one)\n        c = Greater")
    model = parse(text)
    written, (step,) = rewritten(model, None, "retarget:to=ncnn")
    proto = written.to_proto()
    assert {n.op_type for n in proto.graph.node}.isdisjoint({"If"})
    assert "Where" in {n.op_type for n in proto.graph.node}
    assert not step.floor_missed
    for sign in (1, -1):
        feeds = {"x": sign * np.abs(samples(3, 4)).reshape(3, 4)}
        for a, b in zip(run(model, feeds), run(proto, feeds), strict=True):
            assert a.shape == b.shape
            np.testing.assert_array_equal(a, b)


def test_an_if_whose_branches_return_other_shapes_stays_and_is_named() -> None:
    text = """<opset_import: ["" : 17]>
        g (bool c, float[1, 4] x) => (float[M, 4] y) {
            y = If (c) <then_branch = t () => (float[2, 4] a) { a = Concat <axis: int = 0> (x, x) },
                else_branch = e () => (float[1, 4] b) { b = Neg (x) }>
        }"""
    written, (step,) = rewritten(parse(text), None, "retarget:to=ncnn")
    assert [node.op for node in written.graph.nodes] == ["If"]
    assert any("in different shapes" in skip.why for skip in step.skips)
    assert any("nothing replaces it" in skip.why for skip in step.skips)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_an_lstm_on_integers_becomes_one_in_float32(direction: str) -> None:
    model = recurrent_net(direction, lengths=True, initial=True)
    x = samples(STEPS, BATCH, WIDTH)
    on_integers, _ = rewritten(model, x, "quantize-int8:placement=all")
    assert "DynamicQuantizeLSTM" in {node.op for node in on_integers.graph.nodes}
    result = lower(on_integers, target_of("tract"), Context(evaluate=evaluate, model=on_integers))
    written = on_integers.to_proto()
    assert result.fidelity is Fidelity.LOSSY
    assert broken(written, "tract") == []
    for a, b in zip(run(model, {"x": x}), run(written, {"x": x}), strict=True):
        assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(a)  # weights of 8 bits

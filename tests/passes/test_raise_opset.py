from __future__ import annotations

import onnx
import onnxruntime as ort
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from onnxslim.io.model import Model
from onnxslim.passes.raise_opset import RaiseOpset
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.raising import raise_for
from onnxslim.run.prepared import PreparedRun
from onnxslim.run.settings import RunSettings
from support import assert_declines, assert_rewrites, parse

OLD = """<opset_import: ["" : 11]>
    before (float[1, 8, 1] x) => (float[1, 8] y) {
        a = Softmax <axis = 1> (x)
        y = Squeeze <axes = [2]> (a)
    }"""
NEW = """<opset_import: ["" : 13]>
    after (float[1, 8, 1] x) => (float[1, 8] y)
    <int64[3] shape = {1, 8, 1}, int64[1] axes = {2}>
    {
        rows = Flatten <axis = 1> (x)
        flat = Softmax <axis = -1> (rows)
        a = Reshape (flat, shape)
        y = Squeeze (a, axes)
    }"""

# ----------------------------------------------------------------- fires


def test_operators_get_their_newer_forms() -> None:
    result = assert_rewrites(OLD, RaiseOpset(to=13), NEW)
    assert result.changes[0].what == "opset raised from 11 to 13"
    assert [change.node for change in result.changes[1:]] == ["a", "y"]


def test_a_model_without_changed_operators_is_raised_as_well() -> None:
    text = '<opset_import: ["" : {}]> g (float[2] x) => (float[2] y) {{ y = Relu (x) }}'
    assert_rewrites(text.format(7), RaiseOpset(), text.format(21))
    assert_rewrites(text.format(7), RaiseOpset(to=23), text.format(23))


def test_the_manager_verifies_the_step() -> None:
    run = PreparedRun(Model.load(parse(OLD)), RunSettings(measure=False))
    attempt = run.try_pipeline(parse_pipeline("raise-opset:to=13"))
    (step,) = attempt.steps
    assert step.comparison is not None
    assert step.comparison.broken is None


# ----------------------------------------------------------------- declines


@pytest.mark.parametrize("opset", [13, 17])
def test_a_later_opset_is_left_alone(opset: int) -> None:
    text = f'<opset_import: ["" : {opset}]> g (float[2] x) => (float[2] y) {{ y = Relu (x) }}'
    assert_declines(text, RaiseOpset(to=13), f"its opset is {opset} already")


def test_what_the_later_form_cannot_say_is_declined() -> None:
    text = """<opset_import: ["" : 10]>
        g (float[1, 1, 2, 2] x, float[4] s) => (float[1, 1, h, w] y) { y = Resize (x, s) }"""
    assert_declines(text, RaiseOpset(), "`y` (Resize): its scales are computed at run time")


def test_a_raised_model_that_returns_something_else_is_declined() -> None:
    source = parse(OLD)
    model = Model.load(source)
    asked = []

    def why_not_same(before: Model, after: Model) -> str | None:
        asked.append((before.graph.opset, after.graph.opset))
        return "changed the output `y`"

    context = Context(model=model, why_not_same=why_not_same)
    result = RaiseOpset(to=13).run(model.graph, context)
    assert asked == [(11, 13)]
    assert result.changes == ()
    (skip,) = result.skips
    assert skip.why == (
        "its opset is 11 and cannot be raised to 13: raised, it changed the output `y`"
    )
    assert model.graph.opset == 11


def test_a_form_that_only_optimisations_make_run_is_declined() -> None:
    """A Relu of int64 is a function that onnxruntime inlines from opset 18 on, but not at 21."""
    text = """<opset_import: ["" : 18]>
        g (int64[8] x) => (int64[8] y) { r = Relu (x) y = Clip (r) }"""
    later = parse(text.replace("18", "21"))
    ort.InferenceSession(later.SerializeToString(), providers=["CPUExecutionProvider"])
    run = PreparedRun(Model.load(parse(text)), RunSettings(measure=False))
    raised, _ = run.try_pipeline(parse_pipeline("raise-opset,simplify")).steps
    assert raised.changes == ()
    assert "only runs with the optimisations of onnxruntime" in raised.skips[0].why


def test_a_form_that_onnxruntime_does_not_load_is_declined() -> None:
    """An optimisation of onnxruntime makes an invalid node of this at opset 21."""
    source = parse(
        """<opset_import: ["" : 20]>
        g (int64[1, t] ids) => (float[1, 4, t] y)
        <int8[3, 4] table = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float s = {0.5}, int8 z = {0}>
        {
            g = Gather (table, ids)
            d = DequantizeLinear (g, s, z)
            y = Transpose <perm = [0, 2, 1]> (d)
        }"""
    )
    later = onnx.ModelProto()
    later.CopyFrom(source)
    later.opset_import[0].version = 21
    try:
        ort.InferenceSession(later.SerializeToString(), providers=["CPUExecutionProvider"])
    except Fail:
        pass
    else:
        pytest.skip("this onnxruntime loads it")
    run = PreparedRun(Model.load(source), RunSettings(measure=False))
    attempt = run.try_pipeline(parse_pipeline("raise-opset"))
    (step,) = attempt.steps
    assert step.changes == ()
    (skip,) = step.parts[0].skips
    assert "raised, it does not run" in skip.why


def test_who_needs_the_opset_is_said() -> None:
    model = Model.load(parse(OLD))
    change = raise_for(model, 13, "scales along an axis", Context(model=model))
    assert change is not None
    assert change.what == "opset raised from 11 to 13: scales along an axis need it"
    assert raise_for(model, 13, "scales along an axis", Context(model=model)) is None

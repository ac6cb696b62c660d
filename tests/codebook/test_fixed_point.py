"""16-bit integers and a scale take a weight's place, and can be read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from layer_nets import net, node, normal, outputs, samples

import onnxslim
from onnxslim.analysis.layers import weight_layers
from onnxslim.codebook.fixed_point import FixedPointWeight, read, replace_constant, why_not
from onnxslim.codebook.nodes import codebook_nodes, element_count, values_of
from onnxslim.graph.functions import is_codebook
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.check import check_model
from onnxslim.io.model import Model
from onnxslim.pipeline.stats import measure_stats
from onnxslim.records import Fidelity
from onnxslim.runtime.session import open_session
from support import run

TYPES = {
    np.dtype(np.float32): ("FixedPoint", onnx.TensorProto.FLOAT),
    np.dtype(np.float64): ("FixedPointToDouble", onnx.TensorProto.DOUBLE),
    np.dtype(np.float16): ("FixedPointToFloat16", onnx.TensorProto.FLOAT16),
}


def coded(dtype: np.dtype[np.floating], fl: int = 8) -> FixedPointWeight:
    codes = np.rint(normal(24, 30) * 2**fl).astype(np.int16)
    return FixedPointWeight(codes, np.array(2.0**-fl, dtype))


def dense(weight: FixedPointWeight, opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
    kind = TYPES[weight.dtype][1]
    return net(
        [node("MatMul", ["x", "w"], "y")],
        {"w": weight.dense()},
        ["N", 24],
        dtype=kind,
        opset=opset,
        ir_version=ir_version,
    )


def stored(weight: FixedPointWeight, **facts: int) -> tuple[Model, tuple[str, ...]]:
    model = Model.load(dense(weight, **facts))
    rw = Rewriter(model.graph)
    holder = model.graph.nodes[0].inputs[1]
    assert why_not(model.graph, weight, holder) is None
    notes = replace_constant(rw, holder, weight, "stored", Fidelity.LOSSY)
    assert rw.result().changed
    check_model(model)
    return model, notes


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_outputs_are_those_of_the_dense_weight(
    dtype: np.dtype[np.floating], tmp_path: Path
) -> None:
    weight = coded(dtype)
    model, notes = stored(weight)
    assert notes == ()
    assert [f.name for f in model.graph.local_functions] == [TYPES[dtype][0]]
    x = samples(9, 24).astype(dtype)
    expected = run(dense(weight), {"x": x})
    np.testing.assert_array_equal(run(model.to_proto(), {"x": x}), expected)
    model.save(tmp_path / "model.onnx")
    again = Model.load(tmp_path / "model.onnx")
    np.testing.assert_array_equal(outputs(again, x)["y"], outputs(model, x)["y"])
    (made,) = codebook_nodes(again.graph)
    found = read(again.graph, made)
    assert found is not None
    np.testing.assert_array_equal(found.dense(), weight.dense(), strict=True)
    np.testing.assert_array_equal(values_of(again.graph, made.outputs[0]), weight.dense())


@pytest.mark.parametrize("opset", [7, 9, 12, 13, 17, 21])
@pytest.mark.parametrize("optimise", [False, True])
def test_any_opset_from_seven_on_runs(opset: int, optimise: bool) -> None:
    weight = coded(np.dtype(np.float32))
    model, _ = stored(weight, opset=opset)
    x = samples(9, 24)
    with (
        open_session(model, optimise=optimise) as session,
        open_session(Model.load(dense(weight, opset=opset)), optimise=optimise) as reference,
    ):
        np.testing.assert_array_equal(
            session.run({"x": x})["y"], reference.run({"x": x})["y"], strict=True
        )


def test_an_older_ir_version_is_raised() -> None:
    model, notes = stored(coded(np.dtype(np.float32)), ir_version=6, opset=9)
    assert model.graph.ir_version == 8
    assert notes == ("IR version raised from 6 to 8, the first with model-local functions.",)


def test_the_rest_of_the_compiler_takes_it_for_a_codebook() -> None:
    weight = coded(np.dtype(np.float32))
    model, _ = stored(weight)
    (made,) = codebook_nodes(model.graph)
    assert is_codebook(made.outputs[0])
    assert element_count(made) == 720
    layers, skips = weight_layers(model.graph)
    assert layers == ()
    assert "codebook" in skips[0].why
    before, after = (measure_stats(m) for m in (Model.load(dense(weight)), model))
    assert (after.parameters, after.macs) == (before.parameters, before.macs)
    simple, _ = onnxslim.compress(model.to_bytes(), passes="simplify", measure=False)
    assert [n.op for n in simple.graph.nodes] == ["FixedPoint", "MatMul"]


@pytest.mark.parametrize(
    ("place", "values"),
    [
        (0, np.zeros((24, 30), np.int8)),
        (0, np.zeros((0,), np.int16)),
        (1, np.array([0.5], np.float32)),
        (1, np.array(0.5, np.float64)),
        (1, np.array(1, np.int32)),
    ],
)
def test_inputs_that_do_not_fit_are_not_read(place: int, values: np.ndarray) -> None:
    model, _ = stored(coded(np.dtype(np.float32)))
    (made,) = codebook_nodes(model.graph)
    made.inputs[place].values = values
    assert read(model.graph, made) is None


def test_nodes_of_other_functions_are_not_read() -> None:
    model, _ = stored(coded(np.dtype(np.float32)))
    (made,) = codebook_nodes(model.graph)
    assert read(model.graph, model.graph.outputs[0].inputs[0]) is None
    made.inputs[0] = model.graph.inputs[0]
    assert read(model.graph, made) is None
    model.graph.local_functions[0].node[1].op_type = "Div"
    assert read(model.graph, made) is None
    reason = why_not(model.graph, coded(np.dtype(np.float32)))
    assert reason == "the model has another function of the name `onnxslim.FixedPoint`"


@pytest.mark.parametrize(
    ("codes", "scale", "why"),
    [
        (np.zeros(3, np.int32), np.array(1, np.float32), "Codes are int16"),
        (np.zeros(0, np.int16), np.array(1, np.float32), "Codes are int16"),
        (np.zeros(3, np.int16), np.array([1], np.float32), "A scale is one float"),
        (np.zeros(3, np.int16), np.array(1, np.int32), "A scale is one float"),
    ],
)
def test_other_types_and_shapes_are_refused(codes: np.ndarray, scale: np.ndarray, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        FixedPointWeight(codes, scale)


def test_a_weight_of_another_shape_or_an_old_opset_is_refused() -> None:
    weight = coded(np.dtype(np.float32))
    other = FixedPointWeight(weight.codes[:5], weight.scale)
    model = Model.load(dense(weight))
    holder = model.graph.nodes[0].inputs[1]
    with pytest.raises(ValueError, match="cannot be stored as a codebook"):
        replace_constant(Rewriter(model.graph), holder, other, "stored", Fidelity.LOSSY)
    old = Model.load(dense(weight, opset=6))
    assert why_not(old.graph, weight) == "a codebook takes opset 7, and the model has opset 6"

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Said
from command import run as run_command
from layer_nets import net, node, normal, rewritten, samples
from onnx import TensorProto, helper, numpy_helper

import onnxslim
from onnxslim.errors import UsageError
from onnxslim.passes.retarget import Retarget
from support import apply, assert_declines, assert_rewrites, parse, run

BEFORE = """<ir_version: 10, opset_import: ["" : 21]>
    before (float[N, 20] x) => (float[N, 1] y)
    <int8[20, 1] codes = {1,2,3,4,5,6,7,-1,-2,-3,-4,-5,-6,-7,1,2,3,4,5,6},
     float[3, 1] scale = {1,2,4}> {
        w = DequantizeLinear <axis: int = 0, block_size: int = 8> (codes, scale)
        y = MatMul (x, w)
    }"""
CLUSTERED = "cluster-weights:values=8"


def product(columns: int = 64, rows: int = 48) -> onnx.ModelProto:
    weights = {"w": normal(columns, rows)}
    return net([node("MatMul", ["x", "w"], "y")], weights, ["N", columns])


def operators(model: onnx.ModelProto) -> list[str]:
    return [each.op_type for each in model.graph.node]


# ----------------------------------------------------------------- fires


def test_blocks_become_cast_and_mul_where_an_engine_has_no_blocks() -> None:
    source = parse(BEFORE, 10)
    made, _ = apply(Retarget(to="tract"), source)
    assert operators(made) == ["Cast", "Mul", "Reshape", "MatMul"]
    x = samples(3, 20)
    np.testing.assert_allclose(run(made, {"x": x})[0], run(source, {"x": x})[0], rtol=1e-5)


def test_uneven_blocks_become_smaller_ones_with_the_same_scales() -> None:
    source = parse(BEFORE, 10)
    made, _ = apply(Retarget(to="openvino"), source)
    (linear, _) = made.graph.node
    assert next(a.i for a in linear.attribute if a.name == "block_size") == 4
    x = samples(3, 20)
    np.testing.assert_array_equal(run(made, {"x": x})[0], run(source, {"x": x})[0])


def test_sparse_initializers_become_dense() -> None:
    values = np.zeros((20, 8), np.float32)
    values[3, 2], values[17, 7] = 2, -3
    indices = numpy_helper.from_array(np.flatnonzero(values).astype(np.int64), "i")
    kept = numpy_helper.from_array(values[values != 0], "w")
    source = net([node("MatMul", ["x", "w"], "y")], {"w": values}, ["N", 20])
    del source.graph.initializer[:]
    source.graph.sparse_initializer.append(helper.make_sparse_tensor(kept, indices, [20, 8]))
    made, result = apply(Retarget(to="openvino"), source)
    assert not made.graph.sparse_initializer
    assert result.fidelity is onnxslim.Fidelity.EXACT
    x = samples(3, 20)
    np.testing.assert_array_equal(run(made, {"x": x})[0], run(source, {"x": x})[0])


@pytest.mark.parametrize("zero", [0, 3, 128, 250])
def test_unsigned_grids_become_signed_ones_that_cover_them(zero: int) -> None:
    text = f"""<opset_import: ["" : 17]> g (float[N, 16] x) => (float[N, 16] y)
        <float scale = {{0.02}}, uint8 zero = {{{zero}}}> {{
            q = QuantizeLinear (x, scale, zero)
            d = DequantizeLinear (q, scale, zero)
            y = Relu (d)
        }}"""
    source = parse(text)
    made, _ = apply(Retarget(to="tensorrt"), source)
    zeros = [t for t in made.graph.initializer if t.data_type == TensorProto.INT8]
    assert zeros
    assert not any(numpy_helper.to_array(t).any() for t in zeros)
    ends = sorted((-0.02 * zero, 0.02 * (255 - zero)))
    x = np.random.default_rng(0).uniform(*ends, (5, 16)).astype(np.float32)
    step = max(abs(end) for end in ends) / 127
    (y,), (old,) = run(made, {"x": x}), run(source, {"x": x})
    assert np.abs(y - old).max() <= 0.5 * step + 0.011


def test_float16_arithmetic_becomes_float32_and_outputs_keep_their_types() -> None:
    half = np.float16
    text = """<opset_import: ["" : 17]> g (float16[N, 4] x) => (float16[N, 4] y, float16[N, 4] z)
        <float16[4] w = {15360, 16384, 17408, 15360}> {
            y = Add (x, w)
            a = Mul (y, w)
            z = Relu (a)
        }"""
    source = parse(text)
    made, result = apply(Retarget(to="tract"), source)
    assert result.fidelity is onnxslim.Fidelity.CLOSE
    outputs = [info.type.tensor_type.elem_type for info in made.graph.output]
    assert outputs == [TensorProto.FLOAT16] * 2
    x = samples(3, 4).astype(half)
    for new, old in zip(run(made, {"x": x}), run(source, {"x": x}), strict=True):
        assert new.dtype == half
        np.testing.assert_allclose(new, old, rtol=2e-3)


def test_an_opset_that_is_too_high_is_declared_lower() -> None:
    text = '<opset_import: ["" : {}]> g (float[2] x) => (float[2] y) {{ y = Relu (x) }}'
    assert_rewrites(text.format(26), Retarget(to="tensorrt"), text.format(25))
    assert_rewrites(text.format(8), Retarget(to="tensorrt"), text.format(9))


def test_the_report_says_what_the_target_costs() -> None:
    model, reports = rewritten(product(), None, CLUSTERED, "retarget:to=openvino")
    assert reports[-1].committed
    assert not model.graph.local_functions
    assert any(note.startswith("The target openvino saves") for note in reports[-1].notes)


# ----------------------------------------------------------------- declines


def test_onnxruntime_takes_everything() -> None:
    assert_declines(BEFORE.replace("<ir_version: 10, ", "<"), Retarget(to="onnxruntime"))


def test_what_nothing_replaces_is_named() -> None:
    text = """<opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[2, 4] x) => (float[2, 4] y) { y = com.microsoft.FastGelu (x) }"""
    assert_declines(text, Retarget(to="openvino"), "is a com.microsoft.FastGelu")


def test_codes_that_the_model_returns_keep_their_type() -> None:
    text = """<opset_import: ["" : 17]> g (float[N, 4] x) => (uint8[N, 4] y)
        <float scale = {0.1}, uint8 zero = {7}> { y = QuantizeLinear (x, scale, zero) }"""
    assert_declines(text, Retarget(to="tensorrt"), "keep their type")


def test_the_pass_goes_last() -> None:
    with pytest.raises(UsageError, match="goes last"):
        rewritten(product(), None, "retarget:to=tract", "simplify")


# ----------------------------------------------------------------- the command


@pytest.fixture
def clustered(tmp_path: Path) -> Path:
    path = tmp_path / "clustered.onnx"
    onnxslim.compress(product(), path, passes=CLUSTERED, floors=None, measure=False, force=True)
    return path


def test_a_file_is_retargeted(clustered: Path, tmp_path: Path, capsys: Said) -> None:
    assert run_command("retarget", clustered, "--target", "openvino", "--no-floor") == 2
    capsys.readouterr()
    assert run_command("retarget", clustered, "--target", "openvino") == 0
    assert "The target openvino saves" in capsys.readouterr().out
    written = onnx.load(tmp_path / "clustered.openvino.onnx")
    assert not written.functions
    assert {entry.domain for entry in written.opset_import} == {""}


def test_compress_takes_a_target(clustered: Path, tmp_path: Path, capsys: Said) -> None:
    out = tmp_path / "out.onnx"
    run = ("compress", clustered, out, "--target", "tract", "--no-latency")
    assert run_command(*run) == 0
    assert not onnx.load(out).functions
    assert (
        "retarget:to=tract"
        in {p.key: p.value for p in onnx.load(out).metadata_props}["onnxslim.resolved"]
    )
    assert run_command(*run, "--passes", "retarget:to=openvino", "--overwrite") == 2
    assert "ends in `retarget:to=openvino`" in capsys.readouterr().err


def test_what_a_target_does_not_take_is_exit_code_4(tmp_path: Path, capsys: Said) -> None:
    text = """<opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[2, 4] x) => (float[2, 4] y) { y = com.microsoft.FastGelu (x) }"""
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(parse(text), path)
    assert run_command("retarget", path, out, "--target", "tensorrt") == 4
    assert "`y`: is a com.microsoft.FastGelu" in capsys.readouterr().err
    assert out.exists()


def test_inspect_says_which_targets_a_file_runs_on(clustered: Path, capsys: Said) -> None:
    assert run_command("inspect", clustered) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "target web: nothing known stands in the way" in said
    assert "target openvino: `w`: calls the local function onnxslim.Lookup2x4" in said
    assert "replaced by `onnxslim retarget`" in said

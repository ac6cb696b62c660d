"""The main job from Python, on tiny models."""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxslim
from onnxslim.errors import ModelError, UsageError
from onnxslim.pipeline.floors import Floors
from support import parse

NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 2, 8, 8] x) => (float[N, 3, 6, 6] y)
<float[3, 2, 3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9,
 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9,
 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9},
 float[3, 1, 1] a = {2, 3, 4}> {
    i = Identity (x)
    c = Conv (i, w)
    y = Mul (c, a)
}"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(parse(NET), path)
    return path


def test_the_output_is_smaller_runs_and_names_what_made_it(net: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    _, report = onnxslim.compress(net, out, measure=False)
    written = onnx.load(out)
    assert [node.op_type for node in written.graph.node] == ["Conv"]
    assert out.stat().st_size <= net.stat().st_size
    assert report.after.stats.file_bytes == out.stat().st_size
    assert "seeded" in report.verified_on
    assert report.before.sha256 != report.after.sha256


def test_the_output_names_its_pipeline_and_its_input(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    with as_file(files("onnxslim") / "assets" / "lenet5.onnx") as model:
        _, report = onnxslim.compress(model, out, verify=False, measure=False)
    entries = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert entries.pop("onnxslim.processor")
    assert f"onnx={onnx.__version__}" in entries.pop("onnxslim.versions")
    assert entries == {
        "onnxslim.pipeline": "simplify",
        "onnxslim.resolved": "resolved:from=simplify,simplify",
        "onnxslim.input_sha256": report.before.sha256,
        "onnxslim.settings": "seed=0 goal=both floor=default",
    }


def test_two_runs_give_equal_bytes(net: Path, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        onnxslim.compress(net, tmp_path / name, measure=False)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_model_with_nothing_to_gain_is_written_as_it_was(net: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    onnxslim.compress(net, once, measure=False)
    _, report = onnxslim.compress(once, twice, measure=False)
    assert once.read_bytes() == twice.read_bytes()
    assert report.after.sha256 == report.before.sha256


def test_a_floor_that_cannot_be_measured_is_refused(net: Path) -> None:
    with pytest.raises(UsageError, match="needs labelled samples"):
        onnxslim.compress(net, floors=Floors(max_drop=1.0), measure=False)


def test_an_unknown_goal_is_refused(net: Path) -> None:
    with pytest.raises(UsageError, match="both, latency, bytes"):
        onnxslim.compress(net, goal="speed")


def test_nothing_is_written_on_an_error(tmp_path: Path) -> None:
    broken = parse(NET)
    broken.graph.node[1].op_type = "Convolve"
    with pytest.raises(ModelError, match="Convolve"):
        onnxslim.compress(broken, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_initializers_that_callers_may_override_are_left_alone_and_named() -> None:
    model = parse(NET)
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [3, 2, 3, 3])
    )
    result, report = onnxslim.compress(model, measure=False)
    assert [tensor.name for tensor in result.graph.inputs] == ["x", "w"]
    assert any("callers may override" in note for note in report.notes)


def test_calibration_samples_are_what_outputs_are_compared_on(net: Path) -> None:
    samples = {"x": np.random.default_rng(0).standard_normal((5, 2, 8, 8)).astype(np.float32)}
    _, report = onnxslim.compress(net, calibration=samples, measure=False)
    assert report.verified_on.startswith("calibration: 5")


def test_the_report_is_valid_json(net: Path, tmp_path: Path) -> None:
    _, report = onnxslim.compress(net, tmp_path / "out.onnx", measure=False)
    found = json.loads(json.dumps(onnxslim.report_to_json(report), allow_nan=False))
    assert found["passes"][0]["spec"] == "simplify"
    assert found["output"]["sha256"] == report.after.sha256


@pytest.mark.parametrize("opset", [14, 20])
def test_operators_that_wait_for_an_opset_are_named_with_the_command(opset: int) -> None:
    model = parse(
        f"""<opset_import: ["" : {opset}]>
        g (float[2, 4] x) => (float[2, 4] y) <float root = {{1.4142135}}, float one = {{1}},
         float half = {{0.5}}> {{
            a = Div (x, root) b = Erf (a) c = Add (b, one) d = Mul (x, c) y = Mul (d, half)
        }}"""
    )
    result, report = onnxslim.compress(model, measure=False)
    notes = [note for note in report.notes if "`raise-opset:to=20, simplify`" in note]
    assert len(notes) == (opset == 14)
    assert ("Gelu" in [node.op for node in result.graph.nodes]) == (opset == 20)

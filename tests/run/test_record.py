"""A resolved pipeline gives the same file again, whatever the clock says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_stopwatch import fake_times
from layer_nets import net, node, normal

import onnxslim
from onnxslim import cli
from onnxslim.io.model import Model
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.runtime.samples.digest import data_sha256

X = np.random.default_rng(0).standard_normal((40, 24)).astype(np.float32)


def mlp() -> onnx.ModelProto:
    """Large enough for the record to be no larger than what is saved."""
    nodes = [
        node("MatMul", ["x", "w0"], "h"),
        node("Identity", ["h"], "i"),
        node("MatMul", ["i", "w1"], "y"),
    ]
    weights = {"w0": normal(24, 200), "w1": normal(200, 24, seed=1)}
    return net(nodes, weights, ["N", 24])


def has_codes(model: Model) -> bool:
    return any(tensor.dtype == np.int8 for tensor in model.graph.tensors().values())


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def run(*arguments: object) -> int:
    return cli.run([*map(str, arguments), "-q"])


def test_what_timing_kept_and_left_out_is_repeated_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, calib, first = tmp_path / "m.onnx", tmp_path / "x.npz", tmp_path / "a.onnx"
    onnx.save(mlp(), source)
    np.savez(calib, x=X)
    fake_times(monkeypatch, has_codes)
    given = "simplify,quantize-weights,cluster-weights"
    made = ("--calib", calib, "--seed", 3)
    assert run(source, first, "--passes", given, *made, "--report", tmp_path / "r.json") == 0
    record = json.loads((tmp_path / "r.json").read_text())["record"]
    assert record["pipeline"] == given
    assert record["resolved"].startswith("resolved:from='simplify,quantize-weights,")
    assert "quantize-weights" not in record["resolved"].partition("',")[2]
    assert record["data_sha256"] == {"calib": data_sha256(calib)}
    assert metadata(first)["onnxslim.resolved"] == record["resolved"]
    assert metadata(first)["onnxslim.settings"] == "seed=3 goal=both floor=default"

    fake_times(monkeypatch, lambda model: not has_codes(model))  # now all that was kept is slower
    second, third = tmp_path / "b.onnx", tmp_path / "c.onnx"
    assert run(source, second, "--passes", record["resolved"], *made) == 0
    assert second.read_bytes() == first.read_bytes()
    assert run(source, third, "--passes", given, *made) == 0
    assert third.read_bytes() != first.read_bytes()


def test_a_resolved_pipeline_without_steps_copies_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "m.onnx", tmp_path / "a.onnx"
    onnx.save(mlp(), source)
    fake_times(monkeypatch, lambda model: True)
    _, report = onnxslim.compress(source, out, passes="quantize-weights")
    assert report.record is not None
    assert report.record.resolved == "resolved:from=quantize-weights"
    _, report = onnxslim.compress(source, tmp_path / "b.onnx", passes=report.record.resolved)
    assert (tmp_path / "b.onnx").read_bytes() == source.read_bytes()
    assert report.steps == []


@pytest.mark.parametrize(
    "text", ["resolved", "resolved:from='a,b:c=''d'''", "resolved:from=simplify,simplify,fuse-pad"]
)
def test_resolved_pipelines_parse_back(text: str) -> None:
    pipeline = parse_pipeline(text)
    assert pipeline.is_resolved
    assert parse_pipeline(str(pipeline)) == pipeline
    assert str(pipeline) == text


@pytest.mark.parametrize(
    "text", ["resolved:for=simplify", "simplify,resolved", "resolved simplify"]
)
def test_the_marker_comes_first_and_takes_one_option(text: str) -> None:
    with pytest.raises(onnxslim.UsageError):
        parse_pipeline(text)


# ------------------------------------------------------------------- data


def test_the_same_data_have_the_same_digest_and_others_have_another(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    np.save(folder / "a.npy", X)
    whole = data_sha256(folder)
    assert whole == data_sha256(folder)
    (folder / "a.npy").rename(folder / "b.npy")
    assert data_sha256(folder) != whole
    assert data_sha256({"x": X}) == data_sha256({"x": X.copy()})
    assert data_sha256({"x": X}) != data_sha256({"x": X + 1})
    assert data_sha256([{"x": row} for row in X]) != data_sha256([{"x": row} for row in X[::-1]])
    assert data_sha256({"x": np.array(["a", "b"], object)}) is not None
    assert data_sha256(mlp) == data_sha256(Path(__file__))

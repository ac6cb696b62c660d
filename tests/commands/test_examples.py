"""Every example on the page of a pass runs, as it stands, on a tiny model."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxslim import cli
from onnxslim.pipeline import registry
from onnxslim.pipeline.examples import PassExample, examples_of
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.passes import Pass

EXAMPLES = {
    item.command: item for name in registry.names() for item in examples_of(registry.get(name))
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    make, shapes = onnx.helper.make_node, {"k1": (4, 1, 3, 3), "k2": (4, 4, 3, 3), "w": (16, 3)}
    weights = [
        onnx.numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        make("Identity", ["x"], ["i"]),
        make("Conv", ["i", "k1"], ["conv1"]),
        make("Relu", ["conv1"], ["r"]),
        make("Conv", ["r", "k2"], ["conv2"]),
        make("Flatten", ["conv2"], ["f"]),
        make("MatMul", ["f", "w"], ["fc"]),
        make("Softmax", ["fc"], ["y"]),
    ]
    infos = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", ["N", 1, 6, 6]), ("y", ["N", 3]))
    ]
    graph = onnx.helper.make_graph(nodes, "g", infos[:1], infos[1:], weights)
    opsets = [onnx.helper.make_opsetid("", 13)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), "model.onnx")
    np.savez("samples.npz", x=rng.normal(size=(64, 1, 6, 6)).astype(np.float32))
    return tmp_path


@pytest.mark.parametrize("name", registry.names())
def test_a_page_begins_with_two_or_three_examples(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["passes", name]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"{name}\n{'=' * len(name)}\n\nExamples:\n")
    examples = examples_of(registry.get(name))
    assert len(examples) in (2, 3)
    for item in examples:
        assert item.command in page
        members = [made for step in parse_pipeline(item.pipeline).passes for made in step.members()]
        assert name in item.pipeline or name in {member.name for member in members}


@pytest.mark.parametrize("command", EXAMPLES)
def test_an_example_runs(command: str, folder: Path) -> None:
    if "finetune" in command:
        pytest.importorskip("torch", reason="training needs the extra `train`")
    _, *arguments = shlex.split(command)
    quick = ("--no-latency", "--no-verify", "-q")
    assert cli.run([*arguments, *quick]) == 0
    assert (folder / "model.slim.onnx").exists()


def test_a_pass_without_examples_of_its_own_has_plain_ones() -> None:
    class Other(Pass):
        name = "other-pass"

    assert [item.pipeline for item in examples_of(Other)] == ["other-pass", "simplify,other-pass"]
    assert PassExample("fuse-pad", "").command == "onnxslim model.onnx --passes fuse-pad"

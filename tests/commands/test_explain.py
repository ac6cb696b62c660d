"""`onnxslim explain`: what a report says of a step and of a layer, without the models."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from command import Said

from onnxslim import cli
from support import parse

TEXT = """<opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 3] y)
<float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}>
{
    a = Identity (x)
    b = MatMul (a, w)
    y = Identity (b)
}"""


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(parse(TEXT), "model.onnx")
    arguments = ["model.onnx", "--no-latency", "--no-verify", "-q", "--report", "r.json"]
    assert cli.run([*arguments, "--passes", "eliminate-identity,simplify,fuse-pad"]) == 0
    Path("model.onnx").unlink()
    Path("model.slim.onnx").unlink()
    return tmp_path / "r.json"


def explained(capsys: Said, *arguments: object) -> str:
    assert cli.run(["explain", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_every_step_is_explained(report: Path, capsys: Said) -> None:
    out = explained(capsys, report)
    assert out.startswith("model.onnx -> model.slim.onnx\n")
    assert "eliminate-identity: kept, " in out
    assert "fuse-pad: nothing done" in out


def test_a_layer_is_explained_by_what_was_done_and_what_was_not(report: Path, capsys: Said) -> None:
    out = explained(capsys, report, "a")
    assert "eliminate-identity: removed a no-op Identity" in out
    assert "`fuse-pad`" in out.partition("not mentioned by ")[2]


@pytest.mark.parametrize("name", ["b", "matmul_7", "w", "matmul_?"])
def test_a_layer_has_the_names_that_the_report_gives_it(
    report: Path, capsys: Said, name: str
) -> None:
    data = json.loads(report.read_text())
    data["names"] = {"b": ["matmul_7", "w"]}
    step = data["passes"][2]
    step |= {"committed": False, "why_not_committed": "slower"}
    step["skips"] = [{"node": "b", "why": "its weight is shared"}]
    report.write_text(json.dumps(data))
    out = explained(capsys, report, name)
    assert out.startswith("`b` (also `matmul_7`, `w`)\n")
    assert "fuse-pad: not done: its weight is shared" in out
    assert "fuse-pad: but the step was left out: slower" in out


def test_an_unknown_layer_is_an_error_with_the_closest_name(report: Path, capsys: Said) -> None:
    data = json.loads(report.read_text())
    data["passes"][0]["changes"].append({"node": "features.conv1", "what": "fused"})
    report.write_text(json.dumps(data))
    assert cli.run(["explain", str(report), "features.conv2"]) == 2
    assert "Did you mean `features.conv1`?" in capsys.readouterr().err


def test_the_error_of_a_run_is_told(report: Path, capsys: Said) -> None:
    data = json.loads(report.read_text())
    data["error"] = {"type": "RuntimeFailure", "exit_code": 6, "message": "it failed."}
    report.write_text(json.dumps({"onnxslim": "", "models": [data, {**data, "error": None}]}))
    out = explained(capsys, report)
    assert out.count("The run ended with exit code 6: it failed.") == 1
    assert out.count("model.onnx ->") == 2


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "3", "{}", '{"models": []}', '{"models": [3]}', '{"input": {}}', "[",
        '{"input": {"path": "m"}, "passes": [{"spec": "a"}]}',
        '{"input": {"path": "m"}, "passes": [], "error": 3}',
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused(content: str, tmp_path: Path, capsys: Said) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    assert cli.run(["explain", str(path)]) == 2
    assert "is no report" in capsys.readouterr().err
    assert cli.run(["explain", str(tmp_path / "none.json")]) == 2

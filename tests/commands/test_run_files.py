"""Files that a run writes beside its output: --report -, --junit, --provenance, --model-card."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest
from command import Said, run
from layer_nets import dense_net

BRIEF = ("--no-latency", "--passes", "quantize-weights", "--force", "--no-floor")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(dense_net(40, 64, 10), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_report_may_go_to_standard_output(work: Path, capsys: Said) -> None:
    assert run("m.onnx", "o.onnx", *BRIEF, "--report", "-") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["output"]["path"] == "o.onnx"
    assert "wrote o.onnx" in said.err
    assert run("m.onnx", "-", *BRIEF, "--report", "-") == 2
    assert "both `-`" in capsys.readouterr().err


def test_a_failed_run_reports_to_standard_output_as_well(work: Path, capsys: Said) -> None:
    words = ("m.onnx", "o.onnx", "--passes", "prune-channels:only=none", "--report", "-")
    assert run(*words, "--no-latency") == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2


def test_files_beside_the_output_are_of_it(work: Path) -> None:
    files = ("--junit", "j.xml", "--provenance", "p.json", "--model-card", "c.md")
    assert run("m.onnx", "o.onnx", *BRIEF, *files, "--quiet") == 0
    digest = hashlib.sha256(Path("o.onnx").read_bytes()).hexdigest()
    statement = json.loads(Path("p.json").read_text())
    assert statement["subject"] == [{"name": "o.onnx", "digest": {"sha256": digest}}]
    assert ElementTree.parse("j.xml").find(".//testcase[@name='step quantize-weights']") is not None
    assert "`m.onnx`" in Path("c.md").read_text()
    assert run("m.onnx", "o.onnx", *BRIEF, *files, "--quiet") == 0  # our own files are replaced


@pytest.mark.parametrize("option", ["--junit", "--provenance", "--model-card"])
def test_a_file_of_the_user_stays(work: Path, capsys: Said, option: str) -> None:
    Path("mine").write_text("something else")
    assert run("m.onnx", "o.onnx", *BRIEF, option, "mine") == 2
    assert "`mine`" in capsys.readouterr().err
    assert Path("mine").read_text() == "something else"
    assert run("m.onnx", "o.onnx", *BRIEF, option, "m.onnx") == 2
    assert f"{option} `m.onnx` is the model" in capsys.readouterr().err


def test_junit_has_a_suite_for_each_of_several_models(work: Path, capsys: Said) -> None:
    Path("bad.onnx").write_bytes(b"no model")
    words = ("m.onnx", "bad.onnx", "--out-dir", "out", *BRIEF, "--quiet")
    assert run(*words, "--junit", "j.xml") == 3
    suites = ElementTree.parse("j.xml").getroot()
    assert [suite.get("failures") for suite in suites] == ["0", "1"]
    assert run(*words, "--provenance", "p.json") == 2
    assert "--provenance is of one model" in capsys.readouterr().err

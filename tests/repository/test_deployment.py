"""Files for CI and for servers do what their pages say, as far as it can be seen without them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from google.protobuf import text_format
from layer_nets import dense_net

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
FOLDER = ROOT / "deployment"


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text("utf-8"))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a model, and with the command `onnxslim` of these sources."""
    onnx.save(dense_net(40, 64, 10), tmp_path / "model.onnx")
    command = tmp_path / "bin" / "onnxslim"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m onnxslim "$@"\n')
    command.chmod(0o755)
    return tmp_path


def environment(work: Path, **more: str) -> dict[str, str]:
    paths = f"{work / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": paths, **more}


def act(work: Path, arguments: str) -> tuple[int, str, dict[str, str]]:
    """Run the script of the action: exit code, summary, outputs."""
    step = next(step for step in read("action.yml")["runs"]["steps"] if step.get("id") == "run")
    given = {"model": "model.onnx", "output": "small.onnx", "passes": "simplify", "cache": "kept"}
    given["args"] = arguments
    values = {
        name: given[word.removeprefix("${{ inputs.").removesuffix(" }}")]
        for name, word in step["env"].items()
    }
    files = {name: str(work / name) for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")}
    values |= files | {"GITHUB_ACTION_PATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", step["run"]],
        cwd=work,
        env=environment(work, **values),
        capture_output=True,
        check=False,
    )
    texts = [p.read_text() if (p := Path(name)).exists() else "" for name in files.values()]
    outputs = dict(line.split("=", 1) for line in texts[1].splitlines())
    return done.returncode, texts[0], outputs


def test_the_action_compresses_and_writes_the_summary_of_the_job(work: Path) -> None:
    code, summary, outputs = act(work, "--no-latency --seed 3")
    assert code == 0
    digest = hashlib.sha256((work / "small.onnx").read_bytes()).hexdigest()
    assert outputs == {"report": "small.onnx.report.json", "sha256": digest}
    assert "simplify" in summary
    assert json.loads((work / outputs["report"]).read_text())["record"]["settings"]["seed"] == "3"
    assert (work / "kept" / "steps").is_dir()
    assert (work / "small.onnx.junit.xml").exists()


def test_the_action_fails_where_the_command_does(work: Path) -> None:
    assert act(work, "--no-latency --strict")[0] == 4  # simplify has nothing to do here
    assert act(work, "--max-drop 1")[0] == 2


def test_every_input_of_the_action_is_used_and_none_becomes_code() -> None:
    action = read("action.yml")
    steps = action["runs"]["steps"]
    assert all("${{" not in step.get("run", "") for step in steps)
    text = (ROOT / "action.yml").read_text("utf-8").partition("runs:")[2]
    assert all(f"inputs.{name}" in text for name in action["inputs"])


@pytest.mark.parametrize("hook", read(".pre-commit-hooks.yaml"), ids=lambda hook: hook["id"])
def test_hooks_are_commands_that_are_there(hook: dict[str, Any], work: Path) -> None:
    assert {"id", "name", "entry", "language", "files"} <= hook.keys()
    words = [*hook["entry"].split(), "--help"]
    subprocess.run(words, env=environment(work), check=True, capture_output=True)


def test_the_hook_refuses_a_file_that_is_cut_off(work: Path) -> None:
    entry = read(".pre-commit-hooks.yaml")[0]["entry"].split()
    content = (work / "model.onnx").read_bytes()
    (work / "cut.onnx").write_bytes(content[:-100])
    for name, code in (("model.onnx", 0), ("cut.onnx", 3)):
        done = subprocess.run([*entry, work / name], env=environment(work), capture_output=True)
        assert done.returncode == code


def test_the_stage_of_dvc_makes_what_it_promises(work: Path) -> None:
    stage = read("deployment/dvc.yaml")["stages"]["compress"]
    (work / "run.toml").write_text('passes = "simplify"\nlatency = false\n')
    assert {"model.onnx", "run.toml"} < set(stage["deps"])
    subprocess.run(stage["cmd"], shell=True, cwd=work, env=environment(work), check=True)
    made = [*stage["outs"], *(name for item in stage["metrics"] for name in item)]
    assert all((work / name).exists() for name in made)


def test_the_configuration_of_triton_is_of_its_schema() -> None:
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    text = (FOLDER / "triton" / "config.pbtxt").read_text("utf-8")
    config = text_format.Parse(text, schema.ModelConfig())  # refuses unknown fields
    assert (config.name, config.backend, config.max_batch_size) == ("small", "onnxruntime", 8)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_the_dockerfile_has_no_findings() -> None:
    done = subprocess.run(
        ["hadolint", str(FOLDER / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")

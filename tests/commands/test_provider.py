"""`--provider`: models are verified and timed on an execution provider, or it is said why not.

Which providers there are depends on the build of onnxruntime: PyPI's for processors lists Azure,
which computes no model; `onnxruntime-openvino` has one that does (`.ci/run`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Said, run
from layer_nets import dense_net

from onnxslim.run.conditions import conditions
from onnxslim.run.settings import RunSettings
from onnxslim.runtime.providers import installed_providers, provider_list, provider_named

OTHERS = [name for name in installed_providers() if name != "CPU"]
BRIEF = ("--passes", "quantize-weights", "--force", "--no-floor", "--no-latency", "--quiet")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(dense_net(40, 64, 10), tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((20, 40)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=x)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys: Said) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "words",
    [
        ("m.onnx", "o.onnx", *BRIEF),
        ("bench", "m.onnx"),
        ("compare", "m.onnx", "m.onnx"),
        ("retarget", "m.onnx", "o.onnx", "--target", "openvino"),
        ("tune", "m.onnx", "o.onnx", "--goal", "bytes", "--no-clock"),
    ],
    ids=lambda words: str(words[0]),
)
def test_a_provider_that_is_not_installed_is_named_with_those_that_are(
    work: Path, capsys: Said, words: tuple[str, ...]
) -> None:
    assert run(*words, "--provider", "Abacus") == 2
    told = said(capsys)
    assert "has no provider `Abacus`" in told
    assert all(name in told for name in installed_providers())
    assert not Path("o.onnx").exists()


def test_the_processor_is_the_default(work: Path) -> None:
    files = ("--report", "r.json", "--overwrite")
    assert run("m.onnx", "o.onnx", *BRIEF, "--provider", "CPUExecutionProvider", *files) == 0
    assert "provider" not in json.loads(Path("r.json").read_text())["record"]["settings"]


@pytest.mark.parametrize("provider", OTHERS)
def test_a_provider_computes_the_model_or_says_why_not(
    work: Path, capsys: Said, provider: str
) -> None:
    files = ("--report", "r.json", "--provenance", "p.json", "--calib", "c.npz")
    code = run("m.onnx", "o.onnx", *BRIEF, *files, "--provider", provider.lower())
    if code == 6:  # it computes nothing of the model, or it does not start
        assert f"The provider {provider} " in (told := said(capsys))
        assert "computes none of the" in told or "does not start" in told
        assert not Path("o.onnx").exists()
        return
    assert code == 0
    report = json.loads(Path("r.json").read_text())
    assert report["record"]["settings"]["provider"] == provider
    assert any(f"The provider {provider} computes" in note for note in report["notes"])
    digest = hashlib.sha256(Path("o.onnx").read_bytes()).hexdigest()
    statement = json.loads(Path("p.json").read_text())
    assert statement["subject"][0]["digest"] == {"sha256": digest}
    assert provider in json.dumps(statement["predicate"]["buildDefinition"])
    words = ("check", "o.onnx", "--against", "m.onnx", "--report", "r.json", "--no-floor")
    assert run(*words, "--calib", "c.npz", "--no-latency") == 0
    assert run(*words, "--calib", "c.npz", "--no-latency", "--provider", "CPU") == 0
    assert run("bench", "m.onnx", "o.onnx", "--provider", provider, "--seconds", "0.1") == 0


def test_check_asks_for_the_provider_of_the_run(work: Path, capsys: Said) -> None:
    assert run("m.onnx", "o.onnx", *BRIEF, "--report", "r.json") == 0
    report = json.loads(Path("r.json").read_text())
    report["record"]["settings"]["provider"] = "Abacus"
    Path("r.json").write_text(json.dumps(report))
    words = ("check", "o.onnx", "--against", "m.onnx", "--report", "r.json", "--no-floor")
    assert run(*words, "--no-latency") == 2
    assert "has no provider `Abacus`" in said(capsys)
    assert run(*words, "--no-latency", "--provider", "cpu") == 0


def test_a_recipe_may_name_the_provider(work: Path, capsys: Said) -> None:
    Path("r.toml").write_text('passes = "simplify"\nprovider = "Abacus"\n')
    assert run("m.onnx", "o.onnx", "--recipe", "r.toml") == 2
    assert "has no provider `Abacus`" in said(capsys)
    Path("r.toml").write_text("provider = 1\n")
    assert run("m.onnx", "o.onnx", "--recipe", "r.toml") == 2
    assert "must be the name of an execution provider" in said(capsys)


def test_the_provider_is_a_condition_of_the_cache() -> None:
    plain, other = RunSettings(), RunSettings(provider="OpenVINO")
    assert conditions(plain) != conditions(other)
    assert conditions(plain) == conditions(RunSettings())


def test_names_are_read_in_any_spelling() -> None:
    assert provider_named(None) is provider_named("cpu") is None
    for name in OTHERS:
        for spelled in (name, name.lower(), f"{name}ExecutionProvider"):
            assert provider_named(spelled) == name
    assert provider_list("OpenVINO", 2)[0] == (
        "OpenVINOExecutionProvider",
        {"num_of_threads": "2"},
    )

"""Requests that cannot succeed are refused before any work, with what to give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx
import pytest
from tiny_models import TINY

from onnxslim import cli
from onnxslim.pipeline import registry
from onnxslim.pipeline.passes import Pass
from onnxslim.records import Fidelity

Said = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(TINY["gemm net"](), path)
    return path


def run(*arguments: object) -> int:
    return cli.run([str(argument) for argument in arguments])


# ------------------------------------------------------------------- calibration samples


@dataclass(frozen=True)
class FoldWithData(Pass):
    """A pass of another distribution."""

    name: ClassVar[str] = "fold-with-data"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY

    def needs_calibration(self) -> str | None:
        return "to see how far values reach"


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    get = registry.get
    monkeypatch.setattr(
        registry, "get", lambda name: FoldWithData if name == "fold-with-data" else get(name)
    )


@pytest.mark.parametrize(
    ("pipeline", "purpose"),
    [
        ("quantize-int8", "ranges of activations"),
        ("simplify,inject-exits:at=a", "heads"),
        ("deep-compression", "tolerates"),
        ("convert-fp16:max-error=0.1", "max-error"),
        ("prune-weights:criterion=obs", "criterion obs; magnitude needs none"),
        ("prune-channels:criterion=taylor", "criterion taylor; "),
        ("fold-with-data", "to see how far values reach"),
    ],
)
@pytest.mark.usefixtures("third_party")
def test_a_pass_that_needs_samples_asks_for_them_before_any_work(
    model: Path, pipeline: str, purpose: str, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxslim.api._loaded", lambda source: pytest.fail("work was done"))
    assert run(model, "--passes", pipeline) == 2
    said = capsys.readouterr().err
    assert purpose in said
    assert "Give --calib FILE.npz" in said
    assert not model.with_name("model.slim.onnx").exists()


@pytest.mark.parametrize("pipeline", ["prune-weights", "convert-fp16", "prune-channels"])
def test_a_pass_that_can_do_without_samples_runs(model: Path, pipeline: str) -> None:
    assert run(model, "--passes", pipeline, "--no-latency") in (0, 4)
    assert model.with_name("model.slim.onnx").exists()

"""Requests that cannot succeed are refused before any work, with what to give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx
import pytest
from command import Said, run
from tiny_models import TINY

from onnxslim.commands import COMMANDS
from onnxslim.pipeline import other_words, registry
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.passes import Pass
from onnxslim.records import Fidelity


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(TINY["gemm net"](), path)
    return path


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
    monkeypatch.setattr("onnxslim.api.loaded", lambda source: pytest.fail("work was done"))
    assert run(model, "--passes", pipeline) == 2
    said = capsys.readouterr().err
    assert purpose in said
    assert "Give --calib FILE.npz" in said
    assert not model.with_name("model.slim.onnx").exists()


@pytest.mark.parametrize("pipeline", ["prune-weights", "convert-fp16", "prune-channels"])
def test_a_pass_that_can_do_without_samples_runs(model: Path, pipeline: str) -> None:
    assert run(model, "--passes", pipeline, "--no-latency") in (0, 4)
    assert model.with_name("model.slim.onnx").exists()


# ------------------------------------------------------------------- words of other tools


@pytest.mark.parametrize("word", sorted(other_words.PIPELINES))
def test_words_of_other_tools_are_answered_with_a_pipeline(word: str, capsys: Said) -> None:
    pipeline = str(parse_pipeline(other_words.PIPELINES[word]))
    assert word not in registry.names()
    assert run(word, "model.onnx") == 2
    assert f"`onnxslim MODEL --passes {pipeline}`" in capsys.readouterr().err


@pytest.mark.parametrize("word", sorted(other_words.COMMANDS))
def test_words_of_other_tools_are_answered_with_a_command(word: str, capsys: Said) -> None:
    assert word not in COMMANDS
    assert run(word.upper(), "model.onnx", "b.onnx") == 2
    said = capsys.readouterr().err
    assert f"Did you mean the command `onnxslim {other_words.COMMANDS[word]}`?" in said
    assert other_words.COMMANDS[word] in COMMANDS


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--int8",), "That is done by passes here: `--passes quantize-int8`."),
        (("--passes", "fp16"), "Here it is called `convert-fp16`."),
        (("--passes", "simplify,Prune_Filters"), "Here it is called `prune-channels`."),
    ],
)
def test_words_of_other_tools_are_known_as_options_and_passes(
    model: Path, arguments: tuple[str, ...], part: str, capsys: Said
) -> None:
    assert run(model, *arguments) == 2
    assert part in capsys.readouterr().err


def test_a_pass_given_as_a_command_is_answered_with_the_way_to_run_it(capsys: Said) -> None:
    assert run("prune-channels", "model.onnx") == 2
    assert "`onnxslim MODEL --passes prune-channels`" in capsys.readouterr().err


def test_help_shows_commands_and_passes(capsys: Said) -> None:
    assert run("help") == 0
    assert "Commands:" in capsys.readouterr().out
    assert run("help", "bench") == 0
    assert capsys.readouterr().out.startswith("Usage: onnxslim bench")
    assert run("help", "fuse-pad") == 0
    assert capsys.readouterr().out.startswith("fuse-pad\n")
    assert run("help", "int8") == 2
    assert "`quantize-int8`" in capsys.readouterr().err

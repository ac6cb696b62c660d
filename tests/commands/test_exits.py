"""`onnxslim exits`: where a classifier can be left, and what that would bring."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Said, run
from exit_nets import classifier, images
from layer_nets import net, node, normal

from onnxslim import surveys
from onnxslim.errors import ModelError


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    model, calib = tmp_path / "model.onnx", tmp_path / "calib.npz"
    onnx.save(classifier(), model)
    np.savez(calib, x=images(600)[0])
    return model, calib


def test_every_place_is_shown_with_what_a_head_reaches(
    files: tuple[Path, Path], capsys: Said
) -> None:
    model, calib = files
    assert run("exits", model, "--calib", calib, "--no-latency") == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[2:5]] == ["r0", "r1", "r2"]
    assert "?x8x8x8" in said or "Nx8x8x8" in said
    assert "agreement" in said
    assert "note: the class scores are `y`, logits" in said


def test_without_samples_no_head_is_fitted(files: tuple[Path, Path], capsys: Said) -> None:
    assert run("exits", files[0]) == 0
    said = capsys.readouterr().out
    assert "agreement" not in said
    assert "before" in said
    assert "without samples (--calib) no head was fitted" in said


def test_json_holds_the_same_figures(files: tuple[Path, Path], capsys: Said) -> None:
    model, calib = files
    assert run("exits", model, "--calib", calib, "--no-latency", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    rows, notes = surveys.exits(model, calibration=str(calib), measure=False)
    assert found["notes"] == notes
    assert [item["tensor"] for item in found["exits"]] == [row.tensor for row in rows]
    assert [item["agreement"] for item in found["exits"]] == [row.agreement for row in rows]
    assert all(row.latency is None for row in rows)
    assert all(0 <= (row.leaving or 0) <= 1 for row in rows)


def test_a_model_with_no_place_to_leave_says_so(tmp_path: Path, capsys: Said) -> None:
    model = tmp_path / "m.onnx"
    weights = {"w": normal(6, 3), "b": normal(3)}
    onnx.save(net([node("Gemm", ["x", "w", "b"], "y")], weights, ["N", 6]), model)
    assert run("exits", model) == 0
    assert "no place at which this model can be left early" in capsys.readouterr().out


def test_a_model_that_is_no_classifier_is_refused(tmp_path: Path, capsys: Said) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(net([node("Relu", ["x"], "y")], {}, ["N", 6, 5]), model)
    assert run("exits", model) == ModelError.exit_code
    assert "cannot be left early: no output is class scores" in capsys.readouterr().err


def test_an_output_can_be_named(files: tuple[Path, Path], capsys: Said) -> None:
    assert run("exits", files[0], "--output", "z") == ModelError.exit_code
    assert "`z` is no output that is class scores" in capsys.readouterr().err

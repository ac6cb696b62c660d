"""`onnxslim demo`: real figures, files that are there, and commands that run as they stand."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from command import Said

from onnxslim import cli
from onnxslim.commands import demo
from onnxslim.io.copying import unpack

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())


def accuracy(model: Path, data: Path) -> float:
    """Share of labelled digits that a model reads, by onnxruntime alone."""
    with np.load(data) as samples:
        image, label = samples["image"], samples["label"]
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return float(np.mean(session.run(None, {"image": image})[0].argmax(1) == label))


def test_demo_shows_files_that_are_there_with_figures_that_are_true(
    tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest file is the demo's; the other pipelines are quick ones. CI runs them as well."""
    *others, smallest = demo._STEPS
    quick = [replace(step, passes="simplify") for step in others]
    monkeypatch.setattr(demo, "_STEPS", (*quick, smallest))
    monkeypatch.setattr(demo, "_TIMED_S", 0.01)
    folder = tmp_path / "a folder"
    assert cli.run(["demo", "--to", str(folder)]) == 0
    text = capsys.readouterr().out
    rows = {
        line.split()[0]: line for line in text.splitlines() if re.match(r"\S+\.onnxz? +\d", line)
    }
    assert list(rows) == ["lenet5.onnx", *(step.file for step in demo._STEPS)]
    unpack(folder / "smallest.onnxz", folder / "unpacked.onnx")
    for name, row in rows.items():
        model = folder / ("unpacked.onnx" if name.endswith("z") else name)
        assert f"{100 * accuracy(model, folder / 'mnist_eval.npz'):.2f} %" in row
    size = {name: (folder / name).stat().st_size for name in rows}
    assert size["lenet5.onnx"] / size["smallest.onnxz"] > 80
    assert f"{size['lenet5.onnx'] / size['smallest.onnxz']:.1f}x" in rows["smallest.onnxz"]

    program, *compare = shlex.split(text.splitlines()[-2])
    assert (program, compare[0]) == ("onnxslim", "compare")
    assert cli.run(compare) == 0


def test_demo_touches_no_file_of_the_user(tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "lenet5.onnx").write_bytes(b"mine")
    assert cli.run(["demo", "--to", str(tmp_path)]) == 2
    assert "is another file than the one of the demo" in capsys.readouterr().err
    assert (tmp_path / "lenet5.onnx").read_bytes() == b"mine"
    assert cli.run(["demo", "--to", str(tmp_path / "lenet5.onnx")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_demo_without_its_files_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setattr("onnxslim.commands.demo._MODEL", "none.onnx")
    assert cli.run(["demo"]) == 2
    assert "lacks its bundled file `none.onnx`" in capsys.readouterr().err


def test_the_error_on_all_images_is_the_documented_one() -> None:
    readme = " ".join((ROOT / "onnxslim" / "assets" / "README.md").read_text("utf-8").split())
    assert f"{100 * demo._WHOLE_ERROR:.2f} % of the 10,000 test images" in readme

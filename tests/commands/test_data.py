"""Data given to the command: pictures, arrays of other names, and what it says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import Said
from PIL import Image

from onnxslim import cli
from support import parse

NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, 8, 8] img) => (float[N, 3] y)
<float[1] zero = {0}> {
    m = GlobalAveragePool (img)
    s = Identity (m)
    y = Flatten (s)
}"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A net that says which colour a picture has, and pictures of three colours."""
    monkeypatch.chdir(tmp_path)
    onnx.save(parse(NET), tmp_path / "net.onnx")
    for number, name in enumerate(("1red", "2green", "3blue")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        pixels = np.full((9, 10, 3), 20, np.uint8)
        pixels[..., number] = 200
        for picture in range(2):
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{picture}.png")
    return tmp_path


def run(*words: str) -> int:
    return cli.run(["net.onnx", "out.onnx", "--no-latency", "--overwrite", *words])


def report(*words: str) -> dict[str, Any]:
    assert run(*words, "--report", "run.json", "-q") == 0
    found: dict[str, Any] = json.loads(Path("run.json").read_text("utf-8"))
    return found


def test_folder_of_pictures_with_labels_gives_accuracy(folder: Path, capsys: Said) -> None:
    assert run("--calib", "photos", "--eval", "photos", "--preset", "zero-one") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "accuracy 100.00 -> 100.00 %" in said
    assert (
        "calibration and evaluation: 6 samples of photos; `img` float32 [1, 3, 8, 8], 0.07843 to "
        "0.7843; labels 0 to 2; resized, 8 by 8 in the centre cut out, RGB, pixel / 255, folders "
        "are classes: 1red = 0, 2green = 1, 3blue = 2"
    ) in said
    assert said.count("6 samples of photos;") == 1


def test_order_of_colours_can_be_turned(folder: Path) -> None:
    found = report("--eval", "photos", "--preset", "none", "--bgr")
    assert found["before"]["accuracy"] == pytest.approx(1 / 3)
    assert found["record"]["settings"]["colors"] == "bgr"
    assert found["data"][0].startswith("evaluation: 6 samples of photos")


def test_model_that_declares_its_pixels_is_not_asked(folder: Path) -> None:
    model = onnx.load("net.onnx")
    for key, value in (
        ("Image.BitmapPixelFormat", "Bgr8"),
        ("Image.NominalPixelRange", "NominalRange_0_255"),
    ):
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, "net.onnx")
    assert report("--eval", "photos")["before"]["accuracy"] == pytest.approx(1 / 3)
    assert report("--eval", "photos", "--rgb")["before"]["accuracy"] == 1


def test_arrays_of_other_names_and_types_are_mapped_and_scaled(folder: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 3, 8, 8), np.uint8)
    np.savez("data.npz", pixels=pixels, klass=pixels.mean(axis=(2, 3)).argmax(axis=1))
    words = ("--map", "img=pixels,label=klass", "--scale", "1/255")
    found = report("--evaluation", "data.npz", *words)
    assert found["before"]["accuracy"] == 1
    assert "`img` is array `pixels`" in found["data"][0]
    table = 'map = { img = "pixels", label = "klass" }\nscale = "1/255"'
    Path("run.toml").write_text(f'evaluation = "data.npz"\n[data]\n{table}')
    again = report("--recipe", "run.toml")
    assert again["data"] == found["data"]
    assert again["record"]["settings"] == found["record"]["settings"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--calib photos", "--preset imagenet, zero-one"),
        ("--calib photos --preset imgnet", "got 'imgnet'. Did you mean `imagenet`?"),
        ("--calib photos --preset none --tokenizer t.json", "`tokenizer` is for text"),
        ("--image-size 3", "no data are given"),
        ("--calib photos --calibration photos --preset x", "`preset` must be one of"),
    ],
)
def test_wrong_requests_end_before_any_work(
    folder: Path, capsys: Said, words: str, said: str
) -> None:
    assert run(*words.split()) == 2
    assert said in capsys.readouterr().err
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize("command", ["bench net.onnx", "compare net.onnx net.onnx"])
def test_other_commands_take_the_same_settings(folder: Path, capsys: Said, command: str) -> None:
    assert cli.run([*command.split(), "--calib", "photos", "--preset", "none"]) == 0
    assert cli.run([*command.split(), "--calib", "photos"]) == 2


def test_metric_outside_its_range_is_refused_with_the_value(folder: Path, capsys: Said) -> None:
    Path("my_metric.py").write_text("def percent(run):\n    return 94.2\n")
    assert run("--eval", "my_metric:percent") == 2
    assert "returned 94.2; a metric must return a share in [0, 1]" in capsys.readouterr().err

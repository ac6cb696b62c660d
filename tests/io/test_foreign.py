"""Files that are no ONNX models are named for what they are, with the way to an ONNX model."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Said
from tiny_models import TINY

from onnxslim import cli
from onnxslim.errors import ModelError
from onnxslim.io.foreign import foreign_format
from onnxslim.io.model import Model


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return stream.getvalue()


def message(*parts: tuple[int, bytes]) -> bytes:
    """Length-delimited fields of a protobuf message."""
    return b"".join(bytes([number << 3 | 2, len(content)]) + content for number, content in parts)


def samples() -> dict[str, tuple[bytes, str, str]]:
    """A content, and words of the sentence: what it is, what to do."""
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    arrays = io.BytesIO()
    np.savez(arrays, x=np.zeros(3))
    tensor = onnx.numpy_helper.from_array(np.zeros((2, 3), np.float32), "input").SerializeToString()
    weights = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    node = message((1, message((1, b"input"), (2, b"Placeholder"))))
    return {
        "PyTorch": (zipped("m/data.pkl", "m/data/0"), "a PyTorch file", "torch.onnx.export(model"),
        "old PyTorch": (
            pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"torch", "a PyTorch file", "torch.onnx"
        ),
        "TorchScript": (
            zipped("m/data.pkl", "m/constants.pkl", "m/code/a.py"), "TorchScript", "torch.jit.load"
        ),
        "exported program": (
            zipped("m/models/model.json", "m/version"), "torch.export", "torch.export.load"
        ),
        "pickle": (pickle.dumps({"a": 1}), "a pickle", "skl2onnx"),
        "TFLite": (b"\x1c\0\0\0TFL3" + bytes(50), "TensorFlow Lite", "tf2onnx.convert --tflite"),
        "TensorFlow graph": (node, "a TensorFlow graph", "tf2onnx.convert --graphdef"),
        "safetensors": (
            len(weights).to_bytes(8, "little") + weights + bytes(4), "safetensors", "optimum-cli"
        ),
        "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(90), "HDF5", "keras.models.load_model"),
        "Keras": (zipped("config.json", "model.weights.h5", "metadata.json"), "Keras", "export("),
        "zip": (zipped("model.onnx"), "a zip archive", "unzip"),
        "cut zip": (zipped("m/data.pkl", "m/data/0")[:40], "cut off or damaged", "Fetch it again"),
        "npz": (arrays.getvalue(), "an .npz file", "--calib"),
        "npy": (array.getvalue(), "a NumPy array", "path of an .onnx file"),
        "gzip": (gzip.compress(TINY["gemm net"]().SerializeToString()), "gzip", "gunzip -k"),
        "HTML": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "an HTML page", "curl -fL"),
        "git-lfs": (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "a pointer of git-lfs",
            "git lfs pull",
        ),
        "Core ML": (b"\x08\x04\x12\x00\xa2\x1f\x02\x0a\x00", "Core ML", "made of"),
        "GGUF": (b"GGUF\x03\0\0\0" + bytes(40), "GGUF", "optimum-cli export onnx"),
        "OpenVINO": (
            b'<?xml version="1.0"?>\n<net name="m" version="11">\n</net>', "OpenVINO", "made of"
        ),
        "ORT": (b"\x18\0\0\0ORTM" + bytes(50), "onnxruntime's own format", "made of"),
        "tensor": (tensor, "an ONNX tensor", "path of an .onnx file"),
        "JSON": (b'{"format": "graph-model"}', "a JSON file", "path of an .onnx file"),
        "text": ("größe = 3\n".encode(), "a text file", "path of an .onnx file"),
    }  # fmt: skip


@pytest.mark.parametrize("name", samples())
def test_a_foreign_file_is_named_with_what_to_do(name: str, tmp_path: Path, capsys: Said) -> None:
    content, what, remedy = samples()[name]
    path = tmp_path / "a file"
    path.write_bytes(content)
    assert cli.run([str(path), str(tmp_path / "out.onnx")]) == 3
    said = capsys.readouterr().err
    assert f"`{path}` is " in said
    assert what in said
    assert remedy in said
    assert "cut off" not in said.replace("cut off or damaged", "")
    assert not (tmp_path / "out.onnx").exists()
    with pytest.raises(ModelError, match="The model is "):
        Model.load(content)


@pytest.mark.parametrize(
    ("files", "part"),
    [
        (["saved_model.pb", "variables/x"], "tf2onnx.convert --saved-model"),
        (["config.json", "model.safetensors"], "optimum-cli export onnx --model"),
        (["Manifest.json"], "Core ML"),
        (["b.onnx", "config.json"], "give a file in it: `"),
        (["notes.txt"], "give the path of an .onnx file"),
    ],
)
def test_a_folder_is_named_with_what_to_do(
    files: list[str], part: str, tmp_path: Path, capsys: Said
) -> None:
    folder = tmp_path / "folder"
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    assert cli.run([str(folder), str(tmp_path / "out.onnx")]) == 2
    assert part in capsys.readouterr().err


@pytest.mark.parametrize("tiny", TINY)
def test_a_model_is_taken_for_nothing_else_however_it_is_cut(tiny: str) -> None:
    content = TINY[tiny]().SerializeToString()
    for end in {*range(1, min(len(content), 60)), len(content) // 2, len(content) - 1}:
        found = foreign_format(content[:end])
        assert found is None, (end, found)

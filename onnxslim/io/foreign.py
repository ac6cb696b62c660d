"""What a file is that is no ONNX model, and the command that makes an ONNX model of it.

Asked only of files that could not be read as a model, so a sign may be short. Formats are told by
their content; names of files are not believed.
"""

from __future__ import annotations

import io
import re
import shlex
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Final

from onnxslim.errors import ModelError
from onnxslim.graph import wire

Data = bytes | memoryview
_HEAD_BYTES: Final = 4096
_RETRY: Final = "Give the path of an .onnx file."


@dataclass(frozen=True)
class ForeignFormat:
    """A format of files that are no ONNX models.

    Attributes:
        what: the kind of file, with its article.
        remedy: what to do, in a sentence; `{file}` is the path, `{onnx}` that of the model to be.
    """

    what: str
    remedy: str = _RETRY

    def describe(self, path: Path | None) -> str:
        """The kind and the remedy, to follow the name of the file."""
        file = path or Path("FILE")
        # a file that is called .onnx all the same is not to be written over
        ending = ".exported.onnx" if file.suffix == ".onnx" else ".onnx"
        places = {"file": _quoted(file), "onnx": _quoted(file.with_suffix(ending))}
        text = self.remedy
        for name, place in places.items():
            text = text.replace(f"{{{name}}}", place)
        return f"is {self.what}, not an ONNX model. {text}"


_TORCH: Final = ForeignFormat(
    "a PyTorch file",
    "Export it in Python, where the class of the model is known: `torch.onnx.export(model, "
    "(example_input,), '{onnx}')`.",
)
_TORCHSCRIPT: Final = ForeignFormat(
    "a TorchScript file",
    "Export it in Python: `torch.onnx.export(torch.jit.load('{file}'), (example_input,), '{onnx}', "
    "dynamo=False)`.",
)
_TORCH_PROGRAM: Final = ForeignFormat(
    "a program of torch.export",
    "Export it in Python: `torch.onnx.export(torch.export.load('{file}'), f='{onnx}')`.",
)
_KERAS: Final = ForeignFormat(
    "a Keras model",
    "Export it: `python -c \"import keras; keras.models.load_model('{file}')"
    ".export('{onnx}', format='onnx')\"`.",
)
_HDF5: Final = ForeignFormat(
    "an HDF5 file, such as Keras writes",
    'A whole Keras model is exported by `python -c "import keras; '
    "keras.models.load_model('{file}').export('{onnx}', format='onnx')\"`.",
)
_TFLITE: Final = ForeignFormat(
    "a TensorFlow Lite model",
    "Convert it: `python -m tf2onnx.convert --tflite {file} --output {onnx}`.",
)
_FROZEN: Final = ForeignFormat(
    "a TensorFlow graph",
    "Convert it: `python -m tf2onnx.convert --graphdef {file} --inputs NAME:0 --outputs NAME:0 "
    "--output {onnx}`.",
)
_SAVED_MODEL_FILE: Final = ForeignFormat(
    "the graph of a TensorFlow SavedModel",
    "Convert the folder that holds it: `python -m tf2onnx.convert --saved-model FOLDER --output "
    "model.onnx`.",
)
_SAVED_MODEL: Final = ForeignFormat(
    "a TensorFlow SavedModel",
    "Convert it: `python -m tf2onnx.convert --saved-model {file} --output {onnx}`.",
)
_SAFETENSORS: Final = ForeignFormat(
    "a safetensors file: weights without a graph",
    "Export the model that they belong to: `optimum-cli export onnx --model FOLDER_OR_NAME OUT`.",
)
_HUGGING_FACE: Final = ForeignFormat(
    "a folder of a Hugging Face model",
    "Export it: `optimum-cli export onnx --model {file} OUT`.",
)
_GGUF: Final = ForeignFormat(
    "a GGUF file of llama.cpp, which no tool turns back",
    "Export the model that it was made of: `optimum-cli export onnx --model NAME OUT`.",
)
_COREML: Final = ForeignFormat(
    "a Core ML model, which no kept tool turns back",
    "Export the model that it was made of, such as with `torch.onnx.export`.",
)
_OPENVINO: Final = ForeignFormat(
    "an OpenVINO model, which no tool turns back", "Give the .onnx file that it was made of."
)
_PADDLE_HINT: Final = "Convert it: `paddle2onnx --model_filename {file} --save_file {onnx}`."
_LFS: Final = ForeignFormat(
    "a pointer of git-lfs: the file itself was not fetched", "Run `git lfs pull` in its repository."
)
_HTML: Final = ForeignFormat(
    "an HTML page, such as a server sends in place of a file",
    "Download the file again, from the address of its content: `curl -fL -o {onnx} ADDRESS`.",
)
_ZIP: Final = ForeignFormat("a zip archive", "Unpack it first: `unzip {file}`.")
_ORT: Final = ForeignFormat(
    "a model in onnxruntime's own format, which no tool turns back",
    "Give the .onnx file that it was made of.",
)

_MAGIC: Final[tuple[tuple[int, bytes, ForeignFormat], ...]] = (
    (0, b"version https://git-lfs.github.com/", _LFS),
    (4, b"TFL3", _TFLITE),
    (4, b"ORTM", _ORT),
    (4, b"ET12", ForeignFormat("an ExecuTorch program", _TORCH.remedy)),
    (0, b"GGUF", _GGUF),
    (0, b"\x89HDF\r\n\x1a\n", _HDF5),
    (0, b"ptrt", ForeignFormat("a TensorRT engine", _ORT.remedy)),
    (0, b"ftrt", ForeignFormat("a TensorRT engine", _ORT.remedy)),
    (0, b"RKNN", ForeignFormat("an RKNN model", _ORT.remedy)),
    (0, b"7767517\n", ForeignFormat("an ncnn model", _ORT.remedy)),
    (0, b"\x93NUMPY", ForeignFormat("a NumPy array")),
    (0, b"\x1f\x8b", ForeignFormat("a gzip file", "Unpack it first: `gunzip -k {file}`.")),
    (0, b"BZh", ForeignFormat("a bzip2 file", "Unpack it first: `bunzip2 -k {file}`.")),
    (0, b"\xfd7zXZ\0", ForeignFormat("an xz file", "Unpack it first: `unxz -k {file}`.")),
    (0, b"\x28\xb5\x2f\xfd", ForeignFormat("a zstd file", "Unpack it first: `unzstd {file}`.")),
    (0, b"\x04\x22\x4d\x18", ForeignFormat("an lz4 file", "Unpack it first: `unlz4 {file}`.")),
    (0, b"7z\xbc\xaf\x27\x1c", ForeignFormat("a 7z archive", "Unpack it first: `7z x {file}`.")),
    (0, b"Rar!", ForeignFormat("a rar archive", "Unpack it first: `unrar x {file}`.")),
    (257, b"ustar", ForeignFormat("a tar archive", "Unpack it first: `tar xf {file}`.")),
    (0, b"%PDF", ForeignFormat("a PDF document")),
    (0, b"\x89PNG", ForeignFormat("a picture")),
    (0, b"\xff\xd8\xff", ForeignFormat("a picture")),
    (0, b"GIF8", ForeignFormat("a picture")),
    (0, b"\x7fELF", ForeignFormat("a program")),
    (0, b"MZ", ForeignFormat("a program")),
)
_PICKLE: Final = re.compile(rb"\x80[\x02-\x05].", re.DOTALL)
_TEXT: Final = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]+")


def foreign_format(file: Data) -> ForeignFormat | None:
    """The format of the content of a file that is no ONNX model; None: none that is known."""
    head = bytes(file[:_HEAD_BYTES])
    for at, magic, found in _MAGIC:
        if head[at : at + len(magic)] == magic:
            return found
    return next((match for look in _LOOKS if (match := look(file, head)) is not None), None)


def foreign_folder(folder: Path) -> str:
    """What a folder is that was given in place of a model, and what to do."""
    names = sorted(item.name for item in folder.iterdir())
    kinds = {
        "saved_model.pb": _SAVED_MODEL,
        "keras_metadata.pb": _SAVED_MODEL,
        "Manifest.json": _COREML,
        "config.json": _HUGGING_FACE,
    }
    models = [name for name in names if name.endswith((".onnx", ".onnxz"))]
    if models:
        listed = ", ".join(f"`{folder / name}`" for name in models[:3])
        return f"is a folder; give a file in it: {listed}{', ...' if len(models) > 3 else ''}."
    for name, found in kinds.items():
        if name in names:
            return found.describe(folder)
    return "is a folder; give the path of an .onnx file."


# --------------------------------------------------------------------------- looks


def _zip(file: Data, head: bytes) -> ForeignFormat | None:
    if not head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return None
    try:
        names = zipfile.ZipFile(_stream(file)).namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return ForeignFormat("a zip archive that is cut off or damaged", "Fetch it again.")
    tails = {name.partition("/")[2] for name in names}
    if "constants.pkl" in tails or any(tail.startswith("code/") for tail in tails):
        return _TORCHSCRIPT
    if "serialized_exported_program.json" in names or any("models/" in name for name in names):
        return _TORCH_PROGRAM
    if "data.pkl" in tails:
        return _TORCH
    if {"config.json", "model.weights.h5"} <= set(names):
        return _KERAS
    if names and all(name.endswith(".npy") for name in names):
        return ForeignFormat("an .npz file of arrays", "Samples go to --calib, after the model.")
    return _ZIP


def _stream(file: Data) -> IO[bytes]:
    """A stream of the content; a mapped file is one itself, and may be large."""
    mapped: IO[bytes] | None = getattr(file, "obj", None)
    return mapped if mapped is not None and hasattr(mapped, "read") else io.BytesIO(file)


def _safetensors(file: Data, head: bytes) -> ForeignFormat | None:
    # the length of a JSON object in 8 bytes, then the object
    is_header = len(head) > 9 and head[8:9] == b"{"
    return _SAFETENSORS if is_header and int.from_bytes(head[:8], "little") < len(file) else None


def _pickle(file: Data, head: bytes) -> ForeignFormat | None:
    if not _PICKLE.match(head):
        return None
    if b"torch" in head or b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." in head:
        return _TORCH
    return ForeignFormat(
        "a pickle of Python objects",
        "Export the model in it with its own library: `torch.onnx.export` for PyTorch, "
        "`skl2onnx.to_onnx` for scikit-learn.",
    )


def _text(file: Data, head: bytes) -> ForeignFormat | None:
    if not _TEXT.fullmatch(head):
        return None
    words = head.lstrip(b"\xef\xbb\xbf").lstrip().lower()
    if words.startswith((b"<!doctype html", b"<html")) or b"<html" in words[:512]:
        return _HTML
    if words.startswith(b"<"):
        return _OPENVINO if re.search(rb"<net\s", words) else ForeignFormat("an XML file")
    if words.startswith((b"{", b"[")):
        return ForeignFormat("a JSON file")
    return ForeignFormat("a text file")


def _protobuf(file: Data, head: bytes) -> ForeignFormat | None:
    """Other messages: told by the numbers and kinds of their first fields."""
    found = dict(_first_fields(file))
    if set(found) & _COREML_FIELDS and found.get(1) == _VARINT:
        return _COREML
    if found.get(2) == _VARINT and found.keys() <= {1, 2, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14}:
        return ForeignFormat("an ONNX tensor, such as the data of a test")
    if not head.startswith(b"\x0a") and not head.startswith(b"\x08\x01\x12"):
        return None
    if head.startswith(b"\x08\x01\x12") and b"serve" in head:
        return _SAVED_MODEL_FILE
    if re.search(rb"\x12[\x05-\x14](Placeholder|Const|NoOp|VariableV2)", head):
        return _FROZEN
    if found.keys() <= {1, 2, 4, 5} and b"feed" in head and b"fetch" in head:
        return ForeignFormat("a PaddlePaddle model", _PADDLE_HINT)
    if b"layer" in head.lower() and set(found) & {2, 100}:
        return ForeignFormat("a Caffe model", _ORT.remedy)
    return None


def _first_fields(file: Data, most: int = 64) -> list[tuple[int, int]]:
    """Numbers and wire types of the first fields of a message, as far as it is one."""
    found: list[tuple[int, int]] = []
    with suppress(ModelError):
        for number, kind, *_ in islice(wire.fields_of(memoryview(file), 0, len(file)), most):
            found.append((number, kind))
    return found


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


_VARINT: Final = 0  # a wire type
_COREML_FIELDS: Final = frozenset(
    {200, 201, 202, 300, 301, 302, 303, 304, 400, 401, 402, 403, 404, 500, 501, 502, 600, 900}
    | {303, 403, 550, 551, 552, 553, 554, 555, 556, 560, 601, 602, 603, 604, 606, 607, 609, 610}
    | {2000, 2001, 2002, 2003, 2004, 2005, 2006, 3000}
)
"""Kinds of models in the message `Model` of Core ML (mlmodel/format/Model.proto)."""

_LOOKS: Final[tuple[Callable[[Data, bytes], ForeignFormat | None], ...]] = (
    _zip,
    _safetensors,
    _pickle,
    _text,
    _protobuf,
)

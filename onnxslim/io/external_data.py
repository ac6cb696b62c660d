"""Tensors whose values lie outside their message: found when read, pointed to when written.

A file may be hostile: offsets and sizes are checked against the data, paths against the model's
folder, before either is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx

from onnxslim.errors import ModelError, UsageError
from onnxslim.graph import wire
from onnxslim.graph.ir import storage_bytes
from onnxslim.io.staging import map_file


class ExternalData:
    """Finds the bytes of external tensors and placeholders, as views on mapped files."""

    def __init__(self, file: memoryview, path: Path | None) -> None:
        self.file = file
        self.folder = path.resolve().parent if path else None
        self.name = path.name if path else ""
        self.files: dict[Path, memoryview] = {}

    def read(self, tensor: onnx.TensorProto) -> wire.Buffer | None:
        """The bytes of a tensor; None where they are in the message itself.

        Raises:
            ModelError: they are missing, or lie where they may not.
        """
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return None
        entries = wire.external_entries(tensor)
        location = entries.get("location", "")
        inside = location == wire.PLACEHOLDER
        data = self.file if inside else self._open(location, tensor.name)
        offset = _natural(entries.get("offset", "0"), tensor.name)
        elements = 1
        for size in tensor.dims:
            elements *= size
        expected = storage_bytes(tensor.data_type, elements)
        length = _natural(entries.get("length", str(expected or 0)), tensor.name)
        if offset + length > len(data):
            raise ModelError(
                f"Tensor `{tensor.name}` lies at bytes {offset} to {offset + length} of "
                f"`{location}`, which has only {len(data)}. The data file is cut off or belongs "
                "to another model."
            )
        return data[offset : offset + length]

    def _open(self, location: str, tensor: str) -> memoryview:
        if self.folder is None:
            raise ModelError(
                f"Tensor `{tensor}` lies in the file `{location}`; a model with external data "
                "must be loaded from its path."
            )
        path = self.folder / location
        if not location or Path(location).is_absolute() or ".." in Path(location).parts:
            raise ModelError(
                f"Tensor `{tensor}` refers to `{location}`: external data must be a relative "
                "path inside the model's folder. The file is not trusted."
            )
        # unlike resolve, realpath takes links in a circle
        if not Path(os.path.realpath(path)).is_relative_to(self.folder):
            raise ModelError(
                f"Tensor `{tensor}` refers to `{location}`, a link that leaves the model's "
                "folder. The file is not trusted."
            )
        if path not in self.files:
            try:
                self.files[path] = map_file(path)
            except UsageError as error:
                raise ModelError(
                    f"The weights of tensor `{tensor}` are missing: {error} "
                    f"It must lie beside `{self.name}`."
                ) from None
        return self.files[path]


class NamedData(ExternalData):
    """As `ExternalData`, of a file whose other data are found by name, in no folder of its own."""

    def __init__(self, file: memoryview, find: Callable[[str], memoryview]) -> None:
        super().__init__(file, None)
        self._find = find

    def _open(self, location: str, tensor: str) -> memoryview:
        return self._find(location)


def with_places(
    skeleton: bytes, payloads: Sequence[wire.Payload], places: Mapping[int, tuple[str, int]]
) -> bytes:
    """A skeleton some of whose placeholders of tensors point to other files.

    Args:
        skeleton: a serialized ModelProto.
        payloads: of its placeholders.
        places: name of the file, and offset in bytes, by index of the payload.
    """
    model = onnx.ModelProto.FromString(skeleton)
    for tensor in onnx.external_data_helper._get_all_tensors(model):
        entries = wire.external_entries(tensor)
        if entries.get("location") == wire.PLACEHOLDER and int(entries["offset"]) in places:
            index = int(entries["offset"])
            name, offset = places[index]
            wire.placeholder(tensor, offset, payloads[index].nbytes)
            tensor.external_data[0].value = name
    whole: bytes = model.SerializeToString(deterministic=True)
    return whole


def _natural(text: str, tensor: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ModelError(f"Tensor `{tensor}` has a broken external offset or length: {text!r}.")
    return int(text)

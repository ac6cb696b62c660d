"""Whether an existing file was written by onnxslim: by what the file itself says.

Model files carry the key `onnxslim`, or keys that begin with `onnxslim.`, in `metadata_props`;
packed files begin with their magic bytes; reports begin or are labelled as reports of onnxslim.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError

from onnxslim.errors import ModelError, UsageError
from onnxslim.graph import wire
from onnxslim.io.staging import map_file
from onnxslim.packing import is_packed

MARK: Final = "onnxslim"
"""The shortest mark of a model file: a key without a value."""


def is_marked(path: Path) -> bool:
    """Whether `path` is a model file or a packed file that onnxslim wrote."""
    try:
        file = map_file(path)
        if is_packed(file):
            return True
        model = onnx.ModelProto.FromString(wire.split(file).skeleton)
    except (ModelError, UsageError, DecodeError):
        return False
    return any(prop.key == MARK or prop.key.startswith(f"{MARK}.") for prop in model.metadata_props)

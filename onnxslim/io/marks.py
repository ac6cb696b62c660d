"""Whether an existing file may be replaced: it was written by onnxslim, as the file itself says.

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
from onnxslim.io.files import same_content, sha256_of
from onnxslim.io.staging import check_target, map_file
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


def check_output(
    output: Path, source: Path | None, *, overwrite: bool = False, content: str | None = None
) -> None:
    """Refuse an output that no file can be written to, or that would replace a file of others.

    An existing file is replaced only if onnxslim wrote it, or if it holds what would be written.

    Args:
        output: the file to write.
        source: the input; None: a model in memory.
        overwrite: whether the user lets any file be replaced.
        content: sha256 in hex of what is to be written, where it is known.

    Raises:
        UsageError: why.
    """
    check_target(output, source)
    if overwrite or not output.exists():
        return
    if content:
        is_same = sha256_of(output) == content
    else:  # where no step helps, the output is a copy of the input, without a mark
        is_same = source is not None and same_content(output, source)
    if not is_same and not is_marked(output):
        raise not_ours(output)


def not_ours(path: Path) -> UsageError:
    """The error for an existing file that onnxslim did not write."""
    return UsageError(
        f"`{path}` exists, and onnxslim did not write it. Give another name, or --overwrite "
        "(in Python: overwrite=True) to replace it."
    )

"""The packed file `.onnxz`: a model for storage and transfer, in as few bytes as we know how.

`pack` joins the rest: `container` (layout, limits, checksums) holds coded `tensors` (which class a
tensor is of), which are `elements` (sparse, from a table, byte by byte), which are `streams` of
symbols, coded by `coders` with the models of `adaptive`. docs/packed_format.md says it to the byte.
"""

from __future__ import annotations

from typing import Final

MAGIC: Final = b"\x8fONNXZ"  # no text, no protobuf message


def is_packed(file: bytes | memoryview) -> bool:
    """Whether `file` begins as a packed file does."""
    return bytes(file[: len(MAGIC)]) == MAGIC

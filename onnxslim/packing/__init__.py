"""The packed file `.onnxz`: a model for storage and transfer, in as few bytes as we know how.

`docs/packed_format.md` says the format to the byte.

container  the layout of a file: header, index, bodies, checksums, limits
tensors    coded tensors, by the class that a tensor is of
elements   the elements of a tensor as streams: sparse, from a table, byte by byte
streams    streams of symbols
coders     bytes to fewer bytes: zstd, Huffman, a range coder
adaptive   probability models that learn while they code
radix      digits of a small base, several to a byte
fields     numbers in headers
"""

from __future__ import annotations

from typing import Final

MAGIC: Final = b"\x8fONNXZ"  # no text, no protobuf message


def is_packed(file: bytes | memoryview) -> bool:
    """Whether `file` begins as a packed file does."""
    return bytes(file[: len(MAGIC)]) == MAGIC

"""The layout of a packed file: header, index, bodies of streams, checksum.

A reader trusts nothing. It compares the length and the checksum of the file first, and then each
size with the file and with `most_unpacked`, before it allocates memory.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from onnxslim.errors import ModelError
from onnxslim.packing import MAGIC, coders
from onnxslim.packing.fields import FieldReader, varint
from onnxslim.packing.streams import CodedStream, StreamSource
from onnxslim.packing.tensors import CodedUnit, describe, read_unit

VERSION: Final = 1
_EXTERNAL: Final = 1
_DIGEST_BYTES, _CHECK_BYTES = 32, 4
_FREE_BYTES: Final = 256 << 20
_PER_BYTE: Final = 1000


@dataclass(frozen=True)
class FileHeader:
    """The header of a packed file: size and digest of the .onnx file, `external` data or not."""

    unpacked_bytes: int
    sha256: bytes
    external: bool


@dataclass(frozen=True)
class PayloadSpan:
    """Where a payload lies in the .onnx file: `before` bytes after the end of the one before it."""

    before: int
    nbytes: int


@dataclass(frozen=True)
class EncodedUnit:
    """A unit with its coded bytes and the CRC-32 of its payloads."""

    unit: CodedUnit
    coded: CodedStream
    checksum: int


def most_unpacked(nbytes: int) -> int:
    """The most bytes that a packed file of `nbytes` may unpack to: 256 MiB, and 1000 for each."""
    return _FREE_BYTES + _PER_BYTE * nbytes


# --------------------------------------------------------------------------- writing


def index_of(spans: Sequence[PayloadSpan], packed: Sequence[EncodedUnit], rest: bytes) -> bytes:
    """The index, before compression: spans of payloads, units with their heads, other bytes.

    Args:
        spans: where the payloads lie, in order.
        packed: the units.
        rest: all bytes of the .onnx file that are in no payload.
    """
    parts = [varint(len(spans))]
    parts += [varint(span.before, span.nbytes) for span in spans]
    parts.append(varint(len(packed)))
    for item in packed:
        parts += [describe(item.unit), item.coded.head, item.checksum.to_bytes(4, "little")]
    return b"".join([*parts, rest])


def write(header: FileHeader, index: bytes, bodies: Sequence[bytes]) -> list[bytes]:
    """The pieces of the packed file, in order."""
    frame = coders.zstd(index, words=True)
    fixed = header.sha256 + varint(header.unpacked_bytes, len(index), len(frame))
    size = len(fixed) + len(frame) + sum(map(len, bodies)) + _CHECK_BYTES
    start = MAGIC + bytes([VERSION, _EXTERNAL if header.external else 0]) + varint(size)
    pieces = [start + fixed, frame, *bodies]
    check = 0
    for piece in pieces:
        check = zlib.crc32(piece, check)
    return [*pieces, check.to_bytes(_CHECK_BYTES, "little")]


# --------------------------------------------------------------------------- reading


def read_header(file: memoryview) -> tuple[FileHeader, int, FieldReader]:
    """Read the header.

    Returns:
        The header, the unpacked size of the index, and a reader at the frame of the index.

    Raises:
        ModelError: the file is cut off or altered, of a newer format, or claims too much.
    """
    reader = FieldReader(file, "the file")
    reader.take(len(MAGIC))
    version, flags = reader.byte(), reader.byte()
    if version != VERSION:
        raise ModelError(
            f"it has format version {version}, and this version of onnxslim reads {VERSION} only; "
            "update onnxslim"
        )
    size = reader.number()
    if size != reader.left:
        raise ModelError(
            f"it should go on for {size:,} bytes, but {reader.left:,} are there; it was cut off "
            "or altered"
        )
    end = len(file) - _CHECK_BYTES
    if end < reader.at + _DIGEST_BYTES:
        raise ModelError(f"it has {size:,} bytes, too few for a header")
    if zlib.crc32(file[:end]) != int.from_bytes(file[end:], "little"):
        raise ModelError("its checksum does not fit; it was altered")
    inner = FieldReader(file[reader.at : end], "the file")
    digest = bytes(inner.take(_DIGEST_BYTES))
    header = FileHeader(inner.number(), digest, bool(flags & _EXTERNAL))
    index_bytes = inner.number()
    limit = most_unpacked(len(file))
    if max(header.unpacked_bytes, index_bytes) > limit:
        raise ModelError(
            f"it declares {max(header.unpacked_bytes, index_bytes):,} bytes, but a packed file of "
            f"{len(file):,} bytes may unpack to {limit:,} at most"
        )
    return header, index_bytes, inner


def read_index(
    header: FileHeader, index_bytes: int, reader: FieldReader
) -> tuple[list[PayloadSpan], FieldReader]:
    """Decompress the index and read where payloads lie; leaves `reader` at the bodies.

    Returns:
        The spans of the payloads, and a reader of the index at its units.

    Raises:
        ModelError: the index is broken, or its sizes do not add up.
    """
    frame = reader.take(reader.number())
    index = FieldReader(coders.unzstd(frame, index_bytes, words=True), "the index")
    most = header.unpacked_bytes
    count = index.number(index.left)
    spans = [PayloadSpan(index.number(most), index.number(most)) for _ in range(count)]
    if sum(span.before + span.nbytes for span in spans) > most:
        raise ModelError(f"its tensors take more than the {most:,} bytes that are declared")
    return spans, index


def restore(file: memoryview, name: str) -> tuple[memoryview, bool]:
    """The .onnx file in the packed file `file`, and whether it had external data.

    Args:
        file: the bytes of the packed file.
        name: its name in messages.

    Raises:
        ModelError: the file is cut off, altered, of a newer format, or claims too much.
    """
    try:
        return _restored(file)
    except ModelError as error:
        raise ModelError(f"{name} is a packed file that cannot be used: {error}.") from None


def _restored(file: memoryview) -> tuple[memoryview, bool]:
    header, index_bytes, reader = read_header(file)
    spans, index = read_index(header, index_bytes, reader)
    out = bytearray(header.unpacked_bytes)
    starts = list(_starts(spans))
    _restore_units(StreamSource(index, reader), spans, starts, memoryview(out))
    at = 0
    for span, start in zip(spans, starts, strict=True):
        out[at:start] = index.take(span.before)
        at = start + span.nbytes
    if index.left != len(out) - at or reader.left:
        raise ModelError(f"{index.left + reader.left:,} bytes are left over, not {len(out) - at:,}")
    out[at:] = index.take(index.left)
    if hashlib.sha256(out).digest() != header.sha256:
        raise ModelError("what is in it is not the model that was packed: its sha256 differs")
    return memoryview(out).toreadonly(), header.external


def _starts(spans: Iterable[PayloadSpan]) -> Iterator[int]:
    at = 0
    for span in spans:
        at += span.before
        yield at
        at += span.nbytes


def _restore_units(
    source: StreamSource, spans: Sequence[PayloadSpan], starts: Sequence[int], out: memoryview
) -> None:
    sizes = [span.nbytes for span in spans]
    missing = set(range(len(spans)))
    for _ in range(source.heads.number(len(spans))):
        unit = read_unit(source.heads, sizes)
        if not missing.issuperset(unit.payloads):
            raise ModelError("two units hold the same tensor")
        missing.difference_update(unit.payloads)
        own = [sizes[index] for index in unit.payloads]
        check = 0
        for index, data in zip(unit.payloads, unit.restored(source, own), strict=True):
            out[starts[index] : starts[index] + sizes[index]] = data
            check = zlib.crc32(data, check)
        if check != int.from_bytes(source.heads.take(4), "little"):
            raise ModelError(f"the checksum of tensor {unit.payloads[0]} does not fit")
    if missing:
        raise ModelError(f"tensor {min(missing)} is missing")

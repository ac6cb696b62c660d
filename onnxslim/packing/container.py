"""The layout of a packed file: header, index, bodies, checksum; and what it may claim.

A reader believes nothing: the length of the file and its checksum come first, then every size is
held against the file and against `most_unpacked` before anything is allocated.
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
    """What a packed file says of the model in it.

    Attributes:
        unpacked_bytes: of the .onnx file.
        sha256: of the .onnx file.
        external: the input had its weights in files beside it.
    """

    unpacked_bytes: int
    sha256: bytes
    external: bool


@dataclass(frozen=True)
class PayloadSpan:
    """A payload in the .onnx file: how many bytes of other things come before it, and its own."""

    before: int
    nbytes: int


@dataclass(frozen=True)
class EncodedUnit:
    """A unit, coded, with the checksum of its payloads."""

    unit: CodedUnit
    coded: CodedStream
    checksum: int


def most_unpacked(nbytes: int) -> int:
    """What a packed file of `nbytes` bytes may unpack to: 256 MiB, and 1000 bytes for each byte."""
    return _FREE_BYTES + _PER_BYTE * nbytes


# --------------------------------------------------------------------------- writing


def index_of(places: Sequence[PayloadSpan], packed: Sequence[EncodedUnit], rest: bytes) -> bytes:
    """All that is compressed in one piece: where payloads lie, heads, and the rest of the file."""
    parts = [varint(len(places))]
    parts += [varint(place.before, place.nbytes) for place in places]
    parts.append(varint(len(packed)))
    for item in packed:
        parts += [describe(item.unit), item.coded.head, item.checksum.to_bytes(4, "little")]
    return b"".join([*parts, rest])


def write(header: FileHeader, index: bytes, bodies: Sequence[bytes]) -> list[bytes]:
    """The pieces of the whole file."""
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
    """The header, the size of the index, and what follows: the index's frame and the bodies.

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
    """Where payloads lie, and the reader of what follows in the index; `reader` is left at bodies.

    Raises:
        ModelError: the index is broken, or its sizes do not add up.
    """
    frame = reader.take(reader.number())
    index = FieldReader(coders.unzstd(frame, index_bytes, words=True), "the index")
    most = header.unpacked_bytes
    count = index.number(index.left)
    places = [PayloadSpan(index.number(most), index.number(most)) for _ in range(count)]
    if sum(place.before + place.nbytes for place in places) > most:
        raise ModelError(f"its tensors take more than the {most:,} bytes that are declared")
    return places, index


def restore(file: memoryview, name: str) -> tuple[memoryview, bool]:
    """The .onnx file in the packed file `file`, and whether it had external data.

    Args:
        file: the packed file.
        name: what messages call it.

    Raises:
        ModelError: the file is cut off, altered, of a newer format, or claims too much.
    """
    try:
        return _restored(file)
    except ModelError as error:
        raise ModelError(f"{name} is a packed file that cannot be used: {error}.") from None


def _restored(file: memoryview) -> tuple[memoryview, bool]:
    header, index_bytes, reader = read_header(file)
    places, index = read_index(header, index_bytes, reader)
    out = bytearray(header.unpacked_bytes)
    starts = list(_starts(places))
    _restore_units(StreamSource(index, reader), places, starts, memoryview(out))
    at = 0
    for place, start in zip(places, starts, strict=True):
        out[at:start] = index.take(place.before)
        at = start + place.nbytes
    if index.left != len(out) - at or reader.left:
        raise ModelError(f"{index.left + reader.left:,} bytes are left over, not {len(out) - at:,}")
    out[at:] = index.take(index.left)
    if hashlib.sha256(out).digest() != header.sha256:
        raise ModelError("what is in it is not the model that was packed: its sha256 differs")
    return memoryview(out).toreadonly(), header.external


def _starts(places: Iterable[PayloadSpan]) -> Iterator[int]:
    at = 0
    for place in places:
        at += place.before
        yield at
        at += place.nbytes


def _restore_units(
    source: StreamSource, places: Sequence[PayloadSpan], starts: Sequence[int], out: memoryview
) -> None:
    sizes = [place.nbytes for place in places]
    missing = set(range(len(places)))
    for _ in range(source.heads.number(len(places))):
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

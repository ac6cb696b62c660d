"""Coded units: the tensors of a file that are coded together, and how they become elements.

A *payload* is the data of one tensor of the .onnx file. A *unit* is one or more payloads that are
coded together and share a checksum:

    CodedUnit     payloads of one element size, one after the other
    PlanesUnit    the codes of a codebook weight, in planes of digits (see `radix`)
    IndexedUnit   values and linear indices of a sparse initializer

Owns: how a unit is coded, described in the file, and restored; a reader needs no graph. Not here:
which tensors form a unit (see `onnxslim.tools.tensor_classes`).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Final

import numpy as np

from onnxslim.errors import ModelError
from onnxslim.packing import radix
from onnxslim.packing.elements import (
    ElementCoding,
    Elements,
    decode_elements,
    encode_elements,
)
from onnxslim.packing.fields import FieldReader, varint
from onnxslim.packing.streams import (
    CodedStream,
    CodingMethod,
    StreamSource,
    decode_positions,
    encode_positions,
    smallest,
)

_ROTATED: Final = 0x80  # flag beside the element size
_DENSE_PER_VALUE: Final = 128  # the most elements for each value, of a matrix that may be built
_DENSE_ALWAYS: Final = 1 << 20  # elements up to which any matrix may be built


class CodedUnitKind(enum.IntEnum):
    """The first byte of a unit's description."""

    PLAIN = 0
    PLANES = 1
    INDEXED = 2


class TensorClass(enum.StrEnum):
    """A row of the table that `pack` prints."""

    CODES = "codebook codes"
    TABLE = "few distinct values"
    ZEROS = "many zeros"
    INDEXED = "sparse initializers"
    OTHER = "other tensors"


@dataclass(frozen=True)
class CodedUnit:
    """Payloads that are coded together; this class: as elements of one size.

    Attributes:
        payloads: the numbers of the payloads in the file, ascending.
        elements: the elements in them; of an `IndexedUnit` its values.
    """

    payloads: tuple[int, ...]
    elements: Elements

    kind = CodedUnitKind.PLAIN

    def description(self) -> bytes:
        """The bytes from which a reader knows the elements, given the sizes of the payloads."""
        size = self.elements.itemsize | (_ROTATED if self.elements.rotated else 0)
        return bytes([size]) + varint(self.elements.rows)

    def coded(self, data: Sequence[memoryview], method: CodingMethod) -> CodedStream:
        """The bytes of the payloads, coded."""
        return encode_elements(self.array(data), self.elements, method)

    def array(self, data: Sequence[memoryview]) -> np.ndarray:
        """The elements in the payloads."""
        whole = data[0] if len(data) == 1 else b"".join(data)
        return np.frombuffer(whole, self.elements.dtype)

    def restored(self, source: StreamSource, sizes: Sequence[int]) -> Iterator[bytes | memoryview]:
        """The bytes of each payload, decoded.

        Raises:
            ModelError: the streams are broken.
        """
        whole = _bytes_of(decode_elements(source, self.elements))
        at = 0
        for size in sizes:
            yield whole[at : at + size]
            at += size

    def tensor_class(self, coded: CodedStream) -> TensorClass:
        """The class of the tensors in it, given how they were coded."""
        forms = {ElementCoding.TABLE: TensorClass.TABLE, ElementCoding.SPARSE: TensorClass.ZEROS}
        return forms.get(ElementCoding(coded.head[0]), TensorClass.OTHER)

    def plain(self, sizes: Sequence[int]) -> list[CodedUnit]:
        """The same payloads as units of plain elements: what zstd, which knows no classes, gets."""
        return [self]


@dataclass(frozen=True)
class PlanesUnit(CodedUnit):
    """The codes of a codebook weight; `elements.alphabet` is its number of levels."""

    kind = CodedUnitKind.PLANES

    def description(self) -> bytes:
        """See `CodedUnit`."""
        return varint(self.elements.alphabet - 1, self.elements.rows, self.elements.columns)

    def array(self, data: Sequence[memoryview]) -> np.ndarray:
        """See `CodedUnit`."""
        planes = [np.frombuffer(item, np.uint8) for item in data]
        return radix.unpack(planes, self.elements.alphabet, self.elements.count)

    def restored(self, source: StreamSource, sizes: Sequence[int]) -> Iterator[bytes | memoryview]:
        """See `CodedUnit`."""
        codes = decode_elements(source, self.elements)
        for plane in radix.pack(codes, self.elements.alphabet):
            yield plane.data

    def tensor_class(self, coded: CodedStream) -> TensorClass:
        """See `CodedUnit`."""
        return TensorClass.CODES

    def plain(self, sizes: Sequence[int]) -> list[CodedUnit]:
        """See `CodedUnit`."""
        return [CodedUnit(self.payloads, Elements(1, sum(sizes), 1))]


class IndexLayout(enum.IntEnum):
    """How the indices of a sparse initializer lie in the file."""

    INT64 = 0
    VARINTS = 1


@dataclass(frozen=True)
class IndexedUnit(CodedUnit):
    """Values and linear indices of a sparse initializer.

    Attributes:
        elements: the values, in the order of the indices.
        rows, columns: the shape of the dense matrix.
    """

    rows: int
    columns: int
    index_layout: IndexLayout

    kind = CodedUnitKind.INDEXED

    @property
    def dense(self) -> Elements | None:
        """The elements of the dense matrix; None where it is too large to be built."""
        if self.rows * self.columns > max(_DENSE_PER_VALUE * self.elements.count, _DENSE_ALWAYS):
            return None
        return replace(self.elements, rows=self.rows, columns=self.columns)

    def description(self) -> bytes:
        """See `CodedUnit`."""
        return super().description() + varint(self.rows, self.columns, self.index_layout)

    def coded(self, data: Sequence[memoryview], method: CodingMethod) -> CodedStream:
        """See `CodedUnit`: as the dense matrix, or as positions and values, which is smaller."""
        values, indices = self.values(data), self.indices(data)
        found = CodedStream(b"\0", b"") + encode_positions(indices, method)
        found += encode_elements(values, self.elements, method)
        if self.dense is None or not bool(values.all()):
            return found
        matrix = np.zeros(self.dense.count, self.dense.dtype)
        matrix[indices] = values
        dense = CodedStream(b"\1", b"") + encode_elements(matrix, self.dense, method)
        return smallest((dense, found))

    def values(self, data: Sequence[memoryview]) -> np.ndarray:
        """The values, one-dimensional, of the type of `elements`."""
        return np.frombuffer(data[0], self.elements.dtype)

    def indices(self, data: Sequence[memoryview]) -> np.ndarray:
        """The indices, int64; arbitrary numbers where varints are broken."""
        if self.index_layout is IndexLayout.INT64:
            return np.frombuffer(data[1], np.int64)
        return from_varints(np.frombuffer(data[1], np.uint8))

    def restored(self, source: StreamSource, sizes: Sequence[int]) -> Iterator[bytes | memoryview]:
        """See `CodedUnit`."""
        values, indices = self._read(source)
        yield _bytes_of(values)
        if self.index_layout is IndexLayout.VARINTS:
            indices = to_varints(indices)
        if indices.nbytes != sizes[1]:
            raise ModelError(f"indices take {indices.nbytes:,} bytes, not {sizes[1]:,}")
        yield _bytes_of(indices)

    def _read(self, source: StreamSource) -> tuple[np.ndarray, np.ndarray]:
        count, dense = self.elements.count, self.dense
        if not source.heads.number(1):
            indices = decode_positions(source, self.rows * self.columns, count)
            return decode_elements(source, self.elements), indices
        if dense is None:
            raise ModelError(f"a matrix of {self.rows:,} by {self.columns:,} has {count:,} values")
        matrix = decode_elements(source, dense)
        indices = np.flatnonzero(matrix)
        if indices.size != count:
            raise ModelError(f"a sparse tensor has {indices.size:,} values, not {count:,}")
        return matrix[indices], indices

    def tensor_class(self, coded: CodedStream) -> TensorClass:
        """See `CodedUnit`."""
        return TensorClass.INDEXED

    def plain(self, sizes: Sequence[int]) -> list[CodedUnit]:
        """See `CodedUnit`."""
        values, indices = self.payloads
        size = 8 if self.index_layout is IndexLayout.INT64 else 1
        return [
            CodedUnit((values,), self.elements),
            CodedUnit((indices,), Elements(1, sizes[1] // size, size)),
        ]


def to_varints(values: np.ndarray) -> np.ndarray:
    """Numbers of at least 0 as protobuf packs them, uint8."""
    lengths = np.ones(values.size, np.int64)  # bytes of each number: seven bits a byte
    for bits in range(7, 63, 7):
        lengths += values >> bits > 0
    starts = np.cumsum(lengths) - lengths
    packed = np.empty(int(lengths.sum()), np.uint8)
    for index in range(int(lengths.max(initial=0))):  # byte `index` of all numbers that have it
        some = np.flatnonzero(lengths > index)
        more = np.where(lengths[some] > index + 1, 0x80, 0)
        packed[starts[some] + index] = values[some] >> 7 * index & 0x7F | more
    return packed


def from_varints(packed: np.ndarray) -> np.ndarray:
    """The numbers, int64, that `to_varints` packed; arbitrary numbers for other bytes."""
    ends = np.flatnonzero(packed < 0x80)
    lengths = np.diff(ends, prepend=-1)
    values = np.zeros(ends.size, np.int64)
    for index in range(min(int(lengths.max(initial=0)), 9)):  # nine bytes: 63 bits
        some = np.flatnonzero(lengths > index)
        part = packed[ends[some] - lengths[some] + 1 + index].astype(np.int64) & 0x7F
        values[some] |= part << 7 * index
    return values


# --------------------------------------------------------------------------- descriptions


def describe(unit: CodedUnit) -> bytes:
    """The description of a unit in the file: kind, payloads, and what its class adds."""
    steps = np.diff(unit.payloads, prepend=-1) - 1
    return bytes([unit.kind]) + varint(len(unit.payloads), *steps.tolist()) + unit.description()


def read_unit(reader: FieldReader, sizes: Sequence[int]) -> CodedUnit:
    """Read the description of a unit.

    Args:
        reader: at the description.
        sizes: bytes of all payloads of the file.

    Raises:
        ModelError: the description does not fit the payloads.
    """
    kind = reader.byte()
    payloads: list[int] = []
    last = -1
    for _ in range(reader.number(len(sizes))):
        last += 1 + reader.number(len(sizes))
        if last >= len(sizes):
            raise ModelError(f"a unit refers to tensor {last} of {len(sizes)}")
        payloads.append(last)
    own = [sizes[index] for index in payloads]
    if not own:
        raise ModelError("a unit has no tensors")
    if kind == CodedUnitKind.PLANES:
        return _read_planes(reader, tuple(payloads), own)
    if kind not in (CodedUnitKind.PLAIN, CodedUnitKind.INDEXED):
        raise ModelError(f"a unit is of the unknown kind {kind}")
    elements = _read_plain(reader, own[0] if kind == CodedUnitKind.INDEXED else sum(own))
    if kind == CodedUnitKind.PLAIN:
        return CodedUnit(tuple(payloads), elements)
    return _read_indexed(reader, tuple(payloads), elements, own)


def _read_indexed(
    reader: FieldReader, payloads: tuple[int, ...], elements: Elements, sizes: Sequence[int]
) -> CodedUnit:
    rows, columns, index_layout = reader.number(), reader.number(), IndexLayout(reader.number(1))
    count = elements.count
    fits = sizes[1:] == [8 * count] if index_layout is IndexLayout.INT64 else len(sizes) == 2
    if not fits or count > rows * columns or rows * columns >= 2**63:
        raise ModelError(f"{count:,} of {rows:,} by {columns:,} elements do not take {sizes} bytes")
    return IndexedUnit(payloads, elements, rows, columns, index_layout)


def _read_plain(reader: FieldReader, nbytes: int) -> Elements:
    size, rows = reader.byte(), reader.number()
    itemsize = size & ~_ROTATED
    if itemsize not in (1, 2, 4, 8) or nbytes % itemsize or not rows or nbytes // itemsize % rows:
        raise ModelError(f"{nbytes:,} bytes are no {rows:,} rows of {itemsize}-byte elements")
    return Elements(rows, nbytes // itemsize // rows, itemsize, rotated=bool(size & _ROTATED))


def _read_planes(reader: FieldReader, payloads: tuple[int, ...], sizes: Sequence[int]) -> CodedUnit:
    levels = reader.number(255) + 1
    rows, columns = reader.number(), reader.number()
    expected = [plane.packed_bytes(rows * columns) for plane in radix.planes_for(levels)]
    if expected != list(sizes):
        raise ModelError(f"codes of {rows:,} by {columns:,} elements have planes of {sizes} bytes")
    return PlanesUnit(payloads, Elements(rows, columns, 1, levels))


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).view(np.uint8).data


def matrix_of(dims: Sequence[int], count: int) -> tuple[int, int]:
    """Rows and columns of a tensor as a matrix: its first dimension, and all others."""
    if len(dims) > 1 and prod(dims) == count and dims[0] > 0:
        return dims[0], count // dims[0]
    return 1, count

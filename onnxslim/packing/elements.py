"""Elements of a tensor as streams of symbols: codes, a table, byte planes, or sparse.

Elements are of two kinds: *codes*, integers below a bound, one byte each; and *bits*, elements of
1, 2, 4 or 8 bytes, read as unsigned integers of that size. They form a matrix (rows, columns), row
after row, and are coded line by line; a line is a row or a column, whichever gives fewer bytes.
There are four codings:

    CODES   one stream of symbols
    TABLE   few distinct elements: a table of them, and codes into it
    BYTES   byte planes: a stream of the lowest bytes of all elements, one of the next bytes, ...
    SPARSE  most elements are equal: a mask of where the others are, and the others
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxslim.errors import ModelError
from onnxslim.packing.fields import FieldReader, varint
from onnxslim.packing.streams import (
    CodedStream,
    CodingMethod,
    StreamSource,
    decode_mask,
    decode_symbols,
    encode_mask,
    encode_symbols,
    smallest,
)

MAX_CODES: Final = 256
_SPARSE_SHARE: Final = 0.4
_BOTH_AXES: Final = 1 << 22  # elements up to which lines are tried both ways
_PROBE: Final = 1024
_PIECE: Final = 1 << 18


class ElementCoding(enum.IntEnum):
    """The first byte of the head of elements."""

    CODES = 0
    TABLE = 1
    BYTES = 2
    SPARSE = 3


@dataclass(frozen=True)
class Elements:
    """The kind of some elements, and the matrix that they form.

    Attributes:
        rows, columns: the shape of the matrix.
        itemsize: bytes of an element; 1 for codes.
        alphabet: the bound of codes; 0 for bits.
        rotated: whether bits are floats that are rotated left by one, so that the sign is the
            lowest bit and the exponent fills the highest byte.
    """

    rows: int
    columns: int
    itemsize: int
    alphabet: int = 0
    rotated: bool = False

    @property
    def count(self) -> int:
        """The number of elements."""
        return self.rows * self.columns

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The type of an array that holds the elements."""
        return np.dtype(f"<u{self.itemsize}")


# --------------------------------------------------------------------------- writing


def encode_elements(array: np.ndarray, kind: Elements, method: CodingMethod) -> CodedStream:
    """Code `array`, one-dimensional, of `kind.dtype`, by the coding of fewest bytes."""
    if kind.alphabet:
        return _encode_codes(array, kind, method)
    table = distinct(array, rotated=kind.rotated)
    if table is not None:
        return _encode_table(array, table, kind, method)
    if sparse_element(array, kind) is not None:
        return smallest((_encode_sparse(array, kind, 0, method), encode_bytes(array, kind, method)))
    return encode_bytes(array, kind, method)


def encode_bytes(array: np.ndarray, kind: Elements, method: CodingMethod) -> CodedStream:
    """Code `array` as byte planes."""
    head = CodedStream(bytes([ElementCoding.BYTES]), b"")
    return head + _byte_streams(array, kind, method)


def distinct(array: np.ndarray, *, rotated: bool) -> np.ndarray | None:
    """The distinct elements, in ascending order of their values; None if there are many."""
    most = min(MAX_CODES, array.size // 4)
    # a sample first: it rules out nearly all tensors without a table
    if np.unique(array[:: max(array.size // 4096, 1)]).size > most:
        return None
    found = np.zeros(0, array.dtype)
    for piece in _pieces(array.size):
        found = np.union1d(found, array[piece])
        if found.size > most:
            return None
    if rotated:  # floats as unsigned integers: negative ones come last, in descending order
        sign = array.dtype.type(1 << (8 * array.dtype.itemsize - 1))
        negative = found[found >= sign]
        found = np.concatenate([negative[::-1], found[found < sign]])
    return found


def sparse_element(array: np.ndarray, kind: Elements) -> int | None:
    """The element to leave out: the most frequent code, for bits zero; None if it is too rare."""
    if not array.size:
        return None
    if not kind.alphabet:
        zeros = array.size - int(np.count_nonzero(array))
        return 0 if zeros > _SPARSE_SHARE * array.size else None
    counts = np.bincount(array, minlength=kind.alphabet)
    top = int(np.argmax(counts))
    return top if counts[top] > _SPARSE_SHARE * array.size else None


def _encode_codes(array: np.ndarray, kind: Elements, method: CodingMethod) -> CodedStream:
    found = [_encode_dense(array, kind, axis, method) for axis in _axes(array, kind, method)]
    element = sparse_element(array, kind)
    if element is not None:
        found.append(_encode_sparse(array, kind, element, method))
    return smallest(found)


def _encode_dense(
    array: np.ndarray, kind: Elements, axis: int, method: CodingMethod
) -> CodedStream:
    lines = _lines_of(array, kind, axis)
    head = CodedStream(bytes([ElementCoding.CODES, axis]), b"")
    counts = np.full(lines.shape[0], lines.shape[1])
    return head + encode_symbols(lines.reshape(-1), kind.alphabet, method, counts, array.size)


def _encode_sparse(
    array: np.ndarray, kind: Elements, element: int, method: CodingMethod
) -> CodedStream:
    axes = _axes(array != element, kind, method)
    return smallest(_encode_sparse_by(array, kind, element, axis, method) for axis in axes)


def _encode_sparse_by(
    array: np.ndarray, kind: Elements, element: int, axis: int, method: CodingMethod
) -> CodedStream:
    lines = _lines_of(array, kind, axis)
    mask = lines != element
    others = lines[mask]
    head = CodedStream(bytes([ElementCoding.SPARSE, axis]) + varint(others.size, element), b"")
    if kind.alphabet:
        counts = mask.sum(axis=1, dtype=np.int64)
        # the left-out code cannot occur: close the gap that it leaves
        others -= (others > element).astype(others.dtype)
        values = encode_symbols(others, kind.alphabet - 1, method, counts, array.size)
    else:
        values = _byte_streams(others, kind, method)
    return head + encode_mask(mask, method) + values


def _encode_table(
    array: np.ndarray, table: np.ndarray, kind: Elements, method: CodingMethod
) -> CodedStream:
    order = np.argsort(table, kind="stable")
    codes = np.empty(array.size, np.uint8)
    for piece in _pieces(array.size):
        codes[piece] = order[np.searchsorted(table[order], array[piece])]
    head = CodedStream(bytes([ElementCoding.TABLE, table.size - 1]) + table.tobytes(), b"")
    return head + _encode_codes(codes, _codes_of(kind, table.size), method)


def _byte_streams(array: np.ndarray, kind: Elements, method: CodingMethod) -> CodedStream:
    coded = CodedStream(b"", b"")
    for plane in byte_planes(array, kind):
        coded += encode_symbols(plane, 256, method)
    return coded


def byte_planes(array: np.ndarray, kind: Elements) -> Iterator[np.ndarray]:
    """The lowest bytes of all elements, then the next, ..., then the highest."""
    for index in range(kind.itemsize):
        plane = np.empty(array.size, np.uint8)
        for piece in _pieces(array.size):
            part = _rotated(array[piece], 1) if kind.rotated else array[piece]
            plane[piece] = np.ascontiguousarray(part).view(np.uint8)[index :: kind.itemsize]
        yield plane


def _rotated(array: np.ndarray, left: int) -> np.ndarray:
    """Each element with its bits rotated left by `left`."""
    count = array.dtype.type
    bits = 8 * array.dtype.itemsize
    return np.asarray(array << count(left) | array >> count(bits - left))


def _pieces(size: int) -> Iterator[slice]:
    """Slices small enough for the processor's cache."""
    yield from (slice(start, start + _PIECE) for start in range(0, size, _PIECE))


def _axes(array: np.ndarray, kind: Elements, method: CodingMethod) -> tuple[int, ...]:
    """The kinds of line to try: 0: a line is a column; 1: a line is a row."""
    if method is not CodingMethod.ENTROPY or min(kind.rows, kind.columns) == 1:
        return (1,) if kind.rows == 1 or method is not CodingMethod.ENTROPY else (0,)
    if array.size <= _BOTH_AXES:
        return (0, 1)
    # of a large matrix, decide on a sample: the lines whose mean magnitudes differ more from each
    # other predict their weights better
    steps = (max(kind.rows // _PROBE, 1), max(kind.columns // _PROBE, 1))
    probe = array.reshape(kind.rows, kind.columns)[:: steps[0], :: steps[1]]
    magnitude = np.abs(probe - probe.mean())
    spread = [float(magnitude.mean(axis=axis).var() * probe.shape[axis]) for axis in (0, 1)]
    return (int(spread[1] > spread[0]),)


def _lines_of(array: np.ndarray, kind: Elements, axis: int) -> np.ndarray:
    matrix = array.reshape(kind.rows, kind.columns)
    return matrix if axis else np.ascontiguousarray(matrix.T)


# --------------------------------------------------------------------------- reading


def decode_elements(source: StreamSource, kind: Elements) -> np.ndarray:
    """The elements that `encode_elements` coded, one-dimensional, of `kind.dtype`.

    Raises:
        ModelError: the streams are broken.
    """
    coding = _coding(source.heads, kind)
    if coding is ElementCoding.TABLE:
        count = source.heads.byte() + 1
        table = np.frombuffer(source.heads.take(count * kind.itemsize), kind.dtype)
        return np.asarray(table[decode_elements(source, _codes_of(kind, count))])
    if coding is ElementCoding.BYTES:
        return _decode_bytes(source, kind, kind.count)
    axis = source.heads.number(1)
    shape = (kind.rows, kind.columns) if axis else (kind.columns, kind.rows)
    if coding is ElementCoding.CODES:
        counts = np.full(shape[0], shape[1])
        lines = decode_symbols(source, kind.count, kind.alphabet, counts).reshape(shape)
    else:
        lines = _decode_sparse(source, kind, shape)
    return (lines if axis else np.ascontiguousarray(lines.T)).reshape(-1)


def _coding(heads: FieldReader, kind: Elements) -> ElementCoding:
    found = heads.byte()
    allowed = (
        (ElementCoding.CODES, ElementCoding.SPARSE)
        if kind.alphabet
        else (ElementCoding.TABLE, ElementCoding.BYTES, ElementCoding.SPARSE)
    )
    if found not in allowed:
        raise ModelError(f"elements have the form {found}, which has no meaning here")
    return ElementCoding(found)


def _decode_sparse(source: StreamSource, kind: Elements, shape: tuple[int, int]) -> np.ndarray:
    count = source.heads.number(kind.count)
    element = source.heads.number(max(kind.alphabet - 1, 0))
    mask = decode_mask(source, *shape, count)
    if kind.alphabet:
        counts = mask.sum(axis=1, dtype=np.int64)
        others = decode_symbols(source, count, kind.alphabet - 1, counts)
        others = others + (others >= element).astype(np.uint8)
    else:
        others = _decode_bytes(source, kind, count)
    lines = np.full(shape, element, kind.dtype)
    lines[mask] = others
    return lines


def _decode_bytes(source: StreamSource, kind: Elements, count: int) -> np.ndarray:
    planes = np.empty((count, kind.itemsize), np.uint8)
    for index in range(kind.itemsize):
        planes[:, index] = decode_symbols(source, count, 256)
    array = planes.reshape(-1).view(kind.dtype)
    if kind.rotated:
        for piece in _pieces(count):
            array[piece] = _rotated(array[piece], 8 * kind.itemsize - 1)
    return array


def _codes_of(kind: Elements, count: int) -> Elements:
    return Elements(kind.rows, kind.columns, 1, count)

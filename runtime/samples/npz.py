"""Read arrays in .npz and .npy files row by row, without unpickling.

A member of an .npz is a zip entry that holds an .npy: a header, then the values in C order. It is
read as a stream, so a compressed file of 50 GB takes the memory of a few rows.

Owns: reading files. Not here: which arrays a model accepts (see `fitting` and `rows`).
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import numpy as np
from numpy.lib import format as npy

from onnxslim.errors import UsageError
from onnxslim.io.staging import map_file, refuse_device
from onnxslim.limits import MOST_ROW_BYTES

_BLOCK_BYTES: Final = 8 << 20  # a block of rows of all arrays together
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError)


@dataclass(frozen=True)
class ArrayHeader:
    """The header of an .npy: shape and type of its values."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry along the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_headers(path: Path) -> dict[str, ArrayHeader]:
    """Names, shapes and types of the arrays in an .npz, without reading a value.

    Raises:
        UsageError: the file is missing or no .npz, or an array holds Python objects.
    """
    try:
        refuse_device(path)
        with zipfile.ZipFile(path) as archive:
            headers = {}
            for name in archive.namelist():
                with archive.open(name) as stream:
                    headers[name.removesuffix(".npy")] = _read_header(stream, path, name)
            return headers
    except FileNotFoundError:
        raise UsageError(f"There is no file `{path}`.") from None
    except _BROKEN as error:
        raise UsageError(
            f"`{path}` is no .npz file of arrays: {error}. Write one with numpy.savez."
        ) from error


def read_rows(path: Path, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """The named arrays in blocks of a few rows, the same rows of each.

    Raises:
        UsageError: the file ends early or is damaged.
    """
    try:
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(path))
            readers = {
                name: _RowReader(stack.enter_context(archive.open(_member(archive, name))), path)
                for name in names
            }
            left = min(reader.rows for reader in readers.values())
            row_bytes = sum(reader.header.row_bytes for reader in readers.values())
            _check_size(path, row_bytes, "a sample")
            at_once = max(1, _BLOCK_BYTES // max(1, row_bytes))
            while left > 0:
                count = min(left, at_once)
                yield {name: reader.read(count) for name, reader in readers.items()}
                left -= count
    except _BROKEN as error:
        raise UsageError(f"`{path}` cannot be read to its end: {error}.") from error


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The named arrays in full.

    Raises:
        UsageError: the file ends early or is damaged.
    """
    headers = read_headers(path)
    _check_size(path, sum(headers[name].nbytes for name in names), "all arrays together")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except _BROKEN as error:
        raise UsageError(f"`{path}` cannot be read to its end: {error}.") from error


def read_npy(path: Path) -> np.ndarray:
    """The array of an .npy file, mapped into memory.

    Raises:
        UsageError: it is no .npy file, or holds Python objects.
    """
    try:
        refuse_device(path)
        with path.open("rb") as stream:
            header = _read_header(stream, path, path.name)
            start = stream.tell()
        data = map_file(path)
        values = np.frombuffer(data[start : start + header.nbytes], header.dtype)
        return values.reshape(header.shape, order="F" if header.fortran_order else "C")
    except (ValueError, OSError, EOFError) as error:
        raise UsageError(f"`{path}` is no .npy file of numbers: {error}.") from error


def _check_size(path: Path, nbytes: int, what: str) -> None:
    if nbytes > MOST_ROW_BYTES:
        raise UsageError(
            f"`{path}` claims {nbytes:,} bytes for {what}; {MOST_ROW_BYTES:,} are taken at most. "
            "Put fewer values into it."
        )


class _RowReader:
    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self.stream = stream
        self.header = _read_header(stream, path, stream.name)
        self.rows = self.header.shape[0] if self.header.shape else 0
        self.done = 0
        # in Fortran order the values of a row are scattered: the array is read in full
        if self.header.fortran_order:
            _check_size(path, self.header.nbytes, f"`{stream.name}` in Fortran order")
        self.whole = self._read_whole() if self.header.fortran_order else None

    def read(self, count: int) -> np.ndarray:
        if self.whole is not None:
            self.done += count
            return self.whole[self.done - count : self.done]
        shape = (count, *self.header.shape[1:])
        return self._array(count * self.header.row_bytes).reshape(shape)

    def _read_whole(self) -> np.ndarray:
        array = self._array(self.rows * self.header.row_bytes)
        return np.ascontiguousarray(array.reshape(self.header.shape[::-1]).T)

    def _array(self, nbytes: int) -> np.ndarray:
        data = self.stream.read(nbytes)
        if len(data) < nbytes:
            raise EOFError(f"`{self.stream.name}` ends {nbytes - len(data)} bytes early")
        return np.frombuffer(data, self.header.dtype)


def _member(archive: zipfile.ZipFile, name: str) -> str:
    return f"{name}.npy" if f"{name}.npy" in archive.NameToInfo else name


def _read_header(stream: IO[bytes], path: Path, name: str) -> ArrayHeader:
    version = npy.read_magic(stream)  # type: ignore[no-untyped-call, unused-ignore]
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"`{name}` has the unknown .npy version {version}")
    shape, fortran_order, dtype = readers[version](stream)
    if dtype.hasobject:
        raise UsageError(
            f"Array `{name.removesuffix('.npy')}` of `{path}` holds Python objects, which are "
            "never unpickled. Save numbers: stack arrays of one shape with numpy.stack."
        )
    return ArrayHeader(shape, dtype, fortran_order)

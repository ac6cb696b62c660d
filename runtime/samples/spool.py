"""A list of arrays in a temporary file, so that they take no memory.

Owns: how much is held in memory before a file is created. The file has no name, and disappears when
it is closed or the process ends.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import IO, Final

import numpy as np

from onnxslim.io import files

_IN_MEMORY: Final = 2 << 20  # bytes held before a file is created


class Spool:
    """A list of arrays that only grows: the `shapes` of each, and the `nbytes` of all together."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.nbytes = 0
        self._places: list[tuple[int, np.dtype]] = []
        self._file = files.scratch_file(_IN_MEMORY)
        self._closing = weakref.finalize(self, _close, self._file)

    def append(self, array: np.ndarray) -> None:
        """Keep a copy of `array`.

        Raises:
            OSError: the disk is full.
        """
        self._file.seek(self.nbytes)
        files.append(self._file, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._places.append((self.nbytes, array.dtype))
        self.shapes.append(array.shape)
        self.nbytes += array.nbytes

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, number: int) -> np.ndarray:
        """A new copy of the array that was appended as `number`."""
        at, dtype = self._places[number]
        array = np.empty(self.shapes[number], dtype)
        self._file.seek(at)
        if self._file.readinto(array.reshape(-1).view(np.uint8).data) < array.nbytes:  # type: ignore[attr-defined]
            raise OSError(f"The temporary file of an array of {array.nbytes:,} bytes ends early.")
        return array

    def close(self) -> None:
        """Delete the arrays."""
        self._closing()


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # data that did not fit on the disk is no longer needed
        file.close()

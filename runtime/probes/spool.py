"""Arrays kept one after another in a temporary file, so that they take no memory.

What may change here: how much is held in memory before there is a file. The file has no name, and
goes when it is closed or the process ends.
"""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from typing import IO, Final

import numpy as np

_IN_MEMORY: Final = 8 << 20  # bytes; below, there is no file


class Spool:
    """A list of arrays that only grows.

    Attributes:
        shapes: of the arrays.
        nbytes: of all of them.
    """

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.nbytes = 0
        self._places: list[tuple[int, np.dtype]] = []
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, prefix="onnxslim-")  # noqa: SIM115
        self._closing = weakref.finalize(self, _close, self._file)

    def append(self, array: np.ndarray) -> None:
        """Keep a copy of `array`.

        Raises:
            OSError: the disk is full.
        """
        self._file.seek(self.nbytes)
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._file.flush()  # a full disk is told of here, and not when something is read
        self._places.append((self.nbytes, array.dtype))
        self.shapes.append(array.shape)
        self.nbytes += array.nbytes

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, number: int) -> np.ndarray:
        """The array that was appended as `number`, as a new one."""
        at, dtype = self._places[number]
        array = np.empty(self.shapes[number], dtype)
        self._file.seek(at)
        self._file.readinto(array.reshape(-1).view(np.uint8).data)
        return array

    def close(self) -> None:
        """Let go of the arrays."""
        self._closing()


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # what did not fit on the disk is not wanted any more
        file.close()


__all__ = ["Spool"]

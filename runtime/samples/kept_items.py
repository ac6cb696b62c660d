"""Items of a source that may give others each time: read once, and kept in a temporary file.

A `DataLoader` shuffles, augmentation draws, a generator ends. Models are compared on outputs for
the same samples, so every reading must give the same; what is read twice costs twice, too.

Owns: that each item is produced once. No more than one item is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from onnxslim.errors import UsageError
from onnxslim.limits import MOST_KEPT_BYTES
from onnxslim.runtime.samples.spool import Spool
from onnxslim.runtime.samples.user_values import Parts


class KeptItems:
    """Items that can be gone through any number of times; later ones are read when asked for.

    Args:
        name: of the source, for messages.
        start: gives an iterator over the items; called once.
    """

    def __init__(self, name: str, start: Callable[[], Iterator[Parts]]) -> None:
        self.name = name
        self._start = start
        self._rest: Iterator[Parts] | None = None
        self._spool = Spool()
        self._places: list[Mapping[str, int]] = []
        self._failure: Exception | None = None

    def __iter__(self) -> Iterator[Parts]:
        number = 0
        while number < len(self._places) or self._read_one():
            yield {key: self._spool[at] for key, at in self._places[number].items()}
            number += 1

    def _read_one(self) -> bool:
        """Read another item; False at the end.

        Raises:
            UsageError: there are too many bytes to keep, or the disk is full.
        """
        if self._failure is not None:
            raise self._failure  # an iterator that failed would only seem to end
        try:
            if self._rest is None:
                self._rest = self._start()
            item = next(self._rest, None)
            if item is None:
                return False
            self._places.append({key: self._keep(array) for key, array in item.items()})
        except Exception as error:
            self._failure = error
            raise
        return True

    def _keep(self, array: np.ndarray) -> int:
        if array.dtype.hasobject:
            array = np.array(array.tolist(), str)
        if self._spool.nbytes + array.nbytes > MOST_KEPT_BYTES:
            raise UsageError(
                f"{self.name} gives more than {MOST_KEPT_BYTES:,} bytes of samples "
                f"({len(self._places):,} of them up to here). Give fewer: some hundreds are enough "
                "to calibrate on."
            )
        try:
            self._spool.append(array)
        except OSError as error:
            raise UsageError(
                f"The samples of {self.name} cannot be kept in a temporary file: {error}. Give "
                "fewer, or set TMPDIR to a folder with more room."
            ) from error
        return len(self._spool) - 1

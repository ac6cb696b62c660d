"""Stop a run that takes longer, or more memory, than it may."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final

import onnxruntime as ort

from onnxslim.limits import MOST_RUN_BYTES

_LOOKS: Final = 0.02  # seconds between two looks at the memory of the process
_STATM: Final = Path("/proc/self/statm")


class Watch:
    """Lets onnxruntime end a run before its next node, while the context lasts.

    Args:
        options: of the run.
        seconds: how long the run may take; None: it is not watched at all.
        nbytes: by how much the process may grow, where the system tells how large it is (Linux).

    Attributes:
        reason: why the run was stopped; empty where it was not.
    """

    def __init__(
        self, options: ort.RunOptions, seconds: float | None, nbytes: int = MOST_RUN_BYTES
    ) -> None:
        self.reason = ""
        self._options, self._seconds, self._nbytes = options, seconds, nbytes
        self._done = threading.Event()

    def __enter__(self) -> Watch:
        if self._seconds is not None:
            threading.Thread(target=self._watch, args=(self._seconds,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()

    def _watch(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        most = _process_bytes() + self._nbytes
        while not self._done.wait(min(_LOOKS, seconds)):
            if time.monotonic() >= end:
                return self._stop(f"took longer than {seconds:g} seconds")
            if _process_bytes() > most:
                return self._stop(f"took more than {self._nbytes:,} bytes of memory")

    def _stop(self, reason: str) -> None:
        self.reason = reason
        self._options.terminate = True


def _process_bytes() -> int:
    """Memory that the process holds; 0 where the system does not tell."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0

"""How many threads linear algebra may use.

Small factorisations and products in a loop gain nothing from threads, and where other programs keep
the cores busy their threads wait for each other: measured, fifty times slower on two cores. A limit
by size, and not by how busy the machine is, gives the same bits on every run.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Final

from threadpoolctl import ThreadpoolController

from onnxslim.linear_algebra import blas

_SMALL: Final = 2048


def threads_for(size: int) -> AbstractContextManager[object]:
    """A context for work on matrices of `size` columns: one thread where they are small."""
    return _controller().limit(limits=1, user_api="blas") if size <= _SMALL else nullcontext()


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    assert blas  # scipy's library is loaded: one that comes later would not be limited
    return ThreadpoolController()

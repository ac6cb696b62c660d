"""scipy.linalg, once BLAS has its working memory: import `linalg` and `blas` from here.

The OpenBLAS of numpy ends the process where it finds no memory at its first product, and that of
scipy 1.17 tries again without end; no error reaches Python. Each takes 32 MB then, and keeps them.
So both are asked for a product as soon as they are loaded, after a look at what memory is left.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg as linalg
from scipy.linalg import blas as blas

from onnxslim.limits import BLAS_BYTES


def _take_working_memory() -> None:
    """Raises: MemoryError: there is too little."""
    bytes(BLAS_BYTES)  # refused, or let go at once, untouched
    matrix = np.eye(64)  # small ones are multiplied without
    blas.dsyrk(1.0, matrix @ matrix.T)


_take_working_memory()

"""Sums of products of rows, Σ xᵀx and Σ yᵀx, added up in place.

Where products are taken in float32, they are added up so for a few thousand rows at a time, and
these sums in float64: rounding of 1e-7 of the largest entry, far below what sampling leaves.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.linalg import blas

_FLUSH_ROWS: Final = 4096


class _Products:
    """A sum (groups, m, n), filled row by row.

    Args:
        shape: of the sum.
        exact: whether products are taken in float64.
    """

    def __init__(self, shape: tuple[int, int, int], *, exact: bool) -> None:
        self.shape, self.exact = shape, exact
        self._total: np.ndarray | None = None
        self._recent: np.ndarray | None = None
        self._rows = 0

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """Of the rows to add."""
        return np.dtype(np.float64 if self.exact else np.float32)

    def total(self) -> np.ndarray:
        """The sum, float64; nothing can be added any more, and nothing is held."""
        self._flush()
        total, self._total = self._total, None
        return np.zeros(self.shape) if total is None else total

    def _open(self, rows: int) -> np.ndarray:
        """Where the next rows go."""
        if self.exact:
            if self._total is None:
                self._total = np.zeros(self.shape)
            return self._total
        if self._rows + rows > _FLUSH_ROWS:
            self._flush()
        if self._recent is None:
            self._recent = np.zeros(self.shape, np.float32)
        self._rows += rows
        return self._recent

    def _flush(self) -> None:
        if self._recent is None:
            return
        if self._total is None:
            self._total = self._recent.astype(np.float64)
        else:
            self._total += self._recent
        self._recent, self._rows = None, 0


class SecondSum(_Products):
    """Σ over rows of x ⊗ x, (groups, n, n)."""

    def __init__(self, groups: int, features: int, *, exact: bool) -> None:
        super().__init__((groups, features, features), exact=exact)

    def add(self, x: np.ndarray) -> None:
        """Add rows, (groups, rows, n)."""
        into = self._open(x.shape[1])
        if len(x) > 1:
            into += np.matmul(x.swapaxes(1, 2), x)
            return
        # one triangle: to BLAS, which goes by columns, the transpose of what is ours
        update = blas.dsyrk if self.exact else blas.ssyrk
        update(1.0, x[0].T, beta=1.0, c=into[0].T, lower=1, overwrite_c=1)

    def total(self) -> np.ndarray:
        """See `_Products`; both triangles."""
        total = super().total()
        if len(total) == 1:
            _mirror(total[0])
        return total


class CrossSum(_Products):
    """Σ over rows of y ⊗ x, (groups, m, n)."""

    def __init__(self, groups: int, outputs: int, features: int, *, exact: bool) -> None:
        super().__init__((groups, outputs, features), exact=exact)

    def add(self, y: np.ndarray, x: np.ndarray) -> None:
        """Add rows, (groups, rows, m) and (groups, rows, n)."""
        into = self._open(x.shape[1])
        if len(x) > 1:
            into += np.matmul(y.swapaxes(1, 2), x)
            return
        update = blas.dgemm if self.exact else blas.sgemm
        update(1.0, x[0].T, y[0].T, beta=1.0, c=into[0].T, trans_b=1, overwrite_c=1)


class FourthSum:
    """Σ over rows of ‖x‖⁴ and of ‖x‖²·x: how much products of rows scatter about their mean."""

    def __init__(self, groups: int, features: int) -> None:
        self._fourth = np.zeros(groups)
        self._third = np.zeros((groups, features))

    def add(self, x: np.ndarray) -> None:
        """Add rows, (groups, rows, n)."""
        squares = np.einsum("gri,gri->gr", x, x, dtype=np.float64)
        self._fourth += np.square(squares).sum(axis=1)
        self._third += np.matmul(squares[:, None, :].astype(x.dtype), x)[:, 0]

    def scatter(self, count: int, second: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """E‖x xᵀ − H‖² / count, in Frobenius' norm, (groups,), of x − `mean`.

        That is the mean squared error of H (Ledoit and Wolf 2004, lemma 3.4) of independent rows.

        Args:
            count: rows.
            second: E[x xᵀ] of x as it was added, (groups, n, n).
            mean: what to take off x, (groups, n).
        """
        length = np.square(mean).sum(axis=1)
        # E‖x − m‖⁴, and ‖H − m·mᵀ‖² for m the mean of x, or 0
        image = np.einsum("gij,gj->gi", second, mean)
        bent = np.einsum("gi,gi->g", image, mean)
        trace = np.trace(second, axis1=1, axis2=2)
        fourth = self._fourth / count - 4 * np.einsum("gi,gi->g", self._third, mean) / count
        fourth += 4 * bent + 2 * length * trace - 3 * length**2
        square = np.einsum("gij,gij->g", second, second) - 2 * bent + length**2
        return np.asarray(np.maximum(fourth - square, 0.0) / count)


_MIRROR: Final = 512  # rows at a time


def _mirror(matrix: np.ndarray) -> None:
    """Copy the upper triangle into the lower one, in place."""
    size = len(matrix)
    for start in range(0, size, _MIRROR):
        stop = min(start + _MIRROR, size)
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T
        square = matrix[start:stop, start:stop]
        square[:] = np.triu(square) + np.triu(square, 1).T


__all__ = ["CrossSum", "FourthSum", "SecondSum"]

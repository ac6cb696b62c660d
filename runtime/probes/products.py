"""Sums of products of rows, Σ x ⊗ x and Σ y ⊗ x, accumulated in place.

Products in float32 are accumulated in float32 over a few thousand rows, and these partial sums in
float64: a rounding error of 1e-7 of the largest entry, far below the sampling error.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from onnxslim.linear_algebra import blas

_FLUSH_ROWS: Final = 4096


class _ProductSum:
    """A sum of outer products, (groups, m, n); `exact`: products are computed in float64."""

    def __init__(self, shape: tuple[int, int, int], *, exact: bool) -> None:
        self.shape, self.exact = shape, exact
        self._total: np.ndarray | None = None
        self._recent: np.ndarray | None = None
        self._rows = 0

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The type of the rows to add."""
        return np.dtype(np.float64 if self.exact else np.float32)

    def total(self) -> np.ndarray:
        """The sum in float64. Call it once, at the end: the accumulator lets go of its memory."""
        self._flush()
        total, self._total = self._total, None
        return np.zeros(self.shape) if total is None else total

    def _open(self, rows: int) -> np.ndarray:
        """The array to accumulate the next `rows` rows into."""
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


class SecondSum(_ProductSum):
    """Σ over rows of x ⊗ x, (groups, n, n)."""

    def __init__(self, groups: int, features: int, *, exact: bool) -> None:
        super().__init__((groups, features, features), exact=exact)

    def add(self, x: np.ndarray) -> None:
        """Add rows, (groups, rows, n)."""
        into = self._open(x.shape[1])
        if len(x) > 1:
            into += np.matmul(x.swapaxes(1, 2), x)
            return
        # one triangle is enough; BLAS is column-major, so it sees the transposes of our arrays
        update = blas.dsyrk if self.exact else blas.ssyrk
        update(1.0, x[0].T, beta=1.0, c=into[0].T, lower=1, overwrite_c=1)

    def total(self) -> np.ndarray:
        """See `_ProductSum`; the second triangle is filled in."""
        total = super().total()
        if len(total) == 1:
            _mirror(total[0])
        return total


class CrossSum(_ProductSum):
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
    """Σ over rows of ‖x‖⁴ and of ‖x‖²·x, which give the scatter of x ⊗ x about its mean."""

    def __init__(self, groups: int, features: int) -> None:
        self._fourth = np.zeros(groups)
        self._third = np.zeros((groups, features))

    def add(self, x: np.ndarray) -> None:
        """Add rows, (groups, rows, n)."""
        squares = np.einsum("gri,gri->gr", x, x, dtype=np.float64)
        self._fourth += np.square(squares).sum(axis=1)
        self._third += np.matmul(squares[:, None, :].astype(x.dtype), x)[:, 0]

    def scatter(self, count: int, second: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """E‖z zᵀ − E[z zᵀ]‖² / count for z = x − `mean`, in the Frobenius norm, (groups,).

        That is the mean squared error of E[z zᵀ], estimated from `count` independent rows (Ledoit
        and Wolf 2004, lemma 3.4).

        Args:
            count: number of rows.
            second: H = E[x xᵀ] of the rows as they were added, (groups, n, n).
            mean: m, (groups, n): the mean of x, or 0.
        """
        # with E[x] = m (or m = 0), and ‖z zᵀ‖ = ‖z‖²:
        #   E‖z‖⁴ = E‖x‖⁴ − 4 mᵀE[‖x‖² x] + 4 mᵀHm + 2 ‖m‖² tr H − 3 ‖m‖⁴
        #   ‖E[z zᵀ]‖² = ‖H − m mᵀ‖² = ‖H‖² − 2 mᵀHm + ‖m‖⁴
        length = np.square(mean).sum(axis=1)
        image = np.einsum("gij,gj->gi", second, mean)
        bent = np.einsum("gi,gi->g", image, mean)
        trace = np.trace(second, axis1=1, axis2=2)
        fourth = self._fourth / count - 4 * np.einsum("gi,gi->g", self._third, mean) / count
        fourth += 4 * bent + 2 * length * trace - 3 * length**2
        square = np.einsum("gij,gij->g", second, second) - 2 * bent + length**2
        return np.asarray(np.maximum(fourth - square, 0.0) / count)


_MIRROR: Final = 512  # rows copied at a time


def _mirror(matrix: np.ndarray) -> None:
    """Copy the upper triangle into the lower one, in place."""
    size = len(matrix)
    for start in range(0, size, _MIRROR):
        stop = min(start + _MIRROR, size)
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T
        square = matrix[start:stop, start:stop]
        square[:] = np.triu(square) + np.triu(square, 1).T

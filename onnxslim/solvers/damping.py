"""Estimated moments H made safe to invert: shrunk, damped, and factored.

    shrinkage   (1 − ρ)·H + ρ·μ·I, the estimate nearest to the true H (Ledoit and Wolf 2004)
    damping     H + d·I, with the least d that keeps the condition number below a bound
    factor      U upper triangular with Uᵀ·U = (H + d·I)⁻¹

Inputs that are always zero (dead) are set apart: each has a diagonal entry alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from onnxslim.linear_algebra import linalg
from onnxslim.solvers.threads import threads_for

_DEAD: Final = 1e-12  # of the largest diagonal entry
_MAX_SHRUNK: Final = 0.9  # of H replaced by its mean
_POWER_STEPS: Final = 30
_TURN: Final = 1 << 18  # entries that are swapped at once


class DampedMoments:
    """H of one block: shrunk, damped and factored; `matrix` is taken over and edited.

    Attributes:
        matrix: the damped H; for dead inputs a diagonal entry alone.
        diagonal: of H, undamped.
        dead: inputs that are always zero.
        damping: the constant added to the diagonal.
        factor: of the inverse of `matrix`, see `inverse_factor`.
    """

    def __init__(self, matrix: np.ndarray, max_condition: float, scatter: float) -> None:
        # the one copy of H; only its diagonal is changed, and what it was is known
        self.matrix = matrix
        self.diagonal = np.diagonal(matrix).copy()
        self.dead = self.diagonal <= _DEAD * float(self.diagonal.max(initial=0.0))
        largest = _largest_eigenvalue(matrix.__matmul__, len(matrix))
        self._alone = largest or 1.0  # the entry of a dead input
        self.matrix[self.dead] = 0.0
        self.matrix[:, self.dead] = 0.0
        self.diagonal[self.dead] = 0.0
        self._damp(self._shrinkage(scatter))
        with threads_for(len(matrix)):
            self.factor = self._factored(largest, max_condition)

    def _shrinkage(self, scatter: float) -> float:
        """The multiple of I to add to an estimate that is off by `scatter` in the mean square.

        (1 − ρ)·H + ρ·μ·I is on average nearest to the true H for ρ = scatter / ‖H − μ·I‖², μ the
        mean of the diagonal (Ledoit and Wolf 2004; here of live inputs only). Few
        samples of many inputs would otherwise be fitted to the last detail.
        """
        live = ~self.dead
        mean = float(self.diagonal[live].mean()) if live.any() else 0.0
        distance = float(np.einsum("ij,ij->", self.matrix, self.matrix)) - live.sum() * mean**2
        if scatter <= 0 or distance <= 0:
            return 0.0
        share = min(scatter / distance, _MAX_SHRUNK)
        return float(share * mean / (1 - share))

    def _factored(self, largest: float, max_condition: float) -> np.ndarray:
        """Damp `matrix` as much as it needs, and return its inverse's factor."""
        shrunk = self.damping
        try:
            factor = inverse_factor(self.matrix)
            if largest <= (max_condition - 1) * shrunk:
                return factor
            smallest = _smallest_eigenvalue(factor) - shrunk
            if largest + shrunk <= max_condition * (smallest + shrunk):
                return factor
            del factor  # as large as the matrix
        except linalg.LinAlgError:
            smallest = 0.0
        # (largest + d) / (smallest + d) = max_condition
        self._damp((largest - max_condition * smallest) / (max_condition - 1))
        while True:
            try:
                return inverse_factor(self.matrix)
            except linalg.LinAlgError:
                # moments about a mean that is far larger than what varies: rounding is all there is
                if not self.damping <= largest:
                    raise
            self._damp(10 * self.damping)

    def _damp(self, damping: float) -> None:
        self.damping = damping
        added = np.where(self.dead, self._alone, damping)
        np.fill_diagonal(self.matrix, self.diagonal + added)


def inverse_factor(matrix: np.ndarray, *, overwrite: bool = False) -> np.ndarray:
    """Upper triangular U with Uᵀ·U = matrix⁻¹.

    With the order of rows and columns reversed, J·matrix·J = Rᵀ·R for an upper triangular R, and
    U = J·(R⁻¹)ᵀ·J: the inverse itself is never formed, and one array is worked on in place.

    Args:
        matrix: symmetric.
        overwrite: whether its memory can be used.

    Raises:
        LinAlgError: it is not positive definite.
    """
    if overwrite and matrix.flags.c_contiguous and matrix.dtype == np.float64:
        work = matrix
        _turn(work)
    else:
        work = np.array(matrix[::-1, ::-1], np.float64, order="C")
    # to LAPACK, which goes by columns, the transpose of what is ours: symmetric, so no matter
    factor, info = linalg.lapack.dpotrf(work.T, lower=0, clean=1, overwrite_a=1)
    if not info:
        factor, info = linalg.lapack.dtrtri(factor, lower=0, overwrite_c=1)
    if info:
        raise linalg.LinAlgError("The moments are not positive definite.")
    result = np.ascontiguousarray(factor.T)
    _turn(result)
    return result


def _turn(matrix: np.ndarray) -> None:
    """Reverse rows and columns, in place."""
    flat = matrix.reshape(-1)  # a view, as it is contiguous
    half, size = flat.size // 2, flat.size
    for start in range(0, half, _TURN):
        stop = min(start + _TURN, half)
        front, back = flat[start:stop], flat[size - stop : size - start]
        kept = front.copy()
        front[:] = back[::-1]
        back[:] = kept[::-1]


def _largest_eigenvalue(times: Callable[[np.ndarray], np.ndarray], size: int) -> float:
    """By power iteration, to a few per cent: enough for damping."""
    vector = np.random.default_rng(0).standard_normal(size)
    value = 0.0
    for _ in range(_POWER_STEPS):
        norm = float(np.linalg.norm(vector))
        if norm == 0.0:
            return 0.0
        vector = times(vector / norm)
        value = float(np.linalg.norm(vector))
    return value


def _smallest_eigenvalue(inverse_factor: np.ndarray) -> float:
    upper = inverse_factor
    return 1 / _largest_eigenvalue(lambda vector: upper.T @ (upper @ vector), len(upper))

"""The one problem behind every lossy weight pass: the best Ŵ in some set, measured by its outputs.

    minimise  E‖W·x − Ŵ·x‖² = tr (W − Ŵ) H (W − Ŵ)ᵀ,   H = E[x xᵀ]

`Metric` is H made ready: shrunk as far as it is uncertain, damped as far as its condition number
asks for, dead inputs set apart, factored once. This module holds what all constraint sets share;
`masks` has zeros (pruning) and `tables` tables and grids (clustering, quantizing). One matrix at a
time, float64, rows = outputs.

Where the input x̃ of the compressed model differs from x of the original, E‖W·x − Ŵ·x̃‖² is, up to
a constant, tr (T − Ŵ) H̃ (T − Ŵ)ᵀ with T = W·E[x x̃ᵀ]·H̃⁻¹: only the target changes
(`shifted_target`), so everything below works on a target and a metric.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnxslim.services.moments import BlockDiagonal, Second, about_mean
from onnxslim.solvers.threads import threads_for

MAX_CONDITION: Final = 1e6
_DEAD: Final = 1e-12  # of the largest diagonal entry
_MAX_SHRUNK: Final = 0.9  # of H replaced by its mean
_TURN: Final = 1 << 18  # entries that are swapped at once


class _Damped:
    """H of a block as it is worked with: centered, shrunk, damped, and factored.

    Attributes:
        matrix: the damped H; for dead inputs a diagonal entry alone.
        diagonal: of H, undamped.
        dead: inputs that are always zero.
        damping: what was added to the diagonal.
        factor: see `inverse_factor`.
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
        mean of the diagonal (Ledoit and Wolf 2004, eqs. 7 to 14; here of live inputs only). Few
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


class Block:
    """A diagonal block of a metric: damped, with dead inputs decoupled.

    It is made ready when it is first used, and lets go of what it was given: whoever made it can
    let go of H before that, and no more than H and its factor are then held.

    Args:
        at: the columns it covers.
        second: H of these columns.
        max_condition: see `Metric`.
        scatter: mean squared error of H.
        mean: what the moments are to be taken about; None: about zero.
    """

    def __init__(
        self,
        at: slice,
        second: np.ndarray,
        max_condition: float,
        scatter: float = 0.0,
        mean: np.ndarray | None = None,
    ) -> None:
        self.at = at
        self._given: list[tuple[np.ndarray, np.ndarray | None]] = [(second, mean)]
        self._limits = (max_condition, scatter)

    @cached_property
    def _own(self) -> _Damped:
        second, mean = self._given.pop()
        matrix = np.array(second, np.float64) if mean is None else about_mean(second, mean)
        del second  # as large as the matrix
        return _Damped(matrix, *self._limits)

    @property
    def matrix(self) -> np.ndarray:
        """The damped H; for dead inputs a diagonal entry alone."""
        return self._own.matrix

    @property
    def dead(self) -> np.ndarray:
        """Inputs that are always zero; their weights cost nothing."""
        return self._own.dead

    @property
    def damping(self) -> float:
        """What was added to the diagonal."""
        return self._own.damping

    @property
    def diagonal(self) -> np.ndarray:
        """Diagonal of H, undamped."""
        return self._own.diagonal

    def places(self, columns: np.ndarray) -> np.ndarray:
        """Where in `columns` those are that it covers."""
        return np.flatnonzero((columns >= self.at.start) & (columns < self.at.stop))

    def undamped(self) -> np.ndarray:
        """H, as a copy."""
        copy = self.matrix.copy()
        np.fill_diagonal(copy, self.diagonal)
        return copy

    def entries(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """H at some rows and columns, undamped."""
        part = self.matrix[np.ix_(rows, columns)]
        same = np.nonzero(rows[:, None] == columns)
        part[same] = self.diagonal[rows[same[0]]]
        return np.asarray(part)

    def times(self, left: np.ndarray) -> np.ndarray:
        """`left` times H, undamped."""
        return np.asarray(left @ self.matrix - left * (np.diagonal(self.matrix) - self.diagonal))

    def inverse_factor(self, order: np.ndarray | None = None) -> np.ndarray:
        """Upper triangular U with Uᵀ·U the inverse of the matrix, its columns in `order`."""
        if order is None:
            return self._own.factor
        with threads_for(len(order)):
            return inverse_factor(self.matrix[np.ix_(order, order)], overwrite=True)

    @cached_property
    def by_activity(self) -> tuple[np.ndarray, np.ndarray]:
        """Columns by falling H_jj, dead ones last, and the inverse's factor in that order."""
        activity = np.where(self.dead, 0.0, np.diagonal(self.matrix))
        order = np.argsort(-activity, kind="stable")
        return order, self.inverse_factor(order)

    @cached_property
    def inverse(self) -> np.ndarray:
        """The inverse of the damped matrix."""
        return self.inverse_at(None)

    def inverse_at(self, columns: np.ndarray | None) -> np.ndarray:
        """The inverse of the damped matrix at some rows and the same columns (None: all)."""
        factor = self._own.factor
        with threads_for(len(factor)):
            whole = columns is None or np.array_equal(columns, np.arange(len(factor)))
            part = factor if whole else factor[:, columns]
            return np.asarray(part.T @ part)

    def solve(self, right: np.ndarray) -> np.ndarray:
        """`right` times the inverse of the damped matrix."""
        factor = self._own.factor
        return np.asarray((right @ factor.T) @ factor)


class Metric:
    """What a change of weights costs in the output: H, or the identity where there is none.

    Args:
        second: H; None: the identity, which is what passes use without calibration data.
        size: number of inputs.
        max_condition: H is damped by the least d that brings the condition number of H + d·I
            below this.
        scatter: mean squared error of each block of H, where it is known: H is shrunk as far as
            that asks for.
        mean: E[x], to take the moments about it; None: they are as they are to be.
    """

    def __init__(
        self,
        second: Second | None,
        size: int,
        max_condition: float = MAX_CONDITION,
        scatter: npt.ArrayLike | None = None,
        mean: np.ndarray | None = None,
    ) -> None:
        self.size = size
        self.is_identity = second is None
        if second is None:
            self.blocks: tuple[Block, ...] = ()
            return
        whole = BlockDiagonal((second,)) if isinstance(second, np.ndarray) else second
        if whole.size != size:
            raise ValueError(f"The moments have {whole.size} inputs, the weight has {size}.")
        pieces = list(whole.slices())
        errors = np.zeros(len(pieces)) if scatter is None else np.asarray(scatter, np.float64)
        self.blocks = tuple(
            Block(at, part, max_condition, float(error), None if mean is None else mean[at])
            for (at, part), error in zip(pieces, errors, strict=True)
        )

    @cached_property
    def diagonal(self) -> np.ndarray:
        """Diagonal of H, undamped."""
        if self.is_identity:
            return np.ones(self.size)
        return np.concatenate([block.diagonal for block in self.blocks])

    @cached_property
    def inverse_diagonal(self) -> np.ndarray:
        """Diagonal of the inverse of the damped H."""
        if self.is_identity:
            return np.ones(self.size)
        parts = [np.einsum("ij,ij->j", u, u) for u in (b.inverse_factor() for b in self.blocks)]
        return np.concatenate(parts)

    @cached_property
    def dead(self) -> np.ndarray:
        """Inputs that are always zero."""
        if self.is_identity:
            return np.zeros(self.size, bool)
        return np.concatenate([block.dead for block in self.blocks])

    @property
    def damping(self) -> float:
        """The largest value added to a diagonal."""
        return max((block.damping for block in self.blocks), default=0.0)

    def times(self, left: np.ndarray) -> np.ndarray:
        """`left` times the damped H."""
        if self.is_identity:
            return left
        return np.concatenate([left[:, b.at] @ b.matrix for b in self.blocks], axis=1)

    def rows(self, at: slice) -> np.ndarray:
        """Some rows of the damped H, as a copy."""
        start, stop, _ = at.indices(self.size)
        result = np.zeros((stop - start, self.size))
        if self.is_identity:
            result[np.arange(stop - start), np.arange(start, stop)] = 1.0
        for block in self.blocks:
            first, last = max(start, block.at.start), min(stop, block.at.stop)
            if first < last:
                own = slice(first - block.at.start, last - block.at.start)
                result[first - start : last - start, block.at] = block.matrix[own]
        return result

    def entries(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """H at some rows and columns, as it was given."""
        if self.is_identity:
            return np.asarray(rows[:, None] == columns, np.float64)
        if len(self.blocks) == 1:
            return self.blocks[0].entries(rows, columns)
        result = np.zeros((len(rows), len(columns)))
        for block in self.blocks:
            above, across = block.places(rows), block.places(columns)
            first = block.at.start
            result[np.ix_(above, across)] = block.entries(
                rows[above] - first, columns[across] - first
            )
        return result

    def inverse_at(self, columns: np.ndarray) -> np.ndarray:
        """The inverse of the damped H at some rows and the same columns."""
        if self.is_identity:
            return np.eye(len(columns))
        if len(self.blocks) == 1:
            return self.blocks[0].inverse_at(columns)
        result = np.zeros((len(columns), len(columns)))
        for block in self.blocks:
            own = block.places(columns)
            result[np.ix_(own, own)] = block.inverse_at(columns[own] - block.at.start)
        return result

    def undamped_times(self, left: np.ndarray) -> np.ndarray:
        """`left` times H as it was given."""
        if self.is_identity:
            return left
        return np.concatenate([b.times(left[:, b.at]) for b in self.blocks], axis=1)

    def cost_by_row(self, change: np.ndarray) -> np.ndarray:
        """What adding `change` to the weight does to each output: its mean squared error."""
        if self.is_identity:
            return np.asarray(np.einsum("ij,ij->i", change, change))
        cost = np.zeros(len(change))
        for block in self.blocks:
            part = change[:, block.at]
            cost += np.einsum("ij,ij->i", block.times(part), part)
        return np.maximum(cost, 0.0)


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


def objective(target: np.ndarray, weight: np.ndarray, metric: Metric) -> float:
    """The error tr (target − weight) H (target − weight)ᵀ, with H undamped."""
    return float(metric.cost_by_row(np.asarray(target, np.float64) - weight).sum())


def whitening(metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """R and its inverse with H + d·I = R·Rᵀ: the error of Ŵ is the plain norm of (W − Ŵ)·R.

    The best Ŵ of rank r is therefore the truncated SVD of W·R, times the inverse of R.
    """
    if metric.is_identity:
        return np.eye(metric.size), np.eye(metric.size)
    inverses = [block.inverse_factor() for block in metric.blocks]
    factors = [linalg.solve_triangular(u, np.eye(len(u)), check_finite=False) for u in inverses]
    return linalg.block_diag(*factors), linalg.block_diag(*inverses)


# ---------------------------------------------------------------------------- inside


def _largest_eigenvalue(
    times: Callable[[np.ndarray], np.ndarray], size: int, steps: int = 30
) -> float:
    """By power iteration, to a few per cent: enough for damping."""
    vector = np.random.default_rng(0).standard_normal(size)
    value = 0.0
    for _ in range(steps):
        norm = float(np.linalg.norm(vector))
        if norm == 0.0:
            return 0.0
        vector = times(vector / norm)
        value = float(np.linalg.norm(vector))
    return value


def _smallest_eigenvalue(inverse_factor: np.ndarray) -> float:
    upper = inverse_factor
    return 1 / _largest_eigenvalue(lambda vector: upper.T @ (upper @ vector), len(upper))

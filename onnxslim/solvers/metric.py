"""The metric of every lossy weight pass: what a change of weights costs in the output.

    E‖W·x − Ŵ·x‖² = tr (W − Ŵ) H (W − Ŵ)ᵀ,   H = E[x xᵀ]

W has a row for each output. `Metric` is H, in diagonal blocks where inputs fall into groups; each
`Block` is damped and factored when it is first used (see `damping`). One matrix at a time, float64.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.linear_algebra import linalg
from onnxslim.services.moments import BlockDiagonal, Second, about_mean
from onnxslim.solvers.damping import DampedMoments, inverse_factor
from onnxslim.solvers.threads import threads_for

MAX_CONDITION: Final = 1e6


class Block:
    """A diagonal block of a metric: damped, with dead inputs decoupled.

    Damping waits until the block is first used, and takes the block's reference to H with it: a
    caller that lets go of H before then never holds more than H and its factor.

    Args:
        at: the columns it covers.
        second: H of these columns.
        max_condition: see `Metric`.
        scatter: mean squared error of H.
        mean: E[x] of these columns, to take the moments about it; None: about zero.
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
    def _own(self) -> DampedMoments:
        second, mean = self._given.pop()
        matrix = np.array(second, np.float64) if mean is None else about_mean(second, mean)
        del second  # as large as the matrix
        return DampedMoments(matrix, *self._limits)

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
        """The constant added to the diagonal."""
        return self._own.damping

    @property
    def diagonal(self) -> np.ndarray:
        """Diagonal of H, undamped."""
        return self._own.diagonal

    def places(self, columns: np.ndarray) -> np.ndarray:
        """Indices into `columns` of those that this block covers."""
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
        mean: E[x], to take the moments about it; None: about zero.
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

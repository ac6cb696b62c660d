"""The best weight of a given rank, measured by its outputs, and how the rank is chosen.

With H = E[x xᵀ] = R·Rᵀ, the error E‖W·x − A·B·x‖² is the plain norm of (W − A·B)·R, so the best
A·B of rank r is the truncated singular value decomposition of W·R = U·Σ·Vᵀ:

    A = U_r,   B = U_rᵀ·W        error: the sum of the squared singular values left out

R is not even needed where W has fewer rows than columns: U are the eigenvectors of W·H·Wᵀ. Without
data H = I, and this is the plain decomposition. What holds for a matrix also serves for tensors:
`Projection` is the best last factor A for any features z = P·x of the factors before it.

One matrix at a time, float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Final

import ml_dtypes
import numpy as np
from scipy import optimize

from onnxslim.linear_algebra import linalg
from onnxslim.solvers.metric import Metric, whitening
from onnxslim.solvers.threads import threads_for

_DEAD: Final = 1e-3  # weight of inputs that are always zero: full rank is exact there too
_SLAB: Final = 512  # rows of a large matrix that are worked on at once
_TINY: Final = 1e-13  # of the largest eigenvalue: below, eigenvalues count as rounding


class Components:
    """The principal components of W·R, most energy first.

    Args:
        target: W, (rows, columns).
        metric: of its inputs.

    Attributes:
        energies: squared singular values of W·R, falling.
        total: their sum, E‖W·x‖².
    """

    def __init__(self, target: np.ndarray, metric: Metric) -> None:
        self.target = np.asarray(target, np.float64)
        self.metric = metric
        rows, columns = self.target.shape
        self._by_rows = rows <= columns
        with threads_for(min(rows, columns)):
            gram = self._row_gram() if self._by_rows else self._column_gram()
            values, vectors = linalg.eigh(gram, check_finite=False)
        self.energies = np.maximum(values[::-1], 0.0)
        self._vectors = vectors[:, ::-1]
        self.total = float(self.energies.sum())

    def _row_gram(self) -> np.ndarray:
        return symmetric(times_metric(self.metric, self.target) @ self.target.T)

    def _column_gram(self) -> np.ndarray:
        left = self.target @ self._root[0]
        return symmetric(left.T @ left)

    @cached_property
    def _root(self) -> tuple[np.ndarray, np.ndarray]:
        root, inverse = whitening(self.metric)
        dead = self.metric.dead
        root[dead] *= _DEAD
        inverse[:, dead] /= _DEAD
        return root, inverse

    @property
    def exact_rank(self) -> int:
        """The rank at which nothing is left out."""
        return len(self.energies)

    def error(self, rank: int) -> float:
        """E‖W·x − A·B·x‖² at a rank."""
        return float(self.energies[rank:].sum())

    def factors(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """A, (rows, rank), and B, (rank, columns), their components of equal size."""
        kept = self._vectors[:, :rank]
        if self._by_rows:
            left, right = kept, kept.T @ self.target
        else:
            root, inverse = self._root
            left, right = self.target @ (root @ kept), kept.T @ inverse
        signs = _signs(right)
        return balanced(left * signs, right * signs[:, None])


class Projection:
    """The best A for y ≈ A·z with z = P·x, for P given and for any choice of its rows.

    Args:
        target: W, (rows, columns).
        metric: of x.
        lift: maps X, (m, columns), to X·Pᵀ, (m, features).
        squares: squared norms of the rows of P where they are orthogonal to each other: without
            data nothing else is needed, and no large matrix is made.
    """

    def __init__(
        self,
        target: np.ndarray,
        metric: Metric,
        lift: Callable[[np.ndarray], np.ndarray],
        squares: np.ndarray | None = None,
    ) -> None:
        target = np.asarray(target, np.float64)
        self.squares: np.ndarray | None = None
        if metric.is_identity and squares is not None:
            self.squares, self.cross = squares, lift(target)
            self.total = float(np.square(target).sum())
            return
        size = target.shape[1]
        with threads_for(size):
            # H and what is made of it are large: one copy of each, filled by slabs
            rows = (_without_dead(metric, metric.rows(at)) for at in _slabs(size))
            lifted = _filled(map(lift, rows), size)  # (columns, features): H·Pᵀ
            features = lifted.shape[1]
            turned = (lifted[:, at].T for at in _slabs(features))
            self.gram = _symmetrized(_filled(map(lift, turned), features))  # P·H·Pᵀ
            self.cross = target @ lifted  # W·H·Pᵀ
            self.total = float(np.einsum("ij,ij->", times_metric(metric, target), target))

    def solve(self, index: np.ndarray | None = None) -> tuple[np.ndarray, float]:
        """A over the features at `index` (all by default), and the error it leaves."""
        index = np.arange(self.cross.shape[1]) if index is None else index
        cross = self.cross[:, index]
        if self.squares is None:
            count = len(index)
            is_first = count and index[-1] == count - 1 and np.array_equal(index, np.arange(count))
            part = self.gram[:count, :count] if is_first else self.gram[np.ix_(index, index)]
            answer = least_squares(part, cross)
        else:
            answer = cross / np.maximum(self.squares[index], 1e-300)
        return answer, max(0.0, self.total - float(np.einsum("ij,ij->", answer, cross)))

    def error(self, index: np.ndarray | None = None) -> float:
        """E‖W·x − A·z‖² of the best A."""
        return self.solve(index)[1]


def least_squares(second: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """A with A·second = cross, where `second` is positive semidefinite; the shortest of them."""
    with threads_for(len(second)):
        scale = np.sqrt(np.maximum(np.diagonal(second), 1e-300))
        try:
            factor = linalg.cho_factor(
                _evened(second, scale), lower=True, overwrite_a=True, check_finite=False
            )
            if float(np.diagonal(factor[0]).min()) > 1e-6:
                solved = linalg.cho_solve(factor, (cross / scale).T, check_finite=False).T
                return np.asarray(solved / scale)
            del factor  # as large as the matrix
        except linalg.LinAlgError:
            pass
        even = _evened(second, scale)
        values, vectors = linalg.eigh(even, overwrite_a=True, check_finite=False)
        kept = values > _TINY * max(float(values[-1]), 1e-300)
        vectors = vectors[:, kept]
        return np.asarray(((cross / scale) @ vectors / values[kept]) @ vectors.T / scale)


def times_metric(metric: Metric, left: np.ndarray) -> np.ndarray:
    """`left` times H, damped; inputs that are always zero count very little."""
    if metric.is_identity:
        return left
    return _without_dead(metric, metric.times(left))


def _without_dead(metric: Metric, result: np.ndarray) -> np.ndarray:
    dead = metric.dead
    if dead.any():
        result[:, dead] *= _DEAD**2
    return result


def _slabs(size: int) -> Iterator[slice]:
    for start in range(0, size, _SLAB):
        yield slice(start, min(start + _SLAB, size))


def _filled(slabs: Iterable[np.ndarray], rows: int) -> np.ndarray:
    """Slabs of rows as one array, of which there is never a second."""
    result = np.empty((0, 0))
    for at, slab in zip(_slabs(rows), slabs, strict=True):
        if not at.start:
            result = np.empty((rows, slab.shape[1]))
        result[at] = slab
    return result


def _symmetrized(matrix: np.ndarray) -> np.ndarray:
    """`symmetric`, in place."""
    for at in _slabs(len(matrix)):
        part = (matrix[at, at.start :] + matrix[at.start :, at].T) / 2
        matrix[at, at.start :], matrix[at.start :, at] = part, part.T
    return matrix


def _evened(second: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A symmetric matrix with ones on its diagonal, a copy in the order that LAPACK reads."""
    even = second / scale
    even /= scale[:, None]
    return np.asarray(even.T)


def symmetric(matrix: np.ndarray) -> np.ndarray:
    """The symmetric part, which is all there is but for rounding."""
    return np.asarray((matrix + matrix.T) / 2)


def _signs(rows: np.ndarray) -> np.ndarray:
    """The sign of the largest entry of each row: eigenvectors come with either."""
    largest = np.abs(rows).argmax(axis=1, keepdims=True)
    return np.where(np.take_along_axis(rows, largest, axis=1)[:, 0] < 0, -1.0, 1.0)


def balanced(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns of `left` and rows of `right` scaled so that each pair has equal norms."""
    a, b = np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1)
    scale = np.sqrt(np.divide(b, a, out=np.ones_like(a), where=(a > 0) & (b > 0)))
    return left * scale, right / scale[:, None]


# ---------------------------------------------------------------------------- rank


def numerical_rank(weight: np.ndarray) -> int:
    """The rank of a stored weight, up to the rounding of its type."""
    values = np.sqrt(Components(weight, Metric(None, weight.shape[1])).energies)
    if not values.size or values[0] == 0:
        return 0
    eps = max(float(np.finfo(np.float32).eps), float(ml_dtypes.finfo(weight.dtype).eps))
    return int(np.count_nonzero(values > values[0] * eps * max(weight.shape) ** 0.5))


def rank_for(energies: np.ndarray, allowed: float) -> int:
    """The least rank whose error, the energies left out, is at most `allowed`; at least 1."""
    left_out = np.concatenate([np.cumsum(energies[::-1])[::-1], [0.0]])
    return max(1, int(np.argmax(left_out <= allowed)))


def variational_rank(energies: np.ndarray, rows: int, columns: int) -> int:
    """The rank that empirical variational Bayesian matrix factorisation finds; at least 1.

    The global analytic solution of Nakajima et al. (2013): singular values above a threshold that
    depends on the noise variance are kept, and the variance is the minimum of a function of one
    variable.

    Args:
        energies: squared singular values, falling.
        rows: of the matrix.
        columns: of the matrix.
    """
    small, large = min(rows, columns), max(rows, columns)
    squares = np.asarray(energies[:small], np.float64)
    if not squares.size or squares[0] <= 0:
        return 1
    ratio = small / large
    tau = 2.5129 * np.sqrt(ratio)
    x_bar = (1 + tau) * (1 + ratio / tau)
    most = int(min(np.ceil(small / (1 + ratio)) - 1, len(squares)))
    mean = float(squares.sum()) / (large * small)
    tail = squares[min(most, len(squares) - 1) :]
    low = max(float(tail[0]) / (large * x_bar), float(tail.mean()) / large)
    low, high = max(low, mean * 1e-12), mean
    if low >= high:
        variance = high
    else:
        variance = float(
            optimize.minimize_scalar(
                _free_energy,
                bounds=(low, high),
                args=(squares, small, large, x_bar, ratio),
                method="bounded",
            ).x
        )
    threshold = large * variance * x_bar
    return max(1, int(np.count_nonzero(squares > threshold)))


def _free_energy(
    variance: float, squares: np.ndarray, small: int, large: int, x_bar: float, ratio: float
) -> float:
    """What the noise variance minimises (Nakajima et al. 2013), up to a constant."""
    x = np.maximum(squares / (large * variance), 1e-300)
    above = x[x > x_bar]
    tau = _tau(above, ratio)
    value = float(np.sum(x[x <= x_bar] - np.log(x[x <= x_bar])))
    value += float(np.sum(above - tau))
    value += float(np.sum(np.log((tau + 1) / above)))
    value += ratio * float(np.sum(np.log(tau / ratio + 1)))
    return value + (small - len(squares)) * float(np.log(variance))


def _tau(x: np.ndarray, ratio: float) -> np.ndarray:
    half = x - (1 + ratio)
    return np.asarray(0.5 * (half + np.sqrt(np.maximum(half**2 - 4 * ratio, 0.0))))

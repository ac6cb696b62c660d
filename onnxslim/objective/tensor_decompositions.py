"""Decompositions of a kernel W[n, c, k...] into factors that are cheap to apply one after another.

    channel    W = Σ_r A[n, r]·B[r, c, k...]                        Zhang et al. 2015
    spatial    W = Σ_r A[n, r, k₂...]·B[r, c, k₁]                   Jaderberg et al. 2014, scheme 2
    tucker2    W = Σ_pq A[n, p]·G[p, q, k...]·B[q, c]               Kim et al. 2015
    cp         W = Σ_r A[n, r]·V₁[r, k₁]·V₂[r, k₂]···B[r, c]        Lebedev et al. 2015
    flattened  cp with `terms` terms for each output by itself      Jin et al. 2014
    depthwise  W = Σ_t A[n, c, t]·D[c, t, k...]                     Guo et al. 2018

All but the last factor come from a decomposition of W weighed by that part of H = E[x xᵀ] that the
method lets through (over channels, over kernel positions, ...); the last one, A, is then the best
there is for these and the whole of H (`Projection`). With A refitted no method needs more than its
first factors to be good.

What may change here: how the first factors are found. One group at a time, float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Final

import numpy as np
from scipy import linalg

from onnxslim.objective.low_rank import (
    Components,
    Projection,
    balanced,
    least_squares,
    rank_for,
    symmetric,
    variational_rank,
    weighed,
)
from onnxslim.objective.moments import BlockDiagonal
from onnxslim.objective.solver import Metric, whitening

Ranks = tuple[int, ...]
Factors = tuple[np.ndarray, ...]

_SWEEPS: Final = (10, 400)  # of alternating least squares, at least and at most
_SWEEPS_EACH: Final = 80  # where each output has its own
_FLOPS: Final = 2e9  # of all sweeps
_TOLERANCE: Final = 1e-7
_RIDGE: Final = 1e-8  # on factors of a kernel of norm 1: keeps their normal equations solvable
_MOST_GROWTH: Final = 10.0  # of one term's norm over the kernel's: above, terms cancel each other


class Diverges(Exception):
    """The terms of a decomposition grow without bound and cancel each other."""


@dataclass(frozen=True)
class KernelShape:
    """What one group of a layer looks like: (rows, channels, kernel...)."""

    rows: int
    channels: int
    kernel: tuple[int, ...]

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return prod(self.kernel)

    @property
    def first_axis(self) -> int:
        """The kernel axis that a separable decomposition treats first: the first longer than 1."""
        return next((i for i, size in enumerate(self.kernel) if size > 1), 0)


class Decomposition(ABC):
    """One method on one weight.

    Args:
        target: (rows, channels·taps).
        metric: of its inputs.
        shape: of the kernel.
        most: the highest rank that will be asked for; None: any.
        seed: of what is drawn.
    """

    def __init__(
        self,
        target: np.ndarray,
        metric: Metric,
        shape: KernelShape,
        *,
        most: int | None = None,
        seed: int = 0,
    ) -> None:
        self.target = np.asarray(target, np.float64)
        self.metric, self.shape, self.seed = metric, shape, seed
        top = self.full(shape)[0]
        self.most = top if most is None else min(top, most)

    @staticmethod
    @abstractmethod
    def full(shape: KernelShape) -> Ranks:
        """The ranks at which it is exact."""

    @abstractmethod
    def error(self, ranks: Ranks) -> float:
        """E‖W·x − Ŵ·x‖².

        Raises:
            Diverges: the decomposition does not settle.
        """

    @abstractmethod
    def factors(self, ranks: Ranks) -> Factors:
        """The factors, in the order in which they are applied to x.

        Raises:
            Diverges: the decomposition does not settle.
        """

    @staticmethod
    @abstractmethod
    def product(shape: KernelShape, factors: Factors) -> np.ndarray:
        """Ŵ, (rows, channels·taps)."""

    @staticmethod
    @abstractmethod
    def factor_shapes(shape: KernelShape, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        """The shapes of what `factors` returns."""

    def energies(self) -> np.ndarray:
        """Squared singular values that tell a rank; of the method's main unfolding."""
        raise NotImplementedError

    def variational(self) -> Ranks:
        """The ranks that variational Bayes finds."""
        rows, columns = self.target.shape
        return (variational_rank(self.energies(), rows, columns),)


class Channel(Decomposition):
    """d filters, then a mix of them: the principal components of the outputs."""

    @cached_property
    def _components(self) -> Components:
        return Components(self.target, self.metric)

    @staticmethod
    def full(shape: KernelShape) -> Ranks:
        """See `Decomposition`."""
        return (min(shape.rows, shape.channels * shape.taps),)

    def error(self, ranks: Ranks) -> float:
        """See `Decomposition`."""
        return self._components.error(ranks[0])

    def factors(self, ranks: Ranks) -> Factors:
        """B (r, c, k...) and A (n, r)."""
        left, right = self._components.factors(ranks[0])
        return right.reshape(-1, self.shape.channels, *self.shape.kernel), left

    @staticmethod
    def product(shape: KernelShape, factors: Factors) -> np.ndarray:
        """See `Decomposition`."""
        first, last = factors
        return np.asarray(last @ first.reshape(len(first), -1))

    @staticmethod
    def factor_shapes(shape: KernelShape, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        """See `Decomposition`."""
        return (ranks[0], shape.channels, *shape.kernel), (shape.rows, ranks[0])

    def energies(self) -> np.ndarray:
        """See `Decomposition`."""
        return np.asarray(self._components.energies)


class _Projected(Decomposition):
    """Methods whose last factor is the best for the features that the first ones make."""

    @abstractmethod
    def lift(self, rows: np.ndarray) -> np.ndarray:
        """X, (m, columns), to X·Pᵀ, (m, features)."""

    @cached_property
    def projection(self) -> Projection:
        """Of all features."""
        squares = self.squares() if self.metric.is_identity else None
        return Projection(self.target, self.metric, self.lift, squares)

    def squares(self) -> np.ndarray | None:
        """Squared norms of the rows of P where, without data, they are orthogonal."""
        return None


class Spatial(_Projected):
    """Along one kernel axis into a few maps, then along the others."""

    @cached_property
    def _split(self) -> np.ndarray:
        """B, (most, channels·k₁)."""
        shape = self.shape
        axis = shape.first_axis
        parts = np.moveaxis(self._tensor(), 2 + axis, 2)  # (n, c, k1, rest...)
        long = shape.kernel[axis]
        parts = parts.reshape(shape.rows, shape.channels, long, -1)
        matrix = parts.transpose(0, 3, 1, 2).reshape(-1, shape.channels * long)
        found = Components(matrix, self._marginal())
        self._energies = found.energies
        return found.factors(self.most)[1]

    def _tensor(self) -> np.ndarray:
        return self.target.reshape(self.shape.rows, self.shape.channels, *self.shape.kernel)

    def _marginal(self) -> Metric:
        """H over (channel, k₁), summed over the other kernel axes."""
        shape = self.shape
        size = shape.channels * shape.kernel[shape.first_axis]
        second = dense_second(self.metric)
        if second is None:
            return Metric(None, size)
        places = self._along(np.arange(len(second))[None])[0]  # (rest, channels·k₁)
        total = sum(second[np.ix_(place, place)] for place in places)
        return Metric(np.asarray(total), size)

    def _along(self, rows: np.ndarray) -> np.ndarray:
        """(m, columns) as (m, rest, channels·k₁)."""
        shape = self.shape
        parts = rows.reshape(-1, shape.channels, *shape.kernel)
        parts = np.moveaxis(parts, 2 + shape.first_axis, 2)
        long = shape.kernel[shape.first_axis]
        parts = parts.reshape(len(rows), shape.channels * long, -1)
        return parts.transpose(0, 2, 1)

    def lift(self, rows: np.ndarray) -> np.ndarray:
        """Features (r, rest)."""
        parts = self._along(rows)  # (m, rest, c·k₁)
        flat = np.ascontiguousarray(parts).reshape(-1, parts.shape[2])  # one large product
        mixed = (flat @ self._split.T).reshape(len(rows), parts.shape[1], -1)  # (m, rest, r)
        return np.asarray(mixed.transpose(0, 2, 1).reshape(len(rows), -1))

    def squares(self) -> np.ndarray:
        """See `_Projected`."""
        rest = self.shape.taps // self.shape.kernel[self.shape.first_axis]
        return np.repeat(np.square(self._split).sum(axis=1), rest)

    def _index(self, rank: int) -> np.ndarray:
        rest = self.shape.taps // self.shape.kernel[self.shape.first_axis]
        return np.arange(rank * rest)

    @staticmethod
    def full(shape: KernelShape) -> Ranks:
        """See `Decomposition`."""
        long = shape.kernel[shape.first_axis]
        return (min(shape.channels * long, shape.rows * shape.taps // long),)

    def error(self, ranks: Ranks) -> float:
        """See `Decomposition`."""
        return self.projection.error(self._index(ranks[0]))

    def factors(self, ranks: Ranks) -> Factors:
        """B (r, c, k₁) and A (n, r, rest)."""
        rank, shape = ranks[0], self.shape
        last = self.projection.solve(self._index(rank))[0]
        left = last.reshape(shape.rows, rank, -1).transpose(0, 2, 1).reshape(-1, rank)
        left, right = balanced(left, self._split[:rank])
        last = left.reshape(shape.rows, -1, rank).transpose(0, 2, 1)
        return right.reshape(rank, shape.channels, -1), last

    @staticmethod
    def product(shape: KernelShape, factors: Factors) -> np.ndarray:
        """See `Decomposition`."""
        first, last = factors
        axis = shape.first_axis
        rest = [size for i, size in enumerate(shape.kernel) if i != axis]
        made = np.einsum("nrj,rci->ncij", last, first, optimize=True)
        made = made.reshape(shape.rows, shape.channels, shape.kernel[axis], *rest)
        return np.asarray(np.moveaxis(made, 2, 2 + axis).reshape(shape.rows, -1))

    @staticmethod
    def factor_shapes(shape: KernelShape, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        """See `Decomposition`."""
        long = shape.kernel[shape.first_axis]
        return (ranks[0], shape.channels, long), (shape.rows, ranks[0], shape.taps // long)

    def energies(self) -> np.ndarray:
        """See `Decomposition`."""
        _ = self._split
        return np.asarray(self._energies)

    def variational(self) -> Ranks:
        """See `Decomposition`."""
        shape = self.shape
        long = shape.kernel[shape.first_axis]
        rows, columns = shape.rows * shape.taps // long, shape.channels * long
        return (variational_rank(self.energies(), rows, columns),)


class Tucker2(_Projected):
    """Fewer input channels, the kernel on them, then fewer outputs mixed; ranks (p, q)."""

    @cached_property
    def _inputs(self) -> Components:
        """Of the unfolding (n·k, c)."""
        shape = self.shape
        matrix = self.target.reshape(shape.rows, shape.channels, -1).transpose(0, 2, 1)
        return Components(matrix.reshape(-1, shape.channels), channel_metric(self.metric, shape))

    @cached_property
    def _first(self) -> np.ndarray:
        return self._inputs.factors(self._inputs.full)[1]

    def lift(self, rows: np.ndarray) -> np.ndarray:
        """Features (q, k)."""
        parts = rows.reshape(len(rows), self.shape.channels, -1).transpose(0, 2, 1)
        flat = np.ascontiguousarray(parts).reshape(-1, self.shape.channels)  # (m·k, c)
        mixed = (flat @ self._first.T).reshape(len(rows), -1, len(self._first))  # (m, k, q)
        return np.asarray(mixed.transpose(0, 2, 1).reshape(len(rows), -1))

    def squares(self) -> np.ndarray:
        """See `_Projected`."""
        return np.repeat(np.square(self._first).sum(axis=1), self.shape.taps)

    @cached_property
    def _reduced(self) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
        return {}

    def _outputs(self, q: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Energies and eigenvectors over outputs, the best W over q inputs, and what q leaves."""
        if q not in self._reduced:
            index = np.arange(q * self.shape.taps)
            answer, left = self.projection.solve(index)
            gram = symmetric(answer @ self.projection.cross[:, index].T)
            values, vectors = linalg.eigh(gram, check_finite=False)
            self._reduced[q] = (np.maximum(values[::-1], 0), vectors[:, ::-1], answer, left)
        return self._reduced[q]

    @staticmethod
    def full(shape: KernelShape) -> Ranks:
        """See `Decomposition`."""
        return shape.rows, min(shape.channels, shape.rows * shape.taps)

    def error(self, ranks: Ranks) -> float:
        """See `Decomposition`."""
        p, q = ranks
        energies, _, _, left = self._outputs(q)
        return left + float(energies[p:].sum())

    def factors(self, ranks: Ranks) -> Factors:
        """B (q, c), G (p, q, k...) and A (n, p)."""
        p, q = ranks
        _, vectors, answer, _ = self._outputs(q)
        last = vectors[:, :p]
        core = (last.T @ answer).reshape(p, q, *self.shape.kernel)
        return self._first[:q], core, last

    @staticmethod
    def product(shape: KernelShape, factors: Factors) -> np.ndarray:
        """See `Decomposition`."""
        first, core, last = factors
        p, q = core.shape[:2]
        made = np.einsum("np,pqk,qc->nck", last, core.reshape(p, q, -1), first, optimize=True)
        return np.asarray(made.reshape(shape.rows, -1))

    @staticmethod
    def factor_shapes(shape: KernelShape, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        """See `Decomposition`."""
        p, q = ranks
        return (q, shape.channels), (p, q, *shape.kernel), (shape.rows, p)

    def energies(self) -> np.ndarray:
        """See `Decomposition`."""
        return np.asarray(self._inputs.energies)

    def input_rank(self, allowed: float) -> int:
        """The least q that leaves out no more than `allowed`."""
        return rank_for(self._inputs.energies, allowed)

    def output_rank(self, q: int, allowed: float) -> int:
        """The least p with which the error is at most `allowed`; all where none is."""
        energies, _, _, left = self._outputs(q)
        return rank_for(energies, max(0.0, allowed - left))

    def variational(self) -> Ranks:
        """See `Decomposition`."""
        shape = self.shape
        q = variational_rank(self.energies(), shape.rows * shape.taps, shape.channels)
        outputs = Components(self.target, self.metric).energies
        return variational_rank(outputs, *self.target.shape), q


class _Searched(Decomposition):
    """Factors found by iteration for each rank by itself, and kept."""

    @cached_property
    def _found(self) -> dict[int, tuple[Factors, float]]:
        return {}

    @abstractmethod
    def _search(self, rank: int) -> tuple[Factors, float]:
        """The factors and their error.

        Raises:
            Diverges: they grow without bound.
        """

    def _solved(self, rank: int) -> tuple[Factors, float]:
        if rank not in self._found:
            self._found[rank] = self._search(rank)
        return self._found[rank]

    def error(self, ranks: Ranks) -> float:
        """See `Decomposition`."""
        return self._solved(ranks[0])[1]

    def factors(self, ranks: Ranks) -> Factors:
        """See `Decomposition`; those of the axes first, then A, which adds terms up."""
        return self._solved(ranks[0])[0]

    def energies(self) -> np.ndarray:
        """See `Decomposition`."""
        return np.asarray(Components(self.target, self.metric).energies)


class Cp(_Searched):
    """Channels mixed into r maps, one short filter along each axis of each, mixed again."""

    @staticmethod
    def full(shape: KernelShape) -> Ranks:
        """See `Decomposition`."""
        return (min(shape.rows, shape.channels) * shape.taps,)

    def _search(self, rank: int) -> tuple[Factors, float]:
        """B (r, c), V₁ (r, k₁), V₂ (r, k₂), ... and A (n, r)."""
        shape = self.shape
        if rank >= self.full(shape)[0]:
            first = _unit_terms(self.target, shape)
        else:
            first = self._alternated(rank)

        def features(rows: np.ndarray) -> np.ndarray:
            return _separable_lift(rows, shape, first)

        last, error = Projection(self.target, self.metric, features).solve()
        _check_growth(last, first, self.target)
        return (*first, last), error

    def _alternated(self, rank: int) -> Factors:
        """B (r, c), V₁ (r, k₁), ... by alternating least squares on W weighed over channels."""
        shape = self.shape
        root, inverse = whitening(channel_metric(self.metric, shape))
        tensor = self.target.reshape(shape.rows, shape.channels, -1)
        tensor = np.einsum("nck,cd->ndk", tensor, root, optimize=True)
        found = alternate(
            tensor.reshape(shape.rows, shape.channels, *shape.kernel), rank, self.seed
        )
        return (found[1].T @ inverse, *(factor.T for factor in found[2:]))

    @staticmethod
    def product(shape: KernelShape, factors: Factors) -> np.ndarray:
        """See `Decomposition`."""
        *first, last = factors
        return np.asarray(last @ _separable(tuple(first)).reshape(len(first[0]), -1))

    @staticmethod
    def factor_shapes(shape: KernelShape, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        """See `Decomposition`."""
        rank = ranks[0]
        return (rank, shape.channels), *((rank, size) for size in shape.kernel), (shape.rows, rank)


class Flattened(_Searched):
    """Each output a sum of `terms` products of a mix of channels and one filter for each axis."""

    @staticmethod
    def full(shape: KernelShape) -> Ranks:
        """See `Decomposition`."""
        return (shape.taps,)

    def _search(self, rank: int) -> tuple[Factors, float]:
        """B (n·t, c), V₁ (n·t, k₁), ... and A (n, t)."""
        shape = self.shape
        if rank >= shape.taps:
            parts = [_unit_terms(row[None], shape, by_rows=True) for row in self.target]
        else:
            parts = self._alternated(rank)
        first = tuple(np.concatenate(items) for items in zip(*parts, strict=True))
        last, error = self._refitted(first, rank)
        _check_growth(last, first, self.target)
        return (*first, last), error

    def _alternated(self, terms: int) -> list[Factors]:
        shape = self.shape
        root, inverse = whitening(channel_metric(self.metric, shape))
        parts: list[Factors] = []
        for row in self.target.reshape(shape.rows, shape.channels, -1):
            tensor = (root.T @ row).reshape(shape.channels, *shape.kernel)
            found = alternate(tensor, terms, self.seed, _SWEEPS_EACH)
            parts.append((found[0].T @ inverse, *(factor.T for factor in found[1:])))
        return parts

    def _refitted(self, first: Factors, terms: int) -> tuple[np.ndarray, float]:
        """The best sums, (rows, terms), and the error."""
        features = _separable(first).reshape(len(first[0]), -1)  # (rows·terms, columns)
        heavy = weighed(self.metric, features)
        last = np.empty((self.shape.rows, terms))
        error = 0.0
        for row, target in enumerate(self.target):
            at = slice(row * terms, (row + 1) * terms)
            cross = heavy[at] @ target
            last[row] = least_squares(symmetric(heavy[at] @ features[at].T), cross[None])[0]
            error -= float(last[row] @ cross)
        total = float(np.einsum("ij,ij->", weighed(self.metric, self.target), self.target))
        return last, max(0.0, total + error)

    @staticmethod
    def product(shape: KernelShape, factors: Factors) -> np.ndarray:
        """See `Decomposition`."""
        *first, last = factors
        terms = last.shape[1]
        parts = _separable(tuple(first)).reshape(shape.rows, terms, -1)
        return np.asarray(np.einsum("nt,ntk->nk", last, parts))

    @staticmethod
    def factor_shapes(shape: KernelShape, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        """See `Decomposition`."""
        count = shape.rows * ranks[0]
        sizes = ((count, size) for size in shape.kernel)
        return (count, shape.channels), *sizes, (shape.rows, ranks[0])

    def variational(self) -> Ranks:
        """One term: there is no matrix whose rank it would be."""
        return (1,)


class Depthwise(_Projected):
    """Each channel by `t` filters of its own, then all of them mixed."""

    @cached_property
    def _filters(self) -> np.ndarray:
        """D, (c, t, k), the principal filters of each channel."""
        shape = self.shape
        parts = self.target.reshape(shape.rows, shape.channels, -1).transpose(1, 0, 2)
        second = dense_second(self.metric)
        found = []
        for channel, matrix in enumerate(parts):  # (n, k)
            at = slice(channel * shape.taps, (channel + 1) * shape.taps)
            part = None if second is None else second[at, at]
            if part is not None and not np.diagonal(part).max(initial=0.0) > 0:
                part = None
            root, inverse = whitening(Metric(part, shape.taps))
            left = matrix @ root
            vectors = linalg.eigh(symmetric(left.T @ left), check_finite=False)[1][:, ::-1]
            found.append(vectors[:, : self.most].T @ inverse)
        return np.stack(found)

    def lift(self, rows: np.ndarray) -> np.ndarray:
        """Features (c, t)."""
        parts = rows.reshape(len(rows), self.shape.channels, self.shape.taps, 1)
        return np.asarray(np.matmul(self._filters, parts).reshape(len(rows), -1))

    def squares(self) -> np.ndarray:
        """See `_Projected`."""
        return np.asarray(np.square(self._filters).sum(axis=2).reshape(-1))

    def _index(self, terms: int) -> np.ndarray:
        count = self._filters.shape[1]
        return np.arange(self.shape.channels * count).reshape(-1, count)[:, :terms].reshape(-1)

    @staticmethod
    def full(shape: KernelShape) -> Ranks:
        """See `Decomposition`."""
        return (min(shape.rows, shape.taps),)

    def error(self, ranks: Ranks) -> float:
        """See `Decomposition`."""
        return self.projection.error(self._index(ranks[0]))

    def factors(self, ranks: Ranks) -> Factors:
        """D (c, t, k...) and A (n, c, t)."""
        terms, shape = ranks[0], self.shape
        last = self.projection.solve(self._index(terms))[0]
        filters = self._filters[:, :terms].reshape(shape.channels, terms, *shape.kernel)
        return filters, last.reshape(shape.rows, shape.channels, terms)

    @staticmethod
    def product(shape: KernelShape, factors: Factors) -> np.ndarray:
        """See `Decomposition`."""
        filters, last = factors
        parts = filters.reshape(*filters.shape[:2], -1)
        return np.asarray(np.einsum("nct,ctk->nck", last, parts).reshape(shape.rows, -1))

    @staticmethod
    def factor_shapes(shape: KernelShape, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        """See `Decomposition`."""
        terms = ranks[0]
        return (shape.channels, terms, *shape.kernel), (shape.rows, shape.channels, terms)

    def energies(self) -> np.ndarray:
        """See `Decomposition`."""
        return np.asarray(Components(self.target, self.metric).energies)

    def variational(self) -> Ranks:
        """One term: there is no matrix whose rank it would be."""
        return (1,)


METHODS: Final[dict[str, type[Decomposition]]] = {
    "svd": Channel,  # of a kernel of one position
    "channel": Channel,
    "spatial": Spatial,
    "tucker2": Tucker2,
    "cp": Cp,
    "flattened": Flattened,
    "depthwise": Depthwise,
}
"""By the names that users give."""


# ---------------------------------------------------------------------------- inside


def dense_second(metric: Metric) -> np.ndarray | None:
    """H as one matrix; None for the identity."""
    if metric.is_identity:
        return None
    blocks = tuple(block.undamped() for block in metric.blocks)
    return blocks[0] if len(blocks) == 1 else linalg.block_diag(*BlockDiagonal(blocks).blocks)


def channel_metric(metric: Metric, shape: KernelShape) -> Metric:
    """H over channels, summed over kernel positions."""
    second = dense_second(metric)
    if second is None:
        return Metric(None, shape.channels)
    split = second.reshape(shape.channels, shape.taps, shape.channels, shape.taps)
    return Metric(symmetric(np.einsum("ckdk->cd", split)), shape.channels)


def alternate(tensor: np.ndarray, rank: int, seed: int, most: int = _SWEEPS[1]) -> list[np.ndarray]:
    """Factors (size, rank) of each axis, by tensorly's alternating least squares.

    Raises:
        Diverges: they are not finite, or cannot be solved for.
    """
    from tensorly.decomposition import parafac

    axes = [axis for axis, size in enumerate(tensor.shape) if size > 1]
    reduced = tensor.reshape([tensor.shape[axis] for axis in axes] or [1])
    if len(axes) < 2:
        return _trivial(tensor, axes, rank)
    size = float(np.linalg.norm(reduced)) or 1.0
    affordable = int(_FLOPS / (2.0 * tensor.size * rank * len(axes)))
    try:
        weights, found = parafac(
            reduced / size,
            rank,
            n_iter_max=min(most, max(_SWEEPS[0], affordable)),
            init=(None, _start(reduced, rank, seed)),
            tol=_TOLERANCE,
            random_state=seed,
            l2_reg=_RIDGE,
        )
    except np.linalg.LinAlgError as error:
        raise Diverges from error
    if not all(np.isfinite(factor).all() for factor in found):
        raise Diverges
    factors = [np.ones((size, rank)) for size in tensor.shape]
    for axis, factor in zip(axes, found, strict=True):
        factors[axis] = np.asarray(factor)
    factors[0] = factors[0] * weights * size
    return factors


def _start(tensor: np.ndarray, rank: int, seed: int) -> list[np.ndarray]:
    """Where alternation begins: the principal vectors of each axis, and drawn ones beside them."""
    rng = np.random.default_rng(seed)
    factors = []
    for axis, size in enumerate(tensor.shape):
        factor = rng.standard_normal((size, rank)) / size**0.5
        flat = np.moveaxis(tensor, axis, 0).reshape(size, -1)
        vectors = linalg.eigh(flat @ flat.T, check_finite=False)[1][:, ::-1]
        count = min(rank, size)
        factor[:, :count] = vectors[:, :count]
        factors.append(factor)
    return factors


def _trivial(tensor: np.ndarray, axes: list[int], rank: int) -> list[np.ndarray]:
    """Of a tensor that is a vector, or a number: one term, the others zero."""
    factors = [np.zeros((size, rank)) for size in tensor.shape]
    for axis, factor in enumerate(factors):
        factor[:, 0] = tensor.reshape(-1) if axis in axes else 1.0
    if not axes:
        factors[0][0, 0] = tensor.reshape(-1)[0]
    return factors


def _unit_terms(target: np.ndarray, shape: KernelShape, *, by_rows: bool = False) -> Factors:
    """Terms whose features are enough for any A: one for each position and channel (or row)."""
    rows, count = len(target), shape.channels
    if by_rows or rows < count:
        parts = target.reshape(rows, shape.channels, shape.taps).transpose(0, 2, 1)
        mixed, count = parts.reshape(-1, shape.channels), rows  # (n·k, c)
    else:
        mixed = np.repeat(np.eye(count), shape.taps, axis=0)  # (c·k, c)
    grid = np.indices(shape.kernel).reshape(len(shape.kernel), -1)
    axes = [
        np.tile(np.eye(size)[at], (count, 1)) for size, at in zip(shape.kernel, grid, strict=True)
    ]
    return (mixed, *axes)


def _separable(first: Factors) -> np.ndarray:
    """P, (r, c, k...), from B (r, c) and V₁ (r, k₁), ..."""
    made = first[0]
    for factor in first[1:]:
        lead = made[..., None]
        made = lead * factor.reshape(len(factor), *[1] * (made.ndim - 1), -1)
    return made


def _separable_lift(rows: np.ndarray, shape: KernelShape, first: Factors) -> np.ndarray:
    mixed = first[0]
    window = _separable((np.ones((len(mixed), 1)), *first[1:])).reshape(len(mixed), -1)  # (r, k)
    parts = rows.reshape(len(rows), shape.channels, -1)
    made = np.zeros((len(rows), len(mixed)))
    for tap in range(shape.taps):
        made += (parts[:, :, tap] @ mixed.T) * window[:, tap]
    return made


def _check_growth(last: np.ndarray, first: Factors, target: np.ndarray) -> None:
    """Refuse terms that are much larger than their sum.

    Raises:
        Diverges: they are.
    """
    sizes = np.prod([np.linalg.norm(factor, axis=1) for factor in first], axis=0)
    if last.shape[1] != len(sizes):  # (n, t): each term belongs to one output
        terms = np.abs(last).reshape(-1) * sizes
    else:
        terms = np.linalg.norm(last, axis=0) * sizes
    if not np.isfinite(terms).all() or terms.max() > _MOST_GROWTH * np.linalg.norm(target):
        raise Diverges


__all__ = [
    "METHODS",
    "Channel",
    "Cp",
    "Decomposition",
    "Depthwise",
    "Diverges",
    "Factors",
    "Flattened",
    "KernelShape",
    "Ranks",
    "Spatial",
    "Tucker2",
    "alternate",
    "channel_metric",
    "dense_second",
]

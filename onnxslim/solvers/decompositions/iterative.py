"""Decompositions of a kernel whose factors are found by iteration, for each rank by itself.

`methods` has their equations and sources. The iteration is alternating least squares. It may not
settle, which raises `Diverges`.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Final

import numpy as np

from onnxslim.linear_algebra import linalg
from onnxslim.solvers.decompositions.base import (
    Decomposition,
    Diverges,
    Factors,
    KernelShape,
    Ranks,
    channel_metric,
)
from onnxslim.solvers.low_rank import Projection, least_squares, symmetric, times_metric
from onnxslim.solvers.metric import whitening

_SWEEPS: Final = (10, 400)  # of alternating least squares, at least and at most
_SWEEPS_EACH: Final = 80  # where each output has its own
_FLOPS: Final = 2e9  # of all sweeps
_TOLERANCE: Final = 1e-7
_RIDGE: Final = 1e-8  # on factors of a kernel of norm 1: keeps their normal equations solvable
_MAX_GROWTH: Final = 10.0  # of one term's norm over the kernel's: above, terms cancel each other


class _Iterative(Decomposition):
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


class Cp(_Iterative):
    """Channels mixed into r maps, one short filter along each axis of each, mixed again."""

    @staticmethod
    def exact_ranks(shape: KernelShape) -> Ranks:
        """See `Decomposition`."""
        return (min(shape.rows, shape.channels) * shape.taps,)

    def _search(self, rank: int) -> tuple[Factors, float]:
        """B (r, c), V₁ (r, k₁), V₂ (r, k₂), ... and A (n, r)."""
        shape = self.shape
        if rank >= self.exact_ranks(shape)[0]:
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


class Flattened(_Iterative):
    """Each output a sum of `terms` products of a mix of channels and one filter for each axis."""

    @staticmethod
    def exact_ranks(shape: KernelShape) -> Ranks:
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
        heavy = times_metric(self.metric, features)
        last = np.empty((self.shape.rows, terms))
        error = 0.0
        for row, target in enumerate(self.target):
            at = slice(row * terms, (row + 1) * terms)
            cross = heavy[at] @ target
            last[row] = least_squares(symmetric(heavy[at] @ features[at].T), cross[None])[0]
            error -= float(last[row] @ cross)
        total = float(np.einsum("ij,ij->", times_metric(self.metric, self.target), self.target))
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

    def variational_ranks(self) -> Ranks:
        """One term: there is no matrix whose rank it would be."""
        return (1,)


# ---------------------------------------------------------------------------- inside


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
    if not np.isfinite(terms).all() or terms.max() > _MAX_GROWTH * np.linalg.norm(target):
        raise Diverges

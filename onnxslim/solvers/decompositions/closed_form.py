"""Decompositions of a kernel whose first factors are principal components, in closed form.

`methods` has their equations and sources; the last factor is found by `low_rank.Projection`.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from onnxslim.linear_algebra import linalg
from onnxslim.solvers.decompositions.base import (
    Decomposition,
    Factors,
    KernelShape,
    Projected,
    Ranks,
    channel_metric,
    dense_second,
)
from onnxslim.solvers.low_rank import Components, balanced, rank_for, symmetric, variational_rank
from onnxslim.solvers.metric import Metric, whitening


class Channel(Decomposition):
    """d filters, then a mix of them: the principal components of the outputs."""

    @staticmethod
    def exact_ranks(shape: KernelShape) -> Ranks:
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


class Spatial(Projected):
    """Along one kernel axis into a few maps, then along the others."""

    @cached_property
    def _split(self) -> np.ndarray:
        """B, (max_rank, channels·k₁)."""
        shape = self.shape
        axis = shape.first_axis
        parts = np.moveaxis(self._tensor(), 2 + axis, 2)  # (n, c, k1, rest...)
        long = shape.kernel[axis]
        parts = parts.reshape(shape.rows, shape.channels, long, -1)
        matrix = parts.transpose(0, 3, 1, 2).reshape(-1, shape.channels * long)
        found = Components(matrix, self._marginal())
        self._energies = found.energies
        return found.factors(self.max_rank)[1]

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
        """See `Projected`."""
        rest = self.shape.taps // self.shape.kernel[self.shape.first_axis]
        return np.repeat(np.square(self._split).sum(axis=1), rest)

    def _index(self, rank: int) -> np.ndarray:
        rest = self.shape.taps // self.shape.kernel[self.shape.first_axis]
        return np.arange(rank * rest)

    @staticmethod
    def exact_ranks(shape: KernelShape) -> Ranks:
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

    def variational_ranks(self) -> Ranks:
        """See `Decomposition`."""
        shape = self.shape
        long = shape.kernel[shape.first_axis]
        rows, columns = shape.rows * shape.taps // long, shape.channels * long
        return (variational_rank(self.energies(), rows, columns),)


class Tucker2(Projected):
    """Fewer input channels, the kernel on them, then fewer outputs mixed; ranks (p, q)."""

    @cached_property
    def _inputs(self) -> Components:
        """Of the unfolding (n·k, c)."""
        shape = self.shape
        matrix = self.target.reshape(shape.rows, shape.channels, -1).transpose(0, 2, 1)
        return Components(matrix.reshape(-1, shape.channels), channel_metric(self.metric, shape))

    @cached_property
    def _first(self) -> np.ndarray:
        return self._inputs.factors(self._inputs.exact_rank)[1]

    def lift(self, rows: np.ndarray) -> np.ndarray:
        """Features (q, k)."""
        parts = rows.reshape(len(rows), self.shape.channels, -1).transpose(0, 2, 1)
        flat = np.ascontiguousarray(parts).reshape(-1, self.shape.channels)  # (m·k, c)
        mixed = (flat @ self._first.T).reshape(len(rows), -1, len(self._first))  # (m, k, q)
        return np.asarray(mixed.transpose(0, 2, 1).reshape(len(rows), -1))

    def squares(self) -> np.ndarray:
        """See `Projected`."""
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
    def exact_ranks(shape: KernelShape) -> Ranks:
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

    def variational_ranks(self) -> Ranks:
        """See `Decomposition`."""
        shape = self.shape
        q = variational_rank(self.energies(), shape.rows * shape.taps, shape.channels)
        return variational_rank(self._components.energies, *self.target.shape), q


class Depthwise(Projected):
    """Each channel by `t` filters of its own, then all of them mixed."""

    @cached_property
    def _filters(self) -> np.ndarray:
        """D, (c, t, k), the principal filters of each channel."""
        shape = self.shape
        parts = self.target.reshape(shape.rows, shape.channels, -1).transpose(1, 0, 2)
        found = []
        for channel, matrix in enumerate(parts):  # (n, k)
            at = np.arange(channel * shape.taps, (channel + 1) * shape.taps)
            part = None if self.metric.is_identity else self.metric.entries(at, at)
            if part is not None and not np.diagonal(part).max(initial=0.0) > 0:
                part = None
            root, inverse = whitening(Metric(part, shape.taps))
            left = matrix @ root
            vectors = linalg.eigh(symmetric(left.T @ left), check_finite=False)[1][:, ::-1]
            found.append(vectors[:, : self.max_rank].T @ inverse)
        return np.stack(found)

    def lift(self, rows: np.ndarray) -> np.ndarray:
        """Features (c, t)."""
        parts = rows.reshape(len(rows), self.shape.channels, self.shape.taps, 1)
        return np.asarray(np.matmul(self._filters, parts).reshape(len(rows), -1))

    def squares(self) -> np.ndarray:
        """See `Projected`."""
        return np.asarray(np.square(self._filters).sum(axis=2).reshape(-1))

    def _index(self, terms: int) -> np.ndarray:
        count = self._filters.shape[1]
        return np.arange(self.shape.channels * count).reshape(-1, count)[:, :terms].reshape(-1)

    @staticmethod
    def exact_ranks(shape: KernelShape) -> Ranks:
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

    def variational_ranks(self) -> Ranks:
        """One term: there is no matrix whose rank it would be."""
        return (1,)

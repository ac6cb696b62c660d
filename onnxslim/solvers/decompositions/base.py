"""The interface of a decomposition of a kernel: its error, its factors, their product.

One group at a time, float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from onnxslim.linear_algebra import linalg
from onnxslim.solvers.low_rank import Components, Projection, symmetric, variational_rank
from onnxslim.solvers.metric import Metric

Ranks = tuple[int, ...]
Factors = tuple[np.ndarray, ...]


class Diverges(Exception):
    """The terms of a decomposition grow without bound and cancel each other."""


@dataclass(frozen=True)
class KernelShape:
    """The shape of one group of a layer: (rows, channels, kernel...)."""

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
        max_rank: the highest rank that will be asked for; None: any.
        seed: of random starts.
    """

    def __init__(
        self,
        target: np.ndarray,
        metric: Metric,
        shape: KernelShape,
        *,
        max_rank: int | None = None,
        seed: int = 0,
    ) -> None:
        self.target = np.asarray(target, np.float64)
        self.metric, self.shape, self.seed = metric, shape, seed
        top = self.exact_ranks(shape)[0]
        self.max_rank = top if max_rank is None else min(top, max_rank)

    @staticmethod
    @abstractmethod
    def exact_ranks(shape: KernelShape) -> Ranks:
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

    @cached_property
    def _components(self) -> Components:
        return Components(self.target, self.metric)

    def energies(self) -> np.ndarray:
        """Squared singular values that tell a rank: of W, or of the method's main unfolding."""
        return np.asarray(self._components.energies)

    def variational_ranks(self) -> Ranks:
        """The ranks that variational Bayes finds."""
        rows, columns = self.target.shape
        return (variational_rank(self.energies(), rows, columns),)


class Projected(Decomposition):
    """Decompositions whose last factor is the best one for the features of the first ones."""

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


def dense_second(metric: Metric) -> np.ndarray | None:
    """H as one matrix; None for the identity."""
    if metric.is_identity:
        return None
    blocks = tuple(block.undamped() for block in metric.blocks)
    return blocks[0] if len(blocks) == 1 else linalg.block_diag(*blocks)


def channel_metric(metric: Metric, shape: KernelShape) -> Metric:
    """H over channels, summed over kernel positions."""
    second = dense_second(metric)
    if second is None:
        return Metric(None, shape.channels)
    split = second.reshape(shape.channels, shape.taps, shape.channels, shape.taps)
    return Metric(symmetric(np.einsum("ckdk->cd", split)), shape.channels)

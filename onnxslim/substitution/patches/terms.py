"""Parts of a linear map of patches, the most important first: where blocks start from.

A convolution is a sum of terms: a direction among the channels, a filter over the kernel for it, an
output for what they give. With data z = f·(uᵀ x), a term is worth E‖a·z‖². The filters of a
direction are found in the coordinates in which its values at the positions of the kernel are white,
so that the singular values of what is left are these worths (Guo et al., arXiv:1808.05517, under
the moments of the inputs).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from onnxslim.linear_algebra import linalg
from onnxslim.substitution.patches.evidence import PatchEvidence

_DAMPING: Final = 1e-4  # of the mean of a diagonal
_MOST_COLUMNS: Final = 4096  # of a least-squares problem


def damped(matrix: np.ndarray) -> np.ndarray:
    """The matrix with a little on its diagonal, so that it can be factored."""
    mean = max(float(np.trace(matrix)) / len(matrix), 1e-30)
    return matrix + _DAMPING * mean * np.eye(len(matrix))


def least_squares(
    features: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The weight and the bias that bring features nearest to what is wanted.

    Args:
        features: (rows, columns).
        wanted: (rows, outputs).

    Returns:
        The weight, (outputs, columns); the bias, (outputs,); the mean squared error of each output.
    """
    wide, goal = features.astype(np.float64), wanted.astype(np.float64)
    mean, aim = wide.mean(0), goal.mean(0)
    wide -= mean
    goal -= aim
    second, cross = wide.T @ wide / len(wide), goal.T @ wide / len(wide)
    factor = linalg.cho_factor(damped(second), lower=True, check_finite=False)
    weight = linalg.cho_solve(factor, cross.T, check_finite=False).T
    left = np.square(goal).mean(0) - 2 * (weight * cross).sum(1)
    left += np.einsum("oi,ij,oj->o", weight, second, weight, optimize=True)
    return weight, aim - weight @ mean, np.maximum(left, 0.0)


def principal(matrix: np.ndarray, second: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The filters whose outputs carry most of what a matrix returns.

    Args:
        matrix: (outputs, columns).
        second: of what it is multiplied by, (columns, columns).
        count: of filters at most.

    Returns:
        Filters, (filters, columns), of unit output each, and what each is worth.
    """
    lower = np.linalg.cholesky(damped(second))
    _, values, right = np.linalg.svd(matrix @ lower, full_matrices=False)
    filters = linalg.solve_triangular(lower, right[:count].T, lower=True, trans="T").T
    return filters, np.square(values[:count])


@dataclass(frozen=True)
class Term:
    """A direction and a filter.

    Attributes:
        direction: index among the directions.
        filter: over the kernel, (taps,).
        worth: E‖a·z‖².
    """

    direction: int
    filter: np.ndarray
    worth: float


@dataclass(frozen=True)
class Directions:
    """Directions among the channels.

    Attributes:
        rows: what is computed of the channels, (directions, channels).
        dual: what becomes of it in the original map, (channels, directions).
    """

    rows: np.ndarray
    dual: np.ndarray


@dataclass(frozen=True)
class PatchMap:
    """A linear map of patches, with the patches that it is to be near on.

    Attributes:
        evidence: of one group.
        given: the map, (outputs, channels, taps); None: the nearest one to the evidence.
    """

    evidence: PatchEvidence
    given: np.ndarray | None

    @property
    def channels(self) -> int:
        """Of the input."""
        return int(self.evidence.patches.shape[-1])

    @cached_property
    def patches(self) -> np.ndarray:
        """(rows, taps, channels)."""
        return self.evidence.patches.reshape(len(self.evidence.patches), -1, self.channels)

    @cached_property
    def weight(self) -> np.ndarray:
        """(outputs, channels, taps)."""
        if self.given is not None:
            return np.asarray(self.given, np.float64)
        features = self.patches.reshape(len(self.patches), -1)
        if features.shape[1] <= _MOST_COLUMNS:
            found, _, _ = least_squares(features, self.evidence.outputs)
        else:  # what each input says by itself
            outputs = self.evidence.outputs - self.evidence.outputs.mean(0)
            cross = outputs.T @ features / len(features)
            found = cross / (np.square(features).mean(0) * features.shape[1])
        taps = self.patches.shape[1]
        return np.asarray(found, np.float64).reshape(-1, taps, self.channels).transpose(0, 2, 1)

    def each_channel(self) -> Directions:
        """Every channel is a direction."""
        return Directions(np.eye(self.channels), np.eye(self.channels))

    def mixed(self) -> Directions:
        """Directions by how much of the output they carry, the most important first."""
        flat = self.patches.reshape(-1, self.channels).astype(np.float64)
        lower = np.linalg.cholesky(damped(flat.T @ flat / len(flat)))
        spread = lower.T @ self.weight.transpose(1, 0, 2).reshape(self.channels, -1)
        left, _, _ = np.linalg.svd(spread, full_matrices=False)
        rows = linalg.solve_triangular(lower, left, lower=True, trans="T").T
        return Directions(rows, lower @ left)

    def values(self, directions: Directions) -> np.ndarray:
        """What the directions are on the patches, (rows, taps, directions)."""
        return self.patches @ directions.rows.T.astype(np.float32)

    def terms(self, directions: Directions, count: int) -> list[Term]:
        """The terms of all directions that are worth most."""
        found = [term for own in self.terms_of_each(directions) for term in own]
        return sorted(found, key=lambda term: -term.worth)[:count]

    def terms_of_each(self, directions: Directions, most: int | None = None) -> list[list[Term]]:
        """The terms of each direction, the most important first."""
        values = self.values(directions)
        found = []
        for number in range(values.shape[-1]):
            own = values[..., number].astype(np.float64)
            matrix = np.einsum("oct,c->ot", self.weight, directions.dual[:, number])
            filters, worths = principal(matrix, own.T @ own / len(own), most or own.shape[1])
            pairs = zip(filters, worths, strict=True)
            found.append([Term(number, f, float(worth)) for f, worth in pairs])
        return found

    def of_channels(self, channels: slice, outputs: slice | None = None) -> PatchMap:
        """The part of the map that reads some channels, to some of the outputs."""
        outputs = outputs or slice(None)
        part = PatchEvidence(
            self.evidence.patches[..., channels], self.evidence.outputs[:, outputs]
        )
        return PatchMap(part, self.weight[outputs, channels])

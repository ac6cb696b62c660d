"""Second moments of the inputs of weight layers over the calibration samples.

For a layer y = W·x with calibration samples behind it:

    second   H = E[x xᵀ], one matrix per group; block-diagonal where it would be too large
    mean     E[x]
    cross    E[y xᵀ], where y is what the same layer of a *reference* model returns for the same
             samples (its bias taken off). With W the reference's weight and x₀ its input,
             y = W·x₀, so cross = W·E[x₀ xᵀ]; without a reference, and where the reference certainly
             computes the same up to and with the layer, cross = W·H follows from `second`
    goal     E[y], with `energy` E[y²]

Positions of texts that only fill up a batch do not count, where a mask says which they are.

Passes get moments through `context.calibration`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np


@dataclass(frozen=True)
class BlockDiagonal:
    """A symmetric matrix that is zero outside square blocks along its diagonal."""

    blocks: tuple[np.ndarray, ...]

    @property
    def size(self) -> int:
        """Number of rows."""
        return sum(len(block) for block in self.blocks)

    def slices(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Each block with the range of rows that it covers."""
        start = 0
        for block in self.blocks:
            yield slice(start, start + len(block)), block
            start += len(block)


Second = np.ndarray | BlockDiagonal

_ROWS: Final = 256  # rows of a matrix that are computed at once


@dataclass(frozen=True)
class LayerMoments:
    """Moments of one layer, float64.

    Attributes:
        layer: the layer's name.
        seconds: H of each group, (columns, columns).
        mean: E[x], (groups, columns).
        count: number of vectors x that the moments average over.
        cross: E[y xᵀ], (groups, rows, columns), with a reference model; else None.
        goal: E[y], (groups, rows); None where `cross` is.
        energy: E[y²], (groups, rows); None where `cross` is.
        notes: simplifications, in words for the report.
        scatter: squared error of `seconds` (Frobenius) expected from the finite number of rows,
            (blocks, groups); None: not known.
        centered_scatter: the same error for the moments of x − E[x].
    """

    layer: str
    seconds: tuple[Second, ...]
    mean: np.ndarray
    count: int
    cross: np.ndarray | None = None
    goal: np.ndarray | None = None
    energy: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    scatter: np.ndarray | None = None
    centered_scatter: np.ndarray | None = None

    def returning(self, weight: np.ndarray) -> LayerMoments:
        """The same with `cross`, `goal` and `energy` of y = W·x; W is (groups, rows, columns)."""
        pairs = list(zip(np.asarray(weight, np.float64), self.seconds, strict=True))
        cross = np.stack([_times(w, second) for w, second in pairs])
        goal = np.matmul(weight, self.mean[:, :, None])[:, :, 0]
        return replace(self, cross=cross, goal=goal, energy=(cross * weight).sum(axis=2))

    def noise(self) -> np.ndarray | None:
        """The part of `scatter` that affects the inverse of H, (blocks, groups).

        With N rows and n columns, each eigenvalue has a relative error of about n/N, so most of the
        error of H lies in its large eigenvalues, which hardly affect the inverse.
        """
        if self.scatter is None:
            return None
        first = self.seconds[0]
        sizes = [len(b) for b in first.blocks] if isinstance(first, BlockDiagonal) else [len(first)]
        crowded = np.minimum(1.0, np.array(sizes) / self.count)
        return np.asarray(self.scatter * crowded[:, None])

    def centered(self) -> LayerMoments:
        """The moments of x − E[x] and y − E[y], which matter where the bias is free.

        The best bias for any weight Ŵ is E[y] − Ŵ·E[x]; with it, the error is that of the
        centered moments. `seconds` that were released, (), stay so.
        """
        seconds = tuple(_minus(h, mean) for h, mean in zip(self.seconds, self.mean, strict=False))
        result = replace(
            self,
            seconds=seconds,
            mean=np.zeros_like(self.mean),
            cross=None,
            goal=None,
            energy=None,
            scatter=self.centered_scatter,
        )
        if self.cross is None or self.goal is None or self.energy is None:
            return result
        # (g, rows, 1)·(g, 1, columns)
        cross = self.cross - self.goal[:, :, None] * self.mean[:, None, :]
        energy = self.energy - self.goal**2
        return replace(result, cross=cross, goal=np.zeros_like(self.goal), energy=energy)


def _times(weight: np.ndarray, second: Second) -> np.ndarray:
    """W·H."""
    if isinstance(second, BlockDiagonal):
        return np.concatenate([weight[:, at] @ block for at, block in second.slices()], axis=1)
    return np.asarray(weight @ second)


def _minus(second: Second, mean: np.ndarray) -> Second:
    if isinstance(second, BlockDiagonal):
        return BlockDiagonal(tuple(about_mean(block, mean[at]) for at, block in second.slices()))
    return about_mean(second, mean)


def about_mean(matrix: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """H − mean·meanᵀ as a new array, a few rows at a time: the product would be as large again."""
    result = matrix.copy()
    for start in range(0, len(result), _ROWS):
        part = slice(start, start + _ROWS)
        result[part] -= mean[part, None] * mean
    return result

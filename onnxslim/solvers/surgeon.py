"""Optimal brain surgeon: removal by w²/[H⁻¹]_jj, the other weights of the row making up for it.

`prune` and `surgeon` are the entry points. `eliminate` gives each row the inverse of its own
support, in rounds: better than `column_sweep`, for layers that are small enough (Hassibi 1993).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxslim.linear_algebra import linalg
from onnxslim.solvers.column_sweep import block_scopes, sweep_out
from onnxslim.solvers.least_squares import refit
from onnxslim.solvers.masks import InMatrix, InRow, InRun, Saliency, ZeroScope, mask_of, saliencies
from onnxslim.solvers.metric import Block, Metric
from onnxslim.solvers.threads import threads_for

_ROUNDS: Final = 16
_FIRST: Final = 0.35  # share that the first round leaves; measured: as good as many small rounds
_OWN_FLOPS: Final = 4e11  # what inverses of single rows may cost


def prune(
    target: np.ndarray,
    metric: Metric,
    budget: ZeroScope,
    criterion: Saliency = Saliency.OBS,
    seed: int = 0,
) -> np.ndarray:
    """The weight with zeros where `criterion` puts them; the others move under OBS only.

    Args:
        target: the unconstrained optimum (the weight itself, or `shifted_target`).
        metric: of the inputs.
        budget: how many weights stay.
        criterion: how they are chosen; `wanda` compares within rows.
        seed: of the random criterion.
    """
    target = np.asarray(target, np.float64)
    if criterion is Saliency.OBS:
        return sweep_out(target, metric, budget)
    if criterion is Saliency.WANDA and isinstance(budget, InMatrix):
        budget = InRow(budget.keep // len(target))
    mask = mask_of(saliencies(target, metric, criterion, seed), budget)
    return np.where(mask, target, 0.0)


def surgeon(target: np.ndarray, metric: Metric, budget: ZeroScope) -> np.ndarray:
    """OBS as thorough as the size of the matrix allows, refitted.

    `eliminate` where the inverses of all rows can be had in reasonable time, else `sweep_out`.
    """
    target = np.asarray(target, np.float64)
    if not isinstance(budget, InRun) and _own_flops(target.shape, budget) < _OWN_FLOPS:
        return eliminate(target, metric, budget)
    swept = sweep_out(target, metric, budget)
    return refit(target, metric, swept != 0, start=swept)


def _own_flops(shape: tuple[int, ...], budget: InMatrix | InRow) -> float:
    rows, columns = shape
    kept = budget.keep // rows if isinstance(budget, InMatrix) else budget.keep
    return float(rows * sum(float(keep) ** 3 for keep in _keeps(columns, kept, _ROUNDS)))


def eliminate(
    target: np.ndarray, metric: Metric, budget: InMatrix | InRow, rounds: int = _ROUNDS
) -> np.ndarray:
    """Remove the least salient weights in rounds, each row with its own inverse, refitted.

    Work grows with rows · columns³ for the first rounds: for layers up to about 2000 inputs.

    Args:
        target: the unconstrained optimum.
        metric: of the inputs.
        budget: how many weights stay, of the matrix or of each row.
        rounds: how often saliencies are computed anew.
    """
    target = np.asarray(target, np.float64)
    if metric.is_identity:
        return np.where(mask_of(np.square(target), budget), target, 0.0)
    mask = np.empty(target.shape, bool)
    for block, share in zip(metric.blocks, block_scopes(target, metric, budget), strict=True):
        assert not isinstance(share, InRun)
        mask[:, block.at] = _round_mask(target[:, block.at], block, share, rounds)
    return refit(target, metric, mask)


def _round_mask(
    target: np.ndarray, block: Block, budget: InMatrix | InRow, rounds: int
) -> np.ndarray:
    start = target.size if isinstance(budget, InMatrix) else target.shape[1]
    kind, keeps = type(budget), _keeps(start, budget.keep, rounds)
    pruned = _PrunedRows.dense(target, block)
    for keep in keeps[:-1]:
        pruned = pruned.shrink_to(kind(keep))
    return pruned.mask_after(budget)


def _keeps(start: int, keep: int, rounds: int) -> list[int]:
    """How many weights each round leaves: the first few, in one go, are safe to remove."""
    share = max(keep, 1) / start
    first = max(_FIRST, share**0.5)
    wished = np.geomspace(first, share, rounds) if rounds > 1 else [share]
    return [max(keep, round(float(part) * start)) for part in wished]


@dataclass(frozen=True)
class _PrunedRows:
    """Weights refitted to a mask, with the inverse that prices the removal of each of them.

    Attributes:
        cross: target times H, (rows, columns).
        mask: where a weight may be other than zero.
        weight: the best weight with those zeros.
        inverse: [H_SS⁻¹]_jj of each weight's row, S its support; infinite outside.
    """

    cross: np.ndarray
    block: Block
    mask: np.ndarray
    weight: np.ndarray
    inverse: np.ndarray

    @classmethod
    def dense(cls, target: np.ndarray, block: Block) -> _PrunedRows:
        """Nothing removed but the weights of dead inputs."""
        cross = target @ block.matrix
        mask = np.broadcast_to(~block.dead, target.shape).copy()
        inverse = np.where(mask, np.diagonal(block.inverse), np.inf)
        return cls(cross, block, mask, np.where(mask, target, 0.0), inverse)

    def mask_after(self, budget: InMatrix | InRow) -> np.ndarray:
        """The mask when all but the most costly weights are removed."""
        saliency = np.where(self.mask, np.square(self.weight) / self.inverse, -np.inf)
        return mask_of(saliency, budget)

    def shrink_to(self, budget: InMatrix | InRow) -> _PrunedRows:
        """The weights that `budget` leaves, refitted."""
        mask = self.mask_after(budget)
        weight, inverse = np.zeros(mask.shape), np.full(mask.shape, np.inf)
        with threads_for(mask.shape[1]):
            for row, allowed in enumerate(mask):
                columns = np.flatnonzero(allowed)
                if not len(columns):
                    continue
                lower = _inverse_lower(self.block.matrix[np.ix_(columns, columns)])
                weight[row, columns] = (lower @ self.cross[row, columns]) @ lower
                inverse[row, columns] = np.einsum("ij,ij->j", lower, lower)
        return _PrunedRows(self.cross, self.block, mask, weight, inverse)


def elimination_path(
    target: np.ndarray, metric: Metric, keeps: Sequence[int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The weights that `eliminate` keeps, on its way through ever smaller budgets.

    Args:
        target: the unconstrained optimum.
        metric: with one diagonal block.
        keeps: how many weights of the matrix stay, falling.

    Yields:
        The refitted weight, and for each weight [H_SS⁻¹]_jj of its row's support S (infinite where
        there is none): 1 / [H_SS⁻¹]_jj is what moving it by one costs when the others make up.
    """
    (block,) = metric.blocks
    pruned = _PrunedRows.dense(np.asarray(target, np.float64), block)
    for keep in keeps:
        if keep < int(pruned.mask.sum()):
            pruned = pruned.shrink_to(InMatrix(keep))
        yield pruned.weight, pruned.inverse


def _inverse_lower(matrix: np.ndarray) -> np.ndarray:
    """Lower triangular L with Lᵀ·L the inverse of a positive definite matrix."""
    factor, info = linalg.lapack.dpotrf(matrix.T, lower=1, clean=1, overwrite_a=1)
    lower, _ = linalg.lapack.dtrtri(factor, lower=1, overwrite_c=1)
    if info:
        raise linalg.LinAlgError("A part of the damped moments is not positive definite.")
    return np.asarray(lower)

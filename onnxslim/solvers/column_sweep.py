"""Pruning column by column with one factor of H⁻¹ for all rows: the blocked form of SparseGPT.

With U upper triangular and Uᵀ·U = H⁻¹, removing weight j of a row, columns before j being fixed,

    costs  (w_j / U_jj)²   and moves the columns k > j by   −(w_j / U_jj)·U_jk

(Frantar and Alistarh 2023). Unlike there, the threshold is chosen anew for each block of columns,
over all weights that are left.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from onnxslim.solvers.masks import (
    InMatrix,
    InRow,
    InRun,
    Saliency,
    ZeroScope,
    largest,
    largest_of_each,
    mask_of,
    saliencies,
    share_out,
)
from onnxslim.solvers.metric import Block, Metric

_BLOCK: Final = 128


def sweep_out(target: np.ndarray, metric: Metric, budget: ZeroScope) -> np.ndarray:
    """Remove weights column by column; those to the right make up for each.

    What stays is the best for its zeros only as far as the order of columns allows; `refit` makes
    it so.
    """
    target = np.asarray(target, np.float64)
    if metric.is_identity:
        return np.where(mask_of(np.square(target), budget), target, 0.0)
    result = np.empty_like(target)
    for block, share in zip(metric.blocks, block_scopes(target, metric, budget), strict=True):
        work = np.ascontiguousarray(target[:, block.at].T)  # (columns, rows)
        result[:, block.at] = _Sweep(work, block, share).run().T
    return result


def block_scopes(target: np.ndarray, metric: Metric, budget: ZeroScope) -> list[ZeroScope]:
    """The budget of each diagonal block."""
    blocks = metric.blocks
    if len(blocks) == 1 or isinstance(budget, InRun):
        return [budget] * len(blocks)
    saliency = saliencies(target, metric, Saliency.OBS)
    if isinstance(budget, InMatrix):
        counts = share_out([saliency[:, block.at] for block in blocks], budget.keep)
        return [InMatrix(count) for count in counts]
    # rows keep the same number in a block, so that they keep the same number in all
    parts = [float(saliency[:, block.at].sum()) for block in blocks]
    ideal = np.array(parts) / max(sum(parts), 1e-300) * budget.keep
    counts = list(np.floor(ideal).astype(int))
    for index in np.argsort(np.floor(ideal) - ideal)[: budget.keep - sum(counts)]:
        counts[index] += 1
    return [InRow(int(count)) for count in counts]


class _Sweep:
    """Weights of one diagonal block as (columns, rows), pruned from the first column on."""

    def __init__(self, work: np.ndarray, block: Block, budget: ZeroScope) -> None:
        self.work, self.budget = work, budget
        self.size = max(1, min(_BLOCK, -(-len(work) // 16)))
        if isinstance(budget, InRun):
            self.size = -(-self.size // budget.length) * budget.length
        self.upper = block.inverse_factor()
        self.dead = block.dead
        self.left = budget.keep
        self.left_by_row = np.full(work.shape[1], budget.keep)
        # [H⁻¹] of the columns that are left: what the factor's earlier rows add goes away
        self.inverse = np.einsum("ij,ij->j", self.upper, self.upper)

    def run(self) -> np.ndarray:
        columns = len(self.work)
        for start in range(0, columns, self.size):
            stop = min(start + self.size, columns)
            self._remove(start, stop, self._mask(start, stop))
            part = self.upper[start:stop]
            self.inverse -= np.einsum("ij,ij->j", part, part)
        return self.work

    def _mask(self, start: int, stop: int) -> np.ndarray:
        """What stays of the columns from `start` to `stop`."""
        budget = self.budget
        last = stop if isinstance(budget, InRun) else len(self.work)
        inverse = np.maximum(self.inverse[start:last, None], 1e-300)
        saliency = np.square(self.work[start:last]) / inverse
        saliency[self.dead[start:last]] = 0.0
        if isinstance(budget, InRun):
            return mask_of(saliency.T, budget).T
        if isinstance(budget, InMatrix):
            mask = largest(saliency.reshape(1, -1), self.left).reshape(saliency.shape)
            mask = mask[: stop - start]
            self.left -= int(mask.sum())
            return mask
        mask = largest_of_each(saliency.T, self.left_by_row).T[: stop - start]
        self.left_by_row = self.left_by_row - mask.sum(axis=0)
        return mask

    def _remove(self, start: int, stop: int, mask: np.ndarray) -> None:
        work, upper = self.work, self.upper
        errors = np.zeros((stop - start, work.shape[1]))
        for index in range(start, stop):
            error = np.where(mask[index - start], 0.0, work[index] / upper[index, index])
            errors[index - start] = error
            # the column itself, and those after it in the block
            work[index:stop] -= upper[index, index:stop, None] * error
            work[index][~mask[index - start]] = 0.0
        work[stop:] -= upper[start:stop, stop:].T @ errors

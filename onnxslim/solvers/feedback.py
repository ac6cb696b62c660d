"""Rounding with error feedback: later columns make up for the rounding of earlier ones.

With U upper triangular and Uᵀ·U = H⁻¹, rounding column j of a row by the error e costs

    (e / U_jj)²        and the columns k > j move by   −(e / U_jj)·U_jk

which is the best answer of the columns after j (OBQ and GPTQ, Frantar 2022). Without data H = I:
nothing can be made up for, and weights are rounded to the nearest value.

Zeros of a mask stay zero. Where rows have different zeros, the factor of each row's own support
does better than one factor for all rows; it is used where the work is affordable.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxslim.solvers.damping import inverse_factor
from onnxslim.solvers.least_squares import equal_rows, refit, support_work
from onnxslim.solvers.metric import Block, Metric
from onnxslim.solvers.tables import Table, ValueSet, round_to_nearest
from onnxslim.solvers.threads import threads_for

_BLOCK: Final = 128
_OWN_FLOPS: Final = 4e11  # what factors of all supports may cost
_OWN_ITEMS: Final = 1 << 23  # of the factors held at once


def round_with_feedback(
    target: np.ndarray,
    metric: Metric,
    codebook: ValueSet,
    *,
    mask: np.ndarray | None = None,
    is_fitted: bool = False,
    by_activity: bool = True,
) -> np.ndarray:
    """Weights from `codebook`, column by column with error feedback.

    Args:
        target: the unconstrained optimum.
        metric: of the inputs.
        codebook: the allowed values; zero need not be one of them.
        mask: where a weight may be other than zero; None: everywhere.
        is_fitted: whether `target` is the best weight with those zeros already.
        by_activity: take columns with large H_jj first, while there are many left to make up.
    """
    target = np.asarray(target, np.float64)
    if metric.is_identity:
        return round_to_nearest(target, codebook, metric, mask)
    if mask is not None and not is_fitted:
        target = refit(target, metric, mask)
    result = np.empty_like(target)
    for block in metric.blocks:
        part = target[:, block.at]
        own = None if mask is None else mask[:, block.at]
        if own is not None and support_work(own) < _OWN_FLOPS:
            result[:, block.at] = _row_feedback(part, block, codebook, own, by_activity=by_activity)
        else:
            result[:, block.at] = _feedback(part, block, codebook, own, by_activity=by_activity)
    return _guarded(target, result, metric, codebook, mask)


def _guarded(
    target: np.ndarray,
    fed: np.ndarray,
    metric: Metric,
    codebook: ValueSet,
    mask: np.ndarray | None,
) -> np.ndarray:
    """`fed`, but rounding to nearest in the rows where that is better.

    Feedback fails where values saturate: what the last columns should make up for they cannot.
    """
    if isinstance(codebook, Table) and codebook.price is not None:
        return fed  # nearest pays no attention to prices
    plain = round_to_nearest(target, codebook, metric, mask)
    better = metric.cost_by_row(target - plain) < metric.cost_by_row(target - fed)
    return np.where(better[:, None], plain, fed)


def _feedback(
    target: np.ndarray,
    block: Block,
    codebook: ValueSet,
    mask: np.ndarray | None,
    *,
    by_activity: bool,
) -> np.ndarray:
    """One factor for all rows, in blocks of columns."""
    order, upper = np.arange(len(block.matrix)), block.inverse_factor()
    if by_activity:
        order, upper = block.by_activity
    result = np.zeros_like(target)
    _Feed(block, codebook, order, upper).run(target, slice(None), result, mask)
    return result


@dataclass(frozen=True)
class _Feed:
    """Rounding of rows that share a factor.

    Attributes:
        order: the columns that may be other than zero, in the order in which they are rounded.
        upper: the inverse's factor of these columns.
    """

    block: Block
    codebook: ValueSet
    order: np.ndarray
    upper: np.ndarray

    def run(
        self,
        target: np.ndarray,
        rows: np.ndarray | slice,
        result: np.ndarray,
        mask: np.ndarray | None = None,
    ) -> None:
        """Write the rounded `rows` of `target` into `result`."""
        work = np.ascontiguousarray(target[rows][:, self.order].T)  # (columns, rows)
        upper = self.upper
        for start in range(0, len(work), _BLOCK):
            stop = min(start + _BLOCK, len(work))
            errors = np.zeros((stop - start, work.shape[1]))
            for index in range(start, stop):
                chosen = self._chosen(work[index], rows, index)
                if mask is not None:
                    chosen = np.where(mask[rows, self.order[index]], chosen, 0.0)
                error = errors[index - start] = (work[index] - chosen) / upper[index, index]
                work[index + 1 : stop] -= upper[index, index + 1 : stop, None] * error
                result[rows, self.order[index]] = chosen
            work[stop:] -= upper[start:stop, stop:].T @ errors

    def _chosen(self, values: np.ndarray, rows: np.ndarray | slice, index: int) -> np.ndarray:
        column = int(self.order[index])
        curvature = np.array([0.0 if self.block.dead[column] else self.upper[index, index] ** -2])
        return self.codebook.project(values, rows, self.block.at.start + column, curvature)


def _row_feedback(
    target: np.ndarray, block: Block, codebook: ValueSet, mask: np.ndarray, *, by_activity: bool
) -> np.ndarray:
    """Each row with the factor of its own support; rows with supports of like size together.

    Rows with the same support share its factor: of a dense weight with a few zeros nearly all.
    """
    result = np.zeros_like(target)
    order = block.by_activity[0] if by_activity else np.arange(len(block.matrix))
    single: list[int] = []
    for rows in equal_rows(mask):
        own = order[mask[rows[0], order]]
        if len(rows) == 1:
            single.append(int(rows[0]))
        elif len(own):
            with threads_for(len(own)):
                upper = inverse_factor(block.matrix[np.ix_(own, own)], overwrite=True)
            _Feed(block, codebook, own, upper).run(target, rows, result)
    for chosen in _batches(mask, np.array(single, int)):
        _feed_rows(target, block, codebook, mask, chosen, order, result)
    return result


def _batches(mask: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """As many rows as may be held when all are padded to the largest of them."""
    sizes = mask.sum(axis=1)
    rows = rows[np.argsort(sizes[rows], kind="stable")]
    rows = rows[sizes[rows] > 0]
    start = 0
    while start < len(rows):
        count = 1
        while start + count < len(rows):
            largest = int(sizes[rows[start + count]])
            if (count + 1) * largest**2 > _OWN_ITEMS:
                break
            count += 1
        yield rows[start : start + count]
        start += count


def _feed_rows(
    target: np.ndarray,
    block: Block,
    codebook: ValueSet,
    mask: np.ndarray,
    rows: np.ndarray,
    order: np.ndarray,
    result: np.ndarray,
) -> None:
    """Supports are padded with columns of the identity, whose weights are zero."""
    size = int(mask[rows].sum(axis=1).max())
    columns = np.zeros((len(rows), size), int)
    used = np.zeros((len(rows), size), bool)
    uppers = np.zeros((len(rows), size, size))
    with threads_for(size):
        for index, row in enumerate(rows):
            own = order[mask[row, order]]
            count = len(own)
            columns[index, :count], used[index, :count] = own, True
            uppers[index] = np.eye(size)
            uppers[index, :count, :count] = inverse_factor(
                block.matrix[np.ix_(own, own)], overwrite=True
            )
    work = np.where(used, np.take_along_axis(target[rows], columns, axis=1), 0.0)
    for at in range(size):
        pivot = uppers[:, at, at]
        column = block.at.start + columns[:, at]
        curvature = np.where(block.dead[columns[:, at]], 0.0, pivot**-2)
        chosen = codebook.project(work[:, at], rows, column, curvature)
        error = np.where(used[:, at], (work[:, at] - chosen) / pivot, 0.0)
        work[:, at + 1 :] -= error[:, None] * uppers[:, at, at + 1 :]
        live = used[:, at]
        result[rows[live], columns[live, at]] = chosen[live]

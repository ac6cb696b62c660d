"""Weights from a table or a grid, with error feedback.

A codebook says which values each weight may have: `Table` (listed values, one table for all rows or
one for each, anew for every `width` columns) or `IntegerGrid` (integers in a range, times a scale).

`quantize` goes through the columns; what rounding one of them does to the output is made up for by
the columns after it, which is exact for the second moments it is given (the update of OBQ and GPTQ,
Frantar 2022). With H = I there is nothing to make up for, and it rounds to nearest. A table may put
a price on its values (`Table.price`): each weight then minimises error + price, which is how bits
are bought where they matter (entropy-constrained quantization).

Zeros of a mask stay zero. Where rows have different zeros, the factor of a row's own zeros does
better than one that all share; `quantize` takes it where it can afford to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from scipy import linalg

from onnxslim.solvers.metric import Block, Metric, equal_rows, inverse_factor, refit, support_work
from onnxslim.solvers.threads import threads_for

_BLOCK: Final = 128
_OWN_FLOPS: Final = 4e11  # what factors of all supports may cost
_OWN_ITEMS: Final = 1 << 23  # of the factors held at once
Ints = np.ndarray


class ValueSet(Protocol):
    """The values that weights may have."""

    def project(
        self, values: np.ndarray, rows: Ints | slice, column: Ints | int, curvature: np.ndarray
    ) -> np.ndarray:
        """The allowed value that is best for each of `values`.

        Args:
            values: one weight of each of `rows`.
            rows: their rows.
            column: their columns, or the one they share.
            curvature: error per squared change, of each value or of all.
        """


@dataclass(frozen=True)
class Table:
    """Values listed.

    Attributes:
        values: (column groups, rows or 1, L), ascending along the last axis.
        width: columns that share a table; None: all.
        price: what using each value costs, of the shape of `values`, in the objective's units;
            None: nothing.
    """

    values: np.ndarray
    width: int | None = None
    price: np.ndarray | None = None

    @classmethod
    def of(cls, values: np.ndarray, price: np.ndarray | None = None) -> Table:
        """One table for a whole matrix."""
        order = np.argsort(values, kind="stable")
        paid = None if price is None else np.asarray(price, np.float64)[order][None, None]
        return cls(np.asarray(values, np.float64)[order][None, None], price=paid)

    def project(
        self, values: np.ndarray, rows: Ints | slice, column: Ints | int, curvature: np.ndarray
    ) -> np.ndarray:
        """See `ValueSet`."""
        levels = self._of(self.values, rows, column)
        if self.price is not None:
            price = self._of(self.price, rows, column)
            cost = np.square(values[:, None] - levels) * np.reshape(curvature, (-1, 1)) + price
            return _pick(levels, cost.argmin(axis=1))
        if len(levels) == 1:
            middles = (levels[0, 1:] + levels[0, :-1]) / 2
            return np.asarray(levels[0][np.searchsorted(middles, values)])
        middles = (levels[:, 1:] + levels[:, :-1]) / 2
        return _pick(levels, (values[:, None] > middles).sum(axis=1))

    def _of(self, array: np.ndarray, rows: Ints | slice, column: Ints | int) -> np.ndarray:
        """(rows or 1, L): the levels of each row, or of all."""
        group = 0 if self.width is None else np.asarray(column) // self.width
        if array.shape[1] == 1:
            chosen = array[group, 0]
            return np.asarray(chosen if chosen.ndim == 2 else chosen[None])
        return np.asarray(array[group, rows])


@dataclass(frozen=True)
class IntegerGrid:
    """scale·(q − zero_point) for integers q from `low` to `high`.

    Attributes:
        scale, zero_point: (column groups, rows or 1).
        width: columns that share them; None: all.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    low: int
    high: int
    width: int | None = None

    def project(
        self, values: np.ndarray, rows: Ints | slice, column: Ints | int, curvature: np.ndarray
    ) -> np.ndarray:
        """See `ValueSet`; the curvature does not matter."""
        group = 0 if self.width is None else np.asarray(column) // self.width
        at = 0 if self.scale.shape[1] == 1 else rows
        scale, zero = self.scale[group, at], self.zero_point[group, at]
        whole = np.clip(np.rint(values / scale) + zero, self.low, self.high)
        return np.asarray((whole - zero) * scale)


def nearest(
    target: np.ndarray, codebook: ValueSet, metric: Metric, mask: np.ndarray | None = None
) -> np.ndarray:
    """Each weight rounded by itself; zeros of `mask` stay zero."""
    target = np.asarray(target, np.float64)
    result = np.empty_like(target)
    for column in range(target.shape[1]):
        curvature = metric.diagonal[column : column + 1]
        result[:, column] = codebook.project(target[:, column], slice(None), column, curvature)
    return result if mask is None else np.where(mask, result, 0.0)


def quantize(
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
        return nearest(target, codebook, metric, mask)
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
    plain = nearest(target, codebook, metric, mask)
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
        rows: Ints | slice,
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

    def _chosen(self, values: np.ndarray, rows: Ints | slice, index: int) -> np.ndarray:
        column = int(self.order[index])
        curvature = np.array([0.0 if self.block.dead[column] else self.upper[index, index] ** -2])
        return self.codebook.project(values, rows, self.block.at.start + column, curvature)


# ---------------------------------------------------------------------------- a factor a support


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


# ---------------------------------------------------------------------------- refinement


def refit_values(target: np.ndarray, metric: Metric, codes: np.ndarray, count: int) -> np.ndarray:
    """The best table for a given assignment: linear least squares in its values.

    Args:
        target: the unconstrained optimum.
        metric: of the inputs.
        codes: (rows, columns), which value each weight uses; −1: none, the weight is zero.
        count: number of values. One that no weight uses becomes 0.
    """
    return solve_values(*value_equations(target, metric, codes, count))


def value_equations(
    target: np.ndarray, metric: Metric, codes: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The normal equations behind `refit_values`: those of several matrices can be added.

    Returns:
        The matrix (count, count) and the right side (count,).
    """
    codes = np.where(metric.dead, -1, codes)  # the weights of dead inputs have no say
    wished = metric.times(np.asarray(target, np.float64))
    normal, right = np.zeros((count, count)), np.zeros(count)
    used = codes >= 0
    flat = codes[used]
    for level in range(count):
        chosen = codes == level
        right[level] = wished[chosen].sum()
        image = metric.times(chosen.astype(np.float64))
        normal[level] = np.bincount(flat, weights=image[used], minlength=count)
    return normal, right


def solve_values(normal: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The least-squares values of a table, zero for those that no weight uses."""
    return np.asarray(linalg.lstsq(normal, right, cond=1e-12, check_finite=False)[0])


def refit_row_values(
    target: np.ndarray, metric: Metric, codes: np.ndarray, count: int
) -> np.ndarray:
    """As `refit_values`, with a table for each row: (rows, count)."""
    rows, columns = target.shape
    codes = np.where(metric.dead, -1, codes)
    wished = metric.times(np.asarray(target, np.float64))
    normal, right = np.zeros((rows, count, count)), np.zeros((rows, count))
    row = np.broadcast_to(np.arange(rows)[:, None], (rows, columns))
    used = codes >= 0
    place = row[used] * count + codes[used]
    for level in range(count):
        chosen = codes == level
        right[:, level] = np.where(chosen, wished, 0.0).sum(axis=1)
        image = metric.times(chosen.astype(np.float64))
        sums = np.bincount(place, weights=image[used], minlength=rows * count)
        normal[:, level] = sums.reshape(rows, count)
    return np.stack([solve_values(n, r) for n, r in zip(normal, right, strict=True)])


def descend(
    target: np.ndarray,
    weight: np.ndarray,
    metric: Metric,
    codebook: ValueSet,
    *,
    mask: np.ndarray | None = None,
    sweeps: int = 2,
) -> np.ndarray:
    """Go through the columns again, choosing each weight anew given all others.

    Never worse than `weight`, by the damped objective and the codebook's prices.

    Args:
        target: the unconstrained optimum.
        weight: where to start.
        metric: of the inputs.
        codebook: the allowed values.
        mask: where a weight may be other than zero.
        sweeps: how often.
    """
    if metric.is_identity:
        return weight
    result = np.array(weight, np.float64)
    for block in metric.blocks:
        part = np.ascontiguousarray((target[:, block.at] - result[:, block.at]).T)
        values = np.ascontiguousarray(result[:, block.at].T)
        allowed = None if mask is None else mask[:, block.at].T
        for _ in range(sweeps):
            _descend_once(part, values, block, codebook, allowed)
        result[:, block.at] = values.T
    return result


def _descend_once(
    distance: np.ndarray,
    values: np.ndarray,
    block: Block,
    codebook: ValueSet,
    allowed: np.ndarray | None,
) -> None:
    """One sweep over (columns, rows); edits `values` and `distance` = target − values."""
    matrix = block.matrix
    for start in range(0, len(values), _BLOCK):
        stop = min(start + _BLOCK, len(values))
        pull = matrix[start:stop] @ distance  # (block, rows)
        for index in range(start, stop):
            curvature = matrix[index, index]
            old = values[index]
            ideal = old + pull[index - start] / curvature
            paid = np.array([0.0 if block.dead[index] else curvature])
            new = codebook.project(ideal, slice(None), block.at.start + index, paid)
            if allowed is not None:
                new = np.where(allowed[index], new, old)
            change = new - old
            pull -= matrix[start:stop, index, None] * change
            distance[index] -= change
            values[index] = new


def _pick(levels: np.ndarray, index: np.ndarray) -> np.ndarray:
    if len(levels) == 1:
        return np.asarray(levels[0][index])
    return np.asarray(np.take_along_axis(levels, index[:, None], axis=1)[:, 0])

"""The values that weights may have: a table or a grid.

`Table` lists values: one table for all rows or one for each, and another for every `width` columns.
`IntegerGrid` has integers in a range, times a scale. A table may put a price on its values
(`Table.price`): each weight then minimises error + price, so that bits are spent where they matter
(entropy-constrained quantization).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxslim.solvers.metric import Metric


class ValueSet(Protocol):
    """The values that weights may have."""

    def project(
        self,
        values: np.ndarray,
        rows: np.ndarray | slice,
        column: np.ndarray | int,
        curvature: np.ndarray,
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
        self,
        values: np.ndarray,
        rows: np.ndarray | slice,
        column: np.ndarray | int,
        curvature: np.ndarray,
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

    def _of(
        self, array: np.ndarray, rows: np.ndarray | slice, column: np.ndarray | int
    ) -> np.ndarray:
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
        self,
        values: np.ndarray,
        rows: np.ndarray | slice,
        column: np.ndarray | int,
        curvature: np.ndarray,
    ) -> np.ndarray:
        """See `ValueSet`; the curvature does not matter."""
        group = 0 if self.width is None else np.asarray(column) // self.width
        at = 0 if self.scale.shape[1] == 1 else rows
        scale, zero = self.scale[group, at], self.zero_point[group, at]
        whole = np.clip(np.rint(values / scale) + zero, self.low, self.high)
        return np.asarray((whole - zero) * scale)


def round_to_nearest(
    target: np.ndarray, codebook: ValueSet, metric: Metric, mask: np.ndarray | None = None
) -> np.ndarray:
    """Each weight rounded by itself; zeros of `mask` stay zero."""
    target = np.asarray(target, np.float64)
    result = np.empty_like(target)
    for column in range(target.shape[1]):
        curvature = metric.diagonal[column : column + 1]
        result[:, column] = codebook.project(target[:, column], slice(None), column, curvature)
    return result if mask is None else np.where(mask, result, 0.0)


def _pick(levels: np.ndarray, index: np.ndarray) -> np.ndarray:
    if len(levels) == 1:
        return np.asarray(levels[0][index])
    return np.asarray(np.take_along_axis(levels, index[:, None], axis=1)[:, 0])

"""What the layers that read a channel group say of its units, from calibration samples.

With x_u the inputs that belong to unit u and W_u their columns in a reading layer with output y,

    Q_uv = E[(W_u x_u)ᵀ(W_v x_v)] / E‖y‖²,  (units, units), summed over the readers,

says what the removal of any units does to the outputs of the readers if nothing makes up for it.
If the columns that stay are refitted, removing the columns O of one reader costs
tr W_O [H⁻¹]_OO⁻¹ W_Oᵀ with H = E[x xᵀ] (Hassibi and Stork 1993, for groups of columns).

Owns: Q, the inverses, elimination and its costs. Not here: how units are ranked by them (see
`criteria`), where moments come from (see `readers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.channels.groups import ChannelGroup, Channels
from onnxslim.linear_algebra import linalg
from onnxslim.solvers.metric import Metric
from onnxslim.solvers.threads import threads_for

Array = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

GONE: Final = -1  # in place of the unit of a column that has left

_CHUNK: Final = 512  # columns that are worked on at once
_CROWDED: Final = 0.75  # share of columns that stay below which the others are let go of


@dataclass
class ReaderInverse:
    """H⁻¹ and the weight of one reader, for the columns that read a channel group.

    Each group of a grouped Conv is a reader of its own.

    Attributes:
        unit: the place in the group of the unit of each column, (columns,); `GONE` once removed.
        inverse: these rows and columns of H⁻¹, damped, (columns, columns).
        weight: (rows, columns), divided by the root of the reader's E‖y‖²; any matrix with the same
            products of columns serves.
    """

    unit: Ids
    inverse: Array
    weight: Array

    @classmethod
    def of(cls, unit: Ids, inverse: Array, weight: Array) -> ReaderInverse:
        """The record, with the weight replaced by a smaller one that has the same WᵀW."""
        if len(weight) > weight.shape[1]:
            weight = linalg.qr(weight, mode="r", overwrite_a=True, check_finite=False)[0]
            weight = weight[: weight.shape[1]]
        return cls(unit, inverse, weight)

    def copy(self) -> ReaderInverse:
        """A copy, which `remove` may change."""
        return ReaderInverse(self.unit.copy(), self.inverse.copy(), self.weight.copy())

    def remove(self, chosen: Ids, size: int) -> float:
        """Remove units and refit the columns that stay; returns the relative output error of that.

        `chosen` holds the places of the units in the group, which has `size` units.
        """
        leaves = np.zeros(size + 1, bool)  # the last entry is for columns that are `GONE`
        leaves[chosen] = True
        out = np.flatnonzero(leaves[self.unit])
        if not len(out):
            return 0.0
        with threads_for(len(self.unit)):
            # Hassibi and Stork (1993), eq. 5, for a block O of columns:
            # cost = tr W_O [H⁻¹]_OO⁻¹ W_Oᵀ, W −= W_O [H⁻¹]_OO⁻¹ H⁻¹_O:
            across = self.inverse[out]
            removed = self.weight[:, out].copy()
            carried = np.linalg.solve(across[:, out], across)
            solved = np.linalg.solve(across[:, out], removed.T)
            cost = float(np.einsum("ij,ji->", removed, solved))
            self.weight -= removed @ carried
            # the inverse without O: H⁻¹ −= H⁻¹_:O [H⁻¹]_OO⁻¹ H⁻¹_O:
            for start in range(0, len(self.unit), _CHUNK):
                part = slice(start, start + _CHUNK)
                self.inverse[part] -= across[:, part].T @ carried
        self.unit[out] = GONE
        self._shrink()
        return max(0.0, cost)

    def _shrink(self) -> None:
        """Drop the columns that are gone, once they are many."""
        stay = np.flatnonzero(self.unit != GONE)
        if len(stay) <= _CROWDED * len(self.unit):
            self.unit, self.weight = self.unit[stay], self.weight[:, stay]
            self.inverse = self.inverse[np.ix_(stay, stay)]


@dataclass
class Evidence:
    """What the readers of a channel group say of its units, summed over the readers seen so far.

    Attributes:
        place: the place in the group of each unit of the graph, −1 for others; one more at the end.
        stays: whether each unit of the group is pinned.
        products: Q, (units of the group, units of the group).
        inverses: of the readers, where they are kept.
    """

    group: ChannelGroup
    place: Ids
    stays: npt.NDArray[np.bool_]
    products: Array
    inverses: list[ReaderInverse]

    @classmethod
    def empty(cls, channels: Channels, group: ChannelGroup) -> Evidence:
        """The evidence before any reader is seen."""
        place = np.full(channels.units.count + 1, -1)
        place[group.units] = np.arange(group.size)
        stays = channels.units.pinned[group.units]
        return cls(group, place, stays, np.zeros((group.size, group.size)), [])

    def add(
        self,
        weight: Array,
        metrics: Sequence[Metric],
        energy: float,
        units: Ids,
        *,
        with_inverses: bool,
    ) -> None:
        """Add a reader.

        Args:
            weight: of the reader, (groups, rows, columns).
            metrics: H of each of its groups.
            energy: E‖y‖² of its output.
            units: the unit of each column, (groups, columns); −1 where it has none.
            with_inverses: keep the reader's inverses, which refits and `obs` need.
        """
        for w, metric, unit in zip(weight, metrics, units, strict=True):
            columns = np.flatnonzero((unit >= 0) & (self.place[unit] >= 0))
            if not len(columns):
                continue
            own = self.place[unit[columns]]
            part = np.asarray(w[:, columns], np.float64) / np.sqrt(max(energy, 1e-300))
            self._add_products(part, metric, columns, own)
            if with_inverses:
                self.inverses.append(ReaderInverse.of(own, metric.inverse_at(columns), part))

    def _add_products(self, weight: Array, metric: Metric, columns: Ids, unit: Ids) -> None:
        """Add WᵀW·H, entry by entry, summed over the columns of each unit in both directions."""
        # columns of one unit side by side, so that `reduceat` sums over them
        order = np.argsort(unit, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(unit[order]) > 0])
        present = unit[order][starts]
        weight = weight[:, order]
        for start in range(0, len(order), _CHUNK):
            rows = order[start : start + _CHUNK]
            with threads_for(len(order)):
                part = weight[:, start : start + _CHUNK].T @ weight
            part *= metric.entries(columns[rows], columns[order])
            sums = np.add.reduceat(part, starts, axis=1)
            np.add.at(self.products, (unit[rows][:, None], present), sums)


def elimination_costs(readers: Sequence[ReaderInverse], size: int) -> Array:
    """The relative output error of removing each unit alone and refitting the rest, (units,).

    Sums over readers; `size` is that of the group.
    """
    total = np.zeros(size)
    for reader in readers:
        order = np.argsort(reader.unit, kind="stable")
        units, starts, widths = np.unique(reader.unit[order], return_index=True, return_counts=True)
        # units with as many columns are solved together
        for width in np.unique(widths[units != GONE]):
            rows = np.flatnonzero((widths == width) & (units != GONE))
            # (units, width): the columns of each unit
            at = order[starts[rows][:, None] + np.arange(width)]
            inner = reader.inverse[at[:, :, None], at[:, None, :]]
            own = reader.weight[:, at].transpose(1, 0, 2)  # (units, rows, width)
            solved = np.linalg.solve(inner, own.transpose(0, 2, 1) @ own)
            total[units[rows]] += np.einsum("uii->u", solved)
    return np.maximum(total, 0.0)


def costs_along(evidence: Evidence, order: Ids, counts: Sequence[int]) -> Array:
    """The relative output errors, summed over readers, when the first units of `order` have left.

    Where inverses are kept, the columns that stay are refitted: removing the columns O costs
    tr W_O [H⁻¹]_OO⁻¹ W_Oᵀ. With [H⁻¹] = L·Lᵀ in the order in which columns leave, this is the sum
    of the squares of the first rows of L⁻¹Wᵀ, so that one factorization gives all errors.

    `order` holds places of units in the group, and `counts` rising numbers of units, (levels,).
    """
    if not evidence.inverses:
        products = evidence.products
        return np.array([float(products[np.ix_(order[:n], order[:n])].sum()) for n in counts])
    turn = np.full(evidence.group.size, len(order))
    turn[order] = np.arange(len(order))
    costs = np.zeros(len(order) + 1)
    for reader in evidence.inverses:
        turns = turn[reader.unit]  # columns of units that never leave come last, and are left out
        columns = np.argsort(turns, kind="stable")[: int((turns < len(order)).sum())]
        # stored by columns, as LAPACK wants it, so that it is factorized in place
        inner = reader.inverse[np.ix_(columns, columns)].T
        with threads_for(len(columns)):
            lower = linalg.cholesky(inner, lower=True, overwrite_a=True, check_finite=False)
            rows = linalg.solve_triangular(
                lower, reader.weight[:, columns].T, lower=True, check_finite=False
            )
        np.add.at(costs, turns[columns] + 1, np.einsum("ij,ij->i", rows, rows))
    return np.asarray(np.cumsum(costs)[list(counts)])

"""What a unit is worth: by its weights alone, or by what the layers that read it make of it.

With calibration samples every measure but the activation statistics comes from one matrix for each
layer that reads a group. With x_u the inputs that belong to unit u and W_u their columns,

    Q_uv = E[(W_u x_u)ᵀ(W_v x_v)] / E‖y‖²,  (units, units), summed over those layers,

and the worth of u is

    obd      Q_uu: what removing u alone does to the output, all else as it is
    taylor   |Σ_v Q_uv|: the first-order change of ½E‖y‖² as u fades (Molchanov 2016 take the
             network's loss instead, which needs labels and gradients)
    thinet   greedily the u that adds least to Σ_{u,v gone} Q_uv (Luo 2017, eq. 6)
    lasso    min_β E‖y − Σ β_u W_u x_u‖² + λ Σ|β_u|, λ raised until β_u = 0 (He 2017, eq. 1)

`obs` lets the columns that stay make up for each that goes (Hassibi 1993, by groups of columns):
tr ([H⁻¹]_uu)⁻¹ W_uᵀW_u, with H⁻¹ and W updated as units leave. It needs of each layer the part of
H⁻¹ and of W that belongs to the group, and no more.

What may change here: measures. Units with more than one reader sum over them.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import linalg
from scipy.spatial import distance

from onnxslim.channels.groups import ChannelGroup, Channels
from onnxslim.channels.tracing import Member
from onnxslim.graph.operands import const_array
from onnxslim.solvers.metric import Metric
from onnxslim.solvers.threads import threads_for

Array = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


class Criterion(enum.StrEnum):
    """How the worth of a unit is found."""

    L1 = "l1"
    L2 = "l2"
    BN_SCALE = "bn-scale"
    FPGM = "fpgm"
    RANDOM = "random"
    PRODUCT = "product"
    MEAN_ACTIVATION = "mean-activation"
    APOZ = "apoz"
    ENTROPY = "entropy"
    TAYLOR = "taylor"
    OBD = "obd"
    OBS = "obs"
    LASSO = "lasso"
    THINET = "thinet"


BY_WEIGHT: Final = (
    Criterion.L1,
    Criterion.L2,
    Criterion.BN_SCALE,
    Criterion.FPGM,
    Criterion.RANDOM,
    Criterion.PRODUCT,
)
BY_ACTIVITY: Final = (Criterion.MEAN_ACTIVATION, Criterion.APOZ, Criterion.ENTROPY)
BY_READERS: Final = (
    Criterion.TAYLOR,
    Criterion.OBD,
    Criterion.OBS,
    Criterion.LASSO,
    Criterion.THINET,
)

GONE: Final = -1  # in place of the unit of a column that has left

_ROUNDS: Final = 24  # of elimination
_CHUNK: Final = 512  # columns that are worked on at once
_CROWDED: Final = 0.75  # share of columns that stay below which the others are let go of
_LASSO_STEPS: Final = 200
_LASSO_SWEEPS: Final = 20


# ---------------------------------------------------------------------------- weights alone


def weight_worth(channels: Channels, group: ChannelGroup, measure: Criterion, seed: int) -> Array:
    """For each unit of `channels`, what its weights say; units of other groups are 0.

    Each layer's values are divided by their mean, so that the layers of a group count alike.

    Raises:
        LookupError: `bn-scale` on a group without a BatchNormalization.
    """
    worth = np.zeros(channels.units.count)
    if measure is Criterion.RANDOM:
        rng = np.random.default_rng((seed, zlib.crc32(group.name.encode())))
        worth[group.units] = rng.permutation(group.size)
        return worth
    if measure is Criterion.BN_SCALE:
        _add_scales(channels, group, worth)
        return worth
    for member in group.writers:
        own = member_rows(member)
        values = _row_values(own, measure)
        _add(worth, channels.units.of_ids(member.ids), values / max(values.mean(), 1e-300))
    if measure is Criterion.PRODUCT and group.readers:
        read = np.zeros_like(worth)
        for member in group.readers:
            columns = np.linalg.norm(member_columns(member), axis=1)
            _add(read, channels.units.of_ids(member.ids), columns / max(columns.mean(), 1e-300))
        worth *= read
    return worth


def _row_values(rows: Array, measure: Criterion) -> Array:
    if measure is Criterion.L1:
        return np.asarray(np.abs(rows).sum(axis=1))
    if measure is Criterion.FPGM:
        return np.asarray(distance.cdist(rows, rows).sum(axis=1))
    return np.asarray(np.linalg.norm(rows, axis=1))


def _add(worth: Array, units: Ids, values: Array) -> None:
    named = units >= 0
    np.add.at(worth, units[named], values[named])


def _add_scales(channels: Channels, group: ChannelGroup, worth: Array) -> None:
    found = False
    for node, ids in group.channelwise:
        scale = const_array(node.inputs[1]) if node.op == "BatchNormalization" else None
        if scale is None:
            continue
        found = True
        _add(worth, channels.units.of_ids(ids), np.abs(np.asarray(scale, np.float64)))
    if not found:
        raise LookupError("no BatchNormalization is left in it")


def member_rows(member: Member) -> Array:
    """The weights that make each output channel, (channels, weights)."""
    if member.layer is None:  # an embedding: (rows, channels)
        table = const_array(member.node.inputs[member.operand])
        assert table is not None
        return np.asarray(table.T, np.float64)
    weight = np.asarray(member.layer.canonical(), np.float64)
    return weight.reshape(-1, weight.shape[2])


def member_columns(member: Member) -> Array:
    """The weights that read each input channel, (channels, weights)."""
    assert member.layer is not None
    weight = np.asarray(member.layer.canonical(), np.float64)
    groups, rows, columns = weight.shape
    taps = groups * columns // len(member.ids)
    # (g, rows, channels of a group, taps) -> (g, channels, rows, taps)
    split = weight.reshape(groups, rows, columns // taps, taps).transpose(0, 2, 1, 3)
    return split.reshape(len(member.ids), -1)


# ---------------------------------------------------------------------------- readers


@dataclass
class View:
    """What one reader (one group of a grouped Conv) knows of the units of a channel group.

    Attributes:
        unit: for each column the place of its unit in the group; `GONE` when that has left.
        inverse: [H⁻¹] of these columns, damped.
        weight: these columns, divided by the root of E‖y‖² of the reader; any matrix with the same
            products of columns will do.
    """

    unit: Ids
    inverse: Array
    weight: Array

    @classmethod
    def of(cls, unit: Ids, inverse: Array, weight: Array) -> View:
        """A view with no more rows of weights than columns."""
        if len(weight) > weight.shape[1]:
            weight = linalg.qr(weight, mode="r", overwrite_a=True, check_finite=False)[0]
            weight = weight[: weight.shape[1]]
        return cls(unit, inverse, weight)

    def copy(self) -> View:
        """One that can be used up."""
        return View(self.unit.copy(), self.inverse.copy(), self.weight.copy())

    def remove(self, chosen: Ids, size: int) -> float:
        """Take units out; what that costs, with the columns that stay making up for them.

        Args:
            chosen: places of units in the group.
            size: of the group.
        """
        leaves = np.zeros(size + 1, bool)  # the last entry is for what has left
        leaves[chosen] = True
        out = np.flatnonzero(leaves[self.unit])
        if not len(out):
            return 0.0
        with threads_for(len(self.unit)):
            across = self.inverse[out]
            removed = self.weight[:, out].copy()
            carried = np.linalg.solve(across[:, out], across)
            solved = np.linalg.solve(across[:, out], removed.T)
            cost = float(np.einsum("ij,ji->", removed, solved))
            self.weight -= removed @ carried
            for start in range(0, len(self.unit), _CHUNK):
                part = slice(start, start + _CHUNK)
                self.inverse[part] -= across[:, part].T @ carried
        self.unit[out] = GONE
        self._shrink()
        return max(0.0, cost)

    def _shrink(self) -> None:
        """Let go of columns that have left, once they are many."""
        stay = np.flatnonzero(self.unit != GONE)
        if len(stay) <= _CROWDED * len(self.unit):
            self.unit, self.weight = self.unit[stay], self.weight[:, stay]
            self.inverse = self.inverse[np.ix_(stay, stay)]


@dataclass
class Evidence:
    """What the readers of a channel group say, summed up as they are seen.

    Attributes:
        group: whose readers they are.
        place: for each unit its place in the group, −1 for others.
        stays: for each unit of the group whether it is pinned.
        products: Q, (units of the group, units of the group).
        views: for `obs`.
    """

    group: ChannelGroup
    place: Ids
    stays: npt.NDArray[np.bool_]
    products: Array
    views: list[View]

    @classmethod
    def empty(cls, channels: Channels, group: ChannelGroup) -> Evidence:
        """Nothing seen yet."""
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
        with_views: bool,
    ) -> None:
        """A reader was measured.

        Args:
            weight: (groups, rows, columns).
            metrics: for each of its groups.
            energy: E‖y‖².
            units: of each column, (groups, columns), −1 where it has none.
            with_views: keep what `obs` needs.
        """
        for w, metric, unit in zip(weight, metrics, units, strict=True):
            columns = np.flatnonzero((unit >= 0) & (self.place[unit] >= 0))
            if not len(columns):
                continue
            own = self.place[unit[columns]]
            part = np.asarray(w[:, columns], np.float64) / np.sqrt(max(energy, 1e-300))
            self._add_products(part, metric, columns, own)
            if with_views:
                self.views.append(View.of(own, metric.inverse_at(columns), part))

    def _add_products(self, weight: Array, metric: Metric, columns: Ids, unit: Ids) -> None:
        """Add WᵀW·H, entry by entry, summed over the columns of each unit in both directions."""
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


def worth_by_readers(evidence: Evidence, measure: Criterion) -> Array:
    """For each unit of the group; what leaves first is worth least."""
    products = evidence.products
    if measure is Criterion.TAYLOR:
        return np.asarray(np.abs(products.sum(axis=1)))
    if measure is Criterion.LASSO:
        return _lasso(products)
    if measure is Criterion.THINET:
        return _greedy(products)
    if measure is Criterion.OBS:
        return _eliminated(evidence)
    return np.diagonal(products).copy()


def _greedy(products: Array) -> Array:
    """Place in the order in which ThiNet removes units."""
    size = len(products)
    place = np.zeros(size)
    cost = np.diagonal(products).copy()
    alive = np.ones(size, bool)
    for step in range(size):
        chosen = int(np.argmin(np.where(alive, cost, np.inf)))
        place[chosen] = step
        alive[chosen] = False
        cost += 2 * products[chosen]
    return place


def _lasso(products: Array) -> Array:
    """The λ at which each unit's coefficient vanishes for good; ties by what its loss alone costs.

    Coordinate descent along a falling λ; a unit that enters late is worth little.
    """
    size = len(products)
    right = products.sum(axis=1)  # the target is the layer's own output
    diagonal = np.maximum(np.diagonal(products), 1e-300)
    most = float(np.abs(right).max(initial=0.0))
    if most == 0.0:
        return np.zeros(size)
    entered = np.zeros(size)
    beta = np.zeros(size)
    image = np.zeros(size)  # products·β
    for price in np.geomspace(most, most * 1e-5, _LASSO_STEPS):
        for _ in range(_LASSO_SWEEPS):
            before = beta.copy()
            for unit in range(size):
                rest = right[unit] - image[unit] + diagonal[unit] * beta[unit]
                new = np.sign(rest) * max(abs(rest) - price, 0.0) / diagonal[unit]
                if new != beta[unit]:
                    image += products[unit] * (new - beta[unit])
                    beta[unit] = new
            if np.abs(beta - before).max() <= 1e-4 * max(np.abs(beta).max(), 1e-300):
                break
        entered = np.where((entered == 0) & (beta != 0), price, entered)
    return entered + 1e-12 * np.diagonal(products) / max(float(diagonal.max()), 1e-300)


# ---------------------------------------------------------------------------- elimination


def _eliminated(evidence: Evidence) -> Array:
    """Place in the order in which OBS, in rounds, removes units; those that stay come last."""
    size = evidence.group.size
    place = np.full(size, float(size))
    alive = ~evidence.stays
    views = [view.copy() for view in evidence.views]
    step = 0
    while alive.any():
        cost = _costs(views, size)
        left = np.flatnonzero(alive)
        count = max(1, len(left) // _ROUNDS, round(size / (4 * _ROUNDS)))
        chosen = left[np.lexsort((left, cost[left]))][:count]
        place[chosen] = np.arange(step, step + len(chosen))
        step += len(chosen)
        alive[chosen] = False
        for view in views:
            view.remove(chosen, size)
    return place


def _costs(views: Sequence[View], size: int) -> Array:
    """What removing each unit alone costs when the columns that stay make up for it."""
    total = np.zeros(size)
    for view in views:
        order = np.argsort(view.unit, kind="stable")
        units, starts, widths = np.unique(view.unit[order], return_index=True, return_counts=True)
        for width in np.unique(widths[units != GONE]):
            rows = np.flatnonzero((widths == width) & (units != GONE))
            # (units, width): the columns of each unit
            at = order[starts[rows][:, None] + np.arange(width)]
            inner = view.inverse[at[:, :, None], at[:, None, :]]
            own = view.weight[:, at].transpose(1, 0, 2)  # (units, rows, width)
            solved = np.linalg.solve(inner, own.transpose(0, 2, 1) @ own)
            total[units[rows]] += np.einsum("uii->u", solved)
    return np.maximum(total, 0.0)


def costs_along(evidence: Evidence, order: Ids, counts: Sequence[int]) -> Array:
    """Relative output error, summed over readers, when the first of `order` have left.

    What is left is refitted where views were kept: removing the columns O costs
    tr W_O [H⁻¹]_OO⁻¹ W_Oᵀ. With [H⁻¹] = L·Lᵀ in the order in which columns leave, that is the sum
    of the first rows of L⁻¹Wᵀ, squared: one factorization gives it for all of the way.

    Args:
        evidence: of the group.
        order: places of units in the group, the first to leave first.
        counts: rising numbers of units that have left.
    """
    if not evidence.views:
        products = evidence.products
        return np.array([float(products[np.ix_(order[:n], order[:n])].sum()) for n in counts])
    turn = np.full(evidence.group.size, len(order))
    turn[order] = np.arange(len(order))
    costs = np.zeros(len(order) + 1)
    for view in evidence.views:
        turns = turn[view.unit]
        columns = np.argsort(turns, kind="stable")[: int((turns < len(order)).sum())]
        # by columns, as LAPACK goes: worked on in place
        inner = view.inverse[np.ix_(columns, columns)].T
        with threads_for(len(columns)):
            lower = linalg.cholesky(inner, lower=True, overwrite_a=True, check_finite=False)
            rows = linalg.solve_triangular(
                lower, view.weight[:, columns].T, lower=True, check_finite=False
            )
        np.add.at(costs, turns[columns] + 1, np.einsum("ij,ij->i", rows, rows))
    return np.asarray(np.cumsum(costs)[list(counts)])


__all__ = [
    "BY_ACTIVITY",
    "BY_READERS",
    "BY_WEIGHT",
    "Criterion",
    "Evidence",
    "View",
    "costs_along",
    "member_columns",
    "member_rows",
    "weight_worth",
    "worth_by_readers",
]

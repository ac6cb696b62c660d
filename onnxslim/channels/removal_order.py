"""The order in which a group may lose its units, and the levels at which the removal may stop.

A removal order holds nested sets of units: each level adds units to the one before, and every level
leaves a valid graph. Where the parts of grouped Convs have to stay balanced, a small integer
program finds how many units leave each part, as near to equal shares as possible; their worth alone
decides which of them leave.

Owns: orders and levels. Not here: the worth of units (see `criteria`), the choice of a level (see
`levels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import optimize, sparse

from onnxslim.channels.groups import ChannelGroup, Channels

Ids = npt.NDArray[np.int64]

_LEVELS: Final = 16  # at most, of a group with grouped Convs
_ROOMY: Final = 4  # least size of a group, in multiples of the channels that leave together


@dataclass(frozen=True)
class RemovalOrder:
    """Nested removals of one group.

    Attributes:
        units: the units that may leave, in the order in which they leave.
        counts: the number of units that have left at each level, rising from 0.
        errors: the relative error at each level, see `evidence`; () before it is known.
    """

    group: ChannelGroup
    units: Ids
    counts: tuple[int, ...]
    errors: tuple[float, ...] = ()

    def removed(self, level: int) -> Ids:
        """The units that have left at a level."""
        return self.units[: self.counts[level]]

    def nearest(self, count: float) -> int:
        """The level at which about `count` units have left; the lower of two equally near."""
        return int(np.argmin(np.abs(np.array(self.counts) - count)))


@dataclass(frozen=True)
class RemovalLimits:
    """What every level must leave.

    Attributes:
        align: the channels of a layer stay a multiple of it, if the layer has enough of them.
        min_channels: the least number of channels of a layer.
    """

    align: int = 1
    min_channels: int = 1


def removal_order(
    channels: Channels, group: ChannelGroup, worth: npt.NDArray[np.float64], limits: RemovalLimits
) -> RemovalOrder:
    """The removal order of a group: units of least worth first.

    `worth` is that of each unit of the graph, (units,).
    """
    free = channels.free(group)
    ranked = free[np.lexsort((free, worth[free]))]
    imbalances = _imbalances(channels, group)
    if len(imbalances):
        least = _units(group, limits.min_channels)
        units, counts = _balanced(channels, group, ranked, imbalances, least)
        return RemovalOrder(group, units, counts)
    units = _allowed(channels, ranked, _units(group, limits.min_channels))
    return RemovalOrder(group, units, _counts(group, len(units), limits))


def _counts(group: ChannelGroup, most: int, limits: RemovalLimits) -> tuple[int, ...]:
    """The numbers of units, at most `most`, whose removal leaves a multiple of `limits.align`."""
    step = unit_step(group, limits.align)
    kept = range(group.size // step * step, -1, -step)
    return (0, *(group.size - k for k in kept if 0 < group.size - k <= most))


def unit_step(group: ChannelGroup, align: int) -> int:
    """The number of units that hold `align` channels; less if the group has few units."""
    each = max(1, max(_channels_of(group)))
    step = max(1, align // each)
    while step > 1 and group.size < _ROOMY * step:
        step //= 2
    return step


def _units(group: ChannelGroup, channels: int) -> int:
    """The number of units that hold at least so many channels of every layer."""
    return -(-channels // max(1, min(_channels_of(group))))


def _channels_of(group: ChannelGroup) -> list[int]:
    """The number of channels in a unit for each layer that writes the group, rounded down."""
    return [len(member.ids) // group.size for member in group.writers]


def _allowed(channels: Channels, ranked: Ids, least: int) -> Ids:
    """The ranked units without those whose removal would leave a slice fewer than `least`."""
    slices = [own for own in channels.slices if np.isin(own, ranked).any()]
    inside: dict[int, list[int]] = {}
    for index, own in enumerate(slices):
        for unit in own.tolist():
            inside.setdefault(unit, []).append(index)
    left = [len(own) for own in slices]
    floor = [min(max(1, least), len(own)) for own in slices]
    order = []
    for unit in ranked.tolist():
        places = inside.get(unit, ())
        if all(left[place] > floor[place] for place in places):
            order.append(unit)
            for place in places:
                left[place] -= 1
    return np.array(order, np.int64)


# ---------------------------------------------------------------------------- balances


def _imbalances(channels: Channels, group: ChannelGroup) -> npt.NDArray[np.int64]:
    """The change of each balance by the removal of each unit, (balances, units of the group).

    A balance is the difference between the channels that a part loses and those of the first part.
    """
    place = np.full(channels.units.count, -1)
    place[group.units] = np.arange(group.size)
    rows = []
    for parts in channels.units.balances:
        named = parts[parts >= 0]
        if not named.size or place[named[0]] < 0:
            continue
        table = np.zeros((len(parts), group.size), np.int64)
        for row, part in zip(table, parts, strict=True):
            np.add.at(row, place[part[part >= 0]], 1)
        rows.append(table[1:] - table[:1])
    return np.concatenate(rows) if rows else np.zeros((0, group.size), np.int64)


def _balanced(
    channels: Channels,
    group: ChannelGroup,
    ranked: Ids,
    imbalances: npt.NDArray[np.int64],
    least: int,
) -> tuple[Ids, tuple[int, ...]]:
    """The order and the counts where every level removes as many channels from all parts.

    Units that change the balances alike are a cell; for each level the program says how many leave
    each cell.
    """
    place = {unit: index for index, unit in enumerate(group.units.tolist())}
    columns = imbalances[:, [place[unit] for unit in ranked.tolist()]]
    kinds, cell_of = np.unique(columns, axis=1, return_inverse=True)
    # within a cell the units keep their ranking
    cells = [ranked[cell_of.reshape(-1) == cell] for cell in range(kinds.shape[1])]
    sizes = np.array([len(cell) for cell in cells])
    order: list[int] = []
    counts = [0]
    taken = np.zeros(len(cells), np.int64)
    levels = min(_LEVELS, max(1, group.size // least))
    for level in range(1, levels):
        target = _nearest(kinds, sizes, taken, level / levels)
        if target is None or (target == taken).all():
            continue
        more = [cells[c][taken[c] : target[c]] for c in range(len(cells))]
        trial = [*order, *np.concatenate(more).tolist()]
        if not _leaves_enough(channels, trial, least):
            break
        order, taken = trial, target
        counts.append(len(order))
    return np.array(order, np.int64), tuple(counts)


def _nearest(
    kinds: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    taken: npt.NDArray[np.int64],
    share: float,
) -> npt.NDArray[np.int64] | None:
    """Balanced whole numbers of units of each cell, as near as possible to a share of each cell.

    At least `taken` of each cell leave, so that levels are nested. None if nothing is found.
    """
    cells = len(sizes)
    goal = share * sizes
    # minimize Σ e over (r, e), with kinds·r = 0 and e ≥ |r − goal|
    cost = np.concatenate([np.zeros(cells), np.ones(cells)])
    eye = sparse.eye_array(cells)
    nothing = sparse.csr_array((len(kinds), cells))
    rules = [
        optimize.LinearConstraint(sparse.hstack([sparse.csr_array(kinds), nothing]), 0, 0),
        optimize.LinearConstraint(sparse.hstack([eye, -eye]), -np.inf, goal),
        optimize.LinearConstraint(sparse.hstack([eye, eye]), goal, np.inf),
    ]
    bounds = optimize.Bounds(
        np.concatenate([taken, np.zeros(cells)]), np.concatenate([sizes, np.full(cells, np.inf)])
    )
    whole = np.concatenate([np.ones(cells), np.zeros(cells)])
    found = optimize.milp(
        cost, constraints=rules, bounds=bounds, integrality=whole, options={"time_limit": 10.0}
    )
    if found.x is None:
        return None
    counts = np.rint(found.x[:cells]).astype(np.int64)
    return counts if not (kinds @ counts).any() else None


def _leaves_enough(channels: Channels, order: Sequence[int], least: int) -> bool:
    gone = np.zeros(channels.units.count, bool)
    gone[list(order)] = True
    return all(
        int((~gone[own]).sum()) >= min(max(1, least), len(own))
        for own in channels.slices
        if gone[own].any()
    )

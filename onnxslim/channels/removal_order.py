"""In which order a group may lose its units, and at how many of them it may stop.

A removal order holds nested sets of units: each level adds units to the one before, and every level
leaves a valid graph. Where grouped Convs have to stay balanced, how many units leave each part is
found by a small integer program (as near to equal shares as can be); which of them leave is always
a matter of what they are worth.

What may change here: which levels there are. What a unit is worth is `importance`'s.
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

_LEVELS: Final = 16  # of a group with grouped Convs
_ROOMY: Final = 4  # a group has at least so many times the channels that are kept together


@dataclass(frozen=True)
class RemovalOrder:
    """Nested removals of one group.

    Attributes:
        group: whose units they are.
        units: those that may leave, the first one first.
        counts: how many of them leave, rising, from 0 on.
        errors: what each level costs; relative, see `importance`.
    """

    group: ChannelGroup
    units: Ids
    counts: tuple[int, ...]
    errors: tuple[float, ...] = ()

    def removed(self, level: int) -> Ids:
        """The units that have left at a level."""
        return self.units[: self.counts[level]]

    def nearest(self, count: float) -> int:
        """The level where about `count` units have left; of two equally near the lower."""
        return int(np.argmin(np.abs(np.array(self.counts) - count)))


@dataclass(frozen=True)
class RemovalLimits:
    """What every level leaves.

    Attributes:
        align: channels of a layer come in multiples of it, where it has enough of them.
        least: channels of a layer.
    """

    align: int = 1
    least: int = 1


def removal_order(
    channels: Channels, group: ChannelGroup, worth: npt.NDArray[np.float64], limits: RemovalLimits
) -> RemovalOrder:
    """The removal order of a group.

    Args:
        channels: what the group is of.
        group: the group.
        worth: for each unit of `channels`; the least worth leave first.
        limits: what is to be left.
    """
    free = channels.free(group)
    ranked = free[np.lexsort((free, worth[free]))]
    imbalances = _imbalances(channels, group)
    if len(imbalances):
        least = _units(group, limits.least)
        units, counts = _balanced(channels, group, ranked, imbalances, least)
        return RemovalOrder(group, units, counts)
    units = _allowed(channels, ranked, _units(group, limits.least))
    return RemovalOrder(group, units, _counts(group, len(units), limits))


def _counts(group: ChannelGroup, most: int, limits: RemovalLimits) -> tuple[int, ...]:
    """Numbers of units that may leave so that what stays is a multiple of what runs fast."""
    step = unit_step(group, limits.align)
    kept = range(group.size // step * step, -1, -step)
    return (0, *(group.size - k for k in kept if 0 < group.size - k <= most))


def unit_step(group: ChannelGroup, align: int) -> int:
    """`align` channels in units; less where the group has few."""
    each = max(1, max(_channels_of(group)))
    step = max(1, align // each)
    while step > 1 and group.size < _ROOMY * step:
        step //= 2
    return step


def _units(group: ChannelGroup, channels: int) -> int:
    """Units that hold so many channels in every layer."""
    return -(-channels // max(1, min(_channels_of(group))))


def _channels_of(group: ChannelGroup) -> list[int]:
    """Channels that each layer has in a unit, about."""
    return [len(member.ids) // group.size for member in group.writers]


def _allowed(channels: Channels, ranked: Ids, least: int) -> Ids:
    """The units in their order without those that some tensor could not do without."""
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
    """(constraints, units of the group): how much a unit's leaving upsets each balance."""
    place = np.full(channels.units.count, -1)
    place[group.units] = np.arange(group.size)
    rows = []
    for balance in channels.units.balances:
        parts = balance.parts
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
    """Order and levels where every level takes equally much from all parts.

    Units that upset the balances alike are a cell; a level says how many leave each cell.
    """
    place = {unit: index for index, unit in enumerate(group.units.tolist())}
    columns = imbalances[:, [place[unit] for unit in ranked.tolist()]]
    kinds, cell_of = np.unique(columns, axis=1, return_inverse=True)
    cells = [ranked[cell_of.reshape(-1) == cell] for cell in range(kinds.shape[1])]
    sizes = np.array([len(cell) for cell in cells])
    order: list[int] = []
    counts = [0]
    taken = np.zeros(len(cells), np.int64)
    levels = min(_LEVELS, max(1, group.size // least))
    for level in range(1, levels):
        wished = _nearest(kinds, sizes, taken, level / levels)
        if wished is None or (wished == taken).all():
            continue
        more = [cells[c][taken[c] : wished[c]] for c in range(len(cells))]
        trial = [*order, *np.concatenate(more).tolist()]
        if not _leaves_enough(channels, trial, least):
            break
        order, taken = trial, wished
        counts.append(len(order))
    return np.array(order, np.int64), tuple(counts)


def _nearest(
    kinds: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    taken: npt.NDArray[np.int64],
    share: float,
) -> npt.NDArray[np.int64] | None:
    """Whole numbers of units of each cell, balanced, as near to a share of each as can be."""
    cells = len(sizes)
    wish = share * sizes
    # minimise Σ e with e >= |r − wish| over (r, e)
    cost = np.concatenate([np.zeros(cells), np.ones(cells)])
    eye = sparse.eye_array(cells)
    nothing = sparse.csr_array((len(kinds), cells))
    rules = [
        optimize.LinearConstraint(sparse.hstack([sparse.csr_array(kinds), nothing]), 0, 0),
        optimize.LinearConstraint(sparse.hstack([eye, -eye]), -np.inf, wish),
        optimize.LinearConstraint(sparse.hstack([eye, eye]), wish, np.inf),
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


__all__ = ["RemovalLimits", "RemovalOrder", "removal_order", "unit_step"]

"""What a graph costs, as a function of the units that are left: multiply-accumulates, bytes, time.

A layer's cost goes with the channels that it reads times those that it writes, in each of its
groups. What a layer costs at full size is asked of the caller; the rest is exact for
multiply-accumulates and bytes of weights, and a first guess for time, which is measured again on
the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace

import numpy as np
import numpy.typing as npt

from onnxslim.channels.groups import ChannelGroup, Channels
from onnxslim.channels.removal_order import RemovalOrder
from onnxslim.channels.tracing import Member
from onnxslim.channels.units import indexable
from onnxslim.graph.ir import Node

Array = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass
class _Layer:
    """A layer with its full cost and the units on its sides, (groups, channels of a group)."""

    cost: float
    sides: list[Ids] = field(default_factory=list)

    def left(self, gone: Mask) -> float:
        """The cost without some units; `gone` is `indexable`."""
        kept = [1.0 - gone[side].mean(axis=1) for side in self.sides]
        return self.cost * _together(kept)


def _together(kept: Sequence[Array]) -> float:
    """The share of a layer that is left, from the shares of each side, by group."""
    return float(np.mean(np.prod(kept, axis=0)))


@dataclass
class Work:
    """The costs of all layers that channels are cut out of.

    Attributes:
        fixed: what everything else costs.
    """

    layers: dict[Node, _Layer] = field(default_factory=dict)
    fixed: float = 0.0

    @classmethod
    def of(cls, channels: Channels, costs: Mapping[Node, float], fixed: float = 0.0) -> Work:
        """The work of a graph.

        Args:
            channels: of the graph.
            costs: of layers at full size; those that are not listed cost nothing.
            fixed: the cost of all other nodes.
        """
        work = cls(fixed=fixed)
        trace, units = channels.trace, channels.units
        for member in (*trace.writers, *trace.readers):
            groups = 1 if member.layer is None else _groups_of(member)
            side = units.of_ids(member.ids).reshape(groups, -1)
            work._layer(member.node, costs).sides.append(side)
        for node, ids in trace.channelwise:
            if node.op in ("Conv", "ConvTranspose"):  # depthwise: each channel costs the same
                work._layer(node, costs).sides.append(units.of_ids(ids)[None])
        return work

    def _layer(self, node: Node, costs: Mapping[Node, float]) -> _Layer:
        return self.layers.setdefault(node, _Layer(costs.get(node, 0.0)))

    @property
    def whole(self) -> float:
        """The cost with all units."""
        return self.fixed + sum(layer.cost for layer in self.layers.values())

    def left(self, gone: Mask) -> float:
        """The cost without some units."""
        known = indexable(gone)
        return self.fixed + sum(layer.left(known) for layer in self.layers.values())


def _groups_of(member: Member) -> int:
    """Groups of a Conv; a stack of matrices has its channels once for all."""
    return int(member.node.attrs.get("group", 1)) if member.node.op.startswith("Conv") else 1


def channel_work(channels: Channels, groups: Sequence[ChannelGroup]) -> Work:
    """The number of channels of the layers of some groups, as a cost: what `ratio` counts."""
    units = channels.units
    written = {member.node: member for group in groups for member in group.writers}
    return Work(
        {
            node: _Layer(float(len(member.ids)), [units.of_ids(member.ids)[None]])
            for node, member in written.items()
            if not units.pinned[units.of[member.ids]].all()
        }
    )


# ---------------------------------------------------------------------------- levels


@dataclass(frozen=True)
class LevelChoice:
    """A level for each order.

    Attributes:
        levels: in the order of the orders.
        gone: the units that leave.
        cost: what is left of the work.
        error: the sum of the orders' errors, each times its weight.
    """

    levels: tuple[int, ...]
    gone: Mask
    cost: float
    error: float


class LevelChooser:
    """Chooses levels so that the least error is paid for what is saved."""

    def __init__(
        self, orders: Sequence[RemovalOrder], weights: Sequence[float], work: Work, units: int
    ) -> None:
        self.orders, self.weights, self.work = orders, weights, work
        self._units = units

    def uniform(self, share: float) -> LevelChoice:
        """Every group loses about the same share of its units."""
        return self.choice([order.nearest(share * order.group.size) for order in self.orders])

    def within(self, enough: float) -> LevelChoice:
        """The least share that every group can lose for the cost to be `enough`, or less."""
        low, high = 0.0, 1.0
        best = self.most()
        for _ in range(20):
            middle = (low + high) / 2
            choice = self.uniform(middle)
            if choice.cost <= enough:
                best, high = choice, middle
            else:
                low = middle
        return best

    def most(self) -> LevelChoice:
        """All leaves that may."""
        return self.choice([len(order.counts) - 1 for order in self.orders])

    def path(self, enough: float) -> LevelChoice:
        """One group after the other gives up units, the one with the least error for what it saves.

        A group goes along the lower convex hull of its errors, so a dent does not stop it, and what
        is chosen for less is always a part of what is chosen for more. The last step goes only as
        far as is needed.

        Args:
            enough: the cost at which to stop.
        """
        walk = _Walk(self)
        while walk.cost > enough:
            step = walk.cheapest()
            if step is None:
                break
            walk.go(*step, enough)
        return self.choice(walk.levels)

    def choice(self, levels: Sequence[int]) -> LevelChoice:
        """These levels, with what they cost."""
        gone = np.zeros(self._units, bool)
        error = 0.0
        for order, level, weight in zip(self.orders, levels, self.weights, strict=True):
            gone[order.removed(level)] = True
            error += weight * (order.errors[level] if order.errors else 0.0)
        return LevelChoice(tuple(levels), gone, self.work.left(gone), error)


@dataclass(frozen=True)
class _Loss:
    """What a order does to a side of a layer.

    Attributes:
        layer: number of the layer.
        side: of the layer.
        lost: share of channels that have left at each level, (levels, groups).
    """

    layer: int
    side: int
    lost: Array


class _Walk:
    """The way that `LevelChooser.path` goes: where it is, and what a next step costs.

    What a step saves falls as other layers shrink, and errors rise ever faster along a hull: a
    price that was right once is never too high later, so only the lowest is looked at again.
    """

    def __init__(self, chooser: LevelChooser) -> None:
        self.orders, self.weights = chooser.orders, chooser.weights
        self.levels = [0] * len(self.orders)
        self.cost = chooser.work.whole
        self.layers = list(chooser.work.layers.values())
        self.kept = [[np.ones(len(side)) for side in layer.sides] for layer in self.layers]
        self.losses = _losses(self.orders, self.layers, chooser._units)
        self.ways = [_hull(order.counts, order.errors) for order in self.orders]
        self.prices = [(self._price(index), index) for index in range(len(self.orders))]
        heapify(self.prices)

    def cheapest(self) -> tuple[int, int] | None:
        """The group that should give up units, and how far it goes; None where nothing is saved."""
        while self.prices and self.prices[0][0] < np.inf:
            known, index = self.prices[0]
            price = self._price(index)
            if price <= known:
                return index, self._next(index)
            heapreplace(self.prices, (price, index))
        return None

    def go(self, index: int, level: int, enough: float) -> None:
        """Take a step, or as much of it as is needed."""
        first, last = self.levels[index] + 1, level
        while first < last:  # the first level that saves enough
            middle = (first + last) // 2
            if self.cost - self._saved(index, middle) <= enough:
                last = middle
            else:
                first = middle + 1
        self.cost -= self._saved(index, last)
        for loss in self.losses[index]:
            self.kept[loss.layer][loss.side] -= loss.lost[last] - loss.lost[self.levels[index]]
        self.levels[index] = last

    def _next(self, index: int) -> int:
        """The next corner of the hull; where the way ends, its end."""
        here = self.levels[index]
        return next((level for level in self.ways[index] if level > here), here)

    def _price(self, index: int) -> float:
        """Error for what is saved by the next step."""
        order, level = self.orders[index], self._next(index)
        saved = self._saved(index, level)
        if saved <= 0:
            return float(np.inf)
        error = order.errors[level] - order.errors[self.levels[index]]
        return self.weights[index] * max(error, 0.0) / saved

    def _saved(self, index: int, level: int) -> float:
        changed: dict[int, list[Array]] = {}
        for loss in self.losses[index]:
            kept = changed.setdefault(loss.layer, list(self.kept[loss.layer]))
            kept[loss.side] = kept[loss.side] - (loss.lost[level] - loss.lost[self.levels[index]])
        return sum(
            self.layers[layer].cost * (_together(self.kept[layer]) - _together(kept))
            for layer, kept in changed.items()
        )


def _losses(
    orders: Sequence[RemovalOrder], layers: Sequence[_Layer], units: int
) -> list[list[_Loss]]:
    return [
        [
            loss
            for number, layer in enumerate(layers)
            for loss in _losses_of(order, number, layer, units)
        ]
        for order in orders
    ]


def _losses_of(order: RemovalOrder, number: int, layer: _Layer, units: int) -> list[_Loss]:
    # the level at which each unit is gone for the first time; the last entry is for no unit
    leaves = np.full(units + 1, len(order.counts))
    places = np.arange(len(order.units))
    leaves[order.units] = np.searchsorted(order.counts, places, side="right")
    found = []
    for index, side in enumerate(layer.sides):
        at = leaves[side]
        if (at == len(order.counts)).all():
            continue
        lost = np.zeros((len(order.counts) + 1, len(side)))
        np.add.at(lost, (at, np.arange(len(side))[:, None]), 1.0 / side.shape[1])
        found.append(_Loss(number, index, np.cumsum(lost, axis=0)[:-1]))
    return found


def _hull(counts: Sequence[int], errors: Sequence[float]) -> list[int]:
    """The corners of the lower convex hull of the errors over the units that leave."""
    corners: list[int] = []
    for level in range(len(counts)):
        while len(corners) > 1 and _is_above(corners[-2], corners[-1], level, counts, errors):
            corners.pop()
        corners.append(level)
    return corners


def _is_above(a: int, b: int, c: int, counts: Sequence[int], errors: Sequence[float]) -> bool:
    """Whether level b lies on the line from a to c, or above it."""
    run, rise = counts[c] - counts[a], errors[c] - errors[a]
    return (errors[b] - errors[a]) * run >= rise * (counts[b] - counts[a])


__all__ = ["LevelChoice", "LevelChooser", "Work", "channel_work"]

"""The levels that pay best: how far each group goes along its removal order for a given cost.

The path is greedy: one group after the other takes the next step with the least error for what it
saves. Costs are products over the sides of a layer and do not add up over groups, so the search for
a price in `lossy.spend` does not apply; errors do add up.

Owns: the choice of levels. Not here: what a graph costs (see `work`), budgets (see `budgets`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace

import numpy as np
import numpy.typing as npt

from onnxslim.channels.removal_order import RemovalOrder
from onnxslim.channels.work import LayerWork, Work, share_left

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LevelChoice:
    """A level for each removal order.

    Attributes:
        gone: whether each unit leaves, (units,).
        cost: of the work that is left.
        error: the sum over groups of error times weight.
    """

    levels: tuple[int, ...]
    gone: Mask
    cost: float
    error: float


class LevelChooser:
    """Chooses a level for each group: equal shares, or the least error for what is saved.

    Args:
        orders: one for each group.
        weights: of the errors of each group.
        work: whose cost is saved.
        units: their number in the graph.
    """

    def __init__(
        self, orders: Sequence[RemovalOrder], weights: Sequence[float], work: Work, units: int
    ) -> None:
        self.orders, self.weights, self.work = orders, weights, work
        self._units = units

    def uniform(self, share: float) -> LevelChoice:
        """The levels at which every group loses about `share` of its units."""
        return self.choice([order.nearest(share * order.group.size) for order in self.orders])

    def keeping(self, kept: Sequence[float], progress: float = 1.0) -> LevelChoice:
        """The levels at `progress` (0 to 1) of the way to the units that each group keeps."""
        pairs = zip(self.orders, kept, strict=True)
        return self.choice([o.nearest(progress * (o.group.size - left)) for o, left in pairs])

    def within(self, enough: float) -> LevelChoice:
        """The levels of the least equal share at which the cost is at most `enough`."""
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
        """The last levels: every unit that may leave is gone."""
        return self.choice([len(order.counts) - 1 for order in self.orders])

    def path(self, enough: float) -> LevelChoice:
        """The levels where a greedy path, with the least error for what is saved, reaches a cost.

        Each group steps along the lower convex hull of its errors, so that a dent does not stop it,
        and the units that leave at one cost are among those that leave at any lower cost. The last
        step goes only as far as needed.
        """
        walk = _Walk(self)
        while walk.cost > enough:
            step = walk.cheapest()
            if step is None:
                break
            walk.go(*step, enough)
        return self.choice(walk.levels)

    def choice(self, levels: Sequence[int]) -> LevelChoice:
        """The choice of these levels."""
        gone = np.zeros(self._units, bool)
        error = 0.0
        for order, level, weight in zip(self.orders, levels, self.weights, strict=True):
            gone[order.removed(level)] = True
            error += weight * (order.errors[level] if order.errors else 0.0)
        return LevelChoice(tuple(levels), gone, self.work.left(gone), error)


@dataclass(frozen=True)
class _Loss:
    """The channels that one side of a layer loses by one removal order."""

    layer: int
    side: int
    lost: Array  # the share of channels that have left at each level, (levels, groups)


class _Walk:
    """The state of `LevelChooser.path`: the levels so far, and the price of each group's next step.

    A price is the error that a step adds, divided by the cost that it saves. Steps save less as
    other layers shrink, and errors rise ever faster along a hull, so a known price is never too
    high later: only the lowest has to be computed again, as in lazy greedy (Minoux 1978).
    """

    def __init__(self, chooser: LevelChooser) -> None:
        self.orders, self.weights = chooser.orders, chooser.weights
        self.levels = [0] * len(self.orders)
        self.cost = chooser.work.whole
        self.layers = list(chooser.work.layers.values())
        self.kept = [[np.ones(len(side)) for side in layer.sides] for layer in self.layers]
        self.losses = [_losses(order, self.layers, chooser._units) for order in self.orders]
        self.ways = [_hull(order.counts, order.errors) for order in self.orders]
        self.prices = [(self._price(index), index) for index in range(len(self.orders))]
        heapify(self.prices)

    def cheapest(self) -> tuple[int, int] | None:
        """The group whose next step has the lowest price, and its level; None if none saves."""
        while self.prices and self.prices[0][0] < np.inf:
            known, index = self.prices[0]
            price = self._price(index)
            if price <= known:
                return index, self._next(index)
            heapreplace(self.prices, (price, index))
        return None

    def go(self, index: int, level: int, enough: float) -> None:
        """Let a group go to `level`, or to the first level at which the cost is `enough`."""
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
        """The level of the next corner of the hull; the present level at its end."""
        here = self.levels[index]
        return next((level for level in self.ways[index] if level > here), here)

    def _price(self, index: int) -> float:
        """The price of the next step; infinite if it saves nothing."""
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
            self.layers[layer].cost * (share_left(self.kept[layer]) - share_left(kept))
            for layer, kept in changed.items()
        )


def _losses(order: RemovalOrder, layers: Sequence[LayerWork], units: int) -> list[_Loss]:
    # the first level at which each unit is gone; the last entry is for `NONE`
    leaves = np.full(units + 1, len(order.counts))
    places = np.arange(len(order.units))
    leaves[order.units] = np.searchsorted(order.counts, places, side="right")
    found = []
    for number, layer in enumerate(layers):
        for index, side in enumerate(layer.sides):
            at = leaves[side]
            if (at == len(order.counts)).all():
                continue
            lost = np.zeros((len(order.counts) + 1, len(side)))
            np.add.at(lost, (at, np.arange(len(side))[:, None]), 1.0 / side.shape[1])
            found.append(_Loss(number, index, np.cumsum(lost, axis=0)[:-1]))
    return found


def _hull(counts: Sequence[int], errors: Sequence[float]) -> list[int]:
    """The levels at the corners of the lower convex hull of the errors over the counts of units."""
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

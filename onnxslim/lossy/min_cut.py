"""The cheapest choice among items that affect one another, as an exact minimum cut.

Every item is chosen or not, at a cost of its own either way. A tensor that passes from an item on
one side to readers on the other costs a conversion, once, however many read it. Such costs are
submodular, so the minimum cut of a flow network is the best choice, not an approximation of it
(Kolmogorov and Zabih 2004, "What energy functions can be minimized via graph cuts?").

With the source on the side of the chosen:

    source -> i        capacity: i not chosen      i -> sink      capacity: i chosen
    z -> maker         capacity: entering          reader -> z    unbounded: z is on the chosen
                                                                  side once one reader is
    maker -> w         capacity: leaving           w -> reader    unbounded: w is on the other
                                                                  side once one reader is

Costs have no unit here; callers give all of them in one: `quantization.cluster_times` milliseconds,
`precision.placement` bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import networkx as nx

_PARTS: Final = 1 << 40
"""The largest cost in the unit of capacities. Floats would leave rounding on edges that are full,
and the search for the cut would walk over them."""

NEVER_CHOSEN = None
"""In place of an item's name: everything that stays where it is whatever is chosen."""


@dataclass(frozen=True)
class ItemCost:
    """The cost of an item on either side."""

    unchosen: float
    chosen: float


@dataclass(frozen=True)
class Transfer:
    """A tensor that may pass from one side to the other.

    Attributes:
        maker: the item that makes it, or NEVER_CHOSEN.
        readers: the items that read it, NEVER_CHOSEN among them where something else does.
        entering: the cost where the maker is not chosen and some reader is.
        leaving: the cost where the maker is chosen and some reader is not.
    """

    maker: str | None
    readers: tuple[str | None, ...]
    entering: float
    leaving: float


@dataclass(frozen=True)
class PlacementCosts:
    """The costs of every choice.

    Attributes:
        items: the cost of each item that may be chosen, by name.
        transfers: the tensors between them.
    """

    items: Mapping[str, ItemCost]
    transfers: Sequence[Transfer] = field(default_factory=tuple)

    def total(self, chosen: frozenset[str]) -> float:
        """The cost of all items and transfers, with the items `chosen`."""
        total = sum(
            cost.chosen if name in chosen else cost.unchosen for name, cost in self.items.items()
        )
        for transfer in self.transfers:
            sides = {reader in chosen for reader in transfer.readers}
            if transfer.maker not in chosen and True in sides:
                total += transfer.entering
            if transfer.maker in chosen and False in sides:
                total += transfer.leaving
        return total


def cheapest_choice(costs: PlacementCosts) -> frozenset[str]:
    """The names of the items to choose so that the total cost is least."""
    network = nx.DiGraph()
    source, sink = ("source",), ("sink",)
    both = (cost for item in costs.items.values() for cost in (item.unchosen, item.chosen))
    ways = (cost for item in costs.transfers for cost in (item.entering, item.leaving))
    largest = max((*both, *ways), default=0.0) or 1.0
    network.add_nodes_from((source, sink))

    def vertex(name: str | None) -> tuple[str, ...]:
        """The vertex of an item; what is never chosen is on the sink's side."""
        return ("item", name) if name in costs.items and name is not None else sink

    def connect(tail: object, head: object, cost: float | None) -> None:
        """Add an edge, or capacity to one that exists; None: unbounded."""
        if tail == head:
            return
        known = network.get_edge_data(tail, head)
        if cost is None or (known is not None and "capacity" not in known):
            network.add_edge(tail, head)
            network[tail][head].pop("capacity", None)  # networkx: no capacity is unbounded
            return
        capacity = round(cost / largest * _PARTS)
        network.add_edge(tail, head, capacity=capacity + (known["capacity"] if known else 0))

    for name, cost in costs.items.items():
        connect(source, vertex(name), cost.unchosen)
        connect(vertex(name), sink, cost.chosen)
    for number, transfer in enumerate(costs.transfers):
        entered, left = ("entered", number), ("left", number)  # z and w of the table above
        connect(entered, vertex(transfer.maker), transfer.entering)
        if vertex(transfer.maker) != sink:
            connect(vertex(transfer.maker), left, transfer.leaving)
        for reader in dict.fromkeys(transfer.readers):
            if vertex(reader) != sink:
                connect(vertex(reader), entered, None)
            connect(left, vertex(reader), None)
    _, (chosen_side, _) = nx.minimum_cut(network, source, sink)
    return frozenset(name for name in costs.items if ("item", name) in chosen_side)

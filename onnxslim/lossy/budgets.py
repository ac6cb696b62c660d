"""A budget shared out between layers: least error for what may be spent.

Each layer makes offers, each with a cost (milliseconds, bytes, multiply-accumulates) and an error;
errors of layers add up. At one price of the cost every layer takes the offer where error +
price·cost is least: these are the offers on the lower convex hull, and going down in price is the
greedy way along it, the least error for what is saved at every step. What the last step leaves over
is given to the layers that make most of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol, TypeVar

_STEPS: Final = 100  # of a bisection over prices from 1e-15 to 1e15


class Priced(Protocol):
    """Something to choose."""

    @property
    def cost(self) -> float:
        """What it takes of the budget."""

    @property
    def error(self) -> float:
        """What it does to the output of the model, in units that add up."""


ChoiceT = TypeVar("ChoiceT", bound=Priced)


def cheapest(menus: Mapping[str, Sequence[ChoiceT]]) -> dict[str, ChoiceT]:
    """The offer of least cost of every layer."""
    return {name: min(offers, key=lambda o: (o.cost, o.error)) for name, offers in menus.items()}


def total_cost(chosen: Mapping[str, Priced]) -> float:
    """What a choice takes together."""
    return sum(offer.cost for offer in chosen.values())


def spend(menus: Mapping[str, Sequence[ChoiceT]], budget: float) -> dict[str, ChoiceT]:
    """An offer for each layer, with little error, whose costs stay within `budget`.

    Where even the cheapest offers take more, these are what is returned.
    """
    best = cheapest(menus)
    if total_cost(best) > budget:
        return best
    scale = max(total_cost(best), budget, 1e-300)
    low, high = 1e-15, 1e15
    for _ in range(_STEPS):
        price = (low * high) ** 0.5
        chosen = _at_price(menus, price / scale)
        if total_cost(chosen) <= budget:
            best, high = chosen, price
        else:
            low = price
    return _filled(menus, best, budget)


def _at_price(menus: Mapping[str, Sequence[ChoiceT]], price: float) -> dict[str, ChoiceT]:
    return {
        name: min(offers, key=lambda o: (o.error + price * o.cost, o.cost))
        for name, offers in menus.items()
    }


def _filled(
    menus: Mapping[str, Sequence[ChoiceT]], chosen: dict[str, ChoiceT], budget: float
) -> dict[str, ChoiceT]:
    """`chosen` with offers of less error where what is left over pays for them, best first."""
    chosen = dict(chosen)
    while True:
        left = budget - total_cost(chosen)
        steps = [
            (chosen[name].error - offer.error, name, offer)
            for name, offers in menus.items()
            for offer in offers
            if offer.error < chosen[name].error and offer.cost - chosen[name].cost <= left
        ]
        if not steps:
            return chosen
        _, name, offer = max(steps, key=lambda step: step[0])
        chosen[name] = offer


__all__ = ["Priced", "cheapest", "spend", "total_cost"]

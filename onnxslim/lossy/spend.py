"""Choose one offer for each layer so that the costs add up to a budget at the least error.

    chosen = least_error(menus, budget)            # the costs stay within `budget`
    chosen = least_cost(menus, allowed_error)      # the errors stay within `allowed_error`

`menus` maps the name of a layer to its offers; an offer is any object with `cost` and `error`, in
units that add up over layers. Minimizing error + price·cost separates into one choice for each
layer, and each price gives the least error among all choices that cost no more (Everett 1963;
Shoham and Gersho 1988). The offers that some price selects are the corners of each layer's lower
convex hull, so only the price has to be searched, by bisection on a logarithmic scale.

Owns: the choice at a price, the search for the price, and the use of what a price leaves over. Not
here: `channels.levels.LevelChooser.path`, whose costs are products over the sides of a layer and do
not add up; `exits.thresholds.threshold_path`, which needs every price, in order, for its
sequential test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

_STEPS: Final = 100  # halvings of a range of 30 decades: more than a float resolves
_BUDGET_PRICES: Final = (1e-15, 1e15)  # of the whole budget, in units of error
_COST_PRICES: Final = (1e-18, 1e6)  # of one unit of cost (a byte), in units of error


class Priced(Protocol):
    """An offer: one of the things that a layer could become."""

    @property
    def cost(self) -> float:
        """The share of the budget that the offer takes, in the budget's unit."""

    @property
    def error(self) -> float:
        """The error that the offer causes in the model's output, in units that add up."""


PricedT = TypeVar("PricedT", bound=Priced)
Menus = Mapping[str, Sequence[PricedT]]
"""The offers of each layer, by its name; at least one a layer."""


def at_price(menus: Menus[PricedT], price: float) -> dict[str, PricedT]:
    """The offer of each layer for which error + `price`·cost is least."""
    return {name: cheapest_at(offers, price) for name, offers in menus.items()}


def cheapest_at(offers: Sequence[PricedT], price: float) -> PricedT:
    """The offer for which error + `price`·cost is least; among equals that of less cost."""
    return min(offers, key=lambda offer: (offer.error + price * offer.cost, offer.cost))


def least_error(menus: Menus[PricedT], budget: float) -> dict[str, PricedT]:
    """An offer for each layer, with little error, whose costs stay within `budget`.

    Where even the offers of least cost take more, these are returned.
    """
    best = of_least_cost(menus)
    if total_cost(best) > budget:
        return best
    # prices are in units of the budget, so that one range serves bytes as well as milliseconds
    scale = max(total_cost(best), budget, 1e-300)

    def fits(price: float) -> bool:
        nonlocal best
        chosen = at_price(menus, price / scale)
        if total_cost(chosen) > budget:
            return False
        best = chosen
        return True

    _bisected(fits, *_BUDGET_PRICES)  # the last price that fits is the lowest one
    return _filled(menus, best, budget)


def least_cost(menus: Menus[PricedT], allowed_error: float) -> dict[str, PricedT]:
    """The offers of least cost, among those that one price selects, within `allowed_error`."""

    def is_too_high(price: float) -> bool:
        return total_error(at_price(menus, price)) > allowed_error

    highest, _ = _bisected(is_too_high, *_COST_PRICES)
    return at_price(menus, highest)


def of_least_cost(menus: Menus[PricedT]) -> dict[str, PricedT]:
    """The offer of least cost of each layer."""
    return {name: min(offers, key=lambda o: (o.cost, o.error)) for name, offers in menus.items()}


def total_cost(chosen: Mapping[str, Priced]) -> float:
    """The sum of the costs of the chosen offers."""
    return sum(offer.cost for offer in chosen.values())


def total_error(chosen: Mapping[str, Priced]) -> float:
    """The sum of the errors of the chosen offers."""
    return sum(offer.error for offer in chosen.values())


def _bisected(is_high: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """Neighbouring prices between which `is_high` turns from false to true."""
    for _ in range(_STEPS):
        middle = (low * high) ** 0.5
        if is_high(middle):
            high = middle
        else:
            low = middle
    return low, high


def _filled(menus: Menus[PricedT], chosen: dict[str, PricedT], budget: float) -> dict[str, PricedT]:
    """`chosen` with offers of less error where the rest of the budget pays for them, best first.

    A price selects corners of the convex hulls alone; offers above a hull may fit into the rest.
    """
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

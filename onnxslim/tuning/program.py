"""Choose a variant for each layer so that the costs are least and the errors stay within a limit.

A multiple-choice knapsack, solved exactly as an integer program (Kellerer, Pferschy and Pisinger,
2004, chapter 11) by branch and bound (HiGHS, through scipy).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from onnxslim.lossy.spend import PricedT, of_least_cost, total_error

_SECONDS: Final = 20.0
_GAP: Final = (
    1e-4  # relative distance of the answer from the best bound, at which it is good enough
)


def least_cost_within(
    menus: Mapping[str, Sequence[PricedT]], allowed_error: float
) -> dict[str, PricedT]:
    """The variant of each layer, of least cost in all, whose errors add up to `allowed_error`.

    Args:
        menus: the variants of each layer by its name; one of each has no error.
        allowed_error: the limit, at least 0.

    Returns:
        The variants by layer.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    cheapest = of_least_cost(menus)
    if total_error(cheapest) <= allowed_error or not menus:
        return cheapest
    places = [(name, variant) for name, variants in menus.items() for variant in variants]
    costs = np.array([variant.cost for _, variant in places])
    errors = np.array([variant.error for _, variant in places])
    names = list(menus)
    one_each = np.zeros((len(names), len(places)))
    for place, (name, _) in enumerate(places):
        one_each[names.index(name), place] = 1.0
    # both rows are scaled to 1, as solvers compare with absolute tolerances
    scale = max(allowed_error, 1e-300)
    found = milp(
        costs / max(np.abs(costs).max(), 1e-300),
        integrality=np.ones(len(places)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint((errors / scale)[None], -np.inf, 1.0),
        ],
        options={"time_limit": _SECONDS, "mip_rel_gap": _GAP},
    )
    if found.x is None:  # no time for any answer: the one that changes nothing
        return {name: min(options, key=lambda o: o.error) for name, options in menus.items()}
    chosen = {place for place, value in enumerate(found.x) if value > 0.5}
    return {name: variant for place, (name, variant) in enumerate(places) if place in chosen}

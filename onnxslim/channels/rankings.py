"""Rankings of the units of a group that take an algorithm: greedy, by a penalty, by elimination.

Owns: how units are ranked by what their readers say. Not here: what readers say (see `evidence`).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from onnxslim.channels.evidence import Evidence, elimination_costs

Array = npt.NDArray[np.float64]

_ROUNDS: Final = 24  # of elimination
_LASSO_STEPS: Final = 200
_LASSO_SWEEPS: Final = 20
_TINY: Final = 1e-300  # in place of a divisor of zero


def greedy_order(evidence: Evidence) -> Array:
    """Places in the order that always removes the unit that adds least to Σ_{u,v gone} Q_uv.

    Luo, Wu, Lin 2017, eq. 6.
    """
    size = len(evidence.products)
    place = np.zeros(size)
    cost = np.diagonal(evidence.products).copy()
    alive = np.ones(size, bool)
    for step in range(size):
        chosen = int(np.argmin(np.where(alive, cost, np.inf)))
        place[chosen] = step
        alive[chosen] = False
        cost += 2 * evidence.products[chosen]  # both Q_uv and Q_vu
    return place


def lasso_penalties(evidence: Evidence) -> Array:
    """The λ at which each unit leaves min_β E‖y − Σ β_u W_u x_u‖² + λ Σ|β_u|.

    He, Zhang, Sun 2017, eq. 1. Coordinate descent along a falling λ: a unit that enters late is
    worth little. The error of removing each unit alone breaks ties.
    """
    products = evidence.products
    size = len(products)
    right = products.sum(axis=1)  # the target is the layer's own output: every β is 1
    diagonal = np.maximum(np.diagonal(products), _TINY)
    most = float(np.abs(right).max(initial=0.0))  # the λ at which no unit is in
    if most == 0.0:
        return np.zeros(size)
    entered = np.zeros(size)
    beta = np.zeros(size)
    image = np.zeros(size)  # products·β
    for price in np.geomspace(most, most * 1e-5, _LASSO_STEPS):
        for _ in range(_LASSO_SWEEPS):
            before = beta.copy()
            for unit in range(size):
                # the best β_u while all others stay: soft thresholding of the residual
                rest = right[unit] - image[unit] + diagonal[unit] * beta[unit]
                new = np.sign(rest) * max(abs(rest) - price, 0.0) / diagonal[unit]
                if new != beta[unit]:
                    image += products[unit] * (new - beta[unit])
                    beta[unit] = new
            if np.abs(beta - before).max() <= 1e-4 * max(np.abs(beta).max(), _TINY):
                break
        entered = np.where((entered == 0) & (beta != 0), price, entered)
    return entered + 1e-12 * np.diagonal(products) / max(float(diagonal.max()), _TINY)


def elimination_order(evidence: Evidence) -> Array:
    """Places in the order in which elimination, in rounds, removes units; pinned units come last.

    Hassibi and Stork 1993, by groups of columns.
    """
    size = evidence.group.size
    place = np.full(size, float(size))
    alive = ~evidence.stays
    inverses = [inverse.copy() for inverse in evidence.inverses]
    step = 0
    while alive.any():
        cost = elimination_costs(inverses, size)
        left = np.flatnonzero(alive)
        # a share of what is left, but never so few that the last rounds are single units
        count = max(1, len(left) // _ROUNDS, round(size / (4 * _ROUNDS)))
        chosen = left[np.lexsort((left, cost[left]))][:count]
        place[chosen] = np.arange(step, step + len(chosen))
        step += len(chosen)
        alive[chosen] = False
        for inverse in inverses:
            inverse.remove(chosen, size)
    return place

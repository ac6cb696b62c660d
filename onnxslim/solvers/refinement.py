"""Better values for given codes, and better codes for given values: neither can raise the error.

With Ŵ = Σ_l a_l·C_l, C_l the indicator of code l, the best values a of a table solve

    Σ_m tr (C_l H C_mᵀ)·a_m = tr (C_l H Tᵀ)    for each l

`coordinate_descent` chooses each weight anew given all others: the ideal weight j of row w is
w_j + ((t − w)·H)_j / H_jj, rounded to the nearest allowed value.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from onnxslim.linear_algebra import linalg
from onnxslim.solvers.metric import Block, Metric
from onnxslim.solvers.tables import ValueSet

_BLOCK: Final = 128


def value_equations(
    target: np.ndarray, metric: Metric, codes: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The normal equations for the values of one table; those of several matrices can be added.

    Args:
        target: the unconstrained optimum.
        metric: of the inputs.
        codes: (rows, columns), which value each weight uses; −1: none, the weight is zero.
        count: number of values.

    Returns:
        The matrix (count, count) and the right side (count,).
    """
    codes = np.where(metric.dead, -1, codes)  # the weights of dead inputs have no say
    wished = metric.times(np.asarray(target, np.float64))
    normal, right = np.zeros((count, count)), np.zeros(count)
    used = codes >= 0
    flat = codes[used]
    for level in range(count):
        chosen = codes == level
        right[level] = wished[chosen].sum()
        image = metric.times(chosen.astype(np.float64))
        normal[level] = np.bincount(flat, weights=image[used], minlength=count)
    return normal, right


def solve_values(normal: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The least-squares values of a table, zero for those that no weight uses."""
    return np.asarray(linalg.lstsq(normal, right, cond=1e-12, check_finite=False)[0])


def refit_row_values(
    target: np.ndarray, metric: Metric, codes: np.ndarray, count: int
) -> np.ndarray:
    """The best values for given codes, with a table for each row: (rows, count)."""
    rows, columns = target.shape
    codes = np.where(metric.dead, -1, codes)
    wished = metric.times(np.asarray(target, np.float64))
    normal, right = np.zeros((rows, count, count)), np.zeros((rows, count))
    row = np.broadcast_to(np.arange(rows)[:, None], (rows, columns))
    used = codes >= 0
    place = row[used] * count + codes[used]
    for level in range(count):
        chosen = codes == level
        right[:, level] = np.where(chosen, wished, 0.0).sum(axis=1)
        image = metric.times(chosen.astype(np.float64))
        sums = np.bincount(place, weights=image[used], minlength=rows * count)
        normal[:, level] = sums.reshape(rows, count)
    return np.stack([solve_values(n, r) for n, r in zip(normal, right, strict=True)])


def coordinate_descent(
    target: np.ndarray,
    weight: np.ndarray,
    metric: Metric,
    codebook: ValueSet,
    *,
    mask: np.ndarray | None = None,
    sweeps: int = 2,
) -> np.ndarray:
    """Go through the columns again, choosing each weight anew given all others.

    Never worse than `weight`, by the damped objective and the codebook's prices.

    Args:
        target: the unconstrained optimum.
        weight: where to start.
        metric: of the inputs.
        codebook: the allowed values.
        mask: where a weight may be other than zero.
        sweeps: how often.
    """
    if metric.is_identity:
        return weight
    result = np.array(weight, np.float64)
    for block in metric.blocks:
        part = np.ascontiguousarray((target[:, block.at] - result[:, block.at]).T)
        values = np.ascontiguousarray(result[:, block.at].T)
        allowed = None if mask is None else mask[:, block.at].T
        for _ in range(sweeps):
            _descend_once(part, values, block, codebook, allowed)
        result[:, block.at] = values.T
    return result


def _descend_once(
    distance: np.ndarray,
    values: np.ndarray,
    block: Block,
    codebook: ValueSet,
    allowed: np.ndarray | None,
) -> None:
    """One sweep over (columns, rows); edits `values` and `distance` = target − values."""
    matrix = block.matrix
    for start in range(0, len(values), _BLOCK):
        stop = min(start + _BLOCK, len(values))
        pull = matrix[start:stop] @ distance  # (block, rows)
        for index in range(start, stop):
            curvature = matrix[index, index]
            old = values[index]
            ideal = old + pull[index - start] / curvature
            paid = np.array([0.0 if block.dead[index] else curvature])
            new = codebook.project(ideal, slice(None), block.at.start + index, paid)
            if allowed is not None:
                new = np.where(allowed[index], new, old)
            change = new - old
            pull -= matrix[start:stop, index, None] * change
            distance[index] -= change
            values[index] = new

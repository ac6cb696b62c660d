"""The best weights by linear least squares: for new inputs, or with zeros at given places.

    new inputs    min E‖W·x − Ŵ·x̃‖²         Ŵ = T = W·E[x x̃ᵀ]·H̃⁻¹,   H̃ = E[x̃ x̃ᵀ]
    given zeros   min tr (T − Ŵ) H (T − Ŵ)ᵀ  row i with support S:   ŵ_S = (t·H)_S·H_SS⁻¹

Up to a constant, E‖W·x − Ŵ·x̃‖² is tr (T − Ŵ) H̃ (T − Ŵ)ᵀ: where the compressed model's input x̃
differs from x, only the target changes. All other solvers work on a target and a metric.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from onnxslim.linear_algebra import linalg
from onnxslim.solvers.metric import Block, Metric
from onnxslim.solvers.threads import threads_for

_CG_STEPS: Final = 6
_CG_TOLERANCE: Final = 1e-8
_DIRECT_SHARE: Final = 1.0  # of the work of conjugate gradients that a direct solution may take


def shifted_target(weight: np.ndarray, cross: np.ndarray, metric: Metric) -> np.ndarray:
    """The unconstrained best weight when the input is not the one that `weight` was made for.

    Args:
        weight: of the original layer; where the data says nothing, the result stays near it.
        cross: E[y x̃ᵀ], y the original layer's output and x̃ the new input.
        metric: of x̃.
    """
    weight = np.asarray(weight, np.float64)
    if metric.is_identity:
        return weight
    result = weight.copy()
    for block in metric.blocks:
        part = weight[:, block.at]
        result[:, block.at] += block.solve(cross[:, block.at] - block.times(part))
    return result


def unexplained(target: np.ndarray, cross: np.ndarray, energy: np.ndarray) -> float:
    """The error that even `target` leaves: what to add to `objective` for E‖y − Ŵ·x̃‖².

    Of all rows together it is not negative but for rounding.

    Args:
        target: from `shifted_target`.
        cross: E[y x̃ᵀ].
        energy: E[y²] of each row.
    """
    return float(energy.sum() - np.einsum("ij,ij->", target, cross))


def refit(
    target: np.ndarray, metric: Metric, support: np.ndarray, start: np.ndarray | None = None
) -> np.ndarray:
    """The best weight that is zero outside `support`.

    Solves the normal equations of each row, of all rows with the same support together. Where that
    would be too much work, a few steps of conjugate gradients: each of them lowers the error.

    Args:
        target: the unconstrained optimum.
        metric: of the inputs.
        support: (rows, columns), or (columns,) for all rows alike; true where a weight may be set.
        start: a weight to begin conjugate gradients at.
    """
    target = np.asarray(target, np.float64)
    support = np.broadcast_to(np.asarray(support, bool), target.shape)
    if metric.is_identity:
        return np.where(support, target, 0.0)
    result = np.zeros_like(target)
    for block in metric.blocks:
        part = support[:, block.at]
        groups = equal_rows(part)
        work = sum(float(part[rows[0]].sum()) ** 3 / 3 for rows in groups)
        if work > _DIRECT_SHARE * 2 * _CG_STEPS * len(target) * float(len(block.matrix)) ** 2:
            first = None if start is None else start[:, block.at]
            result[:, block.at] = _descend(target[:, block.at], block, part, first)
        else:
            result[:, block.at] = _solve_groups(target[:, block.at], block, part, groups)
    return result


def equal_rows(support: np.ndarray) -> list[np.ndarray]:
    """Indices of the rows of each distinct row of booleans."""
    packed = np.packbits(support, axis=1)
    _, which = np.unique(packed, axis=0, return_inverse=True)
    which = which.reshape(-1)
    order = np.argsort(which, kind="stable")
    edges = np.flatnonzero(np.diff(which[order])) + 1
    return np.split(order, edges)


def support_work(support: np.ndarray) -> float:
    """Σ n³ over the distinct rows of `support`, n the columns of each: what factors cost."""
    return sum(float(support[rows[0]].sum()) ** 3 for rows in equal_rows(support))


def _solve_groups(
    target: np.ndarray, block: Block, support: np.ndarray, groups: list[np.ndarray]
) -> np.ndarray:
    cross = target @ block.matrix
    result = np.zeros_like(target)
    with threads_for(target.shape[1]):
        for rows in groups:
            columns = np.flatnonzero(support[rows[0]])
            if len(columns) == target.shape[1]:  # nothing to make up for
                result[rows] = target[rows]
            if len(columns) in (0, target.shape[1]):
                continue
            # by columns, as LAPACK goes: worked on in place
            inner = block.matrix[np.ix_(columns, columns)].T
            factor = linalg.cho_factor(inner, lower=True, overwrite_a=True, check_finite=False)
            right = cross[np.ix_(rows, columns)].T
            result[np.ix_(rows, columns)] = linalg.cho_solve(factor, right, check_finite=False).T
    return result


def _descend(
    target: np.ndarray, block: Block, support: np.ndarray, start: np.ndarray | None
) -> np.ndarray:
    """Conjugate gradients on all rows at once, preconditioned by the diagonal."""
    weight = np.where(support, target if start is None else start, 0.0)
    scale = 1 / np.diagonal(block.matrix)
    gradient = np.where(support, (target - weight) @ block.matrix, 0.0)
    first = np.einsum("ij,ij->i", gradient * scale, gradient)
    step, strength = gradient * scale, first
    for _ in range(_CG_STEPS):
        if np.all(strength <= _CG_TOLERANCE**2 * np.maximum(first, 1e-300)):
            break
        image = np.where(support, step @ block.matrix, 0.0)
        curvature = np.einsum("ij,ij->i", step, image)
        length = np.divide(strength, curvature, out=np.zeros_like(strength), where=curvature > 0)
        weight += length[:, None] * step
        gradient -= length[:, None] * image
        before, strength = strength, np.einsum("ij,ij->i", gradient * scale, gradient)
        ratio = np.divide(strength, before, out=np.zeros_like(strength), where=before > 0)
        step = gradient * scale + ratio[:, None] * step
    return weight

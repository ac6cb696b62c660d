"""Codebooks whose values are fixed multiples of a few scales: signs, sums of signs, ternary values.

The values of a table are F·a, with F (L, M) given and M scales a to be found, for each output or
for the whole weight:

    signs          F = −1; +1                            a = (α)
    sums of signs  F = all rows of M entries ±1          a = (α_1, ..., α_M)
    ternary        F = −1; 0; +1  or  (−1, 0); (0, 0); (0, 1)

As in `scalar_codebooks`, codes and values are improved in turn, each step lowering the error: the
best scales for the codes by least squares; then for the scales better codes, at first by rounding
with error feedback, then by coordinate descent. With H = I, codes are the nearest values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxslim.codebook.weight import TableGranularity
from onnxslim.lossy.problems import Problem
from onnxslim.solvers.feedback import round_with_feedback
from onnxslim.solvers.least_squares import refit
from onnxslim.solvers.metric import Metric
from onnxslim.solvers.refinement import coordinate_descent
from onnxslim.solvers.tables import Table

_ROUNDS: Final = 4
_SWEEPS: Final = 2
_SIZES: Final = (1.0, 0.85, 1.2, 1.5)  # of the first scales; measured on LeNet-5
_CHUNK: Final = 1 << 20  # weights that are float64 at once, where there are no data

InitialScales = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""First scales (rows, M) for weights (rows, columns), from what moving each of them costs (None:
all the same)."""


_GroupProblem = tuple[np.ndarray, Metric, np.ndarray | None]
"""The target, metric and mask of one group."""


@dataclass(frozen=True)
class ScaledTableSpec:
    """What the values of a table may be, and where to begin.

    Attributes:
        factors: F, (L, M).
        start: the first scales.
        per: what has scales of its own: TENSOR or ROW.
        is_solved: whether, with H = I, the first scales are the best there are.
    """

    factors: np.ndarray
    start: InitialScales
    per: TableGranularity = TableGranularity.ROW
    is_solved: bool = False


@dataclass(frozen=True)
class ScaledCodebook:
    """Codes and scales for a canonical weight.

    Attributes:
        codes: (groups, rows, columns), rows of F.
        scales: (tables, M), float64 values of the tables' type.
        error: relative error, of the output with data, else of the weight.
        weight: (groups, rows, columns), float64; None without data.
    """

    codes: np.ndarray
    scales: np.ndarray
    error: float
    weight: np.ndarray | None


def find_scaled_codebook(
    problem: Problem,
    spec: ScaledTableSpec,
    table: np.dtype[np.floating],
    mask: np.ndarray | None = None,
) -> ScaledCodebook:
    """Codes and scales for the weight of `problem`.

    Args:
        problem: the weight, its target and metric.
        spec: which values a table may have.
        table: the type that scales are stored in.
        mask: (groups, rows, columns), false where the weight has to be zero; None: nowhere. Zero
            is one of the values then.
    """
    if problem.has_data:
        return _with_data(problem, spec, table, mask)
    return _without_data(problem, spec, table)


# ---------------------------------------------------------------------------- without data


def _without_data(
    problem: Problem, spec: ScaledTableSpec, table: np.dtype[np.floating]
) -> ScaledCodebook:
    """H = I: some rows at a time, so that little of the size of the weight is held."""
    weight = problem.weight
    groups, rows, columns = weight.shape
    codes = np.empty(weight.shape, np.uint8)
    scales = []
    if spec.per is TableGranularity.TENSOR:
        scales.append(_rounded_scales(spec.start(weight.reshape(1, -1), None), table))
    step, metric = max(1, _CHUNK // columns), Metric(None, columns)
    error = whole = 0.0
    for group in range(groups):
        for first in range(0, rows, step):
            at = np.s_[group, first : first + step]
            part = weight[at].astype(np.float64)
            if spec.per is TableGranularity.ROW:
                scales.append(_rounded_scales(_alternate(part, metric, spec), table))
            levels = _levels(spec, scales[-1])
            codes[at] = _nearest(levels, part)
            error += float(np.square(part - _values_of(levels, codes[at])).sum())
            whole += float(np.square(part).sum())
    return ScaledCodebook(codes, np.concatenate(scales), error / whole if whole else 0.0, None)


def _alternate(part: np.ndarray, metric: Metric, spec: ScaledTableSpec) -> np.ndarray:
    """Scales of rows, with H = I: least squares and nearest codes in turn."""
    scales = spec.start(part, None)
    for _ in range(0 if spec.is_solved else 2 * _ROUNDS):
        codes = _nearest(_levels(spec, scales), part)
        scales = _solve_scales(*_equations(spec, part, metric, codes), scales)
    return scales


def _nearest(levels: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Which of `levels`, (rows or 1, L), is nearest to each of (rows, columns)."""
    order = np.argsort(levels, axis=1, kind="stable")
    ascending = np.take_along_axis(levels, order, axis=1)
    place = np.zeros(part.shape, np.uint8)
    for middle in ((ascending[:, 1:] + ascending[:, :-1]) / 2).T:
        place += part > middle[:, None]
    return _values_of(order.astype(np.uint8), place)


# ---------------------------------------------------------------------------- with data


def _with_data(
    problem: Problem, spec: ScaledTableSpec, table: np.dtype[np.floating], mask: np.ndarray | None
) -> ScaledCodebook:
    metrics, targets = problem.metrics, list(problem.target)
    masks: list[np.ndarray | None] = [None] * len(targets) if mask is None else list(mask)
    for group, own in enumerate(masks):
        if own is not None:
            targets[group] = refit(targets[group], metrics[group], own)
    group_problems = list(zip(targets, metrics, masks, strict=True))
    scales, codes = _initial_codes(spec, group_problems, _initial_scales(spec, targets, metrics))
    for _ in range(_ROUNDS):
        scales = _best_scales(spec, targets, metrics, codes, scales)
        for group, own in enumerate(_split(spec, scales, len(targets))):
            target, metric, allowed = group_problems[group]
            levels = _levels(spec, own)
            start = _values_of(levels, codes[group])
            better = coordinate_descent(
                target, start, metric, _table(levels), mask=allowed, sweeps=_SWEEPS
            )
            codes[group] = _codes_of(levels, better)
    scales = _rounded_scales(_best_scales(spec, targets, metrics, codes, scales), table)
    split = _split(spec, scales, len(targets))
    weight = np.stack([_values_of(_levels(spec, s), c) for s, c in zip(split, codes, strict=True)])
    return ScaledCodebook(np.stack(codes), scales, problem.relative_error(weight), weight)


def _initial_codes(
    spec: ScaledTableSpec, group_problems: Sequence[_GroupProblem], scales: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The best of several sizes of `scales`, with codes by rounding with error feedback.

    Weights that make up for others become larger than the target's, so larger scales may do better.
    """
    best = np.full(len(scales), np.inf)
    chosen, codes = scales, [np.zeros(target.shape, np.uint8) for target, _, _ in group_problems]
    for size in _SIZES:
        tried = size * scales
        own = _split(spec, tried, len(group_problems))
        found = [
            _codes_with_feedback(_levels(spec, s), side)
            for s, side in zip(own, group_problems, strict=True)
        ]
        cost = np.concatenate([cost for _, cost in found])
        if spec.per is TableGranularity.TENSOR:
            cost = cost.sum(keepdims=True)
        better = cost < best
        best, chosen = np.where(better, cost, best), np.where(better[:, None], tried, chosen)
        for group, part in enumerate(_split(spec, better, len(group_problems))):
            codes[group] = np.where(part[:, None], found[group][0], codes[group])
    return chosen, codes


def _codes_with_feedback(levels: np.ndarray, side: _GroupProblem) -> tuple[np.ndarray, np.ndarray]:
    """Codes (rows, columns), and what they cost each row."""
    target, metric, mask = side
    fed = round_with_feedback(target, metric, _table(levels), mask=mask, is_fitted=True)
    return _codes_of(levels, fed), metric.cost_by_row(target - fed)


def _initial_scales(
    spec: ScaledTableSpec, targets: Sequence[np.ndarray], metrics: Sequence[Metric]
) -> np.ndarray:
    """The first scales: each weight counts by what moving it costs when all others make up."""
    costs = [
        np.broadcast_to(np.where(m.dead, 0.0, 1 / m.inverse_diagonal), t.shape)
        for t, m in zip(targets, metrics, strict=True)
    ]
    if spec.per is TableGranularity.ROW:
        pairs = zip(targets, costs, strict=True)
        return np.concatenate([spec.start(target, cost) for target, cost in pairs])
    flat = [np.concatenate([part.reshape(-1) for part in parts]) for parts in (targets, costs)]
    return spec.start(flat[0][None], flat[1][None])


def _best_scales(
    spec: ScaledTableSpec,
    targets: Sequence[np.ndarray],
    metrics: Sequence[Metric],
    codes: Sequence[np.ndarray],
    scales: np.ndarray,
) -> np.ndarray:
    """The best scales for `codes`; what no code uses stays as in `scales`."""
    group_problems = zip(targets, metrics, codes, strict=True)
    found = [_equations(spec, target, metric, own) for target, metric, own in group_problems]
    normal, right = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if spec.per is TableGranularity.TENSOR:
        normal, right = normal.sum(axis=0)[None], right.sum(axis=0)[None]
    return _solve_scales(normal, right, scales)


def _split(spec: ScaledTableSpec, array: np.ndarray, groups: int) -> list[np.ndarray]:
    """What belongs to the tables of each group."""
    return [array] * groups if spec.per is TableGranularity.TENSOR else np.split(array, groups)


def _table(levels: np.ndarray) -> Table:
    return Table(np.sort(levels, axis=1)[None])  # (1, rows or 1, L)


def _codes_of(levels: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Which of `levels`, (rows or 1, L), each of (rows, columns) is."""
    codes = np.zeros(weight.shape, np.uint8)
    for code, level in enumerate(levels.T):
        codes[weight == level[:, None]] = code
    return codes


# ---------------------------------------------------------------------------- both


def _levels(spec: ScaledTableSpec, scales: np.ndarray) -> np.ndarray:
    """(tables, L): the values."""
    return np.asarray(scales @ spec.factors.T + 0.0)  # no −0


def _values_of(levels: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The values of (rows, columns)."""
    if len(levels) == 1:
        return np.asarray(levels[0][codes])
    return np.asarray(np.take_along_axis(levels, codes.astype(np.intp), axis=1))


def _equations(
    spec: ScaledTableSpec, target: np.ndarray, metric: Metric, codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The normal equations for the scales of each row: (rows, M, M) and (rows, M)."""
    wished = metric.times(target)
    shapes = [np.where(metric.dead, 0.0, factor[codes]) for factor in spec.factors.T]
    images = [metric.times(shape) for shape in shapes]
    normal = [[np.einsum("ij,ij->i", shape, image) for shape in shapes] for image in images]
    right = [np.einsum("ij,ij->i", shape, wished) for shape in shapes]
    # (M, M, rows) -> (rows, M, M)
    return np.array(normal).transpose(2, 0, 1), np.array(right).T


def _solve_scales(normal: np.ndarray, right: np.ndarray, scales: np.ndarray) -> np.ndarray:
    inverse = np.linalg.pinv(normal, rcond=1e-12, hermitian=True)
    fitted = np.matmul(inverse, right[:, :, None])[:, :, 0]  # (tables, M)
    used = np.diagonal(normal, axis1=1, axis2=2) > 0
    return np.where(used, fitted, scales)


def _rounded_scales(scales: np.ndarray, table: np.dtype[np.floating]) -> np.ndarray:
    return scales.astype(table).astype(np.float64)

"""Codes for vectors of a weight, with error feedback, and the best entries for given codes.

`residual_codes` rounds v columns at a time (GPTVQ, van Baalen 2024) to the tables that `vectors`
finds. With U upper triangular, Uᵀ·U = H⁻¹, and J the columns of one vector, an error e there costs,
once the columns after it have made up for it as well as they can,

    ‖e · U_JJ⁻¹‖²        and the columns K after it move by   −e · U_JJ⁻¹ · U_JK

so the nearest entry is sought after a change of basis by U_JJ⁻¹; for v = 1 this is `feedback`.
`refit_residual` finds the best entries for given codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np

from onnxslim.linear_algebra import linalg
from onnxslim.solvers.damping import inverse_factor
from onnxslim.solvers.metric import Metric
from onnxslim.solvers.vectors import Nearest, code_type, sums

_BLOCK: Final = 128
_REFIT_FLOPS: Final = 2e11
_FEW: Final = 1 << 8  # sums of stages, up to which all of them are tried


def residual_codes(target: np.ndarray, metric: Metric, tables: Sequence[np.ndarray]) -> np.ndarray:
    """An entry of each table for every v neighbouring columns, their sum being the weight.

    Later columns make up for errors; rows in which that turns out worse than the nearest entries
    take the nearest entries. All sums are tried where there are up to 256; else stage after stage
    takes what is nearest to what is left, and then each chooses once more given the others.

    Args:
        target: the unconstrained optimum, (rows, columns); v divides the columns.
        metric: of the inputs.
        tables: of the stages, all (count, v), or (count,) for scalars.

    Returns:
        (stages, rows, columns / v), uint8 or uint16.

    Raises:
        ValueError: the columns are no multiple of v.
    """
    target = np.asarray(target, np.float64)
    stages = [_as_vectors(table) for table in tables]
    length = stages[0].shape[1]
    if target.shape[1] % length:
        raise ValueError(
            f"Vectors of {length} columns were asked for, which do not divide a weight of "
            f"{target.shape[1]} columns; choose another length."
        )
    plain = _plain_codes(target, metric, stages)
    if metric.is_identity:
        return plain
    fed = _fed_codes(target, metric, stages)
    cost, fed_cost = (metric.cost_by_row(target - decoded(stages, codes)) for codes in (plain, fed))
    return np.asarray(np.where((cost < fed_cost)[None, :, None], plain, fed))


def decoded(tables: Sequence[np.ndarray], codes: np.ndarray) -> np.ndarray:
    """The weight (rows, columns) of codes (stages, rows, columns / v): the entries' sum."""
    parts = [_as_vectors(table)[own] for table, own in zip(tables, codes, strict=True)]
    return np.asarray(np.sum(parts, axis=0).reshape(codes.shape[1], -1))


def _as_vectors(table: np.ndarray) -> np.ndarray:
    table = np.asarray(table, np.float64)
    return table[:, None] if table.ndim == 1 else table


def _plain_codes(target: np.ndarray, metric: Metric, tables: Sequence[np.ndarray]) -> np.ndarray:
    """The nearest entries, components weighted by H_jj."""
    length = tables[0].shape[1]
    vectors = target.reshape(-1, length)
    own = None
    if not metric.is_identity:
        # (columns,) -> (columns / v, v), the same for each row
        weight = metric.diagonal.reshape(-1, length)
        own = np.broadcast_to(weight, (len(target), *weight.shape)).reshape(-1, length)
    codes = _staged(tables, vectors, own)
    return codes.reshape(len(tables), len(target), -1)


def _staged(
    tables: Sequence[np.ndarray], vectors: np.ndarray, weights: np.ndarray | None
) -> np.ndarray:
    """Codes (stages, n): all sums tried, or stage after stage, then each given the others."""
    sizes = tuple(len(table) for table in tables)
    dtype = code_type(max(sizes))
    if len(sizes) == 1 or prod(sizes) <= _FEW:
        nearest = Nearest(sums(tables), has_weights=weights is not None)
        return np.array(np.unravel_index(nearest.codes(vectors, weights), sizes), dtype)
    every = [Nearest(table, has_weights=weights is not None) for table in tables]
    codes = np.zeros((len(tables), len(vectors)), dtype)
    left = np.array(vectors)
    for sweep in range(2):
        for stage, (nearest, table) in enumerate(zip(every, tables, strict=True)):
            if sweep:
                left += table[codes[stage]]
            codes[stage] = nearest.codes(left, weights)
            left -= table[codes[stage]]
    return codes


@dataclass(frozen=True)
class _Span:
    """Columns that later columns can make up for: one or more diagonal blocks of a metric."""

    at: slice
    matrix: np.ndarray
    dead: np.ndarray


def _spans(metric: Metric, length: int) -> Iterator[_Span]:
    """The diagonal blocks, joined where a vector lies across their border."""
    held = []
    for block in metric.blocks:
        held.append(block)
        if block.at.stop % length == 0:
            matrix = held[0].matrix if len(held) == 1 else (
                linalg.block_diag(*(item.matrix for item in held))
            )  # fmt: skip
            dead = np.concatenate([item.dead for item in held])
            yield _Span(slice(held[0].at.start, block.at.stop), matrix, dead)
            held = []


def _fed_codes(target: np.ndarray, metric: Metric, tables: Sequence[np.ndarray]) -> np.ndarray:
    length = tables[0].shape[1]
    dtype = code_type(max(len(table) for table in tables))
    codes = np.zeros((len(tables), len(target), target.shape[1] // length), dtype)
    for span in _spans(metric, length):
        at = slice(span.at.start // length, span.at.stop // length)
        codes[:, :, at] = _feedback(target[:, span.at], span, tables)
    return codes


def _feedback(target: np.ndarray, span: _Span, tables: Sequence[np.ndarray]) -> np.ndarray:
    """Codes (stages, rows, vectors) of one span, vectors with a large sum of H_jj first."""
    length = tables[0].shape[1]
    activity = np.where(span.dead, 0.0, np.diagonal(span.matrix)).reshape(-1, length).sum(axis=1)
    order = np.argsort(-activity, kind="stable")
    columns = (order[:, None] * length + np.arange(length)).ravel()
    upper = inverse_factor(span.matrix[np.ix_(columns, columns)], overwrite=True)
    dead = span.dead[columns]
    work = np.ascontiguousarray(target[:, columns].T)  # (columns, rows)
    dtype = code_type(max(len(table) for table in tables))
    codes = np.empty((len(tables), len(target), len(order)), dtype)
    size = -(-_BLOCK // length) * length
    for start in range(0, len(work), size):
        stop = min(start + size, len(work))
        errors = np.zeros((stop - start, work.shape[1]))
        for first in range(start, stop, length):
            last = first + length
            basis = linalg.solve_triangular(upper[first:last, first:last], np.eye(length))
            vectors = work[first:last].T
            live = np.where(dead[first:last], 0.0, basis)
            # what is nearest after the change of basis
            own = _staged([table @ live for table in tables], vectors @ live, None)
            codes[:, :, order[first // length]] = own
            chosen = np.sum([table[code] for table, code in zip(tables, own, strict=True)], axis=0)
            error = errors[first - start : last - start] = ((vectors - chosen) @ basis).T
            work[last:stop] -= upper[first:last, last:stop].T @ error
        work[stop:] -= upper[start:stop, stop:].T @ errors
    return codes


# ---------------------------------------------------------------------------- entries for codes


def refit_residual(
    target: np.ndarray, metric: Metric, codes: np.ndarray, tables: Sequence[np.ndarray]
) -> tuple[np.ndarray, ...]:
    """The best tables for given codes: least squares in all entries together.

    By conjugate gradients from the tables given, each step of which lowers the error; a large
    weight gets as many steps as a bound on work allows.

    Args:
        target: the unconstrained optimum, (rows, columns).
        metric: of the inputs.
        codes: (stages, rows, columns / v).
        tables: where to start; entries that no code uses stay.
    """
    stages = [_as_vectors(table) for table in tables]
    fit = _Fit(metric, codes, stages)
    table = fit.solved(np.asarray(target, np.float64))
    edges = np.cumsum([len(stage) for stage in stages])[:-1]
    parts = np.split(table, edges)
    return tuple(part.reshape(np.shape(own)) for part, own in zip(parts, tables, strict=True))


class _Fit:
    """The linear map from all entries (entries, v) to a weight, and its adjoint."""

    def __init__(self, metric: Metric, codes: np.ndarray, tables: Sequence[np.ndarray]) -> None:
        self.metric, self.tables = metric, tables
        self.length = tables[0].shape[1]
        starts = np.cumsum([0, *(len(table) for table in tables)])
        self.count = int(starts[-1])
        self.codes = [own.astype(np.intp) + at for own, at in zip(codes, starts, strict=False)]

    def weight(self, entries: np.ndarray) -> np.ndarray:
        total = sum(entries[own] for own in self.codes)  # (rows, vectors, v)
        return np.asarray(total).reshape(len(self.codes[0]), -1)

    def gathered(self, weight: np.ndarray) -> np.ndarray:
        """The sum over all uses of each entry."""
        parts = weight.reshape(-1, self.length)
        total = np.zeros((self.count, self.length))
        for own in self.codes:
            for component in range(self.length):
                values = parts[:, component]
                total[:, component] += np.bincount(own.ravel(), values, self.count)
        return total

    def solved(self, target: np.ndarray) -> np.ndarray:
        entries = np.concatenate(self.tables)
        shape = target.shape
        diagonal = self.gathered(np.broadcast_to(self.metric.diagonal, shape))
        scale = np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0)
        # H undamped: weights of dead inputs have no say
        gradient = self.gathered(self.metric.undamped_times(target - self.weight(entries)))
        strength = first = float((gradient * scale * gradient).sum())
        step = gradient * scale
        for _ in range(self._steps(shape)):
            if strength <= 1e-20 * first or strength <= 0:
                break
            image = self.gathered(self.metric.undamped_times(self.weight(step)))
            curvature = float((step * image).sum())
            if curvature <= 0:
                break
            entries = entries + strength / curvature * step
            gradient = gradient - strength / curvature * image
            before, strength = strength, float((gradient * scale * gradient).sum())
            step = gradient * scale + strength / before * step
        return entries

    def _steps(self, shape: tuple[int, ...]) -> int:
        flops = 2.0 * shape[0] * sum(len(b.matrix) ** 2 for b in self.metric.blocks)
        return int(np.clip(_REFIT_FLOPS / max(flops, 1.0), 4, 2 * self.count * self.length))

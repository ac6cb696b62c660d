"""Codebooks of free single values, for `cluster-weights`.

With data: a table of the weights, each counted by the cost of moving it; rounding to it with error
feedback; then in turn the best values for the codes (least squares) and better codes for the
values (coordinate descent). Without data (H = I): k-means, read straight from the stored weight;
rows of a table of embeddings count as often as samples read them.

Zeros of a mask stay zero; zero is then a value of the table beside the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxslim.codebook.weight import TableGranularity
from onnxslim.lossy.codebooks import Codebook, nearest_codebook, unique_values
from onnxslim.lossy.problems import Problem
from onnxslim.solvers.feedback import round_with_feedback
from onnxslim.solvers.kmeans.levels import cluster, cluster_rows
from onnxslim.solvers.kmeans.lloyd import TableInit
from onnxslim.solvers.least_squares import refit
from onnxslim.solvers.refinement import (
    coordinate_descent,
    refit_row_values,
    solve_values,
    value_equations,
)
from onnxslim.solvers.tables import Table, round_to_nearest

_FLOAT32: Final[np.dtype[np.floating]] = np.dtype(np.float32)
_REFINEMENTS: Final = 2
_SWEEPS: Final = 2


@dataclass(frozen=True)
class TableSpec:
    """The shape of a codebook, and how it is found.

    Attributes:
        levels: values of a table, zero included.
        per: whether the tensor, each row or each run of columns has its own table.
        width: columns in a run, where each run has a table.
        table: float32 or float16.
        start: how tables are found.
        weighted: whether k-means counts each weight by what moving it costs.
        feedback: whether later weights make up for the rounding errors of earlier ones.
    """

    levels: int
    per: TableGranularity = TableGranularity.TENSOR
    width: int | None = None
    table: np.dtype[np.floating] = _FLOAT32
    start: TableInit = TableInit.OPTIMAL
    weighted: bool = True
    feedback: bool = True


def find_scalar_codebook(
    problem: Problem, spec: TableSpec, mask: np.ndarray | None, seed: int
) -> Codebook:
    """Codes and tables for the weight of `problem`.

    Args:
        problem: the weight, its target and metric.
        spec: what the codebook is to look like.
        mask: (groups, rows, columns), false where the weight has to be zero; None: nowhere.
        seed: of random starts.
    """
    if not problem.has_data and spec.per is TableGranularity.TENSOR:
        return _one_table_without_data(problem, spec, seed, has_zeros=mask is not None)
    return _ScalarSearch(problem, spec, mask, seed).run()


def _one_table_without_data(
    problem: Problem, spec: TableSpec, seed: int, *, has_zeros: bool
) -> Codebook:
    """One table, H = I: nothing of the size of the weight is made but its codes."""
    values, shares = problem.weight, problem.row_shares if spec.weighted else None
    weights = None if shares is None else shares[:, None]  # (rows, 1)
    table = cluster(values, spec.levels, weights, start=spec.start, fixed_zero=has_zeros, seed=seed)
    return nearest_codebook(problem, unique_values(table.astype(spec.table)))


class _ScalarSearch:
    """Scalar tables with a metric: state of the search, one matrix for each group."""

    def __init__(
        self, problem: Problem, spec: TableSpec, mask: np.ndarray | None, seed: int
    ) -> None:
        self.problem, self.spec, self.seed = problem, spec, seed
        self.metrics = problem.metrics
        count = problem.layer.groups
        self.masks: list[np.ndarray | None] = [None] * count if mask is None else list(mask)
        self.levels = spec.levels - (mask is not None)
        self.targets = [
            np.asarray(target, np.float64) if own is None else refit(target, metric, own)
            for target, metric, own in zip(problem.target, self.metrics, self.masks, strict=True)
        ]

    def run(self) -> Codebook:
        values = self._initial_values()  # (tables, levels)
        weights = [self._rounded(group, values) for group in range(len(self.targets))]
        for _ in range(_REFINEMENTS if self.spec.feedback else 0):
            codes = self._codes(weights, values)
            values = self._best_values(values, codes)
            weights = [
                coordinate_descent(
                    t, w, metric, self._table(group, values), mask=mask, sweeps=_SWEEPS
                )
                for group, (t, w, metric, mask) in enumerate(
                    zip(
                        self.targets,
                        self._decoded(codes, values),
                        self.metrics,
                        self.masks,
                        strict=True,
                    )
                )
            ]
        return self._finish(self._codes(weights, values), values)

    # ----------------------------------------------------------------- values

    def _importance(self, group: int) -> np.ndarray | None:
        """What moving a weight costs when all others make up for it, (columns,)."""
        metric = self.metrics[group]
        if metric.is_identity or not self.spec.weighted:
            return None
        return np.asarray(np.where(metric.dead, 0.0, 1 / metric.inverse_diagonal))

    def _initial_values(self) -> np.ndarray:
        spec = self.spec
        weights = [self._weights(group) for group in range(len(self.targets))]
        if spec.per is TableGranularity.TENSOR:
            table = cluster(self.targets, self.levels, weights, start=spec.start, seed=self.seed)
            return _padded(table, self.levels)[None]
        if spec.per is TableGranularity.ROW:
            tables = [
                cluster_rows(t, self.levels, w, start=spec.start, seed=self.seed)
                for t, w in zip(self.targets, weights, strict=True)
            ]
            return np.concatenate(tables)
        runs = []
        assert spec.width is not None
        for target, weight in zip(self.targets, weights, strict=True):
            for first in range(0, target.shape[1], spec.width):
                at = np.s_[:, first : first + spec.width]
                part = cluster(
                    target[at], self.levels, weight[at], start=spec.start, seed=self.seed
                )
                runs.append(_padded(part, self.levels))
        return np.stack(runs)

    def _weights(self, group: int) -> np.ndarray:
        importance, mask = self._importance(group), self.masks[group]
        shape = self.targets[group].shape
        every = np.broadcast_to(1.0 if importance is None else importance, shape)
        if self.problem.row_shares is not None and self.spec.weighted:
            every = every * self.problem.row_shares[:, None]
        return every if mask is None else np.where(mask, every, 0.0)

    def _best_values(self, values: np.ndarray, codes: list[np.ndarray]) -> np.ndarray:
        """The best values for `codes`; codes are those of `values`, −1 where the weight is zero."""
        spec = self.spec
        sides = list(zip(self.targets, self.metrics, codes, strict=True))
        if spec.per is TableGranularity.TENSOR:
            pairs = [value_equations(t, m, c, self.levels) for t, m, c in sides]
            normal, right = (sum(part) for part in zip(*pairs, strict=True))
            fitted = solve_values(np.asarray(normal), np.asarray(right))[None]
        elif spec.per is TableGranularity.ROW:
            fitted = np.concatenate([refit_row_values(t, m, c, self.levels) for t, m, c in sides])
        else:
            return values
        used = self._uses(codes)
        return np.where(used > 0, fitted, values)

    def _uses(self, codes: list[np.ndarray]) -> np.ndarray:
        """How often each value is used, (tables, levels)."""
        if self.spec.per is TableGranularity.TENSOR:
            flat = np.concatenate([c[c >= 0] for c in codes])
            return np.bincount(flat, minlength=self.levels)[None]
        rows = np.concatenate(codes)
        return np.stack([(rows == level).sum(axis=1) for level in range(self.levels)], axis=1)

    # ----------------------------------------------------------------- codes

    def _tables_of(self, group: int, values: np.ndarray) -> np.ndarray:
        """The tables of one group, (tables, levels)."""
        each = len(values) // len(self.targets)
        if self.spec.per is TableGranularity.TENSOR:
            return values
        return values[group * each : (group + 1) * each]

    def _table(self, group: int, values: np.ndarray) -> Table:
        """The allowed values of one group, with zero where there is a mask."""
        own = self._tables_of(group, values)
        if self.masks[group] is not None:
            own = np.concatenate([own, np.zeros((len(own), 1))], axis=1)
        own = np.sort(own, axis=1)
        if self.spec.per is TableGranularity.RUN:
            return Table(own[:, None], self.spec.width)
        return Table(own[None])

    def _rounded(self, group: int, values: np.ndarray) -> np.ndarray:
        target, metric, mask = self.targets[group], self.metrics[group], self.masks[group]
        table = self._table(group, values)
        if not self.spec.feedback:
            return round_to_nearest(target, table, metric, mask)
        return round_with_feedback(target, metric, table, mask=mask, is_fitted=True)

    def _codes(self, weights: list[np.ndarray], values: np.ndarray) -> list[np.ndarray]:
        """Which of `values` each weight is; −1 for the zero of a mask."""
        found = []
        for group, weight in enumerate(weights):
            spread = self._spread(self._tables_of(group, values), weight.shape)
            codes = np.full(weight.shape, -1, np.int16)
            for level in range(self.levels):
                codes[weight == spread[level]] = level
            if self.masks[group] is not None:
                codes[weight == 0] = -1
            found.append(codes)
        return found

    def _spread(self, own: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
        """Each level, broadcastable to the weight."""
        if self.spec.per is TableGranularity.TENSOR:
            return [level[:, None] for level in own.T]  # (1, 1)
        if self.spec.per is TableGranularity.ROW:
            return [level[:, None] for level in own.T]  # (rows, 1)
        return [np.repeat(level, shape[1] // len(own))[None] for level in own.T]  # (1, columns)

    def _decoded(self, codes: list[np.ndarray], values: np.ndarray) -> list[np.ndarray]:
        weights = []
        for group, own in enumerate(codes):
            weight = np.zeros(own.shape)
            for level, value in enumerate(self._spread(self._tables_of(group, values), own.shape)):
                np.copyto(weight, value, where=own == level)
            weights.append(weight)
        return weights

    # ----------------------------------------------------------------- result

    def _finish(self, codes: list[np.ndarray], values: np.ndarray) -> Codebook:
        """Tables sorted and rounded to their type, with the zero of a mask among them."""
        if self.spec.per is TableGranularity.TENSOR:
            codes, values = _trimmed(codes, values)
        with_zero = self.masks[0] is not None
        rounded = values.astype(self.spec.table)
        if with_zero:
            zeros = np.zeros((len(rounded), 1), rounded.dtype)
            rounded = np.concatenate([rounded, zeros], axis=1)
        order = np.argsort(rounded, axis=1, kind="stable")
        tables = np.take_along_axis(rounded, order, axis=1)
        rank = np.argsort(order, axis=1)  # old code -> new code
        stacked = np.stack(codes)  # −1, zero, is the last of the old codes
        new = self._ranked(stacked, rank).astype(np.uint8 if tables.shape[1] <= 256 else np.uint16)
        exact = rounded[:, : values.shape[1]].astype(np.float64)
        weight = np.stack(self._decoded(codes, exact))
        table = tables[0] if self.spec.per is TableGranularity.TENSOR else tables
        return Codebook(((new, table),), self.problem.relative_error(weight), weight)

    def _ranked(self, codes: np.ndarray, rank: np.ndarray) -> np.ndarray:
        groups, rows, columns = codes.shape
        if self.spec.per is TableGranularity.TENSOR:
            return np.asarray(rank[0][codes])
        if self.spec.per is TableGranularity.ROW:
            flat = codes.reshape(groups * rows, columns)
            return np.take_along_axis(rank, flat.astype(np.int64), axis=1).reshape(codes.shape)
        assert self.spec.width is not None
        runs = columns // self.spec.width
        which = np.arange(groups)[:, None] * runs + np.arange(columns) // self.spec.width
        return np.asarray(rank[which[:, None, :], codes])


def _trimmed(codes: list[np.ndarray], values: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """One table without the values that no weight uses."""
    used = np.bincount(np.concatenate([c[c >= 0] for c in codes]), minlength=values.shape[1]) > 0
    if not used.any():
        used[0] = True
    number = np.concatenate([np.cumsum(used) - 1, [-1]]).astype(np.int16)  # −1 stays −1
    return [number[c] for c in codes], values[:, used]


def _padded(table: np.ndarray, levels: int) -> np.ndarray:
    """`table` with its last value repeated: all tables of a weight have one length."""
    return np.concatenate([table, np.repeat(table[-1:], levels - len(table))])

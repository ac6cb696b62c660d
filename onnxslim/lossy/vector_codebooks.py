"""Codebooks for sub-vectors, and sums of several codes: product and residual quantization.

Table entries are vectors of neighbouring input columns, and several entries may be added. One table
(of each stage) serves the whole weight. Zeros of a mask are not kept. Single values without
stages are `scalar_codebooks`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from onnxslim.lossy.codebooks import Codebook
from onnxslim.lossy.problems import Problem
from onnxslim.lossy.scalar_codebooks import TableSpec
from onnxslim.solvers.kmeans.lloyd import TableInit
from onnxslim.solvers.metric import Metric
from onnxslim.solvers.vector_codes import decoded, refit_residual, residual_codes
from onnxslim.solvers.vectors import residual_tables

_ROUNDS: Final = 2


def find_vector_codebook(
    problem: Problem, spec: TableSpec, length: int, stages: int, seed: int
) -> Codebook:
    """Codes for vectors of `length` columns, summed over `stages`.

    Args:
        problem: the weight, its target and metric; `length` divides its columns.
        spec: what the codebook is to look like; `per` is TENSOR.
        length: weights that one code stands for.
        stages: codes that are added.
        seed: of k-means++.
    """
    assert spec.start in (TableInit.OPTIMAL, TableInit.KMEANS_PLUS_PLUS)
    target = np.asarray(problem.target, np.float64)
    metrics = problem.metrics if spec.feedback else [_diagonal_metric(m) for m in problem.metrics]
    weights = _importances(problem, length) if spec.weighted and problem.has_data else None
    start = residual_tables(target.reshape(-1, length), spec.levels, stages, weights, seed=seed)
    tables = _rounded_tables(start.tables, spec)
    codes = [residual_codes(t, m, tables) for t, m in zip(target, metrics, strict=True)]
    best = _codebook(problem, codes, tables, spec)
    for _ in range(_ROUNDS if problem.has_data and len(codes) == 1 else 0):
        tables = _rounded_tables(
            refit_residual(target[0], problem.metrics[0], codes[0], tables), spec
        )
        candidate = _codebook(problem, codes, tables, spec)
        best = candidate if candidate.error < best.error else best
        codes = [residual_codes(target[0], metrics[0], tables)]
        candidate = _codebook(problem, codes, tables, spec)
        best = candidate if candidate.error < best.error else best
    return best


def _codebook(
    problem: Problem, codes: list[np.ndarray], tables: list[np.ndarray], spec: TableSpec
) -> Codebook:
    weight = np.stack([decoded(tables, own) for own in codes])
    stages = np.stack(codes, axis=1)  # (stages, groups, rows, columns / v)
    stored = [table.astype(spec.table) for table in tables]
    flat = [table[:, 0] if table.shape[1] == 1 else table for table in stored]
    pairs = tuple(zip(stages, flat, strict=True))
    return Codebook(pairs, problem.relative_error(weight), weight)


def _rounded_tables(
    tables: tuple[np.ndarray, ...] | list[np.ndarray], spec: TableSpec
) -> list[np.ndarray]:
    return [np.asarray(table, spec.table).astype(np.float64) for table in tables]


def _importances(problem: Problem, length: int) -> np.ndarray:
    """What moving each weight costs when all others make up for it: (vectors, length)."""
    rows = problem.layer.rows
    parts = []
    for metric in problem.metrics:
        own = np.where(metric.dead, 0.0, 1 / metric.inverse_diagonal)
        parts.append(np.tile(own.reshape(-1, length), (rows, 1)))
    return np.concatenate(parts)


def _diagonal_metric(metric: Metric) -> Metric:
    """The metric without what links its inputs: rounding without feedback."""
    return metric if metric.is_identity else Metric(np.diag(metric.diagonal), metric.size)

"""A codebook as the answer to one problem: codes, tables, and the error they leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxslim.lossy.problems import Problem
from onnxslim.solvers.kmeans.assignment import encode, quantization_error

_PIECE: Final = 1 << 22  # codes that are counted at once


@dataclass(frozen=True)
class Codebook:
    """Codes for the canonical weight, and its tables.

    Attributes:
        stages: codes (groups, rows, columns[/v]) with their table, as `codebook.weight.for_layer`
            takes them.
        error: relative error, of the output with data, else of the weight.
        weight: what they stand for, (groups, rows, columns); None without data, where nothing
            depends on it.
    """

    stages: tuple[tuple[np.ndarray, np.ndarray], ...]
    error: float
    weight: np.ndarray | None = None


def nearest_codebook(problem: Problem, table: np.ndarray) -> Codebook:
    """Every weight as the nearest value of `table`, ascending: what is best with H = I."""
    values = problem.weight
    codes = encode(values, table)
    whole = quantization_error(values, np.zeros(1))
    error = quantization_error(values, table) / whole if whole else 0.0
    used = _used(codes.reshape(-1), len(table))
    if not used.all():
        codes, table = (np.cumsum(used) - 1).astype(codes.dtype)[codes], table[used]
    return Codebook(((codes, table),), error)


def _used(codes: np.ndarray, count: int) -> np.ndarray:
    """Which codes occur; in pieces, as counting takes eight bytes a code."""
    used = np.zeros(count, bool)
    for start in range(0, codes.size, _PIECE):
        used |= np.bincount(codes[start : start + _PIECE], minlength=count) > 0
        if used.all():
            break
    return used


def codebook_of_weight(
    problem: Problem, weight: np.ndarray, table: np.dtype[np.floating]
) -> Codebook:
    """One table of the values that `weight`, (groups, rows, columns), takes.

    Args:
        problem: of the weight.
        weight: float64; all values are exact in the table's type.
        table: float32 or float16.
    """
    values = unique_values(np.unique(weight))
    codes = encode(weight, values)
    stages = ((codes, values.astype(table)),)
    return Codebook(stages, problem.relative_error(weight), weight)


def unique_values(table: np.ndarray) -> np.ndarray:
    """The values of a table, ascending, each once; −0 is 0."""
    return np.unique(np.where(table == 0, np.zeros((), table.dtype), table))

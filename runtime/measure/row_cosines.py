"""Cosine similarity of the rows of two outputs: how far directions moved, whatever the lengths."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

_CHUNK: Final = 1 << 18  # elements converted to float64 at a time


class RowCosines:
    """Mean and least cosine similarity of rows along the last axis, over batches."""

    def __init__(self) -> None:
        self._rows = 0
        self._sum, self._least = 0.0, math.inf

    def update(self, ref: np.ndarray, new: np.ndarray) -> None:
        """Add a batch; both arrays have one shape (..., D). Values that are not finite count as 0.

        Two rows of zeros point the same way; a row of zeros is orthogonal to any other.
        """
        if not ref.ndim or not ref.size:
            return
        width = ref.shape[-1]
        left, right = ref.reshape(-1, width), new.reshape(-1, width)
        step = max(1, _CHUNK // width)
        for start in range(0, len(left), step):
            self._add(_finite(left[start : start + step]), _finite(right[start : start + step]))

    def _add(self, a: np.ndarray, b: np.ndarray) -> None:
        products = np.einsum("nd,nd->n", a, b)
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosines = np.clip(products / lengths, -1.0, 1.0)
        cosines[lengths == 0] = 0.0
        cosines[(a == b).all(axis=1)] = 1.0
        self._rows += len(cosines)
        self._sum += float(cosines.sum())
        self._least = min(self._least, float(cosines.min()))

    @property
    def mean(self) -> float | None:
        """Over all rows; None without rows."""
        return self._sum / self._rows if self._rows else None

    @property
    def least(self) -> float | None:
        """Of all rows; None without rows."""
        return self._least if self._rows else None


def _finite(rows: np.ndarray) -> np.ndarray:
    return np.nan_to_num(rows.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)

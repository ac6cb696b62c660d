"""Kullback-Leibler divergence of rows of scores, and how often their largest entry stays the same.

For two rows of scores over the same classes, or the same tokens, the divergence is
Σ p·(log p − log q) in nats (Kullback and Leibler 1951), where p are the reference's probabilities.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

_CHUNK: Final = 1 << 18  # elements converted to float64 at a time
_SUM_TOLERANCE: Final = 1e-2  # how far the sum of probabilities may be from 1
_MIN_LOG: Final = -30.0  # log-probabilities are clipped here: classes at 0 cost nothing
_MAX_MARGINS: Final = 1 << 20  # rows whose margins are kept


class RowDivergences:
    """Divergences of rows along the last axis, over batches."""

    def __init__(self) -> None:
        self._form: str | None = None
        self._rows = self._agreeing = 0
        self._nats, self._largest = 0.0, 0.0
        self._margins: list[np.ndarray] = []
        self._changes = 0.0

    def update(self, ref: np.ndarray, new: np.ndarray) -> None:
        """Add a batch; both arrays have one shape (..., classes), with two classes or more."""
        if not ref.size:
            return
        self._form = self._form or _form(ref)
        width = ref.shape[-1]
        left, right = ref.reshape(-1, width), new.reshape(-1, width)
        step = max(1, _CHUNK // width)
        for start in range(0, len(left), step):
            rows = slice(start, start + step)
            self._add(left[rows].astype(np.float64), right[rows].astype(np.float64))

    @property
    def mean(self) -> float | None:
        """Mean divergence of all rows, in nats; None without rows."""
        return self._nats / self._rows if self._rows else None

    @property
    def largest(self) -> float | None:
        """Largest divergence of a row, in nats; None without rows."""
        return self._largest if self._rows else None

    @property
    def agreement(self) -> float | None:
        """Share of rows whose largest entry is at the same index; None without rows."""
        return self._agreeing / self._rows if self._rows else None

    @property
    def expected_agreement(self) -> float | None:
        """The agreement that margins and their changes let expect; see `Distance`."""
        if not self._rows:
            return None
        from scipy import special  # which only searches need; it takes a while to load

        # a row keeps its class while its margin stays above 0; with margins that move by a normal
        # error of this spread, that has probability Φ(margin / spread)
        margins = np.concatenate(self._margins)
        spread = math.sqrt(self._changes / max(1, len(margins)))
        return float(special.ndtr(margins / spread).mean()) if spread else 1.0

    def _add(self, ref: np.ndarray, new: np.ndarray) -> None:
        rows = np.arange(len(ref))
        self._rows += len(ref)
        self._agreeing += int(np.count_nonzero(ref.argmax(axis=1) == new.argmax(axis=1)))
        if self._form == "logits":
            logs = [_log_softmax(ref), _log_softmax(new)]
        else:
            logs = [np.log(np.maximum(x, np.finfo(float).tiny)) for x in (ref, new)]
        p, q = (np.fmax(x, _MIN_LOG) for x in logs)
        nats = np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0)
        self._nats += float(nats.sum())
        self._largest = max(self._largest, float(nats.max()))
        if sum(map(len, self._margins)) < _MAX_MARGINS:
            # margin: log-odds of the best class against the second, before and after
            second, best = np.argpartition(p, -2, axis=1)[:, -2:].T
            margin, now = (x[rows, best] - x[rows, second] for x in (p, q))
            self._margins.append(margin)
            self._changes += float(np.square(now - margin).sum())


def _form(scores: np.ndarray) -> str:
    """`probabilities`, or `logits`: rows that do not sum to 1."""
    with np.errstate(invalid="ignore"):
        sums = scores.sum(axis=-1, dtype=np.float64)
    is_share = scores.min() >= 0 and np.abs(sums - 1).max() < _SUM_TOLERANCE
    return "probabilities" if is_share else "logits"


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # rows whose scores are all masked
        shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))

"""How far an output diverges from that of another model, as one number that adds up over changes.

For rows of class scores this is the Kullback-Leibler divergence Σ p·(log p − log q), in nats a row
(Kullback and Leibler 1951); for other values Σ(y − ŷ)² / Σy². Effects of small independent changes
add up in both, which a search over changes of single layers relies on.

Owns: the figures that searches go by. Not here: which outputs are class scores (see
`analysis.output_kinds`); what a pass promises (see `promise`), and the
figures shown to the user (see `drift`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from scipy import special

from onnxslim.analysis.output_parts import OutputPart
from onnxslim.records import OutputKind
from onnxslim.runtime.measure.drift import measured_kind
from onnxslim.runtime.measure.row_cosines import RowCosines
from onnxslim.services.calibration import Distance, OutputDistance

_SUM_TOLERANCE: Final = 1e-2  # how far the sum of probabilities may be from 1
_MIN_LOG: Final = -30.0  # log-probabilities are clipped here: classes at 0 cost nothing
_MAX_MARGINS: Final = 1 << 20  # rows whose margins are kept


class DivergenceMeter:
    """Accumulates the figures of `Distance` for one output.

    Args:
        kind: what the values are.
    """

    def __init__(self, kind: OutputKind = OutputKind.VALUES) -> None:
        self._kind = kind
        self._cosines = RowCosines()
        self._rows = self._agreeing = 0
        self._nats = self._signal = self._noise = 0.0
        self._form: str | None = None
        self._margins: list[np.ndarray] = []
        self._changes = 0.0

    def update(self, reference: np.ndarray, found: np.ndarray) -> None:
        """Add a batch. An array of another shape, or a NaN, is infinitely far away."""
        if reference.dtype.kind not in "fiub" and reference.dtype.itemsize != 2:
            return
        if reference.shape != found.shape:
            self._signal, self._noise = 1.0, math.inf
            return
        ref, new = reference.astype(np.float64), found.astype(np.float64)
        differs = (new != ref) & ~(np.isnan(new) & np.isnan(ref))  # masks give equal infinities
        with np.errstate(over="ignore"):
            self._signal += float(np.square(ref[np.isfinite(ref)]).sum())
            self._noise += float(np.square(new[differs] - ref[differs]).sum())
        if not math.isfinite(self._noise):
            return
        self._kind = measured_kind(self._kind, reference)
        if self._kind is OutputKind.EMBEDDING:
            self._cosines.update(ref, new)
        if self._kind is OutputKind.DISCRETE:
            self._rows += ref.size
            self._agreeing += int(np.count_nonzero(ref == new))
        if self._kind is OutputKind.CLASSES and ref.size:
            self._form = self._form or _form(ref)
            self._count(ref.reshape(-1, ref.shape[-1]), new.reshape(-1, ref.shape[-1]))

    @property
    def divergence(self) -> float:
        """See `Distance`."""
        if not math.isfinite(self._noise):
            return math.inf
        if self._rows and self._kind is OutputKind.CLASSES:
            return self._nats / self._rows
        if self._rows:
            return 1 - self._agreeing / self._rows
        return self._noise / self._signal if self._signal else 0.0

    @property
    def agreement(self) -> float | None:
        """See `Distance`."""
        return self._agreeing / self._rows if self._rows else None

    @property
    def expected_agreement(self) -> float | None:
        """See `Distance`."""
        if not self._rows or self._kind is not OutputKind.CLASSES:
            return None
        # a row keeps its class while its margin stays above 0; with margins that move by a normal
        # error of this spread, that has probability Φ(margin / spread)
        margins = np.concatenate(self._margins)
        spread = math.sqrt(self._changes / max(1, len(margins)))
        return float(special.ndtr(margins / spread).mean()) if spread else 1.0

    @property
    def sqnr_db(self) -> float:
        """See `Distance`."""
        if not self._noise:
            return math.inf
        if not math.isfinite(self._noise) or not self._signal:
            return -math.inf
        return 10 * math.log10(self._signal / self._noise)

    @property
    def figures(self) -> OutputDistance:
        """All that floors are held against."""
        far = not math.isfinite(self._noise)
        mean, least = self._cosines.mean, self._cosines.least
        return OutputDistance(
            self._kind,
            self.sqnr_db,
            self.agreement,
            self.expected_agreement,
            0.0 if far and mean is not None else mean,
            0.0 if far and least is not None else least,
        )

    def _count(self, ref: np.ndarray, new: np.ndarray) -> None:
        rows = np.arange(len(ref))
        self._rows += len(ref)
        self._agreeing += int(np.count_nonzero(ref.argmax(axis=1) == new.argmax(axis=1)))
        # Kullback-Leibler divergence of the class probabilities, Σ p·(log p − log q)
        if self._form == "logits":
            logs = [_log_softmax(ref), _log_softmax(new)]
        else:
            logs = [np.log(np.maximum(x, np.finfo(float).tiny)) for x in (ref, new)]
        p, q = (np.fmax(x, _MIN_LOG) for x in logs)
        self._nats += max(0.0, float((np.exp(p) * (p - q)).sum()))
        if sum(map(len, self._margins)) < _MAX_MARGINS:
            # margin: log-odds of the best class against the second, before and after
            second, best = np.argpartition(p, -2, axis=1)[:, -2:].T
            margin, now = (x[rows, best] - x[rows, second] for x in (p, q))
            self._margins.append(margin)
            self._changes += float(np.square(now - margin).sum())


class OutputDivergence:
    """Divergence of one output; of each of its parts where the output is joined from several.

    Args:
        name: of the output.
        parts: of the output; a part holds values.
        kind: of the output that has no parts.

    Attributes:
        meters: one for each part, or a single one for the whole output; by name or label.
    """

    def __init__(self, name: str, parts: Sequence[OutputPart], kind: OutputKind) -> None:
        self._parts = parts
        self.meters = {part.label: DivergenceMeter() for part in parts} or {
            name: DivergenceMeter(kind)
        }

    def update(self, reference: np.ndarray, found: np.ndarray) -> None:
        """Add a batch."""
        if not self._parts or reference.shape != found.shape:
            for item in self.meters.values():
                item.update(reference, found)
            return
        for part in self._parts:
            self.meters[part.label].update(part.of(reference), part.of(found))


def combined_distance(meters: Mapping[str, DivergenceMeter]) -> Distance:
    """The distance of all outputs together."""
    found = {name: item.figures for name, item in meters.items()}
    numbers = [item.sqnr_db for item in found.values() if item.kind is not OutputKind.DISCRETE]
    shares = [item.agreement for item in found.values() if item.agreement is not None]
    expected = [
        item.expected_agreement for item in found.values() if item.expected_agreement is not None
    ]
    return Distance(
        sum(item.divergence for item in meters.values()) / len(meters),
        min(shares, default=None),
        min(expected, default=None),
        min(numbers or (item.sqnr_db for item in found.values())),
        found,
    )


def _form(scores: np.ndarray) -> str:
    """`probabilities`, or `logits`: rows that do not sum to 1."""
    sums = scores.sum(axis=-1)
    is_share = scores.min() >= 0 and np.abs(sums - 1).max() < _SUM_TOLERANCE
    return "probabilities" if is_share else "logits"


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # rows whose scores are all masked
        shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))

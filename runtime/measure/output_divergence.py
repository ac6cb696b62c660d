"""How far an output diverges from that of another model, as one number that adds up over changes.

For rows of scores this is the Kullback-Leibler divergence, in nats a row (see `row_divergences`);
for other values Σ(y − ŷ)² / Σy². Effects of small independent changes add up in both, which a
search over changes of single layers relies on.

Owns: the figures that searches go by. Not here: which outputs are class scores (see
`analysis.output_kinds`); what a pass promises (see `promise`), and the
figures shown to the user (see `drift`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from onnxslim.analysis.output_parts import OutputPart
from onnxslim.records import OutputKind
from onnxslim.runtime.measure.drift import measured_kind
from onnxslim.runtime.measure.padding import split_rows
from onnxslim.runtime.measure.row_cosines import RowCosines
from onnxslim.runtime.measure.row_divergences import RowDivergences
from onnxslim.services.calibration import Distance, OutputDistance


class DivergenceMeter:
    """Accumulates the figures of `Distance` for one output.

    Args:
        kind: what the values are.
    """

    def __init__(self, kind: OutputKind = OutputKind.VALUES) -> None:
        self._kind = kind
        self._cosines = RowCosines()
        self._scores = RowDivergences()
        self._count = self._equal = 0
        self._signal = self._noise = 0.0

    def update(
        self, reference: np.ndarray, found: np.ndarray, counts: np.ndarray | None = None
    ) -> None:
        """Add a batch. An array of another shape, or a NaN, is infinitely far away.

        `counts` are the positions that count; see `padding`.
        """
        if reference.dtype.kind not in "fiub" and reference.dtype.itemsize != 2:
            return
        if reference.shape != found.shape:
            self._signal, self._noise = 1.0, math.inf
            return
        reference, found = (split_rows(array, counts)[0] for array in (reference, found))
        ref, new = reference.astype(np.float64), found.astype(np.float64)
        differs = (new != ref) & ~(np.isnan(new) & np.isnan(ref))  # masks give equal infinities
        with np.errstate(over="ignore"):
            self._signal += float(np.square(ref[np.isfinite(ref)]).sum())
            self._noise += float(np.square(new[differs] - ref[differs]).sum())
        if not math.isfinite(self._noise):
            return
        self._kind = measured_kind(self._kind, reference)
        if self._kind.is_directions:
            self._cosines.update(ref, new)
        elif self._kind.is_scores:
            self._scores.update(ref, new)
        elif self._kind is OutputKind.DISCRETE:
            self._count += ref.size
            self._equal += int(np.count_nonzero(ref == new))

    @property
    def divergence(self) -> float:
        """See `Distance`."""
        if not math.isfinite(self._noise):
            return math.inf
        if self._scores.mean is not None:
            return self._scores.mean
        if self._count:
            return 1 - self._equal / self._count
        return self._noise / self._signal if self._signal else 0.0

    @property
    def agreement(self) -> float | None:
        """See `Distance`."""
        return self._equal / self._count if self._count else self._scores.agreement

    @property
    def expected_agreement(self) -> float | None:
        """See `Distance`."""
        return self._scores.expected_agreement

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
        is_far = not math.isfinite(self._noise)
        is_tokens = self._kind is OutputKind.TOKEN_LOGITS
        cosines = self._cosines.mean, self._cosines.least
        nats = (self._scores.mean, self._scores.largest) if is_tokens else (None, None)
        if is_far:
            cosines = (0.0, 0.0) if self._kind.is_directions else (None, None)
            nats = (math.inf, math.inf) if is_tokens else (None, None)
        return OutputDistance(
            self._kind, self.sqnr_db, self.agreement, self.expected_agreement, *cosines, *nats
        )


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

    def update(
        self, reference: np.ndarray, found: np.ndarray, counts: np.ndarray | None = None
    ) -> None:
        """Add a batch; see `DivergenceMeter.update`."""
        if not self._parts or reference.shape != found.shape:
            for item in self.meters.values():
                item.update(reference, found, counts)
            return
        for part in self._parts:
            self.meters[part.label].update(part.of(reference), part.of(found), counts)


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

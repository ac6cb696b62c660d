"""Drift of an output, accumulated over batches in constant memory.

Sums are float64 whatever the type of the output. Two NaN, or two equal infinities, count as equal;
where only one of two values is finite, the distance is infinite.

Owns: which figures describe a difference. Not here: which differences a pass may cause (see
`promise`).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from onnxslim.records import OutputKind
from onnxslim.report import Drift
from onnxslim.runtime.measure.padding import split_rows
from onnxslim.runtime.measure.row_cosines import RowCosines
from onnxslim.runtime.measure.row_divergences import RowDivergences

_CHUNK: Final = 1 << 18  # elements converted to float64 at a time
_BITS: Final = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class DriftMeter:
    """Drift of one output; feed it with `update`, read it with `result`.

    Args:
        kind: what the values are. Floats that cannot be scores or rows count as values, and types
            that do not round as discrete, whatever is given.

    Attributes:
        lost: number of values that are finite in the reference alone.
        turned: number of values that are NaN or infinite in the reference, and differ from it.
        unequal: number of values whose bits differ (NaN equals NaN), or without a counterpart.
        largest: largest finite absolute value of the reference.
        unmatched: number of values without a counterpart; the caller counts them.
    """

    def __init__(self, kind: OutputKind = OutputKind.VALUES) -> None:
        self._kind = kind
        self._cosines = RowCosines()
        self._divergences = RowDivergences()
        self.count = self.lost = self.turned = self.unequal = 0
        self.largest = 0.0
        self.unmatched = 0
        self._low, self._high = math.inf, -math.inf
        self._max_abs = 0.0
        self._ref2 = self._new2 = self._dot = self._diff2 = 0.0

    def update(self, ref: np.ndarray, new: np.ndarray, counts: np.ndarray | None = None) -> None:
        """Add a batch; both arrays have one shape and dtype.

        `counts` are the positions that count (see `padding`); what a lossless step may do to values
        is held against all.
        """
        self._kind = measured_kind(self._kind, ref)
        self.count += ref.size
        (ref, unread), (new, unread_new) = split_rows(ref, counts), split_rows(new, counts)
        self._count_rows(ref, new)
        self._add_all(ref, new, is_judged=True)
        if unread is not None and unread_new is not None:
            self._add_all(unread, unread_new, is_judged=False)

    def _add_all(self, ref: np.ndarray, new: np.ndarray, *, is_judged: bool) -> None:
        flat_ref, flat_new = ref.reshape(-1), new.reshape(-1)
        for start in range(0, flat_ref.size, _CHUNK):
            rows = slice(start, start + _CHUNK)
            self._add(flat_ref[rows], flat_new[rows], is_judged=is_judged)

    def result(self) -> Drift:
        """The figures so far."""
        broken = bool(self.lost or self.turned)
        return Drift(
            max_abs=math.inf if broken else self._max_abs,
            rel_l2=math.inf if broken else _ratio(self._diff2, self._ref2),
            sqnr_db=-math.inf if broken else _decibel(self._ref2, self._diff2),
            cosine=0.0 if broken else self._cosine(),
            agreement=self._agreement(),
            reference_range=self._high - self._low if self._high >= self._low else 0.0,
            equal_bits=self.unequal == 0,
            unmatched=self.unmatched,
            kind=self._kind,
            mean_cosine=0.0 if broken and self._cosines.mean is not None else self._cosines.mean,
            least_cosine=0.0 if broken and self._cosines.least is not None else self._cosines.least,
            **self._nats(math.inf if broken else None),
        )

    def _nats(self, lost: float | None) -> dict[str, float | None]:
        """Divergences of token logits; `lost` stands for them where values were lost."""
        mean, largest = self._divergences.mean, self._divergences.largest
        if self._kind is not OutputKind.TOKEN_LOGITS or mean is None:
            return {}
        return {"mean_kl": lost or mean, "largest_kl": lost or largest}

    def _agreement(self) -> float | None:
        if self._kind is OutputKind.DISCRETE:
            total = self.count + self.unmatched
            return 1 - self.unequal / total if total else None
        return self._divergences.agreement

    def _cosine(self) -> float:
        if self._diff2 == 0.0:
            return 1.0
        length = math.sqrt(self._ref2) * math.sqrt(self._new2)
        return max(-1.0, min(1.0, self._dot / length)) if length else 0.0

    def _add(self, ref: np.ndarray, new: np.ndarray, *, is_judged: bool) -> None:
        unequal = _unequal_bits(ref, new)
        self.unequal += unequal
        r, n = _as_numbers(ref, new)
        finite = np.isfinite(r) & np.isfinite(n)
        if not finite.all():
            self.lost += int(np.count_nonzero(np.isfinite(r) & ~finite))
            same = (r == n) | (np.isnan(r) & np.isnan(n))
            self.turned += int(np.count_nonzero(~np.isfinite(r) & ~same))
            known = r[np.isfinite(r)]
            r, n = r[finite], n[finite]
        else:
            known = r
        if known.size:
            low, high = float(known.min()), float(known.max())
            self._low, self._high = min(self._low, low), max(self._high, high)
            self.largest = max(self.largest, abs(low), abs(high))
        if unequal and r.size:
            self._max_abs = max(self._max_abs, float(np.abs(n - r).max()))
        if is_judged and r.size:
            self._sum(r, n, differs=unequal > 0)

    def _sum(self, r: np.ndarray, n: np.ndarray, *, differs: bool) -> None:
        ref2 = float(np.dot(r, r))
        self._ref2 += ref2
        if not differs:
            self._new2 += ref2
            self._dot += ref2
            return
        gap = n - r
        self._new2 += float(np.dot(n, n))
        self._dot += float(np.dot(r, n))
        self._diff2 += float(np.dot(gap, gap))

    def _count_rows(self, ref: np.ndarray, new: np.ndarray) -> None:
        """Directions of rows, and divergences and answers of rows of scores."""
        if self._kind.is_directions:
            self._cosines.update(ref, new)
        elif self._kind.is_scores:
            self._divergences.update(ref, new)


def measured_kind(kind: OutputKind, output: np.ndarray) -> OutputKind:
    """The kind that an array of an output allows, where `kind` is what the graph or a user says."""
    if not is_floating(output.dtype):
        return OutputKind.DISCRETE
    is_complex = output.dtype.kind == "c"
    if kind is OutputKind.DISCRETE or is_complex or not output.ndim or output.shape[-1] < 2:
        return OutputKind.VALUES
    return kind


def is_floating(dtype: np.dtype) -> bool:
    """Whether values of this type round."""
    return dtype.kind in "fc" or (dtype.isbuiltin == 2 and "int" not in dtype.name)


def _unequal_bits(ref: np.ndarray, new: np.ndarray) -> int:
    if ref.dtype.kind == "O":
        return int(np.count_nonzero(ref != new))
    bits = _BITS.get(ref.dtype.itemsize)
    if bits is None:  # complex128
        return _unequal_bits(ref.view(np.float64), new.view(np.float64))
    differs = ref.view(bits) != new.view(bits)
    if not differs.any():
        return 0
    if ref.dtype.kind not in "iub":  # `x != x` only where x is NaN
        differs &= ~((ref != ref) & (new != new))
    return int(np.count_nonzero(differs))


def _as_numbers(ref: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if ref.dtype.kind == "O":  # strings: 1 where equal, so that distances count the others
        return np.ones(ref.size), (ref == new).astype(np.float64)
    if ref.dtype.kind == "c":
        width = np.float32 if ref.dtype.itemsize == 8 else np.float64
        ref, new = ref.view(width), new.view(width)
    with np.errstate(invalid="ignore"):  # a signalling NaN, in memory that nothing wrote
        return ref.astype(np.float64), new.astype(np.float64)


def _ratio(diff2: float, ref2: float) -> float:
    if diff2 == 0.0:
        return 0.0
    return math.sqrt(diff2 / ref2) if ref2 else math.inf


def _decibel(ref2: float, diff2: float) -> float:
    if diff2 == 0.0:
        return math.inf
    return 10.0 * math.log10(ref2 / diff2) if ref2 else -math.inf

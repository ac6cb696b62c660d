"""Sums over the inputs and outputs of weight layers, and the moments that follow from them.

Layers that read the same tensor in the same way share the sums over its rows x: Σ x, Σ x ⊗ x and
what gives the scatter of x ⊗ x. With a reference model, each layer adds the sums over the outputs y
that its counterpart there returns: Σ y, Σ y² and Σ y ⊗ x.

Products are computed in float64 up to 1024 features, in float32 above (see `products`).

Owns: what is summed, and the memory that it takes. Not here: running models (see `moments`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final

import numpy as np

from onnxslim.analysis.layers import WeightLayer
from onnxslim.analysis.linear_operators import Unfolding
from onnxslim.records import Skip
from onnxslim.runtime.probes.products import CrossSum, FourthSum, SecondSum
from onnxslim.runtime.probes.unfold import UnfoldedRows
from onnxslim.services.moments import BlockDiagonal, LayerMoments, Second
from onnxslim.solvers.threads import threads_for

_EXACT_FEATURES: Final = 1024  # up to here products are computed in float64
_CHUNK_ITEMS: Final = 1 << 22  # elements of a chunk of rows
_ENOUGH_ROWS: Final = 1024  # rows whose product takes longer than adding it to the sum
_CHEAP_PRODUCTS: Final = 1 << 24  # multiplications for one sample and layer that cost little
_ROWS_EACH: Final = 200  # rows in all, for each feature
_MIN_ROWS: Final = 20000  # rows in all


@dataclass(frozen=True)
class MomentLimits:
    """Limits on the memory and the work that moments take.

    Attributes:
        budget_bytes: size of all sums held at once; the sums of a single layer may exceed it.
        max_features: above this, H is kept as a block-diagonal matrix of blocks up to this size.
        patches: rows of one sample to use, drawn with the seed; more where rows are short (as long
            as features² · rows stays below 2^24).
        samples: number of samples, where known: each then contributes only its share of
            `_ROWS_EACH` rows a feature.
    """

    budget_bytes: int = 2 << 30
    max_features: int = 16384
    patches: int = 256
    samples: int | None = None


SourceKeys = tuple[str | None, ...]
"""Keys of exposed tensors, see `WeightLayer.sources`."""


def sum_bytes(group: list[WeightLayer], limits: MomentLimits, *, with_cross: bool) -> int:
    """Memory of the sums of layers that read one tensor; `with_cross`: with a reference model."""
    first = group[0]
    slices = _blocks(first.columns, limits.max_features)
    widths: list[int] = [at.stop - at.start for at in slices]
    items = first.groups * sum(width**2 for width in widths)
    if with_cross:
        items += sum(layer.size for layer in group)
    return items * 8


def _blocks(features: int, largest: int) -> list[slice]:
    """Near-equal ranges that cover all features, none longer than `largest`."""
    count = -(-features // largest)
    edges = [round(i * features / count) for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


@dataclass
class OutputSums:
    """Sums over the outputs y of one layer of the reference model.

    Attributes:
        layer: of the changing model.
        keys: of the tensors that y comes from: the output, or the sources of the layer where y is a
            term inside of the operator.
        unfolding: of the layer of the reference model.
        weight: what multiplies the vectors x of the sources, (groups, rows, columns); None where
            the output is y.
        bias: to be taken off, (groups, rows).
    """

    layer: WeightLayer
    keys: SourceKeys
    unfolding: Unfolding
    weight: np.ndarray | None
    bias: np.ndarray
    cross: CrossSum
    total: np.ndarray
    squares: np.ndarray


@dataclass
class InputSums:
    """Sums over the inputs x of the layers that read one tensor in the same way."""

    layers: list[WeightLayer]
    keys: SourceKeys
    limits: MomentLimits
    outputs: list[OutputSums] = field(default_factory=list)
    count: int = 0
    seen: int = 0
    thinned: bool = False
    _waiting: list[list[np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        first = self.layers[0]
        self.unfolding = first.unfolding
        self.slices = _blocks(first.columns, self.limits.max_features)
        self.total = np.zeros((first.groups, first.columns))
        widths = [s.stop - s.start for s in self.slices]
        self.exact = max(widths) <= _EXACT_FEATURES
        self.seconds = [SecondSum(first.groups, width, exact=self.exact) for width in widths]
        self.fourths = [FourthSum(first.groups, width) for width in widths]

    def cap(self) -> int:
        """The most rows of one sample to use."""
        columns = self.layers[0].columns
        cap = max(self.limits.patches, _CHEAP_PRODUCTS // (self.layers[0].groups * columns**2))
        if self.limits.samples is None:
            return cap
        return min(cap, -(-max(_ROWS_EACH * columns, _MIN_ROWS) // self.limits.samples))

    def add(self, rows: UnfoldedRows, outputs: Sequence[UnfoldedRows], index: np.ndarray) -> None:
        """Accumulate the rows at `index`, a chunk at a time; few rows wait for others."""
        width = rows.features + sum(source.features for source in outputs)
        size = max(1, _CHUNK_ITEMS // (width * rows.groups))
        for start in range(0, len(index), size):
            part = index[start : start + size]
            # (g, rows, features), and (g, rows, outputs) of each layer
            taken = [rows.take(part), *(source.take(part) for source in outputs)]
            self._waiting.append(taken)
            if sum(found[0].shape[1] for found in self._waiting) >= min(size, _ENOUGH_ROWS):
                self._flush()
        self.count += len(index)

    def _flush(self) -> None:
        """Add what waits. A product of few rows costs as much as its sum is large."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        x, *wished = (
            parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
            for parts in zip(*waiting, strict=True)
        )
        del waiting
        dtype = self.seconds[0].dtype
        x = x.astype(dtype, copy=False)
        # `results` reports values that are not finite
        with threads_for(x.shape[2]), np.errstate(over="ignore", invalid="ignore"):
            self._add_inputs(x)
            for output, y in zip(self.outputs, wished, strict=True):
                output.cross.add(y.astype(dtype, copy=False), x)
                output.total += y.sum(axis=1, dtype=np.float64)
                output.squares += np.square(y, dtype=np.float64).sum(axis=1)

    def _add_inputs(self, x: np.ndarray) -> None:
        self.total += x.sum(axis=1, dtype=np.float64)
        for at, second, fourth in zip(self.slices, self.seconds, self.fourths, strict=True):
            second.add(x[:, :, at])
            fourth.add(x[:, :, at])

    def results(self) -> Iterator[LayerMoments | Skip]:
        """The moments of every layer."""
        self._flush()
        outputs: Sequence[OutputSums | None] = self.outputs or [None] * len(self.layers)
        finite, seconds, scatters = self._finished()
        made: list[LayerMoments | Skip] = []
        for layer, output in zip(self.layers, outputs, strict=True):
            if not self.count:
                made.append(Skip(layer.name, "no calibration sample reaches it"))
            elif not finite or (output is not None and not np.isfinite(output.squares).all()):
                why = "its input or output is not finite on calibration data"
                made.append(Skip(layer.name, why))
            else:
                made.append(self._moments(layer, output, seconds, scatters))
        del seconds  # so that the receiver alone decides how long the matrices live
        while made:
            yield made.pop(0)

    def _finished(self) -> tuple[bool, tuple[Second, ...], tuple[np.ndarray, np.ndarray]]:
        """Whether all sums are finite; H of each group; its scatter about zero and the mean."""
        totals = [second.total() for second in self.seconds]
        finite = np.isfinite(self.total).all() and all(np.isfinite(s).all() for s in totals)
        if not self.count or not finite:
            return bool(finite), (), (np.zeros(0), np.zeros(0))
        for total in totals:
            total /= self.count
            total.flags.writeable = False
        mean = self.total / self.count
        scatters = self._scatter(totals, np.zeros_like(mean)), self._scatter(totals, mean)
        return True, self._seconds(totals), scatters

    def _seconds(self, totals: Sequence[np.ndarray]) -> tuple[Second, ...]:
        if len(totals) == 1:
            return tuple(totals[0])
        groups = range(self.layers[0].groups)
        return tuple(BlockDiagonal(tuple(t[group] for t in totals)) for group in groups)

    def _scatter(self, seconds: Sequence[np.ndarray], mean: np.ndarray) -> np.ndarray:
        """See `LayerMoments.scatter`, of x − `mean`."""
        parts = zip(self.slices, self.fourths, seconds, strict=True)
        return np.array([f.scatter(self.count, s, mean[:, at]) for at, f, s in parts])

    def _moments(
        self,
        layer: WeightLayer,
        output: OutputSums | None,
        seconds: tuple[Second, ...],
        scatters: tuple[np.ndarray, np.ndarray],
    ) -> LayerMoments:
        mean = self.total / self.count
        known = LayerMoments(
            layer.name,
            seconds,
            mean,
            self.count,
            notes=self._notes(),
            scatter=scatters[0],
            centered_scatter=scatters[1],
        )
        if output is None:
            return known
        bias = output.bias
        raw = output.total / self.count
        # targets are W·x without the bias b: E[(y − b)xᵀ] = E[yxᵀ] − b·E[x]ᵀ and
        # E[(y − b)²] = E[y²] − 2b·E[y] + b²
        cross = output.cross.total()  # large: of a head as large as its table
        cross /= self.count
        if bias.any():
            cross -= bias[:, :, None] * mean[:, None, :]
        energy = output.squares / self.count - 2 * bias * raw + bias**2
        return replace(known, cross=cross, goal=raw - bias, energy=energy)

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if len(self.slices) > 1:
            notes.append(
                f"moments of {self.layers[0].columns} features are kept in {len(self.slices)} "
                "blocks; what links the blocks is left out"
            )
        if self.thinned:
            notes.append(f"{self.count} of {self.seen} positions were looked at")
        return tuple(notes)

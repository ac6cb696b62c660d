"""The offers of a layer: zeros and table values, with the bytes and the error that they bring.

An offer is a share of weights kept and a number of table values. Its error is that of the layer's
output, times how much of such an error reaches the model's output, as `error_gain` measures it;
small errors of different layers add up. One price of a byte for all layers then gives the best
allocation, an offer for each layer (see `spend`): no byte could move from one layer to another and
lower the error.

Offers are estimates, from a sample of rows and on the original inputs. They say which allocation to
try; its effect is measured on the model that it makes (see `allocation_search`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from onnxslim.analysis.layers import WeightLayer
from onnxslim.lossy.codebook_pass import Layout, why_not_smaller
from onnxslim.lossy.error_gain import sensitivity
from onnxslim.lossy.problems import Problem
from onnxslim.packing.radix import bits_per_code
from onnxslim.pipeline.passes import Context
from onnxslim.solvers.feedback import round_with_feedback
from onnxslim.solvers.kmeans.assignment import encode
from onnxslim.solvers.kmeans.levels import cluster
from onnxslim.solvers.kmeans.lloyd import TableInit
from onnxslim.solvers.masks import Saliency, saliencies
from onnxslim.solvers.metric import Metric
from onnxslim.solvers.surgeon import elimination_path
from onnxslim.solvers.tables import Table

KEPT_SHARES: Final = (1.0, 0.7, *(round(float(k), 3) for k in np.geomspace(0.5, 0.02, 15)))
VALUES: Final = (3, 4, 5, 6, 8, 12, 16, 32)  # of a table, zero among them
DENSE_VALUES: Final = (2, 3, 4, 6, 8, 12, 16, 32, 64, 256)  # for weights without zeros
_SAMPLE_FLOPS: Final = 1e10
_SAMPLE_VALUES: Final = 4096  # weights from which a table is made
_EXACT_VALUES: Final = 8  # tables up to this size are found exactly
_MIN_COLUMNS: Final = 16  # with fewer columns, or fewer weights, zeros cost more than they save
_MIN_WEIGHTS: Final = 256
_TABLE_BYTES: Final = 4  # a value
_TRIAL_ERROR: Final = 0.02  # relative error of the offer by which sensitivity is measured


@dataclass(frozen=True)
class Offer:
    """One way to compress a layer.

    Attributes:
        keep: share of weights that are not zero.
        values: of a table, zero among them; None: the weight stays as it is.
        cost: bytes.
        error: divergence of the model's output.
    """

    keep: float
    values: int | None
    cost: float
    error: float


Allocation = dict[str, Offer]
"""An offer for each layer, by its name."""


def offers_of(problem: Problem, context: Context, *, packed: bool) -> tuple[Offer, ...]:
    """The offers of one weight; the first is to stay as it is.

    Args:
        problem: with data, aiming at its own output.
        context: for trials.
        packed: whether codes are counted by their entropy, as in a packed file, or by the bits
            they take in an .onnx file, where zeros bring nothing.
    """
    sample = _Sample(problem, context.seed)
    offers = [Offer(1.0, None, float(problem.layer.holder.nbytes), 0.0)]
    trial: np.ndarray | None = None
    for weight, inverse in sample.path():
        if not weight.any():
            continue
        error = sample.pruning_error(weight)
        offers += [
            sample.offer(weight, inverse, error, count, packed=packed)
            for count in (VALUES if error > 0 else DENSE_VALUES)
            if _is_stored(problem.layer, weight, count)
        ]
        if trial is None and error >= _TRIAL_ERROR:
            trial = sample.full(weight)
    if trial is None:
        trial = sample.full(sample.rounded(4))
    gain = sensitivity(context, problem, trial)
    return tuple(replace(offer, error=gain * offer.error) for offer in offers)


def _is_stored(layer: WeightLayer, weight: np.ndarray, count: int) -> bool:
    """Whether `cluster-weights` would take a table of `count` values for (some rows of) a weight.

    After `prune-weights` that may be a sparse initializer, if it takes fewer bytes.
    """
    nbytes = Layout(count).nbytes(layer)
    density = np.count_nonzero(weight) / weight.size
    index_bytes = -(-layer.size.bit_length() // 7)  # a varint
    each = layer.holder.dtype.itemsize
    is_sparse = density * (each + index_bytes) < each
    return why_not_smaller(layer, nbytes, is_sparse=is_sparse) is None


class _Sample:
    """Some rows of a problem, from which the errors of all rows are estimated."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem = problem
        layer = problem.layer
        self.group = int(np.argmax([np.square(target).sum() for target in problem.target]))
        target = problem.target[self.group]
        self.metric: Metric = problem.metrics[self.group]
        count = len(target)
        affordable = int(_SAMPLE_FLOPS / (0.5 * layer.columns**3))
        self.rows = np.arange(count)
        if affordable < count:
            rng = np.random.default_rng(seed)
            self.rows = np.sort(rng.choice(count, min(count, max(4, affordable)), replace=False))
        self.target = target[self.rows]
        own = float(self.metric.cost_by_row(self.target).sum())
        self.energy = max(own, 1e-300)
        self.share = layer.size / self.target.size
        self.ratios: dict[int, float] = {}

    def path(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Weights with ever more zeros, each with the reciprocal costs of moving single weights."""
        layer = self.problem.layer
        if layer.columns < _MIN_COLUMNS or layer.size < _MIN_WEIGHTS:
            yield self.target, np.broadcast_to(self.metric.inverse_diagonal, self.target.shape)
            return
        keeps = [max(1, round(keep * self.target.size)) for keep in KEPT_SHARES]
        if len(self.metric.blocks) == 1 and self._is_affordable():
            yield from elimination_path(self.target, self.metric, keeps)
            return
        cost = saliencies(self.target, self.metric, Saliency.OBD)
        order = np.argsort(-cost, axis=None)
        for keep in keeps:
            weight = self.target.copy().reshape(-1)
            weight[order[keep:]] = 0.0
            weight = weight.reshape(self.target.shape)
            yield (
                weight,
                np.where(weight != 0, 1 / np.maximum(self.metric.diagonal, 1e-300), np.inf),
            )

    def _is_affordable(self) -> bool:
        return len(self.rows) * self.problem.layer.columns**3 < 4 * _SAMPLE_FLOPS

    def pruning_error(self, weight: np.ndarray) -> float:
        """Relative output error of the zeros alone."""
        return float(self.metric.cost_by_row(self.target - weight).sum()) / self.energy

    def offer(
        self, weight: np.ndarray, inverse: np.ndarray, error: float, count: int, *, packed: bool
    ) -> Offer:
        """The offer of `weight` rounded to a table of `count` values; its error is relative."""
        kept = weight != 0
        dense = bool(kept.all())
        values = weight[kept]
        costs = 1 / inverse[kept]
        table = self._table(values, count - (not dense), costs)
        codes = encode(values, table)
        moved = float((costs * np.square(values - table[codes])).sum()) / self.energy
        rounding = moved * self._ratio(count)
        counts = np.bincount(codes, minlength=len(table)).astype(float)
        symbols = counts if dense else np.append(counts, weight.size - len(values))
        plain = weight.size * bits_per_code(count)
        coded = _entropy_bits(symbols) if packed else plain
        size = coded / 8 * self.share + _TABLE_BYTES * len(symbols)
        return Offer(len(values) / weight.size, count, size, error + rounding)

    def _ratio(self, count: int) -> float:
        """Error of rounding with feedback, as a share of the error without feedback."""
        if count not in self.ratios:
            costs = 1 / np.broadcast_to(self.metric.inverse_diagonal, self.target.shape)
            table = self._table(self.target, count, costs)
            single = float(
                (costs * np.square(self.target - table[encode(self.target, table)])).sum()
            )
            rounded = round_with_feedback(self.target, self.metric, Table.of(table))
            found = float(self.metric.cost_by_row(self.target - rounded).sum())
            self.ratios[count] = found / single if single > 0 else 1.0
        return self.ratios[count]

    def _table(self, values: np.ndarray, count: int, costs: np.ndarray) -> np.ndarray:
        """A table for `values`, made from some of them."""
        values, costs = values.reshape(-1), np.reshape(costs, -1)
        step = -(-len(values) // _SAMPLE_VALUES)
        start = TableInit.OPTIMAL if count <= _EXACT_VALUES else TableInit.DENSITY
        return cluster(values[::step], count, costs[::step], start=start)

    def rounded(self, count: int) -> np.ndarray:
        """The rows rounded to a table of `count` values."""
        table = cluster(self.target, count)
        return round_with_feedback(self.target, self.metric, Table.of(table))

    def full(self, weight: np.ndarray) -> np.ndarray:
        """The whole weight with the sample's rows replaced by `weight`."""
        whole = np.array(self.problem.target)
        whole[self.group, self.rows] = weight
        return whole


def _entropy_bits(counts: np.ndarray) -> float:
    """Bits of all symbols together, coded by their own frequencies."""
    used = counts[counts > 0]
    return float(-(used * np.log2(used / used.sum())).sum())

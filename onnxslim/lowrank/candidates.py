"""The splits that a layer could get: methods and ranks with errors, weights, work and run times.

`Fit` is a decomposition of a whole weight, all groups alike; `Candidate` is one choice of method
and ranks; `SplitCosts` holds the costs of a layer, whole and split. Time is measured: the whole
layer and the split layer, each a small model of the real shapes, run in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import prod
from typing import Final

import numpy as np
import onnx

from onnxslim.analysis.layer_models import (
    LayerOp,
    StaticShape,
    count_macs,
    count_weights,
    input_shape,
    small_model,
)
from onnxslim.analysis.layers import WeightLayer
from onnxslim.analysis.linear_operators import ConvPatches
from onnxslim.graph.operands import const_value, is_present
from onnxslim.lossy.problems import Problem
from onnxslim.lowrank.pieces import OUTPUT, pieces_of
from onnxslim.report import LatencyPair
from onnxslim.services.stopwatch import Stopwatch
from onnxslim.solvers.decompositions.base import (
    Decomposition,
    Diverges,
    Factors,
    KernelShape,
    Ranks,
)
from onnxslim.solvers.decompositions.closed_form import Tucker2
from onnxslim.solvers.decompositions.methods import METHODS

_TERMS: Final = frozenset({"flattened", "depthwise"})  # whose rank counts terms: nothing to align
_BUDGET_RANKS: Final = 8  # ranks that are tried for a budget
_ITERATED: Final = frozenset({"cp", "flattened"})  # where each rank is a search of its own
_SHARES: Final = (0.3, 0.5, 0.7)  # of the allowed error that tucker2 spends on its input channels


@dataclass(frozen=True)
class Candidate:
    """One way to split a layer.

    Attributes:
        method: of `tensor_decompositions`.
        ranks: one number, for tucker2 two: of outputs and of inputs.
        added: what it adds to the relative error of the output (of the weight, without data).
    """

    method: str
    ranks: Ranks
    added: float

    def __str__(self) -> str:
        return f"{self.method}/{'x'.join(map(str, self.ranks))}"


class Fit:
    """A weight decomposed by one method.

    Args:
        problem: the weight.
        method: one of `METHODS`.
        most: the highest rank that will be asked for; None: any.
        seed: of random starts.
    """

    def __init__(self, problem: Problem, method: str, most: int | None, seed: int) -> None:
        self.problem, self.method, self.most = problem, method, most
        self.shape = kernel_shape(problem.layer)
        self.kind: type[Decomposition] = METHODS[method]
        self.full: Ranks = self.kind.exact_ranks(self.shape)
        self.parts = [
            self.kind(target, metric, self.shape, max_rank=most, seed=seed)
            for target, metric in zip(problem.target, problem.metrics, strict=True)
        ]

    @cached_property
    def whole(self) -> float:
        """E‖y‖², or ‖W‖² without data; relative errors are shares of it."""
        energy = self.problem.energy
        if energy is None:
            energy = float(np.square(self.problem.target).sum())
        return max(energy, 1e-300)

    def error(self, ranks: Ranks) -> float:
        """The relative error that these ranks add.

        Raises:
            Diverges: the decomposition does not settle.
        """
        return sum(part.error(ranks) for part in self.parts) / self.whole

    def candidate(self, ranks: Ranks) -> Candidate:
        """These ranks with their error.

        Raises:
            Diverges: the decomposition does not settle.
        """
        return Candidate(self.method, ranks, self.error(ranks))

    def factors(self, ranks: Ranks) -> Factors:
        """Factors with the axis of groups in front."""
        found = [part.factors(ranks) for part in self.parts]
        return tuple(np.stack(items) for items in zip(*found, strict=True))

    def product(self, factors: Factors) -> np.ndarray:
        """The product of the factors, (groups, rows, columns)."""
        groups = range(len(self.parts))
        return np.stack(
            [self.kind.product(self.shape, tuple(f[g] for f in factors)) for g in groups]
        )


def kernel_shape(layer: WeightLayer) -> KernelShape:
    """One group of a layer; Gemm and MatMul have a kernel of one position."""
    kernel = layer.unfolding.kernel if isinstance(layer.unfolding, ConvPatches) else (1,)
    channels = layer.columns // int(np.prod(kernel))
    return KernelShape(layer.rows, channels, tuple(kernel))


# ---------------------------------------------------------------------------- which ranks


@dataclass(frozen=True)
class RankRange:
    """The ranks at which a method leaves few enough weights.

    Attributes:
        shape: of the kernel of a group.
        method: one of `METHODS`.
        align: ranks are multiples of this, or powers of two below.
        most_weights: of a group, all factors together.
    """

    shape: KernelShape
    method: str
    align: int
    most_weights: int

    def weights(self, ranks: Ranks) -> int:
        """Weights of a group."""
        sizes = METHODS[self.method].factor_shapes(self.shape, ranks)
        return sum(int(np.prod(size)) for size in sizes)

    def aligned(self, rank: int, full: int) -> int:
        """`rank` rounded up to a multiple that runs fast, but to no more than `full`."""
        if self.method in _TERMS:
            return min(rank, full)
        if rank < self.align:
            return min(1 << (rank - 1).bit_length(), self.align, full)
        return min(-(-rank // self.align) * self.align, full)

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """All ranks of a method of one rank that take few enough weights, rising."""
        full = METHODS[self.method].exact_ranks(self.shape)[0]
        found = dict.fromkeys(self.aligned(rank, full) for rank in range(1, full + 1))
        return tuple(rank for rank in found if self.weights((rank,)) <= self.most_weights)

    def some(self, count: int = _BUDGET_RANKS) -> tuple[int, ...]:
        """At most `count` of `steps`, in even ratios."""
        steps = self.steps
        if len(steps) <= count:
            return steps
        wished = np.geomspace(steps[0], steps[-1], count)
        return tuple(dict.fromkeys(min(steps, key=lambda s: abs(s - w)) for w in wished))

    def pairs(self) -> list[Ranks]:
        """A few pairs of ranks for tucker2, few enough in weights."""
        outputs, inputs = METHODS["tucker2"].exact_ranks(self.shape)
        sides = []
        for full in (outputs, inputs):
            wished = np.geomspace(max(1, full / 8), full, 6)
            sides.append(dict.fromkeys(self.aligned(round(w), full) for w in wished))
        return [pair for pair in product(*sides) if self.weights(pair) <= self.most_weights]


def least_within(fit: Fit, rank_range: RankRange, allowed: float) -> list[Ranks]:
    """The least ranks with which the relative error stays within `allowed`; [] where none does.

    Raises:
        Diverges: the decomposition does not settle.
    """
    if isinstance(fit.parts[0], Tucker2):
        return _least_pairs(fit, rank_range, allowed)
    steps = rank_range.some(4) if fit.method in _ITERATED else rank_range.steps
    low, high = 0, len(steps)  # errors fall with the rank
    while low < high:
        middle = (low + high) // 2
        if fit.error((steps[middle],)) <= allowed:
            high = middle
        else:
            low = middle + 1
    return [(steps[low],)] if low < len(steps) else []


def _least_pairs(fit: Fit, rank_range: RankRange, allowed: float) -> list[Ranks]:
    parts = [part for part in fit.parts if isinstance(part, Tucker2)]
    limit = allowed * fit.whole / len(parts)
    outputs, inputs = fit.full
    found: dict[Ranks, None] = {}
    for share in _SHARES:
        q = rank_range.aligned(max(part.input_rank(share * limit) for part in parts), inputs)
        p = rank_range.aligned(max(part.output_rank(q, limit) for part in parts), outputs)
        if rank_range.weights((p, q)) <= rank_range.most_weights and fit.error((p, q)) <= allowed:
            found[p, q] = None
    return list(found)


def candidates_for_budget(fit: Fit, rank_range: RankRange) -> list[Candidate]:
    """A few ranks of a method, those left out that cost more and bring less than another.

    Raises:
        Diverges: the decomposition settles at no rank.
    """
    if fit.method == "tucker2":
        wished = rank_range.pairs()
    else:
        wished = [(r,) for r in rank_range.some(4 if fit.method in _ITERATED else _BUDGET_RANKS)]
    found: list[tuple[int, Candidate]] = []
    diverged = None
    for ranks in wished:
        try:
            found.append((rank_range.weights(ranks), fit.candidate(ranks)))
        except Diverges as error:
            diverged = error
    if not found and diverged is not None:
        raise diverged
    found.sort(key=lambda item: (item[0], item[1].added))
    kept: list[Candidate] = []
    for _, candidate in found:
        if not kept or candidate.added < 0.95 * kept[-1].added:
            kept.append(candidate)
    return kept[-2 * _BUDGET_RANKS :]


# ---------------------------------------------------------------------------- what it takes


@dataclass
class SplitCosts:
    """What the layers of a problem take, as they are and split.

    Attributes:
        problem: one weight with all layers that use it.
        shapes: of tensors, by name, on the inputs that latency is measured on.
        stopwatch: None: work is counted instead.
        opset: of the model.
    """

    problem: Problem
    shapes: Mapping[str, StaticShape]
    stopwatch: Stopwatch | None
    opset: int
    _models: dict[str, tuple[onnx.ModelProto, ...] | None] = field(default_factory=dict)

    @cached_property
    def has_shapes(self) -> bool:
        """Whether the size of every input is known."""
        return all(self._x_shape(layer) is not None for layer in self.problem.layers)

    def macs(self, candidate: Candidate | None) -> int | None:
        """Multiply-accumulates; of the layers as they are for None."""
        models = self.models(candidate)
        if models is None:
            return None
        counts = [count_macs(model) for model in models]
        return None if None in counts else sum(count or 0 for count in counts)

    def nbytes(self, candidate: Candidate | None) -> int:
        """Bytes of the weight, or of its factors."""
        if candidate is None:
            return self.problem.layer.holder.nbytes
        pieces = self._ops(self.problem.layer, candidate)
        extra = sum(prod(shape) for shape in pieces[-1].weights[1:])  # the bias is there already
        return (count_weights(pieces) - extra) * int(self.problem.layer.holder.dtype.itemsize)

    def models(self, candidate: Candidate | None) -> tuple[onnx.ModelProto, ...] | None:
        """A small model for each layer; None where a shape is unknown."""
        key = str(candidate)
        if key not in self._models:
            found = []
            for layer in self.problem.layers:
                x = self._x_shape(layer)
                if x is None:
                    break
                ops = self._original(layer) if candidate is None else self._ops(layer, candidate)
                found.append(small_model(x, ops, dtype=layer.holder.dtype))
            complete = len(found) == len(self.problem.layers)
            self._models[key] = tuple(found) if complete else None
        return self._models[key]

    def timed(self, candidates: Sequence[Candidate]) -> list[tuple[LatencyPair, ...]]:
        """For each candidate, each layer as it is against the layer split, in turn."""
        assert self.stopwatch is not None
        before = self.models(None)
        after = [self.models(candidate) for candidate in candidates]
        assert before is not None
        rows = [
            self.stopwatch.compare(base, [models[number] for models in after if models])
            for number, base in enumerate(before)
        ]
        return list(zip(*rows, strict=True))

    # ------------------------------------------------------------------ inside

    def _x_shape(self, layer: WeightLayer) -> StaticShape | None:
        shapes = {} if layer.bodies else self.shapes
        return input_shape(layer.data_tensor, shapes, is_timed=self.stopwatch is not None)

    def _bias_shape(self, layer: WeightLayer) -> tuple[StaticShape, ...]:
        if layer.bias is None or not is_present(layer.node, layer.bias):
            return ()
        stored = const_value(layer.node.inputs[layer.bias])
        return ((layer.groups * layer.rows,) if stored is None else tuple(stored.shape),)

    def _original(self, layer: WeightLayer) -> list[LayerOp]:
        inputs: list[str | StaticShape] = ["x", "x"]
        inputs[layer.weight] = tuple(int(size) for size in layer.holder.stored.shape)
        attrs = dict(layer.node.attrs)
        return [LayerOp(layer.node.op, (*inputs, *self._bias_shape(layer)), OUTPUT, attrs)]

    def _ops(self, layer: WeightLayer, candidate: Candidate) -> list[LayerOp]:
        shape = kernel_shape(layer)
        sizes = METHODS[candidate.method].factor_shapes(shape, candidate.ranks)
        zero = np.zeros((), layer.holder.dtype)
        factors = [np.broadcast_to(zero, (layer.groups, *size)) for size in sizes]
        ops = [p.as_op() for p in pieces_of(layer, candidate.method, factors, self.opset)]
        last = ops[-1]
        bias = self._bias_shape(layer)
        return [*ops[:-1], LayerOp(last.op, (*last.inputs, *bias), last.output, last.attrs)]

"""How far the outputs of a model move when only rounding changes.

Sums in another order round differently. Most models hardly notice; but a model that ends in TopK,
NonMaxSuppression or ArgMax over near ties, or that divides by almost nothing, can return other
boxes. A lossless rewrite of such a model moves its outputs beyond any tolerance, as the next
version of onnxruntime may. So before a rewrite is rejected, the input model itself is measured
twice: with onnxruntime's optimisations off instead of on, and with inputs off by one unit in the
last place. Integer inputs cannot be off by so little: where there are some, the weights are moved
instead. Whole numbers among them stay, because exponents, counts and thresholds are exact.

onnxruntime computes many operators on float16 in float32, and rounds to float16 only in front of
the others. Which results are rounded depends on what stands beside them, so an edit that computes
the same can move bits near it (`rounds_between_operators`). What that does to the outputs is seen
where every result is rounded (`rounded_everywhere`).

Owns: which perturbations count as rounding. Not here: tolerances (see `promise`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import ml_dtypes
import numpy as np

from onnxslim.graph.ir import Constant, to_onnx_dtype, walk_graphs
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.runtime.measure.comparing import measure_drift
from onnxslim.runtime.measure.drift import DriftMeter, is_floating
from onnxslim.runtime.samples.stream import Sample
from onnxslim.runtime.session import Outputs, Session, TensorInfo

FACTOR: Final = 4.0  # a rewrite may move an output by this many times its rounding noise
_HALVES: Final = frozenset(map(np.dtype, (np.float16, ml_dtypes.bfloat16)))
_HALF_CODES: Final = frozenset(map(to_onnx_dtype, _HALVES))
_NUDGES: Final = 2  # random perturbations of the inputs


class RoundingNoise:
    """Drift of each output of a model under changes of rounding alone.

    Attributes:
        changes_shape: whether rounding changes the shape of an output (as NonMaxSuppression can).
    """

    def __init__(self) -> None:
        self.changes_shape = False
        self._meters: list[Mapping[str, DriftMeter]] = []

    def add(self, session: Session, runs: Iterable[Sample], reference: Sequence[Outputs]) -> None:
        """Measure one perturbation: outputs of `session` on `runs`, against `reference`."""
        meters, broken = measure_drift(session, runs, (reference,))
        self.changes_shape = self.changes_shape or broken is not None
        self._meters.append(meters[0])

    def explains(self, meters: Mapping[str, DriftMeter], outputs: Sequence[TensorInfo]) -> bool:
        """Whether every output moved by at most `FACTOR` times its rounding noise."""
        return all(
            self._explains(info, meters[info.name]) for info in outputs if info.name in meters
        )

    def _explains(self, info: TensorInfo, meter: DriftMeter) -> bool:
        own = [found[info.name] for found in self._meters if info.name in found]
        if not own:  # an output that the input model does not have
            return not meter.unequal
        if info.dtype is not None and is_floating(info.dtype):
            if meter.lost > FACTOR * max(one.lost for one in own):
                return False
            most = max(one.result().max_abs for one in own)
            return meter.result().max_abs <= FACTOR * most
        return meter.unequal <= FACTOR * max(one.unequal for one in own)


def nudged(runs: Sequence[Sample], seed: int) -> Iterator[list[Sample]]:
    """The samples with every float input off by one unit in the last place, `_NUDGES` times."""
    rng = np.random.default_rng(seed)
    for _ in range(_NUDGES):
        yield [
            replace(run, feeds={name: _nudge(array, rng) for name, array in run.feeds.items()})
            for run in runs
        ]


def has_integers(runs: Sequence[Sample]) -> bool:
    """Whether some input is of a type that does not round."""
    return any(not is_floating(array.dtype) for run in runs[:1] for array in run.feeds.values())


def nudged_weights(model: Model, seed: int) -> Iterator[Model]:
    """Copies of `model` with every float constant off by one unit in the last place."""
    for number in range(_NUDGES):
        rng = np.random.default_rng((seed, number))
        moved = model.clone()
        for constant in _constants(moved):
            if constant.stored.dtype.kind == "f":
                values = constant.values
                constant.values = np.where(values == np.round(values), values, _nudge(values, rng))
        yield moved


def rounds_between_operators(model: Model) -> bool:
    """Whether some tensor is float16 or bfloat16: inputs, constants, and what is cast to them."""
    types = [tensor.dtype for tensor in model.graph.inputs]
    types += [constant.dtype for constant in _constants(model)]
    if not _HALVES.isdisjoint(np.dtype(dtype) for dtype in types if dtype is not None):
        return True
    nodes = (node for graph in walk_graphs(model.graph) for node in graph.nodes)
    return any(node.op == "Cast" and node.attrs.get("to") in _HALF_CODES for node in nodes)


def rounded_everywhere(model: Model) -> Model:
    """A copy in which each float16 or bfloat16 result with axes is rounded before it is read.

    Two Concats in front of each reader see to it, without optimisations: onnxruntime has a kernel
    of that for these types, and takes casts to float32 past one such node, but not past two.
    """
    copy = model.clone()
    infer_shapes(copy)
    rw = Rewriter(copy.graph)
    for node in [node for graph in rw.graphs() for node in graph.nodes]:
        for index, tensor in enumerate(node.inputs):
            if tensor.inputs and tensor.shape and tensor.dtype in _HALVES:
                rounded = tensor
                for _ in range(2):
                    (rounded,) = rw.insert(
                        *(node, "Concat", [rounded], {"axis": 0}),
                        name=f"{tensor.name}_rounded",
                        dtype=tensor.dtype,
                        shape=tensor.shape,
                    )
                rw.set_input(node, index, rounded)
    rw.result()
    return copy


def _constants(model: Model) -> Iterator[Constant]:
    """The initializers and the values of Constant nodes, each once."""
    seen: set[Constant] = set()
    for graph in walk_graphs(model.graph):
        for node in graph.nodes:
            values = node.attrs.values() if node.op == "Constant" else ()
            for tensor in (*node.inputs, *values):
                if isinstance(tensor, Constant) and tensor not in seen:
                    seen.add(tensor)
                    yield tensor


def _nudge(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    up = rng.integers(0, 2, array.shape).astype(bool)
    towards = np.where(up, np.inf, -np.inf).astype(array.dtype)
    return np.asarray(np.nextafter(array, towards))  # of a number, numpy makes no array

"""One run of `convert-fp16`: attempts, the boldest first, until one holds `max-error`.

Owns: what each attempt converts, and the order of attempts. Not here: which operands may be float16
(see `operand_types`), where the borders are (see `placement`), and writing them (see `conversion`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import onnx_graphsurgeon as gs

from onnxslim.graph.clone import adopt
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_value
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.pipeline.passes import Context
from onnxslim.precision.conversion import NodeConverter
from onnxslim.precision.doubts import Doubts
from onnxslim.precision.operand_types import HalfOperands, half_operands, is_bridge
from onnxslim.precision.placement import float16_nodes
from onnxslim.precision.stored_weights import (
    NodeFilter,
    is_matrix,
    storable,
    store_weights,
)
from onnxslim.precision.value_ranges import Magnitudes, intermediate_of
from onnxslim.records import PassResult, Skip
from onnxslim.services.calibration import Calibration

_TRIALS: Final = 16  # samples on which constants in doubt are decided
_WORTH: Final = 1e-3  # share of all bytes from which on a constant is worth an error of outputs


@dataclass(frozen=True)
class Float16Attempt:
    """One way to convert a graph.

    Attributes:
        accepts: whether the user selects a node.
        ranges: of activations; None: no operator computes in float16.
        is_cautious: whether sums and steep functions stay float32 whatever samples say.
        doubts: what is known of constants that do not fit as they are.
    """

    accepts: NodeFilter
    ranges: Magnitudes | None
    is_cautious: bool = False
    doubts: Doubts = field(default_factory=Doubts)

    @property
    def words(self) -> str:
        """What it does, for the report."""
        if self.ranges is None:
            return "float16 for weights alone"
        less = ", sums and steep functions left out" if self.is_cautious else ""
        return f"compute in float16{less}"

    def apply(self, graph: gs.Graph) -> PassResult:
        """Convert `graph` itself."""
        rewriter = Rewriter(graph)
        converter = NodeConverter(rewriter, self._halves(rewriter), self.accepts)
        converter.write()
        store_weights(rewriter, self.accepts, converter.twins, self.doubts)
        if not rewriter.changes and not rewriter.skips:
            rewriter.decline("no float32 constant is so large that float16 saves bytes")
        return rewriter.result()

    def settled(self, model: Model, trials: Calibration, *, has_data: bool) -> Float16Attempt:
        """The attempt with constants in doubt decided by the outputs of `model` on `trials`."""
        constants = list(storable(Rewriter(model.graph), self.accepts, {}))
        least = _WORTH * sum(_bytes(tensor) for tensor in constants)
        doubtful = [
            tensor
            for tensor in constants
            if _bytes(tensor) >= least
            and self.doubts.objection(tensor, is_matrix=is_matrix(tensor))
            and self.doubts.can_be_tried(tensor, has_data=has_data)
        ]

        def measure(trusted: frozenset[str]) -> float:
            copy = model.clone()
            replace(self, doubts=replace(self.doubts, trusted=trusted)).apply(copy.graph)
            copy.has_shapes = False
            (distance,) = trials.distances(model, [copy])
            return distance.relative_error

        return replace(self, doubts=self.doubts.settled(doubtful, measure))

    def _halves(self, rewriter: Rewriter) -> Mapping[Node, HalfOperands]:
        """The nodes that compute in float16; of all others, the report says why not."""
        if self.ranges is None:
            return {}
        possible: dict[Node, HalfOperands] = {}
        for graph in rewriter.graphs():
            for node in graph.nodes:
                half = half_operands(node, rewriter.opset)
                if half is None:
                    continue
                why = half if isinstance(half, str) else self._objection(node, half)
                if why is None:
                    assert isinstance(half, HalfOperands)
                    possible[node] = half
                else:
                    rewriter.skip(node, why)
        chosen = float16_nodes(rewriter, possible)
        for node in possible.keys() - chosen:
            if not is_bridge(node):
                rewriter.skip(
                    node, "between float32 operators: Casts would cost more than it saves"
                )
        return {node: half for node, half in possible.items() if node in chosen}

    def _objection(self, node: Node, half: HalfOperands) -> str | None:
        assert self.ranges is not None
        if not self.accepts(node):
            return "`only` and `skip` leave it out"
        intermediate = intermediate_of(node)
        if self.is_cautious and intermediate is not None:
            return f"{node.op} {intermediate.value}"
        return self.ranges.objection(node, half, self.doubts.operand_objection)


def convert(
    graph: gs.Graph,
    context: Context,
    accepts: NodeFilter,
    *,
    computes: bool,
    max_error: float | None,
) -> PassResult:
    """Convert `graph` to float16; where `max_error` is missed, less and less of it.

    Args:
        graph: to be changed.
        context: with calibration samples where `max_error` is set.
        accepts: whether the user selects a node.
        computes: whether operators compute in float16; else weights alone are stored so.
        max_error: largest relative error of an output, on samples held back; None: no limit.
    """
    ranges = _observed(graph, context) if computes else None
    first = Float16Attempt(accepts, ranges)
    if context.model is not None and context.trials is not None:
        has_data = context.calibration is not None
        trials = context.trials.some(_TRIALS)
        first = first.settled(context.model, trials, has_data=has_data)
    if max_error is None or context.model is None or context.calibration is None:
        return first.apply(graph)
    attempts = [first]
    if ranges is not None:
        attempts.append(replace(first, is_cautious=True))
        attempts.append(replace(first, ranges=None))
    if first.doubts.trusted:
        plain = replace(first.doubts, trusted=frozenset())
        attempts.append(replace(attempts[-1], doubts=plain))
    held = context.calibration.halves()[1]
    missed: list[Skip] = []
    for attempt in attempts:
        copy = context.model.clone()
        result = attempt.apply(copy.graph)
        copy.has_shapes = not result.changed
        why = _missed(held, context.model, copy, max_error) if result.changed else None
        if why is None:
            adopt(graph, copy.graph)
            return replace(result, skips=(*missed, *result.skips))
        missed.append(Skip(graph.name, f"{attempt.words}: {why}"))
    return PassResult(skips=tuple(missed))


def _bytes(tensor: gs.Tensor) -> int:
    stored = const_value(tensor)
    return 0 if stored is None else int(stored.nbytes)


def _observed(graph: gs.Graph, context: Context) -> Magnitudes:
    """What samples show of all tensors that may become float16; without samples, nothing."""
    if context.model is None or context.calibration is None:
        return Magnitudes()
    names = [
        tensor.name
        for node in graph.nodes
        if isinstance(half := half_operands(node, graph.opset), HalfOperands)
        for tensor in half.tensors(node)
        if const_value(tensor) is None
    ]
    return Magnitudes.observed(context.model, context.calibration, names)


def _missed(held: Calibration, source: Model, copy: Model, max_error: float) -> str | None:
    """That the outputs of `copy` are too far from those of `source`, with the numbers."""
    (distance,) = held.distances(source, [copy])
    error = distance.relative_error
    if error <= max_error:
        return None
    return f"a relative error of {error:.2g}, more than max-error={max_error:g}"

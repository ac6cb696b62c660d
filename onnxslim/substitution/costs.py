"""What a place takes, as it is and as a block: time, multiply-accumulates, bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx

from onnxslim.analysis.layer_models import (
    INPUT,
    LayerOp,
    StaticShape,
    count_macs,
    count_weights,
    input_shape,
    small_model,
)
from onnxslim.graph.operands import const_array
from onnxslim.report import LatencyPair
from onnxslim.services.stopwatch import Stopwatch
from onnxslim.substitution.choices import BlockChoice
from onnxslim.substitution.fitting import random_values
from onnxslim.substitution.places import BlockPlace
from onnxslim.substitution.written import written


@dataclass
class BlockCosts:
    """Implements `lossy.gate.Costs` for a place.

    Attributes:
        place: where the block is to be.
        shapes: of tensors, by name, on the inputs that latency is measured on.
        stopwatch: None: work is counted instead.
    """

    place: BlockPlace
    shapes: Mapping[str, StaticShape]
    stopwatch: Stopwatch | None
    _models: dict[str, onnx.ModelProto] = field(default_factory=dict)

    @property
    def has_shapes(self) -> bool:
        """Whether the size of the input is known."""
        return self._x_shape is not None

    def timed(self, candidates: Sequence[BlockChoice]) -> list[tuple[LatencyPair, ...]]:
        """For each candidate, the place as it is against the block, in turn."""
        assert self.stopwatch is not None
        after = [self._model(candidate) for candidate in candidates]
        return [(pair,) for pair in self.stopwatch.compare(self._model(None), after)]

    def milliseconds(self) -> float:
        """What the place takes as it is."""
        assert self.stopwatch is not None
        (found,) = self.stopwatch.milliseconds([self._model(None)])
        return found.p10

    def nbytes(self, candidate: BlockChoice | None) -> int:
        """Bytes of weights and biases."""
        return count_weights(self._ops(candidate)) * self.place.dtype.itemsize

    def macs(self, candidate: BlockChoice | None) -> int | None:
        """Multiply-accumulates of one sample; None where the size of the input is not known."""
        return count_macs(self._model(candidate)) if self.has_shapes else None

    # ------------------------------------------------------------------ inside

    @property
    def _x_shape(self) -> StaticShape | None:
        is_timed = self.stopwatch is not None
        return input_shape(self.place.source, self.shapes, is_timed=is_timed)

    def _model(self, candidate: BlockChoice | None) -> onnx.ModelProto:
        key = str(candidate)
        if key not in self._models:
            assert self._x_shape is not None
            ops = self._ops(candidate)
            self._models[key] = small_model(self._x_shape, ops, dtype=self.place.dtype)
        return self._models[key]

    def _ops(self, candidate: BlockChoice | None) -> list[LayerOp]:
        if candidate is None:
            return list(_original(self.place))
        sketch = candidate.block.sketch(self.place.cell, candidate.sizes)
        # orders that move every channel take the time that those of a fit will
        values = {
            name: array[::-1] if array.dtype.kind == "i" else np.broadcast_to(0.0, array.shape)
            for name, array in random_values(sketch, 0).items()
        }
        pieces = written(sketch, [values] * self.place.groups, self.place.patches, self.place.dtype)
        return [piece.as_op() for piece in pieces]


def _original(place: BlockPlace) -> list[LayerOp]:
    """The nodes of a place, with shapes in place of weights."""
    ops, before = [], place.source.name
    for node in place.nodes:
        inputs: list[str | StaticShape | np.ndarray] = []
        for tensor in node.inputs:
            stored = const_array(tensor)
            if tensor.name == before:
                inputs.append(INPUT if node is place.nodes[0] else before)
            elif stored is None:
                inputs.append("")
            else:
                # bounds and slopes are what they are: a Clip to nothing would be another operator
                inputs.append(tuple(stored.shape) if prod(stored.shape) > 1 else stored)
        before = node.outputs[0].name
        ops.append(LayerOp(node.op, tuple(inputs), before, dict(node.attrs)))
    return ops

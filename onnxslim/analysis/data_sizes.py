"""Outputs whose sizes depend on data: detections, picked indices, the length of made-up speech.

A lossy pass may change how many values such an output has, because it changes scores that are held
against a threshold, or durations that are rounded to frames. The sizes of all other outputs follow
from the sizes of the inputs, and no pass may change them.

Owns: which operators return sizes that depend on data. Not here: how such outputs are compared (see
`runtime.measure.row_matching`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.graph.dims import static_shape
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import RANDOM_OPS, const_value
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes

_COUNTING: Final = frozenset(
    {"NonZero", "NonMaxSuppression", "Compress", "Unique", "StringSplit", "If", "Loop"}
)
# operands whose values are sizes, or places on an axis
_SIZING: Final[Mapping[str, tuple[int, ...]]] = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "ConstantOfShape": (0,), "Range": (0, 1, 2),
    "Slice": (1, 2, 3, 4), "TopK": (1,), "Resize": (2, 3), "Upsample": (1,), "Pad": (1,),
    "OneHot": (1,), "Split": (1,), "SplitToSequence": (1,),
}  # fmt: skip


def outputs_sized_by_data(model: Model) -> frozenset[str]:
    """Names of the outputs of `model` whose sizes do not follow from those of the inputs alone."""
    model = model.clone()  # shapes are inferred for the copy
    infer_shapes(model)
    sizes = _DataSizes(model.graph)
    for node in model.graph.nodes:
        sizes.visit(node)
    return frozenset(str(t.name) for t in model.graph.outputs if t in sizes.by_data)


class _DataSizes:
    """Tensors by whether data, which lossy passes move, decide on their sizes or values.

    Attributes:
        by_data: tensors whose sizes depend on data.
        exact: tensors whose values follow from sizes and integer inputs, by integer arithmetic.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self.by_data: set[gs.Tensor] = set()
        self.exact: set[gs.Tensor] = {tensor for tensor in graph.inputs if _is_integer(tensor)}

    def visit(self, node: Node) -> None:
        """Settle the outputs of `node`, after those of all nodes before it."""
        present = [tensor for tensor in node.inputs if tensor.name]
        sizing = _SIZING.get(node.op, ())
        sized_by_data = (
            node.op in _COUNTING
            or any(tensor in self.by_data for tensor in present)
            or any(
                tensor.name and not self._is_exact(tensor)
                for place, tensor in enumerate(node.inputs)
                if place in sizing
            )
        )
        if node.op in ("Shape", "Size"):
            sized_by_data = False
            is_exact = node.inputs[0] not in self.by_data
        else:
            is_exact = self._keeps_exact(node) and all(map(self._is_exact, present))
        for tensor in node.outputs:
            if is_exact and not sized_by_data:
                self.exact.add(tensor)
            if sized_by_data and static_shape(tensor) is None:
                self.by_data.add(tensor)

    def _keeps_exact(self, node: Node) -> bool:
        return node.is_onnx and node.op not in _COUNTING | RANDOM_OPS

    def _is_exact(self, tensor: gs.Tensor) -> bool:
        stored = const_value(tensor)
        if stored is None:
            return tensor in self.exact
        return stored.size == 1 or np.dtype(stored.dtype).kind in "iub"


def _is_integer(tensor: gs.Tensor) -> bool:
    return tensor.dtype is not None and np.dtype(tensor.dtype).kind in "iub"

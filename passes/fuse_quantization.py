"""Move integers instead of floats between DequantizeLinear and QuantizeLinear.

Rewrite:
    ```
    <opset_import: ["" : 17]>
    before (uint8[1, 8, 4, 4] x) => (uint8[1, 32] y)
    <float s = {0.02}, uint8 z = {128}>
    {
        a = DequantizeLinear (x, s, z)
        b = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)
        c = Flatten (b)
        y = QuantizeLinear (c, s, z)
    }
    ```
    becomes
    ```
    <opset_import: ["" : 17]>
    after (uint8[1, 8, 4, 4] x) => (uint8[1, 32] y) {
        b = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
        y = Flatten (b)
    }
    ```
    A Concat is moved where all its inputs are on the grid of the QuantizeLinear.

Why it is correct:
    On one grid, QuantizeLinear gives back the integers that DequantizeLinear started from (see
    `onnxslim.analysis.same_grid`), and operators between them that move values, or choose among
    them by size, do the same to both: the scale is positive, so that codes and values have one
    order.

Declines when:
    1. The grids differ, are not constant, or have a scale for each channel or block.
    2. Something else reads the floats in the middle.
    3. An operator in the middle computes, or has no integer form below the opset of the model:
       MaxPool before opset 12.
    4. Codes are not 8 bits wide: onnxruntime moves few others.

Fidelity:
    EXACT.

    Not here: `Mul(Cast(int8 constant), scale)` as a DequantizeLinear. onnxruntime folds the first
    form when a session starts, to the weight itself. The second stays: before a Conv it takes 0.75
    ms where the Conv alone takes 0.60, and of a MatMul it makes a MatMulNBits, which rounds the
    activations to 8 bits: outputs move by 0.5 % (512 inputs and outputs, onnxruntime 1.31).

Reference:
    B. Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference (2018), arXiv:1712.05877, equation 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.same_grid import are_on_same_grid
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import const_value
from onnxslim.graph.rewrite import Rewriter
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.rewrite_pass import RewritePass
from onnxslim.records import Fidelity, PassResult

# operator -> the first opset in which it takes integers of 8 bits
_MOVING: Final[Mapping[str, int]] = {
    **dict.fromkeys(("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"), 10),
    **dict.fromkeys(("Slice", "Gather", "Expand", "Tile", "Concat"), 10),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), 10),
    "MaxPool": 12,
}
_MOST: Final = 64  # operators between two nodes
_TYPES: Final = (np.dtype(np.int8), np.dtype(np.uint8))


@dataclass(frozen=True)
class FuseQuantization(RewritePass):
    """Move integers instead of floats between DequantizeLinear and QuantizeLinear."""

    name: ClassVar[str] = "fuse-quantization"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """Move data movement between two nodes of one grid onto the integers."""
        rw = self.rewriter(graph)
        for node in rw.walk("QuantizeLinear"):
            movement = _movement(rw, node)
            if movement:
                _move(rw, node, movement)
        return rw.result()


def _movement(rw: Rewriter, quantize: Node) -> list[Node]:
    """The operators that move what `quantize` reads, in order; [] where they cannot be moved."""
    scale = const_value(quantize.inputs[1])
    if scale is None or scale.size != 1 or quantize.outputs[0].dtype not in _TYPES:
        return []  # declines 1, 4
    found: list[Node] = []
    stack = [quantize.inputs[0]]
    while stack:
        tensor = stack.pop()
        before = rw.producer(tensor)
        if before is None or not before.is_onnx or len(found) == _MOST:
            return []
        if before.op == "DequantizeLinear":
            if not are_on_same_grid(before, quantize):
                return []  # declines 1
            continue
        if rw.opset < _MOVING.get(before.op, rw.opset + 1):
            return []  # declines 3
        if rw.private_producer(tensor) is None:
            rw.skip(quantize, f"`{node_label(before)}` has other readers")  # declines 2
            return []
        found.append(before)
        stack += _moved_inputs(before)
    return found[::-1]


def _moved_inputs(node: Node) -> list[gs.Tensor]:
    return list(node.inputs) if node.op == "Concat" else [node.inputs[0]]


def _move(rw: Rewriter, quantize: Node, movement: list[Node]) -> None:
    dtype = quantize.outputs[0].dtype
    integers: dict[int, gs.Tensor] = {}
    for node in movement:
        count = len(_moved_inputs(node))
        inputs = [
            *(integers.get(id(each)) or each.inputs[0].inputs[0] for each in node.inputs[:count]),
            *node.inputs[count:],
        ]
        (old,) = node.outputs[:1]
        made = rw.insert(
            quantize,
            node.op,
            inputs,
            dict(node.attrs),
            name=f"{old.name}_integers",
            dtype=dtype,
            shape=old.shape,
        )
        integers[id(old)] = made[0]
    words = "moved integers instead of floats"
    rw.replace(quantize, [integers[id(quantize.inputs[0])]], words)

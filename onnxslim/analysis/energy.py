"""The energy of one run by arithmetic: operations and bytes moved, each times a constant.

The constants are those of Horowitz (2014, "Computing's energy problem", ISSCC, figure 1.1.9), for a
process of 45 nm at 0.9 V; 32 bits from DRAM take the 640 pJ that Han et al. (2015, "Learning both
weights and connections", table 1) read from it. What is counted, for each node:

- arithmetic: a multiplication and an addition for each multiply-accumulate; an addition for each
  element of the larger of input and output of other operators that compute; nothing for those that
  move or relabel data. Zeros are multiplied as well;
- weights: the bytes of the file that determine its operands, read once from DRAM; of a table, the
  rows that are gathered;
- activations: its other operands and its outputs, read or written once, in the smallest memory of
  the table that holds the tensor: 8 KB, 32 KB, 1 MB, else DRAM. What stands between QuantizeLinear
  and DequantizeLinear counts in integers.

This is no measurement: it knows no caches, no control logic and no idle cores, and says nothing of
the energy of a particular machine. It tells of two models which moves and computes less, and where.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.constant_sources import ConstantSources
from onnxslim.details import Energy, EnergyPart
from onnxslim.graph.counts import node_macs
from onnxslim.graph.ir import Node, subgraphs_of, walk_graphs

MULTIPLY_PJ: Final = {"float32": 3.7, "float16": 1.1, "int8": 0.2}
ADD_PJ: Final = {"float32": 0.9, "float16": 0.4, "int8": 0.1}
"""By type; integers of 8 bits are summed in 32."""

DRAM_PJ: Final = 640 / 4
"""For a byte."""

ON_CHIP_PJ: Final = ((8 << 10, 10 / 8), (32 << 10, 20 / 8), (1 << 20, 100 / 8))
"""Bytes that a memory holds, and picojoules of a byte of it; 64 bits are moved at once."""

_INTEGER: Final = frozenset(
    {
        *("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm"),
        *("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention"),
    }
)
_VIEWS: Final = frozenset(
    {
        *("Cast", "Constant", "DequantizeLinear", "Dropout", "Flatten", "Identity"),
        *("QuantizeLinear", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze"),
    }
)
_MOVES: Final = frozenset(
    {
        *("Concat", "ConstantOfShape", "DepthToSpace", "Expand", "Gather", "GatherElements"),
        *("GatherND", "Pad", "Range", "ReverseSequence", "ScatterElements", "ScatterND", "Slice"),
        *("SpaceToDepth", "Split", "Tile", "Transpose", "Where"),
    }
)
_RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN"})


def estimate_energy(graph: gs.Graph) -> Energy:
    """The energy of one run of `graph`, whose tensors have shapes; bodies count once.

    A first dimension of unknown size counts as one. Tensors with other sizes unknown count as
    nothing, and `unsized` says at how many nodes.
    """
    sources = ConstantSources(graph)
    parts: dict[tuple[str, str], list[_NodeEnergy]] = defaultdict(list)
    unsized = 0
    for current in walk_graphs(graph):
        for node in current.nodes:
            if node.op in _VIEWS or subgraphs_of(node) or sources.determine(node):
                continue
            arithmetic = _arithmetic(node)
            found = _node_energy(node, arithmetic, sources)
            unsized += not found.is_sized
            parts[str(node.op), arithmetic].append(found)
    summed = sorted(
        (_part(*key, found) for key, found in parts.items()), key=lambda part: -part.total_pj
    )
    return Energy(sum(part.total_pj for part in summed), tuple(summed), unsized)


@dataclass(frozen=True)
class _NodeEnergy:
    operations: int
    compute_pj: float
    weights_pj: float
    activations_pj: float
    is_sized: bool


def _part(operator: str, arithmetic: str, found: list[_NodeEnergy]) -> EnergyPart:
    return EnergyPart(
        operator,
        arithmetic,
        sum(item.operations for item in found),
        sum(item.compute_pj for item in found),
        sum(item.weights_pj for item in found),
        sum(item.activations_pj for item in found),
    )


def _node_energy(node: Node, arithmetic: str, sources: ConstantSources) -> _NodeEnergy:
    given = [tensor for tensor in node.inputs if tensor.name]
    moved = [tensor for tensor in (*given, *node.outputs) if sources.of(tensor) is None]
    sizes = [_elements(tensor) for tensor in moved]
    known = [size or 0 for size in sizes]
    macs = _recurrent_macs(node) if node.op in _RECURRENT else node_macs(node)
    operations = macs or 0
    compute = operations * (MULTIPLY_PJ[arithmetic] + ADD_PJ[arithmetic])
    if macs == 0 and node.op not in _MOVES:
        operations = max(known, default=0)
        compute = operations * ADD_PJ[arithmetic]
    nbytes = [count * _itemsize(tensor) for count, tensor in zip(known, moved, strict=True)]
    activations = sum(count * _byte_pj(count) for count in nbytes)
    weights = _weight_bytes(node, given, sources)
    is_sized = macs is not None and None not in sizes
    return _NodeEnergy(operations, compute, weights * DRAM_PJ, activations, is_sized)


def _weight_bytes(node: Node, given: list[gs.Tensor], sources: ConstantSources) -> float:
    if node.op == "Gather" and sources.of(given[0]) is not None:
        stored, rows = sources.of_all(given[:1]), _elements(node.outputs[0]) or 0
        return rows * sum(c.nbytes for c in stored) / max(1, _elements(given[0]) or 1)
    return sum(constant.nbytes for constant in sources.of_all(given))


def _byte_pj(nbytes: float) -> float:
    return next((pj for size, pj in ON_CHIP_PJ if nbytes <= size), DRAM_PJ)


def _arithmetic(node: Node) -> str:
    makers = [tensor.inputs[0].op for tensor in node.inputs[:2] if tensor.inputs]
    if node.op in _INTEGER or makers == ["DequantizeLinear"] * 2:
        return "int8"
    types = [np.dtype(t.dtype) for t in (*node.inputs, *node.outputs) if t.dtype is not None]
    return "float16" if any("float" in t.name and t.itemsize == 2 for t in types) else "float32"


def _recurrent_macs(node: Node) -> int | None:
    """Each step multiplies every input and every state by every weight."""
    steps = [size if isinstance(size, int) else None for size in (node.inputs[0].shape or ())[:2]]
    weights = [_elements(tensor) for tensor in node.inputs[1:3]]
    if len(steps) < 2 or None in steps or None in weights:
        return None
    return prod(s for s in steps if s is not None) * sum(w for w in weights if w is not None)


def _elements(tensor: gs.Tensor) -> int | None:
    """Of one sample: an unknown first dimension is the batch; absent outputs have none."""
    if not tensor.name:
        return 0
    if tensor.shape is None:
        return None
    sizes = [size if isinstance(size, int) else None for size in tensor.shape]
    if sizes and sizes[0] is None:
        sizes[0] = 1
    return None if None in sizes else prod(size for size in sizes if size is not None)


def _itemsize(tensor: gs.Tensor) -> float:
    """Bytes of an element; of one that is on its way into or out of integers, those of these."""
    if tensor.inputs and tensor.inputs[0].op == "DequantizeLinear":
        tensor = tensor.inputs[0].inputs[0]
    elif len(tensor.outputs) == 1 and tensor.outputs[0].op == "QuantizeLinear":
        tensor = tensor.outputs[0].outputs[0]
    return 4 if tensor.dtype is None else np.dtype(tensor.dtype).itemsize

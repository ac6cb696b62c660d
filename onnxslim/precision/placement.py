"""Which nodes compute in float16: those with which the least bytes go through memory.

A node reads and makes half the bytes in float16. Every border between the two types is a Cast that
reads one and makes the other, once for a tensor however many read it. The nodes with the least
bytes in all are a minimum cut (see `lossy.min_cut`, whose costs are bytes here). Matrix products
become float16 wherever they may: their computation is worth more than the borders.

Owns: the bytes of nodes and borders. Not here: which nodes may be float16 (see `operand_types`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Final

import onnx_graphsurgeon as gs

from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_value
from onnxslim.graph.rewrite import Rewriter
from onnxslim.lossy.min_cut import NEVER_CHOSEN, ItemCost, PlacementCosts, Transfer, cheapest_choice
from onnxslim.precision.operand_types import HalfOperands, is_bridge

_PRODUCTS: Final = frozenset(
    {"Attention", "Conv", "ConvTranspose", "DeformConv", "Einsum", "GRU", "Gemm", "LSTM", "MatMul"}
    | {"RNN"}
)
_FLOAT_BYTES, _HALF_BYTES, _CAST_BYTES = 4, 2, 6  # of an element: in either type, at a border


def float16_nodes(rewriter: Rewriter, halves: Mapping[Node, HalfOperands]) -> frozenset[Node]:
    """The nodes, of all graphs, that compute in float16; `halves` are those that may."""
    names = {node: str(number) for number, node in enumerate(halves)}
    tensors = dict.fromkeys(
        tensor for node, half in halves.items() for tensor in _variables(node, half)
    )
    costs = PlacementCosts(
        {names[node]: _traffic_bytes(node, half) for node, half in halves.items()},
        tuple(_transfer(rewriter, halves, names, tensor) for tensor in tensors),
    )
    chosen = cheapest_choice(costs)
    return frozenset(node for node, name in names.items() if name in chosen)


def _traffic_bytes(node: Node, half: HalfOperands) -> ItemCost:
    if is_bridge(node):
        return ItemCost(0.0, 0.0)
    elements = sum(_elements(tensor) for tensor in _variables(node, half))
    # a gain above the Casts of all operands, so that a product is never left in float32
    gain = _CAST_BYTES * elements + 1.0 if node.op in _PRODUCTS else 0.0
    return ItemCost(_FLOAT_BYTES * elements + gain, _HALF_BYTES * elements)


def _variables(node: Node, half: HalfOperands) -> Iterator[gs.Tensor]:
    return (tensor for tensor in half.tensors(node) if const_value(tensor) is None)


def _elements(tensor: gs.Tensor) -> float:
    """The number of elements of a tensor; open dimensions count as one."""
    shape = tensor.shape or ()
    return float(prod(max(size, 1) for size in shape if isinstance(size, int)))


def _transfer(
    rewriter: Rewriter,
    halves: Mapping[Node, HalfOperands],
    names: Mapping[Node, str],
    tensor: gs.Tensor,
) -> Transfer:
    made = NEVER_CHOSEN
    for maker in tensor.inputs:
        half = halves.get(maker)
        if half is not None and any(maker.outputs[index] is tensor for index in half.outputs):
            made = names[maker]
    readers = [names[reader] if half else NEVER_CHOSEN for reader, half in readings(halves, tensor)]
    if rewriter.is_output(tensor):
        readers.append(NEVER_CHOSEN)
    cost = _CAST_BYTES * _elements(tensor)
    return Transfer(made, tuple(dict.fromkeys(readers)), cost, cost)


def readings(halves: Mapping[Node, HalfOperands], tensor: gs.Tensor) -> Iterable[tuple[Node, bool]]:
    """Each use of `tensor` by a node, and whether that operand becomes float16."""
    for reader in dict.fromkeys(tensor.outputs):
        inputs = halves[reader].inputs if reader in halves else frozenset()
        for index, read in enumerate(reader.inputs):
            if read is tensor:
                yield reader, index in inputs

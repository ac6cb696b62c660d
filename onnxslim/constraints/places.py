"""Where operators read float constants: which of them are weights, and why the others stay.

A constant is a weight where an operator that learns reads it (`_SLOTS`), or where it is added to,
multiplied with or joined to values behind such an operator. It is followed through operators that
only move it, and through those that constants alone determine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import is_float
from onnxslim.constraints.values import are_short, are_sinusoids, is_mask
from onnxslim.graph.ir import (
    Constant,
    Node,
    Stored,
    StoredSparse,
    node_label,
    subgraphs_of,
    walk_graphs,
)
from onnxslim.graph.operands import const_array, const_value

_PRODUCTS: Final = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "DeformConv": (1, 3),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "Einsum": (0, 1, 2, 3),
    "LSTM": (1, 2, 3, 7),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    "FusedConv": (1, 2),
    "NhwcFusedConv": (1, 2),
    "FusedGemm": (0, 1, 2),
    "FusedMatMul": (0, 1),
    "TransposeMatMul": (0, 1),
    "Attention": (1, 2),
    "MatMulNBits": (5,),
    "DynamicQuantizeMatMul": (4,),
    "MatMulIntegerToFloat": (6,),
    "DynamicQuantizeLSTM": (3, 7),
}
_SLOTS: Final = {
    **_PRODUCTS,
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3, 4),
    "SkipSimplifiedLayerNormalization": (2, 3),
    "EmbedLayerNormalization": (2, 3, 4, 5, 6),
    "GroupNorm": (1, 2),
    "SkipGroupNorm": (1, 2, 4),
    "MultiHeadAttention": (3,),
    "DecoderMaskedMultiHeadAttention": (10,),
    "BiasGelu": (1,),
    "FastGelu": (1,),
    "BiasSplitGelu": (1,),
    "BiasAdd": (1,),
    "BiasSoftmax": (),
    "PRelu": (1,),
}
"""Inputs that learn, by operator, of the standard and of com.microsoft."""

_ELEMENTWISE: Final = frozenset({"Add", "Sub", "Mul", "Div", "Sum"})
_MOVING: Final = frozenset(
    {
        *("Cast", "Expand", "Flatten", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze"),
        *("Tile", "Transpose", "Unsqueeze", "Dropout"),
    }
)
_MOST_COUNTED: Final = 1 << 12
_NO_WEIGHT: Final = "no operator that learns reads it"
_ONE_NUMBER: Final = "it is one number"
_SHORT: Final = "it holds short binary numbers, as sizes, corners and masks do"
_POSITIONS: Final = "it is a table of sinusoids of the position"
_MASK: Final = "it is a mask"
_BEFORE: Final = "it comes before the first weight, as what prepares inputs does"
_RETURNED: Final = "a graph returns it"


@dataclass(frozen=True)
class Place:
    """A node that reads a constant, through movement or not.

    Attributes:
        node: the node.
        index: of its input.
        moved: whether other nodes stand between the constant and the node.
        learns: whether the constant is a weight there.
        why: why not.
    """

    node: Node
    index: int
    moved: bool
    learns: bool
    why: str = ""


@dataclass
class Places:
    """The places of the constants of one graph and its bodies."""

    graph: gs.Graph
    _fixed: set[int] = field(default_factory=set, repr=False)
    _deep: set[int] = field(default_factory=set, repr=False)
    _returned: set[int] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        """Find what constants determine, and what lies behind a weight."""
        for current in walk_graphs(self.graph):
            self._returned |= {id(tensor) for tensor in current.outputs}
        self._visit(self.graph, is_body=False)

    def constants(self) -> Iterator[tuple[str, Constant, gs.Tensor]]:
        """All constants that are tensors: name, what holds the values, and the tensor read."""
        seen: set[int] = set()
        for current in walk_graphs(self.graph):
            for node in current.nodes:
                value = node.attrs.get("value") if node.op == "Constant" else None
                if isinstance(value, Constant) and node.is_onnx:
                    yield str(node.outputs[0].name), value, node.outputs[0]
                for tensor in node.inputs:
                    if isinstance(tensor, Constant) and id(tensor) not in seen:
                        seen.add(id(tensor))
                        yield str(tensor.name), tensor, tensor

    def of(self, tensor: gs.Tensor) -> list[Place]:
        """The places where `tensor`, a constant, is read, or what constants alone make of it."""
        found, stack, seen = [], [(tensor, False)], {id(tensor)}
        while stack:
            current, moved = stack.pop()
            for node in dict.fromkeys(current.outputs):
                for index in [i for i, item in enumerate(node.inputs) if item is current]:
                    if self._moves_on(node, index):
                        stack += [(t, True) for t in node.outputs if id(t) not in seen]
                        seen |= {id(t) for t in node.outputs}
                    else:
                        found.append(self._place(node, index, tensor, moved=moved))
        return found

    def why_not(self, tensor: gs.Tensor, places: Iterable[Place]) -> str | None:
        """Why a float constant is no weight; None where it is one."""
        if id(tensor) in self._returned:
            return _RETURNED
        places = list(places)
        if any(place.learns for place in places):
            return None
        return next((place.why for place in places), _NO_WEIGHT)

    # ------------------------------------------------------------------ inside

    def _visit(self, graph: gs.Graph, *, is_body: bool) -> None:
        if is_body:  # what a loop carries may come from anywhere
            self._deep |= {id(tensor) for tensor in graph.inputs}
        for node in graph.nodes:
            for body in subgraphs_of(node):
                self._visit(body, is_body=True)
            is_fixed = not subgraphs_of(node) and all(map(self._is_fixed, _given(node)))
            if is_fixed and (node.inputs or node.op == "Constant"):
                self._fixed |= {id(tensor) for tensor in node.outputs}
            elif self._is_deep(node):
                self._deep |= {id(tensor) for tensor in node.outputs}

    def _is_fixed(self, tensor: gs.Tensor) -> bool:
        return id(tensor) in self._fixed or const_value(tensor) is not None

    def _is_deep(self, node: Node) -> bool:
        if any(id(tensor) in self._deep for tensor in node.inputs) or subgraphs_of(node):
            return True
        slots = _SLOTS.get(node.op, (0,) if node.op == "Gather" else ())
        return any(
            index < len(node.inputs) and self._is_fixed(node.inputs[index]) for index in slots
        )

    def _moves_on(self, node: Node, index: int) -> bool:
        """Whether the outputs of `node` are the constant, moved, or made of constants alone."""
        if any(id(tensor) in self._fixed for tensor in node.outputs):
            return not (index and node.op in ("QuantizeLinear", "DequantizeLinear"))
        return node.op in _MOVING and index == 0 and node.is_onnx

    def _place(self, node: Node, index: int, constant: gs.Tensor, *, moved: bool) -> Place:
        why = self._why_no_weight(node, index, constant)
        return Place(node, index, moved, not why, why)

    def _why_no_weight(self, node: Node, index: int, constant: gs.Tensor) -> str:
        if index in _SLOTS.get(node.op, ()):
            return _why_no_values(constant, is_slot=True)
        if node.op == "Gather" and index == 0:
            return _why_no_table(constant)
        if node.op not in _ELEMENTWISE and node.op != "Concat":
            return _NO_WEIGHT
        others = [tensor for place, tensor in enumerate(node.inputs) if place != index]
        if not any(id(tensor) in self._deep for tensor in others):
            return _BEFORE
        is_bias = node.op == "Add" and any(
            maker.op in _PRODUCTS for tensor in others for maker in tensor.inputs
        )
        return _why_no_values(constant, is_slot=is_bias)


def _given(node: Node) -> list[gs.Tensor]:
    return [tensor for tensor in node.inputs if tensor.name]


def _why_no_table(constant: gs.Tensor) -> str:
    stored = const_value(constant)
    if stored is not None and len(stored.shape) < 2:
        return _NO_WEIGHT
    return _why_no_values(constant, is_slot=True)


def _why_no_values(constant: gs.Tensor, *, is_slot: bool) -> str:
    """Why the values of a constant show that it is no weight.

    Args:
        constant: the constant.
        is_slot: whether an operator that learns reads it, so that one number may be a weight.
    """
    stored = const_value(constant)
    if stored is None:  # nodes compute it from codes
        return ""
    if not is_float(stored.dtype):
        return _NO_WEIGHT
    if stored.size == 1 and not (is_slot and stored.shape):
        return _ONE_NUMBER
    array = _array(stored)
    if is_mask(array):
        return _MASK
    first = array.reshape(-1)[0] if array.size else 0
    is_plain = bool((array == first).all())  # as a weight is before training
    is_varied = not is_plain and (not is_slot or _is_count(array))
    if (is_varied or (is_plain and not is_slot)) and are_short(array):
        return _SHORT
    if is_plain and not is_slot and first == 0:
        return _SHORT
    return _POSITIONS if not is_plain and are_sinusoids(array) else ""


def _is_count(array: np.ndarray) -> bool:
    """Whether all values differ, as those of 0, 1, 2, ... do."""
    flat = array.reshape(-1)
    return 2 < flat.size <= _MOST_COUNTED and np.unique(flat).size == flat.size


def _array(stored: np.ndarray | Stored | StoredSparse) -> np.ndarray:
    return stored if isinstance(stored, np.ndarray) else stored.load()


def label_of(places: Iterable[Place]) -> tuple[str, ...]:
    """Labels of the nodes of places where a constant learns."""
    return tuple(dict.fromkeys(node_label(place.node) for place in places if place.learns))


def constant_of(tensor: gs.Tensor) -> tuple[str, Constant] | None:
    """Name and holder of a constant that is read directly; None for another tensor."""
    if isinstance(tensor, Constant):
        return str(tensor.name), tensor
    if const_array(tensor) is None or not tensor.inputs:
        return None
    value = tensor.inputs[0].attrs.get("value")
    return (str(tensor.name), value) if isinstance(value, Constant) else None

"""Token inputs of a text model: the tables that they index, and the mask of their padding.

A token input is an integer input that picks rows of a constant table. Beside it there may be a mask
(N, L) that says which positions hold tokens and which only fill up a batch. What a mask does tells
it, and which of its values leaves a position out: the graph is read once with the mask all zeros
and once with all ones, as far as tensors then hold one value each. With the value that leaves out,
a number far below zero is added to attention's scores, or activations are multiplied by zero.

Owns: which input is what. Not here: which rows of an array that leaves (see
`runtime.measure.padding`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.graph.dims import known_dim, rank
from onnxslim.graph.ir import Constant, Node
from onnxslim.graph.operands import const_array, const_value, is_present

_VANISHING: Final = -100.0  # a bias below it leaves nothing of a softmax
_SMALL: Final = 1 << 16  # elements of a constant that is read
MOVING_OPS: Final = frozenset(
    {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Slice", "Clip"}
)
_KEEPING: Final = MOVING_OPS | frozenset(
    {"Tile", "Transpose", "Gather", "GatherND", "Split", "Dropout", "Pad"}
)
_TABLES: Final = {  # places of the table and of the indices
    "Gather": (0, 1),
    "GatherBlockQuantized": (0, 1),
    "EmbedLayerNormalization": (2, 0),
}
_STORED: Final = frozenset({"Cast", "DequantizeLinear", "Identity", "Transpose"})


@dataclass(frozen=True)
class PaddingMask:
    """An input that says which positions of a batch hold tokens.

    Attributes:
        name: of the mask, (N, L); with a cache, (N, past + L).
        left_out: its value at positions that only fill up the batch: 0 or 1.
        tokens: name of the token input (N, L).
        cache: name of a cache that an earlier run returned, and its axis of positions: the mask
            then begins with theirs. None: the model has none.
    """

    name: str
    left_out: int
    tokens: str
    cache: tuple[str, int] | None = None


def vocabularies(graph: gs.Graph) -> Mapping[str, int]:
    """Rows of the largest table that each token input indexes, by the name of the input.

    A table counts where it turns tokens into a sequence of rows: (N, L) to (N, L, D). Where ids go
    through a map, it is the entries of the map that count.
    """
    found: dict[str, int] = {}
    for node in graph.nodes:
        if not is_token_gather(node):
            continue
        table, indices = _TABLES[node.op]
        ids = id_map(node.inputs[indices])
        rows = known_dim(node.inputs[table], 0) if ids is None else len(ids)
        source = moved_input(node.inputs[indices], graph)
        if rows and source:
            found[source] = max(rows, found.get(source, 0))
    return found


def is_token_gather(node: Node) -> bool:
    """Whether a node looks up a sequence of rows in a stored table (see `vocabularies`)."""
    table, indices = _TABLES.get(node.op, (0, 0))
    if table == indices or not is_present(node, table) or rank(node.inputs[table]) != 2:
        return False
    is_whole = node.op != "Gather" or node.attrs.get("axis", 0) == 0
    return is_whole and rank(node.outputs[0]) == 3 and _is_stored(node.inputs[table])


def id_map(indices: gs.Tensor) -> np.ndarray | None:
    """The row of a table by token id, where `indices` are looked up in such a constant map."""
    node = indices.inputs[0] if len(indices.inputs) == 1 else None
    if node is None or node.op != "Gather" or not node.is_onnx or rank(node.inputs[0]) != 1:
        return None
    rows = const_array(node.inputs[0])
    return rows if rows is not None and rows.dtype.kind in "iu" else None


def padding_mask(graph: gs.Graph) -> PaddingMask | None:
    """The mask beside the tokens of `graph`, its shapes inferred; None where none is certain."""
    tables = vocabularies(graph)
    if not tables:
        return None
    tokens = max(tables, key=lambda name: tables[name])
    shape = next(tensor.shape for tensor in graph.inputs if tensor.name == tokens)
    caches = (_cache(tensor, graph) for tensor in graph.outputs)
    cache = next((found for found in caches if found is not None), None)
    for tensor in graph.inputs:
        is_candidate = rank(tensor) == 2 and tensor.name not in tables
        if not is_candidate or len(shape) != 2 or _is_of_others(tensor.shape[1], shape[1], graph):
            continue
        left_out = _left_out(graph, tensor)
        if left_out is not None:
            return PaddingMask(str(tensor.name), left_out, tokens, cache)
    return None


def cache_outputs(graph: gs.Graph) -> frozenset[str]:
    """The outputs that join an input and what this run adds to it, such as keys of attention."""
    return frozenset(
        str(tensor.name) for tensor in graph.outputs if _cache(tensor, graph) is not None
    )


def _cache(output: gs.Tensor, graph: gs.Graph) -> tuple[str, int] | None:
    """The input that `output` lengthens, and the axis; None where it does no such thing."""
    node = output.inputs[0] if len(output.inputs) == 1 else None
    while node is not None and node.op in MOVING_OPS and node.inputs[0].inputs:
        node = node.inputs[0].inputs[0]
    if node is None or node.op not in ("Concat", *_ATTENTION):
        return None
    given = {id(tensor) for tensor in graph.inputs}
    axis = node.attrs.get("axis", _KEPT_POSITIONS) if node.op == "Concat" else _KEPT_POSITIONS
    for tensor in node.inputs:
        if id(tensor) in given and (rank(tensor) or 0) > 2:
            return str(tensor.name), int(axis) % len(tensor.shape)
    return None


def _is_of_others(mask: int | str | None, tokens: int | str | None, graph: gs.Graph) -> bool:
    """Whether a mask of so many columns may be that of rows that are given, not of the tokens."""
    has_rows = any(rank(tensor) == 3 and _is_real(tensor) for tensor in graph.inputs)
    return has_rows and (mask is None or mask != tokens)


def moved_input(tensor: gs.Tensor, graph: gs.Graph) -> str | None:
    """The input whose values `tensor` holds, moved or mapped; None where they are computed."""
    given = {id(each) for each in graph.inputs}
    while id(tensor) not in given:
        node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
        if node is None or not node.inputs:
            return None
        if node.op not in MOVING_OPS and id_map(tensor) is None:
            return None
        tensor = node.inputs[0 if node.op in MOVING_OPS else 1]
    return str(tensor.name)


def _is_stored(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a constant, or one that is only unpacked."""
    while tensor.inputs and tensor.inputs[0].op in _STORED:
        tensor = tensor.inputs[0].inputs[0]
    return const_value(tensor) is not None


# ------------------------------------------------------------------ what a mask does

# operators of attention: places of an additive or boolean mask, and of one whose 0 leaves out
_ATTENTION: Final[Mapping[str, tuple[Sequence[int], Sequence[int]]]] = {
    "Attention": ((3,), ()),
    "MultiHeadAttention": ((5,), (4,)),
    "DecoderMaskedMultiHeadAttention": ((4,), (3,)),
    "GroupQueryAttention": ((), ()),
}
_CONTRIB: Final = "com.microsoft"
_KEPT_POSITIONS: Final = 2  # axis of a cache (N, heads, positions, width)


def _left_out(graph: gs.Graph, mask: gs.Tensor) -> int | None:
    """The value of `mask` that leaves a position out; None where the graph does not say."""
    runs = [_Constants(graph, mask, value) for value in (0, 1)]
    said = {value for node in graph.nodes for value in _verdicts(node, runs)}
    return said.pop() if len(said) == 1 else None


def _verdicts(node: Node, runs: Sequence[_Constants]) -> Iterator[int]:
    """The values of the mask with which `node` leaves positions out."""
    for place, tensor in enumerate(node.inputs):
        zero, one = (run.value(tensor) for run in runs)
        if zero == one:
            continue
        for value, own, other in ((0, zero, one), (1, one, zero)):
            if own is not None and _leaves_out(node, place, own, other, runs[value]):
                yield value


def _leaves_out(node: Node, place: int, own: float, other: float | None, run: _Constants) -> bool:
    """Whether operand `place` leaves positions out where it holds `own`, not where `other`."""
    op, domain = node.op, node.domain or ""
    if op in _ATTENTION:
        biases, keeping = _ATTENTION[op]
        if domain == _CONTRIB and op == "Attention":
            biases, keeping = (5,), (3,)
        if place in keeping or run.is_truth(node.inputs[place]):
            return place in (*biases, *keeping) and own == 0
        return place in biases and own < _VANISHING
    if op == "EmbedLayerNormalization":
        return place == 7 and own == 0
    beside = [tensor for index, tensor in enumerate(node.inputs) if index != place]
    unknown = [tensor for tensor in beside if not run.is_known(tensor)]
    if op in ("Add", "Sum"):
        return bool(unknown) and own < _VANISHING
    if op == "Mul":
        return own == 0 and other != 0 and any(map(_is_computed, unknown))
    if op == "Where" and place == 0:
        chosen = run.value(node.inputs[1 if own else 2])
        rest = node.inputs[2 if own else 1]
        is_low = chosen is not None and (chosen < _VANISHING or chosen == 0)
        return is_low and not run.is_known(rest) and _is_computed(rest) and _is_real(rest)
    return False


def _is_computed(tensor: gs.Tensor) -> bool:
    return bool(tensor.inputs) and const_value(tensor) is None


def _is_real(tensor: gs.Tensor) -> bool:
    return tensor.dtype is not None and np.dtype(tensor.dtype).kind not in "iub"


class _Constants:
    """The tensors that hold a single value where the mask is `given` everywhere."""

    def __init__(self, graph: gs.Graph, mask: gs.Tensor, given: int) -> None:
        self._values: dict[int, float | None] = {id(mask): float(given)}
        self._truths = {id(mask)} if mask.dtype == np.bool_ else set()
        for node in graph.nodes:
            value = self._computed(node)
            for tensor in node.outputs:
                if value is not None:
                    self._values[id(tensor)] = value
                if tensor.dtype == np.bool_:
                    self._truths.add(id(tensor))

    def value(self, tensor: gs.Tensor) -> float | None:
        """The single value of `tensor`; None where there are several, or none is known."""
        key = id(tensor)
        if key not in self._values:
            self._values[key] = _single(tensor)
        return self._values[key]

    def is_known(self, tensor: gs.Tensor) -> bool:
        """Whether the tensor holds a single value."""
        return self.value(tensor) is not None

    def is_truth(self, tensor: gs.Tensor) -> bool:
        """Whether the tensor holds truth values."""
        return id(tensor) in self._truths

    def _computed(self, node: Node) -> float | None:
        """The single value of the first output of `node`, where it follows from the operands."""
        op, values = node.op, [self.value(tensor) for tensor in node.inputs if tensor.name]
        if not values:
            return None
        first, others = values[0], values[1:]
        if op in _KEEPING:
            is_truth = op == "Cast" and node.attrs.get("to") == onnx.TensorProto.BOOL
            return float(first != 0) if is_truth and first is not None else first
        if op == "ConstantOfShape":
            filler = node.attrs.get("value")
            return _single(filler) if isinstance(filler, Constant) else 0.0
        if op in ("And", "Or") and float(op == "Or") in values:
            return float(op == "Or")  # whatever the other operand is
        if op == "Where" and first is not None:
            return others[0 if first else 1]
        if op == "Where":
            return others[0] if others[0] == others[1] else None
        if None in values or op not in _SCALAR:
            return None
        with np.errstate(all="ignore"):
            found = float(_SCALAR[op](*map(np.float64, values)))
        return None if np.isnan(found) else found


_SCALAR: Final[Mapping[str, Callable[..., float]]] = {
    "Not": lambda a: a == 0,
    "Neg": lambda a: -a,
    "And": lambda a, b: a != 0 and b != 0,
    "Or": lambda a, b: a != 0 or b != 0,
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a / b,
    "Equal": lambda a, b: a == b,
    "Less": lambda a, b: a < b,
    "LessOrEqual": lambda a, b: a <= b,
    "Greater": lambda a, b: a > b,
    "GreaterOrEqual": lambda a, b: a >= b,
    "Min": min,
    "Max": max,
}


def _single(tensor: gs.Tensor) -> float | None:
    """The one value that a small constant is filled with; None for anything else."""
    stored = const_value(tensor)
    if stored is None or not 0 < int(np.prod(stored.shape)) <= _SMALL:
        return None
    array = const_array(tensor)
    if array is None or array.dtype.kind not in "iufb":
        return None
    first = array.reshape(-1)[0]
    return float(first) if (array == first).all() else None

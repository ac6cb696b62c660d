"""The table that token ids index, who else reads it, and the head that scores the same tokens.

The table of a vocabulary is the largest that a token input indexes: those of positions and of kinds
of tokens are smaller. Its ids may already go through a map (a constant row of row numbers), as
`prune-vocabulary` writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.token_inputs import MOVING_OPS, id_map, is_token_gather, moved_input
from onnxslim.errors import NotApplicable
from onnxslim.graph.dims import known_dim, rank
from onnxslim.graph.ir import Constant, Node, Variable, node_label
from onnxslim.graph.operands import const_array, const_value
from onnxslim.graph.rewrite import Rewriter

_ELEMENTWISE: Final = frozenset(
    {"Add", "Sub", "Mul", "Div", "Cast", "Identity", "Tanh", "Clip", "Neg", "Dropout"}
)


@dataclass(frozen=True)
class TokenTable:
    """A table of token embeddings.

    Attributes:
        tensor: the table (rows, width), a constant.
        gathers: the nodes that look rows up by token ids.
        tokens: the input of the model with the ids.
        row_of: row of the table by id.
        others: the other nodes that read the table, such as a tied head.
    """

    tensor: gs.Tensor
    gathers: tuple[Node, ...]
    tokens: Variable
    row_of: np.ndarray
    others: tuple[Node, ...]

    @property
    def values(self) -> np.ndarray:
        """The rows."""
        values = const_array(self.tensor)
        assert values is not None
        return values

    def ids_of(self, gather: Node) -> gs.Tensor:
        """The ids that a Gather looks up, before a map makes rows of them."""
        indices = gather.inputs[1]
        return indices if id_map(indices) is None else indices.inputs[0].inputs[1]


def token_table(rw: Rewriter, name: str | None) -> TokenTable:
    """The table of the input `name`; None: of the input whose table has most rows.

    Raises:
        NotApplicable: there is none, with the reason.
    """
    given = {str(tensor.name): tensor for tensor in rw.main.inputs}
    found: dict[str, Node] = {}
    for node in _gathers(rw):
        source = moved_input(node.inputs[1], rw.main)
        if source is None:
            continue
        known = found.get(source)
        if known is None or _rows(node) > _rows(known):
            found[source] = node
    if name is not None and name not in found:
        listed = ", ".join(f"`{item}`" for item in found) or "none"
        raise NotApplicable(f"no constant table is indexed by `{name}`; inputs with one: {listed}")
    if not found:
        raise NotApplicable(
            "no input holds ids of rows of a constant table; a table that is stored as codes is "
            "cut before it is: put prune-vocabulary in front"
        )
    name = name or max(found, key=lambda item: _rows(found[item]))
    return _table(rw, found[name].inputs[0], given[name])


def _table(rw: Rewriter, tensor: gs.Tensor, tokens: Variable) -> TokenTable:
    own = [node for node in _gathers(rw) if node.inputs[0] is tensor]
    gathers = tuple(n for n in own if moved_input(n.inputs[1], rw.main) == tokens.name)
    others = tuple(node for node in tensor.outputs if node not in gathers)
    if rw.is_output(tensor):
        raise NotApplicable(f"the table `{tensor.name}` is an output of the model")
    rows = known_dim(tensor, 0)
    assert rows is not None
    maps = [_rows_of_ids(node, rows) for node in gathers]
    if any(not np.array_equal(item, maps[0]) for item in maps):
        raise NotApplicable(f"ids go to rows of `{tensor.name}` in different ways")
    return TokenTable(tensor, gathers, tokens, maps[0], others)


def _rows_of_ids(gather: Node, rows: int) -> np.ndarray:
    """The row that a Gather looks up for each id, negative ones counted from the end."""
    mapped = id_map(gather.inputs[1])
    found: np.ndarray = np.arange(rows) if mapped is None else mapped.astype(np.int64) % rows
    return found


def _gathers(rw: Rewriter) -> Iterator[Node]:
    for graph in rw.graphs():
        for node in graph.nodes:
            is_plain = node.op == "Gather" and is_token_gather(node)
            if is_plain and const_value(node.inputs[0]) is not None:
                yield node


def _rows(node: Node) -> int:
    return known_dim(node.inputs[0], 0) or 0


def reader_of_ids(table: TokenTable) -> Node | None:
    """A node to which an id means more than a row of the table, such as one that finds padding."""
    stack: list[gs.Tensor] = [table.tokens]
    seen: set[Node] = set()
    while stack:
        tensor = stack.pop()
        readers: list[Node] = list(tensor.outputs)
        for node in readers:
            if node in seen or node in table.gathers or node.op in ("Shape", "Size"):
                continue
            seen.add(node)
            is_map = node.op == "Gather" and id_map(node.outputs[0]) is not None
            if not is_map and (node.op not in MOVING_OPS or tensor is not node.inputs[0]):
                return node
            stack += node.outputs
    return None


# ------------------------------------------------------------------ the head


@dataclass(frozen=True)
class VocabularyHead:
    """The layer that scores every token of the vocabulary.

    Attributes:
        node: the MatMul or Gemm.
        weight: its constant weight, which may be the table itself.
        axis: axis of the weight that is the vocabulary.
        chain: nodes from the scores to the output, each with the constants that it reads along the
            vocabulary.
        inner: tensors in between, whose last axis is the vocabulary.
        output: the output of the model.
    """

    node: Node
    weight: gs.Tensor
    axis: int
    chain: tuple[tuple[Node, tuple[int, ...]], ...]
    inner: tuple[gs.Tensor, ...]
    output: Variable

    @property
    def label(self) -> str:
        """How messages name it."""
        return node_label(self.node)

    def path_from(self, reader: Node) -> list[Node] | None:
        """The nodes from a reader of the weight up to the head; None where they lead elsewhere."""
        path = []
        while reader is not self.node:
            if reader.op not in ("Transpose", "Identity") or len(reader.outputs[0].outputs) != 1:
                return None
            path.append(reader)
            reader = reader.outputs[0].outputs[0]
        return path


def head_of(rw: Rewriter, size: int) -> Iterator[VocabularyHead | str]:
    """Heads over a vocabulary of `size` whose scores leave the model, or why one may not shrink."""
    for graph in rw.graphs():
        for node in graph.nodes:
            found = _weight(rw, node)
            if found is None or known_dim(found[0], found[1]) != size:
                continue
            if graph is rw.main:
                yield from _followed(rw, node, *found, size)


def _weight(rw: Rewriter, node: Node) -> tuple[gs.Tensor, int] | None:
    """The constant weight of a MatMul or Gemm, and its axis that is the last of the product."""
    if node.op not in ("MatMul", "Gemm") or not node.is_onnx or len(node.inputs) < 2:
        return None
    tensor, axis = node.inputs[1], 0 if node.op == "Gemm" and node.attrs.get("transB") else 1
    while const_value(tensor) is None:
        moved = rw.producer(tensor, "Transpose", "Identity")
        if moved is None or rank(moved.inputs[0]) != 2 or rw.uses(tensor) != 1:
            return None
        if moved.op == "Transpose" and list(moved.attrs.get("perm", (1, 0))) == [1, 0]:
            axis = 1 - axis
        tensor = moved.inputs[0]
    return (tensor, axis) if rank(tensor) == 2 else None


def _followed(
    rw: Rewriter, node: Node, weight: gs.Tensor, axis: int, size: int
) -> Iterator[VocabularyHead | str]:
    """The scores followed to an output; nothing where they never were scores of tokens."""
    chain: list[tuple[Node, tuple[int, ...]]] = []
    inner: list[gs.Tensor] = []
    tensor, current = node.outputs[0], node
    if node.op == "Gemm" and len(node.inputs) > 2:
        why = _along(node, (2,), size)
        if isinstance(why, str):
            yield why
            return
        chain.append((node, why))
    while not rw.is_output(tensor):
        inner.append(tensor)
        current = tensor.outputs[0]
        if len(tensor.outputs) != 1 or current.op not in _ELEMENTWISE or not current.is_onnx:
            readers = ", ".join(f"`{node_label(reader)}`" for reader in tensor.outputs[:3])
            yield f"its scores `{tensor.name}` are read by {readers}"
            return
        places = [i for i, other in enumerate(current.inputs) if other is not tensor and other.name]
        along = _along(current, places, size)
        if isinstance(along, str):
            yield along
            return
        chain.append((current, along))
        tensor = current.outputs[0]
    if tensor.outputs or not isinstance(tensor, Variable):
        yield f"its scores `{tensor.name}` are an output and read again"
        return
    dims = tensor.info.type.tensor_type.shape.dim if tensor.info is not None else ()
    if not dims or dims[-1].dim_value != size:
        yield f"the output `{tensor.name}` does not declare {size:,} scores"
        return
    yield VocabularyHead(node, weight, axis, tuple(chain), tuple(inner), tensor)


def _along(node: Node, places: list[int] | tuple[int, ...], size: int) -> tuple[int, ...] | str:
    """Places of the constants with one entry for each token; why others forbid to cut the node."""
    found = []
    for place in places:
        operand = node.inputs[place]
        values = const_value(operand)
        sizes = None if values is None else tuple(values.shape)
        if sizes is None:
            return f"`{node_label(node)}` joins its scores with `{operand.name}`"
        if sizes and sizes[-1] == size:
            found.append(place)
        elif sizes and sizes[-1] != 1:
            return f"`{node_label(node)}` joins its scores with `{operand.name}`"
    return tuple(found)


def cut_constant(rw: Rewriter, tensor: gs.Tensor, kept: np.ndarray, axis: int) -> Constant:
    """A constant with the positions `kept` of `tensor` along `axis`."""
    values = const_array(tensor)
    assert values is not None
    return rw.constant(np.ascontiguousarray(np.take(values, kept, axis)), str(tensor.name))

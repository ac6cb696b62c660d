"""Tables of embeddings that are the head of the model, too: both on integers, and one set of codes.

A language model often multiplies by the transpose of the table that its first Gather reads. The
product gets a weight of its own here, so that it is quantized like any other; TorchScript's
exporter has given it one already. Then the rows of the table take the codes of the columns of the
head, and the file holds them once. Where smoothing has scaled the channels of the head, picked rows
are divided by these scales, unless that leaves the table far more error than codes of its own. A
table that the file shares with a product which stays float stays float with it, as the file would
hold both its floats and its codes.

Owns: which operators share a table, and what that means for which of them are on integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer, weight_layers
from onnxslim.analysis.linear_operators import linear_operator
from onnxslim.graph.dims import rank
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.operands import const_array
from onnxslim.graph.rewrite import Rewriter
from onnxslim.quantization.clusters import Cluster, Clusters, drop_isolated_movement
from onnxslim.quantization.grid import S8_SYMMETRIC, LayerCodes
from onnxslim.quantization.rules import KernelKind
from onnxslim.quantization.weight_readers import is_plain_product, tied_product, untie

_JUDGED: Final = 2048  # rows of a table, about
_ENOUGH: Final = 2.0  # a table may have as many times the squared error of codes of its own
_MOST: Final = 127  # of codes with all bits
_SCALED: Final = 1e-5  # a factor that is nearer to 1 comes from rounding


@dataclass(frozen=True)
class _Tie:
    """A product whose weight is the transpose of a table.

    Attributes:
        table: the name of the table's tensor.
        is_shared: whether the product read the table itself, before it got a weight of its own.
        transposed: whether it was a Gemm that transposed the table.
    """

    table: str
    is_shared: bool
    transposed: bool = False


@dataclass(frozen=True)
class TiedTables:
    """The products of a model whose weights are transposes of tables, by the names of clusters."""

    ties: Mapping[str, _Tie]

    def settled(self, clusters: Clusters, chosen: frozenset[str]) -> frozenset[str]:
        """`chosen` without what is not worth integers alone: isolated movement, half-read tables.

        A table is on integers where all that read it in the file are.
        """
        nodes = {cluster.node for cluster in clusters.all if cluster.name in chosen}
        tied = [(tie.table, name) for name, tie in self.ties.items() if tie.is_shared]
        kept = set(chosen)
        for cluster in _tables(clusters):
            table = cluster.node.inputs[0]
            products = {name for of, name in tied if of == table.name}
            if not nodes.issuperset(table.outputs) or not products <= chosen:
                kept.discard(cluster.name)
        return drop_isolated_movement(clusters, frozenset(kept))

    def shared(
        self, clusters: Clusters, codes: Mapping[str, LayerCodes]
    ) -> Mapping[str, LayerCodes]:
        """`codes`, with those of tables taken from their products where these say enough."""
        found = dict(codes)
        nodes = {cluster.name: cluster.node for cluster in clusters.all}
        for name, tie in self.ties.items():
            own = [c for c in _tables(clusters) if c.node.inputs[0].name == tie.table]
            if not own or name not in codes or name not in nodes:
                continue
            rows = _rows_of(codes[name], _weight(nodes[name]), _values(own[0].node.inputs[0]))
            found.update((table.name, rows) for table in own if rows is not None)
        return found

    def retie(self, rw: Rewriter, clusters: Clusters, chosen: frozenset[str]) -> None:
        """Let products that stay float read their tables again."""
        tensors = {tensor.name: tensor for tensor in rw.main.tensors().values()}
        for cluster in clusters.all:
            tie = self.ties.get(cluster.name)
            if tie is None or not tie.is_shared or cluster.name in chosen:
                continue
            node, table = cluster.node, tensors[tie.table]
            index = linear_operator(node).weight
            if tie.transposed:
                inputs = [*node.inputs[:index], table, *node.inputs[index + 1 :]]
                what = "it reads the table of embeddings again"
                rw.update(node, what, inputs=inputs, attrs={**node.attrs, "transB": 1})
                continue
            attrs, dtype = {"perm": [1, 0]}, table.dtype
            shape = [*reversed(table.shape)]
            made = rw.insert(
                node, "Transpose", [table], attrs, name=table.name, dtype=dtype, shape=shape
            )
            rw.set_input(node, index, made[0])


def untied_tables(rw: Rewriter, accepts: Callable[[str], bool]) -> TiedTables:
    """Give products of `rw` weights of their own in place of tables that Gather nodes read, too.

    Args:
        rw: of the graph; the caller takes its result.
        accepts: whether the operator of a name may be on integers.
    """
    ties: dict[str, _Tie] = {}
    known = set[int]()
    layers = weight_layers(rw.main)[0]
    for table in layers:
        if table.node.op != "Gather" or id(table.holder) in known:
            continue
        known.add(id(table.holder))
        for head in layers:
            if _is_transpose(head, table):
                ties[node_label(head.node)] = _Tie(str(table.weight_tensor.name), is_shared=False)
        product = tied_product(rw.main, table)
        if product is None or table.dtype != np.float32 or rank(product.node.inputs[0]) is None:
            continue
        node, tensor = product.node, table.weight_tensor
        picks = (reader for reader in tensor.outputs if reader.op == "Gather")
        if not all(accepts(node_label(item)) for item in (node, *picks)):
            continue
        transposed = bool(node.attrs.get("transB", 0)) and node.inputs[product.weight] is tensor
        untie(rw, table, product)
        ties[node_label(node)] = _Tie(str(tensor.name), is_shared=True, transposed=transposed)
    return TiedTables(ties)


def _is_transpose(head: WeightLayer, table: WeightLayer) -> bool:
    """Whether `head` is a MatMul by another constant that equals the transpose of `table`."""
    is_product = head.node.op == "MatMul" and head.is_linear and is_plain_product(head.operator)
    shape = (table.columns, table.rows)
    if not is_product or tuple(head.holder.stored.shape) != shape or table.inputs_first:
        return False
    return head.dtype == table.dtype and np.array_equal(head.holder.values.T, table.canonical()[0])


def _tables(clusters: Clusters) -> Iterator[Cluster]:
    return (cluster for cluster in clusters.all if cluster.rule.kind is KernelKind.TABLE)


def _values(tensor: gs.Tensor) -> np.ndarray:
    found = const_array(tensor)
    assert found is not None  # a table, or what took its place
    return found


def _weight(node: Node) -> np.ndarray:
    """The weight of a product that was untied, (columns of the table, rows)."""
    return _values(node.inputs[linear_operator(node).weight])


def _rows_of(head: LayerCodes, weight: np.ndarray, table: np.ndarray) -> LayerCodes | None:
    """The codes of `table`, (rows, columns), from those of `head`; None where they say too little.

    The weight of the head is the transpose of the table, perhaps with scaled rows.
    """
    grid = head.grid
    if grid.axis != 1 or np.any(grid.zero_point) or grid.dtype != np.int8:
        return None
    some = slice(None, None, -(-len(table) // _JUDGED))
    rows, scaled = np.asarray(table[some], np.float64), np.asarray(weight.T[some], np.float64)
    factor = np.ones(table.shape[1], np.float32)
    sizes = np.linalg.norm(rows, axis=0), np.linalg.norm(scaled, axis=0)
    np.divide(*sizes, out=factor, where=sizes[1] > 0, casting="same_kind")
    if not np.allclose(scaled * factor, rows, rtol=1e-3, atol=1e-3 * np.abs(rows).max()):
        return None
    steps = grid.scale[some, None]
    shared = np.square(head.codes.T[some] * steps * factor - rows).sum()
    form = replace(S8_SYMMETRIC, reduced=grid.high < _MOST)
    own = form.over(rows.min(1), rows.max(1), 0)
    if shared > _ENOUGH * np.square(own.rounded(rows) - rows).sum():
        return None
    is_scaled = np.abs(factor - 1).max() > _SCALED
    codes = np.ascontiguousarray(head.codes.T)
    return LayerCodes(codes, replace(grid, axis=0), None, factor=factor if is_scaled else None)

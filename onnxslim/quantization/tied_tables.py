"""Tables of embeddings that are the head of the model, too: both on integers, and one set of codes.

A language model often multiplies by the transpose of the table that its first Gather reads. The
product gets a weight of its own here, so that it is quantized like any other. Where smoothing left
that weight alone, the rows of the table take the codes of the columns of the head, and the file
holds them once. A table whose product stays float stays float with it, as the file would hold both
its floats and its codes.

Owns: which operators share a table, and what that means for which of them are on integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxslim.analysis.layers import weight_layers
from onnxslim.analysis.linear_operators import linear_operator
from onnxslim.graph.dims import rank
from onnxslim.graph.ir import Node, node_label
from onnxslim.graph.rewrite import Rewriter
from onnxslim.quantization.clusters import Cluster, Clusters, drop_isolated_movement
from onnxslim.quantization.grid import LayerCodes
from onnxslim.quantization.rules import KernelKind
from onnxslim.quantization.weight_readers import tied_product, untie


@dataclass(frozen=True)
class _Tie:
    """A product that read a table.

    Attributes:
        table: the name of the table's tensor.
        weight: the name of the constant that the product got in its place.
        transposed: whether the product was a Gemm that transposed the table itself.
    """

    table: str
    weight: str
    transposed: bool


@dataclass(frozen=True)
class TiedTables:
    """The products of a model that got weights of their own, by the names of their clusters."""

    ties: Mapping[str, _Tie]

    @property
    def products(self) -> frozenset[str]:
        """The names of the products."""
        return frozenset(self.ties)

    def settled(self, clusters: Clusters, chosen: frozenset[str]) -> frozenset[str]:
        """`chosen` without what is not worth integers alone: isolated movement, half-read tables.

        A table is on integers where all that read it in the file are.
        """
        nodes = {cluster.node for cluster in clusters.all if cluster.name in chosen}
        tied = [(tie.table, name) for name, tie in self.ties.items()]
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
        """`codes`, with those of tables taken from their products where weights are still equal."""
        found = dict(codes)
        nodes = {cluster.name: cluster.node for cluster in clusters.all}
        for name, tie in self.ties.items():
            if name not in nodes or name not in codes or _weight(nodes[name]) != tie.weight:
                continue
            rows = _rows_of(codes[name])
            own = (c for c in _tables(clusters) if c.node.inputs[0].name == tie.table)
            found.update((table.name, rows) for table in own if rows is not None)
        return found

    def retie(self, rw: Rewriter, clusters: Clusters, chosen: frozenset[str]) -> None:
        """Let products that stay float read their tables again."""
        tensors = {tensor.name: tensor for tensor in rw.main.tensors().values()}
        for cluster in clusters.all:
            tie = self.ties.get(cluster.name)
            if tie is None or cluster.name in chosen:
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
                node, "Transpose", [table], attrs, name=tie.weight, dtype=dtype, shape=shape
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
    for table in weight_layers(rw.main)[0]:
        if table.node.op != "Gather" or id(table.holder) in known:
            continue
        known.add(id(table.holder))
        product = tied_product(rw.main, table)
        if product is None or table.dtype != np.float32 or rank(product.node.inputs[0]) is None:
            continue
        node, tensor = product.node, table.weight_tensor
        picks = (reader for reader in tensor.outputs if reader.op == "Gather")
        if not all(accepts(node_label(item)) for item in (node, *picks)):
            continue
        transposed = bool(node.attrs.get("transB", 0)) and node.inputs[product.weight] is tensor
        untie(rw, table, product)
        ties[node_label(node)] = _Tie(str(tensor.name), _weight(node), transposed)
    return TiedTables(ties)


def _tables(clusters: Clusters) -> Iterator[Cluster]:
    return (cluster for cluster in clusters.all if cluster.rule.kind is KernelKind.TABLE)


def _weight(node: Node) -> str:
    """The name of the weight of a product."""
    return str(node.inputs[linear_operator(node).weight].name)


def _rows_of(head: LayerCodes) -> LayerCodes | None:
    """The codes of a table whose transpose has the codes `head`; None where Gather picks no such.

    `head` lies as (inputs, outputs).
    """
    grid = head.grid
    if grid.axis != 1 or np.any(grid.zero_point) or grid.dtype != np.int8:
        return None
    return LayerCodes(np.ascontiguousarray(head.codes.T), replace(grid, axis=0), None)

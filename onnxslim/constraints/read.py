"""The stored weights of a graph, each with what it obeys, and the constants that training leaves.

    found = read_constraints(graph)
    for weight in found.weights: ...        # see `stored`
    for name, why in found.others.items(): ...

Everything is read from the numbers and nodes that the graph holds, never from how it was made: a
file that another tool pruned or quantized obeys its constraints in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.analysis.affine import is_float
from onnxslim.constraints.coded import CodedReader
from onnxslim.constraints.places import Places, constant_of, label_of
from onnxslim.constraints.stored import (
    BiasWeight,
    CodedWeight,
    FreeWeight,
    GridWeight,
    LeafWeight,
    LevelCodes,
    LevelWeight,
    ScaleWeight,
    SparseWeight,
    StoredWeight,
    TableWeight,
    TiedWeight,
)
from onnxslim.constraints.values import few_values, is_power_of_two, on_levels, zeros_stay
from onnxslim.graph.ir import Constant, Node, StoredSparse, walk_graphs
from onnxslim.graph.operands import const_value

_REPEATED: Final = "several constants have its name"
_LEVELS: Final = "its values stay, and codes move among them"
_STEPS: Final = "its steps are powers of two, which stay so"


@dataclass(frozen=True)
class Constraints:
    """What training may move in a graph.

    Attributes:
        weights: the records, leaves first; a leaf is one parameter, however often it is read.
        others: float constants and coded weights that stay as they are, by name, with the reason.
    """

    weights: tuple[StoredWeight, ...]
    others: Mapping[str, str] = field(default_factory=dict)

    def leaves(self) -> Iterator[LeafWeight]:
        """The records of float constants."""
        return (item for item in self.weights if isinstance(item, LeafWeight))

    def coded(self) -> Iterator[CodedWeight]:
        """The records of weights that nodes compute from codes."""
        return (item for item in self.weights if isinstance(item, CodedWeight))


def read_constraints(graph: gs.Graph) -> Constraints:
    """The stored weights of `graph` and its bodies; what nodes in local functions hold stays."""
    return _Reading(graph).all()


class _Reading:
    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self.places = Places(graph)
        self.others: dict[str, str] = {}
        self.coded: list[CodedWeight] = []

    def all(self) -> Constraints:
        self.coded = coded = list(self._coded())
        tables: dict[str, tuple[str, ...]] = {}
        steps: dict[str, tuple[str, ...]] = {}
        for item in coded:
            if isinstance(item, TableWeight):
                for name in item.tables:
                    tables[name] = (*tables.get(name, ()), *item.readers)
            elif isinstance(item, GridWeight):
                steps[item.scale] = (*steps.get(item.scale, ()), *item.readers)
        leaves = list(self._leaves(tables, self._scales(steps)))
        return Constraints((*leaves, *coded), self.others)

    def _coded(self) -> Iterator[CodedWeight]:
        reader = CodedReader(self.graph, self.places)
        for node in self._nodes():
            found = reader.read(node)
            if isinstance(found, str):
                self.others[str(node.outputs[0].name)] = found
            elif found is not None:
                yield found

    def _nodes(self) -> Iterator[Node]:
        for current in walk_graphs(self.graph):
            yield from current.nodes

    def _scales(self, steps: Mapping[str, tuple[str, ...]]) -> dict[str, _Scale]:
        """The scales of activations and of weights by name; those that stay equal are one.

        Args:
            steps: the readers of weights on grids, by the name of their scale.
        """
        scales: dict[str, _Scale] = {}
        for node in self._nodes():
            is_pair = node.op in ("QuantizeLinear", "DequantizeLinear") and len(node.inputs) > 1
            found = constant_of(node.inputs[1]) if is_pair else None
            if found is None or (node.op == "DequantizeLinear" and self._has_constant(node)):
                continue
            name, holder = found
            own = scales.setdefault(name, _Scale(name, holder))
            own.readers.append(str(node.outputs[0].name))
            before = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
            if node.op == "DequantizeLinear" and before is not None:
                twin = constant_of(before.inputs[1]) if before.op == "QuantizeLinear" else None
                if twin is not None and twin[1] is not holder and twin[0] in scales:
                    scales[name] = scales[twin[0]].joined(own)
        for item in self.coded:
            if isinstance(item, GridWeight):
                own = scales.setdefault(item.scale, _Scale(item.scale, item.scales))
                own.readers += steps[item.scale]
        return scales

    @staticmethod
    def _has_constant(node: Node) -> bool:
        return const_value(node.inputs[0]) is not None

    def _leaves(
        self, tables: Mapping[str, tuple[str, ...]], scales: Mapping[str, _Scale]
    ) -> Iterator[LeafWeight]:
        names: set[str] = set()
        products = {item.scale for item in self.coded if isinstance(item, BiasWeight)}
        levels = {name for x in self.coded if isinstance(x, LevelCodes) for name in x.tables}
        for name, holder, tensor in self.places.constants():
            if not is_float(holder.dtype) or not holder.size or name in products:
                continue
            found: LeafWeight | str | None
            if name in names:
                found = _REPEATED
            elif name in levels:
                found = _LEVELS
            elif name in tables:
                found = _table(name, tables[name], holder)
            elif name in scales:
                found = scales[name].record_of(name)
            else:
                found = self._float(name, holder, tensor)
            names.add(name)
            if isinstance(found, str):
                self.others[name] = found
            elif found is not None:
                yield found

    def _float(self, name: str, holder: Constant, tensor: gs.Tensor) -> LeafWeight | str:
        places = self.places.of(tensor)
        why = self.places.why_not(tensor, places)
        return why or _leaf(name, label_of(places), holder)


@dataclass(eq=False)
class _Scale:
    """A scale on the way to its record."""

    name: str
    holder: Constant
    readers: list[str] = field(default_factory=list)
    twins: list[tuple[str, Constant]] = field(default_factory=list)

    def joined(self, other: _Scale) -> _Scale:
        """This one, with another that must stay equal."""
        if other is not self and other.name not in {name for name, _ in self.twins}:
            self.twins.append((other.name, other.holder))
            self.readers += other.readers
        return self

    def record_of(self, name: str) -> ScaleWeight | str | None:
        """The record; None for a twin, which is part of another; why the steps stay."""
        values = self.holder.values
        if is_power_of_two(values) or not (values > 0).all():
            return _STEPS
        if name != self.name:
            return None
        readers = tuple(dict.fromkeys(self.readers))
        return ScaleWeight(self.name, readers, self.holder, tuple(self.twins))


def _leaf(name: str, readers: tuple[str, ...], holder: Constant) -> LeafWeight:
    """The record of a float constant that is a weight, by its numbers."""
    values = holder.values
    few = few_values(values)
    if few is not None:
        table, codes = few
        if on_levels(table):
            return LevelWeight(name, readers, holder, table, zeros_stay(values))
        fixed = np.cumsum(table != 0) - 1
        numbers = np.where(table == 0, -1, fixed).astype(np.int32)
        return TiedWeight(name, readers, holder, numbers[codes])
    if isinstance(holder.stored, StoredSparse) or zeros_stay(values):
        return SparseWeight(name, readers, holder)
    return FreeWeight(name, readers, holder)


def _table(name: str, readers: tuple[str, ...], holder: Constant) -> LeafWeight:
    """The record of a table: zeros stay, and what fills it up stays equal to its last value."""
    table = holder.values
    readers = tuple(dict.fromkeys(readers))
    if table.ndim == 1 and table.size > 1 and table[-1] == table[-2]:
        last = table.size - 1
        while last and table[last - 1] == table[-1]:
            last -= 1
        numbers = np.minimum(np.arange(table.size), last)
        return TiedWeight(name, readers, holder, np.where(table == 0, -1, numbers).astype(np.int32))
    if bool((table == 0).any()) and bool(table.any()):
        return SparseWeight(name, readers, holder)
    return FreeWeight(name, readers, holder)

"""How labels go through a graph where channels may be mixed by a rotation.

As in `channels`, but for what pins a residual stream there: a normalization over the channels lets
their labels pass, a constant that is expanded before it joins them has labels, and so has a table
that a linear layer reads as well (a tied head).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import onnx_graphsurgeon as gs

from onnxslim.analysis.layers import WeightLayer, weight_layers
from onnxslim.analysis.linear_operators import LINEAR_OPS, TABLE_OPS
from onnxslim.analysis.normalizations import NORM_OPS, Normalization
from onnxslim.channels.groups import RULES
from onnxslim.channels.labels import ChannelLabels, along_axis, ids_along, labelled_axes
from onnxslim.channels.tracing import ChannelRule, ChannelTracer, Ids, Member, on_data
from onnxslim.graph.ir import Node
from onnxslim.graph.operands import const_value

_EXPANDING: Final = ("Expand", "Tile")


class StreamRules:
    """The rules for a graph with these normalizations.

    Attributes:
        rules: by operator.
        viewed: layers that read a constant which they share with a table, or through views.
    """

    def __init__(self, graph: gs.Graph, norms: Sequence[Normalization]) -> None:
        self._ends = {norm.nodes[0] for norm in norms}
        self._inner = {node for norm in norms for node in norm.nodes}
        layers = [layer for layer in weight_layers(graph)[0] if not layer.bodies]
        tables = {id(la.weight_tensor) for la in layers if la.node.op in TABLE_OPS}
        self.viewed = {
            layer.node: layer
            for layer in layers
            if layer.node.op in ("Gemm", "MatMul")
            and len(layer.holder.stored.shape) == 2
            and (layer.views or id(layer.weight_tensor) in tables)
        }
        self._columns: dict[int, Ids] = {}
        self.rules: Mapping[str, ChannelRule] = {
            **RULES,
            **{op: self._normalization(RULES.get(op)) for op in NORM_OPS},
            **{op: self._layer(RULES[op]) for op in LINEAR_OPS},
            **{op: self._expanded(RULES[op]) for op in _EXPANDING if op in RULES},
            "ReduceMean": self._mean(RULES["ReduceMean"]),
            "Gather": self._table(RULES["Gather"]),
            "GatherND": _rows,
        }

    def _normalization(self, other: ChannelRule | None) -> ChannelRule:
        @on_data
        def rule(
            node: Node, tracer: ChannelTracer, labels: ChannelLabels
        ) -> Sequence[ChannelLabels]:
            last = tracer.rank(node.inputs[0]) - 1
            for array in labels:
                if last in labelled_axes(array):
                    for operand in range(1, len(node.inputs)):
                        tracer.slice_operand(node, operand, 0, array, last)
            return (labels,)

        def choose(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
            if node in self._ends:
                return rule(node, tracer)
            if other is None:
                tracer.pin_all(node.inputs, f"`{node.label}` ({node.op}) normalizes over them")
                return ()
            return other(node, tracer)

        return choose

    def _mean(self, other: ChannelRule) -> ChannelRule:
        def rule(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
            return () if node in self._inner else other(node, tracer)

        return rule

    def _expanded(self, other: ChannelRule) -> ChannelRule:
        """A constant has labels along its last axis, such as the token of a class."""

        def rule(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
            tensor = node.inputs[0]
            stored = const_value(tensor)
            if stored is None or stored.dtype.kind != "f" or not stored.shape:
                return other(node, tracer)
            last, size = len(stored.shape) - 1, int(stored.shape[-1])
            if size < 2:
                return other(node, tracer)
            ids = tracer.fresh(size)
            tracer.slice_operand(node, 0, last, ids, 0)
            tracer.trace.writers.append(Member(node, None, 0, last, ids))
            tracer.trace.labels[tensor] = (along_axis(ids, last, last + 1),)
            result = other(node, tracer)
            del tracer.trace.labels[tensor]
            return result

        return rule

    def _table(self, other: ChannelRule) -> ChannelRule:
        """The columns of a table have labels, the same for all that look rows of it up."""

        def rule(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
            table, indices = node.inputs
            stored = const_value(table)
            is_table = stored is not None and len(stored.shape) == 2 and stored.dtype.kind == "f"
            if stored is None or not is_table or int(node.attrs.get("axis", 0)) % 2:
                return other(node, tracer)
            if tracer.labels(indices) or stored.shape[1] < 2 or not self._is_shared(table):
                return other(node, tracer)
            known = self._columns.get(id(table))
            ids = tracer.fresh(int(stored.shape[1])) if known is None else known
            self._columns[id(table)] = ids
            tracer.slice_operand(node, 0, 1, ids, 0)
            tracer.trace.writers.append(Member(node, None, 0, 1, ids))
            last = tracer.rank(indices)
            return ((along_axis(ids, last, last + 1),),)

        return rule

    def _is_shared(self, table: gs.Tensor) -> bool:
        """Whether several Gathers, and layers that are viewed, read a table, and nothing else."""
        readers = {layer.reader for layer in self.viewed.values() if layer.weight_tensor is table}
        users = list(table.outputs)
        return len(users) > 1 and all(user in readers or user.op == "Gather" for user in users)

    def _layer(self, other: ChannelRule) -> ChannelRule:
        def rule(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
            layer = self.viewed.get(node)
            data = None if layer is None else node.inputs[layer.data]
            if layer is None or data is None or not tracer.labels(data):
                return other(node, tracer)
            return _viewed(node, tracer, layer)

        return rule


def _rows(node: Node, tracer: ChannelTracer) -> Sequence[ChannelLabels]:
    """GatherND that looks up whole rows of a constant table."""
    table, indices = node.inputs
    stored, places = const_value(table), tracer.shape(indices)
    is_table = stored is not None and len(stored.shape) == 2 and stored.dtype.kind == "f"
    if stored is None or not is_table or places[-1] != 1 or node.attrs.get("batch_dims", 0):
        tracer.pin_all(node.inputs, f"`{node.label}` ({node.op}) picks some of them")
        return ()
    ids = tracer.fresh(int(stored.shape[1]))
    tracer.slice_operand(node, 0, 1, ids, 0)
    tracer.trace.writers.append(Member(node, None, 0, 1, ids))
    return ((along_axis(ids, len(places) - 1, len(places)),),)


def _viewed(node: Node, tracer: ChannelTracer, layer: WeightLayer) -> Sequence[ChannelLabels]:
    """A product with a constant that others read too reads channels; its outputs have no labels."""
    data = node.inputs[layer.data]
    axis = tracer.rank(data) + int(getattr(layer.unfolding, "axis", -1))
    ids = ids_along(tracer.labels(data), axis)
    others = [array for array in tracer.labels(data) if axis not in labelled_axes(array)]
    for array in others if ids is not None else tracer.labels(data):
        tracer.pin(array, f"`{node.label}` ({node.op}) shares its weight with other nodes")
    if ids is None:
        return ()
    at = 0 if layer.inputs_first else 1
    operand = 0 if layer.views else layer.weight
    tracer.slice_operand(layer.reader, operand, at, ids, 0)
    tracer.trace.readers.append(Member(layer.reader, layer, operand, at, ids))
    stored = at
    for view in layer.views:
        stored = 1 - stored if view.op == "Transpose" else stored
        tracer.trace.labels[view.outputs[0]] = (along_axis(ids, stored, 2),)
    return ()

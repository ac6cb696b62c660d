"""A graph made ready to be computed by torch: functions inlined, names unique, operators known.

Not here: what operators compute.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import count

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxslim.errors import NotApplicable
from onnxslim.graph.clone import clone_graph
from onnxslim.graph.inlining import inline_functions
from onnxslim.graph.ir import Constant, Graph, StoredSparse, redirect_inputs, walk_graphs
from onnxslim.graph.operands import constant_node_value
from onnxslim.graph.opset import COMPLETE, raise_opset
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.runtime.training.expanding import expand_unknown, unknown_nodes


def prepared(graph: gs.Graph) -> Graph:
    """A copy of `graph` without calls of local functions, types of tensors inferred.

    Where an operator is not known, its definition takes its place, or else, where it may be too
    old, the opset is raised.
    """
    copy = clone_graph(graph)
    inline_functions(copy, with_own=True)
    infer_shapes(Model.of(copy))
    is_changed = bool(unknown_nodes(copy)) and expand_unknown(copy)
    if unknown_nodes(copy):
        with suppress(NotApplicable):  # then what is missing is named as it stands
            raise_opset(copy, COMPLETE)
            is_changed = True
    _replace_constant_nodes(copy)
    _make_names_unique(copy)
    if is_changed:
        infer_shapes(Model.of(copy))
    return copy


def _replace_constant_nodes(graph: Graph) -> None:
    """Let constants take the place of nodes that hold them: weights are found in one form."""
    graphs = list(walk_graphs(graph))
    new: dict[gs.Tensor, Constant] = {}
    for current in graphs:
        for node in current.nodes:
            if _is_constant(node):
                new[node.outputs[0]] = Constant(node.outputs[0].name, _value_of(node))
        current.nodes = [node for node in current.nodes if not _is_constant(node)]
    for old, constant in new.items():
        redirect_inputs(list(old.outputs), old, constant)
        old.inputs.clear()
    for current in graphs:
        current.outputs = [new.get(tensor, tensor) for tensor in current.outputs]


def _is_constant(node: gs.Node) -> bool:
    return bool(node.op == "Constant" and node.is_onnx)


def _value_of(node: gs.Node) -> np.ndarray | LazyValues:
    sparse = node.attrs.get("sparse_value")
    if sparse is not None:
        return StoredSparse(sparse.sparse_tensor)
    value = constant_node_value(node)
    assert value is not None, node.label
    return value


def _make_names_unique(graph: Graph) -> None:
    """Rename constants whose name a tensor of another graph has: the first keeps it."""
    owners: dict[str, gs.Tensor] = {}
    for current in walk_graphs(graph):
        tensors = [t for node in current.nodes for t in (*node.inputs, *node.outputs)]
        for tensor in (*tensors, *current.outputs):
            if owners.setdefault(tensor.name, tensor) is not tensor and isinstance(
                tensor, Constant
            ):
                numbered = (f"{tensor.name}_{number}" for number in count(2))
                tensor.name = next(name for name in numbered if name not in owners)
                owners[tensor.name] = tensor

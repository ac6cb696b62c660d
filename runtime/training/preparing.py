"""A graph made ready to be computed by torch: local functions inlined, names unique.

Not here: what operators compute.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxslim.graph.clone import clone_graph
from onnxslim.graph.inlining import inline_functions
from onnxslim.graph.ir import Constant, Graph, walk_graphs
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes


def prepared(graph: gs.Graph) -> Graph:
    """A copy of `graph` without calls of local functions, types of tensors inferred."""
    copy = clone_graph(graph)
    inline_functions(copy, with_own=True)
    _make_names_unique(copy)
    infer_shapes(Model.of(copy))
    return copy


def _make_names_unique(graph: Graph) -> None:
    """Rename constants whose name a tensor of another graph has: the first keeps it."""
    owners: dict[str, gs.Tensor] = {}
    for current in walk_graphs(graph):
        for node in current.nodes:
            for tensor in (*node.inputs, *node.outputs):
                owner = owners.setdefault(tensor.name, tensor)
                if owner is not tensor and isinstance(tensor, Constant):
                    number = 2
                    while f"{tensor.name}_{number}" in owners:
                        number += 1
                    tensor.name = f"{tensor.name}_{number}"
                    owners[tensor.name] = tensor

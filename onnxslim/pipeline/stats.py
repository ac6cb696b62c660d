"""Measure the size of a model: nodes, parameters, bytes, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import onnx_graphsurgeon as gs

from onnxslim.codebook.nodes import codebook_nodes, element_count
from onnxslim.graph.counts import constants_of, count_macs, count_nodes
from onnxslim.graph.functions import is_codebook
from onnxslim.graph.inlining import inline_functions
from onnxslim.graph.ir import Constant, walk_graphs
from onnxslim.graph.local_functions import foreign_calls
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.report import Stats


def measure_stats(model: Model, *, file_bytes: int | None = None) -> Stats:
    """Nodes, parameters, bytes and multiply-accumulates of `model`.

    What local functions of other tools hold counts once for each call.

    Args:
        model: is edited in one way: its tensors get inferred shapes.
        file_bytes: size of the file of the model where it is known; None: the size that the file
            would have is computed.
    """
    size = model.file_bytes() if file_bytes is None else file_bytes
    if foreign_calls(model.graph):
        model = model.clone()
        inline_functions(model.graph)
        model.has_shapes = False
    infer_shapes(model)
    return replace(_counted(model.graph, size), macs=count_macs(model.graph))


def plain_stats(model: Model) -> Stats:
    """What can be counted in any model that was read, be it invalid; MACs are not known."""
    return _counted(model.graph, model.origin.file_bytes)


def _counted(graph: gs.Graph, file_bytes: int) -> Stats:
    constants = {id(c): c for inner in walk_graphs(graph) for c in constants_of(inner)}
    return Stats(
        nodes=count_nodes(graph),
        parameters=_parameters(graph, constants.values()),
        initializer_bytes=sum(constant.nbytes for constant in constants.values()),
        file_bytes=file_bytes,
        macs=None,
    )


def _parameters(graph: gs.Graph, constants: Iterable[Constant]) -> int:
    """Number of elements of all constants; a codebook counts as the weight that it decodes to."""
    parts = {
        id(tensor)
        for node in codebook_nodes(graph)
        for tensor in node.inputs
        if all(is_codebook(user.outputs[0]) for user in tensor.outputs)
    }
    plain = sum(constant.size for constant in constants if id(constant) not in parts)
    return plain + sum(map(element_count, codebook_nodes(graph)))

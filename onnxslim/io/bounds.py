"""What a model would ask of the machine, found without running it, held against `limits`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import numpy as np
import onnx_graphsurgeon as gs

from onnxslim.errors import ModelError
from onnxslim.graph.ir import node_label, walk_graphs
from onnxslim.graph.local_functions import Key, call_key, calls_of, function_key, function_name
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_cautiously, infer_shapes
from onnxslim.limits import MOST_CALL_DEPTH, MOST_NODES, MOST_TENSOR_BYTES, MOST_TENSOR_OF_FILE


def check_bounds(model: Model) -> None:
    """Refuse a model that no machine could run.

    Raises:
        ModelError: its functions call each other in a circle or stand for too many nodes, or a
            tensor is too large; with the name.
    """
    _check_functions(model)
    sized = model.clone()
    if infer_cautiously(sized):
        _check_sizes(sized)
        infer_shapes(sized)
    _check_sizes(sized)


def _check_sizes(model: Model) -> None:
    most = max(MOST_TENSOR_BYTES, MOST_TENSOR_OF_FILE * model.origin.file_bytes)
    for tensor, maker in _tensors(model.graph):
        nbytes = _known_bytes(tensor)
        if nbytes > most:
            raise ModelError(
                f"Tensor `{tensor.name}` ({maker}) takes {nbytes:,} bytes; {most:,} are taken at "
                "most. Declare smaller sizes."
            )


def _tensors(graph: gs.Graph) -> Iterator[tuple[gs.Tensor, str]]:
    """The tensors that are made while the model runs, and what makes them."""
    yield from ((tensor, "an input") for tensor in graph.inputs)
    for current in walk_graphs(graph):
        for node in current.nodes:
            if node.op != "Constant":  # lies in the file
                yield from ((tensor, f"{node.op} `{node_label(node)}`") for tensor in node.outputs)


def _known_bytes(tensor: gs.Tensor) -> int:
    """Bytes of a tensor whose sizes are all known, else of those that are."""
    if tensor.dtype is None or tensor.shape is None:
        return 0
    known = [size for size in tensor.shape if isinstance(size, int)]
    return int(math.prod(known) * np.dtype(tensor.dtype).itemsize)


def _check_functions(model: Model) -> None:
    functions = {function_key(item): item for item in model.graph.local_functions}
    if not functions:
        return
    calls = {key: list(calls_of(item.node)) for key, item in functions.items()}
    known = {key: [callee for callee in called if callee in calls] for key, called in calls.items()}
    try:
        order = list(TopologicalSorter(known).static_order())
    except CycleError as error:
        name = error.args[1][0][1]
        raise ModelError(
            f"Local functions call each other in a circle, through `{name}`."
        ) from None
    total: dict[Key, int] = {}
    depth: dict[Key, int] = {}
    for key in order:
        depth[key] = 1 + max((depth[callee] for callee in known[key]), default=0)
        if depth[key] > MOST_CALL_DEPTH:
            raise ModelError(
                f"Local functions call each other more than {MOST_CALL_DEPTH} deep, through "
                f"`{function_name(key)}`. Write them out."
            )
        total[key] = sum(total.get(callee, 1) for callee in calls[key])
    nodes = (node for graph in walk_graphs(model.graph) for node in graph.nodes)
    count = sum(total.get(call_key(node), 1) for node in nodes)
    if count > MOST_NODES:
        raise ModelError(
            f"With its local functions written out the model has {count:,} nodes; {MOST_NODES:,} "
            "are taken at most."
        )

"""What a model would ask of the machine, found without running it, held against `limits`."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

from onnxslim.errors import ModelError
from onnxslim.graph.ir import walk_graphs
from onnxslim.graph.local_functions import (
    Key,
    call_key,
    calls_of,
    expanded_sizes,
    function_key,
    function_name,
)
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.io.tensor_bounds import check_sizes
from onnxslim.limits import MOST_CALL_DEPTH, MOST_NODES


def check_bounds(model: Model) -> None:
    """Refuse a model that no machine could run.

    Raises:
        ModelError: its functions call each other in a circle or stand for too many nodes, or a
            tensor is too large; with the name.
    """
    _check_functions(model)
    sized = model.clone()
    infer_shapes(sized, careful=True)
    check_sizes(sized)


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
    depth: dict[Key, int] = {}
    for key in order:
        depth[key] = 1 + max((depth[callee] for callee in known[key]), default=0)
        if depth[key] > MOST_CALL_DEPTH:
            raise ModelError(
                f"Local functions call each other more than {MOST_CALL_DEPTH} deep, through "
                f"`{function_name(key)}`. Write them out."
            )
    total = expanded_sizes(calls)
    nodes = (node for graph in walk_graphs(model.graph) for node in graph.nodes)
    count = sum(total.get(call_key(node), 1) for node in nodes)
    if count > MOST_NODES:
        raise ModelError(
            f"With its local functions written out the model has {count:,} nodes; {MOST_NODES:,} "
            "are taken at most."
        )

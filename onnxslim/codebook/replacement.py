"""Replace a constant weight by a node of a model-local function that computes it.

`replace_constant` serves every form of storage (`lookup`, `fixed_point`): it adds the function, its
domain and, where needed, a newer IR version to the model, and lets all uses read the new node.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import numpy as np
import onnx

from onnxslim.graph.functions import DOMAIN, DOMAIN_VERSION
from onnxslim.graph.ir import Constant, Graph, Node, walk_graphs
from onnxslim.graph.rewrite import Rewriter
from onnxslim.records import Fidelity

FUNCTIONS_SINCE_IR: Final = 8


class WeightFunction(Protocol):
    """A model-local function that computes a weight from its stored form."""

    @property
    def name(self) -> str:
        """Name of the function in the domain `onnxslim`."""

    @property
    def least_opset(self) -> int:
        """The first opset that has all operators of the body."""

    @property
    def inputs(self) -> Sequence[str]:
        """Names of the function's inputs."""

    def function(self, opset: int) -> onnx.FunctionProto:
        """The function, at an opset of the standard domain."""


def why_not_replaceable(
    graph: Graph, function: WeightFunction, holder: Constant | None = None
) -> str | None:
    """Why the function cannot be used in `graph`, in place of `holder`; None when it can."""
    opset = graph.opset_of("")
    if opset is None or opset < function.least_opset:
        found = "no operators of ONNX" if opset is None else f"opset {opset}"
        return f"a codebook takes opset {function.least_opset}, and the model has {found}"
    version = graph.opset_of(DOMAIN)
    if version not in (None, DOMAIN_VERSION):
        return f"the model uses version {version} of the domain `{DOMAIN}`"
    present = function_of(graph, function.name)
    if present is not None and not is_written(function, present):
        return f"the model has another function of the name `{DOMAIN}.{function.name}`"
    if holder is not None and any(holder is out for g in walk_graphs(graph) for out in g.outputs):
        return "it is an output of a graph"
    return None


def check_replaceable(
    holder: Constant, dtype: np.dtype[np.floating], shape: tuple[int, ...], reason: str | None
) -> None:
    """Refuse to store a weight of `dtype` and `shape` in place of `holder`.

    Raises:
        ValueError: there is a `reason`, or `holder` is of another shape or type.
    """
    if reason is None and (holder.dtype, tuple(holder.shape)) != (dtype, shape):
        reason = f"it is {holder.dtype} {tuple(holder.shape)}, and the codebook {dtype} {shape}"
    if reason is not None:
        raise ValueError(f"`{holder.name}` cannot be stored as a codebook: {reason}.")


def replace_constant(
    rw: Rewriter,
    holder: Constant,
    function: WeightFunction,
    arrays: Iterable[np.ndarray],
    what: str,
    fidelity: Fidelity,
) -> tuple[str, ...]:
    """Let a node of `function` take the place of `holder`, wherever that is used.

    Args:
        rw: of the graph; it logs the change.
        holder: an initializer, or the value of a `Constant` node.
        function: of the node; it is added to the model.
        arrays: the node's inputs, in order.
        what: the change in words.
        fidelity: what the change promises.

    Returns:
        What the user should be told besides: that the IR version was raised.
    """
    notes = _prepare(rw.main, function)
    node = _constant_node(rw.main, holder)
    tensor = holder if node is None else node.outputs[0]
    inputs = [
        rw.constant(array, f"{tensor.name}.{part}")
        for part, array in zip(function.inputs, arrays, strict=True)
    ]
    rw.replace_constant(tensor, function.name, inputs, what, fidelity, domain=DOMAIN)
    return notes


def function_of(graph: Graph, name: str) -> onnx.FunctionProto | None:
    """The model's local function `onnxslim.name`."""
    found = (f for f in graph.local_functions if f.domain == DOMAIN and f.name == name)
    return next(found, None)


def is_written(function: WeightFunction, found: onnx.FunctionProto) -> bool:
    """Whether `found` is, to the letter, what `function` adds to a model of some opset."""
    opsets = [item.version for item in found.opset_import if item.domain == ""]
    if len(opsets) != 1 or opsets[0] < function.least_opset:
        return False
    # one that was added at an earlier opset and raised since keeps its nodes
    made = [function.function(opset) for opset in (opsets[0], function.least_opset)]
    for each in made:
        del each.opset_import[:]
        each.opset_import.extend(found.opset_import)
    return found in made


def _prepare(graph: Graph, function: WeightFunction) -> tuple[str, ...]:
    """Let the model of `graph` have the function; its lists are shared by all of its graphs."""
    if function_of(graph, function.name) is None:
        graph.local_functions.append(function.function(graph.opset_of("") or 1))
    graph.import_domain(DOMAIN, DOMAIN_VERSION)
    old = graph.ir_version
    if old is None or old >= FUNCTIONS_SINCE_IR:
        return ()
    for nested in walk_graphs(graph):
        nested.ir_version = FUNCTIONS_SINCE_IR
    return (
        f"IR version raised from {old} to {FUNCTIONS_SINCE_IR}, the first with model-local "
        "functions.",
    )


def _constant_node(graph: Graph, holder: Constant) -> Node | None:
    """The `Constant` node whose value is `holder`."""
    for current in walk_graphs(graph):
        for node in current.nodes:
            if node.op == "Constant" and node.attrs.get("value") is holder:
                return node  # type: ignore[no-any-return]
    return None

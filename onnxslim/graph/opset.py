"""A model raised to a later opset of the standard: the same operators in their newer forms.

Only nodes whose form or meaning changed are edited (see `opset_adapters`); bodies and local
functions are raised with the model. Inputs, outputs, names, metadata, doc strings and weights stay
as they are. What a later opset cannot say is declined, never guessed. Not here: the proof that a
raised model computes the same (see `pipeline/raising.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import takewhile
from typing import Final

import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from onnxslim.errors import NotApplicable
from onnxslim.graph.clone import adopt, clone_graph
from onnxslim.graph.ir import Graph, Node, node_label, walk_graphs
from onnxslim.graph.local_functions import function_graph
from onnxslim.graph.opset_adapters import ADAPTERS, NotExpressible, Raising
from onnxslim.graph.proto import graph_to_proto
from onnxslim.graph.rewrite import Rewriter
from onnxslim.records import Change

OLDEST: Final = 7  # the first without broadcasting attributes; onnxruntime runs none before
LATEST: Final = 23  # the last that `opset_adapters` knows
COMPLETE: Final = 21  # the last whose operators onnxruntime runs all: it has no RoiAlign of 22
_DOMAINS: Final = ("", "ai.onnx")
_EVERYTHING: Final = 1 << 62  # bytes: no tensor is that large, all stay in the message


def raise_opset(graph: gs.Graph, target: int) -> tuple[Change, ...]:
    """Bring a model to opset `target`, if it is below.

    Its nodes and tensors are new objects afterwards, and shapes are unknown behind new nodes.

    Args:
        graph: the main graph, with inferred shapes; left as it is when something cannot be raised.
        target: the opset to reach, at most `LATEST`.

    Returns:
        The nodes whose form changed, and how.

    Raises:
        NotApplicable: a node cannot be raised; the message names it and says why.
    """
    before = graph.opset_of("")
    if before is None:
        raise NotApplicable("it imports no operators of ONNX")
    if before >= target:
        return ()
    if before < OLDEST:
        raise NotApplicable(f"only models of opset {OLDEST} and later can be raised")
    if target > LATEST:
        raise NotApplicable(f"models can be raised to opset {LATEST} at most")
    copy = clone_graph(graph)
    changes = _raise_nodes(copy, before, target)
    functions = copy.local_functions
    functions[:] = [_raised_function(function, target) for function in functions]
    _set_opset(copy, target)
    adopt(graph, copy)
    return changes


def _raise_nodes(graph: Graph, before: int, target: int) -> tuple[Change, ...]:
    rw = Rewriter(graph)
    raising = Raising(rw, target)
    for node in [node for current in walk_graphs(graph) for node in current.nodes]:
        if not node.is_onnx:
            continue
        try:
            _raise_node(raising, node, before)
        except NotExpressible as reason:
            raise NotApplicable(f"`{node_label(node)}` ({node.op}): {reason}") from reason
    return rw.result().changes


def _raise_node(raising: Raising, node: Node, version: int) -> None:
    """Apply what changed after `version`, in order; an adapter may change the operator."""
    while True:
        since = _later(node.op, version, raising.target)
        if not since:
            break
        version = since[0]
        adapter = ADAPTERS.get((node.op, version))
        if adapter is not None:
            adapter(raising, node)
    _check_form(node, raising.target)


def _later(op: str, version: int, target: int) -> Sequence[int]:
    """The opsets after `version`, up to `target`, in which the operator changed."""
    known = _versions().get(op, ())
    return [v for v in takewhile(lambda v: v <= target, known) if v > version]


@cache
def _versions() -> Mapping[str, Sequence[int]]:
    """The opsets in which each operator of the standard changed, in order."""
    found: dict[str, list[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain in _DOMAINS:
            found.setdefault(schema.name, []).append(schema.since_version)
    return {name: sorted(versions) for name, versions in found.items()}


def _check_form(node: Node, target: int) -> None:
    """Refuse a node that is none of opset `target`, whatever it was before.

    Raises:
        NotExpressible: saying what does not fit.
    """
    try:
        schema = onnx.defs.get_schema(node.op, target, "")
    except onnx.defs.SchemaError:
        raise NotExpressible(f"opset {target} has no operator {node.op}") from None
    if schema.deprecated:
        raise NotExpressible(f"opset {target} has no operator {node.op} any more")
    for name in node.attrs:
        if name not in schema.attributes:
            raise NotExpressible(f"at opset {target} it has no attribute `{name}`")
    for word, tensors, least, most in (
        ("inputs", node.inputs, schema.min_input, schema.max_input),
        ("outputs", node.outputs, schema.min_output, schema.max_output),
    ):
        if not least <= len(tensors) <= most:
            raise NotExpressible(f"at opset {target} it has {least} to {most} {word}")


def _set_opset(graph: Graph, target: int) -> None:
    imports = [_raised_import(entry, target) for entry in graph.import_domains]
    for current in walk_graphs(graph):
        current.opset = target
        current.import_domains = imports
        current.local_functions = graph.local_functions


def _raised_import(entry: onnx.OperatorSetIdProto, target: int) -> onnx.OperatorSetIdProto:
    if entry.domain not in _DOMAINS or entry.version >= target:
        return entry
    return helper.make_opsetid(entry.domain, target)


# --------------------------------------------------------------------------- local functions


def _raised_function(function: onnx.FunctionProto, target: int) -> onnx.FunctionProto:
    """The function at opset `target`; operands that were attributes become `Constant` nodes."""
    versions = [entry.version for entry in function.opset_import if entry.domain in _DOMAINS]
    if not versions or versions[0] >= target:
        return function
    raised = onnx.FunctionProto()
    raised.CopyFrom(function)
    imports = [_raised_import(entry, target) for entry in function.opset_import]
    del raised.opset_import[:]
    raised.opset_import.extend(imports)
    graph = function_graph(function)
    try:
        if not _raise_nodes(graph, versions[0], target):
            return raised
    except NotApplicable as error:
        raise NotApplicable(f"function `{function.domain}.{function.name}`, {error}") from error
    graph.opset, graph.import_domains = target, imports
    content, _ = graph_to_proto(graph, _EVERYTHING)
    del raised.node[:]
    for tensor in content.initializer:
        name = tensor.name
        tensor.ClearField("name")
        raised.node.append(helper.make_node("Constant", [], [name], value=tensor))
    raised.node.extend(content.node)
    return raised

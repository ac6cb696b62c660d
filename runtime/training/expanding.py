"""Operators that no function of torch computes, as the functions that ONNX defines them by."""

from __future__ import annotations

from typing import Any, Final

import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from onnxslim.graph.ir import (
    Constant,
    Graph,
    Node,
    Variable,
    subgraphs_of,
    to_onnx_dtype,
    walk_graphs,
)
from onnxslim.graph.local_functions import FunctionTemplate
from onnxslim.graph.rewrite import Rewriter
from onnxslim.runtime.training.operators.table import entry_of, version_of

_DEPTH: Final = 3  # definitions within definitions


def is_known(node: Node, graph: Graph) -> bool:
    """Whether a function of torch computes `node`, at the opset of the main graph."""
    return entry_of(node, version_of(node, graph.opset_of(node.domain or ""))) is not None


def unknown_nodes(graph: Graph) -> list[Node]:
    """The nodes that no function of torch computes, bodies included."""
    nodes = (node for part in walk_graphs(graph) for node in part.nodes)
    return [node for node in nodes if not is_known(node, graph)]


def expand_unknown(graph: Graph) -> bool:
    """Let the definition of each unknown operator take its place, where ONNX has one.

    Args:
        graph: the main graph, with inferred types; edited.

    Returns:
        Whether there was one.
    """
    rw = Rewriter(graph)
    for _ in range(_DEPTH):
        found = [(node, _definition(node, graph)) for node in unknown_nodes(graph)]
        defined = [(node, function) for node, function in found if function is not None]
        for node, function in defined:
            body = FunctionTemplate(function, {}).body(node)
            del body.outputs[len(node.outputs) :]
            left_out = len(function.input) - len(node.inputs)
            operands = [*node.inputs, *(Variable("") for _ in range(left_out))]
            rw.inline(node, body, operands, f"{node.op} became its definition")
        if not defined:
            break
    return bool(rw.result().changes)


def _definition(node: Node, graph: Graph) -> onnx.FunctionProto | None:
    """The function that ONNX defines the operator of a node by; None where there is none."""
    opset = graph.opset_of("")
    if not node.is_onnx or opset is None or subgraphs_of(node):
        return None
    try:
        schema: Any = onnx.defs.get_schema(node.op, opset, "")  # its types lack some methods
    except onnx.defs.SchemaError:
        return None
    if schema.has_function:
        raw = schema.get_function_with_opset_version(opset)
    elif schema.has_context_dependent_function:
        types = [_type_of(tensor) for tensor in node.inputs]
        proto = _as_proto(node).SerializeToString()
        raw = schema.get_context_dependent_function_with_opset_version(opset, proto, types)
    else:
        return None
    if raw is None:
        return None
    function = onnx.FunctionProto()
    function.ParseFromString(raw)
    if len(node.inputs) > len(function.input) or len(node.outputs) > len(function.output):
        return None
    for name in function.attribute:
        default = schema.attributes[name].default_value
        if default.name:
            function.attribute_proto.append(default)
    return function


def _type_of(tensor: gs.Tensor) -> bytes:
    if not tensor.name or tensor.dtype is None:
        return onnx.TypeProto().SerializeToString()
    return helper.make_tensor_type_proto(to_onnx_dtype(tensor.dtype), None).SerializeToString()


def _as_proto(node: Node) -> onnx.NodeProto:
    inputs, outputs = ([tensor.name for tensor in side] for side in (node.inputs, node.outputs))
    attributes: dict[str, Any] = {
        name: numpy_helper.from_array(value.values) if isinstance(value, Constant) else value
        for name, value in node.attrs.items()
    }
    return helper.make_node(node.op, inputs, outputs, **attributes)

"""Model-local functions: who calls them, and their bodies as graphs.

A function is a FunctionProto until somebody asks for its body; the protos are never edited. A call
is a node whose domain, operator and overload are those of a function. onnxslim's own functions: see
`functions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, numpy_helper

from onnxslim.graph.functions import DOMAIN
from onnxslim.graph.ir import Constant, Graph, Node, walk_graphs
from onnxslim.graph.proto import graph_from_proto, read_attribute

Key = tuple[str, str, str]
"""Domain, name and overload of a function."""
_SHARED_BYTES: Final = 1024  # from here on, all calls of a function share a constant of its body


def function_key(function: onnx.FunctionProto) -> Key:
    """How nodes call `function`."""
    return (function.domain, function.name, function.overload)


def call_key(node: Node) -> Key:
    """The function that `node` calls, if the model has it."""
    return (node.domain or "", node.op, node.extra.overload if node.extra is not None else "")


def function_name(key: Key) -> str:
    """How messages name a function, such as `my.domain.Block`."""
    return ".".join(part for part in key if part)


def calls_of(protos: Iterable[onnx.NodeProto]) -> Iterator[Key]:
    """Domain, operator and overload of every node, bodies included."""
    for node in protos:
        yield (node.domain, node.op_type, node.overload)
        for attribute in node.attribute:
            yield from calls_of(attribute.g.node)
            for body in attribute.graphs:
                yield from calls_of(body.node)


def expanded_sizes(calls: Mapping[Key, Sequence[Key]]) -> dict[Key, int]:
    """Nodes of each function with all calls in it replaced.

    Functions that call each other in a circle, and those that call them, are left out.

    Args:
        calls: for each function, what its nodes call, as of `calls_of`.
    """
    sorter = TopologicalSorter(
        {key: [callee for callee in called if callee in calls] for key, called in calls.items()}
    )
    with suppress(CycleError):  # what needs no function of a circle can be had all the same
        sorter.prepare()
    sizes: dict[Key, int] = {}
    while ready := sorter.get_ready():
        for key in ready:
            sizes[key] = sum(sizes.get(callee, 1) for callee in calls[key])
        sorter.done(*ready)
    return sizes


def calls(graph: gs.Graph, with_own: bool) -> Mapping[Key, list[Node]]:
    """The nodes that call a function, by function; bodies included.

    Args:
        graph: the main graph.
        with_own: whether onnxslim's own functions count.
    """
    functions = {
        function_key(item) for item in graph.local_functions if with_own or item.domain != DOMAIN
    }
    found: dict[Key, list[Node]] = {}
    if functions:
        for current in walk_graphs(graph):
            for node in current.nodes:
                if node.domain and (key := call_key(node)) in functions:
                    found.setdefault(key, []).append(node)
    return found


def foreign_calls(graph: gs.Graph) -> Mapping[Key, list[Node]]:
    """The nodes that call a function of another tool, by function; bodies included."""
    return calls(graph, with_own=False)


def drop_unused_functions(graph: gs.Graph) -> list[onnx.FunctionProto]:
    """Remove the functions that no node needs, directly or through others, and return them."""
    functions = {function_key(function): function for function in graph.local_functions}
    pending = [call_key(n) for g in walk_graphs(graph) for n in g.nodes] if functions else []
    used: set[Key] = set()
    while pending:
        key = pending.pop()
        if key in functions and key not in used:
            used.add(key)
            pending += calls_of(functions[key].node)
    graph.local_functions[:] = [function for key, function in functions.items() if key in used]
    return [function for key, function in functions.items() if key not in used]


# --------------------------------------------------------------------------- bodies


def function_graph(function: onnx.FunctionProto) -> Graph:
    """The body of `function`; attributes that its caller gives stay AttributeProtos."""
    model = onnx.ModelProto(ir_version=8)
    model.opset_import.extend(function.opset_import)
    model.graph.node.extend(function.node)
    model.graph.input.extend(onnx.ValueInfoProto(name=name) for name in function.input)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in function.output)
    graph = graph_from_proto(model, lambda tensor: None)
    for tensor in (*graph.inputs, *graph.outputs):
        tensor.info = None  # a function declares no types
    _keep_references(function.node, graph)
    return graph


def _keep_references(protos: Iterable[onnx.NodeProto], graph: Graph) -> None:
    for proto, node in zip(protos, graph.nodes, strict=True):
        for attribute in proto.attribute:
            if attribute.ref_attr_name:
                node.attrs[attribute.name] = attribute
            elif attribute.type == AttributeProto.GRAPH:
                _keep_references(attribute.g.node, node.attrs[attribute.name])


@dataclass(frozen=True)
class FunctionTemplate:
    """A function prepared for being called often.

    Attributes:
        function: without its large constants, which are inputs behind its own ones.
        constants: their values, by name and in the order of these inputs.
    """

    function: onnx.FunctionProto
    constants: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, function: onnx.FunctionProto) -> FunctionTemplate:
        """Take the large constants out of `function`, which is left as it is."""
        light, constants = onnx.FunctionProto(), {}
        light.CopyFrom(function)
        del light.node[:]
        for node in function.node:
            values = _large_value(node)
            if values is None:
                light.node.append(node)
            else:
                constants[node.output[0]] = values
        light.input.extend(constants)
        return cls(light, constants)

    def body(self, call: Node) -> Graph:
        """The graph that `call` runs, with the attributes that it gives."""
        graph = function_graph(self.function)
        given = {attribute.name: attribute for attribute in self.function.attribute_proto}
        for current in walk_graphs(graph):
            for node in current.nodes:
                for name, value in list(node.attrs.items()):
                    if isinstance(value, AttributeProto) and value.ref_attr_name:
                        _resolve(node, name, value.ref_attr_name, call, given)
        return graph


def _large_value(node: onnx.NodeProto) -> np.ndarray | None:
    """The value of a Constant node of `_SHARED_BYTES` or more."""
    if node.op_type != "Constant" or node.domain or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.type != AttributeProto.TENSOR or attribute.ref_attr_name:
        return None
    if attribute.t.ByteSize() < _SHARED_BYTES or attribute.t.external_data:
        return None
    return np.asarray(numpy_helper.to_array(attribute.t))


def _resolve(
    node: Node, name: str, source: str, call: Node, defaults: Mapping[str, AttributeProto]
) -> None:
    """Give `node` the attribute that its caller, or the function by default, gives as `source`."""
    if source in call.attrs:
        node.attrs[name] = _copied(call.attrs[source])
        node.attr_types[name] = call.attr_types.get(source, node.attr_types.get(name, 0))
    elif source in defaults:
        node.attrs[name] = read_attribute(defaults[source])
    else:
        del node.attrs[name]


def _copied(value: Any) -> Any:
    """An attribute of another node: values that edits replace are not shared."""
    if isinstance(value, Constant):
        return Constant(value.name, value.stored)
    return list(value) if isinstance(value, list) else value

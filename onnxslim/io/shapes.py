"""Shape inference by ONNX itself, written onto the tensors of a graph.

Declared shapes of interior tensors are not believed: exporters get them wrong, and a fold that
relies on a wrong one is silently wrong. Shapes follow from the inputs alone, and from the declared
types of outputs of operators outside the standard.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.graph import wire
from onnxslim.graph.ir import Constant, Variable, subgraphs_of, walk_graphs
from onnxslim.graph.proto import set_type
from onnxslim.io.model import Model
from onnxslim.io.proto_bounds import HIDDEN, hide_unfollowed
from onnxslim.io.tensor_bounds import check_sizes

_GROWING: Final = frozenset(
    {"Range", "ConstantOfShape", "Expand", "Tile", "OneHot", "Pad", "Resize"}
)
"""Operators whose outputs are as long as one of their inputs says."""
_LONG: Final = 4096  # entries
_SLICE_OPSET: Final = 10
_LATER: Final = "onnxslim.later"
"""The domain of functions that stand for operators as a later opset infers them."""
_LOG = logging.getLogger("onnxslim")


def infer_shapes(model: Model, *, careful: bool = False) -> None:
    """Set `dtype` and `shape` of every variable of `model` from its inputs, if not done already.

    A type or shape that cannot be inferred becomes None. A dimension is an int, a symbol or None.

    Inference writes out the values of some tensors that it does not know. Where values of the model
    say how large tensors get, sizes are therefore looked at first.

    Args:
        model: edited.
        careful: whether sizes are looked at first in any case: nobody has done so yet.

    Raises:
        ModelError: a tensor is too large.
    """
    if model.has_shapes:
        return
    if careful or _has_growth(model):
        is_partial = _infer_cautiously(model)
        check_sizes(model)
        if not is_partial:
            return
    proto = _prepared(model)
    _write_types(_inferred(proto).graph, model.graph, main=True)
    model.has_shapes = True


def with_input_shapes(model: Model, shapes: Mapping[str, Sequence[int]]) -> Model:
    """A copy of `model` whose inputs have these `shapes`, by name; all others are inferred anew.

    Raises:
        ModelError: a tensor is too large.
    """
    copy = model.clone()
    for tensor in copy.graph.inputs:
        if tensor.name in shapes:
            tensor.shape = list(shapes[tensor.name])
            tensor.info = None  # drop the declared shape with its symbols
    copy.has_shapes = False
    infer_shapes(copy)
    return copy


def _infer_cautiously(model: Model) -> bool:
    """Set those dtypes and shapes that can be inferred in little memory, whatever the sizes.

    Returns:
        Whether any may have been left out.
    """
    proto = _prepared(model)
    is_partial = hide_unfollowed(proto.graph)
    proto.opset_import.add(domain=HIDDEN, version=1)
    _write_types(_inferred(proto).graph, model.graph, main=True)
    model.has_shapes = not is_partial
    return is_partial


def _has_growth(model: Model) -> bool:
    """Whether constants say that a list gets long, as folding may have found out."""
    return any(
        node.op in _GROWING and any(map(_is_long, node.inputs))
        for graph in walk_graphs(model.graph)
        for node in graph.nodes
    )


def _is_long(tensor: gs.Tensor) -> bool:
    """Whether `tensor` is a number, or the sizes of a list, and large."""
    if not isinstance(tensor, Constant) or math.prod(tensor.shape) not in (1, 2):
        return False
    return bool(np.max(np.asarray(tensor.values, np.float64)) > _LONG)


def _prepared(model: Model) -> onnx.ModelProto:
    """A skeleton whose shapes can be inferred afresh."""
    has_foreign = any(node.domain for graph in walk_graphs(model.graph) for node in graph.nodes)
    proto, _ = model.skeleton(interior=has_foreign)
    _densify_initializers(proto.graph)
    if has_foreign:
        _spell_products(proto.graph)
    if model.graph.opset == _SLICE_OPSET:
        _spell_slices(proto)
    _drop_defaults(proto.graph, model.graph)
    _drop_declared_shapes(proto.graph, {(f.domain, f.name) for f in proto.functions})
    if any(attribute.HasField("g") for node in proto.graph.node for attribute in node.attribute):
        _tell_names_apart(proto.graph, set(), {})
    return proto


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    for follow_values in (True, False):
        try:
            return onnx.shape_inference.infer_shapes(proto, data_prop=follow_values)
        except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
            _LOG.info("Shapes could not be inferred: %s", error)
    return proto


def _densify_initializers(graph: onnx.GraphProto) -> None:
    """Replace sparse initializers, which inference refuses, by dense ones without values."""
    for sparse in graph.sparse_initializer:
        tensor = graph.initializer.add(name=sparse.values.name, dims=sparse.dims)
        tensor.data_type = sparse.values.data_type
        wire.placeholder(tensor, 0, 0)
    del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _densify_initializers(attribute.g)


def _spell_products(graph: onnx.GraphProto) -> None:
    """Write MatMulNBits of onnxruntime, which inference does not know, as MatMul."""
    for node in graph.node:
        if (node.domain, node.op_type) == ("com.microsoft", "MatMulNBits"):
            sizes = {attribute.name: attribute.i for attribute in node.attribute}
            if not {"K", "N"} <= sizes.keys() or not node.input:
                continue
            weight = graph.initializer.add(name=f"{node.output[0]}/onnxslim_weight")
            weight.dims.extend((sizes["K"], sizes["N"]))
            weight.data_type = onnx.TensorProto.FLOAT
            wire.placeholder(weight, 0, 0)
            operands = [node.input[0], weight.name]
            node.CopyFrom(onnx.helper.make_node("MatMul", operands, list(node.output)))
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _spell_products(attribute.g)


def _spell_slices(proto: onnx.ModelProto) -> None:
    """Let each Slice be inferred as in opset 13: as in 10, its output has all of an open axis."""
    most = 0
    for graph in _graphs_of(proto.graph):
        for node in graph.node:
            if node.op_type == "Slice" and not node.domain:
                node.domain, node.op_type = _LATER, f"Slice{len(node.input)}"
                most = max(most, len(node.input))
    proto.opset_import.extend([onnx.helper.make_opsetid(_LATER, 1)] if most else [])
    for count in range(3, most + 1):
        names = ["x", "starts", "ends", "axes", "steps"][:count]
        body = [onnx.helper.make_node("Slice", names, ["y"])]
        opset = [onnx.helper.make_opsetid("", 13)]
        function = onnx.helper.make_function(_LATER, f"Slice{count}", names, ["y"], body, opset)
        proto.functions.append(function)


def _graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """`graph` and all bodies in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs_of(attribute.g)


def _drop_defaults(proto: onnx.GraphProto, graph: gs.Graph) -> None:
    """Drop the values of inputs that callers may override: inference would build on them."""
    names = {tensor.name for tensor in graph.inputs if getattr(tensor, "default", None) is not None}
    for index in reversed(range(len(proto.initializer))):
        if proto.initializer[index].name in names:
            del proto.initializer[index]


def _drop_declared_shapes(graph: onnx.GraphProto, functions: set[tuple[str, str]]) -> None:
    """Drop declared shapes that inference could contradict."""
    foreign = {
        name
        for node in graph.node
        if node.domain not in ("", "ai.onnx") and (node.domain, node.op_type) not in functions
        for name in node.output
    }
    kept = [info for info in graph.value_info if info.name in foreign]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for info in graph.output:
        if info.type.HasField("tensor_type") and info.name not in foreign:
            info.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                for info in attribute.g.input:  # a value that a loop carries may change its shape
                    info.type.tensor_type.ClearField("shape")
                _drop_declared_shapes(attribute.g, functions)


def _tell_names_apart(graph: onnx.GraphProto, taken: set[str], renamed: dict[str, str]) -> None:
    """Give each tensor of a body a name of its own: inference keeps values by name alone.

    Args:
        graph: edited.
        taken: names of graphs visited so far; added to.
        renamed: new names of the tensors of enclosing graphs, by their old ones.
    """
    made = [name for node in graph.node for name in node.output]
    own = dict.fromkeys([*(item.name for item in (*graph.input, *graph.initializer)), *made])
    scope = {name: new for name, new in renamed.items() if name not in own}
    for name in filter(None, own):
        if name in taken:
            scope[name] = f"{name}_{len(taken)}"
            while scope[name] in taken:
                scope[name] += "_"
        taken.add(scope.get(name, name))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _tell_names_apart(attribute.g, taken, scope)
    if not scope:
        return
    for node in graph.node:
        node.input[:] = [scope.get(name, name) for name in node.input]
        node.output[:] = [scope.get(name, name) for name in node.output]
    for item in (*graph.input, *graph.initializer, *graph.value_info, *graph.output):
        item.name = scope.get(item.name, item.name)


def _write_types(proto: onnx.GraphProto, graph: gs.Graph, *, main: bool = False) -> None:
    found = {info.name: info.type for info in (*proto.value_info, *proto.output)}
    if not main:
        found.update({info.name: info.type for info in proto.input})
    for node, node_proto in zip(graph.nodes, proto.node, strict=True):
        for tensor, name in zip(node.outputs, node_proto.output, strict=False):
            if isinstance(tensor, Variable) and tensor.name:
                kind = found.get(name)
                if kind is None:
                    tensor.dtype = tensor.shape = None
                else:
                    set_type(tensor, kind)
        bodies = [a.g for a in node_proto.attribute if a.HasField("g")]
        for body_proto, body in zip(bodies, subgraphs_of(node), strict=False):
            _write_types(body_proto, body)

"""ModelProto to graph and back, losing nothing and copying no weight.

`graph_from_proto` reads a skeleton (see `wire`), `graph_to_proto` writes one together with the
payloads that belong to its placeholders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, helper, numpy_helper

from onnxslim.errors import ModelError
from onnxslim.graph import wire
from onnxslim.graph.ir import (
    ELEMENT_TYPES,
    Constant,
    Graph,
    Node,
    Stored,
    StoredList,
    StoredSparse,
    Variable,
    node_label,
    storage_bytes,
    to_numpy_dtype,
    to_onnx_dtype,
    walk_graphs,
)
from onnxslim.graph.owners import owners
from onnxslim.graph.sizes import is_name

ReadPayload = Callable[[onnx.TensorProto], wire.Buffer | None]
"""Gives the bytes of an external tensor or placeholder, None when they are in the tensor itself."""

_Proto = TypeVar("_Proto", onnx.NodeProto, onnx.GraphProto)
_PLAIN: dict[int, str] = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
}
_NODE_FIELDS = frozenset({"input", "output", "name", "op_type", "domain", "attribute"})
_GRAPH_FIELDS = frozenset(
    {"node", "name", "doc_string", "initializer", "sparse_initializer"}
    | {"input", "output", "value_info"}
)


# --------------------------------------------------------------------------- reading


def graph_from_proto(model: onnx.ModelProto, read: ReadPayload) -> Graph:
    """Build the graph of `model`; weights stay where `read` finds them.

    Raises:
        ModelError: a tensor's bytes do not match its type and shape.
    """
    graph = _Reader(read).graph(model.graph, {}, inputs_are_defaults=model.ir_version >= 4)
    imports = list(model.opset_import)
    functions = list(model.functions)
    for current in walk_graphs(graph):
        current.import_domains = imports
        current.opset = graph.opset_of("") or 1
        current.ir_version = model.ir_version
        current.local_functions = functions
    graph.producer_name = model.producer_name
    graph.producer_version = model.producer_version
    return graph


def read_attribute(proto: AttributeProto) -> Any:
    """The value of an attribute that refers to no tensor outside itself."""
    return _Reader(lambda tensor: None).attribute(proto, {})


class _Reader:
    def __init__(self, read: ReadPayload) -> None:
        self.read = read

    def graph(
        self,
        proto: onnx.GraphProto,
        outer: dict[str, gs.Tensor],
        *,
        inputs_are_defaults: bool = False,
    ) -> Graph:
        graph = Graph(name=proto.name, doc_string=proto.doc_string)
        local: dict[str, gs.Tensor] = {}  # tensors of this graph alone, by name
        for tensor in proto.initializer:
            if tensor.name in local:
                raise ModelError(f"Two initializers have the name `{tensor.name}`.")
            local[tensor.name] = self.constant(tensor)
        for sparse in proto.sparse_initializer:
            _check_type(sparse.values)
            local[sparse.values.name] = Constant(sparse.values.name, StoredSparse(sparse))
        if inputs_are_defaults:
            self._defaults(proto, local)
        constants = [tensor for tensor in local.values() if isinstance(tensor, Constant)]
        for constant in constants:
            constant.home = graph
        # declared types first, so that nodes find the tensors that they describe
        for info in proto.value_info:
            _describe(local, info)
        graph.inputs = [
            _describe(local, info)
            for info in proto.input
            if not isinstance(local.get(info.name), Constant)
        ]
        # a body may return a tensor of an outer graph, which keeps its own description
        outputs = [_describe(local, info) for info in proto.output if info.name not in outer]
        scope = {**outer, **local} if outer else local
        graph.nodes = [self.node(node, scope, local) for node in proto.node]
        by_name = {tensor.name: tensor for tensor in outputs}
        graph.outputs = [by_name.get(info.name) or scope[info.name] for info in proto.output]
        for constant in constants:
            if not constant.outputs and not any(constant is out for out in graph.outputs):
                graph.unused.append(constant)
        graph.extra = _leftovers(proto, _GRAPH_FIELDS)
        return graph

    def _defaults(self, proto: onnx.GraphProto, local: dict[str, gs.Tensor]) -> None:
        for info in proto.input:
            constant = local.get(info.name)
            if isinstance(constant, Constant) and isinstance(constant.stored, Stored):
                variable = Variable(info.name)
                variable.default = constant.stored
                local[info.name] = variable

    def constant(self, tensor: onnx.TensorProto) -> Constant:
        _check_type(tensor)
        buffer = self.read(tensor)
        if buffer is None:
            _check_inline_size(tensor)
        return Constant(tensor.name, Stored(tensor, buffer))

    def node(
        self, proto: onnx.NodeProto, scope: dict[str, gs.Tensor], local: dict[str, gs.Tensor]
    ) -> Node:
        def tensor(name: str) -> gs.Tensor:
            if not name:
                return Variable("")
            found = scope.get(name)
            if found is None:
                found = scope[name] = local[name] = Variable(name)
            return found

        def produced(name: str) -> gs.Tensor:
            if name and name not in local:  # outputs are always of this graph
                scope.pop(name, None)
            return tensor(name)

        attrs = {item.name: self.attribute(item, scope) for item in proto.attribute}
        inputs = [tensor(name) for name in proto.input]
        outputs = [produced(name) for name in proto.output]
        node = Node(proto.op_type, proto.name, attrs, inputs, outputs, proto.domain or None)
        node.attr_types = {item.name: item.type for item in proto.attribute}
        node.extra = _leftovers(proto, _NODE_FIELDS)
        return node

    def _list(self, proto: AttributeProto, offset: int, nbytes: int) -> wire.Buffer:
        stub = onnx.TensorProto(name=proto.name, data_type=onnx.TensorProto.UINT8, dims=[nbytes])
        wire.placeholder(stub, offset, nbytes)
        found = self.read(stub)
        assert found is not None
        return found

    def attribute(self, proto: AttributeProto, scope: dict[str, gs.Tensor]) -> Any:
        placed = wire.list_entries(proto)
        if placed is not None:
            return StoredList(proto.name, proto.type, self._list(proto, *placed))
        kind = proto.type  # a reference means nothing outside a function: the value counts
        if kind in _PLAIN:
            value = getattr(proto, _PLAIN[kind])
            return list(value) if kind in (AttributeProto.FLOATS, AttributeProto.INTS) else value
        if kind == AttributeProto.STRING:
            return _text(proto.s)
        if kind == AttributeProto.STRINGS:
            return [_text(item) for item in proto.strings]
        if kind == AttributeProto.TENSOR:
            return self.constant(proto.t)
        if kind == AttributeProto.GRAPH:
            return self.graph(proto.g, scope)
        if kind == AttributeProto.GRAPHS:
            return [self.graph(graph, scope) for graph in proto.graphs]
        return proto  # sparse tensors, types: written back as they came


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _raw(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _describe(local: dict[str, gs.Tensor], info: onnx.ValueInfoProto) -> gs.Tensor:
    """The tensor named by `info`, made if need be, with the type that `info` declares."""
    tensor = local.get(info.name)
    if tensor is None:
        tensor = local[info.name] = Variable(info.name)
    if tensor.info is None or info.type.ByteSize() >= tensor.info.type.ByteSize():
        tensor.info = info
        if isinstance(tensor, Variable):
            set_type(tensor, info.type)
    return tensor


def set_type(variable: Variable, proto: onnx.TypeProto) -> None:
    """Take dtype and shape from a TypeProto; what it leaves open becomes None."""
    kind = proto.WhichOneof("value")
    variable.type = kind or "tensor_type"
    if kind != "tensor_type":
        variable.dtype = variable.shape = None
        return
    dense = proto.tensor_type
    variable.dtype = to_numpy_dtype(dense.elem_type) if dense.elem_type else None
    variable.shape = [_dim(dim) for dim in dense.shape.dim] if dense.HasField("shape") else None


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    kind = dim.WhichOneof("value")
    if kind == "dim_value":
        # some old exporters write a negative size for an unknown one
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    # "?" is no name: two such dimensions need not be equal
    return str(dim.dim_param) if is_name(dim.dim_param) else None


def _check_type(tensor: onnx.TensorProto) -> None:
    if tensor.data_type not in ELEMENT_TYPES:
        raise ModelError(
            f"Tensor `{tensor.name}` has the element type {tensor.data_type}, which ONNX does not "
            "know."
        )


def _check_inline_size(tensor: onnx.TensorProto) -> None:
    if not tensor.HasField("raw_data"):
        return  # typed fields are counted by the ONNX checker
    elements = int(np.prod(tensor.dims, dtype=np.int64))
    expected = storage_bytes(tensor.data_type, elements)
    if expected is not None and len(tensor.raw_data) != expected:
        raise ModelError(
            f"Tensor `{tensor.name}` has {len(tensor.raw_data)} bytes of data, but its type "
            f"{onnx.TensorProto.DataType.Name(tensor.data_type)} and shape {tuple(tensor.dims)} "
            f"need {expected}."
        )


def _leftovers(proto: _Proto, known: frozenset[str]) -> _Proto | None:
    """A copy of the fields of `proto` outside `known`, None when there are none."""
    rest = [(field, value) for field, value in proto.ListFields() if field.name not in known]
    if not rest:
        return None
    kept = type(proto)()
    for field, value in rest:
        if hasattr(value, "MergeFrom"):
            getattr(kept, field.name).MergeFrom(value)
        else:
            setattr(kept, field.name, value)
    return kept


# --------------------------------------------------------------------------- writing


def graph_to_proto(
    graph: Graph, threshold: int = wire.DEFAULT_THRESHOLD, *, interior: bool = True
) -> tuple[onnx.GraphProto, list[wire.Payload]]:
    """The GraphProto of `graph`, with a placeholder for every tensor of `threshold` bytes or more.

    A placeholder's `offset` is the index of its payload in the list that is returned. Without
    `interior`, declared types of tensors inside the graph are left out.
    """
    writer = _Writer(graph, threshold, interior)
    return writer.graph(graph), writer.payloads


class _Writer:
    def __init__(self, graph: Graph, threshold: int, interior: bool) -> None:
        self.main = graph
        self.interior = interior
        self.threshold = threshold
        self.payloads: list[wire.Payload] = []
        self.owned = owners(graph)

    def graph(self, graph: gs.Graph) -> onnx.GraphProto:
        proto = onnx.GraphProto()
        if graph.extra is not None:
            proto.MergeFrom(graph.extra)
        proto.name = graph.name
        if graph.doc_string:
            proto.doc_string = graph.doc_string
        proto.node.extend([self.node(node) for node in graph.nodes])
        constants = self.owned.get(id(graph), [])
        if isinstance(graph, Graph):
            constants = constants + graph.unused
        for constant in constants:
            if isinstance(constant.stored, StoredSparse):
                sparse = proto.sparse_initializer.add()
                sparse.CopyFrom(constant.stored.tensor)
                sparse.values.name = constant.name
            else:
                self.tensor(proto.initializer.add(), constant)
        proto.input.extend(_signature(tensor) for tensor in graph.inputs)
        if graph is self.main:
            self._inputs_with_initializers(proto, constants)
        proto.output.extend(_signature(tensor) for tensor in graph.outputs)
        if self.interior:
            proto.value_info.extend(self._interior(graph))
        return proto

    def _inputs_with_initializers(self, proto: onnx.GraphProto, constants: list[Constant]) -> None:
        for tensor in self.main.inputs:
            if isinstance(tensor, Variable) and tensor.default is not None:
                self.tensor(proto.initializer.add(), Constant(tensor.name, tensor.default))
        if (self.main.ir_version or 4) < 4:  # there, every initializer must be an input too
            proto.input.extend(_value_info(tensor) for tensor in constants)

    def _interior(self, graph: gs.Graph) -> Iterator[onnx.ValueInfoProto]:
        edge = {id(tensor) for tensor in (*graph.inputs, *graph.outputs)}
        for node in graph.nodes:
            for tensor in node.outputs:
                info = getattr(tensor, "info", None)
                if info is not None and id(tensor) not in edge:
                    yield _value_info(tensor)

    def node(self, node: gs.Node) -> onnx.NodeProto:
        proto = onnx.NodeProto(
            op_type=node.op,
            input=[tensor.name for tensor in node.inputs],
            output=[tensor.name for tensor in node.outputs],
        )
        if node.name:
            proto.name = node.name
        if node.domain:
            proto.domain = node.domain
        types = getattr(node, "attr_types", {})
        for name, value in node.attrs.items():
            self.attribute(proto.attribute.add(), node, name, value, types.get(name))
        extra = getattr(node, "extra", None)
        if extra is not None:
            proto.MergeFrom(extra)
        return proto

    def attribute(
        self, proto: AttributeProto, node: gs.Node, name: str, value: Any, kind: int | None
    ) -> None:
        if isinstance(value, AttributeProto):
            proto.CopyFrom(value)
            proto.name = name
            return
        if isinstance(value, StoredList):
            index, nbytes = len(self.payloads), len(value.buffer)
            proto.CopyFrom(wire.list_placeholder(name, value.kind, index, nbytes))
            self.payloads.append(wire.Payload(nbytes, lambda: value.buffer, is_list=True))
            return
        proto.name = name
        kind = kind or self._attribute_type(node, name, value)
        proto.type = kind  # type: ignore[assignment]
        if kind in (AttributeProto.FLOAT, AttributeProto.INT):
            setattr(proto, _PLAIN[kind], value)
        elif kind in (AttributeProto.FLOATS, AttributeProto.INTS):
            getattr(proto, _PLAIN[kind]).extend(value)
        elif kind == AttributeProto.STRING:
            proto.s = _raw(value)
        elif kind == AttributeProto.STRINGS:
            proto.strings.extend(map(_raw, value))
        elif kind == AttributeProto.TENSOR:
            self.tensor(proto.t, value)
        elif kind == AttributeProto.GRAPH:
            proto.g.CopyFrom(self.graph(value))
        elif kind == AttributeProto.GRAPHS:
            proto.graphs.extend(self.graph(graph) for graph in value)
        else:
            label = node_label(node)
            raise ModelError(f"Attribute `{name}` of `{label}` has the unknown kind {kind}.")

    def _attribute_type(self, node: gs.Node, name: str, value: Any) -> int:
        if isinstance(value, gs.Graph):
            return AttributeProto.GRAPH
        if isinstance(value, gs.Constant):
            return AttributeProto.TENSOR
        try:
            version = self.main.opset_of(node.domain or "") or 1
            schema = onnx.defs.get_schema(node.op, version, node.domain or "")
            declared: Any = schema.attributes[name].type
            return int(declared)
        except (onnx.defs.SchemaError, KeyError):
            return int(helper.make_attribute(name, value).type)

    def tensor(self, proto: onnx.TensorProto, constant: gs.Constant) -> None:
        stored = constant._values
        if isinstance(stored, Stored):
            proto.CopyFrom(stored.tensor)
            if proto.data_location == onnx.TensorProto.EXTERNAL:
                proto.ClearField("external_data")
                proto.ClearField("data_location")
            if stored.buffer is not None:
                self._payload(proto, wire.Payload(stored.nbytes, lambda: stored.buffer))  # type: ignore[arg-type, return-value]
        else:
            self._array(proto, np.asarray(constant.values))
        proto.name = constant.name

    def _array(self, proto: onnx.TensorProto, array: np.ndarray) -> None:
        proto.data_type = to_onnx_dtype(array.dtype)
        proto.dims.extend(array.shape)
        nbytes = storage_bytes(proto.data_type, array.size)
        if nbytes is None:
            strings = (text.encode() if isinstance(text, str) else text for text in array.flat)
            proto.string_data.extend(strings)
        elif nbytes >= self.threshold:
            self._payload(proto, wire.Payload(nbytes, lambda: raw_bytes(array)))
        else:
            _write_small(proto, array)

    def _payload(self, proto: onnx.TensorProto, payload: wire.Payload) -> None:
        wire.placeholder(proto, len(self.payloads), payload.nbytes)
        self.payloads.append(payload)


def name_nodes(graph: onnx.GraphProto) -> None:
    """Call nodes without a name as their first output, so that errors tell which they are of."""
    taken = {node.name for node in graph.node}
    for node in graph.node:
        if not node.name and node.output and node.output[0] not in taken:
            node.name = node.output[0]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                name_nodes(attribute.g)


def raw_bytes(array: np.ndarray) -> wire.Buffer:
    """The bytes of `array` as in raw_data: little endian, sub-byte types packed."""
    data_type = to_onnx_dtype(array.dtype)
    contiguous = np.ascontiguousarray(array)
    bits_packed = storage_bytes(data_type, array.size) != contiguous.nbytes
    if bits_packed or contiguous.dtype.byteorder == ">" or contiguous.dtype.hasobject:
        return bytes(numpy_helper.from_array(contiguous).raw_data)
    return contiguous.reshape(-1).view(np.uint8).data


def _write_small(proto: onnx.TensorProto, array: np.ndarray) -> None:
    """Write a small array in whichever of raw_data and int64_data takes fewer bytes.

    Shapes and axes are most of the small tensors in real models, and a small positive int64 is
    one byte as a varint but eight in raw_data.
    """
    raw = bytes(raw_bytes(array))
    if array.dtype == np.int64 and array.size:
        values = array.reshape(-1).tolist()
        if sum(map(wire.varint_bytes, values)) < len(raw):
            proto.int64_data.extend(values)
            return
    proto.raw_data = raw


def _signature(tensor: gs.Tensor) -> onnx.ValueInfoProto:
    """The declaration of an input or output: as in the file, whatever was inferred since."""
    declared = getattr(tensor, "info", None)
    if declared is None:
        return _value_info(tensor)
    info = onnx.ValueInfoProto()
    info.CopyFrom(declared)
    info.name = tensor.name
    return info


def _value_info(tensor: gs.Tensor) -> onnx.ValueInfoProto:
    """The declaration as it was read, with the present dtype and shape."""
    info = onnx.ValueInfoProto()
    declared = getattr(tensor, "info", None)
    if declared is not None:
        info.CopyFrom(declared)
    info.name = tensor.name
    if isinstance(tensor, gs.Constant):
        if declared is None:
            info.type.tensor_type.elem_type = to_onnx_dtype(np.dtype(tensor.dtype))
            info.type.tensor_type.shape.SetInParent()  # a scalar has no dimension
            for size in tensor.shape:
                info.type.tensor_type.shape.dim.add().dim_value = size
        return info
    if tensor.dtype is None or (declared is not None and _still_declared(tensor, declared)):
        return info
    dense = info.type.tensor_type
    dense.elem_type = to_onnx_dtype(np.dtype(tensor.dtype))
    if tensor.shape is not None:
        dense.ClearField("shape")
        dense.shape.SetInParent()
        for size in tensor.shape:
            dim = dense.shape.dim.add()
            if isinstance(size, str):
                dim.dim_param = size
            elif size is not None:
                dim.dim_value = int(size)
    return info


def confirms(tensor: gs.Variable) -> bool:
    """Whether every size that the file declares of `tensor` was inferred as well."""
    declared = tensor.info
    if declared is None:
        return True
    probe = Variable(tensor.name)
    set_type(probe, declared.type)
    if probe.shape is None or probe.type != "tensor_type":
        return True
    if tensor.shape is None or len(tensor.shape) != len(probe.shape):
        return False
    pairs = zip(probe.shape, tensor.shape, strict=True)
    return all(new == old for old, new in pairs if isinstance(old, int))


def _still_declared(tensor: gs.Variable, declared: onnx.ValueInfoProto) -> bool:
    """Whether `declared` agrees with the present dtype and shape of `tensor`.

    Inference only refines declarations, and a file is not rewritten for that: a declaration is
    replaced only where type, rank or a known size contradicts it.
    """
    probe = Variable(tensor.name)
    set_type(probe, declared.type)
    if probe.type != "tensor_type" or probe.dtype is None:
        return True
    if np.dtype(tensor.dtype) != probe.dtype:
        return False
    if probe.shape is None or tensor.shape is None:
        return True
    if len(probe.shape) != len(tensor.shape):
        return False
    return not any(
        isinstance(old, int) and isinstance(new, int) and old != new
        for old, new in zip(probe.shape, tensor.shape, strict=True)
    )

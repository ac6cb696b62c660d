"""Checks of a model that need no onnxruntime: the ONNX checker, the signature, the fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field

import onnx
import onnx_graphsurgeon as gs

from onnxslim.errors import ModelError, RuntimeFailure
from onnxslim.graph import wire
from onnxslim.graph.ir import Variable, node_label, walk_graphs
from onnxslim.graph.proto import name_nodes
from onnxslim.io.model import Model

OLDEST_OPSET = 7  # the oldest that onnxruntime runs
_KNOWN_DOMAINS = (
    "",
    "ai.onnx",
    "ai.onnx.ml",
    "com.microsoft",
    "com.microsoft.nchwc",
    "com.ms.internal.nhwc",
    "com.microsoft.experimental",
)


_NAMED = 3  # inputs or outputs that a message names


def admit(model: Model, loads: Callable[[Model], object]) -> Iterator[str]:
    """Take a model that the ONNX checker or onnxruntime accepts.

    Args:
        model: as it was read.
        loads: opens it in onnxruntime; asked only where the checker objects.

    Yields:
        A note for the report, where only the checker objects.

    Raises:
        ModelError: both refuse it; with the checker's words and the node that they name.
    """
    objection = checker_objection(model)
    if objection is None:
        return
    try:
        loads(model)
    except RuntimeFailure as error:
        raise ModelError(f"The model is invalid: {objection}. {error}") from error
    yield f"The ONNX checker refuses the model, which onnxruntime runs: {objection}."


def check_model(model: Model, before: Model | None = None) -> None:
    """Require that the ONNX checker accepts `model`, unless it refused `before` already.

    Raises:
        ModelError: it refuses the model; with its words and the node that they name.
    """
    objection = checker_objection(model)
    if objection is not None and (before is None or checker_objection(before) is None):
        raise ModelError(f"The model is invalid: {objection}.")


def checker_objection(model: Model) -> str | None:
    """What the ONNX checker says against a model, None where it accepts it.

    Large weights are left out: their sizes were checked when the model was read.
    """
    proto, _ = model.skeleton()
    name_nodes(proto.graph)
    for tensor in _tensors(proto.graph):
        if wire.external_entries(tensor).get("location") == wire.PLACEHOLDER:
            del tensor.dims[:]
            tensor.dims.append(0)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError) as error:
        return " ".join(str(error).split()).rstrip(".") + _without_shape(proto, str(error))
    return None


def _without_shape(proto: onnx.ModelProto, objection: str) -> str:
    """The inputs and outputs without a shape, where the checker objects to that and names none."""
    if "'shape'" not in objection:
        return ""
    ends = (*proto.graph.input, *proto.graph.output)
    tensors = [info for info in ends if info.type.HasField("tensor_type")]
    names = [f"`{info.name}`" for info in tensors if not info.type.tensor_type.HasField("shape")]
    return f" ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"


def foreign_operators(model: Model) -> list[str]:
    """Operators of domains that neither ONNX, onnxruntime nor the model itself defines.

    Each as `domain.operator (node)`, in order, the same operator once.
    """
    known = {*_KNOWN_DOMAINS, *(function.domain for function in model.graph.local_functions)}
    found: dict[str, str] = {}
    for graph in walk_graphs(model.graph):
        for node in graph.nodes:
            if (node.domain or "") not in known:
                found.setdefault(f"{node.domain}.{node.op}", node_label(node))
    return [f"`{operator}` (node `{label}`)" for operator, label in found.items()]


def signature(model: Model, *, without: Container[str] = ()) -> tuple[bytes, ...]:
    """Inputs and outputs as declared: name, dtype and shape, in order, serialized.

    Where a pass was asked to shorten one (`Variable.kept`), its length is that of the original.

    Args:
        model: the model.
        without: names of outputs to leave out.
    """
    declared = []
    outputs = [tensor for tensor in model.graph.outputs if tensor.name not in without]
    for tensors in (model.graph.inputs, outputs):
        for tensor in tensors:
            info = getattr(tensor, "info", None)
            kind = b"" if info is None else _original_type(tensor, info)
            declared.append(tensor.name.encode() + b"\0" + kind)
        declared.append(b"|")
    return tuple(declared)


def _original_type(tensor: gs.Tensor, info: onnx.ValueInfoProto) -> bytes:
    kept = getattr(tensor, "kept", None)
    if kept:
        original = onnx.ValueInfoProto()
        original.CopyFrom(info)
        for axis, mask in kept.items():
            original.type.tensor_type.shape.dim[axis].dim_value = len(mask)
        info = original
    content: bytes = info.type.SerializeToString(deterministic=True)
    return content


@dataclass(frozen=True)
class Fingerprint:
    """The state of a graph; equal to a later one of the same graph if nothing was edited."""

    words: list[object]
    # weights count by identity, and an identity is only unique while its object lives
    weights: list[object] = field(compare=False, repr=False)


def fingerprint(graph: gs.Graph) -> Fingerprint:
    """Structure, attributes and weights (by identity): any edit changes them.

    The names are those of the graph, so that equal states are compared by identity, for the most.
    """
    words: list[object] = []
    weights: list[object] = []
    for current in walk_graphs(graph):
        for node in current.nodes:
            words += (node.op, node.domain, node.name, len(node.inputs), len(node.outputs))
            words += _words((*node.inputs, *node.outputs), weights)
            words += node.attrs
            words += _words(node.attrs.values(), weights)
        for tensors in (current.inputs, current.outputs, getattr(current, "unused", ())):
            words.append(len(tensors))
            words += _words(tensors, weights)
    weights += getattr(graph, "local_functions", ())
    words += map(id, getattr(graph, "local_functions", ()))
    return Fingerprint(words, weights)


def _words(values: Iterable[object], weights: list[object]) -> list[object]:
    """A word for each tensor or value of an attribute; nearly all are plain tensors."""
    return [v.name if type(v) is Variable else _word(v, weights) for v in values]


def _word(value: object, weights: list[object]) -> object:
    if isinstance(value, gs.Constant):
        weights.append(value._values)
        return value.name, id(value._values)
    return value.name if isinstance(value, gs.Graph | gs.Tensor) else repr(value)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for body in (attribute.g, *attribute.graphs) if attribute.type else ():
                yield from _tensors(body)

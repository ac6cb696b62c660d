"""A model's opset, raised to the first one that can express what quantization writes.

Only models without bodies and local functions can be converted: onnx's version converter knows no
others.
"""

from __future__ import annotations

from typing import Final

import onnx
import onnx_graphsurgeon as gs

from onnxslim.errors import NotApplicable
from onnxslim.graph import wire
from onnxslim.graph.clone import adopt
from onnxslim.graph.ir import Graph, subgraphs_of
from onnxslim.graph.proto import graph_from_proto, graph_to_proto

OPSET: Final = 13  # the first in which scales go along an axis


def raise_opset(
    graph: gs.Graph, target: int = OPSET, needs: str = "int8 weights with a scale for each channel"
) -> tuple[int, int] | None:
    """Bring `graph` to the opset that quantization needs, where it is below.

    Its nodes and tensors are new objects afterwards.

    Args:
        graph: the graph to raise.
        target: the opset to reach; by default the first with scales along an axis.
        needs: the feature that needs it, in words.

    Returns:
        The opset before and after; None where it was high enough.

    Raises:
        NotApplicable: the model has bodies or local functions, or onnx cannot convert it.
    """
    before = int(graph.opset)
    if before >= target:
        return None
    why = f"its opset is {before}, {needs} need {target}"
    if any(subgraphs_of(node) for node in graph.nodes) or graph.local_functions:
        raise NotApplicable(
            f"{why}, and models with bodies or local functions cannot be converted: export it at a "
            "later opset"
        )
    converted = _converted(graph, target, why)
    converted.ir_version, converted.extra = graph.ir_version, graph.extra
    converted.local_functions = graph.local_functions
    adopt(graph, converted)
    return before, target


def _converted(graph: gs.Graph, target: int, why: str) -> Graph:
    proto = onnx.ModelProto(ir_version=graph.ir_version or 8)
    content, payloads = graph_to_proto(graph, wire.DEFAULT_THRESHOLD)
    proto.graph.CopyFrom(content)
    proto.opset_import.extend(graph.import_domains)
    large = _taken_out(proto.graph)
    try:
        proto = onnx.version_converter.convert_version(proto, target)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise NotApplicable(f"{why}, and onnx cannot convert it: {error}") from error
    names = {tensor.name for tensor in large}
    kept = [info for info in proto.graph.input if info.name not in names]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    proto.graph.initializer.extend(large)
    del proto.graph.value_info[:]  # the converter declares every tensor, which takes room
    proto.graph.value_info.extend(content.value_info)
    proto.ir_version = graph.ir_version or proto.ir_version

    def read(tensor: onnx.TensorProto) -> wire.Buffer | None:
        entries = wire.external_entries(tensor)
        if entries.get("location") != wire.PLACEHOLDER:
            return None
        return payloads[int(entries["offset"])].read()

    return graph_from_proto(proto, read)


def _taken_out(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Declare weights that lie elsewhere as inputs, and return them: onnx cannot read them."""
    large: list[onnx.TensorProto] = []
    small: list[onnx.TensorProto] = []
    for tensor in graph.initializer:
        is_large = wire.external_entries(tensor).get("location") == wire.PLACEHOLDER
        (large if is_large else small).append(_copy(tensor))
    del graph.initializer[:]
    graph.initializer.extend(small)
    known = {info.name for info in graph.input}
    for tensor in large:
        if tensor.name not in known:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return large


def _copy(tensor: onnx.TensorProto) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    return copy

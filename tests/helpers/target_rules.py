"""What engines refuse, read from a file without the code that writes it.

Each rule is a function of the message that lists what breaks it; `BROKEN` has the rules of each
target, by what was seen when its engine was run, or read where it was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

Rule = Callable[[onnx.ModelProto], list[str]]
_STANDARD = ("", "ai.onnx")
_FOUR_BITS = (TensorProto.INT4, TensorProto.UINT4)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                found[node.output[0]] = attribute.t
            if attribute.HasField("g"):
                found |= _constants(attribute.g)
    return found


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def functions(model: onnx.ModelProto) -> list[str]:
    return [function.name for function in model.functions]


def sparse(model: onnx.ModelProto) -> list[str]:
    found = [tensor.values.name for tensor in model.graph.sparse_initializer]
    for node in _nodes(model.graph):
        found += [node.output[0] for a in node.attribute if a.name == "sparse_value"]
    return found


def other_domains(model: onnx.ModelProto) -> list[str]:
    used = [f"{n.domain}.{n.op_type}" for n in _nodes(model.graph) if n.domain not in _STANDARD]
    return used + [o.domain for o in model.opset_import if o.domain not in _STANDARD]


def domains_but_nbits(model: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in _nodes(model.graph)
            if n.domain not in _STANDARD and n.op_type != "MatMulNBits"]  # fmt: skip


def wide_nbits(model: onnx.ModelProto) -> list[str]:
    return [n.output[0] for n in _nodes(model.graph)
            if n.op_type == "MatMulNBits" and _attribute(n, "bits", 4) == 8]  # fmt: skip


def four_bits(model: onnx.ModelProto) -> list[str]:
    return [n for n, t in _constants(model.graph).items() if t.data_type in _FOUR_BITS]


def blocks(model: onnx.ModelProto) -> list[tuple[str, int, int, int]]:
    """Name, length of the axis, block and element type of blockwise DequantizeLinear nodes."""
    constants, found = _constants(model.graph), []
    for node in _nodes(model.graph):
        block = _attribute(node, "block_size", 0)
        if node.op_type == "DequantizeLinear" and block and node.input[0] in constants:
            codes = constants[node.input[0]]
            length = codes.dims[_attribute(node, "axis", 1)]
            found.append((node.output[0], length, block, codes.data_type))
    return found


def uneven(model: onnx.ModelProto) -> list[str]:
    return [name for name, length, block, _ in blocks(model) if length % block]


def misread(model: onnx.ModelProto) -> list[str]:
    """Blocks from which OpenVINO 2026.4.1 was seen to compute other values."""
    return [
        name
        for name, _, block, kind in blocks(model)
        if (block % 4 if kind == TensorProto.INT8 else block % 2 or (block > 32 and block % 32))
    ]


def any_block(model: onnx.ModelProto) -> list[str]:
    return [name for name, *_ in blocks(model)]


def quantizing(model: onnx.ModelProto) -> list[str]:
    return [n.output[0] for n in _nodes(model.graph)
            if n.op_type in ("QuantizeLinear", "DequantizeLinear")]  # fmt: skip


def zero_points(model: onnx.ModelProto) -> list[str]:
    constants, found = _constants(model.graph), []
    for node in _nodes(model.graph):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
            zero = constants.get(node.input[2])
            if zero is None or numpy_helper.to_array(zero).astype(np.int64).any():
                found.append(node.output[0])
    return found


def codes_but_signed(model: onnx.ModelProto) -> list[str]:
    constants, found = _constants(model.graph), []
    for node in _nodes(model.graph):
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            if constants[node.input[0]].data_type not in (TensorProto.INT8, TensorProto.INT4):
                found.append(node.output[0])
        elif node.op_type == "QuantizeLinear":
            zero = constants.get(node.input[2]) if len(node.input) > 2 else None
            if zero is None or zero.data_type != TensorProto.INT8:
                found.append(node.output[0])
    return found


def decoding(model: onnx.ModelProto) -> list[str]:
    """Operators that read small integers, other than DequantizeLinear."""
    small = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, *_FOUR_BITS)
    coded = {n for n, t in _constants(model.graph).items() if t.data_type in small}
    return [n.output[0] for n in _nodes(model.graph)
            if coded & set(n.input) and "Quantize" not in n.op_type
            and "quantize" not in n.op_type]  # fmt: skip


def operators(*names: str) -> Rule:
    def rule(model: onnx.ModelProto) -> list[str]:
        return [n.output[0] for n in _nodes(model.graph) if n.op_type in names]

    return rule


def halves(model: onnx.ModelProto) -> list[str]:
    inferred = onnx.shape_inference.infer_shapes(model)
    infos = [*inferred.graph.value_info, *inferred.graph.output]
    kinds = {info.name: info.type.tensor_type.elem_type for info in infos}
    return [n.output[0] for n in inferred.graph.node
            if n.op_type not in ("Cast", "Constant")
            and kinds.get(n.output[0]) == TensorProto.FLOAT16]  # fmt: skip


def opsets(least: int, most: int) -> Rule:
    def rule(model: onnx.ModelProto) -> list[str]:
        versions = [o.version for o in model.opset_import if o.domain in _STANDARD]
        return [str(version) for version in versions if not least <= version <= most]

    return rule


_PLAIN = (functions, sparse, other_domains, four_bits, any_block, quantizing,
          operators("DynamicQuantizeLinear", "MatMulInteger", "MatMulNBits"))  # fmt: skip
BROKEN: Mapping[str, tuple[Rule, ...]] = {
    "web": (opsets(1, 26),),
    "openvino": (functions, sparse, domains_but_nbits, uneven, misread, opsets(7, 26)),
    "tract": (functions, sparse, domains_but_nbits, wide_nbits, four_bits, any_block, halves),
    "opencv": _PLAIN,
    "mnn": _PLAIN,
    "portable": (*_PLAIN, operators("If"), halves, opsets(7, 26)),
    "tensorrt": (sparse, other_domains, uneven, misread, zero_points, codes_but_signed, decoding,
                 operators("DynamicQuantizeLinear", "MatMulInteger"), opsets(9, 25)),
    "qnn": (sparse, four_bits, any_block),
}  # fmt: skip
"""By target, the rules that a file for it must not break."""


def broken(model: onnx.ModelProto, target: str) -> list[str]:
    """What in a file a target would not take, with the rule that says so."""
    return [
        f"{getattr(rule, '__name__', 'rule')}: {what}"
        for rule in BROKEN[target]
        for what in rule(model)
    ]

"""Which float32 operands of a node may become float16, by the ONNX schema of its operator.

Owns: the few facts that schemas do not hold. An operator that a later ONNX adds needs no line here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnxslim.graph.ir import Node, subgraphs_of, to_numpy_dtype

FLOAT16: Final = np.dtype(np.float16)
FLOAT32: Final = np.dtype(np.float32)

# operators of which every operand stays as it is, scales above all
QUANTIZED: Final = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)
# type parameters of coordinates: float16 tells every second of them apart from 2048 on
_COORDINATES: Final = frozenset({("Resize", "T2"), ("RoiAlign", "T1"), ("GridSample", "T2")})
# their result's type is an attribute that can be changed
_RETYPED: Final = frozenset({"Cast", "ConstantOfShape"})


@dataclass(frozen=True)
class HalfOperands:
    """The indices of the operands of a node that become float16, all together."""

    inputs: frozenset[int]
    outputs: frozenset[int]

    def tensors(self, node: Node) -> Iterator[gs.Tensor]:
        """The operands, each once."""
        found = [node.inputs[index] for index in sorted(self.inputs)]
        found += [node.outputs[index] for index in sorted(self.outputs)]
        yield from dict.fromkeys(found)


def half_operands(node: Node, opset: int) -> HalfOperands | str | None:
    """The operands of `node` that may be float16; or why none may; None: it has none in float32."""
    operands = [tensor for tensor in (*node.inputs, *node.outputs) if tensor.name]
    if node.op == "Constant" or not any(_may_be_float(tensor) for tensor in operands):
        return None
    why = _objection(node)
    if why is not None:
        return why
    if any(tensor.dtype is None for tensor in operands):
        return "a type is not known"
    half = _allowed(node, opset)
    if half is None:
        return f"opset {opset} of ONNX has no {node.op}"
    if not half.inputs and not half.outputs:
        return f"{node.op} has no float16 in opset {opset}"
    return _untyped(node, opset, half) or half


def positions_of(node: Node, opset: int) -> frozenset[int]:
    """The inputs of `node` that the schema allows to be float16."""
    if not node.is_onnx or node.op in QUANTIZED or subgraphs_of(node):
        return frozenset()
    half = _allowed(node, opset)
    return frozenset() if half is None else half.inputs


def _may_be_float(tensor: gs.Tensor) -> bool:
    return tensor.dtype is None or np.dtype(tensor.dtype) == FLOAT32


def _objection(node: Node) -> str | None:
    if not node.is_onnx:
        return f"nothing is known of {node.op} of the domain {node.domain}"
    if subgraphs_of(node):
        return f"what {node.op} hands to its bodies and back stays float32"
    if node.op in QUANTIZED:
        return "it is quantized: scales stay float32"
    if node.op == "Cast":
        target = to_numpy_dtype(int(node.attrs["to"]))
        if target not in (FLOAT16, FLOAT32):
            return f"what becomes {target.name} should be exact"
    return None


def _allowed(node: Node, opset: int) -> HalfOperands | None:
    schema = _schema(node.op, opset)
    if schema is None:
        return None
    formals = (schema.inputs, schema.outputs)
    inputs, outputs = (
        frozenset(
            index
            for index, tensor in enumerate(actual)
            if tensor.name
            and tensor.dtype is not None
            and np.dtype(tensor.dtype) == FLOAT32
            and _takes_float16(schema, formal, index)
        )
        for formal, actual in zip(formals, (node.inputs, node.outputs), strict=True)
    )
    return HalfOperands(inputs, outputs)


def _takes_float16(schema: onnx.defs.OpSchema, formals: Sequence[object], index: int) -> bool:
    name = _parameter(formals, index)
    return (schema.name, name) not in _COORDINATES and name in _float16_parameters(
        schema.name, schema.since_version
    )


def _parameter(formals: Sequence[object], index: int) -> str:
    """The type parameter, or type, of an operand; the last formal may stand for many."""
    return str(formals[min(index, len(formals) - 1)].type_str)  # type: ignore[attr-defined]


def _untyped(node: Node, opset: int, half: HalfOperands) -> str | None:
    """The objection that an attribute, and no input, sets the type of a result."""
    if node.op in _RETYPED:
        return None
    schema = _schema(node.op, opset)
    assert schema is not None
    given = {_parameter(schema.inputs, index) for index in half.inputs}
    if all(_parameter(schema.outputs, index) in given for index in half.outputs):
        return None
    return f"an attribute sets the type of the result of {node.op}"


@cache
def _schema(op: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op, max_inclusive_version=opset, domain="")
    except onnx.defs.SchemaError:
        return None


@cache
def _float16_parameters(op: str, version: int) -> frozenset[str]:
    schema = onnx.defs.get_schema(op, max_inclusive_version=version, domain="")
    return frozenset(
        constraint.type_param_str
        for constraint in schema.type_constraints
        if "tensor(float16)" in constraint.allowed_type_strs
    )


def is_bridge(node: Node) -> bool:
    """Whether it is a Cast between float16 and float32: a border that is there already."""
    if node.op != "Cast" or not node.is_onnx or node.inputs[0].dtype is None:
        return False
    types = {np.dtype(node.inputs[0].dtype), to_numpy_dtype(int(node.attrs["to"]))}
    return types == {FLOAT16, FLOAT32}


CAST_TO: Final = {FLOAT16: int(TensorProto.FLOAT16), FLOAT32: int(TensorProto.FLOAT)}
"""The attribute `to` of a Cast."""

"""Bytes that constants and nodes take in a file, so that a pass can tell what an edit saves.

Owns: the sizes of what the graph's classes are written as. Not here: protobuf's own arithmetic
(see `wire`), the writing itself (see `proto`).
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxslim.graph.dims import static_shape
from onnxslim.graph.ir import (
    Constant,
    Node,
    StoredList,
    StoredSparse,
    storage_bytes,
    subgraphs_of,
    to_onnx_dtype,
)
from onnxslim.graph.wire import DEFAULT_THRESHOLD, field_bytes, initializer_bytes, varint_bytes


def static_bytes(tensor: gs.Tensor) -> int | None:
    """Bytes of the values of `tensor`; None where type or shape are unknown, and for strings."""
    shape = static_shape(tensor) if tensor.name else None
    if shape is None or tensor.dtype is None:
        return None
    return storage_bytes(to_onnx_dtype(np.dtype(tensor.dtype)), prod(shape))


def payload_bytes(array: np.ndarray) -> int:
    """Bytes that the values of `array` take in the file."""
    if array.dtype == object:
        return sum(field_bytes(len(str(text).encode())) for text in array.flat)
    if array.dtype == np.int64 and array.nbytes < DEFAULT_THRESHOLD:
        # small ones are written as varints where that is shorter
        return min(array.nbytes, sum(varint_bytes(int(value)) for value in array.flat))
    return array.nbytes


def constant_bytes(constant: Constant, *, is_input: bool) -> int:
    """Bytes that `constant` takes in the file as an initializer.

    Args:
        constant: as it will be written.
        is_input: whether it is listed as a graph input too, as below IR version 4.
    """
    stored = constant.stored
    if isinstance(stored, StoredSparse):
        return int(stored.nbytes)
    if isinstance(stored, np.ndarray):
        payload = payload_bytes(stored)
    elif stored.buffer is not None:
        payload = stored.nbytes
    else:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(stored.tensor)
        for field in ("name", "dims", "data_type"):
            tensor.ClearField(field)
        payload = tensor.ByteSize() - 2  # one field is left, the values: without tag and length
    return initializer_bytes(constant.name, stored.shape, payload, is_input=is_input)


def node_bytes(node: Node) -> int:
    """Bytes that `node` takes in the file, with its bodies but not what they share, at least."""
    total = 4 + len(node.op)
    total += field_bytes(len(node.name.encode())) if node.name else 0
    for tensor in (*node.inputs, *node.outputs):
        total += field_bytes(len(tensor.name.encode()))
    for name, value in node.attrs.items():
        total += 7 + len(name) + _value_bytes(value)
    for body in subgraphs_of(node):
        total += sum(node_bytes(inner) for inner in body.nodes)
    return total


def _value_bytes(value: object) -> int:
    if isinstance(value, StoredList):
        return len(value.buffer)
    if isinstance(value, list | str | bytes):
        return 2 * len(value) if isinstance(value, list) else 2 + len(value)
    return constant_bytes(value, is_input=False) if isinstance(value, Constant) else 2

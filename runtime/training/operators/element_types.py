"""Element types of ONNX as types of torch.

Floats narrower than the type that is computed in are held in that type: a Cast to float16 rounds,
and everything after it is computed as onnxruntime does on a CPU. float64 stays float64.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from onnx import TensorProto

from onnxslim.graph.ir import to_onnx_dtype

_INTEGERS: Final[dict[int, torch.dtype]] = {
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    # torch computes nothing in these
    TensorProto.UINT16: torch.int32,
    TensorProto.UINT32: torch.int64,
    TensorProto.UINT64: torch.int64,
    TensorProto.INT4: torch.int8,
    TensorProto.UINT4: torch.uint8,
    TensorProto.INT2: torch.int8,
    TensorProto.UINT2: torch.uint8,
}
NARROW_FLOATS: Final[dict[int, torch.dtype]] = {
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}
FLOATS: Final = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, *NARROW_FLOATS})


def torch_dtype(element_type: int, dtype: torch.dtype) -> torch.dtype | None:
    """The type that values of an ONNX type are held in; None for texts and the like."""
    if element_type in _INTEGERS:
        return _INTEGERS[element_type]
    if element_type == TensorProto.DOUBLE:
        return torch.float64
    return dtype if element_type in FLOATS else None


def integer_bounds(element_type: int) -> tuple[int, int] | None:
    """The least and the largest integer of a type, None for types of other values."""
    name = TensorProto.DataType.Name(element_type)
    if not name.startswith(("INT", "UINT")):
        return None
    bits = int(name.lstrip("UINT"))
    return (0, 2**bits - 1) if name[0] == "U" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def stored_tensor(array: np.ndarray) -> torch.Tensor | None:
    """The values of a constant as they are stored, copied; None where torch has none such."""
    element_type = to_onnx_dtype(array.dtype)
    if element_type == TensorProto.FLOAT:
        return torch.from_numpy(np.array(array))
    if element_type in NARROW_FLOATS:
        narrow = NARROW_FLOATS[element_type]
        bits = np.array(array).view(f"i{array.dtype.itemsize}")
        return torch.from_numpy(bits).view(narrow)
    held = torch_dtype(element_type, torch.float32)
    if held is None:
        return None
    return torch.from_numpy(np.array(array.astype(str(held).removeprefix("torch."))))

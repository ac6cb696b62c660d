"""Weights that are mostly zero, as sparse initializers: the other values and where they are.

onnxruntime reads them back as dense weights when it loads a model, wherever a dense initializer may
stand (any number of dimensions but none, in bodies too). Places are
linear indices, ascending. They are written as varints, which take three or four bytes each where
raw int64 takes eight.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto

from onnxslim.graph.ir import StoredSparse, to_onnx_dtype
from onnxslim.graph.proto import raw_bytes

# those that onnxruntime has been seen to read back
_TYPES: Final = frozenset({"float16", "float32", "float64", "int8", "int32", "int64"})
_MIN_INDEX_BYTES: Final = 1
_HEADER_BYTES: Final = 32  # of the message and the two tensors in it, about


def sparse_or_dense(array: np.ndarray) -> np.ndarray | StoredSparse:
    """Whichever takes fewer bytes in a file: `array` itself, or its values that are not zero.

    -0.0 is a value, so what is read back is equal bit for bit: set pruned weights to +0.0.
    """
    if array.ndim == 0 or array.dtype.name not in _TYPES:
        return array
    bits = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    count = int(np.count_nonzero(bits))
    if count * (array.dtype.itemsize + _MIN_INDEX_BYTES) + _HEADER_BYTES >= array.nbytes:
        return array
    sparse = _sparse(array, np.flatnonzero(bits))
    return StoredSparse(sparse) if sparse.ByteSize() < array.nbytes else array


def _sparse(array: np.ndarray, places: np.ndarray) -> onnx.SparseTensorProto:
    sparse = onnx.SparseTensorProto(dims=array.shape)
    sparse.values.data_type = to_onnx_dtype(array.dtype)
    sparse.values.dims.append(places.size)
    sparse.values.raw_data = bytes(raw_bytes(array.reshape(-1)[places]))
    sparse.indices.data_type = TensorProto.INT64
    sparse.indices.dims.append(places.size)
    sparse.indices.int64_data.extend(places.tolist())
    return sparse

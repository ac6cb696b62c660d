"""Weights that are mostly zero as sparse initializers: nonzero values and their linear indices.

onnxruntime reads a sparse initializer back as a dense weight when it loads a model, wherever a
dense initializer may stand: with one dimension or more, in bodies too. The ascending indices are
written as varints, which take three or four bytes each where raw int64 takes eight.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxslim.graph.ir import StoredSparse, to_onnx_dtype
from onnxslim.graph.proto import raw_bytes

# types that onnxruntime reads back, as tests show
_TYPES: Final = frozenset({"float16", "float32", "float64", "int8", "int32", "int64"})
_MIN_INDEX_BYTES: Final = 1
_HEADER_BYTES: Final = 32  # about, of the message and of the two tensors in it


def sparse_or_dense(array: np.ndarray) -> np.ndarray | StoredSparse:
    """`array`, or its sparse form if that takes fewer bytes in a file.

    -0.0 counts as a value, so that the array is read back to the bit: set pruned weights to +0.0.
    """
    if array.ndim == 0 or array.dtype.name not in _TYPES:
        return array
    bits = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    count = int(np.count_nonzero(bits))
    if count * (array.dtype.itemsize + _MIN_INDEX_BYTES) + _HEADER_BYTES >= array.nbytes:
        return array
    sparse = _sparse(array, np.flatnonzero(bits))
    return StoredSparse(sparse) if sparse.ByteSize() < array.nbytes else array


def _sparse(array: np.ndarray, indices: np.ndarray) -> onnx.SparseTensorProto:
    sparse = onnx.SparseTensorProto(dims=array.shape)
    sparse.values.data_type = to_onnx_dtype(array.dtype)
    sparse.values.dims.append(indices.size)
    sparse.values.raw_data = bytes(raw_bytes(array.reshape(-1)[indices]))
    sparse.indices.data_type = TensorProto.INT64
    sparse.indices.dims.append(indices.size)
    sparse.indices.int64_data.extend(indices.tolist())
    return sparse


def with_values(stored: StoredSparse, dense: np.ndarray) -> np.ndarray | StoredSparse:
    """The values of `dense` in the form of `stored`, at the same indices.

    Where `dense` has values at others, its own indices are taken, or the dense form, by which of
    them takes fewer bytes.
    """
    made = onnx.SparseTensorProto()
    made.CopyFrom(stored.tensor)
    indices = numpy_helper.to_array(made.indices)
    if indices.ndim == 2:  # [NNZ, rank]
        indices = np.ravel_multi_index(tuple(indices.T), stored.shape)
    kept = np.zeros(dense.size, bool)
    kept[indices] = True
    if dense.reshape(-1)[~kept].any():
        return sparse_or_dense(dense)
    values = numpy_helper.from_array(
        np.ascontiguousarray(dense.reshape(-1)[indices]), made.values.name
    )
    made.values.CopyFrom(values)
    return StoredSparse(made)

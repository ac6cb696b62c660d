"""Whether integer kernels of this machine lose what does not fit into 16 bits.

x86 processors without VNNI multiply u8 by s8 and add two products in 16 bits, where 255·127·2 does
not fit; weights must leave a bit unused then. A test product tells, not a table of processors.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from onnxslim.services.evaluator import Evaluator

_SIZE: Final = 64  # more rows and columns than a kernel takes at once


def saturates(evaluate: Evaluator, activations: npt.DTypeLike, weights: npt.DTypeLike) -> bool:
    """Whether a product of the largest codes comes out wrong."""
    left = np.full((_SIZE, _SIZE), np.iinfo(np.dtype(activations)).max, activations)
    right = np.full((_SIZE, _SIZE), np.iinfo(np.dtype(weights)).max, weights)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "product",
        [
            onnx.helper.make_tensor_value_info(
                "a", onnx.helper.np_dtype_to_tensor_dtype(left.dtype), left.shape
            )
        ],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, left.shape)],
        [onnx.numpy_helper.from_array(right, "b")],
    )
    opset = onnx.helper.make_opsetid("", 13)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    (found,) = evaluate(model, {"a": left})
    return bool(np.any(found != left.astype(np.int32) @ right.astype(np.int32)))

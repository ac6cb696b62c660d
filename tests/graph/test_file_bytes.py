"""Bytes that constants and nodes take, beside what protobuf says of the written ones."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxslim.graph.file_bytes import constant_bytes, node_bytes
from onnxslim.graph.ir import Constant
from onnxslim.graph.proto import graph_to_proto
from onnxslim.io.model import Model
from support import parse

_ALL = 2**62


@pytest.mark.parametrize("dtype", ["f4", "f2", "i8", "u1"])
def test_a_constant_takes_what_is_written_for_it(dtype: str) -> None:
    constant = Constant("weight", np.arange(6, dtype=dtype).reshape(2, 3))
    tensor = onnx.numpy_helper.from_array(constant.values, constant.name)
    graph = onnx.GraphProto(initializer=[tensor])
    assert constant_bytes(constant, is_input=False) <= graph.ByteSize()
    if dtype != "i8":  # small integers are written as varints
        assert constant_bytes(constant, is_input=False) == graph.ByteSize()


def test_a_node_takes_at_least_what_is_said() -> None:
    graph = Model.load(
        parse(
            """<opset_import: ["" : 17]>
            g (float[1, 3, N, N] x) => (float[1, 3, M, K] y)
            <float[3, 3, 1, 1] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}>
            { y = Conv <strides = [2, 2], auto_pad = "SAME_UPPER"> (x, w) }"""
        )
    ).graph
    (written,) = graph_to_proto(graph, _ALL)[0].node
    size = onnx.GraphProto(node=[written]).ByteSize()
    assert size // 2 < node_bytes(graph.nodes[0]) <= size

"""Types and shapes that follow from the inputs."""

from __future__ import annotations

from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from support import parse


def test_an_initializer_that_callers_may_override_says_nothing_about_shapes() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[6] x, int64[2] shape = {2, 3}) => (float[A, B] y) { a = Relu (x)
        y = Reshape (a, shape) }"""
    model = Model.load(parse(text))
    infer_shapes(model)
    relu, reshape = model.graph.nodes
    assert relu.outputs[0].shape == [6]
    assert not any(isinstance(size, int) for size in reshape.outputs[0].shape)

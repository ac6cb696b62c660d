"""Bias correction: the mean output of every layer is the one of the model as it was."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from layer_nets import Given, context, dense_net, net, node, normal, samples

from onnxslim.analysis.layers import weight_layers
from onnxslim.contract import PassResult
from onnxslim.model import Model
from onnxslim.quantization.correct import NO_DATA, Corrected, correct_biases
from onnxslim.quantization.grid import S8_SYMMETRIC
from onnxslim.rewrite import Rewriter
from onnxslim.runtime.session import open_session
from support import parse

X = samples(300, 12)


def rounded(model: Model, bits: int = 3) -> Model:
    """With all weights rounded to nearest."""
    for layer in weight_layers(model.graph)[0]:
        weight = layer.canonical()
        peak = np.abs(weight).max()
        grid = S8_SYMMETRIC.over(-peak * 2 ** (8 - bits), peak * 2 ** (8 - bits))
        layer.holder.values = layer.restored(grid.dequantized(grid.quantized(weight)))
    return model


def corrected(
    source: onnx.ModelProto, x: Given | None = X, layers: list[str] | None = None
) -> tuple[Model, Model, tuple[Corrected, ...], PassResult]:
    """The model as it was, the rounded and corrected one, and what was said."""
    original, model = Model.load(source), rounded(Model.load(source))
    rewriter = Rewriter(model.graph)
    found = correct_biases(rewriter, context(model, x, original), layers)
    return original, model, found, rewriter.result()


def means(model: Model, names: list[str]) -> list[np.ndarray]:
    """The mean of inner tensors over all samples and positions."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.to_proto())
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    with open_session(proto.SerializeToString(), optimise=False) as session:
        found = session.run({"x": X})
    return [found[name].mean(axis=0) for name in names]


def test_every_layer_has_its_mean_output_again() -> None:
    names = ["h0", "h1", "y"]
    original, model, found, result = corrected(dense_net(12, 20, 15, 6))
    assert [item.layer for item in found] == names
    assert [change.node for change in result.changes] == names
    plain = rounded(Model.load(dense_net(12, 20, 15, 6)))
    wished, now, before = (means(m, names) for m in (original, model, plain))
    for a, b, c in zip(wished, now, before, strict=True):
        assert np.abs(a - b).max() < 1e-4 < 0.01 < np.abs(a - c).max()


def test_the_add_behind_a_matmul_is_its_bias() -> None:
    nodes = [node("MatMul", ["x", "w"], "h"), node("Add", ["c", "h"], "y")]
    source = net(nodes, {"w": normal(12, 5), "c": normal(5)}, ["N", 12])
    original, model, found, _ = corrected(source)
    assert [item.layer for item in found] == ["h"]
    assert found[0].shift > 0
    (wished,), (now,) = means(original, ["y"]), means(model, ["y"])
    np.testing.assert_allclose(now, wished, atol=1e-4)


@pytest.mark.parametrize("after", ["Relu", "nothing", "a matrix", "two readers"])
def test_a_matmul_without_a_bias_is_declined(after: str) -> None:
    nodes = {
        "Relu": [node("MatMul", ["x", "w"], "h"), node("Relu", ["h"], "y")],
        "nothing": [node("MatMul", ["x", "w"], "y")],
        "a matrix": [node("MatMul", ["x", "w"], "h"), node("Add", ["h", "m"], "y")],
        "two readers": [
            node("MatMul", ["x", "w"], "h"),
            node("Add", ["h", "c"], "a"),
            node("Mul", ["a", "h"], "y"),
        ],
    }[after]
    arrays = {"w": normal(12, 5), "c": normal(5), "m": normal(300, 5)}
    _, _, found, result = corrected(net(nodes, arrays, ["N", 12]))
    assert found == ()
    assert [skip.why for skip in result.skips] == ["its bias stays: it has none"]


def test_a_conv_gets_a_bias() -> None:
    source = net([node("Conv", ["x", "w"], "y")], {"w": normal(4, 3, 3, 3)}, ["N", 3, 6, 6])
    x = samples(100, 3, 6, 6)
    _, model, found, _ = corrected(source, x)
    assert [item.layer for item in found] == ["y"]
    assert len(model.graph.nodes[0].inputs) == 3


def test_only_the_named_layers_are_corrected() -> None:
    _, _, found, _ = corrected(dense_net(12, 20, 15, 6), layers=["h1"])
    assert [item.layer for item in found] == ["h1"]


def test_without_data_the_layers_are_named_in_the_reason() -> None:
    _, _, found, result = corrected(dense_net(12, 20, 6), None, ["h0"])
    assert found == ()
    assert [(skip.node, skip.why) for skip in result.skips] == [("h0", NO_DATA)]


def test_a_layer_that_the_original_lacks_is_declined() -> None:
    source = parse("""
    <opset_import: ["" : 17]>
    g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {1, 2}> {
        y = Gemm (x, w, b)
    }
    """)
    model, original = Model.load(source), Model.load(dense_net(2, 3, 2))
    original.graph.nodes[-1].outputs[0].name = "z"
    rewriter = Rewriter(model.graph)
    assert correct_biases(rewriter, context(model, samples(9, 2), original)) == ()
    assert [skip.node for skip in rewriter.result().skips] == ["y"]

"""The names by which options may mean a layer."""

from __future__ import annotations

from layer_nets import dense_net, net, node, normal
from recurrent_nets import recurrent_net

from onnxslim.analysis.layer_names import layer_names
from onnxslim.analysis.layers import weight_layers
from onnxslim.io.model import Model


def test_a_node_is_known_by_its_output_its_own_name_and_its_weights() -> None:
    source = dense_net(4, 6, 3)
    source.graph.node[0].name = "/fc/Gemm"
    names = layer_names(Model.load(source).graph)
    assert names.of_layer("h0") == ("h0", "/fc/Gemm", "w0", "b0")
    assert names.of_layer("y") == ("y", "w1", "b1")
    assert names.of_layer("r0") == ("r0",)
    assert names.of_layer("elsewhere") == ("elsewhere",)


def test_a_weight_keeps_its_name_behind_operators_that_move_it() -> None:
    nodes = [
        node("Cast", ["w"], "wide", to=1),
        node("Transpose", ["wide"], "turned"),
        node("MatMul", ["x", "turned"], "y"),
    ]
    names = layer_names(Model.load(net(nodes, {"w": normal(3, 4)}, ["N", 4])).graph)
    assert "w" in names.of_layer("y")


def test_what_is_computed_at_run_time_gives_no_name() -> None:
    nodes = [node("Relu", ["x"], "r"), node("MatMul", ["r", "x"], "y")]
    names = layer_names(Model.load(net(nodes, {}, [3, 3])).graph)
    assert names.of_layer("y") == ("y",)


def test_each_weight_of_a_recurrent_operator_has_names_of_its_own() -> None:
    graph = Model.load(recurrent_net()).graph
    names = layer_names(graph)
    layers = weight_layers(graph)[0]
    assert len(layers) > 1
    for layer in layers:
        assert layer.weight_tensor.name in names.of_layer(layer.name)

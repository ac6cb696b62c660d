"""The activations alive at once, which bound how many samples go into one run."""

from __future__ import annotations

from layer_nets import net, node, normal

from onnxslim.analysis.activation_bytes import all_bytes, live_bytes
from onnxslim.io.model import Model

SHAPES = {"x": (1, 4), "h": (1, 100), "g": (1, 100), "y": (1, 4)}


def test_an_activation_lives_until_its_last_reader() -> None:
    nodes = [
        node("MatMul", ["x", "v"], "h"),
        node("Relu", ["h"], "g"),
        node("MatMul", ["g", "w"], "y"),
    ]
    model = Model.load(net(nodes, {"v": normal(4, 100), "w": normal(100, 4)}, [1, 4]))
    # x throughout, h and g together; h is gone when y is computed
    assert live_bytes(model.graph, SHAPES) == 4 * (4 + 100 + 100)


def test_a_branch_keeps_what_it_reads_later() -> None:
    nodes = [
        node("MatMul", ["x", "v"], "h"),
        node("Relu", ["h"], "g"),
        node("Add", ["h", "g"], "s"),
        node("MatMul", ["s", "w"], "y"),
    ]
    model = Model.load(net(nodes, {"v": normal(4, 100), "w": normal(100, 4)}, [1, 4]))
    assert live_bytes(model.graph, {**SHAPES, "s": (1, 100)}) == 4 * (4 + 300)


def test_what_has_no_known_shape_counts_as_nothing() -> None:
    model = Model.load(net([node("MatMul", ["x", "w"], "y")], {"w": normal(4, 4)}, [1, 4]))
    assert live_bytes(model.graph, {"x": (2, 4)}) == 32


def test_all_activations_together_are_the_sum_of_what_nodes_return() -> None:
    nodes = [node("MatMul", ["x", "v"], "h"), node("MatMul", ["h", "w"], "y")]
    model = Model.load(net(nodes, {"v": normal(4, 100), "w": normal(100, 4)}, [1, 4]))
    assert all_bytes(model.graph, SHAPES) == 4 * (100 + 4)


def test_an_activation_of_unknown_type_counts_as_float32() -> None:
    model = Model.load(net([node("MatMul", ["x", "w"], "y")], {"w": normal(4, 4)}, [1, 4]))
    (made,) = model.graph.nodes[0].outputs
    made.dtype = None
    assert all_bytes(model.graph, SHAPES) == 16

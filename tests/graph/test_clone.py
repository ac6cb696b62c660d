"""Copies share weights, and a graph can take over what a copy of it has become."""

from __future__ import annotations

import numpy as np

from onnxslim.graph.clone import adopt
from onnxslim.graph.ir import walk_graphs
from onnxslim.io.check import check_model
from onnxslim.io.model import Model
from support import parse

TEXT = """
<opset_import: ["" : 17]>
net (float[N, 2] x, bool c) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
{
    h = MatMul (x, w)
    y = If (c) <
        then_branch = yes () => (float[N, 2] t) <float[2] v = {1, 2}> { t = Add (h, v) },
        else_branch = no () => (float[N, 2] t) { t = MatMul (h, w) }
    >
}
"""


def test_a_graph_becomes_what_its_copy_is() -> None:
    model = Model.load(parse(TEXT))
    copy = model.clone()
    weight = copy.graph.nodes[0].inputs[1]
    weight.values = np.full((2, 2), 7, np.float32)
    wanted = copy.to_bytes()
    graph = model.graph
    adopt(graph, copy.graph)
    assert model.graph is graph
    assert model.to_bytes() == wanted
    check_model(model)
    homes = {tensor.home for g in walk_graphs(graph) for n in g.nodes for tensor in n.inputs
             if hasattr(tensor, "home")}  # fmt: skip
    assert homes <= set(walk_graphs(graph))

from __future__ import annotations

import numpy as np
import pytest
from layer_nets import net, node, normal, samples
from qdq_nets import on_integers

from onnxslim.errors import RuntimeFailure
from onnxslim.graph.ir import node_label
from onnxslim.io.model import Model
from onnxslim.runtime.measure.profile import profile_model
from onnxslim.runtime.measure.stopwatch import SessionStopwatch

MAP = [1, 16, 12, 12]
X = samples(*MAP)


def convs(count: int) -> Model:
    nodes, weights, last = [], {}, "x"
    for number in range(count):
        weights[f"w{number}"] = normal(16, 16, 3, 3, seed=number)
        nodes += [
            node("Conv", [last, f"w{number}"], f"a{number}", pads=[1, 1, 1, 1]),
            node("Relu", [f"a{number}"], f"r{number}"),
        ]
        last = f"r{number}"
    nodes.append(node("Softmax", [last], "y"))
    return Model.load(net(nodes, weights, MAP))


def test_kernels_bear_the_names_of_the_models_nodes_though_they_are_fused_and_renamed() -> None:
    kernels = profile_model(convs(3), {"x": X}, budget_s=0.05)
    own = [kernel for kernel in kernels if not kernel.is_inserted]
    assert [kernel.operator for kernel in own] == ["Conv", "Conv", "Conv", "Softmax"]
    assert [kernel.node[1:] for kernel in own[:3]] == ["0", "1", "2"]
    assert own[-1].node == "y"
    assert all(kernel.ms >= 0 for kernel in kernels)
    assert own[0].elements == X.size


def test_kernels_that_are_alike_share_their_time() -> None:
    kernels = profile_model(convs(3), {"x": X}, budget_s=0.05)
    times = {kernel.ms for kernel in kernels if kernel.operator == "Conv"}
    assert len(times) <= 2  # the first may run on another layout


def test_changes_of_layout_belong_to_a_node_nearby() -> None:
    model = on_integers(convs(2).to_proto(), X, ["a0", "a1"])
    kernels = SessionStopwatch({"x": X}, threads=1).profile(model)
    inserted = [kernel for kernel in kernels if kernel.is_inserted]
    assert {kernel.operator for kernel in inserted} == {"Transpose"}
    labels = {node_label(item) for item in model.graph.nodes}
    assert {kernel.node for kernel in kernels} <= labels
    assert {"QLinearConv", "QuantizeLinear", "DequantizeLinear"} <= {k.operator for k in kernels}


def test_the_model_is_left_as_it_is() -> None:
    model = convs(1)
    before = model.to_bytes()
    profile_model(model, {"x": X}, budget_s=0.01)
    assert model.to_bytes() == before


def test_a_run_that_fails_says_so() -> None:
    with pytest.raises(RuntimeFailure, match="while the model was profiled"):
        profile_model(convs(1), {"x": np.zeros((1, 3, 12, 12), np.float32)}, budget_s=0.01)

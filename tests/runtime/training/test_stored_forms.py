"""Forms that passes store weights in: gradients reach tables, scales and codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models

from onnxslim.io.model import Model
from onnxslim.passes.cluster_weights import ClusterWeights
from onnxslim.passes.ternarize_weights import TernarizeWeights
from onnxslim.pipeline.passes import Pass
from support import apply, parse, random_feeds

torch = pytest.importorskip("torch", reason="training needs the extra `train`")
from onnxslim.runtime.training.compiler import Compiler  # noqa: E402
from onnxslim.runtime.training.plan import Plan, PlannedNode  # noqa: E402
from onnxslim.runtime.training.preparing import prepared  # noqa: E402
from onnxslim.runtime.training.torch_graph import TorchGraph  # noqa: E402

CPU = torch.device("cpu")


def graph_of(source: onnx.ModelProto) -> TorchGraph:
    return TorchGraph(Model.load(source).graph, device=CPU)


@pytest.mark.parametrize("rewrite", [ClusterWeights(bits=2), TernarizeWeights()], ids=str)
def test_what_passes_store_computes_the_same_and_gives_its_floats_gradients(rewrite: Pass) -> None:
    before = tiny_models.conv_net()
    after, result = apply(rewrite, before)
    assert result.changes
    graph = graph_of(after)
    feeds = {name: torch.from_numpy(array) for name, array in random_feeds(before).items()}
    plain = graph(feeds)
    learned = {
        name: weight.clone().requires_grad_()
        for name, weight in graph.weights.items()
        if weight.is_floating_point() and weight.numel() > 1
    }
    found = graph(feeds, learned)
    for name, value in plain.items():
        torch.testing.assert_close(value, found[name])
    sum(value.sum() for value in found.values()).backward()
    assert all(weight.grad is not None for weight in learned.values())


def test_gradients_of_a_table_are_summed_over_its_codes() -> None:
    graph = graph_of(
        parse("""
            <ir_version: 8, opset_import: ["": 17]>
            agraph (float[2] x) => (float[2] y)
            <uint8[2] codes = {1, 1}, float[3] table = {5, 7, 9}>
            { index = Cast <to = 6> (codes)
              w = Gather (table, index)
              y = Mul (x, w) }
        """)
    )
    table = graph.weights["table"].clone().requires_grad_()
    graph({"x": torch.tensor([2.0, 3.0])}, {"table": table})["y"].sum().backward()
    assert table.grad.tolist() == [0, 5, 0]


QDQ = """
    <ir_version: 10, opset_import: ["": 21]>
    agraph (float[4] x) => (float[4] y)
    <float scale = {0.5}, int8 zero = {0}, int8[4] codes = {1, 2, -3, 4}, float step = {2}>
    { q = QuantizeLinear (x, scale, zero)
      d = DequantizeLinear (q, scale, zero)
      w = DequantizeLinear (codes, step)
      y = Mul (d, w) }
"""


def test_a_rounding_passes_gradients_inside_its_range_and_none_outside() -> None:
    x = torch.tensor([0.3, 1000.0, -1000.0, 0.2], requires_grad=True)
    found = graph_of(parse(QDQ))({"x": x})["y"]
    assert found.tolist() == [1.0, 254.0, 384.0, 0.0]
    found.sum().backward()
    assert x.grad.tolist() == [2, 0, 0, 8]


def test_codes_held_as_floats_and_their_step_get_gradients() -> None:
    graph = graph_of(parse(QDQ))
    codes = graph.weights["codes"].float().requires_grad_()
    step = graph.weights["step"].clone().requires_grad_()
    assert graph.weights["codes"].dtype == torch.int8
    graph({"x": torch.ones(4)}, {"codes": codes, "step": step})["y"].sum().backward()
    assert codes.grad.tolist() == [2, 2, 2, 2]
    assert step.grad.item() == 4


def packed_product() -> onnx.ModelProto:
    node = onnx.helper.make_node(
        "MatMulNBits",
        ["x", "codes", "scales"],
        ["y"],
        domain="com.microsoft",
        N=2,
        K=16,
        bits=4,
        block_size=16,
    )
    info, array = onnx.helper.make_tensor_value_info, onnx.numpy_helper.from_array
    packed = np.arange(16, dtype=np.uint8).reshape(2, 1, 8) * 17  # both codes of a byte are alike
    stored = [array(packed, "codes"), array(np.array([1, 2], np.float32), "scales")]
    graph = onnx.helper.make_graph(
        [node], "packed", [info("x", 1, [1, 16])], [info("y", 1, [1, 2])], stored
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_packed_codes_may_be_given_one_by_one() -> None:
    graph = graph_of(packed_product())
    x = torch.ones(1, 16)
    plain = graph({"x": x})["y"]
    assert plain.tolist() == [[2 * sum(range(8)) - 128, 2 * (2 * sum(range(8, 16)) - 128)]]
    codes = torch.arange(16).repeat_interleave(2).reshape(2, 1, 16).float().requires_grad_()
    found = graph({"x": x}, {"codes": codes})["y"]
    assert torch.equal(found, plain)
    found.sum().backward()
    assert codes.grad[:, 0, 0].tolist() == [1, 2]


def test_a_cast_to_float16_rounds_and_passes_gradients() -> None:
    graph = graph_of(
        parse("""
            <ir_version: 8, opset_import: ["": 17]>
            agraph (float[1] x) => (float[1] y)
            { h = Cast <to = 10> (x)
              y = Cast <to = 1> (h) }
        """)
    )
    x = torch.tensor([1.0001], requires_grad=True)
    found = graph({"x": x})["y"]
    assert found.item() == float(np.float16(1.0001)) != x.item()
    found.backward()
    assert x.grad.item() == 1


BRANCHES = """
    <ir_version: 8, opset_import: ["": 17]>
    agraph (float[1] x, bool yes) => (float[1] y)
    <float[1] w = {2}>
    { s = Mul (x, w)
      y = If (yes) <
        then_branch = one () => (float[1] a) { a = Neg (s) },
        else_branch = two () => (float[1] b)
          { c = Constant <value = float[1] {5}> ()
            b = Add (s, c) }
      > }
"""


def test_tensors_of_both_branches_can_be_had_and_trained() -> None:
    graph = graph_of(parse(BRANCHES))
    c = graph.weights["c"].clone().requires_grad_()
    feeds = {"x": torch.ones(1), "yes": torch.tensor(True)}
    found = graph(feeds, {"c": c}, also=["b", "a"])
    assert {name: value.item() for name, value in found.items()} == {"y": -2, "b": 7, "a": -2}
    found["b"].sum().backward()
    assert c.grad.item() == 1
    assert graph({**feeds, "yes": torch.tensor(False)})["y"].item() == 7


def test_sizes_stay_on_the_host() -> None:
    proto = parse("""
        <ir_version: 8, opset_import: ["": 17]>
        agraph (float[N, 2] x) => (float[N, 2] y)
        <int64[1] two = {2}, int64[1] zero = {0}>
        { s = Shape (x)
          n = Gather (s, zero)
          sizes = Concat <axis = 0> (n, two)
          y = Reshape (x, sizes) }
    """)
    graph = prepared(Model.load(proto).graph)
    compiler = Compiler(graph, torch.device("meta"), torch.float32)
    made = {tensor.name: tensor for node in graph.nodes for tensor in node.outputs}
    assert [compiler.is_on_host(made[name]) for name in ("s", "n", "sizes", "y")] == [
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("name", ["reshapes", "branches", "loop", "rotary", "attention"])
def test_moves_from_the_host_change_no_value(name: str) -> None:
    proto = getattr(tiny_models, name)()
    feeds = {name: torch.from_numpy(array) for name, array in random_feeds(proto).items()}
    wanted = graph_of(proto)(feeds)
    graph = TorchGraph(Model.load(proto).graph, device=CPU)
    graph._compiler.separates_host = True
    found = graph(feeds)
    assert all(torch.equal(value, found[key]) for key, value in wanted.items())


def test_every_value_is_let_go_after_its_last_use() -> None:
    graph = prepared(
        Model.load(
            parse("""
                <ir_version: 8, opset_import: ["": 17]>
                agraph (float[1] x) => (float[1] y)
                { a = Neg (x)
                  b = Abs (a)
                  c = Add (a, b)
                  y = Relu (c) }
            """)
        ).graph
    )

    def planned(node: Any) -> PlannedNode:
        return PlannedNode(lambda *values: values[0], tuple(node.inputs), tuple(node.outputs), "n")

    plan = Plan(map(planned, graph.nodes), graph.inputs, graph.outputs)
    assert [list(step.last_uses) for step in plan.steps] == [[1], [], [2, 3], [4]]
    assert plan.run(["value"]) == ["value"]


def test_the_extra_is_asked_for_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxslim.errors import UsageError
    from onnxslim.runtime import training
    from onnxslim.runtime.samples import extras

    def missing(name: str) -> Mapping[str, Any]:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    with pytest.raises(UsageError, match=r"need `torch`, .*onnxslim-compiler\[train\]"):
        _ = training.TorchGraph

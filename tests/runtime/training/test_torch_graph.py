"""An ONNX graph as a function of torch tensors: outputs, gradients, weights by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
import tiny_models

from onnxslim.errors import ModelError, RuntimeFailure, UsageError
from onnxslim.io.model import Model
from support import parse, random_feeds, run

torch = pytest.importorskip("torch", reason="training needs the extra `train`")
from onnxslim.runtime.training.torch_graph import TorchGraph  # noqa: E402

CPU = torch.device("cpu")
Arrays = Mapping[str, np.ndarray]


def graph_of(proto: onnx.ModelProto, **options: object) -> TorchGraph:
    return TorchGraph(Model.load(proto).graph, device=CPU, **options)  # type: ignore[arg-type]


def tensors(feeds: Arrays) -> dict[str, torch.Tensor]:  # type: ignore[name-defined]
    return {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}


def assert_same_outputs(proto: onnx.ModelProto, feeds: Arrays, share: float = 1e-5) -> None:
    found = graph_of(proto)(tensors(feeds))
    for info, expected in zip(proto.graph.output, run(proto, feeds), strict=True):
        ours = found[info.name].detach().numpy()
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, atol=share * max(np.ptp(expected), 1e-3))


MODELS = {
    "conv": tiny_models.conv_net(),
    "conv of opset 9": tiny_models.conv_net(opset=9),
    "gemm": tiny_models.gemm_net(),
    "attention": tiny_models.attention(),
    "rotary": tiny_models.rotary(),
    "branches": tiny_models.branches(),
    "loop": tiny_models.loop(),
    "functions": tiny_models.functions(),
    "sparse": tiny_models.sparse(),
    "repeated names": tiny_models.repeated_names(),
    "pass through": tiny_models.pass_through(),
    "reshapes": tiny_models.reshapes(),
    "overridable": tiny_models.overridable(),
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_onnxruntime(name: str) -> None:
    assert_same_outputs(MODELS[name], random_feeds(MODELS[name]))


@pytest.mark.parametrize("name", ["conv", "gemm", "attention", "rotary", "functions", "sparse"])
def test_gradients_are_those_of_central_differences(name: str) -> None:
    graph, feeds = graph_of(MODELS[name], dtype=torch.float64), tensors(random_feeds(MODELS[name]))
    weights = {n: w.double() for n, w in graph.weights.items() if w.is_floating_point()}

    def loss(changed: Mapping[str, torch.Tensor]) -> torch.Tensor:  # type: ignore[name-defined]
        return sum((out.sin()).sum() for out in graph(feeds, changed).values())

    for key, weight in weights.items():
        weight = weight.clone().requires_grad_()
        loss({**weights, key: weight}).backward()
        direction = torch.from_numpy(np.random.default_rng(0).standard_normal(weight.shape))
        step = 1e-6 * direction
        with torch.no_grad():
            ahead, back = (loss({**weights, key: weight + s}) for s in (step, -step))
        slope = float((weight.grad * direction).sum())
        assert float(ahead - back) / 2e-6 == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_weights_are_every_constant_as_it_is_stored() -> None:
    graph = graph_of(
        parse("""
            <ir_version: 8, opset_import: ["": 17]>
            agraph (float[2, 3] x) => (float[2, 3] z)
            <float[3] w = {1, 2, 3}, int64[2] shape = {2, 3}>
            { c = Constant <value = float[1] {2}> ()
              y = Mul (x, w)
              s = Mul (y, c)
              z = Reshape (s, shape) }
        """)
    )
    assert {name: tuple(w.shape) for name, w in graph.weights.items()} == {
        "w": (3,),
        "shape": (2,),
        "c": (1,),
    }
    assert graph.weights["shape"].dtype == torch.int64


SCALED = """
    <ir_version: 8, opset_import: ["": 17]>
    agraph (float[2] x) => (float[2] z)
    <float[2] w = {1, 2}, float[2] b = {10, 20}>
    { y = Mul (x, w)
      v = Neg (b)
      z = Add (y, v) }
"""


def test_a_call_replaces_stored_tensors_and_computed_ones() -> None:
    graph, x = graph_of(parse(SCALED)), {"x": torch.ones(2)}
    assert graph(x)["z"].tolist() == [-9, -18]
    assert graph(x, {"w": torch.zeros(2)})["z"].tolist() == [-10, -20]
    assert graph(x, {"v": torch.zeros(2)})["z"].tolist() == [1, 2]
    assert graph(x)["z"].tolist() == [-9, -18]


BRANCHED = """
    <ir_version: 8, opset_import: ["": 17]>
    agraph (float[2] x) => (float[2] z)
    <float[2] a = {1, 2}, float[2] b = {3, 4}, float[2] c = {5, 6}>
    { h = Mul (x, a)
      s = Neg (h)
      k = Neg (c)
      p = Mul (h, b)
      q = Add (p, s)
      z = Add (q, k) }
"""


@pytest.mark.parametrize(
    ("weights", "names"),
    [("a", []), ("b", ["h", "s"]), ("c", ["q"]), ("ab", []), ("bc", ["h", "s"])],
)
def test_the_frontier_is_what_does_not_depend_on_weights(weights: str, names: list[str]) -> None:
    graph, x = graph_of(parse(BRANCHED)), {"x": torch.tensor([7.0, 8.0])}
    assert sorted(graph.frontier(weights)) == names
    new = {name: torch.tensor([0.5, -2.0]) for name in weights}
    inner = {name: value for name, value in graph(x, also=names).items() if name in names}
    assert torch.equal(graph(x, new)["z"], graph({"x": torch.zeros(2)}, new | inner)["z"]) is bool(
        names
    )


def test_inner_tensors_come_with_the_outputs() -> None:
    found = graph_of(parse(SCALED))({"x": torch.ones(2)}, also=["y", "v"])
    assert {name: value.tolist() for name, value in found.items()} == {
        "z": [-9, -18],
        "y": [1, 2],
        "v": [-10, -20],
    }


def test_moving_averages_are_updated_when_asked() -> None:
    proto = parse("""
        <ir_version: 8, opset_import: ["": 17]>
        agraph (float[N, 2] x) => (float[N, 2] y)
        <float[2] s = {1, 1}, float[2] b = {0, 0}, float[2] mean = {0, 0}, float[2] var = {1, 1}>
        { y = BatchNormalization <momentum = 0.5> (x, s, b, mean, var) }
    """)
    graph, x = graph_of(proto), torch.tensor([[0.0, 2.0], [2.0, 2.0]])
    averages: dict[str, torch.Tensor] = {}  # type: ignore[name-defined]
    found = graph({"x": x}, running=averages)["y"]
    assert found[:, 0].tolist() == pytest.approx([-1, 1], abs=1e-4)
    assert {name: value.tolist() for name, value in averages.items()} == {
        "mean": [0.5, 1.0],
        "var": [1.0, 0.5],
    }
    assert graph({"x": x})["y"].reshape(-1).tolist() == pytest.approx([0, 2, 2, 2], abs=1e-3)


def test_all_missing_operators_are_named_at_once() -> None:
    proto = parse("""
        <ir_version: 8, opset_import: ["": 17, "com.foreign": 1]>
        agraph (float[2] x) => (float[2] z)
        { y = com.foreign.Magic (x)
          w = com.foreign.Trick (y)
          z = Relu (w) }
    """)
    with pytest.raises(ModelError, match=r"com\.foreign\.Magic` \(`y`\), `com\.foreign\.Trick`"):
        graph_of(proto)


def test_what_is_missing_or_unknown_is_named() -> None:
    graph = graph_of(parse(SCALED))
    with pytest.raises(UsageError, match="`x` is missing"):
        graph({})
    with pytest.raises(UsageError, match="no tensor `nothing`"):
        graph({"x": torch.ones(2)}, also=["nothing"])
    with pytest.raises(RuntimeFailure, match="`y`: torch failed"):
        graph({"x": torch.ones(3)})

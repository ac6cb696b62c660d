"""Variants of a model go on from where they part with it, and give what they give alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from layer_nets import residual_net, samples
from strategies import models

from onnxslim.analysis.layers import weight_layers
from onnxslim.errors import RuntimeFailure
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.runtime.probes.replay import Replay
from onnxslim.runtime.session import Session, open_session
from support import random_feeds

X = samples(10, 6)


def changed(model: Model, *names: str) -> Model:
    copy = model.clone()
    for layer in weight_layers(copy.graph)[0]:
        if layer.name in names:
            layer.holder.values = layer.holder.values * np.float32(1.5)
    return copy


def batches(x: np.ndarray = X, size: int = 4) -> list[np.ndarray]:
    return [x[at : at + size] for at in range(0, len(x), size)]


def replayed(replay: Replay, model: Model, parts: Sequence[np.ndarray]) -> np.ndarray:
    with replay.variant(model) as variant:
        return np.concatenate([variant.run({"x": part}, len(part))["y"] for part in parts])


def alone(model: Model) -> np.ndarray:
    with open_session(model) as session:
        return session.run({"x": X})["y"]


def watched(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """What each run of a session is given beside `x`, from now on."""
    seen: list[set[str]] = []
    run = Session.run

    def watching(self: Session, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append({info.name for info in self.inputs} - {"x"})
        return run(self, feeds)

    monkeypatch.setattr(Session, "run", watching)
    return seen


@pytest.mark.parametrize("budget", [1 << 20, 0])
@pytest.mark.parametrize("rows", [10, None])
@pytest.mark.parametrize(
    "order", [["a", "b", "c", "y"], ["y", "c", "b", "a"], ["b", "b", "y", "a", "c"]]
)
def test_every_variant_gives_what_it_gives_alone(
    order: Sequence[str], rows: int | None, budget: int
) -> None:
    model = residual_net()
    replay = Replay(model, rows, budget_bytes=budget)
    for name in order:
        variant = changed(model, name)
        expected = alone(variant)
        np.testing.assert_allclose(replayed(replay, variant, batches()), expected, rtol=1e-5)


def test_several_changes_at_once_part_at_the_first() -> None:
    model = residual_net()
    variant = changed(model, "b", "y")
    found = replayed(Replay(model, 10), variant, batches())
    np.testing.assert_allclose(found, alone(variant), rtol=1e-5)


def test_a_variant_without_changes_gives_what_the_model_gives() -> None:
    model = residual_net()
    found = replayed(Replay(model, 10), model.clone(), batches())
    np.testing.assert_allclose(found, alone(model), rtol=1e-5)


def test_a_variant_runs_only_what_follows_its_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model = residual_net()
    seen = watched(monkeypatch)
    replay = Replay(model, 10)
    for name in ("b", "c", "y"):
        replayed(replay, changed(model, name), batches(size=10))
    # model up to ra, variant from ra; model from ra to rb, variant from there; and so on
    assert seen == [set(), {"ra"}, {"ra"}, {"rb", "ra"}, {"rb", "ra"}, {"s"}]


def test_a_failing_variant_does_not_harm_the_next() -> None:
    model = residual_net()
    replay = Replay(model, 10)
    with pytest.raises(RuntimeFailure), replay.variant(changed(model, "c")) as variant:
        variant.run({"x": X[:, :3]}, 10)
    later = changed(model, "y")
    np.testing.assert_allclose(replayed(replay, later, batches()), alone(later), rtol=1e-5)


# ------------------------------------------------------------------- behind one tensor


def scaled(values: np.ndarray) -> np.ndarray:
    return values * values.dtype.type(1.25)


def with_scaled(source: onnx.ModelProto, name: str) -> Model:
    """The model with a Mul behind the tensor `name`, under whose name it is read."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    nodes = list(model.graph.node)
    (at,) = (i for i, item in enumerate(nodes) if name in item.output)
    kind = next(t for t in model_types(source) if t[0] == name)[1]
    nodes[at].output[list(nodes[at].output).index(name)] = "raw"
    factor = onnx.helper.make_tensor("factor", kind, [], [1.25])
    model.graph.initializer.append(factor)
    nodes.insert(at + 1, onnx.helper.make_node("Mul", ["raw", "factor"], [name]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return Model.load(model)


def model_types(source: onnx.ModelProto) -> list[tuple[str, int]]:
    graph = onnx.shape_inference.infer_shapes(source).graph
    infos = [*graph.value_info, *graph.output]
    return [(info.name, info.type.tensor_type.elem_type) for info in infos]


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(source=models())
def test_a_replaced_tensor_does_what_it_does_in_a_model_of_its_own(
    source: onnx.ModelProto,
) -> None:
    model = Model.load(source)
    infer_shapes(model)
    feeds = random_feeds(source)
    replay = Replay(model, 1)
    made = {
        name for item in source.graph.node if item.op_type != "Constant" for name in item.output
    }
    for name, kind in model_types(source):
        if name not in made or kind != onnx.TensorProto.FLOAT:
            continue
        with open_session(with_scaled(source, name)) as session:
            expected = session.run(feeds)
        with replay.downstream(name) as rest:
            if rest is None:
                continue
            ((plain, found),) = [list(rest.runs(feeds, 1, [lambda v: v, scaled]))]
        with open_session(model) as session:
            unchanged = session.run(feeds)
        for output, array in expected.items():
            np.testing.assert_allclose(found[output], array, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(plain[output], unchanged[output], rtol=1e-3, atol=1e-4)


def test_an_input_can_be_replaced_too() -> None:
    model = residual_net()
    infer_shapes(model)
    with Replay(model, 10).downstream("x") as rest:
        assert rest is not None
        ((found,),) = [list(rest.runs({"x": X}, 10, [scaled]))]
    with open_session(model) as session:
        expected = session.run({"x": scaled(X)})["y"]
    np.testing.assert_allclose(found["y"], expected, rtol=1e-5)


def test_several_replacements_run_the_model_before_them_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = residual_net()
    infer_shapes(model)
    ran = watched(monkeypatch)
    with Replay(model, 10).downstream("rb") as rest:
        assert rest is not None
        assert len(list(rest.runs({"x": X}, 10, [scaled] * 3))) == 3
    assert ran == [set(), *[{"ra", "rb"}] * 3]

"""Variants of a model go on from where they part with it, and give what they give alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from layer_nets import residual_net, samples

from onnxslim.analysis.layers import weight_layers
from onnxslim.errors import RuntimeFailure
from onnxslim.model import Model
from onnxslim.runtime.replay import Replay
from onnxslim.runtime.session import Session, open_session

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
    seen: list[set[str]] = []
    run = Session.run

    def watched(self: Session, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append({info.name for info in self.inputs} - {"x"})
        return run(self, feeds)

    monkeypatch.setattr(Session, "run", watched)
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

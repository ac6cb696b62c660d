"""Which clusters go back to float, and how often each is tried alone."""

from __future__ import annotations

import numpy as np
import pytest
from layer_nets import net, node, normal, runs, samples

from onnxslim.io.model import Model
from onnxslim.pipeline.floors import Floors
from onnxslim.quantization import float_fallback
from onnxslim.quantization.float_fallback import DivergenceLimits, FloatFallback
from onnxslim.services.progress import Progress

WEIGHTS = {name: normal(8, 4, seed=seed) for seed, name in enumerate("abc")}
ERRORS = {"a": 0.3, "b": 0.1, "c": 0.01}
UNITS = [frozenset({name}) for name in ERRORS]


def spoilt(chosen: frozenset[str]) -> Model:
    """The net, where each of `chosen` has weights that are off by its own error."""
    weights = {
        name: weight * np.float32(1 + ERRORS[name] * (name in chosen))
        for name, weight in WEIGHTS.items()
    }
    nodes = [node("MatMul", ["x", name], f"{name}_y") for name in WEIGHTS]
    nodes.append(node("Sum", [f"{name}_y" for name in WEIGHTS], "y"))
    return Model.load(net(nodes, weights, ["N", 8]))


@pytest.fixture
def tried() -> list[frozenset[str]]:
    return []


def fallback(tried: list[frozenset[str]], error: float) -> FloatFallback:
    def quantized(chosen: frozenset[str]) -> Model:
        tried.append(chosen)
        return spoilt(chosen)

    limits = DivergenceLimits(error, Floors())
    held = runs(samples(60, 8))
    return FloatFallback(quantized, spoilt(frozenset()), lambda c: c, held, limits, Progress())


def test_the_worst_go_back_until_the_limit_holds(tried: list[frozenset[str]]) -> None:
    left, back = fallback(tried, 0.02).restore(frozenset(ERRORS), UNITS)
    assert left == {"c"}
    assert [skip.node for skip in back] == ["a", "b"]


def test_each_is_tried_alone_once_however_often_others_go_back(
    tried: list[frozenset[str]],
) -> None:
    subject = fallback(tried, 0.02)
    subject.restore(frozenset(ERRORS), UNITS)
    assert {unit for unit in tried if len(unit) == 1} == set(UNITS)
    tried.clear()
    left, _ = subject.restore(frozenset("bc"), UNITS[1:])
    assert left == {"c"}
    assert frozenset("b") not in tried


def test_few_samples_give_the_order_and_all_decide(
    tried: list[frozenset[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(float_fallback, "_ORDERED_BY", 1)
    left, _ = fallback(tried, 0.02).restore(frozenset(ERRORS), UNITS)
    assert left == {"c"}

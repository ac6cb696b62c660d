"""Smoothing in front of products with ranges of run time: outliers, alpha, and where it goes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from layer_nets import context, net, node, normal, output_error

from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.quantization.clusters import clusters_of
from onnxslim.quantization.grid import S8_SYMMETRIC
from onnxslim.quantization.layer_codes import nearest_codes
from onnxslim.quantization.product_smoothing import ProductSmoothing
from onnxslim.quantization.qdq import QdqPlan, quantized_copy
from onnxslim.quantization.rules import ActivationRanges
from onnxslim.quantization.weight_scales import WeightForm
from onnxslim.services.progress import Progress

DYNAMIC = ActivationRanges.DYNAMIC
GAINS = np.ones(16, np.float32)
GAINS[3] = 60  # a channel far larger than all others
X = normal(30, 5, 16, seed=7)
WEIGHTS = {"g": GAINS, "o": np.zeros(16, np.float32), "w": normal(16, 8), "v": normal(16, 16)}
NORMALIZED = node("LayerNormalization", ["x", "g", "o"], "n", axis=-1)
ALONE = net([NORMALIZED, node("MatMul", ["n", "w"], "y")], WEIGHTS, ["N", 5, 16])
RESIDUAL = net(
    [NORMALIZED, node("MatMul", ["n", "v"], "m"), node("Add", ["m", "n"], "y")],
    WEIGHTS,
    ["N", 5, 16],
)


def smoothing(
    source: onnx.ModelProto, given: Callable[[str], float] | None = None
) -> ProductSmoothing:
    model = Model.load(source)
    infer_shapes(model)
    calibration = context(model, X).calibration
    assert calibration is not None
    return ProductSmoothing(model, S8_SYMMETRIC, calibration, Progress(), given)


def on_integers(model: Model) -> Model:
    clusters = clusters_of(model.graph, DYNAMIC)
    names = frozenset(c.name for c in clusters.all if c.rule.kind.is_between_floats)
    codes = nearest_codes(model, clusters, WeightForm())
    return quantized_copy(model, QdqPlan(names, {}, codes, ranges=DYNAMIC))


@pytest.mark.parametrize(("source", "name", "has_mul"), [(ALONE, "y", 0), (RESIDUAL, "m", 1)])
def test_an_outlier_moves_into_the_weight(source: onnx.ModelProto, name: str, has_mul: int) -> None:
    found = smoothing(source)
    model = found.smoothed(frozenset({name}))
    assert found.alphas[name] > 0
    assert [item.op for item in model.graph.nodes].count("Mul") == has_mul
    assert output_error(source, model, X) < 1e-10  # in float it is the same model
    plain, now = (output_error(source, on_integers(each), X) for each in (found.model, model))
    assert now < plain / 2


def test_channels_that_are_alike_need_no_mul() -> None:
    weights = {**WEIGHTS, "g": np.ones(16, np.float32), "v": np.eye(16, dtype=np.float32)}
    source = net(list(RESIDUAL.graph.node), weights, ["N", 5, 16])
    found = smoothing(source)
    model = found.smoothed(frozenset({"m"}))
    assert found.alphas == {"m": 0.0}
    assert "Mul" not in {item.op for item in model.graph.nodes}


def test_a_given_alpha_is_taken_and_0_means_not_smoothed() -> None:
    given = smoothing(RESIDUAL, lambda _: 0.5)
    given.smoothed(frozenset({"m"}))
    assert given.alphas == {"m": 0.5}
    none = smoothing(RESIDUAL, lambda _: 0.0)
    none.smoothed(frozenset({"m"}))
    assert none.alphas == {"m": 0.0}
    assert none.changes == ()


def test_what_is_not_on_integers_reads_what_it_read() -> None:
    nodes = [
        NORMALIZED,
        node("MatMul", ["n", "w"], "p"),
        node("MatMul", ["n", "v"], "q"),
        node("Concat", ["p", "q"], "y", axis=-1),
    ]
    found = smoothing(net(nodes, WEIGHTS, ["N", 5, 16]))
    model = found.smoothed(frozenset({"p"}))
    reads = {item.outputs[0].name: item.inputs[0].name for item in model.graph.nodes}
    assert reads["p"] != "n"
    assert reads["q"] == "n"


def test_a_channel_that_was_quiet_on_the_samples_keeps_its_scale() -> None:
    """Divided by next to nothing, it would widen every range in which it speaks."""
    gains = GAINS.copy()
    gains[5] = 1e-6
    weights = {**WEIGHTS, "g": gains}
    found = smoothing(net(list(RESIDUAL.graph.node), weights, ["N", 5, 16]), lambda _: 0.9)
    model = found.smoothed(frozenset({"m"}))
    (mul,) = (item for item in model.graph.nodes if item.op == "Mul")
    factor = np.asarray(mul.inputs[1].values)
    assert factor[5] < 10 * np.median(factor)


def test_the_half_of_gelu_stays_a_number() -> None:
    weights = {**WEIGHTS, "half": np.float32(0.5).reshape(()), "one": np.float32(1).reshape(())}
    nodes = [
        NORMALIZED,
        node("Mul", ["n", "half"], "h"),
        node("MatMul", ["h", "w"], "y"),
    ]
    found = smoothing(net(nodes, weights, ["N", 5, 16]))
    model = found.smoothed(frozenset({"y"}))
    assert found.alphas["y"] > 0
    halves = [t for n in model.graph.nodes for t in n.inputs if t.name == "half"]
    assert [np.size(t.values) for t in halves] == [1]

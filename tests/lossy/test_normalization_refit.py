from __future__ import annotations

import numpy as np
import onnx
from layer_nets import net, node, normal, output_error, runs, samples
from text_nets import WIDTH, texts, transformer

from onnxslim.analysis.layers import WeightLayer, weight_layers
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.lossy.normalization_refit import refit_normalizations
from onnxslim.lossy.refit_trial import confirmed_refits
from onnxslim.records import Skip
from onnxslim.runtime.probes.calibration_runs import CalibrationRuns
from onnxslim.services.channel_moments import ChannelMoments
from onnxslim.services.moments import LayerMoments

X = samples(120, 6, rank=6)


def two(
    scales: tuple[np.ndarray, np.ndarray], bias: np.ndarray, *, is_shared: bool = False
) -> onnx.ModelProto:
    """Two LayerNormalizations, the first of the input, the second of a layer's output."""
    constants = {"g": scales[0], "h": scales[1], "c": bias, "w": normal(6, 6, scale=0.5)}
    nodes = [
        node("LayerNormalization", ["x", "g", "c"], "n"),
        node("MatMul", ["n", "w"], "m"),
        node("LayerNormalization", ["m", "g" if is_shared else "h", "c"], "y"),
    ]
    if is_shared:
        del constants["h"]
    return net(nodes, constants, ["N", 6])


ONES = np.ones(6, np.float32)
ONE_SCALE = np.ones(WIDTH, np.float32)
SCALE, BIAS = normal(6, seed=3, scale=0.5) + 2, normal(6, seed=4)


def loaded(proto: onnx.ModelProto) -> Model:
    model = Model.load(proto)
    infer_shapes(model)
    return model


def refitted(proto: onnx.ModelProto, reference: onnx.ModelProto) -> tuple[Model, list[str]]:
    model = loaded(proto)
    rw = Rewriter(model.graph)
    names = refit_normalizations(rw, model, loaded(reference), runs(X))
    rw.result()
    return model, names


def test_scale_and_shift_are_found_again() -> None:
    reference = two((SCALE, ONES), BIAS)
    model, names = refitted(two((ONES, SCALE), -BIAS), reference)
    assert names == ["n", "y"]
    assert output_error(reference, model, X) < 1e-6
    found = [tensor.values for tensor in model.graph.nodes[0].inputs[1:]]
    np.testing.assert_allclose(found, [SCALE, BIAS], rtol=1e-4, atol=1e-4)


def test_a_constant_that_both_read_is_fitted_to_each_of_them() -> None:
    reference = two((SCALE, 2 * SCALE), BIAS)
    model, names = refitted(two((ONES, ONES), BIAS, is_shared=True), reference)
    assert names == ["n", "y"]
    assert output_error(reference, model, X) < 1e-6


def test_what_nothing_has_changed_stays_as_it_is() -> None:
    model = loaded(two((ONES, SCALE), BIAS))
    before = model.to_bytes()
    reference = model.clone()  # shares the arrays
    assert refit_normalizations(Rewriter(model.graph), model, reference, runs(X)) == []
    assert model.to_bytes() == before


def test_moments_are_those_of_numpy() -> None:
    model, reference = loaded(two((ONES, ONES), BIAS)), loaded(two((SCALE, ONES), BIAS))
    found = runs(X).channel_moments(model, reference, "n")
    assert isinstance(found, ChannelMoments)
    x = (X - X.mean(axis=1, keepdims=True)) / X.std(axis=1, keepdims=True)
    own, other = x.astype(np.float64) + BIAS, x.astype(np.float64) * SCALE + BIAS
    for values, wanted in (
        (found.mean, own.mean(0)),
        (found.goal, other.mean(0)),
        (found.second, np.square(own).mean(0)),
        (found.cross, (own * other).mean(0)),
    ):
        np.testing.assert_allclose(values, wanted, rtol=1e-4)
    assert found.count == len(X)
    assert isinstance(runs(X).channel_moments(model, reference, "nowhere"), Skip)


def test_a_channel_that_does_not_vary_is_shifted_and_not_scaled() -> None:
    mean = np.array([2.0, 0.5])
    goal = np.array([3.0, 1.5])
    second, cross = mean**2 + [0, 1], mean * goal + [0, 0.5]
    slope, intercept = ChannelMoments("t", 9, mean, goal, second, cross).line()
    np.testing.assert_allclose(slope, [1, 0.5])
    np.testing.assert_allclose(intercept, [1, 1.25])


def test_padding_counts_neither_for_channels_nor_for_layers() -> None:
    reference = loaded(transformer("hidden", layers=1))
    model = reference.clone()
    (norm, *_) = (node for node in model.graph.nodes if node.op == "LayerNormalization")
    name = str(norm.outputs[0].name)
    rw = Rewriter(model.graph)
    rw.set_input(norm, 1, rw.constant(2 * ONE_SCALE, "doubled"))
    inputs, _ = texts(12)
    calibration = CalibrationRuns(inputs)
    found = calibration.channel_moments(model, reference, name)
    assert isinstance(found, ChannelMoments)
    assert found.count == inputs["mask"].sum() < inputs["mask"].size
    readers = [layer.name for layer in weight_layers(model.graph)[0] if name in reads(layer)]
    moments = list(calibration.moments(model, readers, reference))
    assert [item.count for item in moments if isinstance(item, LayerMoments)] == [
        inputs["mask"].sum()
    ] * len(readers)
    assert readers


def reads(layer: WeightLayer) -> list[str]:
    return [tensor.name for tensor in layer.node.inputs]


def test_a_refit_that_samples_held_back_do_not_confirm_is_put_back() -> None:
    reference = loaded(two((SCALE, ONES), BIAS))
    model = loaded(two((ONES, ONES), BIAS))
    rw = Rewriter(model.graph)
    first = model.graph.nodes[0]
    before = model.to_bytes()

    def worse() -> list[str]:
        rw.set_input(first, 1, rw.constant(-10 * SCALE, "g"))
        rw.set_values(first.inputs[2], 10 * BIAS)
        return ["n"]

    def better() -> list[str]:
        rw.set_input(first, 1, rw.constant(SCALE.copy(), "g"))
        return ["n better"]

    held = runs(X)
    assert confirmed_refits(rw, model, reference, held, [worse]) == []
    assert model.to_bytes() == before
    assert confirmed_refits(rw, model, reference, held, [worse, better, worse]) == ["n better"]
    assert output_error(reference.to_proto(), model, X) < 1e-6

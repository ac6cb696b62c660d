"""Statistics of single channels, streamed: against the same computed at once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from layer_nets import net, node, normal, runs, samples

from onnxslim.io.model import Model
from onnxslim.records import Skip
from onnxslim.runtime.probes.calibration_runs import CalibrationRuns
from onnxslim.services.activity import ChannelActivity

X = samples(300, 3, 6, 6)


def conv_net() -> onnx.ModelProto:
    return net(
        [
            node("Conv", ["x", "w", "b"], "a"),
            node("Relu", ["a"], "r"),
            node("Conv", ["r", "v"], "y"),
        ],
        {
            "w": normal(4, 3, 3, 3),
            "b": np.array([0, 2, -100, -4], np.float32),
            "v": normal(2, 4, 1, 1),
        },
        ["N", 3, 6, 6],
    )


def found(model: onnx.ModelProto, x: np.ndarray, *names: str) -> dict[str, ChannelActivity]:
    items = list(runs(x).activity(Model.load(model), names))
    assert all(isinstance(item, ChannelActivity) for item in items)
    return {item.layer: item for item in items if isinstance(item, ChannelActivity)}


def test_the_statistics_are_those_of_all_samples_together() -> None:
    item = found(conv_net(), X, "y")["y"]
    # (N, C, H, W) of the second Conv's input
    w = normal(4, 3, 3, 3).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(X.astype(np.float64), (3, 3), axis=(2, 3))
    a = np.einsum("nchwij,ocij->nohw", windows, w) + np.array([0, 2, -100, -4])[:, None, None]
    r = np.maximum(a, 0)
    np.testing.assert_allclose(item.mean, np.abs(r).mean(axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(item.zeros, (r == 0).mean(axis=(0, 2, 3)), atol=1e-3)
    means = r.mean(axis=(2, 3))
    for channel in range(4):
        shares = np.histogram(means[:, channel], bins=100)[0] / len(means)
        shares = shares[shares > 0]
        assert item.entropy[channel] == pytest.approx(-(shares * np.log(shares)).sum(), abs=0.05)
    assert item.zeros[2] == 1.0
    assert item.entropy[2] == 0.0
    assert item.mean[2] == 0.0


def test_the_size_of_a_batch_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxslim.runtime.probes import calibration_runs

    whole = found(conv_net(), X, "y")["y"]
    monkeypatch.setattr(calibration_runs, "_BATCH_ROWS", 7)
    parts = found(conv_net(), X, "y")["y"]
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-5)
    np.testing.assert_allclose(parts.zeros, whole.zeros)
    np.testing.assert_allclose(parts.entropy, whole.entropy, atol=0.05)


def test_an_input_of_the_model_is_looked_at_too() -> None:
    item = found(conv_net(), X, "a")["a"]
    np.testing.assert_allclose(item.mean, np.abs(X.astype(np.float64)).mean(axis=(0, 2, 3)))
    assert not item.zeros.any()


def test_channels_of_products_lie_along_the_axis_that_is_summed_over() -> None:
    x = samples(40, 5, 8)
    right = net([node("MatMul", ["x", "w"], "y")], {"w": normal(8, 3)}, ["N", 5, 8])
    np.testing.assert_allclose(
        found(right, x, "y")["y"].mean, np.abs(x.astype(np.float64)).mean(axis=(0, 1))
    )
    left = net([node("MatMul", ["w", "x"], "y")], {"w": normal(3, 5)}, ["N", 5, 8])
    np.testing.assert_allclose(
        found(left, x, "y")["y"].mean, np.abs(x.astype(np.float64)).mean(axis=(0, 2))
    )


def test_a_layer_that_cannot_be_seen_is_skipped_with_the_reason() -> None:
    source = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N,4] x, bool c) => (float[M,N,2] y) <float[4,2] w = {1,2,3,4,5,6,7,8}> {
      n = Constant <value_int = 2> ()
      s_end, y = Loop (n, c, x) <
        body = b (int64 i, bool go, float[N,4] s) => (bool go2, float[N,4] s2, float[N,2] o) {
          go2 = Identity (go)
          s2 = Identity (s)
          o = MatMul (s, w)
        }
      >
    }""")
    model = Model.load(source)
    from onnxslim.analysis.layers import weight_layers

    names = [layer.name for layer in weight_layers(model.graph)[0]]
    calibration = CalibrationRuns([{"x": samples(6, 4), "c": np.array(True)}])
    (item,) = calibration.activity(model, names)
    assert isinstance(item, Skip)
    assert item.why

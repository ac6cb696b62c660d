"""Ranges and histograms, streamed: against numpy's on all values at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from layer_nets import net, node, normal, runs, samples

from onnxslim.analysis.softmax_reach import REACH
from onnxslim.errors import UsageError
from onnxslim.io.model import Model
from onnxslim.records import Skip
from onnxslim.runtime.probes import observers
from onnxslim.runtime.probes.calibration_runs import CalibrationRuns
from onnxslim.runtime.session import open_session
from onnxslim.services.observations import Observation

X = samples(60, 3, 6, 6)


def conv_net() -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("Relu", ["a"], "r"),
        node("Shape", ["r"], "s"),
        node("ReduceMean", ["r"], "y", axes=[2, 3], keepdims=0),
    ]
    return net(nodes, {"w": normal(4, 3, 3, 3)}, ["N", 3, 6, 6])


def observed(
    model: onnx.ModelProto, x: np.ndarray, names: Sequence[str]
) -> dict[str, Observation | Skip]:
    found = runs(x).observe(Model.load(model), names)
    return {item.tensor if isinstance(item, Observation) else item.node: item for item in found}


def values(model: onnx.ModelProto, x: np.ndarray, name: str) -> np.ndarray:
    """What one run of all samples gives for an inner tensor."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    opened.graph.output.append(onnx.ValueInfoProto(name=name))
    with open_session(opened.SerializeToString(), optimise=False) as session:
        return session.run({"x": x})[name]


def seen(model: onnx.ModelProto, x: np.ndarray, name: str) -> Observation:
    item = observed(model, x, [name])[name]
    assert isinstance(item, Observation), item
    return item


@pytest.mark.parametrize("name", ["a", "r", "y"])
def test_an_observation_is_that_of_all_values_at_once(name: str) -> None:
    item, array = seen(conv_net(), X, name), values(conv_net(), X, name)
    each = array.reshape(len(X), -1)
    assert item.least == pytest.approx(array.min(), abs=1e-5)
    assert item.most == pytest.approx(array.max(), abs=1e-5)
    assert item.average_least == pytest.approx(each.min(axis=1).mean(), abs=1e-5)
    assert item.average_most == pytest.approx(each.max(axis=1).mean(), abs=1e-5)
    assert item.count == array.size
    assert item.zeros == pytest.approx((array == 0).mean(), abs=1e-3)
    counts = np.histogram(array[array != 0], bins=item.histogram.edges)[0]
    # sums in another order move a value over the edge of a bin now and then
    assert np.abs(np.cumsum(item.histogram.counts - counts)).max() <= 3


def test_a_graph_input_is_counted_exactly() -> None:
    item = seen(conv_net(), X, "x")
    counts = np.histogram(X, bins=item.histogram.edges)[0]
    np.testing.assert_array_equal(item.histogram.counts, counts)
    assert (item.least, item.most, item.zeros) == (X.min(), X.max(), 0.0)


def test_each_name_is_answered_once() -> None:
    found = list(runs(X).observe(Model.load(conv_net()), ["r", "a", "r"]))
    assert [item.tensor for item in found if isinstance(item, Observation)] == ["r", "a"]


def test_neither_batches_nor_sweeps_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = observed(conv_net(), X, ["x", "a", "r"])
    monkeypatch.setattr(observers, "_MAX_ROWS", 7)
    model, calibration = Model.load(conv_net()), runs(X)
    samples_of = calibration._open(model)
    found = observers.stream_observations(
        model, samples_of.batches, ["x", "a", "r"], count=60, sweep_bytes=1
    )
    for item in found:
        assert isinstance(item, Observation)
        other = at_once[item.tensor]
        assert isinstance(other, Observation)
        assert item.least == pytest.approx(other.least, abs=1e-5)
        assert item.average_most == pytest.approx(other.average_most, abs=1e-5)
        assert item.histogram.width == other.histogram.width
        assert item.count == other.count


def test_of_a_large_tensor_evenly_spread_values_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(observers, "_VALUES", 600)
    monkeypatch.setattr(observers, "_MIN_VALUES", 10)
    item = seen(conv_net(), X, "x")
    assert 500 < item.count < 800
    assert item.histogram.total == item.count
    assert (item.least, item.most) == (X.min(), X.max())
    own = item.histogram.occupied
    middles = (item.histogram.edges[1:] + item.histogram.edges[:-1]) / 2
    mean = float((middles * item.histogram.counts)[own].sum() / item.count)
    assert mean == pytest.approx(X.mean(), abs=3 * X.std() / np.sqrt(item.count))


@pytest.mark.parametrize(("size", "cap"), [(3 * 6 * 6, 10), (56 * 56 * 64, 1 << 13), (5, 10)])
def test_steps_share_no_factor_with_the_shape(size: int, cap: int) -> None:
    step = observers._step(size, cap)
    assert np.gcd(step, size) == 1
    assert size / step <= 2 * cap


def test_a_tensor_that_is_always_zero_has_an_empty_histogram() -> None:
    nodes = [node("Relu", ["x"], "r"), node("Neg", ["r"], "y")]
    item = seen(net(nodes, {}, ["N", 3]), -np.ones((4, 3), np.float32), "r")
    assert (item.least, item.most, item.zeros, item.count) == (0.0, 0.0, 1.0, 12)
    assert item.histogram.total == 0


def test_tensors_without_values_count_nothing() -> None:
    nodes = [node("Slice", ["x", "from", "to"], "e"), node("Neg", ["e"], "y")]
    weights = {"from": np.array([0, 0]), "to": np.array([9, 0])}
    item = seen(net(nodes, weights, ["N", 3]), np.ones((4, 3), np.float32), "e")
    assert (item.count, item.least, item.most) == (0, 0.0, 0.0)


def test_infinite_values_are_declined() -> None:
    nodes = [node("Log", ["x"], "l"), node("Neg", ["l"], "y")]
    found = observed(net(nodes, {}, ["N", 3]), np.zeros((4, 3), np.float32), ["l"])
    assert found["l"] == Skip("l", "its values are not finite on calibration data")


def test_what_is_no_float_of_the_main_graph_is_declined() -> None:
    found = observed(conv_net(), X, ["s", "w"])
    assert found["s"] == Skip("s", "its type is int64, and ranges are of floating point")
    assert found["w"] == Skip("w", "it is constant")


def test_a_tensor_in_a_body_is_declined() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3] x, bool c) => (float[N, 3] y) {
        y = If (c) <then_branch = a () => (float[N, 3] t) { h = Neg (x) t = Relu (h) },
                    else_branch = b () => (float[N, 3] e) { e = Neg (x) }>
    }
    """
    feeds = [{"x": np.ones((1, 3), np.float32), "c": np.array(True)}]
    calibration = CalibrationRuns(feeds)
    model = Model.load(onnx.parser.parse_model(text))
    (item,) = calibration.observe(model, ["h"])
    assert item == Skip("h", "it lies in a body of the If `y`")


def test_an_unknown_name_is_refused_with_the_closest_one() -> None:
    with pytest.raises(UsageError, match=r"no tensor `rr`.*Did you mean `r`"):
        observed(conv_net(), X, ["rr"])


def test_half_precision_is_observed_as_float() -> None:
    nodes = [node("Relu", ["x"], "r"), node("Neg", ["r"], "y")]
    model = net(nodes, {}, ["N", 3], dtype=onnx.TensorProto.FLOAT16)
    item = seen(model, np.array([[1, -2, 0.5]], np.float16), "r")
    assert (item.least, item.most, item.count, item.zeros) == (0.0, 1.0, 3, pytest.approx(1 / 3))


def test_halves_observe_their_own_samples() -> None:
    x = np.arange(1, 11, dtype=np.float32)[:, None]
    nodes = [node("Identity", ["x"], "i"), node("Neg", ["i"], "y")]
    model = Model.load(net(nodes, {}, ["N", 1]))
    tried, held = runs(x).halves()
    (a,), (b,) = tried.observe(model, ["i"]), held.observe(model, ["i"])
    assert isinstance(a, Observation)
    assert isinstance(b, Observation)
    assert (a.count, b.count) == (8, 2)
    assert (b.least, b.most) == (2.0, 7.0)


@pytest.mark.parametrize("masked", [-1e4, float(np.finfo(np.float32).min), -np.inf])
def test_what_a_softmax_makes_zero_is_in_no_range(masked: float) -> None:
    x = np.linspace(-3, 3, 4 * 8, dtype=np.float32).reshape(4, 8)
    mask = np.where(np.arange(8) < 5, 0, masked).astype(np.float32)
    nodes = [node("Add", ["x", "m"], "s"), node("Softmax", ["s"], "y")]
    item = seen(net(nodes, {"m": mask}, ["N", 8]), x, "s")
    kept = x[:, :5]
    assert item.least == pytest.approx(kept.max(axis=1).min() - REACH)
    assert item.most == kept.max()
    assert item.count == x.size


def test_what_others_read_too_keeps_its_range() -> None:
    x = np.array([[0, 1, -1e4]], np.float32)
    nodes = [
        node("Neg", ["x"], "s"),
        node("Softmax", ["s"], "p"),
        node("Add", ["s", "p"], "y"),
    ]
    assert seen(net(nodes, {}, ["N", 3]), -x, "s").least == -1e4
    source = net(nodes[:2], {}, ["N", 3], outputs=("p", "s"))
    assert seen(source, -x, "s").least == -1e4  # it is an answer

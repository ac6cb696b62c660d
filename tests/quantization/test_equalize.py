"""Equalization: the same outputs, ranges alike, and no layer touched that cannot be."""

from __future__ import annotations

import importlib.resources
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_nets import dense_net, net, node, normal, outputs, rewritten

from onnxslim.analysis.absorption import LinearLayer
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.quantization.channel_scaling import ScaledLayer, scalable_layer
from onnxslim.quantization.equalize import equalize
from onnxslim.records import Change, Fidelity, PassResult
from support import assert_equivalent, parse


def equalized(source: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Change], PassResult]:
    """After equalization; the outputs must be those before."""
    model = Model.load(source)
    infer_shapes(model)
    rewriter = Rewriter(model.graph)
    equalize(rewriter)
    result = rewriter.result()
    proto = model.to_proto()
    assert_equivalent(source, proto, Fidelity.CLOSE)
    assert result.fidelity is (Fidelity.CLOSE if result.changes else None)
    return proto, list(result.changes), result


def unevenness(proto: onnx.ModelProto, first: str, second: str) -> float:
    """The largest ratio of the ranges that two layers have in one channel; 1: they are equal."""
    model = Model.load(proto)
    infer_shapes(model)
    rewriter = Rewriter(model.graph)
    nodes = {item.outputs[0].name: item for item in model.graph.nodes}
    ends = []
    for name in (first, second):
        layer = scalable_layer(rewriter, nodes[name])
        assert isinstance(layer, LinearLayer)
        ends.append(ScaledLayer(layer))
    written = ends[0].out_peaks()
    read = ends[1].in_peaks().reshape(len(written), -1).max(axis=1)
    used = (written > 0) & (read > 0)
    return float(np.exp(np.abs(np.log(written[used] / read[used])).max()))


def uneven(*shape: int, axis: int, seed: int = 1) -> np.ndarray:
    """A weight whose channels along `axis` differ by up to a thousand times."""
    scale = np.geomspace(0.03, 30, shape[axis])
    place = [1] * len(shape)
    place[axis] = -1
    return (normal(*shape, seed=seed) * scale.reshape(place)).astype(np.float32)


def weights(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    """By the output of the node that reads them."""
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    return {n.output[0]: arrays[n.input[1]] for n in proto.graph.node if n.input[1:]}


ACTIVATIONS = {
    "nothing": [node("Identity", ["h"], "r")],
    "relu": [node("Relu", ["h"], "r")],
    "leaky": [node("LeakyRelu", ["h"], "r", alpha=0.3)],
    "prelu": [node("PRelu", ["h", "slope"], "r")],
    "pool": [node("Relu", ["h"], "p"), node("MaxPool", ["p"], "r", kernel_shape=[2, 2])],
    "average": [node("AveragePool", ["h"], "r", kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
}


@pytest.mark.parametrize("between", list(ACTIVATIONS))
def test_channels_between_two_convs_get_ranges_alike(between: str) -> None:
    nodes = [
        node("Conv", ["x", "w", "b"], "h"),
        *ACTIVATIONS[between],
        node("Conv", ["r", "v"], "y"),
    ]
    arrays = {"w": uneven(8, 3, 3, 3, axis=0), "b": normal(8), "v": normal(5, 8, 3, 3)}
    if between == "prelu":
        arrays["slope"] = normal(8, 1, 1)
    proto, (found,), _ = equalized(net(nodes, arrays, ["N", 3, 9, 9]))
    assert found == Change("h", "equalized 8 channels with `y`")
    w, v = weights(proto)["h"], weights(proto)["y"]
    np.testing.assert_allclose(np.abs(w).max((1, 2, 3)), np.abs(v).max((0, 2, 3)), rtol=0.03)


def test_a_trained_model_keeps_its_outputs() -> None:
    """LeNet-5 of the demo, on handwritten digits."""
    assets = importlib.resources.files("onnxslim") / "assets"
    with np.load(str(assets / "mnist_calib.npz")) as file:
        images = {"image": file["image"][:64].astype(np.float32)}
    model, _ = rewritten(Model.load(Path(str(assets / "lenet5.onnx"))), images, "simplify")
    source = model.to_proto()
    proto, found, _ = equalized(source)
    assert [int(change.what.split()[1]) for change in found] == [20, 50, 500]
    layers = [change.node for change in found] + [found[-1].what.split("`")[1]]
    for first, second in pairwise(layers):
        assert unevenness(proto, first, second) < 1.05 < unevenness(source, first, second)
    (a,), (b,) = (outputs(item, images).values() for item in (source, proto))
    assert np.abs(a - b).max() <= 1e-6 + 1e-4 * np.ptp(a)


def test_a_second_run_finds_nothing_to_move() -> None:
    once, _, _ = equalized(dense_net(6, 8, 5, 3))
    twice, _, _ = equalized(once)
    for layer, weight in weights(once).items():
        np.testing.assert_allclose(weights(twice)[layer], weight, rtol=0.05)


def test_a_depthwise_conv_is_written_and_read() -> None:
    nodes = [
        node("Conv", ["x", "w", "b"], "h"),
        node("Relu", ["h"], "r"),
        node("Conv", ["r", "d", "c"], "k", group=8, pads=[1, 1, 1, 1]),
        node("Relu", ["k"], "q"),
        node("Conv", ["q", "v"], "y"),
    ]
    arrays = {
        "w": uneven(8, 3, 1, 1, axis=0),
        "b": normal(8),
        "d": uneven(8, 1, 3, 3, axis=0, seed=2),
        "c": normal(8),
        "v": normal(4, 8, 1, 1),
    }
    proto, found, _ = equalized(net(nodes, arrays, ["N", 3, 6, 6]))
    assert [change.node for change in found] == ["h", "k"]
    peaks = [np.abs(weights(proto)[name]) for name in ("h", "k", "y")]
    first, middle, last = peaks[0].max((1, 2, 3)), peaks[1].max((1, 2, 3)), peaks[2].max((0, 2, 3))
    np.testing.assert_allclose(first, middle, rtol=0.05)
    np.testing.assert_allclose(middle, last, rtol=0.05)


@pytest.mark.parametrize("group", [1, 2])
def test_a_conv_transpose_and_groups_are_followed(group: int) -> None:
    nodes = [
        node("Conv", ["x", "w"], "h", group=group),
        node("Relu", ["h"], "r"),
        node("ConvTranspose", ["r", "t", "c"], "k", group=group),
        node("Conv", ["k", "v"], "y"),
    ]
    arrays = {
        "w": uneven(8, 4 // group, 1, 1, axis=0),
        "t": normal(8, 6 // group, 2, 2, seed=2),
        "c": normal(6),
        "v": uneven(3, 6, 1, 1, axis=1),
    }
    source = net(nodes, arrays, ["N", 4, 5, 5])
    proto, found, _ = equalized(source)
    assert [change.node for change in found] == ["h", "k"]
    for first, second in (("h", "k"), ("k", "y")):
        assert unevenness(proto, first, second) < 1.05 < unevenness(source, first, second)


@pytest.mark.parametrize("flatten", ["Flatten", "Reshape"])
def test_flattened_channels_are_runs_of_columns(flatten: str) -> None:
    last = ["p", "to"] if flatten == "Reshape" else ["p"]
    nodes = [
        node("Conv", ["x", "w", "b"], "h"),
        node("Relu", ["h"], "r"),
        node("MaxPool", ["r"], "p", kernel_shape=[2, 2], strides=[2, 2]),
        node(flatten, last, "f"),
        node("Gemm", ["f", "v", "c"], "y", transB=1),
    ]
    arrays = {
        "w": uneven(5, 3, 3, 3, axis=0),
        "b": normal(5),
        "v": normal(4, 45),
        "c": normal(4),
    }
    if flatten == "Reshape":
        arrays["to"] = np.array([-1, 45])
    proto, (found,), _ = equalized(net(nodes, arrays, ["N", 3, 8, 8]))
    w, v = weights(proto)["h"], weights(proto)["y"]
    assert found.what == "equalized 5 channels with `y`"
    read = np.abs(v).max(0).reshape(5, 9).max(1)
    np.testing.assert_allclose(np.abs(w).max((1, 2, 3)), read, rtol=0.03)


def test_channels_without_weights_stay_as_they_are() -> None:
    w, v = uneven(6, 3, 1, 1, axis=0), normal(2, 6, 1, 1)
    w[1], v[:, 2] = 0, 0
    nodes = [node("Conv", ["x", "w"], "h"), node("Conv", ["h", "v"], "y")]
    proto, _, _ = equalized(net(nodes, {"w": w, "v": v}, ["N", 3, 4, 4]))
    found = weights(proto)
    np.testing.assert_array_equal(found["h"][1], 0)
    np.testing.assert_array_equal(found["h"][2], w[2])
    np.testing.assert_array_equal(found["y"][:, 1], v[:, 1])


DECLINED = {
    "two readers": (
        """
        h = Conv (x, w)
        a = Conv (h, v)
        b = Relu (h)
        c = Conv (b, v2)
        y = Add (a, c)
        """,
        "`h` is returned or read more than once",
    ),
    "no homogeneous function": (
        """
        h = Conv (x, w)
        s = Sigmoid (h)
        y = Conv (s, v)
        """,
        "they go through the Sigmoid `s`",
    ),
    "a clipped one": (
        """
        h = Conv (x, w)
        s = Clip (h, low, high)
        y = Conv (s, v)
        """,
        "they go through the Clip `s`",
    ),
    "a sum": (
        """
        h = Conv (x, w)
        s = Add (x, h)
        y = Conv (s, v)
        """,
        "they go through the Add `s`",
    ),
    "a shared weight": (
        """
        h = Conv (x, w)
        y = Conv (h, w)
        """,
        "the weight of `h` is used by several nodes",
    ),
    "a bias at run time": (
        """
        c = Neg (low3)
        h = Conv (x, w, c)
        y = Conv (h, v)
        """,
        "the bias of `h` is computed at run time",
    ),
}


@pytest.mark.parametrize("name", list(DECLINED))
def test_other_pairs_are_declined_with_the_reason(name: str) -> None:
    body, why = DECLINED[name]
    numbers = ", ".join(str(n) for n in range(1, 10))
    source = parse(f"""
    <opset_import: ["" : 17]>
    g (float[1, 3, 2, 2] x) => (float[1, 3, 2, 2] y)
    <float[3, 3, 1, 1] w = {{{numbers}}}, float[3, 3, 1, 1] v = {{{numbers}}},
     float[3, 3, 1, 1] v2 = {{{numbers}}}, float low = {{0}}, float high = {{6}},
     float[3] low3 = {{1, 2, 3}}> {{
    {body}
    }}
    """)
    _, found, result = equalized(source)
    assert not found
    assert any(why in skip.why for skip in result.skips), result.skips


def test_the_last_layer_is_left_alone() -> None:
    _, _, result = equalized(dense_net(4, 5, 3))
    assert [skip.node for skip in result.skips] == ["y"]


def test_layers_in_a_body_are_equalized_among_themselves() -> None:
    source = parse("""
    <opset_import: ["" : 17]>
    g (float[2, 3] x, bool c) => (float[2, 2] y) {
        y = If (c) <
            then_branch = a () => (float[2, 2] t)
                <float[3, 2] w = {1, 20, 1, 20, 1, 20}, float[2, 2] v = {5, 6, 7, 8}> {
                h = MatMul (x, w)
                r = Relu (h)
                t = MatMul (r, v)
            },
            else_branch = b () => (float[2, 2] e) <float[2, 2] k = {1, 2, 3, 4}> { e = Neg (k) }>
    }
    """)
    _, found, _ = equalized(source)
    assert found == [Change("h", "equalized 2 channels with `t`")]


@given(
    widths=st.lists(st.integers(1, 9), min_size=3, max_size=6),
    spread=st.floats(0.0, 5.0),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None)
def test_any_chain_keeps_its_outputs_and_gains_precision(
    widths: list[int], spread: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    nodes, arrays, last = [], {}, "x"
    for number, (columns, rows) in enumerate(pairwise(widths)):
        scale = np.exp(spread * rng.standard_normal(rows)) / columns**0.5
        arrays[f"w{number}"] = (normal(columns, rows, seed=seed + number) * scale).astype("f4")
        arrays[f"b{number}"] = (normal(rows, seed=seed - number - 1 + 2**17) * scale).astype("f4")
        end = number == len(widths) - 2
        nodes.append(node("Gemm", [last, f"w{number}", f"b{number}"], "y" if end else f"h{number}"))
        if not end:
            nodes.append(node("Relu", [f"h{number}"], f"r{number}"))
        last = f"r{number}"
    _, found, _ = equalized(net(nodes, arrays, ["N", widths[0]]))
    assert len(found) == len(widths) - 2

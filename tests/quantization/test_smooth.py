"""Smoothing: the same outputs, activations with channels alike, and who can take the factor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from layer_nets import context, net, node, normal

from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.quantization.smooth import smooth
from onnxslim.records import Change, Fidelity, PassResult
from onnxslim.services.activity import ChannelActivity
from support import assert_equivalent

X = normal(30, 5, 16)
GAINS = np.geomspace(0.05, 20, 16).astype(np.float32)
NORMALIZED = [node("LayerNormalization", ["x", "g", "b"], "n", axis=-1)]
PLAIN = {"g": GAINS, "b": GAINS * normal(16), "w": normal(16, 8), "v": normal(16, 6, seed=3)}


def smoothed(
    source: onnx.ModelProto, x: np.ndarray | None = X, alpha: float = 0.5
) -> tuple[onnx.ModelProto, list[Change], PassResult]:
    """After smoothing; the outputs must be those before."""
    model = Model.load(source)
    infer_shapes(model)
    rewriter = Rewriter(model.graph)
    smooth(rewriter, context(model, x), alpha=alpha)
    result = rewriter.result()
    proto = model.to_proto()
    assert_equivalent(source, proto, Fidelity.CLOSE)
    return proto, list(result.changes), result


def peaks(proto: onnx.ModelProto, layer: str) -> np.ndarray:
    """The largest |x| of each channel that a layer reads."""
    model = Model.load(proto)
    calibration = context(model, X).calibration
    assert calibration is not None
    (item,) = calibration.activity(model, [layer])
    assert isinstance(item, ChannelActivity)
    return item.most


def made(nodes: Sequence[onnx.NodeProto], **arrays: np.ndarray) -> onnx.ModelProto:
    return net(nodes, {**PLAIN, **arrays}, ["N", 5, 16])


def test_a_layer_normalization_takes_the_factor() -> None:
    source = made([*NORMALIZED, node("MatMul", ["n", "w"], "y")])
    proto, (found,), result = smoothed(source)
    assert found == Change("n", "smoothed for `y`")
    assert result.fidelity is Fidelity.CLOSE
    before, after = peaks(source, "y"), peaks(proto, "y")
    weight = np.abs(PLAIN["w"]).max(axis=1)
    ratio = before / after / np.sqrt(before / weight)  # eq. 4, up to a factor that all share
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)


def test_all_that_read_the_tensor_get_the_weights_back() -> None:
    nodes = [
        *NORMALIZED,
        node("MatMul", ["n", "w"], "q"),
        node("MatMul", ["n", "v"], "k"),
        node("Concat", ["q", "k"], "y", axis=-1),
    ]
    _, (found,), _ = smoothed(made(nodes))
    assert found == Change("n", "smoothed for `q`, `k`")


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_alpha_says_which_side_is_made_even(alpha: float) -> None:
    source = made([*NORMALIZED, node("MatMul", ["n", "w"], "y")])
    proto, _, _ = smoothed(source, alpha=alpha)
    if alpha:
        after = peaks(proto, "y")
    else:
        weight = next(t for t in proto.graph.initializer if t.dims == [16, 8])
        after = np.abs(onnx.numpy_helper.to_array(weight)).max(axis=1)
    np.testing.assert_allclose(after, after[0], rtol=1e-3)


@pytest.mark.parametrize(
    "before",
    [
        [node("Mul", ["x", "g"], "m"), node("Add", ["m", "b"], "n")],
        [node("Div", ["x", "g"], "m"), node("Sub", ["m", "b"], "n")],
        [node("Mul", ["g", "x"], "m"), node("Sub", ["b", "m"], "n")],
        [node("Mul", ["x", "one"], "n")],
        [node("MatMul", ["x", "p"], "m"), node("Add", ["m", "b"], "n")],
        [node("MatMul", ["x", "p"], "n")],
    ],
    ids=["mul-add", "div-sub", "constant minus", "a scalar", "layer and add", "layer"],
)
def test_constants_and_rows_take_the_factor(before: list[onnx.NodeProto]) -> None:
    uneven = (normal(16, 16, seed=5) * GAINS).astype(np.float32)
    source = made([*before, node("MatMul", ["n", "w"], "y")], p=uneven, one=np.array(2, np.float32))
    _, found, result = smoothed(source)
    assert [item.node for item in found] == ["n"], result.skips


def test_a_gemm_with_a_transposed_weight_is_read_along_its_rows() -> None:
    nodes = [
        node("Mul", ["x", "g"], "n"),
        node("Gemm", ["n", "t", "c"], "y", transB=1),
    ]
    source = net(nodes, {"g": GAINS, "t": normal(8, 16), "c": normal(8)}, ["N", 16])
    _, (found,), _ = smoothed(source, normal(30, 16))
    assert found == Change("n", "smoothed for `y`")


def test_a_dead_channel_stays_as_it_is() -> None:
    gains = GAINS.copy()
    gains[4] = 0
    source = made([node("Mul", ["x", "g"], "n"), node("MatMul", ["n", "w"], "y")], g=gains)
    proto, found, _ = smoothed(source)
    assert found == [Change("n", "smoothed for `y`")]
    assert peaks(proto, "y")[4] == 0


DECLINED = {
    "a graph input": ([node("MatMul", ["x", "w"], "y")], "it is an input of the graph"),
    "another reader": (
        [
            *NORMALIZED,
            node("MatMul", ["n", "s"], "m"),
            node("Add", ["n", "m"], "y"),
        ],
        "others than weight layers read it",
    ),
    "an activation": (
        [*NORMALIZED, node("Sigmoid", ["n"], "a"), node("MatMul", ["a", "w"], "y")],
        "the Sigmoid `a` that makes it has no parameters",
    ),
    "a residual": (
        [*NORMALIZED, node("Add", ["n", "x"], "a"), node("MatMul", ["a", "w"], "y")],
        "the Add `a` that makes it has no constant operand",
    ),
    "channels along another axis": (
        [*NORMALIZED, node("MatMul", ["u", "n"], "y")],
        "its channels do not lie along its last axis",
    ),
    "more than the last axis": (
        [
            node("LayerNormalization", ["x", "g2"], "n", axis=-2),
            node("MatMul", ["n", "w"], "y"),
        ],
        "is about more than its last axis",
    ),
    "a sum that others read": (
        [
            node("Mul", ["x", "g"], "m"),
            node("Add", ["m", "b"], "n"),
            node("MatMul", ["n", "s"], "a"),
            node("Add", ["a", "m"], "y"),
        ],
        "others read what the Add `n` reads",
    ),
}


@pytest.mark.parametrize("name", list(DECLINED))
def test_other_tensors_are_declined_with_the_reason(name: str) -> None:
    nodes, why = DECLINED[name]
    arrays = {"s": normal(16, 16), "u": normal(4, 5), "g2": normal(5, 16)}
    _, found, result = smoothed(made(nodes, **arrays))
    assert not found
    assert any(why in skip.why for skip in result.skips), result.skips


def test_without_data_nothing_is_done() -> None:
    _, found, result = smoothed(made([*NORMALIZED, node("MatMul", ["n", "w"], "y")]), None)
    assert not found
    assert not result.changed


def test_a_transformer_block_is_smoothed_where_it_reads_normalized_tensors() -> None:
    nodes = [
        *NORMALIZED,
        node("MatMul", ["n", "w"], "q"),
        node("MatMul", ["n", "w2"], "k"),
        node("MatMul", ["n", "s"], "v_"),
        node("Transpose", ["k"], "kt", perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], "a"),
        node("Softmax", ["a"], "p", axis=-1),
        node("MatMul", ["p", "v_"], "o"),
        node("Add", ["x", "o"], "r"),
        node("LayerNormalization", ["r", "g", "b"], "m", axis=-1),
        node("MatMul", ["m", "up"], "u"),
        node("Relu", ["u"], "z"),
        node("MatMul", ["z", "down"], "d"),
        node("Add", ["r", "d"], "y"),
    ]
    arrays = {
        "w2": normal(16, 8, seed=4),
        "s": normal(16, 16, seed=5),
        "up": normal(16, 32, seed=6),
        "down": normal(32, 16, seed=7),
    }
    _, found, result = smoothed(made(nodes, **arrays))
    assert found == [
        Change("n", "smoothed for `q`, `k`, `v_`"),
        Change("m", "smoothed for `u`"),
    ]
    assert [skip.node for skip in result.skips] == ["z"]

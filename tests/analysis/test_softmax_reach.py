"""How far below the largest value of its row a value still matters to a Softmax."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from layer_nets import net, node

from onnxslim.analysis.softmax_reach import ADDEND_REACH, REACH, SoftmaxReach, softmax_reach
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes

SHAPE = ["N", 3, 4]
MASK = {"m": np.zeros(4, np.float32)}


def reach(nodes: Sequence[onnx.NodeProto], name: str) -> SoftmaxReach | None:
    model = Model.load(net(list(nodes), MASK, SHAPE))
    infer_shapes(model)
    tensors = {t.name: t for item in model.graph.nodes for t in (*item.inputs, *item.outputs)}
    return softmax_reach(tensors[name])


SUM = node("Add", ["x", "m"], "s")


@pytest.mark.parametrize(("axis", "found"), [(-1, -1), (2, -1), (1, 1)])
def test_what_a_softmax_alone_reads_matters_near_the_largest(axis: int, found: int) -> None:
    nodes = [SUM, node("Softmax", ["s"], "y", axis=axis)]
    assert reach(nodes, "s") == SoftmaxReach(found, REACH)


def test_an_addend_matters_further_and_so_does_an_addend_of_that() -> None:
    nodes = [SUM, node("Add", ["s", "m"], "t"), node("Softmax", ["t"], "y")]
    assert reach(nodes, "s") == reach(nodes, "x") == SoftmaxReach(-1, ADDEND_REACH)
    assert reach(nodes, "m") == SoftmaxReach(-1, ADDEND_REACH)


@pytest.mark.parametrize(
    "nodes",
    [
        [SUM, node("Sigmoid", ["s"], "y")],
        [SUM, node("Softmax", ["s"], "p"), node("Add", ["s", "p"], "y")],
        [SUM, node("Mul", ["s", "m"], "t"), node("Softmax", ["t"], "y")],
        [SUM, node("Add", ["s", "m"], "t"), node("Softmax", ["t"], "y", axis=1)],
        [
            SUM,
            node("Softmax", ["s"], "p"),
            node("Softmax", ["s"], "q", axis=1),
            node("Add", ["p", "q"], "y"),
        ],
    ],
)
def test_where_others_read_it_or_other_axes_all_of_it_matters(
    nodes: list[onnx.NodeProto],
) -> None:
    assert reach(nodes, "s") is None


@pytest.mark.parametrize("masked", [-1e4, -np.inf])
def test_clipping_changes_no_probability(masked: float) -> None:
    scores = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32) * 3
    scores[:, ::3] = masked
    clipped = SoftmaxReach(-1, REACH).clipped(scores)
    assert np.isfinite(clipped).all()

    def softmax(values: np.ndarray) -> np.ndarray:
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))

    np.testing.assert_allclose(softmax(clipped), softmax(scores), atol=1e-4)


def test_an_axis_that_is_not_there_clips_nothing() -> None:
    array = np.array([0.0, -100.0])
    np.testing.assert_array_equal(SoftmaxReach(3, REACH).clipped(array), array)
    assert SoftmaxReach(-1, REACH).clipped(np.zeros((2, 0))).shape == (2, 0)

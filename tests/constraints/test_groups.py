"""Groups of elements are those of the operator that reads the weight, however the weight lies."""

from __future__ import annotations

import numpy as np
import pytest
from layer_nets import net, node, normal

from onnxslim.constraints.groups import weight_groups
from onnxslim.io.model import Model
from onnxslim.services.training import WeightGroup

GRAPH = Model.load(
    net(
        [
            node("Conv", ["x", "k"], "f", group=2),
            node("Flatten", ["f"], "v"),
            node("Gemm", ["v", "g"], "h", transB=1),
            node("MatMul", ["h", "m"], "y"),
        ],
        {"k": normal(6, 2, 3, 3), "g": normal(5, 96), "m": normal(5, 7)},
        ["N", 4, 6, 6],
    )
).graph
OUT, IN = np.arange(6)[:, None], np.arange(2)
TAP = np.arange(9).reshape(3, 3)
HALF = OUT // 3
CASES = {
    WeightGroup.FILTER: (OUT[..., None, None] + 0 * TAP, np.arange(5)[:, None], np.arange(7)),
    WeightGroup.CHANNEL: ((2 * HALF + IN)[..., None, None], np.arange(96), np.arange(5)[:, None]),
    WeightGroup.SHAPE: (
        (18 * HALF + 9 * IN)[..., None, None] + TAP,
        np.arange(96),
        np.arange(5)[:, None],
    ),
    WeightGroup.DEPTH: (0, 0, 0),
    None: (
        np.arange(108).reshape(6, 2, 3, 3),
        np.arange(480).reshape(5, 96),
        np.arange(7) * 5 + np.arange(5)[:, None],
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_elements_of_a_group_are_told(kind: WeightGroup | None) -> None:
    found = weight_groups(GRAPH, kind)
    shapes = {"k": (6, 2, 3, 3), "g": (5, 96), "m": (5, 7)}
    for (name, shape), expected in zip(shapes.items(), CASES[kind], strict=True):
        np.testing.assert_array_equal(found[name], np.broadcast_to(expected, shape))

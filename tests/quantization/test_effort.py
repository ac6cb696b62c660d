"""How many runs of a model may be spent on the choice of ranges."""

from __future__ import annotations

import numpy as np
import pytest
from layer_nets import net, node, normal

from onnxslim.io.model import Model
from onnxslim.quantization.effort import affordable_runs


@pytest.mark.parametrize(("rows", "width"), [(64, 512), (8, 512), (64, 1024)])
def test_work_is_counted_for_one_sample_of_the_size_that_is_given(rows: int, width: int) -> None:
    source = net([node("MatMul", ["x", "w"], "y")], {"w": normal(width, width)}, ["N", "L", width])
    runs = affordable_runs(Model.load(source), {"x": (1, rows, width)}, 1e12)
    assert runs == 1e12 / max(rows * width**2, 1e7)


def test_a_model_without_products_has_runs_as_well() -> None:
    source = net([node("Relu", ["x"], "y")], {}, ["N", 4])
    assert np.isfinite(affordable_runs(Model.load(source), {"x": (1, 4)}, 1e12))

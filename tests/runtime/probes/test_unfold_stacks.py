"""Stacks of constant matrices that multiply one vector: moments by numpy."""

from __future__ import annotations

import numpy as np
import pytest
from layer_nets import net, node, normal

from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.records import Skip
from onnxslim.runtime.probes.calibration_runs import CalibrationRuns
from onnxslim.services.moments import LayerMoments

SAMPLES = [np.random.default_rng(seed).normal(size=3).astype(np.float32) for seed in range(4)]


def moments(inputs: list[str], weight: np.ndarray) -> LayerMoments | Skip:
    source = net([node("MatMul", inputs, "y")], {"w": weight}, [3])
    model, reference = Model.load(source), Model.load(source)
    infer_shapes(model)
    calibration = CalibrationRuns([{"x": sample} for sample in SAMPLES])
    (found,) = calibration.moments(model, ["y"], reference)
    return found


def test_each_matrix_of_a_stack_gets_the_vector_as_one_row() -> None:
    found = moments(["x", "w"], normal(4, 2, 3, 5))
    assert isinstance(found, LayerMoments)
    expected = np.mean([np.outer(sample, sample) for sample in SAMPLES], axis=0)
    assert found.count == len(SAMPLES)
    np.testing.assert_allclose(np.asarray(found.seconds[0]), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 2, 5, 3), (5, 2, 5, 3), (2, 5, 3)])
def test_a_stack_on_the_left_of_a_vector_does_not_fail(shape: tuple[int, ...]) -> None:
    assert isinstance(moments(["w", "x"], normal(*shape)), LayerMoments | Skip)

"""Groups shrink by a length, reach zero exactly, and stay there."""

from __future__ import annotations

import numpy as np
import pytest
from layer_nets import normal

from onnxslim.runtime.training.schedule import cycle_between, one_cycle

torch = pytest.importorskip("torch", reason="training needs the extra `train`")
from onnxslim.runtime.training.regularizer import Regularizer  # noqa: E402

WEIGHT = normal(6, 8) * np.array([[0.01], [0.2], [1], [1], [2], [3]], np.float32)
ROWS = np.repeat(np.arange(6), 8).reshape(6, 8)
EACH = np.arange(48).reshape(6, 8)


@pytest.mark.parametrize("groups", [ROWS, EACH], ids=["group lasso", "l1"])
def test_a_step_is_the_proximal_one(groups: np.ndarray) -> None:
    tensor = torch.from_numpy(WEIGHT.copy()).requires_grad_()
    regularizer = Regularizer({"w": tensor, "other": tensor}, {"w": groups}, decay=0.5)
    regularizer.shrink(0.0, 0.6)
    norms = np.sqrt(np.bincount(groups.ravel(), np.square(WEIGHT).ravel()))
    length = 0.5 * norms.mean() * cycle_between(0.0, 0.6)
    factors = np.maximum(0, 1 - length / norms)[groups]
    np.testing.assert_allclose(tensor.detach(), WEIGHT * factors, rtol=1e-4, atol=1e-7)
    zeros = int((factors == 0).sum() / (8 if groups is ROWS else 1))
    assert zeros > 0
    assert regularizer.zero_share() == (zeros, groups.max() + 1)


def test_steps_of_a_whole_training_add_up_to_the_decay() -> None:
    tensor = torch.ones(4, 3)
    regularizer = Regularizer({"w": tensor}, {"w": np.arange(12).reshape(4, 3)}, decay=0.75)
    for number in range(40):
        regularizer.shrink(number / 40, (number + 1) / 40)
    assert torch.allclose(tensor, torch.full((4, 3), 0.25), atol=1e-5)
    regularizer.shrink(0.0, 1.0)
    assert not tensor.any()
    assert regularizer.zero_share() == (12, 12)


def test_a_weight_of_zeros_is_left_out() -> None:
    tensor = torch.zeros(4, 3)
    Regularizer({"w": tensor}, {"w": np.zeros((4, 3), np.int64)}, decay=1.0).shrink(0.0, 1.0)
    assert not tensor.any()


def test_parts_of_the_cycle_are_integrals_of_the_rate() -> None:
    places = np.linspace(0, 1, 20001)
    rates = np.array([one_cycle(place) for place in places])
    whole = np.trapezoid(rates, places)
    for before, after in ((0.0, 0.1), (0.1, 0.5), (0.5, 1.0)):
        inside = (places >= before) & (places <= after)
        expected = np.trapezoid(rates[inside], places[inside]) / whole
        assert cycle_between(before, after) == pytest.approx(expected, rel=1e-3)

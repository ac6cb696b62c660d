"""What each stored weight obeys holds after training, in the form in which it is stored."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from layer_nets import net, node, normal

from onnxslim.constraints.dense import dense_twin
from onnxslim.constraints.read import read_constraints
from onnxslim.constraints.stored import GridWeight, ScaleWeight, StoredWeight, TiedWeight
from onnxslim.io.model import Model
from onnxslim.runtime.session import open_session

torch = pytest.importorskip("torch", reason="training needs the extra `train`")
from trained_nets import LAYERS, X, stored_by, trained  # noqa: E402

from onnxslim.runtime.training.parametrisation import Moment  # noqa: E402
from onnxslim.runtime.training.trained_weights import (  # noqa: E402
    PARAMETRISATIONS,
    TrainedWeights,
)

FORMS = [
    "",
    "prune-weights:ratio=0.8",
    "cluster-weights:bits=3",
    "prune-weights:ratio=0.8,cluster-weights:bits=3",
    "ternarize-weights",
    "quantize-power-of-two:bits=4",
    "quantize-fixed-point:il=3:fl=3",
    "quantize-fixed-point:il=3:fl=9",
    "quantize-weights:bits=8",
    "quantize-weights:bits=4:block=16",
    "quantize-int8:placement=all:activation-ranges=static",
]


def kinds(model: Model) -> dict[str, type[StoredWeight]]:
    return {item.name: type(item) for item in read_constraints(model.graph).weights}


@pytest.mark.parametrize("passes", FORMS)
def test_a_trained_model_obeys_what_it_obeyed_and_computes_what_torch_did(passes: str) -> None:
    model = stored_by(passes)
    after, expected = trained(model)
    assert kinds(after) == kinds(model)
    before = open_session(model).run({"x": X})["y"]
    found = open_session(after, optimise=False).run({"x": X})["y"]
    assert np.square(found).mean() < np.square(before).mean()
    scale = np.abs(expected).max()
    if "int8" in passes:  # a value on the border of two codes may take either
        assert np.square(found - expected).mean() < 1e-3 * np.square(expected).mean()
    else:
        assert np.abs(found - expected).max() <= 1e-4 * scale


@pytest.mark.parametrize("passes", FORMS)
def test_nothing_moves_where_nothing_was_learned(passes: str) -> None:
    model = stored_by(passes)
    after, _ = trained(model, steps=0)
    for item, other in zip(
        read_constraints(model.graph).leaves(), read_constraints(after.graph).leaves(), strict=True
    ):
        np.testing.assert_array_equal(other.holder.values, item.holder.values, strict=True)
    assert after.file_bytes() == model.file_bytes()


def test_zeros_and_ties_survive() -> None:
    codes = np.random.default_rng(1).integers(0, 4, (24, 40))
    weight = np.array([-0.3, 0, 0.2, 0.7], np.float32)[codes]
    source = net([node("MatMul", ["x", "w"], "y")], {"w": weight}, ["N", 24])
    constraints = read_constraints(Model.load(source).graph)
    weights = TrainedWeights(constraints, {})
    weights.tensors()["w"].square().sum().backward()
    torch.optim.SGD(weights.parameters, lr=0.01).step()
    (item,) = constraints.weights
    assert isinstance(item, TiedWeight)
    made = weights.store()["w"]
    np.testing.assert_array_equal(made == 0, weight == 0)
    assert np.unique(made).size == 4
    assert not np.array_equal(made, weight)


def test_gradients_of_a_tied_value_are_summed_over_its_elements() -> None:
    weight = np.array([0.3, 0.7], np.float32)[np.arange(40) % 2].reshape(8, 5)
    source = net([node("MatMul", ["x", "w"], "y")], {"w": weight}, ["N", 8])
    weights = TrainedWeights(read_constraints(Model.load(source).graph), {})
    slopes = torch.from_numpy(normal(8, 5))
    (weights.tensors()["w"] * slopes).sum().backward()
    expected = [slopes.reshape(-1)[place::2].sum() for place in (0, 1)]
    np.testing.assert_allclose(weights.parameters[0].grad, expected, rtol=1e-5)


def grid_net() -> onnx.ModelProto:
    codes = np.array([[-3, 2, 100], [0, 127, -127]], np.int8)
    nodes = [node("DequantizeLinear", ["q", "s"], "w"), node("MatMul", ["x", "w"], "y")]
    return net(nodes, {"q": codes, "s": np.float32(0.013)}, ["N", 2])


def test_steps_of_a_grid_have_the_gradients_of_learned_step_sizes() -> None:
    """Esser et al. 2020, equation 3: code - w/s inside of the range, the bound outside."""
    model = Model.load(grid_net())
    constraints = read_constraints(model.graph)
    assert [type(item) for item in constraints.weights] == [ScaleWeight, GridWeight]
    twin = dense_twin(model, constraints)
    weights = TrainedWeights(constraints, twin.names)
    step, latent = weights.parameters
    with torch.no_grad():  # between two codes, on one, and beyond the last
        latent.copy_(torch.tensor([[-3.3, 2.0, 99.6], [0.2, 130.0, -140.0]]) * 0.013)
    weights.settle(Moment(0.0))
    (name,) = twin.names.values()
    weights.tensors()[name].sum().backward()
    by_hand = (-3 + 3.3) + (2 - 2.0) + (100 - 99.6) + (0 - 0.2) + 127 - 127
    assert step.grad is not None
    assert latent.grad is not None
    # the factor is exp(0): its gradient is that of the step, times the step
    np.testing.assert_allclose(step.grad / 0.013, by_hand, rtol=1e-3)
    np.testing.assert_array_equal(latent.grad, [[1, 1, 1], [1, 0, 0]])


def test_a_weight_that_is_left_out_stays() -> None:
    constraints = read_constraints(Model.load(LAYERS).graph)
    weights = TrainedWeights(constraints, {}, lambda readers: "y" in readers)
    assert set(weights.store()) == {"w", "b"}


def test_every_record_has_a_parametrisation() -> None:
    def leaves(kind: type[StoredWeight]) -> set[type[StoredWeight]]:
        return {x for sub in kind.__subclasses__() for x in leaves(sub)} or {kind}

    assert leaves(StoredWeight) == set(PARAMETRISATIONS)

"""How elements move in training: which values they take, by what rule, and with what gradients."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from layer_nets import net, node, normal

from onnxslim.codebook.weight import Stage
from onnxslim.constraints.dense import dense_twin
from onnxslim.constraints.read import read_constraints
from onnxslim.constraints.starting import random_weights, weights_of_other
from onnxslim.constraints.stored import FreeWeight, LeafWeight, LookupWeight, TiedWeight
from onnxslim.constraints.storing import store_values
from onnxslim.graph.ir import Constant, StoredSparse
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.runtime.session import open_session
from onnxslim.services.training import (
    CodeMovement,
    CodeRounding,
    TrainingRequest,
    ZeroMovement,
)

torch = pytest.importorskip("torch", reason="training needs the extra `train`")
from trained_nets import LAYERS, X, stored_by, trained  # noqa: E402

from onnxslim.runtime.training.parametrisation import (  # noqa: E402
    Moment,
    Parametrisation,
    Settings,
)
from onnxslim.runtime.training.projections import (  # noqa: E402
    Choice,
    Latent,
    grown_share,
)
from onnxslim.runtime.training.trained_weights import TrainedWeights  # noqa: E402

MOVE = TrainingRequest(codes=CodeMovement.MOVE)
NOW = Moment(0.0)
MOVED = [
    "cluster-weights:bits=3",
    "cluster-weights:bits=2:per=channel",
    "cluster-weights:bits=4:vector=2",
    "cluster-weights:bits=3:stages=2",
    "cluster-weights:bits=5:stages=2",
    "prune-weights:ratio=0.8,cluster-weights:bits=3",
    "ternarize-weights",
    "binarize-weights",
    "binarize-weights:bases=2",
    "quantize-power-of-two:bits=4",
    "quantize-weights:bits=4:block=16",
]


def owner(request: TrainingRequest = MOVE) -> Parametrisation[FreeWeight]:
    (weight,) = read_constraints(Model.load(product_net(normal(4, 4))).graph).weights
    assert isinstance(weight, FreeWeight)
    return Parametrisation(weight, "w", Settings(request=request))


def product_net(weight: np.ndarray) -> object:
    return net([node("MatMul", ["x", "w"], "y")], {"w": weight}, ["N", weight.shape[0]])


def chosen(stages: list[Stage], floats: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The values that floats take, and the codes, from the codes of `stages`."""
    weight = owner()
    choice = Choice(weight, stages)
    start = sum(stage.values(np.dtype(np.float32)).reshape(-1) for stage in stages)
    latent = Latent(weight, start, zeros_stay=False, vector=stages[0].vector)
    tables = [torch.from_numpy(stage.table) for stage in stages]
    with torch.no_grad():
        latent.floats.copy_(torch.from_numpy(floats))
    choice.settle(latent, tables, NOW)
    return choice.value(tables).numpy(), choice.stored()


def stage(codes: np.ndarray, table: np.ndarray) -> Stage:
    return Stage(codes.astype(np.uint8), table.astype(np.float32))


# ---------------------------------------------------------------- the nearest value


@pytest.mark.parametrize("blocks", [1, 3])
def test_elements_take_the_nearest_value_of_their_table(blocks: int) -> None:
    table = normal(blocks, 4, seed=2)
    floats = normal(blocks * 20, seed=3)
    own = stage(np.zeros((blocks, 20)), table if blocks > 1 else table[0])
    found, (codes,) = chosen([own], floats)
    distances = np.abs(floats.reshape(blocks, 20, 1) - table[:, None])
    np.testing.assert_array_equal(codes, distances.argmin(-1))
    expected = np.take_along_axis(table, distances.argmin(-1), 1).reshape(-1)
    np.testing.assert_array_equal(found, expected)


def test_of_several_stages_the_nearest_of_all_sums_is_taken() -> None:
    tables = [np.stack([-a, a], 1) for a in np.abs(normal(3, 5, 1, seed=4))[..., 0]]
    stages = [stage(np.zeros((5, 40)), table) for table in tables]
    floats = normal(200, seed=5)
    found, _ = chosen(stages, floats)
    sums = np.stack([sum(t[:, c] for t, c in zip(tables, pick, strict=True))
                     for pick in product((0, 1), repeat=3)], 1)  # fmt: skip
    distances = np.abs(floats.reshape(5, 40, 1) - sums[:, None])
    np.testing.assert_allclose(
        np.abs(found - floats).reshape(5, 40), distances.min(-1), rtol=1e-5, atol=1e-6
    )


def test_stages_with_many_sums_never_come_farther_away() -> None:
    rng = np.random.default_rng(6)
    stages = [stage(rng.integers(0, 32, (1, 500)), normal(32, seed=seed)) for seed in (7, 8)]
    start = sum(s.values(np.dtype(np.float32)).reshape(-1) for s in stages)
    floats = start + normal(500, seed=9, scale=0.3)
    found, _ = chosen(stages, floats)
    before, after = np.abs(floats - start), np.abs(floats - found)
    assert (after <= before + 1e-6).all()
    assert after.mean() < 0.5 * before.mean()
    same, codes = chosen(stages, start)
    np.testing.assert_array_equal(codes, [s.codes for s in stages])
    np.testing.assert_array_equal(same, start)


@pytest.mark.parametrize("blocks", [1, 2])
def test_vectors_take_the_nearest_one(blocks: int) -> None:
    table, floats = normal(blocks, 6, 3, seed=2), normal(blocks, 30, 3, seed=3)
    own = stage(np.zeros((blocks, 30)), table if blocks > 1 else table[0])
    _, (codes,) = chosen([own], floats.reshape(-1))
    distances = np.square(floats[:, :, None] - table[:, None]).sum(-1)
    np.testing.assert_array_equal(codes, distances.argmin(-1))


def test_a_code_stays_where_another_has_the_same_value() -> None:
    own = stage(np.array([[0, 2, 1, 0]]), np.array([-1, 0.5, 0.5, 0.5]))
    _, (codes,) = chosen([own], np.array([0.4, 0.6, -0.9, -2], np.float32))
    assert codes.tolist() == [[1, 2, 0, 0]]


def test_floats_stay_in_the_reach_of_their_table() -> None:
    weight = owner()
    own = stage(np.array([[0, 0, 0]]), np.array([-1, 1]))
    latent = Latent(weight, np.full(3, -1, np.float32), zeros_stay=False, vector=1)
    with torch.no_grad():
        latent.floats.copy_(torch.tensor([-9, 0.5, 9.0]))
    Choice(weight, [own]).settle(latent, [torch.tensor([-1.0, 1.0])], NOW)
    assert latent.floats.tolist() == [-2, 0.5, 2]


# ---------------------------------------------------------------- zeros


def pruned(share: float = 0.75) -> np.ndarray:
    weight = normal(24, 40)
    return np.where(np.abs(weight) > np.quantile(np.abs(weight), share), weight, 0)


def zeros_of(weight: np.ndarray, zeros: ZeroMovement) -> TrainedWeights:
    constraints = read_constraints(Model.load(product_net(weight)).graph)
    return TrainedWeights(constraints, {}, settings=Settings(request=TrainingRequest(zeros=zeros)))


@pytest.mark.parametrize("zeros", ZeroMovement)
def test_zeros_stay_or_are_chosen_anew_or_learn(zeros: ZeroMovement) -> None:
    weight = pruned()
    weights = zeros_of(weight, zeros)
    (floats,) = weights.parameters
    wanted = normal(24, 40, seed=9)
    with torch.no_grad():
        floats.copy_(torch.from_numpy(wanted))
    weights.settle(NOW)
    found = weights.store()["w"]
    count = np.count_nonzero(weight)
    kept = {
        ZeroMovement.STAY: weight != 0,
        ZeroMovement.MOVE: np.abs(wanted) >= np.sort(np.abs(wanted), axis=None)[-count],
        ZeroMovement.GROW: np.ones_like(weight, bool),
        ZeroMovement.RELEASE: np.ones_like(weight, bool),
    }[zeros]
    np.testing.assert_array_equal(found, wanted * kept)


def test_zeros_that_grow_are_the_smallest_of_each_moment_and_stay() -> None:
    weight = pruned()
    weights = zeros_of(weight, ZeroMovement.GROW)
    (floats,) = weights.parameters
    rng = np.random.default_rng(0)
    counts, before = [], np.zeros_like(weight, bool)
    for share in (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0):
        with torch.no_grad():
            floats.copy_(torch.from_numpy(rng.standard_normal(weight.shape)))
        expected = np.where(before, 0, floats.detach().numpy())
        weights.settle(Moment(share))
        found = weights.store()["w"]
        sizes = np.abs(expected[found == 0]), np.abs(expected[found != 0])
        assert sizes[0].max(initial=0.0) <= sizes[1].min()
        assert (found == 0)[before].all()
        before = found == 0
        counts.append(np.count_nonzero(found))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == weight.size
    assert np.count_nonzero(weight) == counts[-3] == counts[-1] < counts[-4]
    assert weight.size - counts[1] > counts[1] - counts[2] > counts[3] - counts[5]


def test_elements_without_a_gradient_become_zero_first_however_large_they_are() -> None:
    weight = pruned()
    weights = zeros_of(weight, ZeroMovement.GROW)
    (floats,) = weights.parameters
    weights.settle(NOW)
    slopes = np.abs(normal(24, 40)) + 1
    slopes[:, :20] = 0
    with torch.no_grad():
        floats.copy_(torch.from_numpy(normal(24, 40, seed=9)))
        floats[:, :20] *= 100
    (weights.tensors()["w"] * torch.from_numpy(slopes)).sum().backward()
    weights.settle(Moment(1.0))
    found = weights.store()["w"]
    assert not found[:, :20].any()
    assert np.count_nonzero(found) == np.count_nonzero(weight)


@pytest.mark.parametrize("zeros", ZeroMovement)
def test_gradients_pass_the_mask_where_zeros_may_move(zeros: ZeroMovement) -> None:
    weight = pruned()
    weights = zeros_of(weight, zeros)
    slopes = torch.from_numpy(normal(24, 40))
    made = weights.tensors()["w"]
    np.testing.assert_array_equal(made.detach(), weight)
    (made * slopes).sum().backward()
    dense = zeros in {ZeroMovement.MOVE, ZeroMovement.RELEASE}  # growing begins with `settle`
    np.testing.assert_array_equal(
        weights.parameters[0].grad, slopes.numpy() * (dense | (weight != 0))
    )


def test_zeros_of_tables_stay_where_zeros_of_weights_move() -> None:
    model = stored_by("prune-weights:ratio=0.8,cluster-weights:bits=2")
    for zeros in (ZeroMovement.MOVE, ZeroMovement.RELEASE):
        after, _ = trained(model, rate=0.1, request=TrainingRequest(zeros=zeros))
        for one, other in zip(*(_lookups(m) for m in (model, after)), strict=True):
            was_zero, is_zero = (w.weight.stages[0].table == 0 for w in (one, other))
            np.testing.assert_array_equal(was_zero, is_zero)


@pytest.mark.parametrize(
    "passes",
    [
        "prune-weights:ratio=0.8",
        "prune-weights:ratio=0.9,cluster-weights:bits=2",
        "prune-weights:ratio=0.9,quantize-power-of-two:bits=4",
        "prune-weights:ratio=0.9,quantize-weights:bits=4",
    ],
)
def test_as_many_zeros_move_in_the_form_of_the_file(passes: str) -> None:
    model = stored_by(passes)
    request = TrainingRequest(zeros=ZeroMovement.MOVE, codes=CodeMovement.MOVE)
    after, expected = trained(model, steps=10, rate=0.2, request=request)
    found = open_session(after, optimise=False).run({"x": X})["y"]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    for place, (one, other) in enumerate(zip(_dense(model), _dense(after), strict=True)):
        if place % 2 == 0:
            assert np.count_nonzero(other) <= np.count_nonzero(one)
            assert ((one == 0) != (other == 0)).any()
    assert after.file_bytes() <= 1.01 * model.file_bytes()


def test_released_zeros_are_stored_dense() -> None:
    model = stored_by("prune-weights:ratio=0.9")
    assert any(isinstance(leaf.holder.stored, StoredSparse) for leaf in _leaves(model))
    after, expected = trained(model, request=TrainingRequest(zeros=ZeroMovement.RELEASE))
    assert not any(isinstance(leaf.holder.stored, StoredSparse) for leaf in _leaves(after))
    found = open_session(after, optimise=False).run({"x": X})["y"]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def _leaves(model: Model) -> list[LeafWeight]:
    return list(read_constraints(model.graph).leaves())


# ---------------------------------------------------------------- other values to start from


@pytest.mark.parametrize("passes", ["prune-weights:ratio=0.8", *MOVED])
def test_weights_start_from_other_values_within_what_they_obey(passes: str) -> None:
    model = stored_by(passes)
    constraints = read_constraints(model.graph)
    twin = dense_twin(model, constraints)
    weights = TrainedWeights(constraints, twin.names, settings=Settings(request=MOVE))
    original = _dense(Model.load(LAYERS))
    found = weights_of_other(constraints, read_constraints(Model.load(LAYERS).graph))
    assert weights.begin(found)[0] == 4
    weights.settle(NOW)
    copy = model.clone()
    rw = Rewriter(copy.graph)
    store_values(rw, read_constraints(copy.graph), weights.store())
    rw.result()
    given, found = _dense(model), _dense(copy)
    for place, wanted in enumerate(original):
        errors = [np.square(each[place] - wanted).sum() for each in (given, found)]
        assert errors[1] <= errors[0] * (1 + 1e-6)
        if "prune" in passes:
            assert not found[place][given[place] == 0].any()
    np.testing.assert_array_equal(found[1], original[1])


def _dense(model: Model) -> list[np.ndarray]:
    """Weights and biases of the net, in the order of its nodes."""
    twin = dense_twin(model, read_constraints(model.graph)).model
    constants = [t.values for n in twin.graph.nodes for t in n.inputs if isinstance(t, Constant)]
    return [array.T if array.shape == (288, 32) else array for array in constants
            if array.dtype == np.float32]  # fmt: skip


def test_random_weights_have_the_spread_of_the_inputs_that_are_kept() -> None:
    model = stored_by("prune-weights:ratio=0.8")
    twin = dense_twin(model, read_constraints(model.graph))
    found = random_weights(twin, 3)
    given = dict(zip("kcwb", _dense(model), strict=True))
    for name in ("k", "w"):
        array = found[name]
        np.testing.assert_array_equal(array == 0, given[name] == 0)
        inputs = np.count_nonzero(given[name].reshape(len(array), -1), axis=1)
        scaled = array.reshape(len(array), -1) * np.sqrt(inputs / 2)[:, None]
        assert scaled[scaled != 0].std() == pytest.approx(1, rel=0.2)
    biases = [array for name, array in found.items() if name not in given]
    assert [array.shape for array in biases] == [(8,), (32,)]
    assert not any(array.any() for array in biases)
    assert not np.array_equal(found["w"], random_weights(twin, 4)["w"])


# ---------------------------------------------------------------- by chance


def test_rounding_by_chance_is_right_on_average() -> None:
    weight = owner()
    table = torch.tensor([-1.0, 0.0, 3.0])
    own = stage(np.zeros((1, 40000)), table.numpy())
    latent = Latent(weight, np.zeros(40000, np.float32), zeros_stay=False, vector=1)
    with torch.no_grad():
        latent.floats.copy_(torch.tensor([-0.25, 0.75, 2.5, 3.0]).repeat(10000))
    choice = Choice(weight, [own])
    choice.settle(latent, [table], Moment(0.0, torch.Generator().manual_seed(1)))
    means = choice.value([table]).reshape(-1, 4).mean(0)
    assert torch.allclose(means, torch.tensor([-0.25, 0.75, 2.5, 3.0]), atol=0.05)
    choice.settle(latent, [table], NOW)
    assert choice.value([table])[:4].tolist() == [0, 0, 3, 3]


# ---------------------------------------------------------------- gradients


def test_gradients_reach_floats_as_they_are_and_tables_in_sums() -> None:
    model = stored_by("cluster-weights:bits=2:only=y")
    constraints = read_constraints(model.graph)
    (item,) = (x for x in constraints.weights if isinstance(x, LookupWeight))
    weights = TrainedWeights(
        constraints,
        {item.name: "dense"},
        lambda readers: item.outputs[0] in readers,
        Settings(request=MOVE),
    )
    table, floats = weights.parameters
    slopes = torch.from_numpy(normal(32, 288))
    (weights.tensors()["dense"] * slopes).sum().backward()
    assert torch.equal(floats.grad, slopes.reshape(-1))
    codes = item.weight.stages[0].codes.reshape(-1)
    sums = [slopes.reshape(-1)[torch.from_numpy(codes == c)].sum() for c in range(len(table))]
    kept = item.weight.stages[0].table != 0
    np.testing.assert_allclose(table.grad, np.array(sums) * kept, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- stored


@pytest.mark.parametrize("passes", MOVED)
@pytest.mark.parametrize("rounding", CodeRounding)
def test_moved_codes_are_stored_in_the_same_form(passes: str, rounding: CodeRounding) -> None:
    model = stored_by(passes)
    request = TrainingRequest(codes=CodeMovement.MOVE, rounding=rounding)
    after, expected = trained(model, steps=8, rate=0.1, request=request)
    found = open_session(after, optimise=False).run({"x": X})["y"]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    before = open_session(model).run({"x": X})["y"]
    assert np.square(found).mean() < 0.5 * np.square(before).mean()
    assert after.file_bytes() == model.file_bytes()
    pairs = zip(_codes(model), _codes(after), strict=True)
    assert any(not np.array_equal(one, other) for one, other in pairs)
    assert [type(x) for x in read_constraints(after.graph).weights] == [
        type(x) for x in read_constraints(model.graph).weights
    ]


def _codes(model: Model) -> list[np.ndarray]:
    return [
        tensor.values.astype(np.int64)
        for n in model.graph.nodes
        for tensor in n.inputs
        if getattr(tensor, "values", None) is not None and tensor.dtype != np.float32
    ]


@pytest.mark.parametrize("passes", MOVED)
def test_codes_stay_where_floats_do(passes: str) -> None:
    model = stored_by(passes)
    after, _ = trained(model, steps=0, request=MOVE)
    for one, other in zip(_codes(model), _codes(after), strict=True):
        np.testing.assert_array_equal(one, other)


def test_zeros_of_tables_that_are_there_by_choice_stay() -> None:
    model = stored_by("prune-weights:ratio=0.9,cluster-weights:bits=2")
    after, _ = trained(model, rate=0.1, request=MOVE)
    for one, other in zip(*(_lookups(m) for m in (model, after)), strict=True):
        was_zero, is_zero = (w.weight.dense() == 0 for w in (one, other))
        assert is_zero[was_zero].all()


def _lookups(model: Model) -> list[LookupWeight]:
    return [x for x in read_constraints(model.graph).weights if isinstance(x, LookupWeight)]


def test_equal_values_of_a_float_constant_move_as_codes_do() -> None:
    codes = np.random.default_rng(1).integers(0, 3, (24, 40))
    table = np.array([-0.3, 0, 0.7], np.float32)
    constraints = read_constraints(Model.load(product_net(table[codes])).graph)
    (item,) = constraints.weights
    assert isinstance(item, TiedWeight)
    weights = TrainedWeights(constraints, {}, settings=Settings(request=MOVE))
    numbers, floats = weights.parameters
    assert np.array_equal(weights.store()["w"], table[codes])
    wanted = normal(24, 40, scale=0.5)
    with torch.no_grad():
        floats.copy_(torch.from_numpy(wanted))
        numbers.copy_(torch.tensor([-0.4, 0.6]))
    weights.settle(NOW)
    new = np.array([-0.4, 0, 0.6], np.float32)
    nearest = np.abs(wanted[..., None] - new).argmin(-1)
    np.testing.assert_array_equal(weights.store()["w"], new[nearest])


# ---------------------------------------------------------------- a growing share


def test_the_share_on_values_grows() -> None:
    assert [grown_share(done) for done in (0, 0.24, 0.25, 0.5, 0.75, 1)] == [
        *(0.5, 0.5, 0.75, 0.875, 1.0, 1.0)
    ]


def test_a_growing_share_takes_its_values_and_stays_and_others_are_floats() -> None:
    request = TrainingRequest(codes=CodeMovement.GROW)
    model = stored_by("quantize-power-of-two:bits=4:only=y")
    constraints = read_constraints(model.graph)
    (item,) = _lookups(model)
    weights = TrainedWeights(
        constraints,
        {item.name: "dense"},
        lambda readers: item.outputs[0] in readers,
        Settings(request=request),
    )
    (floats,) = weights.parameters
    dense = item.weight.dense()
    np.testing.assert_array_equal(weights.tensors()["dense"].detach(), dense)
    weights.settle(Moment(0.0))
    slopes = torch.from_numpy(normal(*dense.shape))
    (weights.tensors()["dense"] * slopes).sum().backward()
    moves = floats.grad.reshape(dense.shape).numpy() != 0
    assert moves.mean() == pytest.approx(0.5, abs=1e-3)
    assert np.abs(dense[moves]).max() <= np.abs(dense[~moves]).min()
    with torch.no_grad():
        floats.add_(0.01)
    made = weights.tensors()["dense"].detach().numpy()
    np.testing.assert_array_equal(made[~moves], dense[~moves])
    assert (made[moves] != dense[moves]).all()
    weights.settle(Moment(1.0))
    made = weights.tensors()["dense"].detach().numpy()
    np.testing.assert_array_equal(made[~moves], dense[~moves])
    assert np.isin(made, item.weight.stages[0].table).all()


@pytest.mark.parametrize("passes", MOVED)
def test_all_elements_are_on_their_values_at_the_end(passes: str) -> None:
    model = stored_by(passes)
    request = TrainingRequest(codes=CodeMovement.GROW)
    after, expected = trained(model, steps=12, rate=0.02, request=request)
    found = open_session(after, optimise=False).run({"x": X})["y"]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert after.file_bytes() == model.file_bytes()

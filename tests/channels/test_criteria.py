"""What units are worth: planted channels, and brute force on tiny layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from channel_nets import follow
from layer_nets import context, net, node, normal, output_error, samples
from scipy import optimize

from onnxslim.channels.criteria import CRITERIA, GroupFacts, Needs, member_columns, member_rows
from onnxslim.channels.evidence import costs_along, elimination_costs
from onnxslim.channels.groups import ChannelGroup, Channels, channel_groups
from onnxslim.channels.readers import ReaderColumns, gather
from onnxslim.channels.reconstruct import refit_readers
from onnxslim.channels.scoring import reader_activity
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.lossy.problems import Problem, Schedule, Target
from onnxslim.solvers.least_squares import refit
from onnxslim.solvers.metric import Metric, objective

Array = npt.NDArray[np.float64]


def named(*needs: Needs) -> list[str]:
    """The criteria that need any of these."""
    return [name for name, criterion in CRITERIA.items() if criterion.needs in needs]


def weight_worth(channels: Channels, group: ChannelGroup, criterion: str, seed: int) -> Array:
    """For each unit of the graph, by weights alone."""
    return CRITERIA[criterion].score(GroupFacts(channels, group, seed))


def reader_worth(gathered: Gathered, criterion: str) -> Array:
    """For each unit of the group, by what its readers say."""
    facts = GroupFacts(gathered.channels, gathered.group, evidence=gathered.evidence)
    return CRITERIA[criterion].score(facts)[gathered.group.units]


# ----------------------------------------------------------------------- by weights


def conv_net(weak: int = 2) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, Conv: what makes and reads channel `weak` is tiny."""
    first, second = normal(6, 3, 3, 3), normal(4, 6, 3, 3, seed=2)
    scale = 1 + np.arange(6, dtype=np.float32)
    first[weak] *= 0.01
    second[:, weak] *= 0.01
    scale[weak] = 0.01
    constants = {
        "w": first,
        "s": scale,
        "zero": np.zeros(6, np.float32),
        "one": np.ones(6, np.float32),
        "v": second,
    }
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("BatchNormalization", ["a", "s", "zero", "zero", "one"], "n"),
        node("Relu", ["n"], "r"),
        node("Conv", ["r", "v"], "y"),
    ]
    return net(nodes, constants, ["N", 3, 9, 9])


def first_group(source: onnx.ModelProto) -> tuple[Channels, ChannelGroup]:
    _, channels = follow(source)
    return channels, channels.groups[0]


@pytest.mark.parametrize(
    "criterion", [m for m in named(Needs.WEIGHTS) if m not in ("random", "fpgm")]
)
def test_a_channel_with_small_weights_is_worth_least(criterion: str) -> None:
    channels, group = first_group(conv_net())
    worth = weight_worth(channels, group, criterion, 0)
    assert int(np.argmin(worth[group.units])) == 2
    assert not worth[np.setdiff1d(np.arange(channels.units.count), group.units)].any()


def test_the_filter_nearest_to_all_others_is_worth_least() -> None:
    rows = 3 * normal(5, 4, seed=3)
    rows[3] = rows[[0, 1, 2, 4]].mean(axis=0)
    source = net(
        [node("MatMul", ["x", "w"], "h"), node("MatMul", ["h", "v"], "y")],
        {"w": np.ascontiguousarray(rows.T), "v": normal(5, 2)},
        ["N", 4],
    )
    channels, group = first_group(source)
    worth = weight_worth(channels, group, "fpgm", 0)[group.units]
    expected = [sum(np.linalg.norm(a - b) for b in rows) for a in rows]
    np.testing.assert_allclose(worth * np.mean(expected), expected, rtol=1e-5)
    assert int(np.argmin(worth)) == 3


def test_chance_depends_on_the_seed_and_on_the_group() -> None:
    channels, group = first_group(conv_net())
    first, again, other = (weight_worth(channels, group, "random", seed) for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()


def test_scales_of_a_normalization_that_is_not_there_are_no_measure() -> None:
    source = net(
        [node("Conv", ["x", "w"], "a"), node("Conv", ["a", "v"], "y")],
        {"w": normal(6, 3, 1, 1), "v": normal(4, 6, 1, 1)},
        ["N", 3, 4, 4],
    )
    with pytest.raises(LookupError, match="no BatchNormalization"):
        weight_worth(*first_group(source), "bn-scale", 0)


def test_rows_and_columns_are_the_weights_of_a_channel() -> None:
    weight = normal(8, 3, 2, 2)  # two groups of four outputs and three inputs
    source = net(
        [
            node("Conv", ["x", "u"], "h"),
            node("Conv", ["h", "w"], "a", group=2),
            node("Conv", ["a", "v"], "y"),
        ],
        {"u": normal(6, 2, 1, 1), "w": weight, "v": normal(1, 8, 1, 1)},
        ["N", 2, 5, 5],
    )
    _, channels = follow(source)
    own = next(m for m in channels.trace.writers if m.label == "a")
    np.testing.assert_array_equal(member_rows(own), weight.reshape(8, -1))
    reader = next(m for m in channels.trace.readers if m.label == "a")
    columns = member_columns(reader)
    assert columns.shape == (6, 4 * 4)
    np.testing.assert_array_equal(columns[1], weight[:4, 1].reshape(-1))
    np.testing.assert_array_equal(columns[5], weight[4:, 2].reshape(-1))


# ----------------------------------------------------------------------- by readers


def dense_pair(units: int = 6, outputs: int = 5, seed: int = 1, *, bias: bool = False) -> Model:
    """MatMul, Relu, and a reader; a Gemm with a bias or a MatMul without one."""
    reads = node("Gemm", ["r", "v", "c"], "y") if bias else node("MatMul", ["r", "v"], "y")
    constants = {"w": normal(4, units, seed=seed), "v": normal(units, outputs, seed=seed + 1)}
    if bias:
        constants["c"] = normal(outputs, seed=seed + 2)
    return Model.load(
        net(
            [node("MatMul", ["x", "w"], "h"), node("Relu", ["h"], "r"), reads],
            constants,
            ["N", 4],
        )
    )


def conv_pair(seed: int = 1) -> Model:
    """Conv, Relu, Conv with nine weights for each channel."""
    return Model.load(
        net(
            [
                node("Conv", ["x", "w"], "a"),
                node("Relu", ["a"], "r"),
                node("Conv", ["r", "v"], "y"),
            ],
            {"w": normal(5, 2, 3, 3, seed=seed), "v": normal(4, 5, 3, 3, seed=seed + 1)},
            ["N", 2, 8, 8],
        )
    )


class Gathered:
    """The evidence of the first group of a model, on samples."""

    def __init__(self, model: Model, x: np.ndarray) -> None:
        self.model, self.x = model, x
        rewriter = Rewriter(model.graph)
        self.context = context(model, x)
        self.channels = channel_groups(model.graph)
        self.groups = [g for g in self.channels.groups if len(self.channels.free(g))]
        self.group = self.groups[0]
        self.readers = ReaderColumns.of(self.channels, self.groups)
        self.kept: dict[str, Problem] = {}
        at_once = Schedule(sequential=False, aim=Target.CURRENT)
        problems = self.readers.problems(rewriter, self.context, at_once)
        found = gather(self.readers, problems, self.groups, self.kept, with_inverses=True)
        self.evidence = dict(found)[0]
        self.rewriter = rewriter

    def metric(self) -> tuple[Array, Metric]:
        """Weight and metric of the only reader, with what a bias makes up for taken off."""
        (problem,) = self.readers.problems(
            self.rewriter, self.context, Schedule(sequential=False, aim=Target.CURRENT)
        )
        assert problem.energy is not None
        weight = np.asarray(problem.weight, np.float64)[0]
        return weight / np.sqrt(problem.energy), problem.metrics[0]


def test_products_are_the_error_of_zero_columns() -> None:
    gathered = Gathered(conv_pair(), samples(40, 2, 8, 8))
    weight, metric = gathered.metric()
    for size in (1, 2, 3):
        for gone in itertools.combinations(range(5), size):
            cut = weight.copy()
            cut.reshape(4, 5, 9)[:, list(gone)] = 0
            found = gathered.evidence.products[np.ix_(gone, gone)].sum()
            assert found == pytest.approx(objective(weight, cut, metric), rel=1e-6)


@pytest.mark.parametrize("make", [dense_pair, lambda: dense_pair(bias=True), conv_pair])
def test_elimination_is_the_error_of_a_refit(make: Callable[[], Model]) -> None:
    model = make()
    shape = [4] if model.graph.inputs[0].shape[1:] == [4] else [2, 8, 8]
    gathered = Gathered(model, samples(200, *shape))
    weight, metric = gathered.metric()
    taps = weight.shape[1] // gathered.group.size

    def refit_error(gone: tuple[int, ...]) -> float:
        support = np.ones(gathered.group.size, bool)
        support[list(gone)] = False
        best = refit(weight, metric, np.repeat(support, taps))
        change = weight - best
        return float(np.einsum("ij,jk,ik->", change, metric.blocks[0].matrix, change))

    views = gathered.evidence.inverses
    alone = elimination_costs(views, gathered.group.size)
    for unit in range(gathered.group.size):
        assert alone[unit] == pytest.approx(refit_error((unit,)), rel=1e-6, abs=1e-12)
    for gone in ((0, 1), (1, 3, 4), (2, 0, 3)):
        copies = [view.copy() for view in views]
        jointly = sum(view.remove(np.array(gone), gathered.group.size) for view in copies)
        assert jointly == pytest.approx(refit_error(gone), rel=1e-6, abs=1e-12)
        copies = [view.copy() for view in views]
        in_turn = sum(
            view.remove(np.array([unit]), gathered.group.size) for unit in gone for view in copies
        )
        assert in_turn == pytest.approx(jointly, rel=1e-6, abs=1e-12)
    order, counts = np.array([3, 1, 4, 0]), (0, 1, 3, 4)
    along = costs_along(gathered.evidence, order, counts)
    expected = [refit_error(tuple(order[:count].tolist())) for count in counts]
    np.testing.assert_allclose(along, expected, rtol=1e-6, atol=1e-12)
    left = np.setdiff1d(np.arange(gathered.group.size), gone)
    further = elimination_costs(copies, gathered.group.size)
    for unit in left:
        more = refit_error((*gone, int(unit))) - refit_error(gone)
        assert further[unit] == pytest.approx(more, rel=1e-5, abs=1e-12)


def test_costs_without_views_are_those_without_a_refit() -> None:
    gathered = Gathered(dense_pair(), samples(200, 4))
    evidence = gathered.evidence
    evidence.inverses.clear()
    order = np.array([2, 0, 5])
    found = costs_along(evidence, order, (0, 1, 2, 3))
    expected = [evidence.products[np.ix_(order[:n], order[:n])].sum() for n in range(4)]
    np.testing.assert_allclose(found, expected)


def gram_evidence(products: Array) -> Gathered:
    """Evidence that only knows what removing units does together."""
    gathered = Gathered(dense_pair(len(products)), samples(20, 4))
    gathered.evidence.products[:] = products
    return gathered


def correlated(size: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((3 * size, size)) @ (
        np.eye(size) + 0.4 * rng.standard_normal((size, size))
    )
    return np.asarray(factors.T @ factors / len(factors))


@pytest.mark.parametrize("seed", range(5))
def test_thinet_removes_what_adds_least_at_every_step(seed: int) -> None:
    products = correlated(6, seed)
    place = reader_worth(gram_evidence(products), "thinet")
    gone: list[int] = []
    for step in range(6):
        chosen = int(np.flatnonzero(place == step)[0])
        errors = {
            unit: products[np.ix_([*gone, unit], [*gone, unit])].sum()
            for unit in range(6)
            if unit not in gone
        }
        assert errors[chosen] == pytest.approx(min(errors.values()))
        gone.append(chosen)


@pytest.mark.parametrize("seed", range(4))
def test_lasso_takes_in_units_at_the_prices_of_its_path(seed: int) -> None:
    products = correlated(5, seed)
    right = products.sum(axis=1)
    worth = reader_worth(gram_evidence(products), "lasso")
    assert worth.max() == pytest.approx(np.abs(right).max(), rel=0.07)
    for price in np.geomspace(0.9, 0.02, 6) * np.abs(right).max():
        # β = p − q with p, q >= 0
        both = np.block([[products, -products], [-products, products]])
        cost = price - np.concatenate([right, -right])
        found = optimize.minimize(
            lambda z, both=both, cost=cost: 0.5 * z @ both @ z + cost @ z,
            np.zeros(10),
            jac=lambda z, both=both, cost=cost: both @ z + cost,
            bounds=[(0, None)] * 10,
            options={"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-10},
        )
        beta = found.x[:5] - found.x[5:]
        is_in = np.abs(beta) > 1e-3
        is_out = np.abs(beta) < 1e-6
        assert (worth[is_in] > 0.9 * price).all()
        # a unit that is out at this price has not come in at a much higher one, or it left again
        assert is_in.any() or (worth[is_out] <= 1.1 * price).all()


def test_a_fading_unit_is_what_taylor_sees() -> None:
    gathered = Gathered(dense_pair(), samples(200, 4))
    products = gathered.evidence.products
    worth = reader_worth(gathered, "taylor")
    step = 1e-6
    for unit in range(6):
        faded = np.ones(6)
        faded[unit] -= step
        change = (faded @ products @ faded - products.sum()) / 2
        assert worth[unit] == pytest.approx(abs(change) / step, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", named(Needs.PRODUCTS, Needs.INVERSES))
def test_a_channel_that_its_readers_hardly_see_is_worth_least(criterion: str) -> None:
    model = dense_pair()
    holder = next(n for n in model.graph.nodes if n.outputs[0].name == "y").inputs[1]
    values = holder.values.copy()
    values[4] *= 1e-3
    holder.values = values
    gathered = Gathered(model, samples(200, 4))
    assert int(np.argmin(reader_worth(gathered, criterion))) == 4


def test_obs_sees_that_a_copy_can_go_where_obd_does_not() -> None:
    model = dense_pair()
    first = next(n for n in model.graph.nodes if n.outputs[0].name == "h").inputs[1]
    values = first.values.copy()
    values[:, 1] = values[:, 0]
    first.values = values
    gathered = Gathered(model, samples(200, 4))
    obd = reader_worth(gathered, "obd")
    obs = reader_worth(gathered, "obs")
    assert int(np.argmin(obs)) in (0, 1)
    assert obd[[0, 1]].min() > obd.min() or obd[[0, 1]].max() == obd.max()


def test_a_refit_makes_up_for_more_with_obs_than_with_obd_than_with_l1() -> None:
    errors: dict[str, list[float]] = {"obs": [], "obd": [], "l1": []}
    for seed in range(6):
        source = net(
            [
                node("MatMul", ["x", "w"], "h"),
                node("Relu", ["h"], "r"),
                node("MatMul", ["r", "v"], "y"),
            ],
            {"w": normal(12, 24, seed=seed), "v": normal(24, 10, seed=seed + 50)},
            ["N", 12],
        )
        x, held = samples(400, 12, seed=seed), samples(400, 12, seed=seed)[:200]
        for criterion, found in errors.items():
            model = Model.load(source)
            gathered = Gathered(model, x)
            if criterion == "l1":
                worth = weight_worth(gathered.channels, gathered.group, "l1", 0)
                worth = worth[gathered.group.units]
            else:
                worth = reader_worth(gathered, criterion)
            gone = np.zeros(gathered.channels.units.count, bool)
            gone[gathered.group.units[np.argsort(worth, kind="stable")[:12]]] = True
            problems = gathered.readers.problems(gathered.rewriter, gathered.context, Schedule())
            list(refit_readers(gathered.readers, problems, gone))
            gathered.rewriter.result()
            found.append(output_error(source, model, held))
    means = {criterion: float(np.mean(found)) for criterion, found in errors.items()}
    assert means["obs"] <= means["obd"] <= means["l1"]


# ----------------------------------------------------------------------- by activity


@pytest.mark.parametrize("criterion", named(Needs.ACTIVITY))
def test_a_channel_that_hardly_ever_fires_is_worth_least(criterion: str) -> None:
    first = normal(8, 3, 3, 3)
    bias = np.ones(8, np.float32)
    bias[5] = -1000.0
    source = net(
        [
            node("Conv", ["x", "w", "b"], "a"),
            node("Relu", ["a"], "r"),
            node("Conv", ["r", "v"], "y"),
        ],
        {"w": first, "b": bias, "v": normal(2, 8, 1, 1)},
        ["N", 3, 6, 6],
    )
    model = Model.load(source)
    channels = channel_groups(model.graph)
    group = channels.groups[0]
    activity = reader_activity(context(model, samples(30, 3, 6, 6)), [group])
    worth = CRITERIA[criterion].score(GroupFacts(channels, group, activity=activity))
    assert int(np.argmin(worth[group.units])) == 5

"""Offers of layers, and the allocation that takes the best of them for a price."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layer_nets import context, dense_net, net, node, normal, samples

from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.lossy.allocation import Offer, offers_of
from onnxslim.lossy.problems import Problem, Problems, Schedule, Target
from onnxslim.lossy.scalar_codebooks import TableSpec, find_scalar_codebook
from onnxslim.lossy.spend import at_price, least_cost, total_cost, total_error
from onnxslim.passes.cluster_weights import ClusterWeights
from onnxslim.solvers.masks import InMatrix
from onnxslim.solvers.surgeon import surgeon

X = samples(300, 24)


Menus = dict[str, tuple[Offer, ...]]


def offer(cost: float, error: float) -> Offer:
    return Offer(0.5, 4, cost, error)


def menus(seed: int, layers: int = 3, count: int = 4) -> Menus:
    rng = np.random.default_rng(seed)
    found = {}
    for number in range(layers):
        costs = np.sort(rng.random(count) * 100)[::-1]
        errors = np.sort(rng.random(count)) * rng.random() * 3
        offers = (Offer(1.0, None, 120.0, 0.0), *map(offer, costs.tolist(), errors.tolist()))
        found[f"layer{number}"] = offers
    return found


# ------------------------------------------------------------------- sharing out


@given(st.integers(0, 500), st.floats(1e-5, 1))
def test_no_allocation_is_better_at_its_price(seed: int, price: float) -> None:
    listed = menus(seed)
    found = at_price(listed, price)
    assert found.keys() == listed.keys()
    every = product(*listed.values())
    best = min(sum(o.error + price * o.cost for o in offers) for offers in every)
    assert total_error(found) + price * total_cost(found) == pytest.approx(best)


@pytest.mark.slow
@given(st.integers(0, 500), st.floats(0.001, 3))
def test_the_smallest_allocation_of_a_price_stays_within_the_limit(seed: int, limit: float) -> None:
    listed = menus(seed)
    found = least_cost(listed, limit)
    assert total_error(found) <= limit
    for price in np.geomspace(1e-6, 1e3, 60):
        other = at_price(listed, float(price))
        assert total_error(other) > limit or total_cost(other) >= total_cost(found) - 1e-9


def test_a_wider_limit_is_never_larger() -> None:
    costs = [total_cost(least_cost(menus(3), limit)) for limit in np.geomspace(1e-4, 10, 20)]
    assert all(b <= a for a, b in pairwise(costs))


def test_no_limit_at_all_takes_the_smallest_and_a_limit_of_nothing_changes_nothing() -> None:
    listed = menus(1)
    least = sum(min(o.cost for o in offers) for offers in listed.values())
    assert total_cost(least_cost(listed, 1e9)) == least
    assert all(o.values is None for o in least_cost(listed, 0.0).values())


def test_the_layer_that_matters_more_keeps_more() -> None:
    offers = (offer(100, 0.0), offer(50, 0.1), offer(10, 0.5))
    louder = tuple(replace(o, error=100 * o.error) for o in offers)
    found = at_price({"a": offers, "b": louder}, 0.01)
    assert found["a"].cost < found["b"].cost


def test_an_offer_of_infinite_divergence_is_not_taken_where_there_is_another() -> None:
    stays, loud = Offer(1.0, None, 100, 0.0), offer(1, float("inf"))
    assert at_price({"a": (stays, loud)}, 1e3) == {"a": stays}


# ------------------------------------------------------------------- offers


def relative_offers(
    weight: np.ndarray, x: np.ndarray = X, *, packed: bool = True
) -> tuple[tuple[Offer, ...], Problem]:
    """The offers of a layer, with errors as shares of the energy of its own output."""
    source = net([node("MatMul", ["x", "w"], "y")], {"w": weight}, ["N", len(weight)])
    model = Model.load(source)
    made = context(model, x)
    schedule = Schedule(sequential=False, aim=Target.CURRENT)
    (problem,) = Problems(Rewriter(model.graph), made, schedule=schedule)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxslim.lossy.allocation.sensitivity", lambda *_: 1.0)
        return offers_of(problem, made, packed=packed), problem


def test_the_first_offer_is_to_stay_as_it_is() -> None:
    offers, _ = relative_offers(normal(24, 40))
    assert offers[0] == Offer(1.0, None, 24 * 40 * 4.0, 0.0)


def test_fewer_weights_and_fewer_values_take_fewer_bytes_and_cost_more() -> None:
    offers, _ = relative_offers(normal(24, 40))
    made = [o for o in offers if o.values is not None]
    assert {o.keep for o in made} >= {1.0, 0.7, 0.5}
    for values in (4, 8, 16):
        column = [o for o in made if o.values == values and o.keep < 1]
        assert all(b.keep < a.keep for a, b in pairwise(column))
        assert all(b.cost < a.cost for a, b in pairwise(column))
        assert column[-1].error > column[0].error
    for keep in (1.0, 0.5):
        row = [o for o in made if o.keep == keep]
        assert all(b.cost > a.cost and b.error < a.error for a, b in pairwise(row))


def test_in_an_onnx_file_zeros_bring_nothing() -> None:
    offers, _ = relative_offers(normal(24, 40), packed=False)
    sizes = {o.cost - 4 * (o.values or 0) for o in offers if o.values == 4}
    assert max(sizes) - min(sizes) < 8
    assert 240 <= min(sizes) <= 248  # 2 bits a weight


def test_estimated_errors_are_near_what_compressing_gives() -> None:
    offers, problem = relative_offers(normal(24, 60))
    for keep, values in ((1.0, 4), (1.0, 16), (0.5, 8), (0.3, 16)):
        rows = [o for o in offers if o.values == values]
        near = min(rows, key=lambda o: abs(o.keep - keep))
        target, metric = problem.target[0], problem.metrics[0]
        pruned = surgeon(target, metric, InMatrix(round(near.keep * target.size)))
        mask = None if near.keep == 1 else (pruned != 0)[None]
        found = find_scalar_codebook(problem, TableSpec(values), mask, seed=0)
        assert 0.3 * found.error < near.error < 3 * found.error, (keep, values)


def test_a_small_layer_is_offered_without_zeros() -> None:
    offers, _ = relative_offers(normal(8, 40), samples(300, 8))
    assert {o.keep for o in offers} == {1.0}


@pytest.mark.parametrize(
    ("weight", "x"),
    [
        pytest.param(np.zeros((24, 40), np.float32), X, id="all weights zero"),
        pytest.param(normal(24, 40), X * 0, id="all inputs zero"),
        pytest.param(normal(24, 1), X, id="one output"),
        pytest.param(normal(24, 40) * (np.arange(24) == 3)[:, None], X, id="one column"),
        pytest.param(normal(24, 40), X * (np.arange(24) < 2), id="two inputs"),
        pytest.param(np.ones((24, 40), np.float32), X, id="equal weights"),
        pytest.param(normal(24, 40), X[:1], id="one sample"),
    ],
)
def test_layers_at_the_edge_make_finite_offers(weight: np.ndarray, x: np.ndarray) -> None:
    offers, _ = relative_offers(weight.astype(np.float32), x.astype(np.float32))
    assert offers
    assert all(np.isfinite([o.cost, o.error]).all() for o in offers)
    assert all(0 < o.keep <= 1 for o in offers)


def test_a_wide_layer_of_few_outputs_is_sampled_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer rows than the least that is looked at, of a layer too wide to look at many."""
    monkeypatch.setattr("onnxslim.lossy.allocation._SAMPLE_FLOPS", 1e3)
    offers, _ = relative_offers(normal(24, 3))
    assert len(offers) > 3


def test_some_rows_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxslim.lossy.allocation.KEPT_SHARES", (1.0, 0.7, 0.4, 0.2, 0.1))
    whole, _ = relative_offers(normal(24, 120))
    monkeypatch.setattr("onnxslim.lossy.allocation._SAMPLE_FLOPS", 4e5)
    part, _ = relative_offers(normal(24, 120))
    by_key = {(o.values, round(o.keep, 2)): o for o in whole if o.values}
    common = [
        (by_key[o.values, round(o.keep, 2)], o)
        for o in part
        if (o.values, round(o.keep, 2)) in by_key
    ]
    assert len(common) > 12
    for a, b in common:
        assert b.cost == pytest.approx(a.cost, rel=0.3)
        if a.error > 1e-3:
            assert b.error == pytest.approx(a.error, rel=0.6)


def test_groups_are_judged_by_the_one_that_matters_most() -> None:
    source = net(
        [node("Conv", ["x", "w"], "y", group=2)], {"w": normal(40, 4, 3, 3)}, ["N", 8, 6, 6]
    )
    model = Model.load(source)
    made = context(model, samples(40, 8, 6, 6))
    (problem,) = Problems(Rewriter(model.graph), made, schedule=Schedule(sequential=False))
    offers = offers_of(problem, made, packed=True)
    assert offers[0].cost == 40 * 36 * 4
    (near,) = [o for o in offers if o.values == 256 and o.keep == 1]
    assert near.cost == pytest.approx(40 * 36 + 256 * 4, rel=0.1)


def test_the_layer_nearer_to_a_loud_output_has_the_larger_sensitivity() -> None:
    nodes = [
        node("MatMul", ["x", "v"], "a"),
        node("MatMul", ["x", "w"], "b"),
        node("Mul", ["b", "k"], "c"),
        node("Add", ["a", "c"], "y"),
    ]
    weights = {"v": normal(24, 9), "w": normal(24, 9, seed=2), "k": np.array(10, np.float32)}
    model = Model.load(net(nodes, weights, ["N", 1, 24]))
    made = context(model, X[:, None])
    schedule = Schedule(sequential=False, aim=Target.CURRENT)
    found = {
        problem.name: max(offer.error for offer in offers_of(problem, made, packed=True))
        for problem in Problems(Rewriter(model.graph), made, schedule=schedule)
    }
    assert found["b"] > 10 * found["a"] > 0


def test_menus_are_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxslim.lossy.allocation.KEPT_SHARES", (1.0, 0.7, 0.4, 0.2, 0.1))
    model = Model.load(dense_net(24, 18, 8))
    made = context(model, X)
    schedule = Schedule(sequential=False, aim=Target.CURRENT)
    first, second = (
        [
            offers_of(p, made, packed=True)
            for p in Problems(Rewriter(model.graph), made, schedule=schedule)
        ]
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize(("rows", "columns"), [(20, 24), (12, 24), (100, 12)])
def test_nothing_is_offered_that_clustering_would_decline(rows: int, columns: int) -> None:
    source = net([node("MatMul", ["x", "w"], "y")], {"w": normal(columns, rows)}, ["N", columns])
    model = Model.load(source)
    made = context(model, samples(300, columns))
    (problem,) = Problems(Rewriter(model.graph), made, schedule=Schedule(aim=Target.CURRENT))
    for offered in offers_of(problem, made, packed=True):
        if offered.values is not None and offered.keep == 1:
            copy = model.clone()
            result = ClusterWeights(values=offered.values).run(
                copy.graph, replace(made, model=copy)
            )
            assert result.changed, offered

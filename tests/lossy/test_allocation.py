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
from onnxslim.lossy.allocation import Menu, Offer, allocate, allocate_within, menu_of
from onnxslim.lossy.problems import Problem, Problems, Schedule, Target
from onnxslim.lossy.scalar_codebooks import TableSpec, find_scalar_codebook
from onnxslim.passes.cluster_weights import ClusterWeights
from onnxslim.solvers.masks import InMatrix
from onnxslim.solvers.surgeon import surgeon

X = samples(300, 24)


def offer(size: float, error: float) -> Offer:
    return Offer(0.5, 4, size, error)


def menus(seed: int, layers: int = 3, count: int = 4) -> list[Menu]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(layers):
        sizes = np.sort(rng.random(count) * 100)[::-1]
        errors = np.sort(rng.random(count))
        offers = (Offer(1.0, None, 120.0, 0.0), *map(offer, sizes.tolist(), errors.tolist()))
        found.append(Menu(f"layer{number}", offers, float(rng.random() * 3)))
    return found


# ------------------------------------------------------------------- sharing out


@given(st.integers(0, 500), st.floats(1e-5, 1))
def test_no_allocation_is_better_at_its_price(seed: int, price: float) -> None:
    listed = menus(seed)
    found = allocate(listed, price)
    assert set(found.chosen) == {menu.name for menu in listed}

    def paid(offers: tuple[Offer, ...]) -> float:
        pairs = zip(listed, offers, strict=True)
        return sum(m.sensitivity * o.error + price * o.size for m, o in pairs)

    best = min(paid(offers) for offers in product(*(menu.offers for menu in listed)))
    assert found.divergence + price * found.size == pytest.approx(best)


@given(st.integers(0, 500), st.floats(0.001, 3))
def test_the_smallest_allocation_of_a_price_stays_within_the_limit(seed: int, limit: float) -> None:
    listed = menus(seed)
    found = allocate_within(listed, limit)
    assert found.divergence <= limit
    for price in np.geomspace(1e-6, 1e3, 60):
        other = allocate(listed, float(price))
        assert other.divergence > limit or other.size >= found.size - 1e-9


def test_a_wider_limit_is_never_larger() -> None:
    sizes = [allocate_within(menus(3), limit).size for limit in np.geomspace(1e-4, 10, 20)]
    assert all(b <= a for a, b in pairwise(sizes))


def test_no_limit_at_all_takes_the_smallest_and_a_limit_of_nothing_changes_nothing() -> None:
    listed = menus(1)
    assert allocate_within(listed, 1e9).size == sum(min(o.size for o in m.offers) for m in listed)
    assert all(o.values is None for o in allocate_within(listed, 0.0).chosen.values())


def test_the_layer_that_matters_more_keeps_more() -> None:
    offers = (offer(100, 0.0), offer(50, 0.1), offer(10, 0.5))
    found = allocate([Menu("a", offers, 1.0), Menu("b", offers, 100.0)], 0.01)
    assert found.chosen["a"].size < found.chosen["b"].size


def test_an_offer_of_infinite_divergence_is_not_taken_where_there_is_another() -> None:
    menu = Menu("a", (Offer(1.0, None, 100, 0.0), offer(1, 0.5)), float("inf"))
    assert menu.choose(1e3).values is None


# ------------------------------------------------------------------- offers


def menu_for(weight: np.ndarray, x: np.ndarray = X, *, packed: bool = True) -> tuple[Menu, Problem]:
    source = net([node("MatMul", ["x", "w"], "y")], {"w": weight}, ["N", len(weight)])
    model = Model.load(source)
    made = context(model, x)
    schedule = Schedule(sequential=False, aim=Target.CURRENT)
    (problem,) = Problems(Rewriter(model.graph), made, schedule=schedule)
    return menu_of(problem, made, packed=packed), problem


def test_the_first_offer_is_to_stay_as_it_is() -> None:
    menu, _ = menu_for(normal(24, 40))
    assert menu.offers[0] == Offer(1.0, None, 24 * 40 * 4.0, 0.0)
    assert menu.name == "y"


def test_fewer_weights_and_fewer_values_take_fewer_bytes_and_cost_more() -> None:
    menu, _ = menu_for(normal(24, 40))
    made = [o for o in menu.offers if o.values is not None]
    assert {o.keep for o in made} >= {1.0, 0.7, 0.5}
    for values in (4, 8, 16):
        column = [o for o in made if o.values == values and o.keep < 1]
        assert all(b.keep < a.keep for a, b in pairwise(column))
        assert all(b.size < a.size for a, b in pairwise(column))
        assert column[-1].error > column[0].error
    for keep in (1.0, 0.5):
        row = [o for o in made if o.keep == keep]
        assert all(b.size > a.size and b.error < a.error for a, b in pairwise(row))


def test_in_an_onnx_file_zeros_bring_nothing() -> None:
    menu, _ = menu_for(normal(24, 40), packed=False)
    sizes = {o.size - 4 * (o.values or 0) for o in menu.offers if o.values == 4}
    assert max(sizes) - min(sizes) < 8
    assert 240 <= min(sizes) <= 248  # 2 bits a weight


def test_estimated_errors_are_near_what_compressing_gives() -> None:
    menu, problem = menu_for(normal(24, 60))
    for keep, values in ((1.0, 4), (1.0, 16), (0.5, 8), (0.3, 16)):
        rows = [o for o in menu.offers if o.values == values]
        near = min(rows, key=lambda o: abs(o.keep - keep))
        target, metric = problem.target[0], problem.metrics[0]
        pruned = surgeon(target, metric, InMatrix(round(near.keep * target.size)))
        mask = None if near.keep == 1 else (pruned != 0)[None]
        found = find_scalar_codebook(problem, TableSpec(values), mask, seed=0)
        assert 0.3 * found.error < near.error < 3 * found.error, (keep, values)


def test_a_small_layer_is_offered_without_zeros() -> None:
    menu, _ = menu_for(normal(8, 40), samples(300, 8))
    assert {o.keep for o in menu.offers} == {1.0}


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
    menu, _ = menu_for(weight.astype(np.float32), x.astype(np.float32))
    assert menu.offers
    assert all(np.isfinite([o.size, o.error]).all() for o in menu.offers)
    assert all(0 < o.keep <= 1 for o in menu.offers)


def test_a_wide_layer_of_few_outputs_is_sampled_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer rows than the least that is looked at, of a layer too wide to look at many."""
    monkeypatch.setattr("onnxslim.lossy.allocation._SAMPLE_FLOPS", 1e3)
    menu, _ = menu_for(normal(24, 3))
    assert len(menu.offers) > 3


def test_some_rows_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxslim.lossy.allocation.KEPT_SHARES", (1.0, 0.7, 0.4, 0.2, 0.1))
    whole, _ = menu_for(normal(24, 120))
    monkeypatch.setattr("onnxslim.lossy.allocation._SAMPLE_FLOPS", 4e5)
    part, _ = menu_for(normal(24, 120))
    by_key = {(o.values, round(o.keep, 2)): o for o in whole.offers if o.values}
    common = [
        (by_key[o.values, round(o.keep, 2)], o)
        for o in part.offers
        if (o.values, round(o.keep, 2)) in by_key
    ]
    assert len(common) > 12
    for a, b in common:
        assert b.size == pytest.approx(a.size, rel=0.3)
        if a.error > 1e-3:
            assert b.error == pytest.approx(a.error, rel=0.6)


def test_groups_are_judged_by_the_one_that_matters_most() -> None:
    source = net(
        [node("Conv", ["x", "w"], "y", group=2)], {"w": normal(40, 4, 3, 3)}, ["N", 8, 6, 6]
    )
    model = Model.load(source)
    made = context(model, samples(40, 8, 6, 6))
    (problem,) = Problems(Rewriter(model.graph), made, schedule=Schedule(sequential=False))
    menu = menu_of(problem, made, packed=True)
    assert menu.offers[0].size == 40 * 36 * 4
    (near,) = [o for o in menu.offers if o.values == 256 and o.keep == 1]
    assert near.size == pytest.approx(40 * 36 + 256 * 4, rel=0.1)


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
        problem.name: menu_of(problem, made, packed=True).sensitivity
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
            menu_of(p, made, packed=True)
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
    for offered in menu_of(problem, made, packed=True).offers:
        if offered.values is not None and offered.keep == 1:
            copy = model.clone()
            result = ClusterWeights(values=offered.values).run(
                copy.graph, replace(made, model=copy)
            )
            assert result.changed, offered

"""`Budget` and `BudgetMeter`: what remains on the way to a budget, and what a graph takes."""

from __future__ import annotations

import pytest
from layer_nets import dense_net
from tiny_models import TINY

from onnxslim.io.model import Model
from onnxslim.lossy.budgets import Budget, BudgetMeter, known_macs


def test_a_ratio_leaves_and_other_budgets_remain() -> None:
    assert [Budget("ratio", 0.4).remaining(p) for p in (0.0, 0.5, 1.0)] == [1.0, 0.8, 0.6]
    assert [Budget("macs", 0.4).remaining(p) for p in (0.0, 0.5, 1.0)] == [1.0, 0.7, 0.4]
    assert str(Budget("bytes", 0.5)) == "bytes=0.5"


@pytest.mark.parametrize("kind", ["macs", "bytes"])
def test_a_meter_measures_a_graph_against_the_original(kind: str) -> None:
    whole, smaller = (Model.load(dense_net(*sizes)).graph for sizes in ((8, 8, 8), (8, 4, 8)))
    meter = BudgetMeter.of(kind, whole)
    assert meter.taken(whole) == meter.whole
    assert 0.4 < meter.taken(smaller) / meter.whole < 0.6


def test_multiply_accumulates_of_each_node_are_known() -> None:
    graph = Model.load(dense_net(8, 8, 8)).graph
    assert sum(known_macs(graph.nodes).values()) == BudgetMeter.of("macs", graph).whole


def test_a_budget_counts_what_bodies_hold() -> None:
    """Three constants of three floats: one of the main graph, one of each body."""
    graph = Model.load(TINY["branches"]()).graph
    assert BudgetMeter.of("bytes", graph).whole == 3 * 12

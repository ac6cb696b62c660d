from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from layer_nets import net, node, normal, samples
from qdq_nets import ScriptedStopwatch, loaded, plan_of

from onnxslim.io.model import Model
from onnxslim.lossy.min_cut import NEVER_CHOSEN, ItemCost, PlacementCosts, Transfer, cheapest_choice
from onnxslim.quantization.cluster_times import ClusterTimes
from onnxslim.quantization.clusters import drop_isolated_movement
from onnxslim.quantization.placement_search import PlacementSearch, TimedPlacement
from onnxslim.quantization.qdq import quantize
from onnxslim.report import Latency, LatencyPair
from onnxslim.services.progress import Progress
from onnxslim.services.stopwatch import Kernel

MS = st.floats(0, 10).map(lambda value: round(value, 3))


@st.composite
def costs(draw: st.DrawFn) -> PlacementCosts:
    """Up to six clusters and tensors between any of them, fan-out and float ends included."""
    names = [f"c{index}" for index in range(draw(st.integers(1, 6)))]
    clusters = {name: ItemCost(draw(MS), draw(MS)) for name in names}
    ends = st.sampled_from([*names, NEVER_CHOSEN])
    transfers = draw(
        st.lists(
            st.builds(
                Transfer,
                maker=ends,
                readers=st.lists(ends, min_size=1, max_size=4, unique=True).map(tuple),
                entering=MS,
                leaving=MS,
            ),
            max_size=8,
        )
    )
    return PlacementCosts(clusters, tuple(transfers))


ROUNDED = PlacementCosts(
    {
        "c0": ItemCost(4.0, 1.0),
        "c1": ItemCost(0.998, 3.438),
        "c2": ItemCost(1.0, 1.0),
        "c3": ItemCost(2.0, 1.0),
    },
    (
        Transfer("c0", ("c0", "c1"), entering=0.0, leaving=3.0),
        Transfer("c3", (None,), entering=0.0, leaving=1.0),
    ),
)
"""Sums of these costs round, by the order in which the search goes through them."""


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(costs())
@example(ROUNDED)
def test_the_cut_is_as_cheap_as_the_cheapest_of_all_placements(given_: PlacementCosts) -> None:
    names = list(given_.items)
    every = (
        frozenset(name for name, is_in in zip(names, sides, strict=True) if is_in)
        for sides in product((False, True), repeat=len(names))
    )
    least = min(map(given_.total, every))
    assert np.isclose(given_.total(cheapest_choice(given_)), least, atol=1e-9)


def test_a_tensor_that_many_read_crosses_once() -> None:
    readers = ("a", "b", "c")
    clusters = {name: ItemCost(1.0, 0.5) for name in readers}
    transfer = Transfer(NEVER_CHOSEN, readers, entering=1.2, leaving=0.0)
    assert cheapest_choice(PlacementCosts(clusters, (transfer,))) == set(readers)  # 2.7 against 3
    dearer = Transfer(NEVER_CHOSEN, readers, entering=1.6, leaving=0.0)
    assert cheapest_choice(PlacementCosts(clusters, (dearer,))) == frozenset()


# ------------------------------------------------------------------- from kernels


def chain() -> tuple[object, object, np.ndarray]:
    source = net(
        [
            node("Conv", ["x", "w"], "a", pads=[1, 1, 1, 1]),
            node("Add", ["a", "x"], "b"),
            node("Relu", ["b"], "c"),
            node("Sigmoid", ["c"], "y"),
        ],
        {"w": normal(8, 8, 3, 3)},
        [1, 8, 6, 6],
    )
    return (*loaded(source), samples(1, 8, 6, 6))


def test_the_time_of_a_layer_that_was_fused_with_an_add_is_the_layers() -> None:
    _, clusters, _ = chain()
    times = ClusterTimes(clusters, frozenset({"a", "b", "y"}), {})  # type: ignore[arg-type]
    kernels = [Kernel("c", "FusedConv", False, 288, 5.0), Kernel("y", "Sigmoid", False, 288, 1.0)]
    times.record(kernels, frozenset())
    found = times.costs().items
    assert (found["a"].unchosen, found["b"].unchosen, found["y"].unchosen) == (5.0, 0.0, 1.0)


def test_what_crossing_took_counts_where_it_is_known() -> None:
    model, clusters, x = chain()
    plan = plan_of(model, clusters, x, ["a"])  # type: ignore[arg-type]
    inserted = quantize(model.clone(), plan)  # type: ignore[arg-type]
    times = ClusterTimes(clusters, frozenset({"a", "b", "y"}), {"x": (1, 8, 6, 6)})  # type: ignore[arg-type]
    quantizing = next(key for key, tensor in inserted.crossings.items() if tensor == "x")
    times.record(
        [Kernel(quantizing, "QuantizeLinear", False, 288, 0.7)], frozenset({"a"}), inserted
    )
    transfer = next(
        transfer for transfer in times.costs().transfers if set(transfer.readers) == {"a", "b"}
    )
    assert transfer.maker is NEVER_CHOSEN
    assert transfer.entering == 0.7


# ------------------------------------------------------------------- the search


def search(stopwatch: ScriptedStopwatch) -> PlacementSearch:
    model, clusters, x = chain()
    plan = plan_of(model, clusters, x)  # type: ignore[arg-type]
    names = frozenset(cluster.name for cluster in clusters.all)  # type: ignore[attr-defined]

    def planned(chosen: frozenset[str]) -> object:
        return plan.__class__(chosen, plan.grids, plan.layers)

    settled = partial(drop_isolated_movement, clusters)  # type: ignore[arg-type]
    every = (model, model, clusters, names, settled, planned, stopwatch, Progress())
    return PlacementSearch(*every)  # type: ignore[arg-type]


def test_kernels_that_are_slower_on_integers_stay_in_float() -> None:
    times = {("Conv", False): 5.0, ("Conv", True): 1.0, ("Sigmoid", True): 3.0}
    looking = search(ScriptedStopwatch(times))
    found = looking.run()
    assert found is not None
    assert "y" not in looking.tried[0].chosen
    assert "a" in looking.tried[0].chosen


def test_where_nothing_is_faster_nothing_is_found_and_what_was_tried_is_known() -> None:
    looking = search(ScriptedStopwatch({("Conv", False): 5.0, ("Conv", True): 1.0}, faster=0.9))
    assert looking.run() is None
    assert {tried.words for tried in looking.tried} >= {"layers only"}
    assert "0.90 times as fast as float" in str(looking.tried[0])


def test_each_placement_is_timed_once_and_the_best_again() -> None:
    stopwatch = ScriptedStopwatch({("Conv", False): 5.0, ("Conv", True): 1.0})
    looking = search(stopwatch)
    found = looking.run()
    assert found is looking.tried[-1]
    assert stopwatch.paired == 1 + len({tried.chosen for tried in looking.tried})


@pytest.mark.parametrize(("ratio", "first"), [(2.0, "cut"), (2.02, "cut"), (2.1, "all")])
def test_what_timing_cannot_tell_apart_the_profiles_decide(ratio: float, first: str) -> None:
    looking = search(ScriptedStopwatch())
    looking.costs = PlacementCosts({"a": ItemCost(5.0, 1.0), "y": ItemCost(0.1, 3.0)})
    once = Latency(1.0, 1.0, 1.0, 9)
    tried = [
        TimedPlacement(words, chosen, LatencyPair(once, once, ratio, ratio - 0.03, ratio + 0.03))
        for words, chosen, ratio in (
            ("slow", frozenset({"a"}), 1.5),
            ("all", frozenset({"a", "y"}), ratio),
            ("cut", frozenset({"a"}), 2.0),
        )
    ]
    order = [item.words for item in looking._ordered(tried)]
    assert (order[0], order[-1]) == (first, "slow")


def test_what_was_faster_by_luck_is_not_believed() -> None:
    class Fickle(ScriptedStopwatch):
        def pair(self, before: Model, after: Model) -> LatencyPair:
            self.faster = 1.5 if self.paired < 2 else 0.9
            return super().pair(before, after)

    looking = search(Fickle({("Conv", False): 5.0, ("Conv", True): 1.0}))
    assert looking.run() is None
    assert [tried.words for tried in looking.tried if tried.words.startswith("again")]

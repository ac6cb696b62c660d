"""What a graph costs without some units, and which levels are chosen for it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from channel_nets import cut, follow, net, some_gone
from layer_nets import runs

from onnxslim.channels.budgets import choice_for_budget, layer_nodes, work_for
from onnxslim.channels.groups import Channels
from onnxslim.channels.levels import LevelChooser
from onnxslim.channels.removal_order import RemovalLimits, RemovalOrder, removal_order
from onnxslim.channels.work import Work, channel_work
from onnxslim.errors import NotApplicable
from onnxslim.io.model import Model
from onnxslim.lossy.budgets import Budget
from onnxslim.pipeline.stats import measure_stats

CHAIN = """
g (float[2,3,6,6] x) => (float[2,5,6,6] y)
<float[64,3,3,3] w, float[32,64,1,1] u, float[5,32,1,1] v> {
  a = Conv <pads = [1,1,1,1]> (x, w)
  b = Conv (a, u)
  y = Conv (b, v)
}"""

DEPTHWISE = """
g (float[2,3,6,6] x) => (float[2,5,6,6] y)
<float[16,3,1,1] w, float[32,1,3,3] d, float[5,32,1,1] v> {
  a = Conv (x, w)
  b = Conv <group = 16, pads = [1,1,1,1]> (a, d)
  y = Conv (b, v)
}"""

GROUPED = """
g (float[2,3,6,6] x) => (float[2,5,6,6] y)
<float[16,3,1,1] w, float[12,8,1,1] u, float[5,12,1,1] v> {
  a = Conv (x, w)
  b = Conv <group = 2> (a, u)
  y = Conv (b, v)
}"""

WHOLE_GROUPS = """
g (float[2,3,6,6] x) => (float[2,5,6,6] y)
<float[4,3,1,1] w, float[16,4,1,1] u, float[5,16,1,1] v> {
  a = Conv (x, w)
  r = Concat <axis = 1> (a, a, a, a)
  t = Transpose <perm = [0,2,3,1]> (r)
  s = Transpose <perm = [0,3,1,2]> (t)
  b = Conv <group = 4> (s, u)
  y = Conv (b, v)
}"""

RESIDUAL = """
g (float[2,3,6,6] x) => (float[2,7] y)
<float[16,3,1,1] w, float[16,16,3,3] u, float[16] bias, float[576,7] v, float[7] c> {
  a = Conv (x, w)
  b = Conv <pads = [1,1,1,1]> (a, u, bias)
  s = Add (a, b)
  r = Relu (s)
  f = Flatten (r)
  y = Gemm (f, v, c)
}"""

SHARED = """
g (float[2,8] x) => (float[2,4] y) <float[8,8] w, float[8,4] v> {
  a = MatMul (x, w)
  b = Relu (a)
  c = MatMul (b, w)
  y = MatMul (c, v)
}"""

NETS = {
    "chain": CHAIN,
    "depthwise": DEPTHWISE,
    "grouped": GROUPED,
    "whole groups": WHOLE_GROUPS,
    "residual": RESIDUAL,
}


@pytest.mark.parametrize("text", NETS.values(), ids=list(NETS))
@pytest.mark.parametrize("seed", range(4))
def test_multiply_accumulates_without_units_are_those_of_the_cut_model(
    text: str, seed: int
) -> None:
    source = net(text)
    model, channels = follow(source)
    gone = some_gone(channels, np.random.default_rng(seed))
    work = work_for(Budget("macs", 0.5), channels, (), model, refitted=False)
    assert work.whole == measure_stats(model).macs
    assert work.left(gone) == pytest.approx(measure_stats(Model.load(cut(source, gone))).macs)


@pytest.mark.parametrize("text", [*NETS.values(), SHARED], ids=[*NETS, "shared"])
def test_bytes_without_units_are_no_more_than_promised(text: str) -> None:
    source = net(text)
    model, channels = follow(source)
    work = work_for(Budget("bytes", 0.5), channels, (), model, refitted=False)
    assert work.whole == pytest.approx(model.file_bytes())
    for seed in range(4):
        gone = some_gone(channels, np.random.default_rng(seed))
        made = Model.load(cut(source, gone)).file_bytes()
        assert work.left(gone) - 400 < made < work.left(gone) + 60  # shapes in the file


def test_biases_that_a_refit_makes_are_counted() -> None:
    model, channels = follow(net(CHAIN))
    plain, refitted = (
        work_for(Budget("bytes", 0.5), channels, (), model, refitted=flag) for flag in (False, True)
    )
    assert refitted.whole - plain.whole >= 4 * (32 + 5)


def test_other_products_count_as_what_is_always_there() -> None:
    source = net("""
    g (float[2,5,8] x) => (float[2,5,8] y) <float[8,6] q, float[6,8] o> {
      a = MatMul (x, q)
      z = MatMul (a, o)
      t = Transpose <perm = [0,2,1]> (x)
      s = MatMul (x, t)
      y = MatMul (s, z)
    }""")
    model, channels = follow(source)
    work = work_for(Budget("macs", 0.5), channels, (), model, refitted=False)
    assert work.fixed == 2 * 5 * 5 * 8 * 2
    assert work.whole == measure_stats(model).macs


def test_a_size_that_is_not_known_is_named() -> None:
    source = net("""
    g (float[N,3,H,W] x) => (float[N,5,H,W] y) <float[8,3,1,1] w, float[5,8,1,1] v> {
      a = Conv (x, w)
      y = Conv (a, v)
    }""")
    model, channels = follow(source)
    with pytest.raises(NotApplicable, match="that of `a` is not known: give --input-shape"):
        work_for(Budget("macs", 0.5), channels, (), model, refitted=False)


def test_sizes_that_are_open_are_those_of_the_samples() -> None:
    source = net("""
    g (float[N,3,H,W] x) => (float[N,5,H,W] y) <float[8,3,1,1] w, float[5,8,1,1] v> {
      a = Conv (x, w)
      y = Conv (a, v)
    }""")
    model, channels = follow(source)
    samples = runs(np.zeros((1, 3, 4, 6), np.float32))
    work = work_for(Budget("macs", 0.5), channels, (), model, refitted=False, calibration=samples)
    assert work.whole == 4 * 6 * 8 * (3 + 5)


def test_a_ratio_counts_channels_that_may_leave() -> None:
    _, channels = follow(net(CHAIN))
    work = channel_work(channels, channels.groups)
    assert work.whole == 64 + 32  # the five outputs of the model stay
    assert channel_work(channels, channels.groups[1:]).whole == 32


# ----------------------------------------------------------------------- chooser


def chooser(
    text: str,
    kind: str = "macs",
    align: int = 1,
    errors: str = "cubic",
    weights: tuple[float, ...] | None = None,
) -> LevelChooser:
    model, channels = follow(net(text))
    return LevelChooser(
        orders_of(channels, align, errors),
        weights or (1.0,) * len(free_groups(channels)),
        work_for(Budget(kind, 0.5), channels, channels.groups, model, refitted=False),
        channels.units.count,
    )


def free_groups(channels: Channels) -> list[int]:
    return [i for i, group in enumerate(channels.groups) if len(channels.free(group))]


def orders_of(channels: Channels, align: int, errors: str) -> list[RemovalOrder]:
    made = []
    for index in free_groups(channels):
        worth = np.arange(channels.units.count, dtype=float)
        order = removal_order(channels, channels.groups[index], worth, RemovalLimits(align))
        shares = np.array(order.counts) / order.group.size
        costs = shares**3
        if errors == "dented":
            costs += 0.1 * np.sin(20 * shares) ** 2
        made.append(replace(order, errors=tuple(costs.tolist())))
    return made


@pytest.mark.parametrize("text", NETS.values(), ids=list(NETS))
@pytest.mark.parametrize("errors", ["cubic", "dented"])
def test_a_path_ends_as_soon_as_enough_is_saved(text: str, errors: str) -> None:
    made = chooser(text, errors=errors)
    least = made.most().cost
    for share in (0.95, 0.8, 0.6, 0.4):
        enough = share * made.work.whole
        choice = made.path(enough)
        assert choice.cost <= max(enough, least) * (1 + 1e-12)
        assert choice.cost == pytest.approx(made.work.left(choice.gone))
        one_less = [
            [r - (i == j) for j, r in enumerate(choice.levels)]
            for i, level in enumerate(choice.levels)
            if level
        ]
        if enough > least:  # some group went no further than it had to
            assert any(made.choice(levels).cost > enough for levels in one_less)


def test_a_path_for_less_goes_on_where_one_for_more_ended() -> None:
    made = chooser(CHAIN, errors="dented")
    gone = [made.path(share * made.work.whole).gone for share in np.linspace(1, 0.02, 30)]
    for more, less in pairwise(gone):
        assert not (more & ~less).any()


def test_a_path_ends_when_nothing_more_may_leave() -> None:
    made = chooser(CHAIN)
    assert made.path(0.0).levels == made.most().levels


def test_a_group_that_matters_more_gives_up_less() -> None:
    even = chooser(CHAIN).path(30000.0)
    tilted = chooser(CHAIN, weights=(100.0, 1.0)).path(30000.0)
    assert tilted.levels[0] < even.levels[0]
    assert tilted.levels[1] > even.levels[1]


def test_a_path_is_near_the_best_choice_of_all() -> None:
    made = chooser(CHAIN, align=8)
    for share in (0.7, 0.5, 0.3):
        enough = share * made.work.whole
        counts = [range(len(order.counts)) for order in made.orders]
        every = [made.choice((a, b)) for a in counts[0] for b in counts[1]]
        best = min(choice.error for choice in every if choice.cost <= enough)
        assert made.path(enough).error <= best + 0.15


def test_groups_that_save_nothing_are_left_alone() -> None:
    made = chooser(CHAIN)
    for layer in made.work.layers.values():
        layer.cost = 0.0
    made.work.fixed = 1.0
    assert made.path(0.5).levels == (0, 0)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75])
def test_uniform_takes_about_the_same_share_of_every_group(share: float) -> None:
    choice = chooser(CHAIN, align=4).uniform(share)
    assert choice.gone[:64].mean() == pytest.approx(share, abs=0.04)
    assert choice.gone[64:96].mean() == pytest.approx(share, abs=0.07)


def test_within_is_met_from_below_and_no_further_than_needed() -> None:
    made = chooser(CHAIN)
    for share in (0.9, 0.5, 0.1):
        enough = share * made.work.whole
        choice = made.within(enough)
        assert choice.cost <= enough
        assert choice.cost > enough - 0.05 * made.work.whole


# ----------------------------------------------------------------------- budgets


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("kind", ["macs", "bytes"])
@pytest.mark.parametrize("amount", [0.9, 0.6, 0.4])
def test_a_budget_is_kept(kind: str, amount: float, spread: bool) -> None:
    made = chooser(CHAIN, kind)
    choice = choice_for_budget(made, Budget(kind, amount), 1.0, spread=spread)
    assert 0.9 * amount < choice.cost / made.work.whole <= amount + 1e-9


def test_half_of_the_way_leaves_half_of_what_is_to_be_saved() -> None:
    made = chooser(CHAIN)
    choice = choice_for_budget(made, Budget("macs", 0.4), 0.5, spread=True)
    assert choice.cost / made.work.whole == pytest.approx(0.7, abs=0.03)
    assert Budget("ratio", 0.4).remaining(0.5) == pytest.approx(0.8)


def test_a_budget_out_of_reach_is_refused_with_what_is_possible() -> None:
    made = chooser(RESIDUAL, "bytes")
    with pytest.raises(NotApplicable, match=r"bytes=0.01 is out of reach: 0\.\d+ remains"):
        choice_for_budget(made, Budget("bytes", 0.01), 1.0, spread=False)


def test_a_ratio_is_the_share_of_channels_that_leaves() -> None:
    made = chooser(CHAIN, "ratio")
    for spread in (False, True):
        choice = choice_for_budget(made, Budget("ratio", 0.5), 1.0, spread=spread)
        assert choice.gone[:96].mean() == pytest.approx(0.5, abs=0.03)


def test_a_plan_says_what_stays() -> None:
    made = chooser(CHAIN)
    assert made.keeping([20, 20]).levels == (44, 12)
    assert made.keeping([20, 20], 0.5).levels == (22, 6)
    assert made.keeping([1000, 1000]).levels == (0, 0)


def test_all_layers_that_channels_go_through_are_listed_once() -> None:
    _, channels = follow(net(DEPTHWISE))
    labels = [node.outputs[0].name for node in layer_nodes(channels)]
    assert sorted(labels) == ["a", "b", "y"]


def test_layers_without_a_cost_cost_nothing() -> None:
    _, channels = follow(net(CHAIN))
    work = Work.of(channels, {}, fixed=7.0)
    assert work.whole == 7.0
    assert work.left(np.ones(channels.units.count, bool)) == 7.0

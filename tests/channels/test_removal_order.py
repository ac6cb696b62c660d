"""Ladders: in which order units leave, and where it may stop."""

from __future__ import annotations

import numpy as np
import pytest
from channel_nets import assert_cut_is_mask, follow, net

from onnxslim.channels.groups import ChannelGroup, Channels
from onnxslim.channels.removal_order import RemovalLimits, RemovalOrder, removal_order, unit_step


def conv_net(channels: int) -> str:
    return f"""
g (float[N,3,6,6] x) => (float[N,5,6,6] y) <float[{channels},3,1,1] w, float[5,{channels},1,1] v> {{
  a = Conv (x, w)
  y = Conv (a, v)
}}"""


GROUPED = """
g (float[N,3,6,6] x) => (float[N,5,6,6] y)
<float[16,3,1,1] w, float[12,8,1,1] u, float[5,12,1,1] v> {
  a = Conv (x, w)
  b = Conv <group = 2> (a, u)
  y = Conv (b, v)
}"""

HEADS = """
g (float[2,5,8] x) => (float[2,5,6] y)
<float[8,32] q, float[8,32] k, float[8,32] v, float[32,6] o,
 int64[4] split = {0, 0, 4, 8}, int64[3] join = {0, 0, 32}> {
  a = MatMul (x, q)
  b = MatMul (x, k)
  c = MatMul (x, v)
  ah = Reshape (a, split)
  bh = Reshape (b, split)
  ch = Reshape (c, split)
  at = Transpose <perm = [0,2,1,3]> (ah)
  bt = Transpose <perm = [0,2,3,1]> (bh)
  ct = Transpose <perm = [0,2,1,3]> (ch)
  s = MatMul (at, bt)
  p = Softmax <axis = -1> (s)
  z = MatMul (p, ct)
  zt = Transpose <perm = [0,2,1,3]> (z)
  zr = Reshape (zt, join)
  y = MatMul (zr, o)
}"""


def first_group(text: str) -> tuple[Channels, ChannelGroup]:
    _, channels = follow(net(text))
    return channels, channels.groups[0]


def made(text: str, limits: RemovalLimits, worth: np.ndarray | None = None) -> RemovalOrder:
    channels, group = first_group(text)
    values = np.arange(channels.units.count, dtype=float) if worth is None else worth
    return removal_order(channels, group, values, limits)


def test_the_least_worth_leave_first_and_equals_in_their_order() -> None:
    channels, group = first_group(conv_net(6))
    worth = np.zeros(channels.units.count)
    worth[:6] = [3, 1, 2, 1, 0, 5]
    order = removal_order(channels, group, worth, RemovalLimits())
    assert order.units.tolist() == [4, 1, 3, 2, 0]
    assert order.counts == (0, 1, 2, 3, 4, 5)
    assert order.removed(2).tolist() == [4, 1]


@pytest.mark.parametrize(
    ("channels", "align", "kept"),
    [
        (64, 16, [64, 48, 32, 16]),
        (70, 16, [70, 64, 48, 32, 16]),  # the first level is the next multiple
        (40, 16, [40, 32, 24, 16, 8]),  # too few channels for multiples of 16: of 8
        (6, 16, [6, 5, 4, 3, 2, 1]),
        (64, 1, list(range(64, 0, -1))),
    ],
)
def test_what_stays_is_a_multiple_where_there_are_enough_channels(
    channels: int, align: int, kept: list[int]
) -> None:
    order = made(conv_net(channels), RemovalLimits(align))
    assert [channels - count for count in order.counts] == kept


@pytest.mark.parametrize("least", [1, 5, 12, 16, 40])
def test_layers_keep_their_least(least: int) -> None:
    order = made(conv_net(16), RemovalLimits(min_channels=least))
    assert 16 - order.counts[-1] == min(16, least)


def test_the_nearest_level_is_the_lower_of_two() -> None:
    order = made(conv_net(64), RemovalLimits(16))
    assert [order.nearest(count) for count in (0, 7, 8, 9, 24, 25, 1000)] == [0, 0, 0, 1, 1, 2, 3]


def test_heads_count_as_the_channels_that_they_hold() -> None:
    _, group = first_group(HEADS)
    assert group.size == 4
    assert unit_step(group, 16) == 1  # two heads, but there are only four
    assert 4 - made(HEADS, RemovalLimits(min_channels=1)).counts[-1] == 1
    assert 4 - made(HEADS, RemovalLimits(min_channels=8)).counts[-1] == 1
    assert 4 - made(HEADS, RemovalLimits(min_channels=9)).counts[-1] == 2


def test_parts_of_a_grouped_conv_lose_equally_many_the_least_worth_of_each() -> None:
    channels, group = first_group(GROUPED)
    worth = np.zeros(channels.units.count)
    worth[:16] = [*range(8), *range(100, 108)]  # the second part is worth more throughout
    order = removal_order(channels, group, worth, RemovalLimits())
    assert order.counts[0] == 0
    assert len(order.counts) > 4
    for level in range(len(order.counts)):
        gone = order.removed(level)
        first, second = sorted(gone[gone < 8]), sorted(gone[gone >= 8])
        assert first == list(range(len(gone) // 2))
        assert second == list(range(8, 8 + len(gone) // 2))


def test_every_level_of_a_balanced_group_can_be_cut() -> None:
    source = net(GROUPED)
    _, channels = follow(source)
    for group in channels.groups[:2]:
        order = removal_order(channels, group, np.zeros(channels.units.count), RemovalLimits())
        for level in range(1, len(order.counts)):
            gone = np.zeros(channels.units.count, bool)
            gone[order.removed(level)] = True
            assert_cut_is_mask(source, gone)


def test_levels_are_nested() -> None:
    for text in (conv_net(24), GROUPED, HEADS):
        order = made(text, RemovalLimits(2))
        assert sorted(set(order.counts)) == list(order.counts)
        assert order.counts[-1] == len(order.units) or text == conv_net(24)
        assert len(set(order.units.tolist())) == len(order.units)


def test_a_slice_keeps_its_last_unit_whatever_the_rest() -> None:
    text = """
    g (float[N,3,6,6] x) => (float[N,5,6,6] y) <float[8,3,1,1] w, float[5,4,1,1] v> {
      a = Conv (x, w)
      p, q = Split <axis = 1> (a)
      s = Concat <axis = 2> (p, p)
      h = MaxPool <kernel_shape = [2,1], strides = [2,1]> (s)
      t = Add (h, p)
      y = Conv (t, v)
    }"""
    order = made(text, RemovalLimits())
    assert len(order.units) == 6  # one of each half stays

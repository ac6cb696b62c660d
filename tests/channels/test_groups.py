"""Units, groups, and what may leave: on nets whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from channel_nets import assert_cut_is_mask, cut, follow, net, some_gone

from onnxslim.channels.groups import shrink
from onnxslim.channels.unpruned import unpruned_layers
from onnxslim.graph.rewrite import Rewriter

CHAIN = """
g (float[N,3,6,6] x) => (float[N,5,6,6] y) <float[8,3,1,1] w, float[4,8,1,1] u, float[5,4,1,1] v> {
  a = Conv (x, w)
  b = Conv (a, u)
  y = Conv (b, v)
}"""

GROUPED = """
g (float[N,3,6,6] x) => (float[N,5,6,6] y)
<float[8,3,1,1] w, float[6,4,1,1] u, float[5,6,1,1] v> {
  a = Conv (x, w)
  b = Conv <group = 2> (a, u)
  y = Conv (b, v)
}"""


def test_units_are_numbered_in_the_order_of_the_channels() -> None:
    _, channels = follow(net(CHAIN))
    assert [group.units.tolist() for group in channels.groups] == [
        list(range(8)),
        list(range(8, 12)),
        list(range(12, 17)),
    ]
    assert [group.name for group in channels.groups] == ["a", "b", "y"]
    assert channels.free(channels.groups[1]).tolist() == [8, 9, 10, 11]
    assert channels.free(channels.groups[2]).tolist() == []


def test_members_say_where_their_channels_lie_in_the_weight() -> None:
    _, channels = follow(net(CHAIN))
    group = channels.groups[0]
    (writer,), (reader,) = group.writers, group.readers
    assert (writer.label, writer.operand, writer.axis) == ("a", 1, 0)
    assert (reader.label, reader.operand, reader.axis) == ("b", 1, 1)
    assert writer.ids.tolist() == reader.ids.tolist()


def test_layers_that_are_balanced_together_are_one_group_on_each_side() -> None:
    _, channels = follow(net(GROUPED))
    assert [group.name for group in channels.groups] == ["a", "b", "y"]
    parts = [parts.tolist() for parts in channels.units.balances]
    assert parts == [[[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9, 10], [11, 12, 13]]]


def test_concatenated_layers_that_one_grouped_conv_reads_are_one_group() -> None:
    _, channels = follow(
        net("""
    g (float[N,3,6,6] x) => (float[N,5,6,6] y)
    <float[4,3,1,1] w, float[4,3,1,1] t, float[6,4,1,1] u, float[5,6,1,1] v> {
      a = Conv (x, w)
      c = Conv (x, t)
      k = Concat <axis = 1> (a, c)
      b = Conv <group = 2> (k, u)
      y = Conv (b, v)
    }""")
    )
    assert [m.label for m in channels.groups[0].writers] == ["a", "c"]
    gone = some_gone(channels, np.random.default_rng(0))
    lost = gone[channels.units.balances[0]].sum(axis=1)
    assert lost[0] == lost[1]


def test_every_axis_of_channels_is_a_slice_of_which_one_must_stay() -> None:
    _, channels = follow(net(CHAIN))
    assert [own.tolist() for own in channels.slices] == [
        list(range(8)),
        list(range(8, 12)),
        list(range(12, 17)),
    ]


def test_a_part_of_a_split_is_a_slice_of_its_own() -> None:
    source = net("""
    g (float[N,3,6,6] x) => (float[N,5,6,6] y) <float[8,3,1,1] w, float[5,4,1,1] v> {
      a = Conv (x, w)
      p, q = Split <axis = 1> (a)
      s = Concat <axis = 2> (p, p)
      h = MaxPool <kernel_shape = [2,1], strides = [2,1]> (s)
      t = Add (h, p)
      y = Conv (t, v)
    }""")
    _, channels = follow(source)
    assert {tuple(own.tolist()) for own in channels.slices} >= {(0, 1, 2, 3), (4, 5, 6, 7)}


def test_nothing_leaves_when_nothing_is_asked_for() -> None:
    source = net(CHAIN)
    model, channels = follow(source)
    before = model.to_proto().SerializeToString(deterministic=True)
    rewriter = Rewriter(model.graph)
    shrink(rewriter, channels, np.zeros(channels.units.count, bool))
    assert rewriter.result().changes == ()
    assert model.to_proto().SerializeToString(deterministic=True) == before


def test_a_pinned_unit_is_refused_with_its_reason() -> None:
    model, channels = follow(net(CHAIN))
    gone = np.zeros(channels.units.count, bool)
    gone[13] = True
    with pytest.raises(ValueError, match="Unit 13 must stay: `y` is an output of the model"):
        shrink(Rewriter(model.graph), channels, gone)


def test_the_last_channel_of_a_tensor_is_refused() -> None:
    model, channels = follow(net(CHAIN))
    gone = np.zeros(channels.units.count, bool)
    gone[8:12] = True
    with pytest.raises(ValueError, match="lose its last channel"):
        shrink(Rewriter(model.graph), channels, gone)


def test_all_but_one_may_leave() -> None:
    source = net(CHAIN)
    _, channels = follow(source)
    gone = np.zeros(channels.units.count, bool)
    gone[[0, 1, 2, 3, 5, 6, 7, 8, 10, 11]] = True
    shapes = {tensor.name: list(tensor.dims) for tensor in cut(source, gone).graph.initializer}
    assert sorted(shapes.values()) == [[1, 1, 1, 1], [1, 3, 1, 1], [5, 1, 1, 1]]


def test_a_shrunken_graph_can_be_followed_and_shrunk_again() -> None:
    source = net(GROUPED)
    for _ in range(3):
        _, channels = follow(source)
        gone = np.zeros(channels.units.count, bool)
        for part in channels.units.balances[0]:
            gone[part[0]] = True
        source = cut(source, gone)
    shapes = sorted(list(tensor.dims) for tensor in source.graph.initializer)
    assert shapes == [[2, 3, 1, 1], [5, 6, 1, 1], [6, 1, 1, 1]]


def test_constants_of_several_nodes_are_cut_once_where_all_cut_alike() -> None:
    source = net("""
    g (float[N,3,6,6] x) => (float[N,5,6,6] y)
    <float[8,3,1,1] w, float[8] s, float[8,1,1] c, float[5,8,1,1] v> {
      a = Conv (x, w, s)
      b = BatchNormalization (a, s, s, s, s)
      d = Mul (b, c)
      e = Add (d, c)
      y = Conv (e, v)
    }""")
    _, channels = follow(source)
    gone = np.zeros(channels.units.count, bool)
    gone[:4] = True
    result = cut(source, gone)
    assert sorted(list(t.dims) for t in result.graph.initializer) == [
        [4],
        [4, 1, 1],
        [4, 3, 1, 1],
        [5, 4, 1, 1],
    ]


def test_a_constant_that_others_need_whole_is_kept_for_them() -> None:
    source = net("""
    g (float[N,3,6,6] x, float[8,1,1] z) => (float[N,5,6,6] y, float[8,1,1] u)
    <float[8,3,1,1] w, float[8,1,1] c, float[5,8,1,1] v> {
      a = Conv (x, w)
      d = Mul (a, c)
      y = Conv (d, v)
      u = Mul (z, c)
    }""")
    _, channels = follow(source)
    gone = np.zeros(channels.units.count, bool)
    gone[:4] = True
    shapes = [list(t.dims) for t in cut(source, gone).graph.initializer]
    assert [8, 1, 1] in shapes
    assert [4, 1, 1] in shapes


def test_names_do_not_depend_on_the_run() -> None:
    first, second = (follow(net(GROUPED))[1] for _ in range(2))
    assert np.array_equal(first.units.of, second.units.of)
    assert first.units.pins == second.units.pins


def test_a_layer_that_only_passes_channels_of_an_input_on_is_left_alone() -> None:
    model, channels = follow(
        net("""
    g (float[N,4,6,6] x) => (float[N,4,6,6] y) <float[4,1,1,1] w> {
      y = Conv <group = 4> (x, w)
    }""")
    )
    (skip,) = unpruned_layers(model.graph, channels)
    assert (skip.node, skip.why) == ("y", "it passes on channels of an input")


def test_a_layer_that_was_refused_is_left_alone_with_the_reason() -> None:
    model, channels = follow(
        net("""
    g (float[2,6] x, float[8] c) => (float[2,8] y) <float[6,8] w> {
      b = Relu (c)
      y = Gemm (x, w, b)
    }""")
    )
    (skip,) = unpruned_layers(model.graph, channels)
    assert (skip.node, skip.why) == ("y", "its bias is computed at run time")


def test_one_tensor_may_be_bound_by_groups_of_two_sizes() -> None:
    source = net("""
    g (float[N,3,6,6] x) => (float[N,5,6,6] y)
    <float[12,3,1,1] w, float[6,6,1,1] u, float[6,4,1,1] t, float[5,6,1,1] v> {
      a = Conv (x, w)
      b = Conv <group = 2> (a, u)
      c = Conv <group = 3> (a, t)
      s = Add (b, c)
      y = Conv (s, v)
    }""")
    _, channels = follow(source)
    shapes = {parts.shape for parts in channels.units.balances}
    assert shapes == {(2, 6), (3, 4), (2, 3), (3, 2)}
    gone = np.zeros(channels.units.count, bool)
    gone[[0, 1, 4, 6, 8, 9]] = True  # three of each half, two of each third
    assert_cut_is_mask(source, gone)


def test_a_group_normalization_of_an_output_binds_no_conv_beside_it() -> None:
    # the halves of `a` must stay; what reads them loses channels in balance all the same
    source = net("""
    g (float[2,3,4,4] x) => (float[2,5,4,4] y, float[2,8,4,4] z)
    <float[8,3,1,1] w, float[2] ones_var, float[2] zeros, int64[3] apart = {0, 2, -1},
     int64[4] whole = {2, 8, 4, 4}, float[6,4,1,1] u, float[5,6,1,1] v> {
      a = Conv (x, w)
      r = Reshape (a, apart)
      n = InstanceNormalization (r, ones_var, zeros)
      z = Reshape (n, whole)
      b = Conv <group = 2> (a, u)
      y = Conv (b, v)
    }""")
    _, channels = follow(source)
    assert [parts.shape for parts in channels.units.balances][-1] == (2, 3)
    gone = some_gone(channels, np.random.default_rng(1), 0.6)
    assert gone.any()
    assert_cut_is_mask(source, gone)

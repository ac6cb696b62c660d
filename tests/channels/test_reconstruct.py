"""Until units are cut out the graph returns what it will without them: their columns are zero."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from channel_nets import cut, follow, net
from layer_nets import context, output_error, samples

from onnxslim.channels.groups import Channels, channel_groups, shrink
from onnxslim.channels.readers import ReaderColumns, column_units, gather
from onnxslim.channels.reconstruct import refit_readers, zero_removed
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.lossy.problems import Problem, Schedule, Target
from support import random_feeds, run

SCORES = """
g (float[2,5,8] x) => (float[2,5,5] y)
<float[8,12] q, float[12] qb, float[8,12] k, float[12] kb, float[12] scale> {
  q0 = MatMul (x, q)
  q1 = Add (q0, qb)
  q2 = Mul (q1, scale)
  k0 = MatMul (x, k)
  k1 = Sub (k0, kb)
  kt = Transpose <perm = [0,2,1]> (k1)
  y = MatMul (q2, kt)
}"""

MAPS = """
g (float[2,4,9] x) => (float[2,9,9] y)
<float[6,4,1] q, float[6] qb, float[6] s, float[6] t, float[6] m, float[6] var,
 float[6,4,1] k, float[6,1,3] d, float[6] db> {
  q0 = Conv (x, q, qb)
  q1 = BatchNormalization (q0, s, t, m, var)
  qt = Transpose <perm = [0,2,1]> (q1)
  k0 = Conv (x, k)
  k1 = Conv <group = 6, pads = [1,1]> (k0, d, db)
  y = MatMul (qt, k1)
}"""


@pytest.mark.parametrize("text", [SCORES, MAPS], ids=["scores", "maps"])
@pytest.mark.parametrize("seed", range(3))
def test_silence_returns_what_the_cut_graph_does(text: str, seed: int) -> None:
    source = net(text)
    model, channels = follow(source)
    (group,) = (group for group in channels.groups if group.weightless_readers)
    gone = np.zeros(channels.units.count, bool)
    gone[np.random.default_rng(seed).permutation(group.units)[:4]] = True
    expected = run(cut(source, gone), random_feeds(source))
    rewriter = Rewriter(model.graph)
    zero_removed(rewriter, channels, gone)
    rewriter.result()
    (found,) = run(model.to_proto(), random_feeds(source))
    np.testing.assert_allclose(found, expected[0], atol=1e-4 * np.abs(expected[0]).max())


def test_silence_leaves_constants_alone_that_others_use() -> None:
    source = net(SCORES.replace("Sub (k0, kb)", "Sub (k0, qb)").replace(", float[12] kb", ""))
    source.graph.node.append(onnx.helper.make_node("Identity", ["qb"], ["z"]))
    source.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, [12]))
    model, channels = follow(source)
    (group,) = (group for group in channels.groups if group.weightless_readers)
    gone = np.zeros(channels.units.count, bool)
    gone[group.units[:4]] = True
    before = run(source, random_feeds(source))[1]
    rewriter = Rewriter(model.graph)
    zero_removed(rewriter, channels, gone)
    rewriter.result()
    np.testing.assert_array_equal(run(model.to_proto(), random_feeds(source))[1], before)


def followed(text: str) -> Channels:
    return follow(net(text))[1]


def test_columns_bear_the_units_of_the_channels_that_they_read() -> None:
    channels = followed("""
    g (float[N,3,6,6] x) => (float[N,4] y)
    <float[4,3,3,3] w, float[6,2,3,3] u, float[24,4] v> {
      a = Conv <pads = [1,1,1,1]> (x, w)
      b = Conv <group = 2, strides = [2,2]> (a, u)
      f = Flatten (b)
      y = MatMul (f, v)
    }""")
    found = {
        member.label: column_units(channels, member, member.layer)
        for member in channels.trace.readers
        if member.layer is not None
    }
    assert found["b"].tolist() == [[*[0] * 9, *[1] * 9], [*[2] * 9, *[3] * 9]]
    assert found["y"].tolist() == [[unit for unit in range(4, 10) for _ in range(4)]]


PAIR = """
g (float[N,6] x) => (float[N,4] y)
<float[6,8] w, float[8,5] u, float[5,4] v, float[5] ub, float[4] vb> {
  a = MatMul (x, w)
  r = Relu (a)
  b = Gemm (r, u, ub)
  s = Relu (b)
  y = Gemm (s, v, vb)
}"""


def test_a_group_is_told_of_once_all_its_readers_were_seen() -> None:
    model, channels = follow(net(PAIR))
    groups = channels.groups[:2]
    readers = ReaderColumns.of(channels, groups)
    made = context(model, samples(80, 6))
    at_once = Schedule(sequential=False, aim=Target.CURRENT)
    problems = readers.problems(Rewriter(model.graph), made, at_once)
    kept: dict[str, Problem] = {}
    found = gather(readers, problems, groups, kept, with_inverses=True)
    index, evidence = next(found)
    assert index == 0
    assert list(kept) == ["b"]
    assert kept["b"].metrics == ()
    assert len(evidence.inverses) == 1
    assert [index for index, _ in found] == [1]
    assert list(kept) == ["b", "y"]


def test_a_refit_gives_what_the_cut_graph_returns() -> None:
    source = net(PAIR)
    x = samples(100, 6)
    model, channels = follow(source)
    gone = np.zeros(channels.units.count, bool)
    gone[[0, 3, 5, 9]] = True
    rewriter = Rewriter(model.graph)
    readers = ReaderColumns.of(channels, channels.groups[:2])
    problems = readers.problems(rewriter, context(model, x), Schedule())
    errors = dict(refit_readers(readers, problems, gone))
    rewriter.result()
    assert list(errors) == ["b", "y"]
    masked = Model.load(model.to_proto())
    again = channel_groups(model.graph)
    shrink(rewriter, again, gone)
    rewriter.result()
    assert output_error(masked, model, x) < 1e-10
    mean, error = (
        output_error(source, other, x) for other in (Model.load(cut(source, gone)), model)
    )
    assert error < mean

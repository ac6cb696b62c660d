"""Keys and values of earlier positions that are inputs and outputs of the model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from channel_nets import free_channels, net, pins

import onnxslim
from onnxslim.channels.groups import channel_groups, shrink
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.check import signature
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from support import run


def decoder(past: str = "float[N,2,P,3] pk, float[N,2,P,3] pv") -> onnx.ModelProto:
    """Attention of 4 queries with 2 keys and values, which are appended to a cache."""
    return net(f"""
    g (float[N,L,6] x, {past})
      => (float[N,L,4] y, float[N,2,T,3] k_all, float[N,2,T,3] v_all)
    <float[6,12] wq, float[6,6] wk, float[6,6] wv, float[12,4] wo,
     int64[4] split = {{0, 0, 4, 3}}, int64[4] split_kv = {{0, 0, 2, 3}},
     int64[3] whole = {{0, 0, 12}},
     int64[5] twice = {{1, 1, 2, 1, 1}}, int64[4] all = {{0, 4, -1, 3}}, int64[1] two = {{2}}> {{
      q = MatMul (x, wq)
      k = MatMul (x, wk)
      v = MatMul (x, wv)
      q1 = Reshape (q, split)
      k1 = Reshape (k, split_kv)
      v1 = Reshape (v, split_kv)
      q2 = Transpose <perm = [0,2,1,3]> (q1)
      k2 = Transpose <perm = [0,2,1,3]> (k1)
      v2 = Transpose <perm = [0,2,1,3]> (v1)
      k_all = Concat <axis = 2> (pk, k2)
      v_all = Concat <axis = -2> (pv, v2)
      k_one = Unsqueeze (k_all, two)
      v_one = Unsqueeze (v_all, two)
      k_two = Expand (k_one, twice)
      v_two = Expand (v_one, twice)
      k_heads = Reshape (k_two, all)
      v_heads = Reshape (v_two, all)
      k4 = Transpose <perm = [0,1,3,2]> (k_heads)
      l = MatMul (q2, k4)
      p = Softmax <axis = -1> (l)
      h = MatMul (p, v_heads)
      h1 = Transpose <perm = [0,2,1,3]> (h)
      h2 = Reshape (h1, whole)
      y = MatMul (h2, wo)
    }}""")


def feeds(heads: slice = slice(None)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 3, 6), "pk": (2, 2, 5, 3), "pv": (2, 2, 5, 3)}
    given = {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    return given | {name: given[name][:, heads] for name in ("pk", "pv")}


def test_a_cache_keeps_its_heads_and_the_reason_names_the_option() -> None:
    assert free_channels(decoder()) == {"q": 0, "k": 0, "v": 0, "y": 0}
    assert any("`pk`" in why and "change-signature=true" in why for why in pins(decoder()))


@pytest.mark.parametrize("gone", [0, 1])
def test_a_cache_loses_heads_where_the_signature_may_change(gone: int) -> None:
    source = decoder()
    model = Model.load(source)
    infer_shapes(model)
    before = signature(model)
    channels = channel_groups(model.graph, changes_signature=True)
    free = channels.free(channels.groups[0])
    assert len(free) == 2
    mask = np.zeros(channels.units.count, bool)
    mask[free[gone]] = True
    rewriter = Rewriter(model.graph)
    shrink(rewriter, channels, mask)
    rewriter.result()
    assert signature(model) == before  # that of the original, as `kept` says
    result = model.to_proto()
    onnx.checker.check_model(result, full_check=True)
    sizes = [dim.dim_value for dim in result.graph.input[1].type.tensor_type.shape.dim]
    assert sizes == [0, 1, 0, 3]
    left = slice(1 - gone, 2 - gone)
    (weight,) = (t for t in source.graph.initializer if t.name == "wo")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[6 * gone : 6 * gone + 6] = 0  # the rows of two queries of three columns
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "wo"))
    expected = run(source, feeds())
    found = run(result, feeds(left))
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    for whole, part in zip(expected[1:], found[1:], strict=True):
        np.testing.assert_allclose(part, whole[:, left], atol=1e-6)


@pytest.mark.parametrize(
    "past",
    [
        "float[N,2,5,3] pk, float[N,2,5,3] pv",  # the axis that is joined tells the others
        "float[1,2,P,3] pk, float[1,2,P,3] pv",
    ],
)
def test_caches_of_known_lengths_are_recognized(past: str) -> None:
    model = Model.load(decoder(past))
    infer_shapes(model)
    channels = channel_groups(model.graph, changes_signature=True)
    assert len(channels.free(channels.groups[0])) == 2


def test_a_cache_of_the_operator_attention_loses_heads() -> None:
    source = net(
        """
    g (float[N,L,6] x, float[N,2,P,3] pk, float[N,2,P,3] pv)
      => (float[N,L,4] y, float[N,2,T,3] k_all, float[N,2,T,3] v_all)
    <float[6,12] wq, float[6,6] wk, float[6,6] wv, float[12,4] wo> {
      q = MatMul (x, wq)
      k = MatMul (x, wk)
      v = MatMul (x, wv)
      h, k_all, v_all = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v, , pk, pv)
      y = MatMul (h, wo)
    }""",
        opset=23,
        ir_version=10,
    )
    assert free_channels(source) == {"q": 0, "k": 0, "v": 0, "y": 0}
    model = Model.load(source)
    infer_shapes(model)
    channels = channel_groups(model.graph, changes_signature=True)
    gone = np.zeros(channels.units.count, bool)
    gone[channels.free(channels.groups[0])[0]] = True
    rewriter = Rewriter(model.graph)
    shrink(rewriter, channels, gone)
    rewriter.result()
    expected = run(source, feeds())
    found = run(model.to_proto(), feeds(slice(1, 2)))
    for whole, part in zip(expected[1:], found[1:], strict=True):
        np.testing.assert_allclose(part, whole[:, 1:], atol=1e-6)


def test_no_other_input_or_output_loses_channels() -> None:
    """A picture and a hidden state keep their channels although the signature may change."""
    model = Model.load(
        net("""
    g (float[N,8,7,W] x) => (float[N,8,7,V] y) <float[8,8,1,1] w> {
      a = Conv (x, w)
      y = Add (a, x)
    }""")
    )
    infer_shapes(model)
    channels = channel_groups(model.graph, changes_signature=True)
    assert not len(channels.free(channels.groups[0]))


def test_a_run_verifies_a_model_with_smaller_caches() -> None:
    samples = [feeds() for _ in range(3)]
    made, report = onnxslim.compress(
        decoder(),
        passes="prune-channels:ratio=0.5:align=1:change-signature=true,simplify",
        calibration=samples,
        floors=None,
        measure=False,
        force=True,
    )
    proto = made.to_proto()
    sizes = [dim.dim_value for dim in proto.graph.input[1].type.tensor_type.shape.dim]
    assert sizes[1] == 1
    notes = [note for step in report.steps for note in step.notes]
    assert any("`pk` (1 of 2 heads)" in note for note in notes)

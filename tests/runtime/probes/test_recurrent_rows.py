"""The vectors that the weights of recurrent operators multiply, against onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_nets import runs, samples
from recurrent_nets import BATCH, HIDDEN, LENGTHS, SHAPE, STEPS, recurrent_net

from onnxslim.analysis.layers import WeightLayer, bias_of, weight_layers
from onnxslim.analysis.linear_operators import RecurrentSteps
from onnxslim.io.model import Model
from onnxslim.runtime.probes.unfold import UnfoldedRows, products_of, unfold_input
from onnxslim.services.moments import LayerMoments
from support import run

Array = npt.NDArray[np.float32]


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def rows_of(layer: WeightLayer, array: Array) -> UnfoldedRows:
    """The x of a layer, where `array` holds inputs or states and all else is constant."""
    others = [None if tensor is None else tensor.values for tensor in layer.sources[1:]]
    return unfold_input((array, *others), layer.unfolding)


def all_of(rows: UnfoldedRows) -> Array:
    return rows.take(np.arange(rows.count))


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["RNN", "GRU"]),
    st.sampled_from(["forward", "reverse", "bidirectional"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_the_states_of_onnxruntime_follow_from_the_vectors(
    op: str, direction: str, bias: bool, lengths: bool, initial: bool
) -> None:
    attrs = {"linear_before_reset": 1} if op == "GRU" else {}
    model = recurrent_net(direction, op=op, bias=bias, lengths=lengths, initial=initial, **attrs)
    x = samples(STEPS, *SHAPE[1:])
    states, _ = run(model, {"x": x})
    (w, r), _ = weight_layers(Model.load(model).graph)
    inputs, before = rows_of(w, x), rows_of(r, states)
    pairs = ((w, inputs), (r, before))
    a, b = (
        all_of(products_of(rows, layer.canonical())) + np.asarray(bias_of(layer))[:, None]
        for layer, rows in pairs
    )
    if op == "RNN":
        made = np.tanh(a + b)
    else:  # gates: update, reset, hidden
        update, reset = (
            sigmoid(a[:, :, part] + b[:, :, part])
            for part in (slice(HIDDEN), slice(HIDDEN, 2 * HIDDEN))
        )
        hidden = np.tanh(a[:, :, 2 * HIDDEN :] + reset * b[:, :, 2 * HIDDEN :])
        made = (1 - update) * hidden + update * all_of(before)
    used = np.arange(STEPS) < (LENGTHS if lengths else np.full(BATCH, STEPS))[:, None]
    np.testing.assert_allclose(made, states.transpose(1, 2, 0, 3)[:, used], atol=1e-5)


@pytest.mark.parametrize("of_states", [False, True])
def test_with_the_batch_first_the_vectors_are_the_same(of_states: bool) -> None:
    x = samples(STEPS, *([2] if of_states else []), BATCH, HIDDEN)
    first = samples(2, BATCH, HIDDEN, seed=1) if of_states else None
    found = []
    for is_batch_first in (False, True):
        steps = RecurrentSteps((False, True), is_batch_first, of_states)
        axes = ((2, 0, 1, 3) if of_states else (1, 0, 2)) if is_batch_first else range(x.ndim)
        begin = None if first is None else (first.swapaxes(0, 1) if is_batch_first else first)
        found.append(all_of(unfold_input((x.transpose(*axes), LENGTHS, begin), steps)))
    np.testing.assert_array_equal(*found)


def moments_of(model: Model, x: Sequence[dict[str, Array]]) -> dict[str, LayerMoments]:
    reference = Model.load(model.to_bytes())  # with arrays of its own, so that it runs
    found = list(runs(x).moments(model, None, reference))
    assert all(isinstance(item, LayerMoments) for item in found)
    return {item.layer: item for item in found if isinstance(item, LayerMoments)}


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("used", [("h",), ("y", "h")])
def test_moments_of_states_are_measured_even_where_no_node_uses_them(
    op: str, used: tuple[str, ...]
) -> None:
    proto = recurrent_net("bidirectional", op=op, lengths=True, initial=True, peephole=op == "LSTM")
    x = [{"x": samples(STEPS, *SHAPE[1:], seed=seed)} for seed in range(3)]
    states = [run(proto, feeds)[0] for feeds in x]
    kept = [output for output in proto.graph.output if output.name in used]
    del proto.graph.output[:]
    proto.graph.output.extend(kept)
    if "y" not in used:
        proto.graph.node[0].output[0] = ""
    model = Model.load(proto)
    layers = {layer.name: layer for layer in weight_layers(model.graph)[0]}
    for (name, found), arrays in zip(
        moments_of(model, x).items(), ([f["x"] for f in x], states), strict=True
    ):
        rows = np.concatenate([all_of(rows_of(layers[name], array)) for array in arrays], axis=1)
        assert found.count == rows.shape[1]
        np.testing.assert_allclose(found.mean, rows.mean(axis=1), atol=1e-5)
        second = np.matmul(rows.swapaxes(1, 2), rows) / rows.shape[1]
        np.testing.assert_allclose(
            np.stack([np.asarray(h) for h in found.seconds]), second, atol=1e-4
        )
        assert found.cross is not None
        wanted = np.matmul(layers[name].canonical(), second)
        np.testing.assert_allclose(found.cross, wanted, atol=1e-3)

"""Lossy weight passes on recurrent operators and on tables, against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_nets import net, node, normal, output_error, outputs, rewritten, samples
from onnx import TensorProto, numpy_helper
from recurrent_nets import BATCH, SHAPE, STEPS, WIDTH, recurrent_net

from onnxslim.io.model import Model

PASSES = (
    "cluster-weights",
    "cluster-weights:per=channel:bits=2",
    "ternarize-weights",
    "binarize-weights",
    "quantize-power-of-two",
    "quantize-fixed-point:il=2:fl=6",
    "prune-weights:ratio=0.7",
    "quantize-weights",
    "quantize-weights:bits=4",
)
X = [{"x": x} for x in samples(24, STEPS, BATCH, WIDTH)]  # all in a few strong directions


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(PASSES),
    st.sampled_from(["LSTM", "GRU", "RNN"]),
    st.sampled_from(["forward", "reverse", "bidirectional"]),
    st.tuples(*[st.booleans()] * 5),
    st.booleans(),
)
def test_weights_of_any_recurrent_operator_are_changed_and_the_signature_stays(
    step: str, op: str, direction: str, given_inputs: tuple[bool, ...], has_data: bool
) -> None:
    bias, lengths, initial, peephole, reset = given_inputs
    attrs = {"linear_before_reset": int(reset)} if op == "GRU" else {}
    source = recurrent_net(
        direction,
        op=op,
        bias=bias,
        lengths=lengths,
        initial=initial,
        peephole=peephole and op == "LSTM",
        **attrs,
    )
    made, reports = rewritten(source, X[:8] if has_data else None, step)
    changed = {change.node for report in reports for change in report.changes}
    assert changed >= {"w", "r"} or "y" in changed
    onnx.checker.check_model(made.to_proto())
    assert [output.name for output in made.graph.outputs] == [o.name for o in source.graph.output]
    found = outputs(made, X[-1])
    assert all(np.isfinite(array).all() for array in found.values())
    assert 0 < output_error(source, made, X[-1]) < 1


@pytest.mark.parametrize("op", ["LSTM", "RNN"])
@pytest.mark.parametrize("step", ["cluster-weights:bits=3", "prune-weights"])
def test_samples_make_recurrent_weights_better(op: str, step: str) -> None:
    source = recurrent_net("bidirectional", op=op, lengths=True, initial=True)
    errors = [
        np.mean([output_error(source, rewritten(source, x, step)[0], feed) for feed in X[16:]])
        for x in (X[:16], None)
    ]
    assert errors[0] < 0.9 * errors[1]


def nested(op: str, inner: onnx.ModelProto) -> onnx.ModelProto:
    """The layer `inner` in the body of an If or of a Loop that runs once, its weights outside."""
    graph = inner.graph
    graph.node[0].output[0] = "states"
    infos = [onnx.ValueInfoProto(name="h", type=graph.output[1].type)]
    body = onnx.helper.make_graph(list(graph.node), "body", [], infos)
    if op == "If":
        flag = numpy_helper.from_array(np.array(True), "flag")
        other = onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["h0"], ["other"])],
            "other",
            [],
            [onnx.ValueInfoProto(name="other", type=graph.output[1].type)],
        )
        outer = onnx.helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=other)
        held = [flag]
    else:
        body.input.extend(
            onnx.helper.make_tensor_value_info(name, kind, [])
            for name, kind in (("i", TensorProto.INT64), ("more", TensorProto.BOOL))
        )
        body.node.append(onnx.helper.make_node("Identity", ["more"], ["again"]))
        body.output.insert(0, onnx.helper.make_tensor_value_info("again", TensorProto.BOOL, []))
        outer = onnx.helper.make_node("Loop", ["count", ""], ["y"], body=body)
        held = [numpy_helper.from_array(np.array(1), "count")]
    weights = {item.name: numpy_helper.to_array(item) for item in [*graph.initializer, *held]}
    return net([outer], weights, SHAPE)


@pytest.mark.parametrize("body", ["If", "Loop"])
@pytest.mark.parametrize("step", PASSES)
def test_recurrent_weights_in_bodies_are_changed(step: str, body: str) -> None:
    source = nested(body, recurrent_net(initial=True))
    made, (report,) = rewritten(source, X[:6], step)
    assert {change.node for change in report.changes} & {"w", "states"}
    assert len(made.to_bytes()) < len(source.SerializeToString())
    assert 0 < output_error(source, made, X[-1]) < 1


@pytest.mark.parametrize("step", PASSES)
def test_tables_of_float16_weights_are_float16(step: str) -> None:
    nodes = [node("MatMul", ["x", "w"], "a"), node("Gemm", ["a", "v"], "y", transB=1)]
    weights = {"w": normal(64, 64, scale=0.1), "v": normal(64, 64, seed=2, scale=0.1)}
    half = {name: values.astype(np.float16) for name, values in weights.items()}
    source = net(nodes, half, ["N", 64], dtype=TensorProto.FLOAT16)
    x = samples(40, 64).astype(np.float16)
    made, _ = rewritten(source, x, step)
    tables = [n.inputs[-2] for n in made.graph.nodes if n.op.startswith("Lookup")]
    assert all(t.dtype in (np.float16, np.int64) for t in tables)
    assert made.file_bytes() < len(source.SerializeToString())
    assert 0 < output_error(source, made, x) < 1


def tied(*, transposed: bool) -> onnx.ModelProto:
    """A table of 200 words that Gather reads, and that is the head's weight too."""
    head = [node("MatMul", ["h", "tt"], "y")] if transposed else []
    nodes = [
        node("Gather", ["t", "i"], "e"),
        node("MatMul", ["e", "w"], "h"),
        *([node("Transpose", ["t"], "tt", perm=[1, 0]), *head] if transposed else []),
        *([] if transposed else [node("Gemm", ["h", "t"], "y", transB=1)]),
    ]
    weights = {"t": normal(200, 48), "w": normal(48, 48, seed=2, scale=0.2)}
    made = net([node("Cast", ["x"], "i", to=TensorProto.INT64), *nodes], weights, ["N"])
    return made


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("has_data", [True, False])
@pytest.mark.parametrize("step", PASSES)
def test_a_tied_table_stays_one(step: str, has_data: bool, transposed: bool) -> None:
    source = tied(transposed=transposed)
    x = np.random.default_rng(0).integers(0, 200, 60).astype(np.float32)
    made, _ = rewritten(source, x if has_data else None, step)
    assert len(made.to_bytes()) < len(source.SerializeToString())
    assert 0 < output_error(source, made, x) < 1


def test_the_rows_of_a_tied_table_count_beside_the_heads_outputs() -> None:
    """Hidden states lie in a plane, and the table's rows do not: both readers stay close."""
    basis = normal(2, 48, seed=3)
    source = tied(transposed=True)
    narrow = numpy_helper.from_array(normal(48, 2, seed=2) @ basis * 0.05, "w")
    source.graph.initializer[1].CopyFrom(narrow)
    source.graph.output.append(onnx.ValueInfoProto(name="e"))
    source = onnx.shape_inference.infer_shapes(source, strict_mode=True)
    x = np.random.default_rng(0).integers(0, 200, 300).astype(np.float32)
    made, _ = rewritten(Model.load(source), x, "cluster-weights:bits=3:skip=h")
    wanted, found = outputs(source, x), outputs(made, x)
    for name in ("y", "e"):
        error = np.square(wanted[name] - found[name]).sum() / np.square(wanted[name]).sum()
        assert error < 0.06, name

"""The twin of a model with exits: every sample goes through it to the end, past all heads."""

from __future__ import annotations

import numpy as np
import pytest
from exit_nets import (
    answers,
    answers_of,
    classifier,
    images,
    loaded,
    random_head,
    style,
    with_exits,
)
from layer_nets import runs

from onnxslim.api import compress
from onnxslim.constraints.read import read_constraints
from onnxslim.constraints.storing import stored_tensors
from onnxslim.errors import NotApplicable
from onnxslim.exits.nested_ifs import BatchMode, Exit
from onnxslim.exits.operators import Confidence, ScoreForm
from onnxslim.exits.twin import inserted_exits, twin_of, twin_with
from onnxslim.graph.ir import walk_graphs
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.check import check_model
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from support import parse

X, _ = images(24, seed=3)
POINTS = ("r0", "r1", "r2")
LEVELS = (0.9, 0.6, 0.7)
EVERY_BATCH = pytest.mark.parametrize("batch", BatchMode)
EVERY_KIND = pytest.mark.parametrize("kind", Confidence)


def reread(model: Model) -> Model:
    """As a file holds it."""
    again = Model.load(model.to_proto())
    infer_shapes(again)
    return again


def with_three(batch: BatchMode, kind: Confidence, *, report: bool = False) -> Model:
    proto = classifier()
    model = loaded(proto)
    exits = [
        Exit(random_head(model, name, seed=number), threshold)
        for number, (name, threshold) in enumerate(zip(POINTS, LEVELS, strict=True))
    ]
    made, _ = with_exits(proto, exits, style(batch=batch, confidence=kind, report=report))
    return reread(made)


@EVERY_BATCH
@EVERY_KIND
@pytest.mark.parametrize("report", [False, True])
def test_it_answers_as_the_network_and_as_each_head(
    batch: BatchMode, kind: Confidence, report: bool
) -> None:
    proto = classifier()
    twin = twin_of(with_three(batch, kind, report=report))
    assert twin is not None
    check_model(twin.model)
    assert [tensor.name for tensor in twin.model.graph.outputs] == ["y", *twin.heads]
    assert len(list(walk_graphs(twin.model.graph))) == 1
    np.testing.assert_array_equal(answers(twin.model, X), answers(proto, X))
    model = loaded(proto)
    heads = [random_head(model, name, seed=number) for number, name in enumerate(POINTS)]
    other = twin_with(model, "y", heads, ScoreForm.LOGITS)
    for own, its in zip(twin.heads, other.heads, strict=True):
        np.testing.assert_array_equal(
            answers_of(twin.model, X, own), answers_of(other.model, X, its)
        )


@EVERY_BATCH
@EVERY_KIND
def test_thresholds_are_read_and_set(batch: BatchMode, kind: Confidence) -> None:
    model = with_three(batch, kind)
    found = inserted_exits(model.graph)
    assert [item.threshold for item in found] == pytest.approx(LEVELS, abs=1e-6)
    rw = Rewriter(model.graph)
    for item in found:
        item.set_threshold(rw, 0.25)
    rw.note("y", "thresholds")
    rw.result()
    again = inserted_exits(reread(model).graph)
    assert [item.threshold for item in again] == pytest.approx([0.25] * 3, abs=1e-6)
    assert all(len(item.decisions) == (2 if batch is BatchMode.SPLIT else 1) for item in again)


@pytest.mark.parametrize(
    "after", ["dedup-constants", "convert-fp16", "quantize-int8", "cluster-weights:bits=3"]
)
def test_what_other_passes_leave_has_a_twin_with_the_same_stored_tensors(after: str) -> None:
    x, _ = images(100)
    model, _ = compress(
        classifier(),
        passes=f"inject-exits:at=r0+r1:threshold=0.8,{after}",
        calibration={"x": x},
        measure=False,
        verify=False,
        floors=None,
        force=True,
        threads=1,
    )
    infer_shapes(model)
    twin = twin_of(model)
    assert twin is not None
    assert len(twin.heads) == 2
    names = [set(stored_tensors(read_constraints(m.graph))) for m in (model, twin.model)]
    assert names[0] == names[1]


def test_heads_alone_need_no_more_of_the_network_than_the_last_of_them() -> None:
    model = loaded(classifier())
    twin = twin_with(model, "y", [random_head(model, "r0")], ScoreForm.LOGITS)
    alone = twin.of_heads()
    assert [node.op for node in alone.graph.nodes].count("Conv") == 1
    np.testing.assert_array_equal(
        answers_of(alone, X, twin.heads[0]), answers_of(twin.model, X, twin.heads[0])
    )
    assert twin.weights == ({"weight": "exit1_logits_weight", "bias": "exit1_logits_bias"},)


def test_an_if_that_is_no_exit_makes_no_twin() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 2] y)
        <float[4, 2] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}, float zero = {0}> {
            top = ReduceMax <keepdims = 0> (x)
            yes = Greater (top, zero)
            y = If (yes) <
                then_branch = a () => (float[N, 2] p) { p = MatMul (x, w) },
                else_branch = b () => (float[N, 2] q) { n = Neg (x) q = MatMul (n, w) }
            >
        }"""
    model = loaded(parse(text))
    assert inserted_exits(model.graph) == []
    assert twin_of(model) is None


def test_a_split_that_is_written_in_another_way_is_declined() -> None:
    model = with_three(BatchMode.SPLIT, Confidence.MARGIN)
    (gather,) = (
        node
        for graph in walk_graphs(model.graph)
        for node in graph.nodes
        if node.op == "Gather" and node.outputs[0].name.startswith("r0")
    )
    gather.op = "GatherElements"
    with pytest.raises(NotApplicable, match="not written as inject-exits writes them"):
        twin_of(model)


def test_samples_stay_as_they_are() -> None:
    """The model itself is not edited."""
    model = with_three(BatchMode.SPLIT, Confidence.ENTROPY)
    before = model.to_bytes()
    twin_of(model)
    assert model.to_bytes() == before
    assert next(iter(runs(X).outputs(model))).rows == len(X)

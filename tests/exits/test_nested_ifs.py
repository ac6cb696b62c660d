"""Exits in a graph: which way samples go, and that the deep way is the network itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from exit_nets import (
    CLASSES,
    answers,
    answers_of,
    classifier,
    constants,
    images,
    loaded,
    random_head,
    style,
    with_exits,
)
from layer_nets import node

from onnxslim.exits.nested_ifs import BatchMode, Exit, ExitOptions, append_exits
from onnxslim.exits.operators import Confidence, ScoreForm, confidences
from onnxslim.exits.thresholds import NEVER
from onnxslim.graph.ir import walk_graphs
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.check import check_model, signature
from onnxslim.io.model import Model

X, _ = images(24, seed=3)
POINTS = ("r0", "r1", "r2")
ALWAYS = 0.0


def exits_at(
    proto: onnx.ModelProto, thresholds: Sequence[float], names: Sequence[str] = POINTS
) -> list[Exit]:
    model = loaded(proto)
    return [
        Exit(random_head(model, name, seed=number), threshold)
        for number, (name, threshold) in enumerate(zip(names, thresholds, strict=False))
    ]


def head_logits(proto: onnx.ModelProto, exit_: Exit, x: np.ndarray) -> np.ndarray:
    """What the head of an exit gives."""
    model = loaded(proto)
    rw = Rewriter(model.graph)
    (name,) = append_exits(rw, "y", [exit_], ScoreForm.LOGITS)
    model.has_shapes = False
    return answers_of(model, x, name)


EVERY_BATCH = pytest.mark.parametrize("batch", BatchMode)
EVERY_COUNT = pytest.mark.parametrize("count", [1, 2, 3])


@EVERY_BATCH
@EVERY_COUNT
@pytest.mark.parametrize("kind", Confidence)
def test_the_deep_way_is_the_network_to_the_bit(
    kind: Confidence, count: int, batch: BatchMode
) -> None:
    proto = classifier()
    model, _ = with_exits(
        proto, exits_at(proto, [NEVER] * count), style(batch=batch, confidence=kind)
    )
    check_model(model)
    onnx.checker.check_model(model.to_proto(), full_check=True)
    np.testing.assert_array_equal(answers(model, X), answers(proto, X))
    np.testing.assert_array_equal(answers(model, X, alone=True), answers(proto, X, alone=True))


@pytest.mark.slow
@EVERY_BATCH
@EVERY_COUNT
@pytest.mark.parametrize("kind", Confidence)
def test_where_all_leave_the_answer_is_the_heads(
    kind: Confidence, count: int, batch: BatchMode
) -> None:
    proto = classifier()
    exits = exits_at(proto, [*[NEVER] * (count - 1), ALWAYS])
    model, _ = with_exits(proto, exits, style(batch=batch, confidence=kind))
    np.testing.assert_allclose(
        answers(model, X), head_logits(proto, exits[-1], X), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", Confidence)
def test_a_batch_is_split_and_put_together_sample_by_sample(kind: Confidence) -> None:
    proto = classifier()
    exits = exits_at(proto, [0.0, 0.0])
    logits = [head_logits(proto, item, X) for item in exits]
    sure = [confidences(item, kind) for item in logits]
    levels = [float(np.median(item)) for item in sure]
    exits = exits_at(proto, levels)
    model, told = with_exits(
        proto, exits, style(batch=BatchMode.SPLIT, confidence=kind, report=True)
    )
    assert told is not None
    first, second = (item >= level for item, level in zip(sure, levels, strict=True))
    number = np.where(first, 1, np.where(second, 2, 3))
    assert set(number) == {1, 2, 3}
    expected = np.choose((number - 1)[:, None], [logits[0], logits[1], answers(proto, X)])
    np.testing.assert_array_equal(answers_of(model, X, told), number)
    np.testing.assert_allclose(answers(model, X), expected, rtol=1e-4, atol=1e-4)
    # and so, whatever stands beside it in the batch
    np.testing.assert_array_equal(answers_of(model, X, told, alone=True), number)
    np.testing.assert_allclose(answers(model, X, alone=True), expected, rtol=1e-4, atol=1e-4)


def test_a_batch_that_is_not_split_leaves_only_if_every_sample_is_sure() -> None:
    proto = classifier()
    sure = confidences(head_logits(proto, exits_at(proto, [0.0])[0], X), style().confidence)
    order = np.argsort(-sure)
    level = float(sure[order[11]])
    model, told = with_exits(proto, exits_at(proto, [level - 1e-4]), style(report=True))
    assert told is not None
    assert set(answers_of(model, X[order[:12]], told)) == {1}
    assert set(answers_of(model, X[order[:13]], told)) == {2}


def test_a_sample_with_nan_is_never_sure() -> None:
    proto = classifier()
    model, told = with_exits(proto, exits_at(proto, [0.5]), style(report=True))
    assert told is not None
    bad = X[:1].copy()
    bad[0, 0, 0, 0] = np.nan
    assert answers_of(model, bad, told).tolist() == [2]


@EVERY_BATCH
@pytest.mark.parametrize(("last", "form"), [("Softmax", ScoreForm.PROBABILITIES)])
def test_scores_keep_their_form(last: str, form: ScoreForm, batch: BatchMode) -> None:
    proto = classifier(last=last)
    model, _ = with_exits(proto, exits_at(proto, [ALWAYS]), style(form, batch=batch))
    np.testing.assert_allclose(answers(model, X).sum(axis=1), 1, rtol=1e-5)
    log = classifier(last="LogSoftmax")
    made, _ = with_exits(log, exits_at(log, [ALWAYS]), style(ScoreForm.LOG_PROBABILITIES))
    np.testing.assert_allclose(np.exp(answers(made, X)).sum(axis=1), 1, rtol=1e-5)


@EVERY_BATCH
@pytest.mark.parametrize("opset", [11, 12, 13, 18, 20])
@pytest.mark.parametrize("kind", Confidence)
def test_it_is_written_in_the_spelling_of_the_opset(
    kind: Confidence, opset: int, batch: BatchMode
) -> None:
    proto = classifier(opset=opset)
    how = style(batch=batch, confidence=kind, report=True)
    model, _ = with_exits(proto, exits_at(proto, [0.5, 0.5]), how)
    onnx.checker.check_model(model.to_proto(), full_check=True)
    assert answers(model, X).shape == (len(X), CLASSES)


@EVERY_BATCH
def test_signature_and_weights_stay_where_they_are(batch: BatchMode) -> None:
    proto = classifier()
    model, _ = with_exits(proto, exits_at(proto, [0.5, 0.5]), style(batch=batch))
    assert signature(model) == signature(Model.load(proto))
    assert constants(proto) <= constants(model.to_proto())
    bodies = list(walk_graphs(model.graph))[1:]
    assert len(bodies) == 4
    again = Model.load(model.to_proto())
    assert again.to_bytes() == model.to_bytes()


def test_a_batch_of_one_needs_no_splitting() -> None:
    proto = classifier(batch=1)
    model, _ = with_exits(proto, exits_at(proto, [0.5]), style(batch=BatchMode.SPLIT))
    ops = {item.op for graph in walk_graphs(model.graph) for item in graph.nodes}
    assert not ops & {"ScatterND", "NonZero", "ReduceMin"}


def test_outputs_made_of_the_scores_follow_behind_the_exit() -> None:
    extra = [node("Softmax", ["y"], "probabilities", axis=1)]
    proto = classifier(extra=extra, outputs=("probabilities", "y"))
    model, _ = with_exits(proto, exits_at(proto, [ALWAYS]), style())
    left = answers(model, X)
    found = answers_of(model, X, "probabilities")
    np.testing.assert_array_equal(found.argmax(axis=1), left.argmax(axis=1))
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_what_other_outputs_need_is_always_computed() -> None:
    proto = classifier(extra=[node("Relu", ["c2"], "other")], outputs=("y", "other"))
    model, _ = with_exits(proto, exits_at(proto, [ALWAYS]), style(batch=BatchMode.SPLIT))
    np.testing.assert_array_equal(answers_of(model, X, "other"), answers_of(proto, X, "other"))


def test_a_part_of_a_batch_takes_along_all_that_has_a_row_for_each_sample() -> None:
    """The branch also reads a tensor that stays outside, as another output needs it."""
    proto = classifier(extra=[node("Relu", ["c2"], "other")], outputs=("y", "other"))
    exit_ = exits_at(proto, [0.0])[0]
    sure = confidences(head_logits(proto, exit_, X), style().confidence)
    exits = exits_at(proto, [float(np.median(sure))])
    model, told = with_exits(proto, exits, style(batch=BatchMode.SPLIT, report=True))
    assert told is not None
    stays = answers_of(model, X, told) == 2
    assert stays.any()
    assert not stays.all()
    np.testing.assert_allclose(
        answers(model, X)[stays], answers(proto, X)[stays], rtol=1e-4, atol=1e-4
    )


def test_nodes_that_nothing_needs_do_not_read_what_moved() -> None:
    proto = classifier(extra=[node("Relu", ["c3"], "unused")])
    model, _ = with_exits(proto, exits_at(proto, [0.5]), ExitOptions(ScoreForm.LOGITS))
    check_model(model)
    assert answers(model, X).shape == (len(X), CLASSES)


def test_a_head_reads_rows_and_sequences_as_well() -> None:
    proto = classifier()
    for name in ("r2", "p"):
        model, _ = with_exits(proto, exits_at(proto, [ALWAYS], [name]), style())
        assert answers(model, X).shape == (len(X), CLASSES)

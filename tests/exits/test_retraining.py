"""`finetune` on a model with exits: all learn together, thresholds follow, no answer is lost."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from exit_nets import answers, classifier, images

from onnxslim.api import compress
from onnxslim.exits.thresholds import upper_bound
from onnxslim.exits.twin import inserted_exits, twin_of
from onnxslim.graph.ir import walk_graphs
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.report import StepReport

pytest.importorskip("torch", reason="training needs the extra `train`")

X, LABELS = images(1200)
NEW, _ = images(2000, seed=77)
HOW = "finetune:epochs=6"


def run(
    source: Model, passes: str, labels: np.ndarray | None = None
) -> tuple[Model, list[StepReport]]:
    given = {"x": X} if labels is None else {"x": X, "label": labels}
    model, report = compress(
        source,
        passes=passes,
        calibration=given,
        measure=False,
        verify=False,
        floors=None,
        force=True,
        threads=1,
    )
    infer_shapes(model)
    return model, report.steps


@cache
def with_exits() -> Model:
    """A model that lost something, which its exits can learn again."""
    coarse = "cluster-weights:bits=1"
    model, _ = run(Model.load(classifier()), f"inject-exits:at=r0:threshold=0.9,{coarse}")
    return model


def operators(model: Model) -> list[str]:
    return [node.op for graph in walk_graphs(model.graph) for node in graph.nodes]


def said(steps: list[StepReport]) -> str:
    changes = [change.what for change in steps[-1].changes]
    return " ".join([*changes, *(skip.why for skip in steps[-1].skips), *steps[-1].notes])


def test_a_model_with_exits_learns_from_its_own_network() -> None:
    before = with_exits()
    after, steps = run(before, HOW)
    assert operators(after) == operators(before)
    assert after.to_bytes() != before.to_bytes()
    assert "over 480 samples" in said(steps)  # four fifths of the half that chooses
    assert "exit 1: its threshold became" in said(steps)
    levels = [[item.threshold for item in inserted_exits(m.graph)] for m in (before, after)]
    assert levels[0] != levels[1]
    twin = twin_of(before)
    assert twin is not None
    own = answers(twin.of_network(), NEW).argmax(axis=1)
    # 92 of 600 samples had another answer before: the lower bound that has to hold on new ones
    kept = (answers(after, NEW).argmax(axis=1) == own).mean()
    assert kept >= 1 - upper_bound(92, 600)


def test_behind_a_lossy_step_the_teacher_is_the_model_before() -> None:
    step = "inject-exits:at=r0:threshold=0.9,cluster-weights:bits=1"
    source = Model.load(classifier())
    before, _ = run(source, step)
    after, steps = run(source, f"{step},finetune:epochs=4")
    assert "the divergence from the teacher went from" in said(steps)
    shares = [
        (answers(m, NEW).argmax(axis=1) == answers(source, NEW).argmax(axis=1)).mean()
        for m in (before, after)
    ]
    assert shares[1] > shares[0]


def test_what_would_answer_otherwise_is_not_kept() -> None:
    """All samples are taught one class, so no thresholds bring the teacher's answers back."""
    model, steps = run(with_exits(), "finetune:epochs=1:learning-rate=0.03:loss=labels", 0 * LABELS)
    assert "after training no thresholds keep a target of" in said(steps)
    assert model.to_bytes() == with_exits().to_bytes()


def test_layers_that_are_frozen_stay() -> None:
    model, _ = run(with_exits(), f"{HOW}:only=exit*")
    plain = twin_of(with_exits())
    twin = twin_of(model)
    assert model.to_bytes() != with_exits().to_bytes()
    assert twin is not None
    assert plain is not None
    np.testing.assert_array_equal(answers(twin.of_network(), NEW), answers(plain.of_network(), NEW))

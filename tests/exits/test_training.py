"""Exits that are trained before thresholds are chosen: the heads, or the network with them."""

from __future__ import annotations

import numpy as np
import pytest
from exit_nets import (
    CLASSES,
    ExitStopwatch,
    answers,
    answers_of,
    classifier,
    constants,
    images,
)
from layer_nets import FORCE, REPRODUCERS, runs, whats, whys
from onnx import numpy_helper

from onnxslim.errors import UsageError
from onnxslim.exits.thresholds import HeadTrial, outcome
from onnxslim.io.model import Model
from onnxslim.passes.inject_exits import InjectExits
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context
from onnxslim.report import StepReport
from onnxslim.runtime.evaluate import evaluate
from onnxslim.runtime.training.trainer import SampleTrainer
from onnxslim.services.stopwatch import Stopwatch

pytest.importorskip("torch", reason="training needs the extra `train`")

X, LABELS = images(1200)
NEW, _ = images(4000, seed=77)
AIM = "inject-exits:target=0.95:count=1"
HOW = "finetune=4:training='learning-rate=0.0005:temperature=1'"


def trained(
    spec: str,
    *,
    x: dict[str, np.ndarray] | None = None,
    own: dict[str, np.ndarray] | None = None,
    stopwatch: Stopwatch | None = None,
) -> tuple[Model, StepReport]:
    given = x or {"x": X}
    context = Context(
        evaluate=evaluate,
        calibration=runs(given),
        trainer=SampleTrainer(own or given, threads=1, has_own_samples=own is not None),
        stopwatch=stopwatch,
    )
    model, (report,) = PassManager.parse(spec).run(
        Model.load(classifier()), context, policy=FORCE, reproducers=REPRODUCERS
    )
    return model, report


def network(model: Model) -> dict[str, bytes]:
    """The initializers that the network had before it got exits."""
    known = constants(classifier())
    return {
        tensor.name: numpy_helper.to_array(tensor).tobytes()
        for tensor in model.to_proto().graph.initializer
        if tensor.name in known
    }


def notes(report: StepReport) -> str:
    return " ".join(note for part in report.parts for note in part.notes)


# ------------------------------------------------------------------- fires


def test_trained_heads_leave_the_network_as_it_was_and_the_promise_holds() -> None:
    model, report = trained(f"{AIM}:{HOW}:report-exit=true")
    plain, _ = trained(f"{AIM}:report-exit=true")
    assert "`inject-exits`: the divergence from the teacher went from" in notes(report)
    assert network(model) == network(Model.load(classifier()))
    assert model.to_bytes() != plain.to_bytes()
    assert len(model.to_bytes()) == len(plain.to_bytes())
    same = answers(model, NEW).argmax(axis=1) == answers(classifier(), NEW).argmax(axis=1)
    assert same.mean() >= 0.95
    taken = answers_of(model, NEW, model.graph.outputs[-1].name)
    assert 0.2 < (taken == 1).mean() < 1


def test_a_network_that_learns_too_is_held_against_what_it_was() -> None:
    model, report = trained(f"{AIM}:joint=all:{HOW}")
    assert network(model) != network(Model.load(classifier()))
    assert any("learned" in what for what in whats([report]))
    assert "answers of the network as it was" in " ".join(whats([report]))
    same = answers(model, NEW).argmax(axis=1) == answers(classifier(), NEW).argmax(axis=1)
    assert same.mean() >= 0.95


def test_a_network_that_forgets_too_much_keeps_no_promise() -> None:
    """Samples that stay count as well."""
    ruin = "finetune=0.2:joint=all:training='learning-rate=1:loss=labels'"
    model, report = trained(f"inject-exits:target=0.99:{ruin}", x={"x": X, "label": 0 * LABELS})
    assert not report.changes
    assert "a target of 0.99" in whys([report])[-1]
    assert model.to_bytes() == Model.load(classifier()).to_bytes()


def test_what_timing_decided_is_trained_again_to_the_same_bytes() -> None:
    model, report = trained(f"{AIM}:joint=all:{HOW}", stopwatch=ExitStopwatch())
    spelled = str(report.resolved)
    assert "threshold=" in spelled
    again, _ = trained(str(parse_pipeline(spelled).passes[0]))
    assert again.to_bytes() == model.to_bytes()


def test_the_scores_of_all_exits_are_trained_where_nothing_is_skipped() -> None:
    model, report = trained(f"inject-exits:mode=anytime:at=r0:{HOW}")
    plain, before = trained("inject-exits:mode=anytime:at=r0")
    assert [t.name for t in model.graph.outputs] == ["y", "y_exit1"]
    assert answers_of(model, NEW, "y_exit1").shape == (len(NEW), CLASSES)
    np.testing.assert_array_equal(answers(model, NEW), answers(classifier(), NEW))
    assert model.to_bytes() != plain.to_bytes()
    assert len(report.changes) == len(before.changes)


def test_only_the_half_that_chooses_is_trained_on_unless_there_are_others() -> None:
    spec = "inject-exits:at=r0:threshold=0.9:finetune=1:training='learning-rate=0.0005'"
    _, report = trained(spec)
    assert "1 epochs over 480 samples" in notes(report)  # four fifths of 600
    _, report = trained(spec, own={"x": NEW[:1000]})
    assert "1 epochs over 800 samples" in notes(report)


def test_training_that_brings_nothing_keeps_the_fitted_heads() -> None:
    plain, _ = trained("inject-exits:at=r0:threshold=0.9")
    ruin = "finetune=0.1:training='learning-rate=10'"
    model, report = trained(f"inject-exits:at=r0:threshold=0.9:{ruin}")
    assert "brought nothing" in notes(report)
    assert model.to_bytes() == plain.to_bytes()


# ------------------------------------------------------------------- declines and edges


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"joint": "all"}, "`joint` of `inject-exits` is for use with `finetune=EPOCHS`"),
        ({"training": "batch=8"}, "`training` of `inject-exits` is for use with"),
        ({"finetune": 1.0, "training": "speed=3"}, "has no option `speed`"),
    ],
)
def test_options_of_training_are_checked(options: dict[str, object], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        InjectExits(**options)  # type: ignore[arg-type]


def test_samples_that_stay_count_where_the_network_was_trained() -> None:
    sure = np.array([0.9, 0.9, 0.1, 0.1])
    head = HeadTrial(sure, np.array([True, False, True, True]), np.array([0, -1, 0, 0]))
    rest = HeadTrial(sure, np.array([False, False, False, True]), np.array([1, 1, 1, 0]))
    plain, both = outcome((0.5,), [head]), outcome((0.5,), [head], rest)
    assert (plain.disagreeing, plain.lost, plain.won) == (1, 1, 0)
    assert (both.disagreeing, both.lost, both.won) == (2, 1, 1)
    assert plain.shares == both.shares == (0.5, 0.5)

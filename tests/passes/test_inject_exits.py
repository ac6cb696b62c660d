from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from exit_nets import (
    CLASSES,
    ExitStopwatch,
    answers,
    answers_of,
    classifier,
    images,
    injected,
    style,
)
from layer_nets import FORCE, REPRODUCERS, net, node, normal, runs, whats, whys

from onnxslim import cli
from onnxslim.errors import UsageError
from onnxslim.exits.nested_ifs import BatchMode
from onnxslim.graph.ir import walk_graphs
from onnxslim.io.check import check_model, signature
from onnxslim.io.model import Model
from onnxslim.passes.inject_exits import InjectExits
from onnxslim.pipeline.floors import Floors
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context
from onnxslim.records import Fidelity
from onnxslim.runtime.evaluate import evaluate
from onnxslim.runtime.measure.verify import RuntimeProver
from support import parse

X, LABELS = images(1500)
NEW, _ = images(4000, seed=77)
EASY = "inject-exits:target=0.95"


def operators(model: Model) -> list[str]:
    return [item.op for graph in walk_graphs(model.graph) for item in graph.nodes]


def agreement(model: Model, source: onnx.ModelProto, x: np.ndarray = NEW) -> float:
    same = answers(model, x).argmax(axis=1) == answers(source, x).argmax(axis=1)
    return float(same.mean())


# ------------------------------------------------------------------- fires


def test_easy_samples_leave_and_the_network_is_agreed_with() -> None:
    source = classifier()
    model, reports = injected(source, X, f"{EASY}:report-exit=true", ExitStopwatch())
    check_model(model)
    assert reports[0].fidelity is Fidelity.LOSSY
    assert agreement(model, source) >= 0.95
    taken = answers_of(model, NEW, model.graph.outputs[-1].name)
    assert 0.2 < (taken == 1).mean() < 1
    first, *_, whole = whats(reports)
    assert first.startswith("exit 1: a head on ")
    assert "expected latency: mean 0." in whole
    assert "worst 1." in whole
    assert str(reports[0].resolved).startswith("inject-exits:at=")


@pytest.mark.parametrize("seed", range(5))
def test_the_target_holds_on_samples_that_nothing_was_chosen_by(seed: int) -> None:
    source = classifier()
    x, _ = images(1500, seed=seed)
    model, _ = injected(source, x, "inject-exits:target=0.97", seed=seed)
    assert "If" in operators(model)
    assert agreement(model, source, images(20_000, seed=78)[0]) >= 0.97


@pytest.mark.parametrize("confidence", ["entropy", "margin"])
def test_every_confidence_keeps_the_target(confidence: str) -> None:
    source = classifier()
    model, _ = injected(source, X, f"{EASY}:confidence={confidence}")
    assert "If" in operators(model)
    assert agreement(model, source) >= 0.95


def test_samples_that_do_not_leave_get_the_networks_own_bits() -> None:
    source = classifier()
    model, _ = injected(source, X, f"{EASY}:report-exit=true")
    x = NEW[:60]
    taken = answers_of(model, x, model.graph.outputs[-1].name, alone=True)
    stays = taken == taken.max()
    assert stays.any()
    assert not stays.all()
    np.testing.assert_array_equal(
        answers(model, x, alone=True)[stays], answers(source, x, alone=True)[stays]
    )


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (f"{EASY}:count=3", "threshold="),
        ("inject-exits:at=r0:threshold=0.9:worst=9", "at=r0:threshold=0.9"),
        ("inject-exits:mode=anytime", "at="),
    ],
)
def test_what_timing_decided_is_repeated_without_it_to_the_byte(spec: str, said: str) -> None:
    source = classifier()
    model, reports = injected(source, X, spec, ExitStopwatch())
    spelled = str(reports[0].resolved)
    assert said in spelled
    assert "worst" not in spelled
    again, _ = injected(source, X, parse_pipeline(spelled).passes[0])
    assert again.to_bytes() == model.to_bytes()


def test_a_budget_of_latency_is_kept_where_that_is_possible() -> None:
    source = classifier()
    model, reports = injected(source, X, "inject-exits:latency=0.6", ExitStopwatch())
    whole = next(what for what in whats(reports) if "expected latency" in what)
    mean = float(whole.partition("mean ")[2].partition(",")[0])
    assert 0.2 < mean <= 0.65
    assert "If" in operators(model)
    _, reports = injected(source, X, "inject-exits:latency=0.01", ExitStopwatch())
    assert "a mean latency of 0.01 is out of reach" in whys(reports)[0]


def test_exits_are_put_where_they_are_asked_for_with_the_thresholds_given() -> None:
    spec = "inject-exits:at=r2+r0:threshold=0.7+0.9:report-exit=true"
    model, reports = injected(classifier(), X, spec)
    levels = [what.partition("confidence of ")[2][:3] for what in whats(reports)[:2]]
    assert levels == ["0.9", "0.7"]  # in the order of the graph
    assert operators(model).count("If") == 2
    taken = answers_of(model, NEW, model.graph.outputs[-1].name)
    assert set(taken) == {1, 2, 3}


def test_labels_are_fitted_to_where_there_are_any() -> None:
    plain, _ = injected(classifier(), {"x": X}, "inject-exits:at=r2:threshold=0.5")
    labelled, _ = injected(
        classifier(), {"x": X, "label": LABELS}, "inject-exits:at=r2:threshold=0.5"
    )
    assert plain.to_bytes() != labelled.to_bytes()


def test_every_exit_is_an_output_where_nothing_is_to_be_skipped() -> None:
    source = classifier()
    model, reports = injected(source, X, "inject-exits:mode=anytime:count=3")
    names = [tensor.name for tensor in model.graph.outputs]
    assert names == ["y", "y_exit1", "y_exit2", "y_exit3"]
    np.testing.assert_array_equal(answers(model, NEW), answers(source, NEW))
    own = answers(source, NEW).argmax(axis=1)
    shares = [(answers_of(model, NEW, name).argmax(axis=1) == own).mean() for name in names[1:]]
    assert shares[0] < shares[-1]
    assert min(shares) > 0.5
    assert "its head's scores are the new output `y_exit1`" in whats(reports)[0]


def test_probabilities_stay_probabilities() -> None:
    model, _ = injected(classifier(last="Softmax"), X, EASY)
    np.testing.assert_allclose(answers(model, NEW).sum(axis=1), 1, rtol=1e-5)


def test_random_units_are_put_into_the_graph() -> None:
    source = classifier()
    model, reports = injected(source, X, f"{EASY}:head=mlp:count=1")
    assert "512 random units behind them" in whats(reports)[0]
    assert any("fewer than 20 for each" in why for why in whys(reports))
    assert agreement(model, source) >= 0.95


# ------------------------------------------------------------------- batches


def test_a_sample_gets_the_same_answer_whatever_stands_beside_it() -> None:
    model, _ = injected(classifier(), X, EASY)
    x = NEW[:50]
    np.testing.assert_allclose(
        answers(model, x), answers(model, x, alone=True), rtol=1e-4, atol=1e-4
    )


def test_a_batch_is_not_split_where_the_rest_of_the_network_looks_across_it() -> None:
    """Half of the mean over the batch is taken off, so a part of it gives other answers."""
    shift = [
        node("ReduceMean", ["f"], "mean", axes=[0], keepdims=1),
        node("Sum", ["f", "f"], "double"),
        node("Sub", ["double", "mean"], "g"),
    ]
    source = classifier()
    at = next(i for i, item in enumerate(source.graph.node) if item.op_type == "Gemm")
    gemm = source.graph.node[at]
    gemm.input[0] = "g"
    for item in reversed(shift):
        source.graph.node.insert(at, item)
    model, reports = injected(source, X, "inject-exits:at=r1:threshold=0.6")
    assert "ScatterND" not in operators(model)
    assert any(why.startswith("batches leave as a whole") for why in whys(reports))


@pytest.mark.parametrize("batch", BatchMode)
def test_the_way_of_a_batch_is_an_option(batch: BatchMode) -> None:
    model, _ = injected(classifier(), X, f"inject-exits:at=r1:threshold=0.6:batch={batch}")
    assert ("ScatterND" in operators(model)) == (batch is BatchMode.SPLIT)


@pytest.mark.parametrize("opset", [7, 9])
def test_an_older_model_is_raised(opset: int) -> None:
    source = classifier(opset=opset)
    model, reports = injected(source, X, "inject-exits:at=r1:threshold=0.6")
    check_model(model)
    assert whats(reports)[0] == f"opset raised from {opset} to 11: exits need it"
    assert "If" in operators(model)
    assert agreement(model, source) > 0.5


# ------------------------------------------------------------------- declines


def declined(source: onnx.ModelProto, x: np.ndarray | None, spec: str = "inject-exits") -> str:
    model, reports = injected(source, x, spec)
    assert model.to_bytes() == Model.load(source).to_bytes()
    return " / ".join(whys(reports))


def test_without_samples_nothing_is_done() -> None:
    assert "needs calibration samples" in declined(classifier(), None)


def test_too_few_samples_cannot_confirm_a_target() -> None:
    why = declined(classifier(), X[:200], "inject-exits:target=0.995")
    assert "a target of 0.995 cannot be confirmed with 99 % confidence on the " in why
    assert "that takes 919, twice as many in all" in why
    assert "cannot be confirmed" in declined(classifier(), X[:200], "inject-exits:target=1")


def test_what_cannot_be_confirmed_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InjectExits, "run", lambda *_: pytest.fail("there was work"))
    assert "cannot be confirmed" in declined(classifier(), X[:200], "inject-exits:target=0.995")
    assert "max-drop needs labels" in declined(classifier(), X, "inject-exits:max-drop=1")


def test_few_labelled_samples_do_not_stand_in_for_those_that_confirm_a_target() -> None:
    source = classifier()
    x, labels = images(40, seed=5)
    context = Context(
        evaluate=evaluate, calibration=runs(X), labelled=runs({"x": x, "label": labels})
    )
    model, _ = PassManager.parse(EASY).run(
        Model.load(source), context, policy=FORCE, reproducers=REPRODUCERS
    )
    assert "If" in operators(model)


def test_without_a_target_the_promise_is_what_the_samples_can_confirm() -> None:
    source = classifier()
    model, reports = injected(source, X[:400], "inject-exits")
    assert "If" in operators(model)
    whole = next(what for what in whats(reports) if "expected latency" in what)
    assert "agreement was promised, the most that " in whole
    assert "(99.5 % takes 919)" in whole
    promised = float(whole.partition("confidence; ")[2].partition(" %")[0]) / 100
    assert 0.95 < promised < 0.995
    assert agreement(model, source, images(20_000, seed=78)[0]) >= promised


@pytest.mark.parametrize("labelled", ["calibration", "evaluation"])
def test_a_drop_in_accuracy_lets_more_leave_than_agreement(labelled: str) -> None:
    """The network errs on noisy samples, and so disagrees with a head that is no worse."""
    source = classifier()
    x, labels = images(6000, seed=5)
    samples = runs({"x": x, "label": labels})
    labels_elsewhere = labelled == "evaluation"
    context = Context(
        evaluate=evaluate,
        calibration=runs(X) if labels_elsewhere else samples,
        labelled=samples if labels_elsewhere else None,
        floors=Floors(max_drop=1.0),
    )
    model, reports = PassManager.parse("inject-exits").run(
        Model.load(source), context, policy=FORCE, reproducers=REPRODUCERS
    )
    whole = next(what for what in whats(reports) if "expected latency" in what)
    assert "points of accuracy are lost on their labels, so at most " in whole
    assert "at most 1 was promised" in whole
    new, truth = images(20_000, seed=78)
    right, was = (answers(m, new).argmax(axis=1) == truth for m in (model, source))
    assert was.mean() - right.mean() <= 0.01
    _, strict = injected(source, x, "inject-exits:target=0.99")
    stays = [
        float(next(w for w in whats(found) if "latency: mean" in w).split("mean ")[1].split(",")[0])
        for found in (reports, strict)
    ]
    assert stays[0] < stays[1]


def test_a_network_of_one_layer_has_no_place_to_leave_at() -> None:
    source = net([node("MatMul", ["x", "w"], "y")], {"w": normal(6, 3)}, ["N", 6])
    x = np.random.default_rng(0).standard_normal((100, 6)).astype(np.float32)
    assert "there is no tensor that all paths to `y` pass through" in declined(source, x)


def test_outputs_that_are_no_class_scores_are_declined() -> None:
    text = """<opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 1] y) { y = ReduceMax <axes = [1]> (x) }"""
    assert "no output is class scores" in declined(parse(text), np.ones((10, 4), np.float32))


def test_separate_answers_are_no_class_scores() -> None:
    source = classifier(last="Softmax")
    source.graph.node[-1].op_type = "Sigmoid"
    del source.graph.node[-1].attribute[:]
    assert "do not add up to 1, as independent answers do" in declined(source, X)


def test_an_exit_that_gains_nothing_is_left_out() -> None:
    class Slow(ExitStopwatch):
        def _pair(self, before: int | None, after: int | None) -> object:  # type: ignore[override]
            return super()._pair(before, 3 * (before or 0))

    _, reports = injected(classifier(), X, EASY, Slow())
    assert "leaving early gains nothing" in whys(reports)[0]


def test_what_an_exit_costs_those_that_stay_can_be_bounded() -> None:
    source = classifier()

    def worst_of(spec: str) -> float | None:
        _, reports = injected(source, X, spec, ExitStopwatch())
        words = [change.what for change in reports[-1].changes if "worst" in change.what]
        return float(words[0].split("worst ")[1].split()[0]) if words else None

    free = worst_of(f"{EASY}:count=3")
    assert free is not None
    assert free > 1
    assert worst_of(f"{EASY}:count=3:worst={free + 0.01}") == free
    _, reports = injected(source, X, f"{EASY}:worst=1", ExitStopwatch())
    assert not reports[-1].changes
    assert "worst=1 allows less" in reports[-1].skips[-1].why


def test_a_bound_on_the_worst_needs_a_clock() -> None:
    assert "worst needs models to be timed" in declined(classifier(), X, "inject-exits:worst=1.1")


def test_a_tensor_that_is_no_place_to_leave_at_is_named_with_the_reason() -> None:
    why = declined(classifier(), X, "inject-exits:at=nothing:threshold=0.5")
    assert "`nothing` is no place for an exit: the graph has no such tensor" in why


def test_exits_are_not_put_in_twice() -> None:
    model, _ = injected(classifier(), X, EASY)
    assert "the If `y` decides at run time" in declined(model.to_proto(), X)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"target": 0.9, "latency": 0.5}, "takes one of target, max-drop, latency and threshold"),
        ({"at": ("a", "b", "c"), "threshold": (0.5, 0.6)}, "got 2 for 3"),
        ({"mode": "anytime", "target": 0.9}, "skips nothing: leave out target"),
        ({"mode": "anytime", "report_exit": True}, "skips nothing: leave out report-exit"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options: dict[str, object], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        InjectExits(**options)  # type: ignore[arg-type]


def test_auto_is_how_no_place_is_spelled() -> None:
    assert parse_pipeline("inject-exits:at=auto").passes == (InjectExits(),)


# ------------------------------------------------------------------- edges


def test_other_outputs_stay_as_they_are() -> None:
    source = classifier(extra=[node("Relu", ["c2"], "other")], outputs=("y", "other"))
    model, _ = injected(source, X, "inject-exits:at=r0:threshold=0.4")
    assert "If" in operators(model)
    np.testing.assert_array_equal(answers_of(model, NEW, "other"), answers_of(source, NEW, "other"))


def test_a_floor_on_agreement_is_the_default_target() -> None:
    context = Context(evaluate=evaluate, calibration=runs(X), floors=Floors(min_agreement=0.9))
    model = Model.load(classifier())
    _, loose = PassManager.parse("inject-exits").run(
        model, context, policy=FORCE, reproducers=REPRODUCERS
    )
    _, tight = injected(classifier(), X, "inject-exits:target=0.9")
    assert whats(loose) == whats(tight)


@pytest.mark.parametrize(
    "after", ["simplify", "prune-weights:ratio=0.3", "cluster-weights", "prune-channels:ratio=0.3"]
)
def test_passes_that_run_after_it_enter_the_branches(after: str) -> None:
    source = classifier()
    context = Context(evaluate=evaluate, calibration=runs(X))
    prover = RuntimeProver(calibration={"x": X}, latency=False)
    model = Model.load(source)
    prover.begin(model)
    result, reports = PassManager.parse(f"{EASY},{after}").run(
        model, context, prover=prover, policy=FORCE, reproducers=REPRODUCERS
    )
    check_model(result)
    assert "If" in operators(result)
    assert signature(result) == signature(model)
    assert agreement(result, source, NEW[:500]) > 0.8
    assert reports[0].changes


def test_exits_follow_passes_that_made_the_network_smaller() -> None:
    source = classifier()
    model, _ = injected(source, X, f"simplify,prune-channels:ratio=0.3:align=1,{EASY}")
    assert "If" in operators(model)
    assert agreement(model, source, NEW[:500]) > 0.8


@pytest.mark.parametrize("spec", [f"{EASY}:report-exit=true", "inject-exits:mode=anytime"])
def test_further_outputs_are_verified_and_kept_by_what_follows(spec: str) -> None:
    prover = RuntimeProver(calibration={"x": X}, latency=False)
    model = Model.load(classifier())
    prover.begin(model)
    context = Context(evaluate=evaluate, calibration=runs(X))
    result, reports = PassManager.parse(f"{spec},simplify").run(
        model, context, prover=prover, policy=FORCE, reproducers=REPRODUCERS
    )
    assert len(result.graph.outputs) > 1
    assert reports[0].comparison is not None
    assert set(reports[0].comparison.previous) == {"y"}


def test_the_command_writes_a_model_that_leaves_early(tmp_path: Path) -> None:
    source, calib, target = (tmp_path / name for name in ("m.onnx", "c.npz", "out.onnx"))
    onnx.save(classifier(), source)
    np.savez(calib, x=X)
    arguments = [source, target, "--passes", EASY, "--calib", calib, "--no-latency", "--force"]
    assert cli.run([str(item) for item in arguments]) == 0
    assert "If" in operators(Model.load(target))


def test_static_batches_of_one_are_not_split() -> None:
    model, _ = injected(classifier(batch=1), X, EASY)
    assert "If" in operators(model)
    assert "ScatterND" not in operators(model)
    assert answers(model, NEW[:5], alone=True).shape == (5, CLASSES)
    assert style().batch is BatchMode.ALL

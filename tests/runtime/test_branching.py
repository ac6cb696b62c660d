"""Models whose run depends on the sample: timed on several, compared and judged one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from exit_nets import answers, classifier, images, loaded, random_head, style, with_exits
from layer_nets import FORCE, REPRODUCERS, runs

from onnxslim.errors import PromiseBroken
from onnxslim.exits.nested_ifs import Exit, append_exits
from onnxslim.exits.operators import ScoreForm
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.records import Fidelity, PassResult
from onnxslim.runtime.measure import verify as verify_module
from onnxslim.runtime.measure.latency import RunTimes
from onnxslim.runtime.measure.verify import RuntimeProver
from onnxslim.runtime.measure.workload import FEWEST_ON_TOUR, TOUR, is_branching

X, LABELS = images(120, seed=4)


def leaving_together(threshold: float) -> Model:
    """An exit that a batch takes only as a whole."""
    proto = classifier()
    model, _ = with_exits(proto, [Exit(random_head(loaded(proto), "r1"), threshold)], style())
    return model


def begun(latency: bool = False, **options: object) -> RuntimeProver:
    prover = RuntimeProver(latency=latency, **options)  # type: ignore[arg-type]
    prover.begin(Model.load(classifier()))
    return prover


def middle() -> float:
    """A threshold at which some samples leave, and hardly a batch."""
    for threshold in (0.999, 0.99, 0.95, 0.9):
        found = answers(leaving_together(threshold), X, alone=True)
        left = (found != answers(classifier(), X, alone=True)).any(axis=1)
        if 0.2 < left.mean() < 0.9:
            return threshold
    raise AssertionError


def test_models_with_bodies_branch() -> None:
    assert not is_branching(Model.load(classifier()))
    assert is_branching(leaving_together(0.5))


def test_drift_is_that_of_samples_that_run_alone() -> None:
    candidate = leaving_together(middle())
    prover = begun(calibration={"x": X})
    found = prover.compare(candidate, Fidelity.LOSSY).original["y"].agreement
    own = answers(classifier(), X, alone=True).argmax(axis=1)
    alone = (answers(candidate, X, alone=True).argmax(axis=1) == own).mean()
    together = (answers(candidate, X).argmax(axis=1) == own).mean()
    assert alone < together
    assert found == pytest.approx(alone)


def test_accuracy_is_that_of_samples_that_run_alone() -> None:
    candidate = leaving_together(middle())
    prover = begun(evaluation={"x": X, "label": LABELS})
    alone = (answers(candidate, X, alone=True).argmax(axis=1) == LABELS).mean()
    assert prover.accuracy(candidate) == pytest.approx(alone)


@pytest.mark.parametrize("branches", [False, True])
def test_latency_is_the_mean_over_several_samples_where_a_model_branches(
    monkeypatch: pytest.MonkeyPatch, branches: bool
) -> None:
    seen: list[int] = []

    def spied(runs_: Sequence[Callable[[], object]], **_: object) -> RunTimes:
        for run in runs_:
            run()
        times = np.array([[8.0] * 6, [4.0] * 6])
        return RunTimes(times, times)

    inner = verify_module._around

    def around(session: object, tour: Sequence[object]) -> Callable[[], object]:
        seen.append(len(tour))
        return inner(session, tour)  # type: ignore[arg-type]

    monkeypatch.setattr(verify_module, "time_many", spied)
    monkeypatch.setattr(verify_module, "_around", around)
    prover = begun(latency=True, calibration={"x": X})
    before = Model.load(classifier())
    pair = prover.time(before, leaving_together(0.5) if branches else before)
    assert pair is not None
    assert pair.ratio == 2
    assert (seen[0] > 1) == branches
    assert pair.before.median == pytest.approx(8 / seen[0])
    if branches:
        assert FEWEST_ON_TOUR <= seen[0] <= TOUR


# ------------------------------------------------------------------- outputs that are added


@dataclass(frozen=True)
class AddOutput(Pass):
    """Return one more tensor, and say so or not."""

    name: ClassVar[str] = "inject-output"
    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    says_so: ClassVar[bool] = True

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        rw = Rewriter(graph)
        assert context.model is not None
        head = random_head(context.model.clone(), "r1")
        names = append_exits(rw, "y", [Exit(head, 0.5)], ScoreForm.LOGITS)
        rw.note("r1", "one more output", Fidelity.LOSSY)
        result = rw.result()
        return PassResult(result.changes, (), Fidelity.LOSSY, tuple(names) if self.says_so else ())


@dataclass(frozen=True)
class HideOutput(AddOutput):
    """The same in silence."""

    says_so: ClassVar[bool] = False


def run_pass(rewrite: Pass, source: onnx.ModelProto) -> Model:
    prover = begun(calibration={"x": X})
    context = Context(calibration=runs(X))
    manager = PassManager([rewrite])
    model = Model.load(source)
    return manager.run(model, context, prover=prover, policy=FORCE, reproducers=REPRODUCERS)[0]


def test_outputs_that_a_pass_says_it_adds_are_allowed() -> None:
    result = run_pass(AddOutput(), classifier())
    assert [tensor.name for tensor in result.graph.outputs] == ["y", "y_exit1"]


def test_outputs_that_a_pass_adds_in_silence_break_its_promise() -> None:
    with pytest.raises(PromiseBroken, match="changed the inputs or outputs"):
        run_pass(HideOutput(), classifier())

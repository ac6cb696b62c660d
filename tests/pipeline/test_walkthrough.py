"""Read this first: one pass, one prover, and one run of the manager, step by step.

A pass rewrites a graph and says what it did. The manager decides what becomes of that: it runs each
step on a copy, has the copy verified and timed by a prover, and keeps it or drops it. Everything
here is tiny and fake but the manager itself; `test_manager.py` has the cases in which a pass lies,
fails or does not pay, with onnxruntime as the prover.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import onnx_graphsurgeon as gs
import pytest

from onnxslim.errors import PromiseBroken
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.options import at_least, option
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.records import Fidelity, PassResult
from onnxslim.report import Comparison, Drift, Latency, LatencyPair
from support import parse

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 4] y) {
    a = Neg (x)
    b = Neg (a)
    c = Neg (b)
    d = Neg (c)
    y = Relu (d)
}"""
"""Two pairs of negations that cancel out, and a Relu."""


# A pass is a frozen dataclass. Its fields are its options; `name` is how a pipeline spells it, and
# `fidelity` is its promise: EXACT says that no bit of any output changes.


@dataclass(frozen=True)
class EliminateNegNeg(Pass):
    """Replace ``Neg(Neg(x))`` with ``x``."""

    name: ClassVar[str] = "eliminate-neg-neg"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT
    max_pairs: int = option(1000, at_least(1), "pairs to remove at most")

    def run(self, graph: gs.Graph, context: Context) -> PassResult:
        """The rewriter edits the graph, and keeps the list of changes that `result` returns."""
        rw = Rewriter(graph)
        for node in rw.walk("Neg"):
            inner = rw.producer(node.inputs[0], "Neg")
            if inner is not None and len(rw.result().changes) < self.max_pairs:
                rw.substitute(node, inner.inputs[0], "removed Neg(Neg(x))")
        return rw.result()


# A prover answers the manager's questions about models. The real one runs onnxruntime; this one
# writes each question down and gives the answer that the test prepared.


@dataclass
class FakeProver:
    """Says that outputs are equal and that the candidate takes `ms` milliseconds, before 1."""

    ms: float = 0.5
    broken: str | None = None
    asked: list[str] = field(default_factory=list)
    verified_on: str = "nothing at all"
    notes: list[str] = field(default_factory=list)

    def begin(self, original: Model) -> bool:
        """Would find inputs that the model accepts."""
        return True

    def compare(self, candidate: Model, fidelity: Fidelity) -> Comparison:
        """Would run the candidate and hold its outputs against the promise."""
        self.asked.append(f"are the outputs of {_ops(candidate)} {fidelity.name}?")
        equal = {"y": Drift(0.0, 0.0, float("inf"), 1.0, 1.0, 1.0, equal_bits=True)}
        return Comparison(equal, equal, self.broken)

    def why_not_same(self, before: Model, after: Model) -> str | None:
        """Would compare two models, for a pass that takes a lossless step of its own."""
        raise AssertionError

    def time(self, before: Model, after: Model) -> LatencyPair | None:
        """Would time both in turn."""
        self.asked.append(f"is {_ops(after)} faster than {_ops(before)}?")
        first, second = (Latency(ms, ms, ms, runs=10) for ms in (1.0, self.ms))
        ratio = 1 / self.ms
        return LatencyPair(first, second, ratio, low=ratio, high=ratio)

    def accuracy(self, model: Model) -> float | None:
        """There are no labels here."""
        return None

    def commit(self, model: Model) -> None:
        """Would compare later candidates with this model."""
        self.asked.append(f"from now on: {_ops(model)}")

    def check_file(self, path: Path, model: Model) -> None:
        """The manager writes no files, so it never asks."""
        raise AssertionError


def _ops(model: Model) -> str:
    return " ".join(node.op for node in model.graph.nodes)


def test_a_step_is_run_verified_judged_and_committed() -> None:
    source = Model.load(parse(TEXT))
    prover = FakeProver()

    result, reports = PassManager([EliminateNegNeg()]).run(source, prover=prover)

    # The manager asks three things of every step that changed something, in this order.
    assert prover.asked == [
        "are the outputs of Relu EXACT?",  # verify: the promise of the pass
        "is Relu faster than Neg Neg Neg Neg Relu?",  # judge: it pays, being smaller and faster
        "from now on: Relu",  # commit: the next step starts here
    ]
    # The step ran on a copy: the source is as it was.
    assert _ops(result) == "Relu"
    assert _ops(source) == "Neg Neg Neg Neg Relu"
    # The report says what was done and what was measured.
    (report,) = reports
    assert report.spec == "eliminate-neg-neg"
    assert report.committed
    assert [change.what for change in report.changes] == ["removed Neg(Neg(x))"] * 2
    assert report.latency is not None
    assert report.latency.is_faster


def test_the_next_step_starts_from_what_was_committed() -> None:
    prover = FakeProver()
    one = EliminateNegNeg(max_pairs=1)

    result, reports = PassManager([one, one, one]).run(Model.load(parse(TEXT)), prover=prover)

    assert [question for question in prover.asked if "from now on" in question] == [
        "from now on: Neg Neg Relu",
        "from now on: Relu",
    ]
    # The third step found nothing to do, so nobody was asked anything about it.
    assert [len(report.changes) for report in reports] == [1, 1, 0]
    assert _ops(result) == "Relu"


def test_a_step_that_makes_the_model_slower_is_dropped() -> None:
    source = Model.load(parse(TEXT))
    prover = FakeProver(ms=2.0)

    result, reports = PassManager([EliminateNegNeg()]).run(source, prover=prover)

    # Nothing is committed: the model that goes on is the one before the step, not a copy of it.
    assert result is source
    assert not reports[0].committed
    assert "would be slower: 1.00 -> 2.00 ms" in str(reports[0].why_not_committed)
    assert prover.asked[-1].startswith("is Relu faster")


def test_a_broken_promise_stops_the_run_and_leaves_a_reproducer(tmp_path: Path) -> None:
    prover = FakeProver(broken="moved output `y`")
    manager = PassManager([EliminateNegNeg()])

    with pytest.raises(PromiseBroken, match="`eliminate-neg-neg` broke its promise: it moved"):
        manager.run(Model.load(parse(TEXT)), prover=prover, reproducers=tmp_path)

    # The model right before the pass is saved, with the command that shows the failure again.
    saved = Model.load(tmp_path / "model-before-eliminate-neg-neg.onnx")
    assert _ops(saved) == "Neg Neg Neg Neg Relu"
    command = (tmp_path / "model-before-eliminate-neg-neg.txt").read_text()
    assert command.strip().endswith("--passes eliminate-neg-neg")


def test_without_a_prover_a_step_is_judged_by_its_bytes_alone() -> None:
    result, reports = PassManager([EliminateNegNeg()]).run(Model.load(parse(TEXT)))

    assert _ops(result) == "Relu"
    assert reports[0].comparison is None
    assert reports[0].latency is None

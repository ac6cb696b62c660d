from __future__ import annotations

import pytest

from onnxslim.errors import UsageError
from onnxslim.io.model import Model
from onnxslim.passes.simplify import MEMBERS, Simplify
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Pass
from onnxslim.records import Fidelity
from support import CONTEXT, assert_equivalent, parse


def test_members_are_passes_each_once() -> None:
    members = Simplify().members()
    assert all(isinstance(member, Pass) for member in members)
    assert tuple(member.name for member in members) == MEMBERS
    assert len(set(MEMBERS)) == len(MEMBERS)


def test_no_member_promises_less_than_the_preset() -> None:
    assert all(member.fidelity <= Simplify.fidelity for member in Simplify().members())


def test_skipped_members_are_left_out_and_the_order_stays() -> None:
    left = [member.name for member in Simplify(skip=("eliminate-identity",)).members()]
    assert left == [name for name in MEMBERS if name != "eliminate-identity"]


def test_spelling_with_skipped_members_parses_back() -> None:
    pipeline = parse_pipeline("simplify:skip=eliminate-identity+fold-constants")
    assert pipeline.passes == (Simplify(skip=("eliminate-identity", "fold-constants")),)
    assert parse_pipeline(str(pipeline)) == pipeline


def test_what_it_does_not_run_cannot_be_skipped() -> None:
    with pytest.raises(UsageError, match="Did you mean `eliminate-identity`"):
        Simplify(skip=("eliminate-idntity",))
    with pytest.raises(UsageError, match="leaves no pass to run"):
        Simplify(skip=MEMBERS)


def test_members_work_together_until_nothing_is_left_to_do() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] y)
        <float[3] a = {1, 2, 3}, float[3] b = {1, 2, 3}>
        {
            dead = Exp (x)
            sum = Add (a, b)
            i = Identity (x)
            c = Cast <to = 1> (i)
            s = Mul (c, sum)
            t = Mul (c, sum)
            y = Sub (s, t)
        }"""
    )
    result, (step,) = PassManager((Simplify(),)).run(Model.load(source), CONTEXT)
    assert [node.op for node in result.graph.nodes] == ["Mul", "Sub"]
    assert step.fidelity is Fidelity.EXACT
    assert_equivalent(source, result.to_proto(), Fidelity.EXACT)


def test_second_run_changes_nothing() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] y) {
            a = Identity (x)
            y = Relu (a)
        }"""
    )
    once, _ = PassManager((Simplify(),)).run(Model.load(source), CONTEXT)
    _, (step,) = PassManager((Simplify(),)).run(once, CONTEXT)
    assert step.changes == ()

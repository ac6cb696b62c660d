"""A few random models and node tests through every pass; `tests/fuzz.py` tries many."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
import random_bodies
from model_trials import try_model
from node_trials import node_tests, try_case
from random_graphs import Scope, Unfit
from random_models import NEWEST_OPSET, OLDEST_OPSET, drawn_model
from random_operators import OPERATORS
from rewrite_trials import Mode, Refused, Subject, Trial, distance_between
from trial_reduction import reduced

from onnxslim import passes
from onnxslim.graph.rewrite import Rewriter
from onnxslim.passes.fuse_casts import FuseCasts
from support import parse

del random_bodies  # enters its operators into the table


def operators_in_passes() -> Iterator[str]:
    """Every string in the sources of passes that is the name of an operator."""
    schemas = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    for path in Path(passes.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and node.value in schemas:
                yield str(node.value)


# ----------------------------------------------------------------- what is drawn


@pytest.mark.slow
def test_the_table_has_every_operator_that_a_pass_names() -> None:
    assert set(operators_in_passes()) <= set(OPERATORS)


def test_every_operator_of_the_table_can_be_drawn() -> None:
    missing = [op for op in OPERATORS if not is_drawn(op)]
    assert missing == []


def is_drawn(op: str) -> bool:
    opsets = range(NEWEST_OPSET, OLDEST_OPSET - 1, -1)
    for seed in range(12):
        for opset in opsets:
            scope = Scope(Random(seed), opset, takes_inputs=True)
            try:
                OPERATORS[op](scope, op)
            except Unfit:
                continue
            if any(node.op_type == op for node in scope.nodes):
                return True
    return False


def test_a_seed_gives_the_same_model_and_inputs_again() -> None:
    first, again, other = (drawn_model(seed) for seed in ("7", "7", "8"))
    assert first.model.SerializeToString() == again.model.SerializeToString()
    assert [distance_between(a, b) for a, b in zip(inputs(first), inputs(again), strict=True)] == [
        0.0 for _ in inputs(first)
    ]
    assert first.model.SerializeToString() != other.model.SerializeToString()


def inputs(drawn: object) -> list[np.ndarray]:
    groups = (drawn.plain, drawn.resized, drawn.special)  # type: ignore[attr-defined]
    return [array for group in groups for feed in group for array in feed.values()]


# ----------------------------------------------------------------- what is found


@pytest.mark.slow
def test_random_models_go_through_all_passes() -> None:
    results = [try_model(f"suite-{number}", reduce=False) for number in range(3)]
    assert [failure.detail for result in results for _, failure in result.found] == []
    assert sum(bool(result.refused) for result in results) <= 1


@pytest.mark.slow
def test_a_node_test_goes_through_all_passes() -> None:
    case = next(case for name, case in node_tests("clip").items() if name.startswith("test_clip"))
    result = try_case(case)
    assert not result.refused
    assert [failure.detail for _, failure in result.found] == []


MODEL = """<opset_import: ["" : 17]>
m (float[2, n] x, float[2, n] z) => (float[2, n] y, float[n, 2] t, float[2, n] u) {
    a = Relu (x)
    b = Sigmoid (a)
    y = Add (b, z)
    t = Transpose <perm = [1, 0]> (z)
    u = Neg (b)
}"""


def trial(mode: Mode = Mode.LOSSLESS) -> Trial:
    feeds = [
        {name: np.full((2, size), value, np.float32) for name in "xz"}
        for size, value in ((3, 1.0), (3, -1.0), (4, 2.0))
    ]
    return Trial(parse(MODEL).SerializeToString(), tuple(feeds), (), "dedup-nodes,fuse-casts", mode)


@pytest.fixture
def wrong_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fuse-casts` takes every Sigmoid for a Tanh."""

    def run(self: FuseCasts, graph: object, context: object) -> object:
        rw = Rewriter(graph)
        for node in list(graph.nodes):  # type: ignore[attr-defined]
            if node.op == "Sigmoid":
                rw.update(node, "is a Tanh", op="Tanh")
        return rw.result()

    monkeypatch.setattr(FuseCasts, "run", run)


def test_nothing_is_wrong_with_passes_that_hold_their_promise() -> None:
    assert trial().failure() is None
    assert trial(Mode.VERIFIED).failure() is None


@pytest.mark.usefixtures("wrong_pass")
def test_a_wrong_pass_is_found_and_its_model_made_small(tmp_path: Path) -> None:
    found = trial()
    failure = found.failure()
    assert failure is not None

    small, same = reduced(found, failure)

    assert small.pipeline == "fuse-casts"
    assert small.operators() == ["Sigmoid"]
    assert len(small.feeds) == 1
    small.save(tmp_path / "found.onnx", same)
    again = Trial.load(tmp_path / "found.onnx").failure()
    assert again is not None
    assert again.kind == same.kind


@pytest.mark.usefixtures("wrong_pass")
def test_what_the_verifier_objects_to_is_a_finding() -> None:
    failure = trial(Mode.VERIFIED).failure()
    assert failure is not None
    assert "exit 5" in failure.detail


def test_a_model_that_onnxruntime_refuses_is_no_subject() -> None:
    with pytest.raises(Refused):
        Subject(b"nothing", [{}])


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ([1.0, np.nan], [1.0, np.nan], 0.0),
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([np.inf], [1.0], np.inf),
        ([[1.0]], [1.0], np.inf),
    ],
)
def test_distance_counts_nan_as_equal_to_nan_and_shapes_as_apart(
    a: list[float], b: list[float], distance: float
) -> None:
    assert distance_between(np.array(a), np.array(b)) == distance


def test_distance_sees_the_sign_of_zero() -> None:
    assert distance_between(np.array([0.0]), np.array([-0.0])) > 0

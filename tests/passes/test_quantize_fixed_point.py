from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest
from coded_nets import KINDS, X, coded, dense, with_values
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_nets import (
    FORCE,
    net,
    node,
    normal,
    output_error,
    problems_of,
    rewritten,
    samples,
    weights_of,
    whats,
    whys,
)

from onnxslim.errors import UsageError
from onnxslim.io.model import Model
from onnxslim.lossy.problems import Problem
from onnxslim.passes.quantize_fixed_point import QuantizeFixedPoint
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context


def problem_of(weight: np.ndarray, x: np.ndarray | None = None) -> Problem:
    source = net([node("MatMul", ["x", "w"], "y")], {"w": weight}, ["N", len(weight)])
    (problem,) = problems_of(source, x)[0]
    return problem


def stored(weight: np.ndarray, **options: object) -> np.ndarray:
    """What a weight becomes without data."""
    made = QuantizeFixedPoint(**options)  # type: ignore[arg-type]
    return made.solve(problem_of(weight), 0).stored.dense()


# ------------------------------------------------------------------- fires


@settings(max_examples=40, deadline=None)
@given(st.integers(-3, 4), st.integers(-1, 10), st.integers(0, 100))
def test_values_are_on_the_grid_and_as_near_as_it_has_them(il: int, fl: int, seed: int) -> None:
    if not 2 <= il + fl <= 12:
        return
    weight = normal(30, 20, seed=seed)
    found = stored(weight, il=il, fl=fl, rounding="nearest").astype(np.float64)
    step = 2.0**-fl
    np.testing.assert_array_equal(found / step, np.rint(found / step))
    low, high = -(2.0 ** (il - 1)), 2.0 ** (il - 1) - step
    assert low <= found.min() <= found.max() <= high
    inside = np.clip(weight.astype(np.float64), low, high)
    assert np.abs(found - inside).max() <= step / 2


def test_half_a_step_goes_up() -> None:
    weight = np.array([[0.25, -0.25, 0.75, -0.75, 1.2, -1.3]], np.float32).T
    found = stored(weight, il=2, fl=1, rounding="nearest").ravel()
    assert found.tolist() == [0.5, 0.0, 1.0, -0.5, 1.0, -1.5]


def test_what_lies_outside_saturates() -> None:
    weight = np.array([[5.0, -5.0, 0.9, -1.0]], np.float32).T
    assert stored(weight, il=1, fl=3).ravel().tolist() == [0.875, -1.0, 0.875, -1.0]


@pytest.mark.parametrize(
    ("low", "high", "fl", "il"),
    [
        (-1.0, 0.5, 4, 1),
        (-0.5, 1.0, 4, 2),
        (-1.01, 0.5, 4, 2),
        (-0.1, 0.1, 6, -2),
        (-0.125, 0.1, 6, -2),
        (-0.125, 0.125, 6, -1),
        (-100.0, 3.0, 2, 8),
        (0.001, 0.001, 3, -1),
    ],
)
def test_integer_bits_are_the_fewest_that_hold_the_weight(
    low: float, high: float, fl: int, il: int
) -> None:
    problem = problem_of(np.array([[low], [high]], np.float32))
    assert str(QuantizeFixedPoint(fl=fl)._format(problem)) == f"<{il}, {fl}>"


@pytest.mark.parametrize("largest", [1e-6, 0.03, 0.1249, 0.125, 0.4, 1.0, 7.0, 1000.0])
def test_by_default_eight_bits_hold_the_weight(largest: float) -> None:
    weight = normal(40, 60)
    weight *= np.float32(largest) / np.abs(weight).max()
    found = stored(weight)
    assert len(np.unique(found)) <= 256
    step = np.diff(np.unique(found)).min()
    assert step < 1.01 * largest / 32
    assert np.abs(found - weight).max() <= step / 2


def test_stochastic_rounding_is_right_on_average_and_seeded() -> None:
    weight = np.full((40, 200), 0.3, np.float32)
    source = with_values(dense(), {})
    found = stored(weight, il=1, fl=2, rounding="stochastic")
    assert set(np.unique(found)) == {0.25, 0.5}
    assert found.mean() == pytest.approx(0.3, abs=0.005)
    on_grid = stored(np.rint(normal(40, 40) * 4) / 4, il=4, fl=2, rounding="stochastic")
    np.testing.assert_array_equal(on_grid, np.rint(normal(40, 40) * 4) / 4)

    def run(seed: int) -> bytes:
        manager = PassManager.parse("quantize-fixed-point:fl=3:rounding=stochastic")
        return manager.run(Model.load(source), Context(seed=seed), policy=FORCE)[0].to_bytes()

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_layers_do_not_share_their_random_numbers() -> None:
    nodes = [node("MatMul", ["x", "w"], "h"), node("MatMul", ["h", "v"], "y")]
    weights = {"w": normal(30, 30), "v": normal(30, 30)}
    source = net(nodes, weights, ["N", 30])
    model, _ = rewritten(source, None, "quantize-fixed-point:fl=2:rounding=stochastic")
    first, second = coded(model).values()
    assert not np.array_equal(first, second)


def test_feedback_beats_nearest_beats_stochastic() -> None:
    source = dense(60)
    errors = [
        output_error(
            source, rewritten(source, X, f"quantize-fixed-point:fl=2:rounding={way}")[0], X
        )
        for way in ("feedback", "nearest", "stochastic")
    ]
    assert errors[0] < 0.5 * errors[1]
    assert errors[1] < errors[2]


def test_with_data_values_come_near_the_best() -> None:
    ratios = []
    for seed in range(8):
        problem = problem_of(normal(5, 2, seed=seed), samples(100, 5, seed=seed, rank=2))
        (metric,), (target,) = problem.metrics, problem.target
        h = metric.times(np.eye(5))
        choices = np.array(list(product(np.arange(-4, 4) / 2, repeat=5)))
        best = 0.0
        for row in target:
            rest = row - choices
            best += float(np.einsum("ij,jk,ik->i", rest, h, rest).min())
        assert problem.energy is not None
        found = QuantizeFixedPoint(il=2, fl=1).solve(problem, 0)
        ratios.append(found.error / (best / problem.energy))
    assert np.median(ratios) < 2


# ------------------------------------------------------------------- what is stored


def test_few_values_are_a_table_of_those_that_are_used() -> None:
    model, reports = rewritten(dense(), None, "quantize-fixed-point:il=4:fl=1")
    (made,) = [n for n in model.graph.nodes if n.domain == "onnxslim"]
    assert made.op.startswith("Lookup")
    (values,) = coded(model).values()
    assert "960 weights as fixed-point numbers <4, 1>" in whats(reports)[0]
    assert len(np.unique(values)) < 20


@pytest.mark.parametrize("x", [None, X], ids=["no data", "data"])
def test_many_values_are_integers_and_a_scale(x: np.ndarray | None) -> None:
    source = dense(60)
    model, _ = rewritten(source, x, "quantize-fixed-point:il=4:fl=10")
    (made,) = [n for n in model.graph.nodes if n.domain == "onnxslim"]
    assert made.op == "FixedPoint"
    sizes = {t.name: (t.data_type, len(t.raw_data)) for t in model.to_proto().graph.initializer}
    assert sizes["w.codes"] == (onnx.TensorProto.INT16, 24 * 60 * 2)
    (values,) = coded(model).values()
    assert np.abs(values.T - weights_of(source)["y"][0]).max() <= (2**-11 if x is None else 2**-6)
    assert output_error(source, model, X) < 1e-6


# ------------------------------------------------------------------- declines


def test_more_than_sixteen_bits_are_declined() -> None:
    _, reports = rewritten(dense(), None, "quantize-fixed-point:fl=20")
    assert whys(reports) == ["it takes 23 bits as <3, 20>, and 16 are the most"]


def test_a_weight_that_would_vanish_is_declined() -> None:
    source = with_values(dense(), {"w": normal(24, 40) * np.float32(1e-3)})
    _, reports = rewritten(source, None, "quantize-fixed-point:fl=2")
    assert whys(reports) == ["it would become all zero as <0, 2>"]


@pytest.mark.parametrize(("il", "fl"), [(1, 0), (8, 9), (-3, 4)])
def test_formats_of_too_few_or_too_many_bits_are_refused(il: int, fl: int) -> None:
    with pytest.raises(UsageError, match=r"`il` and `fl` .* must make 2 to 16 bits"):
        QuantizeFixedPoint(il=il, fl=fl)


def test_half_precision_gains_nothing_from_integers() -> None:
    source, _ = KINDS["float16"]()
    _, reports = rewritten(source, None, "quantize-fixed-point:il=4:fl=10")
    assert "the weight takes 2,880" in whys(reports)[0]


# ------------------------------------------------------------------- edges


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "feedback"])
def test_pruned_weights_stay_pruned_in_one_pipeline(rounding: str) -> None:
    source = dense(60)
    pruned, _ = rewritten(source, X, "prune-weights:ratio=0.6")
    spec = f"quantize-fixed-point:fl=10:rounding={rounding}"
    model, _ = rewritten(source, X, "prune-weights:ratio=0.6", spec)
    values = coded(model).get("w")
    if values is None:  # the zeros are left out, instead
        values = weights_of(model)["y"][0].T
    assert not values.T[weights_of(pruned)["y"][0] == 0].any()


def test_integers_that_are_mostly_zero_are_stored_as_a_sparse_initializer() -> None:
    source = dense(100)
    spec = "quantize-fixed-point:il=4:fl=10"
    model, reports = rewritten(source, None, "prune-weights:ratio=0.9", spec)
    assert "as a sparse initializer" in whats(reports)[-1]
    values = weights_of(model)["y"] * 2**10
    np.testing.assert_array_equal(values, np.rint(values))


def test_large_weights_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    source = dense(50, 30)
    spec = "quantize-fixed-point:fl=3"
    whole = rewritten(source, None, spec)[0].to_bytes()
    monkeypatch.setattr("onnxslim.passes.quantize_fixed_point._CHUNK", 64)
    assert rewritten(source, None, spec)[0].to_bytes() == whole

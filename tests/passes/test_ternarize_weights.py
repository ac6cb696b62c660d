from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from coded_nets import X, coded, dense, tiny, with_values
from layer_nets import (
    net,
    node,
    normal,
    output_error,
    rewritten,
    samples,
    weights_of,
    whats,
    whys,
)

from onnxslim.lossy.problems import Problem
from onnxslim.passes.ternarize_weights import TernarizeWeights, _best_scale


def best_error(problem: Problem, *, symmetric: bool) -> float:
    """The least error of each row over all patterns, with the best scales: added up."""
    (metric,), (target,) = problem.metrics, problem.target
    columns = target.shape[1]
    h = metric.times(np.eye(columns))
    total = 0.0
    for row in target:
        best = float(row @ h @ row)
        for pattern in product((-1.0, 0.0, 1.0), repeat=columns):
            t = np.array(pattern)
            s = t[None] if symmetric else np.stack([np.minimum(t, 0), np.maximum(t, 0)])
            scales = np.linalg.lstsq(s @ h @ s.T, s @ h @ row, rcond=1e-12)[0]
            if scales.min() < 0:
                continue
            rest = row - scales @ s
            best = min(best, float(rest @ h @ rest))
        total += best
    return total


# ------------------------------------------------------------------- fires


@pytest.mark.parametrize("x", [None, X], ids=["no data", "data"])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_values_are_minus_a_zero_and_a(per: str, x: np.ndarray | None) -> None:
    model, reports = rewritten(dense(), x, f"ternarize-weights:per={per}")
    (values,) = coded(model).values()
    rows = values.T if per == "channel" else values.reshape(1, -1)
    for row in rows:
        levels = np.unique(row)
        assert len(levels) == 3
        assert levels[1] == 0
        assert levels[0] == -levels[2]
    assert "960 weights as −α, 0, α" in whats(reports)[0]


def test_five_weights_go_into_a_byte() -> None:
    model, _ = rewritten(dense(40, 25), None, "ternarize-weights:per=tensor")
    sizes = {t.name: len(t.raw_data) for t in model.to_proto().graph.initializer}
    assert sizes["w.codes"] == 200


@pytest.mark.parametrize("x", [None, X], ids=["no data", "data"])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_two_scales_do_no_worse_than_one(per: str, x: np.ndarray | None) -> None:
    source = with_values(dense(), {"w": np.abs(normal(24, 40)) - np.float32(0.5)})
    errors = [
        output_error(
            source, rewritten(source, x, f"ternarize-weights:per={per}:symmetric={s}")[0], X
        )
        for s in ("true", "false")
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_without_data_threshold_and_scale_are_the_best_there_are(
    seed: int, symmetric: bool
) -> None:
    problem = tiny(seed, 6)
    found = TernarizeWeights(symmetric=symmetric).solve(problem, 0)
    whole = float(np.square(problem.target).sum())
    expected = best_error(problem, symmetric=symmetric) / whole
    assert found.error == pytest.approx(expected, rel=1e-5)


def test_without_data_one_scale_for_all_is_the_best_there_is() -> None:
    for seed in range(4):
        problem = tiny(seed, 6)
        found = TernarizeWeights(per="tensor").solve(problem, 0)
        flat = np.sort(np.abs(problem.target).reshape(-1))[::-1]
        gain = np.square(np.cumsum(flat)) / np.arange(1, len(flat) + 1)
        whole = float(np.square(flat).sum())
        assert found.error == pytest.approx(1 - gain.max() / whole, rel=1e-5)


@pytest.mark.parametrize("chunk", [1 << 20, 4])
def test_weighted_scales_are_the_best_there_are(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxslim.passes.ternarize_weights._CHUNK", chunk)
    rng = np.random.default_rng(0)
    values, costs = rng.random((3, 9)), rng.random((3, 9))
    for row, cost, found in zip(values, costs, _best_scale(values, costs), strict=True):

        def error(scale: float, row: np.ndarray = row, cost: np.ndarray = cost) -> float:
            return float((cost * np.minimum(row, np.abs(row - scale)) ** 2).sum())

        assert error(float(found)) <= min(map(error, np.linspace(0, 1, 2001))) + 1e-12
    np.testing.assert_allclose(
        _best_scale(values, None), _best_scale(values, np.ones((3, 9))), rtol=1e-12
    )


@pytest.mark.parametrize("symmetric", [True, False])
def test_with_data_values_come_near_the_best(symmetric: bool) -> None:
    ratios = []
    for seed in range(8):
        problem = tiny(seed, 7, samples(100, 7, seed=seed, rank=3))
        assert problem.energy is not None
        found = TernarizeWeights(symmetric=symmetric).solve(problem, 0)
        best = best_error(problem, symmetric=symmetric) / problem.energy
        ratios.append(found.error / best)
    assert np.median(ratios) < 3


# ------------------------------------------------------------------- declines


def test_a_table_for_each_of_many_short_rows_is_declined_and_one_for_all_is_not() -> None:
    source = net(
        [node("Conv", ["x", "w"], "y", group=200)], {"w": normal(200, 1, 1, 3)}, ["N", 200, 3, 3]
    )
    _, reports = rewritten(source, None, "ternarize-weights")
    assert whys(reports) == ["codes and tables would take 2,720 bytes, the weight takes 2,400"]
    model, _ = rewritten(source, None, "ternarize-weights:per=tensor")
    assert len(coded(model)) == 1


# ------------------------------------------------------------------- edges


@pytest.mark.parametrize("x", [None, X], ids=["no data", "data"])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_pruned_weights_stay_pruned_in_one_pipeline(per: str, x: np.ndarray | None) -> None:
    source = dense(60)
    pruned, _ = rewritten(source, x, "prune-weights:ratio=0.6")
    model, _ = rewritten(source, x, "prune-weights:ratio=0.6", f"ternarize-weights:per={per}")
    (values,) = coded(model).values()
    (kept,) = weights_of(pruned).values()
    assert not values.T[kept[0] == 0].any()


def test_an_output_without_weights_stays_so() -> None:
    weight = normal(24, 40)
    weight[:, 5] = 0
    source = with_values(dense(), {"w": weight})
    for x in (None, X):
        model, _ = rewritten(source, x, "ternarize-weights")
        (values,) = coded(model).values()
        assert not values[:, 5].any()
        assert not np.signbit(values[:, 5]).any()


def test_large_weights_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    source = dense(50, 30)
    whole = {}
    for per in ("channel", "tensor"):
        whole[per] = rewritten(source, None, f"ternarize-weights:per={per}")[0].to_bytes()
    monkeypatch.setattr("onnxslim.passes.ternarize_weights._CHUNK", 64)
    monkeypatch.setattr("onnxslim.lossy.scaled_codebooks._CHUNK", 64)
    for per, expected in whole.items():
        assert rewritten(source, None, f"ternarize-weights:per={per}")[0].to_bytes() == expected

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from coded_nets import KINDS, X, coded, dense, tiny, with_values
from layer_nets import (
    dense_net,
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

from onnxslim.io.model import Model
from onnxslim.lossy.problems import Problem
from onnxslim.passes.binarize_weights import BinarizeWeights
from onnxslim.pipeline.grammar import parse_pipeline


def best_error(problem: Problem, bases: int) -> float:
    """The least error of each row that any signs have, with the best scales: added up."""
    (metric,), (target,) = problem.metrics, problem.target
    columns = target.shape[1]
    h = metric.times(np.eye(columns))
    total = 0.0
    signs = list(product((-1.0, 1.0), repeat=columns))
    for row in target:
        best = np.inf
        for chosen in product(signs, repeat=bases):
            s = np.array(chosen)
            scales = np.linalg.lstsq(s @ h @ s.T, s @ h @ row, rcond=1e-12)[0]
            rest = row - scales @ s
            best = min(best, float(rest @ h @ rest))
        total += best
    return total


# ------------------------------------------------------------------- fires


def test_each_output_gets_the_signs_of_its_weights_and_their_mean_magnitude() -> None:
    source = dense()
    model, reports = rewritten(source, None, "binarize-weights")
    (values,) = coded(model).values()
    (weight,) = weights_of(source).values()
    expected = np.sign(weight[0]) * np.abs(weight[0]).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(values.T, expected, rtol=1e-6)
    assert "960 weights as signs: 3.84 kB to 440 B; relative weight error" in whats(reports)[0]


@pytest.mark.parametrize("bases", [1, 2, 3, 4, 5])
def test_values_are_sums_of_so_many_signs(bases: int) -> None:
    model, _ = rewritten(dense(50), X, f"binarize-weights:bases={bases}")
    (values,) = coded(model).values()
    for row in values.T:
        levels = np.unique(row)
        assert len(levels) <= 2**bases
        np.testing.assert_allclose(levels, -levels[::-1] if bases == 1 else levels, atol=1e-6)


def test_each_base_lowers_the_error() -> None:
    source = dense(50)
    for x in (None, X):
        errors = [
            output_error(source, rewritten(source, x, f"binarize-weights:bases={m}")[0], X)
            for m in (1, 2, 3, 4)
        ]
        assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("seed", range(5))
def test_without_data_one_base_is_the_best_there_is(seed: int) -> None:
    problem = tiny(seed, 6)
    found = BinarizeWeights().solve(problem, 0)
    whole = float(np.square(problem.target).sum())
    assert found.error == pytest.approx(best_error(problem, 1) / whole, rel=1e-5)


@pytest.mark.slow
def test_without_data_two_bases_come_near_the_best() -> None:
    ratios = []
    for seed in range(10):
        problem = tiny(seed, 5)
        found = BinarizeWeights(bases=2).solve(problem, 0)
        best = best_error(problem, 2) / float(np.square(problem.target).sum())
        assert found.error >= best - 1e-7
        ratios.append(found.error / best)
    assert np.median(ratios) < 1.3


def test_with_data_signs_and_scales_come_near_the_best() -> None:
    ratios, plain = [], []
    for seed in range(10):
        x = samples(100, 8, seed=seed, rank=3)
        problem = tiny(seed, 8, x)
        assert problem.energy is not None
        found = BinarizeWeights().solve(problem, 0)
        # in the metric that it works with, which is shrunk for few samples
        change = problem.target[0] - found.stored.dense().T  # of a MatMul: (columns, rows)
        best = best_error(problem, 1)
        error = float(np.einsum("ij,ij->", problem.metrics[0].times(change), change))
        assert error >= best * (1 - 1e-6)
        ratios.append(error / best)
        (target,) = problem.target
        signs = np.where(target < 0, -1, 1) * np.abs(target).mean(axis=1, keepdims=True)
        plain.append(found.error / problem.relative_error(signs[None]))
    assert np.median(ratios) < 1.5
    assert max(plain) <= 1 + 1e-6
    assert np.median(plain) < 0.6


def test_inputs_become_signs_and_weights_are_fitted_to_them() -> None:
    source, x = dense_net(24, 48, 48, 40), samples(400, 24)
    model, (report,) = rewritten(source, x, "binarize-weights:activations=sign")
    ops = [n.op for n in model.graph.nodes if n.is_onnx]
    assert ops == ["Gemm", *["Relu", "Div", "Sign", "Mul", "Gemm"] * 2]
    assert sum("its input as signs times" in what for what in whats([report])) == 2
    (part,) = report.parts
    assert any("makes nothing faster" in note for note in part.notes)
    # signs between the float layers, and the codes of weights that know nothing of them
    float_inputs, _ = rewritten(source, x, "binarize-weights")
    apart = _with_signs_of(model, float_inputs)
    assert output_error(source, model, x) < 0.8 * output_error(source, apart, x)


def _with_signs_of(signed: Model, plain: Model) -> Model:
    """The nodes of `signed` with the codes, tables and biases of `plain`."""
    made = signed.clone()
    own, others = (
        [n for n in model.graph.nodes if n.op == "Gemm" or not n.is_onnx] for model in (made, plain)
    )
    for mine, theirs in zip(own, others, strict=True):
        for target, given in zip(mine.inputs, theirs.inputs, strict=True):
            if isinstance(given, gs.Constant):
                target.values = given.values
    return made


# ------------------------------------------------------------------- declines


def test_layers_that_keep_their_weights_keep_their_inputs() -> None:
    source = dense_net(24, 48, 48, 4)
    for step in ("binarize-weights:only=h1", "binarize-weights:skip=y", "binarize-weights"):
        model, reports = rewritten(source, None, f"{step}:activations=sign")
        coded_layers = {n.outputs[0].name for n in model.graph.nodes if _reads_codes(n)}
        signed = {n.outputs[0].name for n in model.graph.nodes if _reads_signs(n)}
        assert signed == coded_layers - {"h0"}, step
        assert ("y" in coded_layers) == ("y" in signed)
    _, reports = rewritten(
        source, None, "prune-weights:ratio=0.1", "binarize-weights:activations=sign"
    )
    assert not reports[-1].changes


def _reads_codes(n: gs.Node) -> bool:
    return n.op == "Gemm" and bool(n.inputs[1].inputs)


def _reads_signs(n: gs.Node) -> bool:
    return n.op == "Gemm" and [maker.op for maker in n.inputs[0].inputs] == ["Mul"]


@pytest.mark.parametrize("x", [None, X], ids=["no data", "data"])
def test_weights_with_zeros_are_declined(x: np.ndarray | None) -> None:
    _, reports = rewritten(dense(), x, "prune-weights:ratio=0.1", "binarize-weights")
    assert whys(reports) == ["it has zeros, which no sign stands for"]


def test_one_weight_an_output_is_declined() -> None:
    source = net(
        [node("Conv", ["x", "w"], "y", group=64)], {"w": normal(64, 1, 1, 1)}, ["N", 64, 3, 3]
    )
    _, reports = rewritten(source, None, "binarize-weights")
    assert whys(reports) == ["codes and tables would take 720 bytes, the weight takes 256"]


# ------------------------------------------------------------------- edges


def test_an_output_whose_inputs_are_dead_keeps_its_scale() -> None:
    x = samples(50, 16, 4, 4)
    x[:, 3] = 0
    source = net(
        [node("Conv", ["x", "w"], "y", group=16)], {"w": normal(16, 1, 3, 3)}, ["N", 16, 4, 4]
    )
    model, _ = rewritten(source, x, "binarize-weights")
    (values,) = coded(model).values()
    assert np.isfinite(values).all()
    scales = np.unique(np.abs(values[3]))
    np.testing.assert_allclose(scales, np.abs(weights_of(source)["y"][3]).mean(), rtol=1e-6)
    assert output_error(source, model, x) < 0.5


def test_a_single_output_needs_no_table_of_blocks() -> None:
    model, _ = rewritten(dense(1, 400), None, "binarize-weights")
    assert [f.name for f in model.graph.local_functions] == ["Lookup2"]


def test_half_precision_tables_go_with_half_precision_weights() -> None:
    source, x = KINDS["float16"]()
    model, _ = rewritten(source, x, "binarize-weights")
    types = {t.data_type for t in model.to_proto().graph.initializer if "table" in t.name}
    assert types == {onnx.TensorProto.FLOAT16}


def test_rows_of_zeros_elsewhere_do_not_matter_to_the_others() -> None:
    weight = normal(24, 40)
    weight[:, 7] = 1e-20
    source = with_values(dense(), {"w": weight})
    model, _ = rewritten(source, X, "binarize-weights")
    assert output_error(source, model, X) < 0.3


def test_the_spelling_is_read_back() -> None:
    made = BinarizeWeights(bases=3, skip=("h0",))
    assert str(made) == "binarize-weights:skip=h0:bases=3"
    assert parse_pipeline(str(made)).passes == (made,)

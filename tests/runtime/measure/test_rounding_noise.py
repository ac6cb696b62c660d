"""How much of a layer's error reaches the output, measured on real onnxruntime runs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from layer_nets import context, net, node, normal, output_error, outputs, samples

from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.lossy.error_gain import sensitivity, with_weight
from onnxslim.lossy.problems import Problem, Problems, Schedule, Target

X = samples(200, 1, 12)  # outputs of three axes are values, not class scores


def in_series(gain: float = 1.0) -> onnx.ModelProto:
    """Two layers after each other, and one beside them whose output counts `gain`-fold."""
    nodes = [
        node("MatMul", ["x", "u"], "a"),
        node("Relu", ["a"], "r"),
        node("MatMul", ["r", "v"], "b"),
        node("MatMul", ["x", "w"], "c"),
        node("Mul", ["c", "k"], "d"),
        node("Add", ["b", "d"], "y"),
    ]
    weights = {
        "u": normal(12, 12, scale=0.3),
        "v": normal(12, 5, seed=2, scale=0.3),
        "w": normal(12, 5, seed=3),
        "k": np.array(gain, np.float32),
    }
    return net(nodes, weights, ["N", 1, 12])


def problems(model: Model) -> dict[str, Problem]:
    schedule = Schedule(sequential=False, aim=Target.CURRENT)
    made = Problems(Rewriter(model.graph), context(model, X), schedule=schedule)
    return {problem.name: problem for problem in made}


def nudged(problem: Problem, size: float = 0.05, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(problem.target.shape)
    return np.asarray(problem.target + size * noise)


def test_of_the_last_layer_it_is_the_share_that_the_layer_has_in_the_output() -> None:
    model = Model.load(in_series(gain=0.0))
    found = problems(model)
    made = context(model, X)
    assert sensitivity(made, found["b"], nudged(found["b"])) == pytest.approx(1, rel=0.3)
    assert sensitivity(made, found["c"], nudged(found["c"])) == 0


def test_a_layer_counts_as_its_output_does() -> None:
    found = {}
    for gain in (0.1, 1.0):
        model = Model.load(in_series(gain))
        problem = problems(model)["c"]
        found[gain] = sensitivity(context(model, X), problem, nudged(problem))
    # the output is made of both, so that ten times as loud is less than a hundred times as much
    assert 3 * found[0.1] < found[1.0] < 100 * found[0.1]


def test_it_hardly_depends_on_the_size_or_kind_of_the_trial() -> None:
    model = Model.load(in_series())
    problem = problems(model)["a"]
    made = context(model, X)
    found = [sensitivity(made, problem, nudged(problem, size)) for size in (0.003, 0.01, 0.03)]
    found += [sensitivity(made, problem, nudged(problem, 0.01, seed)) for seed in range(1, 4)]
    assert max(found) < 2 * min(found)


def test_it_is_measured_on_the_samples_held_back() -> None:
    model = Model.load(in_series())
    problem = problems(model)["a"]
    trial = nudged(problem)
    changed = with_weight(context(model, X), problem, trial)
    expected = output_error(model, changed, X[1::5]) / problem.relative_error(trial)
    assert sensitivity(context(model, X), problem, trial) == pytest.approx(expected, rel=1e-4)


def test_a_trial_that_changes_nothing_says_nothing() -> None:
    model = Model.load(in_series())
    problem = problems(model)["a"]
    assert sensitivity(context(model, X), problem, problem.target) == 0


def test_the_trial_is_made_on_a_copy_with_biases_that_fit() -> None:
    weights = {"w": normal(12, 5), "b": normal(5, seed=2)}
    source = net([node("Gemm", ["x", "w", "b"], "y")], weights, ["N", 12])
    x = X[:, 0]
    model = Model.load(source)
    before = model.to_bytes()
    made = context(model, x)
    (problem,) = Problems(Rewriter(model.graph), made)
    changed = with_weight(made, problem, nudged(problem, 0.3))
    assert model.to_bytes() == before
    ref, new = outputs(model, x)["y"], outputs(changed, x)["y"]
    np.testing.assert_allclose(new.mean(axis=0), ref.mean(axis=0), atol=1e-4)
    assert np.abs(new - ref).max() > 0.1


def test_all_layers_that_share_a_weight_get_the_trial() -> None:
    nodes = [
        node("MatMul", ["x", "w"], "h"), node("Relu", ["h"], "r"), node("MatMul", ["r", "w"], "y")
    ]  # fmt: skip
    model = Model.load(net(nodes, {"w": normal(12, 12, scale=0.3)}, ["N", 1, 12]))
    made = context(model, X)
    (problem,) = Problems(Rewriter(model.graph), made)
    trial = nudged(problem, 0.01)
    changed = with_weight(made, problem, trial)
    weight = trial[0].T.astype(np.float32)
    np.testing.assert_allclose(
        outputs(changed, X)["y"], np.maximum(X @ weight, 0) @ weight, rtol=1e-3, atol=1e-4
    )
    assert sensitivity(made, problem, trial) > 0

"""Heads in closed form, held against plain least squares on features that fit into memory."""

from __future__ import annotations

import numpy as np
import pytest
from exit_nets import CLASSES, answers, answers_of, classifier, images, loaded
from layer_nets import node, runs

from onnxslim.errors import NotApplicable
from onnxslim.exits.heads import (
    Distillation,
    FittedHead,
    best_temperature,
    class_numbers,
    fit_heads,
    head_trials,
    network_logs,
    poolings,
)
from onnxslim.exits.operators import Confidence, Pooling, ScoreForm, confidences
from onnxslim.exits.points import ExitPoint, candidate_points, score_outputs
from onnxslim.io.model import Model

X, LABELS = images(1200)


def task(model: Model, kind: Confidence = Confidence.MAX_PROBABILITY) -> Distillation:
    return Distillation(model, "y", ScoreForm.LOGITS, kind)


def point_of(model: Model, tensor: str) -> ExitPoint:
    output = score_outputs(model.graph)[0]
    return next(p for p in candidate_points(model.graph, output) if p.tensor == tensor)


def fitted(tensor: str = "r1", *, hidden: bool = False, **more: np.ndarray) -> FittedHead:
    model = loaded(classifier())
    pooling = Pooling(point_of(model, tensor), (2, 2))
    (found,) = fit_heads(task(model), [pooling], runs({"x": X, **more}), hidden=hidden)
    return found


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def test_a_head_is_ridge_regression_to_the_softened_answers() -> None:
    found = fitted()
    proto = classifier(extra=[node("Identity", ["r1"], "seen")], outputs=("y", "seen"))
    tried = np.arange(len(X)) % 5 != 1
    maps = answers_of(proto, X, "seen").astype(np.float64)
    features = maps.reshape(len(X), 8, 2, 4, 2, 4).mean(axis=(3, 5)).reshape(len(X), -1)
    soft = softmax(answers(proto, X).astype(np.float64) / 4)
    mean, deviation = features[tried].mean(axis=0), features[tried].std(axis=0)
    z = (features - mean) / deviation
    goal = soft[tried].mean(axis=0)
    best: tuple[float, np.ndarray] | None = None
    for strength in 10.0 ** np.arange(-5, 2.1):
        second = z[tried].T @ z[tried] / tried.sum() + strength * np.eye(z.shape[1])
        weight = np.linalg.solve(second, z[tried].T @ (soft[tried] - goal) / tried.sum())
        error = np.square(z[~tried] @ weight + goal - soft[~tried]).sum(axis=1).mean()
        if best is None or error < best[0]:
            best = (error, weight)
    assert best is not None
    expected = best[1].T / deviation
    # the temperature is a common factor
    factor = np.vdot(found.head.weight, expected) / np.vdot(expected, expected)
    assert factor > 0
    np.testing.assert_allclose(found.head.weight / factor, expected, rtol=1e-3, atol=1e-5)
    spread = np.square(soft[~tried] - soft[~tried].mean(axis=0)).sum(axis=1).mean()
    assert found.error == pytest.approx(best[0] / spread, rel=1e-3)


def test_a_head_agrees_with_the_network_and_says_when_not_sure() -> None:
    found = fitted()
    assert found.agreement > 0.85
    sure = found.trial.confidence > np.median(found.trial.confidence)
    assert found.trial.agrees[sure].mean() > found.trial.agrees[~sure].mean()
    assert found.samples == 960


def test_labels_are_fitted_to_where_there_are_any() -> None:
    turned = (LABELS + 1) % CLASSES  # of another sense than the network's answers
    found = fitted(label=turned)
    assert found.agreement < 0.2
    right = fitted(label=LABELS)
    assert right.agreement > 0.8


def test_random_units_explain_more_than_features_alone() -> None:
    plain, more = fitted("r0"), fitted("r0", hidden=True)
    assert more.head.hidden is not None
    assert more.head.weight.shape == (CLASSES, 32 + 512)
    assert more.error < plain.error


def test_few_samples_are_warned_of_with_what_shows_it() -> None:
    found = fitted("r0", hidden=True)
    assert found.warning is not None
    assert "has 544 features and was fitted to 960 samples, fewer than 20" in found.warning
    assert f"agrees with the network for {100 * found.agreement:.1f} %" in found.warning
    assert fitted().warning is None


def test_judging_is_what_the_graph_computes() -> None:
    model = loaded(classifier())
    (found,) = fit_heads(
        task(model), [Pooling(point_of(model, "r1"), (2, 2))], runs(X), hidden=False
    )
    for kind in Confidence:
        (seen,) = head_trials(task(model, kind), [found.head], runs(X)).heads
        assert seen.confidence.min() >= -1e-6
        assert seen.confidence.max() <= 1 + 1e-6
        assert len(seen.agrees) == len(X)


@pytest.mark.parametrize("kind", Confidence)
def test_confidence_is_one_where_one_class_is_certain_and_least_where_all_are_alike(
    kind: Confidence,
) -> None:
    found = confidences(np.array([[50.0, 0, 0], [1.0, 1, 1], [2.0, 0, -1]]), kind)
    assert found[0] == pytest.approx(1)
    assert found[1] == pytest.approx(1 / 3 if kind is Confidence.MAX_PROBABILITY else 0, abs=1e-9)
    assert found[1] < found[2] < found[0]


@pytest.mark.parametrize("true", [0.02, 1.0, 30.0])
def test_the_temperature_is_found(true: float) -> None:
    logits = np.random.default_rng(0).standard_normal((500, 5))
    assert best_temperature(logits * true, softmax(logits)) == pytest.approx(true, rel=1e-2)


def test_every_form_of_scores_gives_the_same_probabilities() -> None:
    logits = np.random.default_rng(0).standard_normal((20, 6))
    p = softmax(logits)
    for form, scores in (
        (ScoreForm.LOGITS, logits),
        (ScoreForm.PROBABILITIES, p),
        (ScoreForm.LOG_PROBABILITIES, np.log(p)),
    ):
        np.testing.assert_allclose(np.exp(network_logs(scores, form)), p, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "cells"),
    [
        (("N", 8, 8, 8), [(1, 1), (2, 2), (4, 4), (7, 7)]),
        (("N", 8, 3, 8), [(1, 1), (2, 2), (3, 4), (3, 7)]),
        (("N", 128, 8, 8), [(1, 1), (2, 2)]),
        (("N", 4096, 8, 8), [(1, 1)]),
        (("N", 8, "H", "W"), [(1, 1)]),
        (("N", 8, 1, 1), [(1, 1)]),
    ],
)
def test_grids_are_as_fine_as_the_map_and_the_number_of_features_allow(
    shape: tuple[int | str, ...], cells: list[tuple[int, ...]]
) -> None:
    found = poolings(ExitPoint("t", shape, is_map=True, share=0.5))
    assert [pooling.cells for pooling in found] == cells


@pytest.mark.parametrize(("size", "cells"), [(7, 4), (7, 2), (8, 4), (5, 3), (28, 7)])
def test_a_grid_covers_the_map_with_so_many_cells(size: int, cells: int) -> None:
    pooling = Pooling(ExitPoint("t", ("N", 1, size), is_map=True, share=None), (cells,))
    (kernel,), (stride,) = pooling.kernel, pooling.strides
    assert (size - kernel) // stride + 1 == cells
    assert (cells - 1) * stride + kernel == size


@pytest.mark.parametrize(
    "labels", [np.array([0, 4]), np.array([-1, 0]), np.array([0.5, 1]), np.zeros((2, 3), int)]
)
def test_labels_that_are_no_classes_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(NotApplicable, match="no class numbers from 0 to 3"):
        class_numbers(labels, 4)


def test_one_hot_labels_are_understood() -> None:
    assert class_numbers(np.eye(4)[[2, 0]], 4).tolist() == [2, 0]

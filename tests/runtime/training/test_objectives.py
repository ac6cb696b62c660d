"""The distance of outputs from a teacher's is what the rest of the package measures."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.analysis.output_parts import OutputPart
from onnxslim.records import OutputKind
from onnxslim.runtime.measure.output_divergence import DivergenceMeter

torch = pytest.importorskip("torch", reason="training needs the extra `train`")
from onnxslim.runtime.training.objectives import OutputObjective, objectives_of  # noqa: E402

RNG = np.random.default_rng(0)
WANTED = RNG.standard_normal((40, 7)).astype(np.float32)
FOUND = WANTED + 0.1 * RNG.standard_normal(WANTED.shape).astype(np.float32)


def distance(
    objective: OutputObjective,
    found: np.ndarray,
    wanted: np.ndarray,
    counts: np.ndarray | None = None,
    temperature: float | None = 1.0,
) -> float:
    objective.observe(wanted)
    objective.settle()
    mask = None if counts is None else torch.from_numpy(counts)
    made = objective.distance(torch.from_numpy(found), torch.from_numpy(wanted), mask, temperature)
    return float(made)


def measured(kind: OutputKind, found: np.ndarray, wanted: np.ndarray) -> float:
    meter = DivergenceMeter(kind)
    meter.update(wanted, found)
    return meter.divergence


def softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(shares / shares.sum(-1, keepdims=True))


@pytest.mark.parametrize("kind", [OutputKind.CLASSES, OutputKind.TOKEN_LOGITS])
def test_scores_are_compared_as_they_are_measured(kind: OutputKind) -> None:
    made = distance(OutputObjective("y", kind), FOUND, WANTED)
    assert made == pytest.approx(measured(kind, FOUND, WANTED), rel=1e-4)


def test_probabilities_are_compared_as_their_logits() -> None:
    made = distance(OutputObjective("y", OutputKind.CLASSES), softmax(FOUND), softmax(WANTED))
    assert made == pytest.approx(measured(OutputKind.CLASSES, FOUND, WANTED), rel=1e-3)


def test_a_temperature_leaves_the_size_of_a_small_distance() -> None:
    """T² times the divergence of scores by T goes to half the variance of the difference."""
    off = (FOUND - WANTED) - (FOUND - WANTED).mean(-1, keepdims=True)
    limit = 0.5 * np.square(off).mean(-1).mean()
    made = distance(OutputObjective("y", OutputKind.CLASSES), FOUND, WANTED, temperature=50.0)
    assert made == pytest.approx(limit, rel=0.05)


def test_scores_of_many_labels_are_values() -> None:
    shares = 1 / (1 + np.exp(-WANTED))
    objective = OutputObjective("y", OutputKind.CLASSES)
    distance(objective, shares, shares)
    assert objective.kind is OutputKind.VALUES


def test_masked_scores_are_left_out_of_the_divergence() -> None:
    wanted, found = WANTED.copy(), FOUND.copy()
    wanted[:, 0] = found[:, 0] = -np.inf
    kind = OutputKind.CLASSES
    expected = distance(OutputObjective("y", kind), found[:, 1:], wanted[:, 1:])
    assert distance(OutputObjective("y", kind), found, wanted) == pytest.approx(expected, rel=1e-3)


def test_values_are_measured_by_their_variance_each_part_alone() -> None:
    boxes = np.concatenate([100 * WANTED, WANTED], -1)
    off = boxes + np.concatenate([FOUND - WANTED, FOUND - WANTED], -1)
    cuts = [(slice(None), slice(0, 7)), (slice(None), slice(7, None))]
    parts = [OutputPart("y", cut) for cut in cuts]
    made = objectives_of(["y"], {}, {"y": parts})
    first, second = (distance(item, off, boxes) for item in made)
    assert first == pytest.approx(second / 1e4, rel=1e-3)


def test_padding_does_not_count() -> None:
    wanted = RNG.standard_normal((4, 5, 6)).astype(np.float32)
    found = wanted.copy()
    counts = np.ones((4, 5), bool)
    counts[:, 3:] = False
    found[:, 3:] += 1
    kind = OutputKind.HIDDEN_STATES
    assert distance(OutputObjective("y", kind), found, wanted, counts) == pytest.approx(0, abs=1e-5)
    assert distance(OutputObjective("y", kind), found, wanted) > 0.1


def test_embeddings_count_by_direction_and_size() -> None:
    kind = OutputKind.EMBEDDING
    assert distance(OutputObjective("y", kind), WANTED, WANTED) == pytest.approx(0, abs=1e-5)
    assert distance(OutputObjective("y", kind), 2 * WANTED, WANTED) == pytest.approx(1, rel=1e-3)
    assert distance(OutputObjective("y", kind), -WANTED, WANTED) == pytest.approx(6, rel=1e-3)


def test_discrete_outputs_have_no_distance() -> None:
    assert objectives_of(["y"], {"y": OutputKind.DISCRETE}, {}) == []


def test_classes_are_softened_where_no_temperature_is_given_and_tokens_are_not() -> None:
    for kind, own in ((OutputKind.CLASSES, 4.0), (OutputKind.TOKEN_LOGITS, 1.0)):
        made = distance(OutputObjective("y", kind), FOUND, WANTED, temperature=None)
        wanted = distance(OutputObjective("y", kind), FOUND, WANTED, temperature=own)
        assert made == wanted
        assert made != distance(OutputObjective("y", kind), FOUND, WANTED, temperature=2.0)

"""Kullback-Leibler divergence of rows of scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from onnxslim.records import OutputKind
from onnxslim.runtime.measure import row_divergences
from onnxslim.runtime.measure.drift import DriftMeter
from onnxslim.runtime.measure.output_divergence import DivergenceMeter
from onnxslim.runtime.measure.row_divergences import RowDivergences


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 40))
def test_it_is_the_relative_entropy_of_the_probabilities(seed: int, rows: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    ref = rng.normal(size=(2, rows, width)) * 3
    new = ref + rng.normal(size=ref.shape)
    p, q = special.softmax(ref, axis=-1), special.softmax(new, axis=-1)
    rows_of = (np.reshape(x, (-1, width)) for x in (p, q))
    nats = np.array([stats.entropy(*pair) for pair in zip(*rows_of, strict=True)])
    for first, second in ((ref, new), (p, q), (np.log(p), np.log(q)), (ref + 7, new - 2)):
        found = RowDivergences()
        found.update(first[:1], second[:1])
        found.update(first[1:], second[1:])
        assert found.mean == pytest.approx(nats.mean(), rel=1e-6, abs=1e-12)
        assert found.largest == pytest.approx(nats.max(), rel=1e-6, abs=1e-12)
        assert found.agreement == (ref.argmax(-1) == new.argmax(-1)).mean()


def test_it_does_not_depend_on_the_size_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    ref, new = rng.normal(size=(2, 50, 9))
    figures = []
    for chunk in (1, 100, 1 << 18):
        monkeypatch.setattr(row_divergences, "_CHUNK", chunk)
        found = RowDivergences()
        found.update(ref, new)
        figures.append((found.mean, found.largest, found.agreement, found.expected_agreement))
    assert figures[0] == pytest.approx(figures[1])
    assert figures[0] == pytest.approx(figures[2])


def test_divergences_are_figures_of_token_logits_alone() -> None:
    ref, new = np.random.default_rng(2).normal(size=(2, 4, 5, 7)).astype(np.float32)
    for kind in OutputKind:
        drift, distance = DriftMeter(kind), DivergenceMeter(kind)
        drift.update(ref, new)
        distance.update(ref, new)
        is_tokens = kind is OutputKind.TOKEN_LOGITS
        for found in (drift.result(), distance.figures):
            assert (found.mean_kl is not None) == (found.largest_kl is not None) == is_tokens
            assert (found.agreement is not None) == kind.is_scores
            assert (found.mean_cosine is not None) == kind.is_directions
        assert drift.result().mean_kl == distance.figures.mean_kl


def test_token_logits_that_are_lost_are_infinitely_far() -> None:
    ref = np.ones((1, 2, 3), np.float32)
    new = ref.copy()
    new[0, 0, 0] = np.nan
    drift, distance = DriftMeter(OutputKind.TOKEN_LOGITS), DivergenceMeter(OutputKind.TOKEN_LOGITS)
    drift.update(ref, new)
    distance.update(ref, new)
    assert drift.result().mean_kl == distance.figures.mean_kl == np.inf

"""MiniLM with half of the units of its feed-forward layers and half of its heads, then distilled.

Sentences are those that `benchmarks.models.sentence_encoder` finds; those that are measured are in
neither of the two sets that the passes see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.models.sentence_encoder import Arrays, model_file, sentences, tokenized
from benchmarks.reporting import Found
from benchmarks.retraining.runs import Plan, compressed, kept, times_faster
from onnxslim.io.model import Model
from onnxslim.runtime.session import open_session

TESTED, FITTED, TRAINED = 200, 200, 1600
RATIOS: Final = {"half": 0.5}
EPOCHS: Final = (1, 3)


def plans(seed: int) -> Iterator[Plan]:
    """All rows of one seed, which also draws the sentences."""
    for name, ratio in RATIOS.items():
        yield Plan(f"{name}, closed form", seed, partial(_closed, seed, ratio))
        for epochs in EPOCHS:
            yield Plan(
                f"{name}, distilled {epochs}", seed, partial(_distilled, seed, ratio, epochs)
            )


def _drawn(seed: int) -> tuple[list[Arrays], list[Arrays], list[Arrays]]:
    """Sentences to measure on, to fit to, and to train on."""
    found = tokenized(sentences(TESTED + FITTED + TRAINED, seed))
    return (
        list(found[:TESTED]),
        list(found[TESTED : TESTED + FITTED]),
        list(found[TESTED + FITTED :]),
    )


def _spec(ratio: float) -> str:
    return f"prune-channels:ratio={ratio:g}"


def _pruned(seed: int, ratio: float) -> Path:
    def made() -> Model:
        fitted = _drawn(seed)[1]
        pipeline = f"simplify,{_spec(ratio)}"
        return compressed(model_file(), pipeline, calibration=fitted, seed=seed).model

    return kept(f"minilm_{seed}_{ratio:g}", made)


def _closed(seed: int, ratio: float) -> Found:
    tested, fitted, _ = _drawn(seed)
    pipeline = f"simplify,{_spec(ratio)}"
    found = compressed(model_file(), pipeline, calibration=fitted, seed=seed)
    return {**found.about(), "sentences": 0, **_figures(tested, found.model)}


def _distilled(seed: int, ratio: float, epochs: int) -> Found:
    tested, _, trained = _drawn(seed)
    found = compressed(
        _pruned(seed, ratio),
        f"finetune:teacher={model_file()}:epochs={epochs}",
        training=trained,
        seed=seed,
    )
    whole = f"simplify,{_spec(ratio)},finetune:epochs={epochs}"
    about = {**found.about(), "pipeline": whole, "sentences": len(trained)}
    return {**about, **_figures(tested, found.model)}


def _figures(tested: Sequence[Arrays], model: Model) -> Found:
    original = Model.load(model_file())
    pairs = zip(embeddings(original, tested), embeddings(model, tested), strict=True)
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs]
    return {
        "bytes": len(model.to_bytes()),
        "bytes_before": model_file().stat().st_size,
        "cosine": round(float(np.mean(cosines)), 4),
        "least": round(min(cosines), 4),
        "faster": times_faster(model_file(), model, tested[0]),
    }


def embeddings(model: Model, samples: Sequence[Arrays]) -> list[np.ndarray]:
    """The mean of the last hidden states of each sentence."""
    with open_session(model, threads=1) as session:
        return [session.run(sample)["last_hidden_state"][0].mean(axis=0) for sample in samples]

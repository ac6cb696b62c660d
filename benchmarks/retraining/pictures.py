"""EfficientNet-lite0 at 0.6 of its work, distilled on what photographs packages ship."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.models.efficientnet_lite import HELD_OUT, TRAINED_ON, crops, model_file
from benchmarks.reporting import Found
from benchmarks.retraining.runs import Plan, compressed, kept, times_faster
from onnxslim.io.model import Model
from onnxslim.runtime.session import open_session

SHARE: Final = 0.6
FITTED, TRAINED, TESTED = 150, 450, 250  # crops
EPOCHS: Final = (3,)
BATCH: Final = 25
_FITTED_SEED, _TRAINED_SEED, _TESTED_SEED = 1, 2, 3  # with the seed of the row


def plans(seed: int) -> Iterator[Plan]:
    """All rows of one seed, which also draws the crops."""
    yield Plan("closed form", seed, partial(_closed, seed))
    for epochs in EPOCHS:
        yield Plan(f"distilled {epochs}", seed, partial(_distilled, seed, epochs))


def _drawn(seed: int, kind: int, count: int) -> dict[str, np.ndarray]:
    names = HELD_OUT if kind == _TESTED_SEED else TRAINED_ON
    return {"pixels": crops(names, count, 10 * seed + kind)}


def _pipeline() -> str:
    return f"simplify,prune-channels:macs={SHARE:g}"


def _pruned(seed: int) -> Path:
    def made() -> Model:
        fitted = _drawn(seed, _FITTED_SEED, FITTED)
        return compressed(model_file(), _pipeline(), calibration=fitted, seed=seed).model

    return kept(f"efficientnet_lite0_{seed}_{SHARE:g}", made)


def _closed(seed: int) -> Found:
    fitted = _drawn(seed, _FITTED_SEED, FITTED)
    found = compressed(model_file(), _pipeline(), calibration=fitted, seed=seed)
    return {**found.about(), **_figures(seed, found.model)}


def _distilled(seed: int, epochs: int) -> Found:
    found = compressed(
        _pruned(seed),
        f"finetune:teacher={model_file()}:epochs={epochs}",
        training=_drawn(seed, _TRAINED_SEED, TRAINED),
        seed=seed,
    )
    about = {**found.about(), "pipeline": f"{_pipeline()},finetune:epochs={epochs}"}
    return {**about, **_figures(seed, found.model)}


def _figures(seed: int, model: Model) -> Found:
    """How often both models give the same first answer on crops of photographs held out."""
    tested = _drawn(seed, _TESTED_SEED, TESTED)["pixels"]
    pairs = [answers(item, tested) for item in (Model.load(model_file()), model)]
    return {
        "photographs": [len(TRAINED_ON), len(HELD_OUT)],
        "crops": [TRAINED, TESTED],
        "agreement": round(100 * float((pairs[0] == pairs[1]).mean()), 1),
        "faster": times_faster(model_file(), model, {"pixels": tested[:1]}),
    }


def answers(model: Model, pixels: np.ndarray) -> np.ndarray:
    """The class with the largest score of each picture."""
    with open_session(model, threads=1) as session:
        runs = [session.run({"pixels": part}) for part in np.array_split(pixels, BATCH)]
    return np.concatenate([run["logits"].argmax(axis=1) for run in runs])

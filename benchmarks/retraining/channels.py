"""ResNet-14 on Fashion-MNIST with fewer channels: closed form, distillation, and the baselines."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import onnxslim.graph.counts as counting
from benchmarks.reporting import Found
from benchmarks.retraining.runs import Plan, Subject, compressed, kept, times_faster
from benchmarks.retraining.scratch import from_scratch
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes

NET: Final = "resnet14"
SHARES: Final = (0.5, 0.3, 0.15, 0.1)
EPOCHS: Final = (1, 3, 10)
PICTURES: Final = 20_000  # without labels, to distil on
BASELINE_EPOCHS: Final = 3
CLOSED: Final = "closed form"
BASELINES: Final = {
    "random channels": "criterion=random:scope=layer",
    "l1, not refitted": "criterion=l1:scope=layer:reconstruct=false",
}
SAME_EPOCHS, SAME_WORK = "from scratch, as many epochs", "from scratch, as much work"


def plans(seed: int) -> Iterator[Plan]:
    """All rows of one seed."""
    subject = Subject.of(NET, seed)
    yield Plan("original", seed, partial(_original, subject))
    for share in SHARES:
        yield Plan(_named(share, CLOSED), seed, partial(_closed, subject, share))
    for epochs in EPOCHS:
        for share in SHARES:
            name = _named(share, distilled(epochs))
            yield Plan(name, seed, partial(_distilled, subject, share, "", epochs))
    for share in SHARES:
        for baseline, options in BASELINES.items():
            name = _named(share, baseline)
            yield Plan(name, seed, partial(_closed, subject, share, options))
            name = _named(share, f"{baseline}, {distilled(BASELINE_EPOCHS)}")
            yield Plan(name, seed, partial(_distilled, subject, share, options, BASELINE_EPOCHS))
    for name, is_by_work in ((SAME_EPOCHS, False), (SAME_WORK, True)):
        for share in reversed(SHARES):
            measure = partial(_scratch, subject, share, is_by_work=is_by_work)
            yield Plan(_named(share, name), seed, measure)


def distilled(epochs: int) -> str:
    """How rows of distillation are called."""
    return f"distilled {epochs}"


def _named(share: float, setting: str) -> str:
    return f"macs {share:g}, {setting}"


def _original(subject: Subject) -> Found:
    return {"error": subject.error(subject.original), "macs_left": 1.0}


def _spec(share: float, options: str) -> str:
    return ":".join(filter(None, ("prune-channels", f"macs={share:g}", options)))


def _pruned(subject: Subject, share: float, options: str = "") -> Path:
    """The file that distillation begins with."""

    def made() -> Model:
        pipeline = f"simplify,{_spec(share, options)}"
        calibration = subject.calibration()
        found = compressed(subject.original, pipeline, calibration=calibration, seed=subject.seed)
        return found.model

    return kept(_file_name(subject, share, options), made)


def _file_name(subject: Subject, share: float, options: str) -> str:
    words = _spec(share, options).replace(":", "_").replace("=", "_")
    return f"{NET}_{subject.seed}_{words}"


def _closed(subject: Subject, share: float, options: str = "") -> Found:
    pipeline = f"simplify,{_spec(share, options)}"
    found = compressed(
        subject.original, pipeline, calibration=subject.calibration(), seed=subject.seed
    )
    kept(_file_name(subject, share, options), lambda: found.model)  # to begin with
    return {**found.about(), **_figures(subject, share, found.model)}


def _distilled(subject: Subject, share: float, options: str, epochs: int) -> Found:
    pruned = _pruned(subject, share, options)
    found = compressed(
        pruned,
        f"finetune:teacher={subject.original}:epochs={epochs}",
        training=subject.training(PICTURES),
        seed=subject.seed,
    )
    whole = f"simplify,{_spec(share, options)},finetune:epochs={epochs}"
    about = {**found.about(), "pipeline": whole}
    return {**about, "pictures": PICTURES, **_figures(subject, share, found.model)}


def _scratch(subject: Subject, share: float, *, is_by_work: bool) -> Found:
    pruned = _pruned(subject, share)
    work = _macs_left(subject, Model.load(pruned)) if is_by_work else 1.0
    found = from_scratch(subject, pruned, work=work)
    return {
        "cpu": round(found.cpu, 1),
        "epochs": found.epochs,
        "pictures": len(subject.data.train.label),
        "share": share,
        "error": subject.error(found.model),
    }


def _figures(subject: Subject, share: float, model: Model) -> Found:
    return {
        "share": share,
        "macs_left": round(_macs_left(subject, model), 4),
        "error": subject.error(model),
        "faster": times_faster(subject.original, model, subject.sample()),
    }


def _macs_left(subject: Subject, model: Model) -> float:
    return _macs(model) / _macs(Model.load(subject.original))


def _macs(model: Model) -> int:
    copy = model.clone()
    infer_shapes(copy)
    found = counting.count_macs(copy.graph)
    assert found is not None
    return found

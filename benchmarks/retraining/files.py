"""LeNet-5 and LeNet-300-100 as packed files: pruned and clustered, with and without training."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.reporting import Found
from benchmarks.retraining.runs import Compressed, Plan, Subject, compressed
from onnxslim.tools.pack import pack

PICTURES, FITTED = 50_000, 10_000  # to distil on; for closed forms, others
_PRUNING: Final = "steps=2:finetune=4"
_CLUSTERING: Final = "finetune=2"
_FEATURES: Final = "features"  # where LeNet-5 has its convolutions
_BIASES: Final = 16  # values
_BEFORE: Final = 2.5  # times the weights that stay are left by the first of two prunings
_TURNS: Final = ("finetune=2:training='batch=64'", "finetune=4:training='batch=64'")
_MOVING: Final = "finetune=2:training='codes=move:batch=128'"
_STAGED_GROWING: Final = "finetune=20:training='zeros=grow:start=original:batch=128:only={only}'"
_SHIFTED: Final = "batch=128:temperature=1:augment=shift:augment-strength=0.3"
_GROWING: Final = f"training='zeros=grow:start=original:{_SHIFTED}'"
_GROWN_MOVING: Final = f"training='codes=move:{_SHIFTED}:learning-rate=0.0002'"
_GROWN_EPOCHS: Final = {"lenet300": (20, 4), "lenet5": (16, 3)}  # those of LeNet-5 take longer
_CONVOLUTIONS: Final = "finetune=3:training='batch=128'"
_STAGED_MOVING: Final = "finetune=1.5:training='codes=move:batch=128'"
STAGED_PICTURES, STAGED_FITTED = 60_000, 5_000  # the latter are among the former
UNTRAINED, LABELS, DISTILLED = "not trained", "with labels", "distilled"
MOVED: Final = "distilled, codes move"
STAGED: Final = "distilled in stages"
GROWN: Final = "distilled, zeros grow"


@dataclass(frozen=True)
class Level:
    """How much of a net is left.

    Attributes:
        name: of the level.
        kept: share of the weights of each layer that stays, by the beginning of its name.
        values: of each layer's table, zero among them.
    """

    name: str
    kept: Mapping[str, float]
    values: Mapping[str, int]


def _lenet300(name: str, kept: tuple[float, ...], values: tuple[int, ...]) -> Level:
    layers = ("layers.0", "layers.2", "layers.4")
    return _level(name, layers, kept, values)


def _lenet5(name: str, kept: tuple[float, ...], values: tuple[int, ...]) -> Level:
    layers = ("features.0", "features.2", "head.0", "head.3")
    return _level(name, layers, kept, values)


def _level(
    name: str, layers: tuple[str, ...], kept: tuple[float, ...], values: tuple[int, ...]
) -> Level:
    return Level(name, dict(zip(layers, kept, strict=True)), dict(zip(layers, values, strict=True)))


LEVELS: Final = {
    "lenet300": (
        _lenet300("mild", (0.08, 0.3, 0.9), (8, 8, 16)),
        _lenet300("middle", (0.035, 0.12, 0.6), (8, 8, 16)),
        _lenet300("strong", (0.023, 0.09, 0.5), (6, 6, 8)),
    ),
    "lenet5": (
        _lenet5("mild", (0.8, 0.2, 0.03, 0.6), (16, 8, 8, 16)),
        _lenet5("middle", (0.6, 0.1, 0.012, 0.4), (16, 8, 8, 16)),
        _lenet5("firm", (0.5, 0.083, 0.0086, 0.39), (16, 6, 4, 8)),
        _lenet5("strong", (0.5, 0.075, 0.0078, 0.35), (16, 6, 4, 8)),
        _lenet5("extreme", (0.5, 0.06, 0.006, 0.3), (16, 6, 4, 8)),
    ),
}


def plans(seed: int) -> Iterator[Plan]:
    """All rows of one seed."""
    for name, levels in LEVELS.items():
        subject = Subject.of(name, seed)
        yield Plan(f"{name}, original", seed, partial(_original, subject))
        for level in levels:
            for how in (GROWN, DISTILLED, MOVED, STAGED, UNTRAINED, LABELS):
                row = f"{name}, {level.name}, {how}"
                yield Plan(row, seed, partial(_row, subject, level, how))


def pipeline(net: str, level: Level, how: str) -> str:
    """The passes of a level of a net."""
    pruned = _pruned(level.kept)
    clustered = f"cluster-weights:values-of={_listed(level.values)}:biases={_BIASES}"
    if how == UNTRAINED:
        return f"simplify,{pruned},{clustered}"
    if how == GROWN:
        first, second = _GROWN_EPOCHS[net]
        growing = f"{pruned}:finetune={first}:{_GROWING}"
        return f"simplify,{growing},{clustered}:finetune={second}:{_GROWN_MOVING}"
    if how == MOVED:
        first = {name: min(_BEFORE * share, 1.0) for name, share in level.kept.items()}
        steps = zip((_pruned(first), pruned, clustered), (*_TURNS, _MOVING), strict=True)
        return ",".join(("simplify", *map(":".join, steps)))
    if how == STAGED:
        return ",".join(("simplify", *_stages(level), f"{clustered}:{_STAGED_MOVING}"))
    loss = ":training='loss=labels'" if how == LABELS else ""
    return f"simplify,{pruned}:{_PRUNING}{loss},{clustered}:{_CLUSTERING}{loss}"


def _stages(level: Level) -> Iterator[str]:
    """Dense layers lose their weights while convolutions stay, then convolutions."""
    folders = dict.fromkeys(name.partition(".")[0] for name in level.kept)
    for folder in sorted(folders, key=lambda name: name == _FEATURES):
        kept = {name: share for name, share in level.kept.items() if name.startswith(folder)}
        only = f"*{folder}*"
        training = _CONVOLUTIONS if folder == _FEATURES else _STAGED_GROWING.format(only=only)
        yield f"{_pruned(kept)}:only='{only}':{training}"


def _pruned(kept: Mapping[str, float]) -> str:
    return f"prune-weights:ratio-of={_listed(_without(kept))}"


def _without(kept: Mapping[str, float]) -> dict[str, float]:
    return {name: round(1 - share, 4) for name, share in kept.items()}


def _listed(numbers: Mapping[str, float]) -> str:
    return "+".join(f"'*{name}*={number:g}'" for name, number in numbers.items())


def _original(subject: Subject) -> Found:
    nbytes = subject.original.stat().st_size
    return {"bytes": nbytes, "ratio": 1.0, "error": subject.error(subject.original)}


def _row(subject: Subject, level: Level, how: str) -> Found:
    is_staged = how == STAGED
    pictures, fitted = (STAGED_PICTURES, STAGED_FITTED) if is_staged else (PICTURES, FITTED)
    found = compressed(
        subject.original,
        pipeline(subject.net.name, level, how),
        calibration=subject.calibration(fitted),
        training=subject.training(pictures, labels=how == LABELS),
        seed=subject.seed,
    )
    return {**found.about(), "pictures": pictures, **packed_figures(subject, found)}


def packed_figures(subject: Subject, found: Compressed) -> Found:
    """Bytes of the whole packed file, and the error of the model in it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(found.model.to_bytes())
        nbytes = pack(file, file.with_suffix(".onnxz"), measure=False).packed_bytes
        error = subject.error(file)
    ratio = subject.original.stat().st_size / nbytes
    return {"bytes": nbytes, "ratio": round(ratio, 2), "error": error}

"""int8 of two trained models, before and after training: text that is read, boxes that are found.

Lines to train on are rendered, photographs are crops of those that calibrate; none has a label, and
neither lines nor photographs are those that models are judged by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.int8.real import Job, finding, reading
from benchmarks.int8.samples import lines, photographs
from benchmarks.models.tasks import outputs_of, sqnr_db
from benchmarks.models.zoo import cache_folder
from benchmarks.reporting import Found
from benchmarks.retraining.runs import Plan, compressed

PASS: Final = "quantize-int8:placement=all"
EPOCHS: Final = 2
LINES: Final = (160, 80, 80)  # of each kind, to train on
PICTURES: Final = 240
_SEED: Final = 3
_BATCH: Final = 8
_LATIN: Final = frozenset(map(chr, range(32, 127)))


def _rendered(seed: int) -> np.ndarray:
    """Lines in characters of the keyboard, and Chinese ones of the same font files."""
    known = _LATIN | frozenset(map(chr, range(0x4E00, 0x9FA6)))
    found = lines(LINES, 10 * seed + _SEED, known, judged=False)
    return np.stack([line.picture for line in found])


def _photographed(seed: int) -> np.ndarray:
    return np.stack(list(photographs(PICTURES, 10 * seed + _SEED, judged=False)))


TASKS: Final[Mapping[str, tuple[Callable[[], Job], Callable[[int], np.ndarray], str]]] = {
    "NudeNet": (finding, _photographed, "found_again"),
    "PP-OCRv4 rec": (reading, _rendered, "right"),
}


def plans(seed: int) -> Iterator[Plan]:
    """All rows of one seed, which also draws what is trained on."""
    for name in TASKS:
        for setting in ("float", "int8", "int8, distilled"):
            yield Plan(f"{name}, {setting}", seed, partial(_row, name, setting, seed))


def _row(name: str, setting: str, seed: int) -> Found:
    made, drawn, figure = TASKS[name]
    job = made()
    before = outputs_of(job.model, job.judged)
    if setting == "float":
        return {"figure": figure, **job.judge(before, before)}
    training = f":finetune={EPOCHS}:training='batch={_BATCH}'" if "distilled" in setting else ""
    (input_name,) = job.calibration
    found = compressed(
        job.model,
        f"simplify,{PASS}{training}",
        calibration=job.calibration,
        training={input_name: drawn(seed)} if training else None,
        seed=seed,
    )
    file = cache_folder() / "retraining" / "quantized.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    found.model.save(file)
    return {**found.about(), "figure": figure, **_judged(job, file, before)}


def _judged(job: Job, file: Path, before: list[np.ndarray]) -> Found:
    after = outputs_of(file, job.judged)
    return {"sqnr_db": sqnr_db(before, after), **job.judge(before, after)}

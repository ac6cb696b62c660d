"""int8 on what trained models are for: text that is read, and boxes that are found."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rapidfuzz.distance import Levenshtein

from benchmarks.int8.runs import Arrays, Row, peers, unusable, written
from benchmarks.int8.samples import KINDS, SIDE, lines, photographs
from benchmarks.models.pictures import Pictures
from benchmarks.models.tasks import Outputs, outputs_of, sqnr_db, texts_of
from benchmarks.models.zoo import cache_folder, models, path
from benchmarks.peers.environments import run_driver
from onnxslim import Floors, compress
from onnxslim.errors import OnnxslimError

LINES: Final = (300, 150, 150)  # of each kind, to judge by
FEW_LINES: Final = (32, 16, 16)
PICTURES: Final = 480
FEW_PICTURES: Final = 66

Run = Callable[[Arrays], Arrays]  # of a model, arrays by name
Judge = Callable[[Sequence[Outputs], Sequence[Outputs]], Row]


@dataclass(frozen=True)
class Setting:
    """How a user would call the pass."""

    spec: str
    floors: Floors = field(default_factory=Floors)

    def __str__(self) -> str:
        least, drop = self.floors.min_sqnr_db, self.floors.max_drop
        floor = "" if least is None else f" --min-sqnr {least:g}"
        return f"{self.spec}{floor}" + ("" if drop is None else f" --eval ... --max-drop {drop:g}")

    @property
    def is_measured(self) -> bool:
        """Whether time decides; else everything that can be is kept on integers."""
        return "placement=all" not in self.spec


@dataclass(frozen=True)
class Job:
    """A model, what it is calibrated with and judged by.

    Attributes:
        judge: what the outputs of the model that came and of the quantized one are worth.
        metric: the user's own figure, of the calibration samples, for `--max-drop`.
    """

    name: str
    model: Path
    calibration: Arrays
    judged: Sequence[Pictures]
    judge: Judge
    settings: Sequence[Setting]
    metric: Callable[[Run], float] | None = None


def rows_of(job: Job) -> Iterator[Row]:
    """Float, the peers, ours."""
    folder = cache_folder() / "int8" / f"real_{job.name}"
    folder.mkdir(parents=True, exist_ok=True)
    before = outputs_of(job.model, job.judged)
    yield {"task": job.name, "setting": "float", **job.judge(before, before)}
    samples = written(folder / "samples.npz", job.calibration)
    (name,) = job.calibration
    for peer, tool, extra in peers():
        target = folder / f"{peer}.onnx"
        why = run_driver(tool, job.model, target, samples, *extra)
        why = why or unusable(target, {name: job.judged[0][None]})
        row: Row = {"task": job.name, "setting": peer, "failed": why}
        yield row if why else {**row, **_judged(job, target, before)}
    for setting in job.settings:
        about, file = _ours(job, setting, folder / "ours.onnx")
        yield {**about, **({} if file is None else _judged(job, file, before))}


def _ours(job: Job, setting: Setting, target: Path) -> tuple[Row, Path | None]:
    about: Row = {"task": job.name, "setting": str(setting), "failed": None}
    try:
        _, report = compress(
            job.model,
            target,
            passes=f"simplify,{setting.spec}",
            calibration=job.calibration,
            evaluation=None if setting.floors.max_drop is None else job.metric,
            floors=setting.floors,
            measure=setting.is_measured,
            goal="latency" if setting.is_measured else "both",
            force=not setting.is_measured,
        )
    except OnnxslimError as error:
        return {**about, "failed": str(error)[:200]}, None
    step = report.steps[-1]
    changes = [change.what for change in step.changes] if step.committed else []
    back = [skip.node for skip in step.skips if skip.why.startswith("back to float")]
    return {
        **about,
        "kernels": sum("became" in what for what in changes),
        "back_to_float": back,
    }, target


def _judged(job: Job, file: Path, before: Sequence[Outputs]) -> Row:
    after = outputs_of(file, job.judged)
    return {
        "bytes_left": file.stat().st_size / job.model.stat().st_size,
        "sqnr_db": sqnr_db(before, after),
        **job.judge(before, after),
    }


# ---------------------------------------------------------------------------- reading


def reading() -> Job:
    """PP-OCRv4 recognition: character errors on rendered lines."""
    (entry,) = models(["ppocr_v4_rec"])
    file = path(entry)
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    characters = session.get_modelmeta().custom_metadata_map["character"].splitlines()
    known = frozenset((*characters, " "))
    judged = lines(LINES, 2, known, judged=True)
    few = lines(FEW_LINES, 1, known, judged=False)

    def judge(_: Sequence[Outputs], after: Sequence[Outputs]) -> Row:
        texts = texts_of(file, after)
        errors = [Levenshtein.distance(t, line.text) for t, line in zip(texts, judged, strict=True)]
        found: Row = {"lines": len(judged), "right": sum(error == 0 for error in errors)}
        for kind in KINDS:
            own = [index for index, line in enumerate(judged) if line.kind == kind]
            length = sum(len(judged[index].text) for index in own)
            found[kind] = 100 * sum(errors[index] for index in own) / length
        found["all"] = 100 * sum(errors) / sum(len(line.text) for line in judged)
        return found

    return Job(
        "ocr",
        file,
        {entry.inputs[0].name: np.stack([line.picture for line in few])},
        [line.picture for line in judged],
        judge,
        (
            Setting("quantize-int8:placement=all"),
            Setting("quantize-int8:placement=all", Floors(min_sqnr_db=20)),
            Setting("quantize-int8"),
        ),
    )


# ---------------------------------------------------------------------------- finding

_SEEN: Final = 0.25  # score from which the package `nudenet` keeps a box
_OVERLAP: Final = 0.45  # from which it keeps the better of two
_SAME: Final = 0.5  # from which two boxes are of one thing
_BOX_ROWS: Final = 4  # of the output, before the scores


@dataclass(frozen=True)
class Boxes:
    """What is found in a picture: corners and size (n, 4), classes (n,), scores (n,)."""

    places: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


def finding() -> Job:
    """NudeNet: its boxes on photographs, the float model's as what is right."""
    (entry,) = models(["nudenet_320n"])
    judged = photographs(PICTURES, 2, judged=True)
    name, few = entry.inputs[0].name, photographs(FEW_PICTURES, 1, judged=False)
    known = [boxes_of(outputs[0]) for outputs in outputs_of(path(entry), list(few))]

    def metric(run: Run) -> float:
        found = [boxes_of(next(iter(run({name: picture[None]}).values()))[0]) for picture in few]
        again, there = sum(map(_found_again, known, found)), sum(len(b.scores) for b in known)
        return 2 * again / max(there + sum(len(item.scores) for item in found), 1)

    def judge(before: Sequence[Outputs], after: Sequence[Outputs]) -> Row:
        right, found = ([boxes_of(output[0]) for output in side] for side in (before, after))
        counts = [sum(len(item.scores) for item in side) for side in (right, found)]
        return {
            "pictures": len(right),
            "pictures_with_boxes": sum(len(item.scores) > 0 for item in right),
            "boxes_of_float": counts[0],
            "boxes": counts[1],
            "found_again": sum(map(_found_again, right, found)),
            **mean_precision(right, found),
        }

    return Job(
        "boxes",
        path(entry),
        {name: few},
        list(judged),
        judge,
        (
            Setting("quantize-int8:placement=all"),
            Setting("quantize-int8:placement=all", Floors(min_sqnr_db=10)),
            Setting("quantize-int8:placement=all", Floors(max_drop=5)),
            Setting("quantize-int8:placement=all", Floors(max_drop=2)),
            Setting("quantize-int8"),
        ),
        metric,
    )


def boxes_of(output: np.ndarray) -> Boxes:
    """What the package `nudenet` makes of an output (4 + classes, places)."""
    scores = output[_BOX_ROWS:].max(axis=0)
    places = np.flatnonzero(scores >= _SEEN)
    places = places[np.argsort(-scores[places], kind="stable")]
    middle, size = output[:2, places].T, output[2:_BOX_ROWS, places].T
    corners = np.clip(middle - size / 2, 0, SIDE)
    boxes = np.concatenate([corners, np.minimum(size, SIDE - corners)], axis=1)
    kept: list[int] = []
    for index in range(len(places)):
        if all(_shared(boxes[index], boxes[other]) <= _OVERLAP for other in kept):
            kept.append(index)
    chosen = places[kept]
    return Boxes(boxes[kept], output[_BOX_ROWS:, chosen].argmax(axis=0), scores[chosen])


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    both = float(np.prod(np.maximum(high - low, 0)))
    return both / max(float(np.prod(a[2:]) + np.prod(b[2:])) - both, 1e-9)


def _found_again(right: Boxes, found: Boxes) -> int:
    """How many boxes have one of their class that shares half with them; each serves once."""
    free = list(range(len(found.scores)))
    count = 0
    for place, label in zip(right.places, right.classes, strict=True):
        fits = [
            index
            for index in free
            if found.classes[index] == label and _shared(place, found.places[index]) >= _SAME
        ]
        if fits:
            free.remove(fits[0])
            count += 1
    return count


def mean_precision(right: Sequence[Boxes], found: Sequence[Boxes]) -> Row:
    """COCO's mean average precision in percent: at an overlap of 0.5, and over 0.5 to 0.95."""
    truth = COCO()
    annotations = list(_annotations(right))
    truth.dataset = {
        "images": [{"id": index} for index in range(len(right))],
        "categories": [{"id": key} for key in sorted({a["category_id"] for a in annotations})],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):  # it reports as it goes
        truth.createIndex()
        told = list(_annotations(found))
        if not told:
            return {"map_50": 0.0, "map_50_95": 0.0}
        evaluation = COCOeval(truth, truth.loadRes(told), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    at_half, over_all = (100 * float(evaluation.stats[index]) for index in (1, 0))
    return {"map_50": at_half, "map_50_95": over_all}


def _annotations(pictures: Sequence[Boxes]) -> Iterator[dict[str, Any]]:
    number = 0
    for picture, boxes in enumerate(pictures):
        for place, label, score in zip(boxes.places, boxes.classes, boxes.scores, strict=True):
            number += 1
            yield {
                "id": number,
                "image_id": picture,
                "category_id": int(label),
                "bbox": [float(value) for value in place],
                "area": float(place[2] * place[3]),
                "iscrowd": 0,
                "score": float(score),
            }


JOBS: Final = {"ocr": reading, "boxes": finding}

__all__ = ["JOBS", "Job", "Setting", "boxes_of", "mean_precision", "rows_of"]

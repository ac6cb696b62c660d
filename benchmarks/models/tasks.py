"""What three trained models are for: their inputs, and how often two models answer alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.models.pictures import Pictures, lines, pages, photographs

Outputs = NDArray[np.float32]

CALIBRATION, CALIBRATION_SEED = 64, 1
HELD_OUT, HELD_OUT_SEED = 100, 2
_TEXT: Final = 0.3  # the detector's own threshold on a pixel
_BODY: Final = 0.25  # NudeNet's own threshold on a score
_BOX_ROWS: Final = 4  # of the output, before the scores


@dataclass(frozen=True)
class Task:
    """A model of the zoo with what it is fed, and how its answers are compared.

    Attributes:
        measure: what `agreement` is a share of.
        agreement: of the answers of the model that came and of the compressed one.
    """

    model: str
    pictures: Callable[[int, int], Pictures]
    inputs: str
    measure: str
    agreement: Callable[[Path, Sequence[Outputs], Sequence[Outputs]], float]


def outputs_of(model: Path, pictures: Iterable[Pictures]) -> list[Outputs]:
    """The first output for each picture, one at a time."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [np.asarray(session.run(None, {name: item[None]})[0]) for item in pictures]


def sqnr_db(before: Sequence[Outputs], after: Sequence[Outputs]) -> float:
    """Of all outputs together; infinite where they are the same."""
    signal = sum(float(np.square(a.astype(np.float64)).sum()) for a in before)
    noise = sum(
        float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(before, after, strict=True)
    )
    return round(10 * float(np.log10(signal / noise)), 2) if noise else float("inf")


def texts_of(model: Path, outputs: Sequence[Outputs]) -> list[str]:
    """What a CTC recogniser reads: best class at each place, repeats and blanks left out.

    The characters are in the model's metadata.
    """
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    known = session.get_modelmeta().custom_metadata_map["character"].splitlines()
    characters = ["", *known, " "]
    texts = []
    for output in outputs:
        best = output[0].argmax(axis=-1)  # (places, classes) -> (places,)
        is_new = np.diff(best, prepend=-1) != 0
        texts.append("".join(characters[index] for index in best[is_new]).strip())
    return texts


def _same_texts(model: Path, before: Sequence[Outputs], after: Sequence[Outputs]) -> float:
    pairs = zip(texts_of(model, before), texts_of(model, after), strict=True)
    return float(np.mean([a == b for a, b in pairs]))


def _same_pixels(model: Path, before: Sequence[Outputs], after: Sequence[Outputs]) -> float:
    """Intersection over union of the pixels said to be text."""
    masks = [(a > _TEXT, b > _TEXT) for a, b in zip(before, after, strict=True)]
    both = sum(int((a & b).sum()) for a, b in masks)
    return both / max(sum(int((a | b).sum()) for a, b in masks), 1)


def _same_bodies(model: Path, before: Sequence[Outputs], after: Sequence[Outputs]) -> float:
    """Share of the anchors with a score above the threshold in either that have one in both.

    Of the same class.
    """
    same = either = 0
    for a, b in zip(before, after, strict=True):
        first, second = a[0, _BOX_ROWS:], b[0, _BOX_ROWS:]  # (classes, anchors)
        is_seen = [scores.max(axis=0) > _BODY for scores in (first, second)]
        either += int((is_seen[0] | is_seen[1]).sum())
        is_same = first.argmax(axis=0) == second.argmax(axis=0)
        same += int((is_seen[0] & is_seen[1] & is_same).sum())
    return same / max(either, 1)


def _line_pictures(count: int, seed: int) -> Pictures:
    return lines(count, seed)[0]


TASKS: Final = (
    Task(
        "nudenet_320n",
        photographs,
        "crops of one photograph and drawn pictures, in turn",
        "detections (score above 0.25 in either model) that are in both, with the same class",
        _same_bodies,
    ),
    Task(
        "ppocr_v4_rec",
        _line_pictures,
        "rendered lines of text",
        "lines read alike, to the letter",
        _same_texts,
    ),
    Task(
        "ppocr_v4_det",
        pages,
        "rendered pages of text",
        "intersection over union of the pixels said to be text",
        _same_pixels,
    ),
)

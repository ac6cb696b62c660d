"""What lossy steps do to outputs and to what a model is for: the figures behind the default floors.

    python -m benchmarks.floors measure [NAMES...] [--resnet FILE.onnx --labelled FILE.npz]
    python -m benchmarks.floors tables

Each pipeline runs without any floor, with samples or without; then its outputs are compared with
those of the model that came, on samples held back and on seeded inputs, and its answers with labels
or with the answers of the model that came. `measure` writes `benchmarks/results/floors.json`, a row
a pipeline; `tables` writes those of `docs/floors.md` anew. Needs the extra `bench`; `--labelled`
holds images as the model takes them, and `label`. The images of `--labelled` that come first are
those to calibrate with.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import onnxruntime as ort

import onnxslim
from benchmarks.models import language_model
from benchmarks.models.sentence_encoder import model_file, sentences, tokenized
from benchmarks.models.tasks import CALIBRATION, CALIBRATION_SEED, HELD_OUT_SEED, TASKS, outputs_of
from benchmarks.models.zoo import models, path
from benchmarks.reporting import DOCS, Found, Row, markdown, read, refresh, saved
from onnxslim.report import Drift

NAME: Final = "floors"
HELD: Final = 64  # samples that outputs are compared on
LABELLED: Final = 5000  # labelled images that accuracy is measured on
SENTENCES: Final = 64
ASSETS: Final = Path(onnxslim.__file__).parent / "assets"

Samples = Sequence[Mapping[str, np.ndarray]]

# pipelines, and whether they get samples
STEPS: Final = (
    ("convert-fp16", False),
    ("quantize-weights", False),
    ("quantize-weights:bits=4", False),
    ("cluster-weights:bits=4", False),
    ("cluster-weights:bits=3", False),
    ("quantize-weights:bits=4", True),
    ("quantize-int8:placement=all", True),
    ("cluster-weights:bits=4", True),
    ("cluster-weights:bits=2", True),
    ("prune-channels:macs=0.7", True),
    ("prune-channels:macs=0.5", True),
    ("prune-channels:macs=0.7", False),
    ("prune-channels:macs=0.5", False),
    ("prune-channels:macs=0.3", True),
    ("prune-weights:ratio=0.5", True),
    ("prune-weights:ratio=0.3", False),
    ("prune-weights:ratio=0.5", False),
    ("prune-weights:ratio=0.9", False),
    ("ternarize-weights", False),
    ("ternarize-weights", True),
)


@dataclass(frozen=True)
class Subject:
    """A model, the samples to calibrate and to compare with, and what its answers are worth.

    Attributes:
        score: of a file, in percent; of the model that came 100, or its accuracy.
        measure: what the score is.
        unit: of the score.
    """

    name: str
    file: Path
    known: Samples
    held: Samples
    score: Callable[[Path], float]
    measure: str
    unit: str = " %"


@click.group()
def main() -> None:
    """Measure what chooses the default floors."""


@main.command("measure")
@click.argument("names", nargs=-1)
@click.option("--resnet", type=click.Path(exists=True, path_type=Path), help="See the module.")
@click.option("--labelled", type=click.Path(exists=True, path_type=Path), help="See the module.")
@click.option("--save/--no-save", default=True, help="Write the result.")
def measure(
    names: Sequence[str], resnet: Path | None, labelled: Path | None, *, save: bool
) -> None:
    """Figures of every pipeline on every model, or on those called NAMES."""
    rows = (
        row
        for subject in _subjects(names, resnet, labelled)
        for spec, has_data in STEPS
        for row in _row(subject, spec, has_data=has_data)
    )
    saved(NAME if save else None, rows, replacing=("model", "pipeline", "samples"))


@main.command("tables")
def tables_command() -> None:
    """Write the tables of the page anew, from the result."""
    refresh(DOCS / "floors.md", table_of)


# ---------------------------------------------------------------------------- measuring


def _row(subject: Subject, spec: str, *, has_data: bool) -> Iterator[Found]:
    about = {"model": subject.name, "pipeline": spec, "samples": has_data}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.onnx"
        try:
            _, report = onnxslim.compress(
                subject.file,
                target,
                passes=f"simplify,{spec}",
                calibration=list(subject.known) if has_data else None,
                floors=None,
                measure=False,
                force=True,
            )
        except onnxslim.OnnxslimError as error:
            yield {**about, "failed": str(error)[:200]}
            return
        if not report.steps[-1].changes:
            yield {**about, "failed": "nothing was changed"}
            return
        sizes = report.before.stats.file_bytes, target.stat().st_size
        score = round(subject.score(target), 2)
        before = round(subject.score(subject.file), 2)
        found = {}
        for where, calibration in (("held", list(subject.held)), ("seeded", None)):
            comparison, *_ = onnxslim.compare_models(
                subject.file, target, calibration=calibration, measure=False
            )
            found[where] = {name: _figures(drift) for name, drift in comparison.original.items()}
    yield {
        **about,
        "saved": round(1 - sizes[1] / sizes[0], 4),
        "before": before,
        "after": score,
        "measure": subject.measure,
        "unit": subject.unit,
        **found,
    }


def _figures(drift: Drift) -> dict[str, Any]:
    figures = {
        "sqnr_db": drift.sqnr_db,
        "agreement": drift.agreement,
        "mean_cosine": drift.mean_cosine,
        "least_cosine": drift.least_cosine,
        "mean_kl": drift.mean_kl,
        "largest_kl": drift.largest_kl,
    }
    known = {key: round(value, 4) for key, value in figures.items() if value is not None}
    return {"kind": drift.kind.value, **known}


# ---------------------------------------------------------------------------- models


def _subjects(
    names: Sequence[str], resnet: Path | None, labelled: Path | None
) -> Iterator[Subject]:
    makers: dict[str, Callable[[], Subject]] = {"lenet5": _lenet5}
    if resnet is not None and labelled is not None:
        makers["resnet14"] = functools.partial(_classifier, "resnet14", resnet, labelled, None)
    makers |= {"minilm": _encoder, "decoder": _decoder}
    makers |= {task.model: functools.partial(_task, index) for index, task in enumerate(TASKS)}
    for name, make in makers.items():
        if not names or name in names:
            yield make()


def _lenet5() -> Subject:
    calib = ASSETS / "mnist_calib.npz"
    return _classifier("lenet5", ASSETS / "lenet5.onnx", ASSETS / "mnist_eval.npz", calib)


def _classifier(name: str, file: Path, labelled: Path, calib: Path | None) -> Subject:
    with np.load(labelled) as arrays:
        (key,) = [key for key in arrays.files if key != "label"]
        images, labels = arrays[key], arrays["label"]
    known = images[:CALIBRATION]
    if calib is not None:
        with np.load(calib) as arrays:
            known = arrays[key][:512]
    else:
        known, images, labels = images[:1000], images[1000:], labels[1000:]
    images, labels = images[:LABELLED], labels[:LABELLED]

    def score(model: Path) -> float:
        session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        feed = session.get_inputs()[0].name
        parts = np.array_split(images, max(1, len(images) // 500))
        right = np.concatenate([session.run(None, {feed: p})[0].argmax(1) for p in parts])
        return 100 * float((right == labels).mean())

    return Subject(name, file, _singly(key, known), _singly(key, images[:256]), score, "accuracy")


def _singly(key: str, images: np.ndarray) -> Samples:
    return [{key: image[None]} for image in images]


def _encoder() -> Subject:
    samples = tokenized(sentences(2 * SENTENCES))
    known, held = samples[:SENTENCES], samples[SENTENCES:]

    def embeddings(model: Path) -> np.ndarray:
        session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        rows = [session.run(None, dict(sample))[0][0].mean(axis=0) for sample in held]
        return np.stack([row / np.linalg.norm(row) for row in rows])

    reference = embeddings(model_file())

    def score(model: Path) -> float:
        """How often the nearest other sentence is the same."""
        nearest = []
        for rows in (reference, embeddings(model)):
            near = rows @ rows.T
            np.fill_diagonal(near, -np.inf)
            nearest.append(near.argmax(axis=1))
        return 100 * float((nearest[0] == nearest[1]).mean())

    return Subject("minilm", model_file(), known, held, score, "same nearest sentence")


def _decoder() -> Subject:
    file, known = language_model.model_file(), language_model.samples(2 * HELD, CALIBRATION_SEED)
    held = known[HELD:]

    def score(model: Path) -> float:
        session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        logits = [np.asarray(session.run(None, dict(sample))[0]) for sample in held]
        return language_model.perplexity(logits, held)

    return Subject("decoder", file, known[:HELD], held, score, "perplexity", "")


def _task(index: int) -> Subject:
    task = TASKS[index]
    (model,) = models([task.model])
    file, name = path(model), model.inputs[0].name
    known = task.pictures(CALIBRATION, CALIBRATION_SEED)
    held = task.pictures(HELD, HELD_OUT_SEED)
    reference = outputs_of(file, held)

    def score(found: Path) -> float:
        return 100 * task.agreement(file, reference, outputs_of(found, held))

    return Subject(
        task.model, file, _singly(name, np.stack(list(known))), _singly(name, held), score,
        task.measure,
    )  # fmt: skip


# ---------------------------------------------------------------------------- tables


def table_of(name: str) -> str | None:
    """The table of one model, `floors-MODEL`; None where it was not measured."""
    result = read(NAME)
    model = name.removeprefix("floors-")
    if result is None or model == name:
        return None
    return markdown(
        _cells(row) for row in result["rows"] if row["model"] == model and "failed" not in row
    )


def _cells(row: Found) -> Row:
    return {
        "pipeline": f"`{row['pipeline']}`{', samples' if row['samples'] else ''}",
        "bytes": f"-{100 * row['saved']:.0f} %",
        row["measure"]: f"{row['before']:.2f} -> {row['after']:.2f}{row.get('unit', ' %')}",
        "on samples held back": _worst(row["held"].values()),
        "on seeded inputs": _worst(row["seeded"].values()),
    }


def _worst(outputs: Any) -> str:
    worst = min(outputs, key=lambda figures: float(figures["sqnr_db"]))
    parts = [f"{float(worst['sqnr_db']):.1f} dB"]
    if "agreement" in worst:
        parts.append(f"{100 * worst['agreement']:.1f} %")
    if "mean_cosine" in worst:
        parts.append(f"cos {worst['mean_cosine']:.3f}, least {worst['least_cosine']:.3f}")
    if "mean_kl" in worst:
        parts.append(f"KL {worst['mean_kl']:.3f}, worst {worst['largest_kl']:.2f}")
    return ", ".join(parts)


if __name__ == "__main__":
    main()

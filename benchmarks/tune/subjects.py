"""The models that are tuned, with their samples, floors and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.models.sentence_encoder import model_file as sentence_encoder
from benchmarks.models.sentence_encoder import padded, sentences, tokenized
from benchmarks.models.small_nets import NETS
from benchmarks.models.tasks import CALIBRATION, CALIBRATION_SEED, HELD_OUT_SEED, TASKS
from benchmarks.models.tasks import outputs_of as answers_of
from benchmarks.models.zoo import models, path, sample_inputs

_CHOOSING, _LABELLED = 1000, 5000  # samples of small nets
_DRAWN: Final = 24  # samples of graphs with drawn weights
_SENTENCES, _LENGTH = 96, 48

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Subject:
    """A model that is tuned.

    Attributes:
        model: its file.
        calibration: samples for `--calib`.
        evaluation: labelled samples for `--eval`; None: there are none.
        unseen: samples that no search sees; with `label` where there are labels.
        floors: what must hold, by the name of the option.
        training: samples for `--train`; None: nothing is trained.
        own_figure: share of equal answers of two files, by the model's own measure.
    """

    model: Path
    calibration: Arrays
    evaluation: Arrays | None
    unseen: Arrays
    floors: Mapping[str, float]
    training: Arrays | None = None
    own_figure: Callable[[Path, Path], float] | None = None

    @property
    def options(self) -> list[str]:
        """The floors as the command takes them."""
        return [word for name, value in self.floors.items() for word in (f"--{name}", f"{value:g}")]


def _small_net(name: str, drop: float, *, trains: bool = False) -> Subject:
    net = NETS[name]
    train, test = net.data().train, net.data().test
    return Subject(
        net.file(),
        {"image": train.image[:_CHOOSING]},
        {"image": test.image[:_LABELLED], "label": test.label[:_LABELLED]},
        {"image": test.image[_LABELLED:], "label": test.label[_LABELLED:]},
        {"max-drop": drop},
        {"image": train.image} if trains else None,
    )


def _with_task(name: str) -> Subject:
    (task,) = (task for task in TASKS if task.model == name)
    model = path(*models([name]))
    chosen = np.stack(task.pictures(CALIBRATION, CALIBRATION_SEED))
    unseen = task.pictures(CALIBRATION, HELD_OUT_SEED)

    def own_figure(before: Path, after: Path) -> float:
        return task.agreement(model, answers_of(before, unseen), answers_of(after, unseen))

    feed = _input_name(model)
    return Subject(
        model, {feed: chosen}, None, {feed: np.stack(unseen)}, {"min-sqnr": 30.0}, None, own_figure
    )


def _drawn(name: str) -> Subject:
    (model,) = models([name])
    chosen, unseen = (_stacked(sample_inputs(model, _DRAWN, seed)) for seed in (1, 2))
    return Subject(path(model), chosen, None, unseen, {"min-sqnr": 30.0})


def _encoder() -> Subject:
    tokens = tokenized(sentences(2 * _SENTENCES))
    chosen, unseen = (padded(part, _LENGTH) for part in (tokens[:_SENTENCES], tokens[_SENTENCES:]))
    floors = {"min-cosine": 0.99, "min-row-cosine": 0.97}
    return Subject(sentence_encoder(), chosen, None, unseen, floors)


SUBJECTS: Final[Mapping[str, Callable[[], Subject]]] = {
    "lenet5": lambda: _small_net("lenet5", 0.5),
    "lenet5, trained": lambda: _small_net("lenet5", 0.5, trains=True),
    "resnet14": lambda: _small_net("resnet14", 1.0),
    "resnet14, trained": lambda: _small_net("resnet14", 1.0, trains=True),
    "resnet14 at half a point": lambda: _small_net("resnet14", 0.5),
    "resnet14 at half a point, trained": lambda: _small_net("resnet14", 0.5, trains=True),
    "nudenet": lambda: _with_task("nudenet_320n"),
    "ppocr_v4_rec": lambda: _with_task("ppocr_v4_rec"),
    "minilm": _encoder,
    "resnet50": lambda: _drawn("resnet50"),
    "densenet121": lambda: _drawn("densenet121"),
    "squeezenet": lambda: _drawn("squeezenet"),
}


def _stacked(samples: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Samples of one run each as arrays whose first axis counts them."""
    return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}


def _input_name(model: Path) -> str:
    import onnx

    return str(onnx.load(model, load_external_data=False).graph.input[0].name)

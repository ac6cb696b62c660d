"""The protocol behind `context.trainer`: a model learns from others, on the user's samples.

The core knows this protocol alone; `onnxslim.runtime.training.trainer` answers it with torch.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from onnxslim.records import OutputKind

if TYPE_CHECKING:
    import numpy as np

    from onnxslim.io.model import Model


class Loss(enum.StrEnum):
    """What training brings down.

    DISTILL: the distance of outputs from those of the teachers. LABELS: the cross-entropy of the
    labels. BOTH: alpha times the first and 1 - alpha times the second.
    """

    DISTILL = "distill"
    LABELS = "labels"
    BOTH = "both"


class Optimizer(enum.StrEnum):
    """ADAM: Kingma and Ba 2015. SGD: with Nesterov's momentum of 0.9, half of the memory."""

    ADAM = "adam"
    SGD = "sgd"


class ZeroMovement(enum.StrEnum):
    """What becomes of zeros that the file holds by choice.

    STAY: they stay where they are. MOVE: as many as before, each time those of the elements whose
    floats are smallest (dynamic network surgery). GROW: none at first, then more and more until
    there are as many as in the file, each time the elements that are smallest then; zeros stay.
    RELEASE: they learn like other elements.
    """

    STAY = "stay"
    MOVE = "move"
    GROW = "grow"
    RELEASE = "release"


class CodeMovement(enum.StrEnum):
    """What becomes of the codes of tables.

    STAY: tables learn, codes stay. MOVE: each element takes the nearest value to a float that
    learns. GROW: a growing share of elements, the largest first, takes it and stays, and the others
    are floats until their turn comes.
    """

    STAY = "stay"
    MOVE = "move"
    GROW = "grow"


class CodeRounding(enum.StrEnum):
    """How floats become codes in training: to the nearest, or to a neighbour by chance."""

    NEAREST = "nearest"
    STOCHASTIC = "stochastic"


class Penalty(enum.StrEnum):
    """What shrinks while training: nothing, single elements, or groups of them."""

    NONE = "none"
    L1 = "l1"
    GROUP_LASSO = "group-lasso"


class WeightGroup(enum.StrEnum):
    """What is a group of a layer's weight.

    FILTER: all inputs of an output. CHANNEL: all that reads an input. SHAPE: one place of the
    filters. DEPTH: the whole weight.
    """

    FILTER = "filter"
    CHANNEL = "channel"
    SHAPE = "shape"
    DEPTH = "depth"


class TrainingStart(enum.StrEnum):
    """Where weights start from, within what the file obeys; any other word is an ONNX file.

    GIVEN: the values of the file. ORIGINAL: those of the first teacher. RANDOM: as before training.
    """

    GIVEN = "given"
    ORIGINAL = "original"
    RANDOM = "random"


AUGMENTATIONS = ("shift", "flip", "crop", "noise", "mixup")
"""Changes of pictures in training."""


@dataclass(frozen=True)
class Imitation:
    """An output that the student alone has, such as that of a head, and what it learns from.

    Attributes:
        name: of the output.
        of: name of the output of the teachers that it is to be like.
        kind: what both hold.
        weight: by which its loss is multiplied; that of all other outputs together counts once.
    """

    name: str
    of: str
    kind: OutputKind
    weight: float = 1.0


@dataclass(frozen=True)
class TrainingRequest:
    """How a model is to be trained.

    Attributes:
        loss, alpha: what is brought down.
        temperature: by which scores are divided before they are compared; None: by their kind.
        epochs: times through the samples; parts of one count.
        minutes: the most time; None: as long as the epochs take.
        learning_rate: the largest; None: found by a range test.
        optimizer: the method; None: SGD where zeros move or groups shrink to zero, as Adam moves
            each float by a full step however small its gradient is; else Adam.
        batch: samples of a step.
        patience: epochs without a better figure on the samples held back, after which training
            ends; None: none.
        features: patterns on names of inner tensors that are to be the teacher's, too.
        augment: changes of pictures, by `AUGMENTATIONS`; the teacher sees the changed ones.
        augment_strength: by which the most that a change does is multiplied.
        zeros, codes, rounding: how elements move among what the file lets them be.
        regularizer, groups: what is brought to zero beside the loss. The last values are kept then,
            better or not.
        decay: by how many times the mean length of its weight's groups a group shrinks over the
            training, where no gradient holds it.
        start: a word of `TrainingStart`, or the path of a model with other values.
        checkpoint: path of a file that each epoch is saved to, and from which the same training
            goes on; None: none.
        imitations: further outputs of the student that learn.
        part: number and count: of the samples only those that `Calibration.parts(count)` deals to
            the part of this number; None: all.
    """

    loss: Loss = Loss.DISTILL
    alpha: float = 0.5
    temperature: float | None = None
    epochs: float = 3.0
    minutes: float | None = None
    learning_rate: float | None = None
    optimizer: Optimizer | None = None
    batch: int = 32
    patience: int | None = None
    checkpoint: str | None = None
    features: tuple[str, ...] = ()
    augment: tuple[str, ...] = ()
    augment_strength: float = 1.0
    zeros: ZeroMovement = ZeroMovement.STAY
    codes: CodeMovement = CodeMovement.STAY
    rounding: CodeRounding = CodeRounding.NEAREST
    start: str = TrainingStart.GIVEN
    imitations: tuple[Imitation, ...] = ()
    part: tuple[int, int] | None = None
    regularizer: Penalty = Penalty.NONE
    groups: WeightGroup = WeightGroup.FILTER
    decay: float = 1.0

    @property
    def method(self) -> Optimizer:
        """The optimizer, chosen where none was given."""
        is_sized = self.zeros is ZeroMovement.MOVE or self.regularizer is not Penalty.NONE
        return self.optimizer or (Optimizer.SGD if is_sized else Optimizer.ADAM)


@dataclass(frozen=True)
class TrainingOutcome:
    """What training found.

    Attributes:
        values: new values of stored tensors by name; {}: nothing was better than what came in.
        before, after: the figure on the samples held back, lower is better.
        figure: what it is, in words.
        samples, held: how many were trained on, and held back.
        steps, epochs: how far training went.
        learning_rate: the largest.
        seconds: CPU time.
        notes: in words for the report.
    """

    values: Mapping[str, np.ndarray]
    before: float
    after: float
    figure: str
    samples: int
    held: int
    steps: int
    epochs: float
    learning_rate: float
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def extent(self) -> str:
        """How much was trained, as in "3 epochs over 800 samples"."""
        return f"{self.epochs:.3g} epochs over {self.samples:,} samples"

    @property
    def nothing(self) -> str:
        """The sentence about training that brought nothing."""
        return (
            f"{self.extent} brought nothing on {self.held} samples held back: {self.figure} was "
            f"{self.before:.4g} before"
        )

    def summary(self, name: str) -> str:
        """The sentence about training by the pass `name`."""
        if not self.values:
            return f"`{name}`: {self.nothing}."
        return (
            f"`{name}`: {self.figure} went from {self.before:.4g} to {self.after:.4g} on "
            f"{self.held:,} samples held back, by {self.steps:,} steps ({self.extent}) with a "
            f"learning rate of up to {self.learning_rate:.2g}, in {self.seconds:.0f} s of CPU time."
        )


class Trainer(Protocol):
    """Trains models, as passes see it."""

    @property
    def has_own_samples(self) -> bool:
        """Whether it trains on other samples than `Context.calibration` has."""

    def train(
        self,
        student: Model,
        teachers: Sequence[Model],
        request: TrainingRequest,
        accepts: Callable[[Sequence[str]], bool],
    ) -> TrainingOutcome:
        """New values for the stored weights of `student`, within what they obey.

        Args:
            student: the model that learns; it is not edited.
            teachers: models with the same inputs and outputs, whose outputs are averaged. They need
                not have those that `request.imitations` names.
            request: how.
            accepts: whether a weight learns, by the labels of the nodes that read it.

        Raises:
            UsageError: torch is not installed, or samples or teachers do not fit the student.
            ModelError: torch has no function for an operator.
        """

    def effects(self, model: Model, axes: Mapping[str, int], most: int) -> Mapping[str, np.ndarray]:
        """What the channels of inner tensors do to the outputs, by gradients of the network itself.

        For a channel the mean over samples of (Σ x·∂L/∂x)², where L is the logarithm of the
        probability of a class that is drawn by the network's own scores (outputs of other kinds:
        their sum with random weights). Labels are not needed.

        Args:
            model: the network; it is not edited.
            axes: of the channels, by the name of the tensor.
            most: the largest number of samples.

        Returns:
            By name, (channels,); tensors that no gradient reaches are left out.

        Raises:
            UsageError: torch is not installed, or samples do not fit the model.
            ModelError: torch has no function for an operator.
        """

"""The protocol behind `context.calibration`: questions about the user's calibration samples.

The core knows this protocol alone; `onnxslim.runtime.probes.calibration_runs` answers it with
onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from onnxslim.records import OutputKind

if TYPE_CHECKING:
    import numpy as np

    from onnxslim.io.model import Model
    from onnxslim.records import Skip
    from onnxslim.services.activity import ChannelActivity
    from onnxslim.services.channel_moments import ChannelMoments
    from onnxslim.services.moments import LayerMoments
    from onnxslim.services.observations import Observation

Replacement = Callable[["np.ndarray"], "np.ndarray"]
"""Maps the value of a tensor to another one of the same shape and type."""


@dataclass(frozen=True)
class OutputDistance:
    """How far one output of a model, or a part of it, is from that of another.

    Attributes:
        kind: what the values are.
        agreement: share of equal top-1 answers of classes and token logits, of equal values where
            they are discrete.
        expected_agreement: see `Distance`.
        mean_cosine, least_cosine: of the rows of an embedding or of hidden states.
        mean_kl, largest_kl: Kullback-Leibler divergence of the rows of token logits, in nats.
    """

    kind: OutputKind
    sqnr_db: float
    agreement: float | None = None
    expected_agreement: float | None = None
    mean_cosine: float | None = None
    least_cosine: float | None = None
    mean_kl: float | None = None
    largest_kl: float | None = None


@dataclass(frozen=True)
class Distance:
    """How far the outputs of one model are from those of another.

    Attributes:
        divergence: mean over the outputs; for scores of classes or tokens the Kullback-Leibler
            divergence of the two distributions, in nats per row, for other outputs
            E‖y − ŷ‖² / E‖y‖². Both add up, to first order, over small independent changes of the
            model.
        agreement: share of equal top-1 answers, of the output with the smallest share; None where
            no output has answers.
        expected_agreement: the agreement expected from margins and their changes: E[Φ(margin / σ)],
            σ² the mean squared change of the margin between the best and the second class. With
            few samples it is more precise than the counted share.
        sqnr_db: signal-to-noise ratio of the output where it is smallest.
        outputs: figures of each output by name, or by the label of a part.
    """

    divergence: float
    agreement: float | None
    expected_agreement: float | None
    sqnr_db: float
    outputs: Mapping[str, OutputDistance] = field(default_factory=dict)

    @property
    def mean_cosine(self) -> float | None:
        """Mean cosine of the rows of the output where it is least; None where none has such."""
        return min(self._known("mean_cosine"), default=None)

    @property
    def least_cosine(self) -> float | None:
        """Least cosine of a row of any output; None as above."""
        return min(self._known("least_cosine"), default=None)

    @property
    def mean_kl(self) -> float | None:
        """Mean divergence of the rows of the token logits where it is largest; None without any."""
        return max(self._known("mean_kl"), default=None)

    @property
    def largest_kl(self) -> float | None:
        """Largest divergence of a row of any token logits; None without any."""
        return max(self._known("largest_kl"), default=None)

    def _known(self, figure: str) -> list[float]:
        found = (getattr(item, figure) for item in self.outputs.values())
        return [value for value in found if value is not None]

    @property
    def relative_error(self) -> float:
        """‖ŷ − y‖ / ‖y‖ of the output where it is largest."""
        return float(10 ** (-self.sqnr_db / 20))


@dataclass(frozen=True)
class SampleOutputs:
    """The outputs of a model for some samples.

    Attributes:
        values: the outputs by name.
        rows: number of samples.
        labels: one label for each sample, where the samples have labels.
    """

    values: Mapping[str, np.ndarray]
    rows: int
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class Extent:
    """What can be said of samples before any model runs on them.

    Attributes:
        samples: their number.
        is_labelled: whether each of them has a label.
        shapes: of the inputs of the first one, by name.
    """

    samples: int
    is_labelled: bool
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class Calibration(Protocol):
    """The calibration samples, as passes see them."""

    def extent(self, model: Model) -> Extent:
        """How many samples there are, and whether they have labels; reads them once."""

    def moments(
        self, model: Model, layers: Sequence[str] | None = None, reference: Model | None = None
    ) -> Iterator[LayerMoments | Skip]:
        """Moments of the named layers of `model` (None: all), one after the other.

        With `reference`, `cross` and `goal` hold the outputs y of the layers of the same names
        there; they are None where it certainly returns the same. A layer that cannot be observed
        gives a `Skip` with the reason.
        """

    def activity(self, model: Model, layers: Sequence[str]) -> Iterator[ChannelActivity | Skip]:
        """Statistics of the input channels of the named layers, or why there are none."""

    def channel_moments(self, model: Model, reference: Model, tensor: str) -> ChannelMoments | Skip:
        """Moments of the channels of a tensor of the main graphs of both models, by its name.

        Or why there are none: a tensor that nothing has changed has nothing to fit.
        """

    def observe(self, model: Model, tensors: Sequence[str]) -> Iterator[Observation | Skip]:
        """Ranges and histograms of the named tensors of the main graph, or why there are none.

        One for each distinct name; the node of a `Skip` is that name.
        """

    def distances(self, reference: Model, models: Iterable[Model]) -> Iterator[Distance]:
        """How far each of `models` is from `reference`, one after the other."""

    def effects(
        self, model: Model, replacements: Mapping[str, Sequence[Replacement]]
    ) -> Iterator[tuple[str, Sequence[Distance]]]:
        """How far `model` is from itself when the value of one inner tensor is replaced.

        Args:
            model: its shapes inferred.
            replacements: by the name of a tensor of the main graph; fastest in its order.

        Yields:
            the name, and a distance for each of its replacements; nothing for a tensor that cannot
            be replaced alone: a constant, or a tensor whose operator has to run anyway.
        """

    def outputs(self, model: Model, *, together: int | None = None) -> Iterator[SampleOutputs]:
        """The outputs of `model` for the samples, one run after the other.

        Args:
            model: a model with the inputs of the samples, and any outputs.
            together: the largest number of samples in one run; None: as many as is fast.
        """

    def parts(self, count: int) -> tuple[Calibration, ...]:
        """The samples dealt out into `count` parts; of fewer samples, some parts are all."""

    def some(self, count: int) -> Calibration:
        """About `count` of the samples, spread evenly; the first where their number is unknown."""

    def halves(self) -> tuple[Calibration, Calibration]:
        """The samples to fit trials on, and a fifth held back to judge them, spread evenly.

        Of very many samples, trials get only a part. Of a single sample, both are that sample.
        """

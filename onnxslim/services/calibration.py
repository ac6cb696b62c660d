"""What lossy passes may ask of the user's calibration samples: `context.calibration`.

The core knows this protocol alone; `onnxslim.runtime.probes.calibration_runs` answers it with
onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from onnxslim.io.model import Model
    from onnxslim.records import Skip
    from onnxslim.services.activity import ChannelActivity
    from onnxslim.services.moments import LayerMoments
    from onnxslim.services.observations import Observation

Replacement = Callable[["np.ndarray"], "np.ndarray"]
"""What takes the place of a tensor's value, of the same shape and type."""


@dataclass(frozen=True)
class Distance:
    """How far the outputs of one model are from those of another.

    Attributes:
        divergence: averaged over the outputs; of class scores Kullback and Leibler's divergence of
            the two distributions, in nats a row, of others E‖y − ŷ‖² / E‖y‖². Both are additive,
            to first order, over small independent changes of the model.
        agreement: share of equal top-1 answers, of the output where it is least; None where no
            output is class scores.
        expected_agreement: the agreement that the sizes of margins and of their changes lead to
            expect: E[Φ(margin / σ)], σ² the mean squared change of the margin between the best and
            the second class. Where samples are few it says more than counting does.
        sqnr_db: of the output where it is least.
    """

    divergence: float
    agreement: float | None
    expected_agreement: float | None
    sqnr_db: float


@dataclass(frozen=True)
class SampleOutputs:
    """What a model returns for some samples.

    Attributes:
        values: its outputs by name.
        rows: how many samples they are of.
        labels: one for each sample, where the samples have labels.
    """

    values: Mapping[str, np.ndarray]
    rows: int
    labels: np.ndarray | None = None


class Calibration(Protocol):
    """The calibration samples, as passes see them."""

    def moments(
        self, model: Model, layers: Sequence[str] | None = None, reference: Model | None = None
    ) -> Iterator[LayerMoments | Skip]:
        """Moments of the named layers of `model` (None: all), as few in memory at once as fit.

        With `reference`, y of the layers of the same names there is what `cross` and `goal` hold.
        A layer that cannot be observed gives a `Skip` with the reason.
        """

    def activity(self, model: Model, layers: Sequence[str]) -> Iterator[ChannelActivity | Skip]:
        """Statistics of the input channels of the named layers, or why there are none."""

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
            replacements: by the name of a tensor of the main graph; quickest in its order.

        Yields:
            the name, and a distance for each of its replacements. Nothing for a tensor that cannot
            be replaced alone: a constant, or one whose operator has to run all the same.
        """

    def outputs(self, model: Model, *, together: int | None = None) -> Iterator[SampleOutputs]:
        """What `model`, a network with the inputs of the samples, returns, run after run.

        Args:
            model: its outputs may be others than those of the network the samples were made for.
            together: the most samples in one run; None: as many as is quick.
        """

    def parts(self, count: int) -> tuple[Calibration, ...]:
        """The samples dealt out to so many parts. Of fewer samples some parts are all of them."""

    def some(self, count: int) -> Calibration:
        """About so many of the samples, spread evenly; the first, where nobody knows how many."""

    def halves(self) -> tuple[Calibration, Calibration]:
        """The samples to fit trials on and those held back to judge them, a fifth, spread evenly.

        Of very many samples a part is enough for trials. Of a single sample both are that sample.
        """


__all__ = ["Calibration", "Distance", "Replacement", "SampleOutputs"]

"""`CalibrationRuns`: what passes ask of the calibration samples, answered by running models.

What may change here: how many samples go into one run, and which are held back. What is summed up
is `moments`'s and `drift`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from onnxslim.contract import Skip
from onnxslim.model import Model
from onnxslim.objective.calibration import Calibration, Distance
from onnxslim.objective.moments import LayerMoments
from onnxslim.runtime.calibration import SampleSource, open_samples
from onnxslim.runtime.departure import Departure, combined
from onnxslim.runtime.moments import Limits, stream_moments
from onnxslim.runtime.samples import Sample, Samples
from onnxslim.runtime.session import Outputs, open_session

Keep = Callable[[int, int | None], bool]

_BATCH_ROWS: Final = 256
_BATCH_BYTES: Final = 4 << 20
_FOLDS: Final = 5
_HELD: Final = 1  # of each `_FOLDS` samples the second, so that two samples are enough
_MOST_TRIED: Final = 10000  # samples that a trial is fitted on, about
_KEPT_BYTES: Final = 256 << 20  # of reference outputs


class CalibrationRuns:
    """Implements `onnxslim.objective.calibration.Calibration` with onnxruntime.

    Args:
        source: of the samples; opened when first needed.
        seed: of the choice of positions in large maps.
        threads: of onnxruntime; None for its own choice.
        limits: of the sums; see `moments`.
        keeps: which samples belong to it, by number, each of those that the one before left.
    """

    def __init__(
        self,
        source: SampleSource,
        *,
        seed: int = 0,
        threads: int | None = None,
        limits: Limits | None = None,
        keeps: tuple[Keep, ...] = (),
    ) -> None:
        self._source, self._seed, self._threads = source, seed, threads
        self._limits, self._keeps = limits, keeps
        self._samples: Samples | None = None
        self._kept: tuple[Model, list[Outputs]] | None = None
        self._parts: tuple[Calibration, Calibration] | None = None

    def moments(
        self, model: Model, layers: Sequence[str] | None = None, reference: Model | None = None
    ) -> Iterator[LayerMoments | Skip]:
        """See `Calibration`.

        Raises:
            UsageError: the samples do not fit the model.
            RuntimeFailure: onnxruntime refuses the model or fails on a sample.
        """
        self._open(model)
        return stream_moments(
            model,
            self._runs,
            layers,
            reference=reference,
            limits=self._limits or Limits(samples=self._samples.count if self._samples else None),
            seed=self._seed,
            threads=self._threads,
        )

    def distances(self, reference: Model, models: Iterable[Model]) -> Iterator[Distance]:
        """See `Calibration`; errors as in `moments`."""
        self._open(reference)
        outputs = self._reference_outputs(reference)
        for model in models:
            with open_session(model, threads=self._threads) as session:
                meters = {info.name: Departure() for info in session.outputs}
                for sample, expected in zip(self._runs(), outputs, strict=False):
                    found = session.run(sample.feeds)
                    for name, meter in meters.items():
                        meter.update(expected[name], found[name])
            yield combined(list(meters.values()))

    def halves(self) -> tuple[Calibration, Calibration]:
        """See `Calibration`."""
        if self._parts is None:
            self._parts = (self._part(_is_tried), self._part(_is_held))
        return self._parts

    def _part(self, keep: Keep) -> CalibrationRuns:
        return CalibrationRuns(
            self._source,
            seed=self._seed,
            threads=self._threads,
            limits=self._limits,
            keeps=(*self._keeps, keep),
        )

    def _open(self, model: Model) -> None:
        if self._samples is None:
            with open_session(model, threads=self._threads) as session:
                samples = open_samples(self._source, session.inputs)
            for keep in self._keeps:
                samples = _chosen(samples, keep)
            self._samples = samples

    def _runs(self) -> Iterator[Sample]:
        assert self._samples is not None
        size: int | None = None
        for sample in self._samples:
            row = sum(array.nbytes for array in sample.feeds.values()) / sample.rows
            size = max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(row, 1))))
            break
        yield from self._samples.batches(size or 1)

    def _reference_outputs(self, reference: Model) -> list[Outputs]:
        if self._kept is None or self._kept[0] is not reference:
            with open_session(reference, threads=self._threads) as session:
                outputs, taken = [], 0
                for sample in self._runs():
                    outputs.append(session.run(sample.feeds))
                    taken += sum(array.nbytes for array in outputs[-1].values())
                    if taken > _KEPT_BYTES:
                        break
            self._kept = (reference, outputs)
        return self._kept[1]


def _is_tried(number: int, count: int | None) -> bool:
    every = 1 if count is None else -(-count // _MOST_TRIED)
    return number % _FOLDS != _HELD and number // _FOLDS % every == 0


def _is_held(number: int, count: int | None) -> bool:
    return number % _FOLDS == _HELD


def _chosen(samples: Samples, keep: Keep) -> Samples:
    """The samples that `keep` accepts, by number and count; all, where it accepts none."""

    def read() -> Iterator[Sample]:
        empty = True
        for number, sample in enumerate(samples):
            if keep(number, samples.count):
                empty = False
                yield sample
        if empty:
            yield from samples

    count = samples.count
    if count is not None:
        count = sum(keep(number, count) for number in range(count)) or count
    return Samples(samples.name, read, count, batchable=samples.batchable)

"""`CalibrationRuns` answers what passes ask of the calibration samples, by running models.

Owns: how many samples go into one run, and which samples are held back. Not here: the statistics
(see `moments`, `observers`, `channel_activity` and `output_divergence`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from onnxslim.analysis.output_kinds import OutputKinds, output_kinds
from onnxslim.analysis.output_parts import Parts, output_parts
from onnxslim.analysis.token_inputs import PaddingMask, padding_mask
from onnxslim.io.model import Model
from onnxslim.records import OutputKind, Skip
from onnxslim.runtime.measure.output_divergence import OutputDivergence, combined_distance
from onnxslim.runtime.measure.padding import positions_that_count
from onnxslim.runtime.measure.run_rows import as_they_run, rows_within
from onnxslim.runtime.probes.activation_cache import ActivationCaches
from onnxslim.runtime.probes.channel_activity import stream_activity
from onnxslim.runtime.probes.channel_sums import channel_moments
from onnxslim.runtime.probes.observers import stream_observations
from onnxslim.runtime.probes.replay import Replay
from onnxslim.runtime.probes.value_numbering import Signature, ValueNumbering
from onnxslim.runtime.samples.given import AnySource
from onnxslim.runtime.samples.sources import open_samples
from onnxslim.runtime.samples.stream import Sample, Samples
from onnxslim.runtime.samples.subsets import Keep, chosen, dealt, evenly, is_held, is_tried
from onnxslim.runtime.session import Feeds, Outputs, open_session
from onnxslim.services.activity import ChannelActivity
from onnxslim.services.calibration import (
    Calibration,
    Distance,
    Extent,
    Replacement,
    SampleOutputs,
)
from onnxslim.services.channel_moments import ChannelMoments
from onnxslim.services.moments import LayerMoments
from onnxslim.services.observations import Observation
from onnxslim.services.progress import Progress

if TYPE_CHECKING:
    from onnxslim.runtime.probes.moment_sums import MomentLimits

_BATCH_ROWS: Final = 256  # samples of a run
_KEPT_BYTES: Final = 256 << 20  # reference outputs that are kept
_MIN_SUMS: Final = 256 << 20  # the least budget in bytes for moments in one sweep


@dataclass(frozen=True)
class _ReferenceOutputs:
    """Outputs of a reference model on the samples."""

    signature: Signature
    outputs: Sequence[Outputs]  # of each run
    parts: Parts  # of outputs that are concatenated from several
    kinds: OutputKinds
    padding: PaddingMask | None


class _DistanceMeter:
    """Accumulates the distance of outputs from those of the reference, over samples."""

    def __init__(self, known: _ReferenceOutputs) -> None:
        self._padding = known.padding
        self._outputs = {
            name: OutputDivergence(
                name, known.parts.get(name, ()), known.kinds.get(name, OutputKind.VALUES)
            )
            for name in known.outputs[0]
        }

    def update(self, feeds: Feeds, expected: Outputs, found: Outputs) -> None:
        """Add one run."""
        counts = positions_that_count(self._padding, feeds)
        for name, output in self._outputs.items():
            output.update(expected[name], found[name], counts)

    @property
    def distance(self) -> Distance:
        """The distance over all runs so far."""
        return combined_distance(
            {
                name: meter
                for output in self._outputs.values()
                for name, meter in output.meters.items()
            }
        )


class CalibrationRuns:
    """Implements `onnxslim.services.calibration.Calibration` with onnxruntime.

    Args:
        source: of the samples, opened when first needed.
        seed: of the choice of positions in large maps.
        threads: see `open_session`.
        limits: on moments; None: by the size of the model.
        kinds: of the outputs, by name; None: what the graph of a reference says.
        progress: what is being done, for whoever shows it.

    Raises:
        UsageError: by every method, where the samples do not fit the model.
        RuntimeFailure: by every method, where onnxruntime refuses a model or fails on a sample.
    """

    def __init__(
        self,
        source: AnySource,
        *,
        seed: int = 0,
        threads: int | None = None,
        limits: MomentLimits | None = None,
        kinds: OutputKinds | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._source, self._seed, self._threads, self._limits = source, seed, threads, limits
        self._kinds, self._progress = kinds, progress or Progress()
        self._samples: Samples | None = None
        self._rows = 1  # samples of a run
        self._activations: ActivationCaches | None = None
        self._budget: int | None = None
        self._numbering = ValueNumbering()
        self._known: _ReferenceOutputs | None = None
        self._parts: tuple[Calibration, Calibration] | None = None
        self._extent: Extent | None = None

    def extent(self, model: Model) -> Extent:
        """See `Calibration`."""
        if self._extent is None:
            rows, is_labelled, shapes = 0, True, dict[str, tuple[int, ...]]()
            for sample in self._open(model):
                rows += sample.rows
                is_labelled = is_labelled and sample.labels is not None
                shapes = shapes or {name: array.shape for name, array in sample.feeds.items()}
            self._extent = Extent(rows, is_labelled and rows > 0, shapes)
        return self._extent

    def moments(
        self, model: Model, layers: Sequence[str] | None = None, reference: Model | None = None
    ) -> Iterator[LayerMoments | Skip]:
        """See `Calibration`."""
        # what computes them takes a third of the time that the command takes to start
        from onnxslim.runtime.probes.moment_sums import MomentLimits
        from onnxslim.runtime.probes.moments import stream_moments

        samples = self._open(model)
        if self._budget is None:  # moments may take as much memory as the model
            self._budget = max(_MIN_SUMS, model.file_bytes())
        return stream_moments(
            model,
            self._runs,
            layers,
            reference=reference,
            limits=self._limits or MomentLimits(budget_bytes=self._budget, samples=samples.count),
            seed=self._seed,
            threads=self._threads,
            activations=self._caches(samples),
        )

    def activity(self, model: Model, layers: Sequence[str]) -> Iterator[ChannelActivity | Skip]:
        """See `Calibration`."""
        self._open(model)
        return stream_activity(model, self._runs, layers, threads=self._threads)

    def channel_moments(self, model: Model, reference: Model, tensor: str) -> ChannelMoments | Skip:
        """See `Calibration`."""
        samples = self._open(model)
        caches = self._caches(samples)
        return channel_moments(
            model, reference, tensor, self._runs(), caches, threads=self._threads
        )

    def observe(self, model: Model, tensors: Sequence[str]) -> Iterator[Observation | Skip]:
        """See `Calibration`; a name that the model lacks is a `UsageError`."""
        samples = self._open(model)
        return stream_observations(
            model, samples.batches, tensors, count=samples.count, threads=self._threads
        )

    def distances(self, reference: Model, models: Iterable[Model]) -> Iterator[Distance]:
        """See `Calibration`."""
        samples = self._open(reference)
        known = self._known_outputs(reference)
        if isinstance(models, Sequence) and len(models) < 2:
            for model in models:  # it shares no nodes with other variants
                with open_session(model, threads=self._threads) as session:
                    yield self._distance(known, lambda feeds, _: session.run(feeds))
            return
        replay = Replay(reference, samples.count, threads=self._threads)
        for model in models:
            with replay.variant(model) as variant:
                found = self._distance(known, variant.run)
            yield found

    def effects(
        self, model: Model, replacements: Mapping[str, Sequence[Replacement]]
    ) -> Iterator[tuple[str, Sequence[Distance]]]:
        """See `Calibration`."""
        samples = self._open(model)
        known = self._known_outputs(model)
        replay = Replay(model, samples.count, threads=self._threads)
        for name, own in replacements.items():
            meters = [_DistanceMeter(known) for _ in own]
            with replay.downstream(name) as rest:
                if rest is None:
                    continue
                for sample, expected in zip(self._runs(), known.outputs, strict=False):
                    runs = rest.runs(sample.feeds, sample.rows, own)
                    for meter, found in zip(meters, runs, strict=True):
                        meter.update(sample.feeds, expected, found)
            yield name, [meter.distance for meter in meters]

    def _distance(self, known: _ReferenceOutputs, run: Callable[[Feeds, int], Outputs]) -> Distance:
        """The distance of the outputs of `run` from the reference, over all samples."""
        meter = _DistanceMeter(known)
        for sample, expected in zip(self._runs(), known.outputs, strict=False):
            meter.update(sample.feeds, expected, run(sample.feeds, sample.rows))
        return meter.distance

    def outputs(self, model: Model, *, together: int | None = None) -> Iterator[SampleOutputs]:
        """See `Calibration`."""
        self._open(model)
        with open_session(model, threads=self._threads) as session:
            for sample in self._runs(together):
                yield SampleOutputs(session.run(sample.feeds), sample.rows, sample.labels)

    def parts(self, count: int) -> tuple[Calibration, ...]:
        """See `Calibration`."""
        return tuple(_SampleSubset(self, dealt(number, count)) for number in range(count))

    def some(self, count: int) -> Calibration:
        """See `Calibration`."""
        return _SampleSubset(self, evenly(count))

    def halves(self) -> tuple[Calibration, Calibration]:
        """See `Calibration`."""
        if self._parts is None:
            self._parts = (_SampleSubset(self, is_tried), _SampleSubset(self, is_held))
        return self._parts

    def _open(self, model: Model) -> Samples:
        """The samples, opened for the inputs of `model` when they are first needed."""
        if self._samples is None:
            with open_session(model, threads=self._threads) as session:
                found = open_samples(self._source, session.inputs)
                self._samples = as_they_run(session, found).told(self._progress)
            if self._samples.batchable:
                first = next(iter(self._samples))
                self._rows = min(_BATCH_ROWS, rows_within(model, first, exposed=True))
        return self._samples

    def _caches(self, samples: Samples) -> ActivationCaches:
        if self._activations is None:
            self._activations = ActivationCaches(samples.count)
        return self._activations

    def _runs(self, most: int | None = None) -> Iterator[Sample]:
        assert self._samples is not None
        yield from self._samples.batches(most or self._rows)

    def _known_outputs(self, reference: Model) -> _ReferenceOutputs:
        """Outputs of `reference`, kept while its signature stays the same."""
        signature = self._numbering.signature(reference.graph)
        if self._known is None or self._known.signature != signature:
            with open_session(reference, threads=self._threads) as session:
                outputs, taken = [], 0
                for sample in self._runs():
                    outputs.append(session.run(sample.feeds))
                    taken += sum(array.nbytes for array in outputs[-1].values())
                    if taken > _KEPT_BYTES:
                        break
            kinds = self._kinds or output_kinds(reference)
            parts, padding = output_parts(reference), padding_mask(reference.graph)
            self._known = _ReferenceOutputs(signature, outputs, parts, kinds, padding)
        return self._known


class _SampleSubset(CalibrationRuns):
    """Calibration on a subset of the samples of another object."""

    def __init__(self, whole: CalibrationRuns, keep: Keep) -> None:
        super().__init__(
            whole._source,
            seed=whole._seed,
            threads=whole._threads,
            limits=whole._limits,
            kinds=whole._kinds,
        )
        self._whole, self._keep = whole, keep

    def _open(self, model: Model) -> Samples:
        if self._samples is None:
            self._samples = chosen(self._whole._open(model), self._keep)
            self._rows = self._whole._rows
        return self._samples

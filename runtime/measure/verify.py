"""`RuntimeProver` verifies each step of a pipeline by running models in onnxruntime.

One session is open at a time (two while timing). Outputs of the two baselines, the original and the
last committed model, are computed when first needed and kept.

Owns: which runs answer which question. Not here: the choice of inputs (see `workload`), what a
fidelity allows (see `promise`), and how time is measured (see `latency`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType

import onnxruntime as ort

from onnxslim.analysis.data_sizes import outputs_sized_by_data
from onnxslim.analysis.input_demands import input_demands
from onnxslim.analysis.output_kinds import OutputKinds, output_kinds
from onnxslim.analysis.output_parts import Parts, output_parts
from onnxslim.analysis.token_inputs import PaddingMask, padding_mask
from onnxslim.details import SampleDrift
from onnxslim.errors import ModelError, OptimiserFailure, OutOfMemory, RuntimeFailure
from onnxslim.io.check import OLDEST_OPSET, foreign_operators
from onnxslim.io.model import Model
from onnxslim.pipeline.floors import JudgedBy, default_floors, missed
from onnxslim.pipeline.output_words import with_named
from onnxslim.records import Fidelity, OutputKind
from onnxslim.report import Comparison, LatencyPair
from onnxslim.runtime.measure.accuracy import AnyEvaluation, Evaluation, open_evaluation
from onnxslim.runtime.measure.comparing import first_breach, measure_drift
from onnxslim.runtime.measure.drift import DriftMeter
from onnxslim.runtime.measure.kernel_choice import is_choice_of_kernels
from onnxslim.runtime.measure.latency import RunTimes, confirm, time_many
from onnxslim.runtime.measure.output_evidence import output_notes
from onnxslim.runtime.measure.promise import signature_breach
from onnxslim.runtime.measure.rounding_noise import (
    RoundingNoise,
    has_integers,
    nudged,
    nudged_weights,
    rounded_everywhere,
    rounds_between_operators,
)
from onnxslim.runtime.measure.sample_drift import sample_drifts
from onnxslim.runtime.measure.steadiness import differing_outputs, unsteady_outputs
from onnxslim.runtime.measure.workload import (
    Workload,
    from_samples,
    from_seed,
    is_branching,
    sizes_text,
    why_not_run,
)
from onnxslim.runtime.samples.describe import describe_samples
from onnxslim.runtime.samples.given import AnySource
from onnxslim.runtime.samples.seeded import is_silent
from onnxslim.runtime.samples.sources import open_samples
from onnxslim.runtime.samples.stream import Sample
from onnxslim.runtime.session import (
    DISABLE_QUANTIZED,
    Feeds,
    Outputs,
    Session,
    TensorInfo,
    open_session,
)
from onnxslim.services.progress import Progress

_NO_KERNEL = re.compile(r"Could not find an implementation for (\w+)(?:.*?name '([^']+)')?")
_MEASUREMENTS = 4  # a step is slower only when so many measurements all say so
ADVICE = "Give samples with --calib, or sizes with --input-shape, to have it verified."


@dataclass(frozen=True)
class _RunMode:
    """How the outputs to compare are computed.

    Attributes:
        wide: whether the samples are the wide set (see `workload`).
        alone: whether each sample is a run of its own: in a model with early exits, the other
            samples of a batch can change the result.
    """

    optimise: bool
    wide: bool
    alone: bool = False


@dataclass
class _Baseline:
    """A reference model and its outputs, by mode, as far as they were needed."""

    model: Model
    outputs: dict[_RunMode, list[Outputs]] = field(default_factory=dict)


class RuntimeProver:
    """Implements `onnxslim.pipeline.prover.Prover` with onnxruntime.

    Args:
        calibration: samples to compare outputs on; see `samples.sources`.
        evaluation: labelled samples or a metric; see `accuracy`.
        seed: of generated inputs, and of the order in which models are timed.
        threads: see `open_session`.
        provider: short name of the provider that models run on (see `runtime.providers`). Where
            outputs must be equal to the bit, operators run one by one, on the processor.
        input_shapes: by input name, for generated inputs.
        output_kinds: what outputs are, by name, in place of what the graph and labels say.
        latency: whether `time` measures.
        verify: whether outputs are compared.
        progress: what is being done, for whoever shows it.

    Raises:
        RuntimeFailure: by every method that runs a model, where onnxruntime refuses it or fails.
        UsageError: the user's samples, labels or shapes do not fit the model.
    """

    def __init__(
        self,
        *,
        calibration: AnySource | None = None,
        evaluation: AnyEvaluation | None = None,
        seed: int = 0,
        threads: int | None = None,
        provider: str | None = None,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        output_kinds: OutputKinds = MappingProxyType({}),
        latency: bool = True,
        verify: bool = True,
        progress: Progress | None = None,
    ) -> None:
        self.verified_on = "not verified: switched off"
        self.notes: list[str] = []
        self.data: list[str] = []  # what was understood of the user's data, a line for each
        self._calibration, self._evaluation_source = calibration, evaluation
        self._seed, self._input_shapes = seed, input_shapes
        self._threads, self._provider = threads, provider
        self.output_kinds = self._named_kinds = output_kinds
        self._latency, self._verify = latency, verify
        self._progress = progress or Progress()
        self._evaluation: Evaluation | None = None
        self._workload: Workload | None = None
        self._signature: tuple[Sequence[TensorInfo], Sequence[TensorInfo]] = ((), ())
        self._is_loadable = True
        self._is_comparable = False
        self._is_exact = True  # whether two runs of one model give the same bits
        self._parts: Parts | None = None  # of the original's outputs
        self._padding: PaddingMask | None = None
        self._sized_by_data: frozenset[str] | None = None  # outputs of the original
        self._resized: set[str] = set()  # those that a note tells of
        self._unsteady: dict[str, str] = {}  # outputs that are not compared, and how they differ
        self._repeated: set[_RunMode] = set()  # modes in which the original was run again
        self._noise: RoundingNoise | None = None
        self._original: _Baseline | None = None
        self._previous: _Baseline | None = None
        self._candidate: _Baseline | None = None

    # ------------------------------------------------------------------ Prover

    def begin(self, original: Model) -> bool:
        """See `Prover`. A model with operators that onnxruntime lacks is compressed without a run.

        Raises:
            ModelError: its opset is older than onnxruntime supports.
        """
        self._original = self._previous = _Baseline(original)
        self.output_kinds = with_named(output_kinds(original), self._named_kinds)
        self._padding = padding_mask(original.graph)
        if not self._verify and not self._latency:
            return False
        with self._progress.step("running the input model"):
            return self._begin(original)

    def _begin(self, original: Model) -> bool:
        opened = self._open_original(original)
        if opened is None:
            return False
        with opened as session:
            self._note_provider(session)
            self._signature = (session.inputs, session.outputs)
            if self._evaluation_source is not None:
                self._opened_evaluation(session)
            failure = self._choose_workload(original, session)
            if failure is None and self._verify:
                failure = self._run_original(session)
        if self._verify:
            self._is_comparable = failure is None
            self.verified_on = f"not verified: {failure}" if failure else self._compared_on()
        return self._is_comparable

    def compare(self, candidate: Model, fidelity: Fidelity) -> Comparison:
        """See `Prover`. Where outputs cannot be compared, the model is only loaded."""
        self._candidate = None
        if not self._verify or not self._is_loadable:
            return Comparison({}, {})
        mode = self._mode(candidate, fidelity)
        if self._is_comparable:
            mode = self._prepare(mode)
        try:
            found = self._compared(candidate, fidelity, mode)
            if not mode.optimise and found.broken is None:
                self._open(candidate).close()  # as applications will
        except OutOfMemory:
            raise
        except RuntimeFailure as error:
            if self._is_right_bare(candidate, fidelity, mode):
                raise OptimiserFailure(
                    f"onnxruntime's own optimisations fail on the result, which runs without them: "
                    f"{error}"
                ) from error
            raise
        return found

    def _is_right_bare(self, candidate: Model, fidelity: Fidelity, mode: _RunMode) -> bool:
        """Whether a model on which optimisations fail runs, and rightly, without them."""
        try:
            bare = replace(mode, optimise=False)
            if self._is_comparable:
                bare = self._prepare(bare)
            return not bare.optimise and not self._compared(candidate, fidelity, bare).broken
        except RuntimeFailure:
            return False

    def _compared(self, candidate: Model, fidelity: Fidelity, mode: _RunMode) -> Comparison:
        with self._open(candidate, optimise=mode.optimise) as session:
            broken = self._changed_signature(session)
            if broken is not None or not self._is_comparable:
                return Comparison({}, {}, broken)
            if fidelity is Fidelity.EXACT and mode.optimise:
                fidelity = Fidelity.CLOSE
            with self._progress.step("comparing outputs"):
                return self._measured(candidate, session, mode, fidelity)

    def why_not_same(self, before: Model, after: Model) -> str | None:
        """What keeps `after` from taking the place of `before`: it fails, or outputs differ.

        Outputs are held to rounding, with onnxruntime's optimisations as users run them. It must
        load without them as well, where `before` does: a later step may take away what they need.
        """
        baselines = self._previous, self._candidate
        self._previous = _Baseline(before)
        try:
            broken = self.compare(after, Fidelity.CLOSE).broken
            return broken or self._refuses_bare(before, after)
        except RuntimeFailure as error:
            return f"does not run: {error}"
        finally:
            self._previous, self._candidate = baselines

    def _refuses_bare(self, before: Model, after: Model) -> str | None:
        """Why `after` does not load without optimisations, in a sentence, where `before` does."""
        try:
            if self._is_loadable and (self._verify or self._latency):
                self._open(after, optimise=False).close()
        except RuntimeFailure as error:
            with suppress(RuntimeFailure):
                self._open(before, optimise=False).close()
                return f"only runs with the optimisations of onnxruntime: {error}"
        return None

    def commit(self, model: Model) -> None:
        """See `Prover`."""
        known = (known for known in (self._candidate, self._original) if known is not None)
        same = (baseline for baseline in known if baseline.model is model)
        self._previous = next(same, None) or _Baseline(model)
        self._candidate = None

    def time(self, before: Model, after: Model) -> LatencyPair | None:
        """See `Prover`. For a model that branches it is the mean over several samples.

        A slowdown is believed only when further pairs of sessions confirm it.
        """
        if not self._latency or self._workload is None:
            return None
        branches = is_branching(before) or is_branching(after)
        feeds = self._workload.tour if branches else (self._workload.single,)
        with self._progress.step("timing before and after in turn"):
            return self._pair(before, after, feeds)

    def _pair(self, before: Model, after: Model, feeds: Sequence[Feeds]) -> LatencyPair:
        measured = [self._times(before, after, feeds)]
        pair = confirm(measured)
        while pair.is_slower and len(measured) < _MEASUREMENTS:
            if len(measured) % 2:  # the order of opening can matter
                measured.append(self._times(after, before, feeds).rows(1, 0))
            else:
                measured.append(self._times(before, after, feeds))
            pair = confirm(measured)
        return pair

    def accuracy(self, model: Model) -> float | None:
        """See `Prover`."""
        if self._evaluation_source is None:
            return None
        with (
            self._progress.step("measuring accuracy"),
            self._open(model) as session,
        ):
            evaluation = self._opened_evaluation(session)
            score = evaluation.score(session, model=model, alone=is_branching(model))
            if self._original is not None and model is self._original.model:
                self._believe_labels(evaluation, session)
            return score

    def sample_drifts(self, candidate: Model) -> tuple[SampleDrift, ...]:
        """How far outputs on each sample are from the original's; () where they are not compared.

        In the order of the data.
        """
        if not self._is_comparable or self._original is None:
            return ()
        mode = self._prepare(self._mode(candidate, Fidelity.LOSSY))
        references = self._reference(self._original, mode)
        with self._progress.step("comparing samples"), self._open(candidate) as session:
            runs = self._runs(mode)
            return tuple(sample_drifts(session, runs, references, self.output_kinds, self._padding))

    def check_file(self, path: Path, model: Model) -> None:
        """See `Prover`."""
        if not self._verify or not self._is_loadable:
            return
        mode = _RunMode(optimise=True, wide=False)
        reference: list[Outputs] = []
        if self._is_comparable:
            previous = self._previous
            shared = previous is not None and previous.model.graph is model.graph
            baseline = previous if shared and previous is not None else _Baseline(model)
            reference = self._reference(baseline, mode)
        with open_session(path, threads=self._threads, provider=self._provider) as session:
            session.provider_share()
            session.narrow_as(model)
            broken = self._changed_signature(session)
            if broken is None and reference:
                # the model itself was compared on all samples: one shows that the file is it
                first = islice(self._runs(mode), 1)
                meters, broken = measure_drift(session, first, (reference[:1],))
                broken = broken or first_breach(meters[0], session.outputs, Fidelity.CLOSE)
        if broken is not None:
            raise RuntimeFailure(
                f"The written file is not the model that was verified: it {broken}."
            )

    @property
    def timed_on(self) -> str | None:
        """See `Prover`."""
        if not self._latency or self._workload is None:
            return None
        return sizes_text(self._workload.single)

    @property
    def judged_by(self) -> JudgedBy:
        """What outputs are judged by, once the original is known."""
        has_metric = self._evaluation is not None and self._evaluation.metric is not None
        return JudgedBy(
            samples=self._is_comparable and self._has_samples,
            labels=self._evaluation is not None and not has_metric,
            metric=has_metric,
        )

    @property
    def sample(self) -> Feeds | None:
        """The sample that models are timed on; None where no inputs are known."""
        return None if self._workload is None else self._workload.single

    @property
    def probes(self) -> Sequence[Feeds]:
        """The inputs on which lossless steps are compared; () where outputs are not compared."""
        if self._workload is None or not self._is_comparable:
            return ()
        return [sample.feeds for sample in self._workload.probes]

    def some_probes(self, most: int) -> tuple[Sequence[Feeds], int]:
        """The first of `probes`, at most so many runs, and the number of samples in them."""
        runs = () if self._workload is None or not self.probes else self._workload.probes[:most]
        return [run.feeds for run in runs], sum(run.rows for run in runs)

    # ------------------------------------------------------------------ inside

    @property
    def _has_samples(self) -> bool:
        """Whether outputs are compared on samples of the user."""
        evaluation = self._evaluation
        return self._calibration is not None or (
            evaluation is not None and evaluation.samples is not None
        )

    @property
    def _is_one_source(self) -> bool:
        """Whether the same samples, with labels, are for calibration and for evaluation."""
        return self._calibration is not None and self._calibration is self._evaluation_source

    def _times(self, first: Model, second: Model, tour: Sequence[Feeds]) -> RunTimes:
        """Times of a sample."""
        with self._open(first) as a, self._open(second) as b:
            runs = [_around(session, tour) for session in (a, b)]
            return time_many(runs, seed=self._seed).per(len(tour))

    def _open(self, model: Model, *, optimise: bool = True, keeps_memory: bool = True) -> Session:
        return open_session(
            model,
            optimise=optimise,
            threads=self._threads,
            keeps_memory=keeps_memory,
            provider=self._provider,
        )

    def _note_provider(self, session: Session) -> None:
        share = session.provider_share()
        if share is not None:
            taken, total = share
            rest = "" if taken == total else " The processor computes the others."
            self.notes.append(
                f"The provider {self._provider} computes {taken} of the {total} nodes that "
                f"onnxruntime makes of the input model.{rest}"
            )

    def _open_original(self, original: Model) -> Session | None:
        """A session of the original; None where onnxruntime only lacks some of its operators."""
        try:
            return self._open(original)
        except RuntimeFailure as error:
            opset = original.graph.opset_of("") or OLDEST_OPSET
            if opset < OLDEST_OPSET or "till opset" in str(error):
                raise ModelError(
                    f"The model uses opset {opset}, which onnxruntime {ort.__version__} does not "
                    "run. Convert it first, for example with "
                    "`onnx.version_converter.convert_version(model, 17)`."
                ) from error
            lacking = foreign_operators(original) or _without_kernel(error)
            if not lacking:
                raise
        self._is_loadable = False
        names = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        self.verified_on = f"not verified: onnxruntime does not have {names}."
        return None

    def _believe_labels(self, evaluation: Evaluation, session: Session) -> None:
        """The output that labels are held against holds classes, unless the user named its kind."""
        name = evaluation.scored_output(session)
        if name is not None and name not in self._named_kinds:
            self.output_kinds = {**self.output_kinds, name: OutputKind.CLASSES}

    def _opened_evaluation(self, session: Session) -> Evaluation:
        if self._evaluation is None:
            assert self._evaluation_source is not None
            self._evaluation = open_evaluation(
                self._evaluation_source, session.inputs, self._progress
            )
            if self._evaluation.samples is not None:
                role = "calibration and evaluation" if self._is_one_source else "evaluation"
                self.data.append(describe_samples(self._evaluation.samples, role))
        return self._evaluation

    def _choose_workload(self, original: Model, session: Session) -> str | None:
        """Set `_workload`; the reason, when there is none."""
        why_not = why_not_run(original)
        if why_not is not None:
            return why_not
        if self._calibration is not None:
            samples = open_samples(self._calibration, session.inputs).told(self._progress)
            if not (self._is_one_source and self.data):
                self.data.append(describe_samples(samples, "calibration"))
            self._workload = from_samples(session, samples, "calibration", original)
            return None
        if self._evaluation is not None and self._evaluation.samples is not None:
            known = self._evaluation.samples
            self._workload = from_samples(session, known, "evaluation", original)
            return None
        demands = input_demands(original)
        self._workload, why = from_seed(
            session, self._seed, self._input_shapes, demands, original if self._latency else None
        )
        if self._workload is None:
            return f"no inputs could be made up that the model accepts. {why} {ADVICE}"
        return None

    def _compared_on(self) -> str:
        """The samples that outputs are compared on, and the outputs that are not compared."""
        left_out = [
            f", without output `{info.name}`, which is {info.kind}"
            for info in self._signature[1]
            if info.dtype is None
        ]
        if self._unsteady:
            names = ", ".join(f"`{name}`" for name in self._unsteady)
            left_out.append(f", without {names}: {self._why_unsteady.removesuffix('.')}")
        return "".join((self._workload.description if self._workload else "", *left_out))

    def _run_original(self, session: Session) -> str | None:
        """Reference outputs; the reason, when they say nothing about another model."""
        strange = [info for info in session.outputs if info.dtype is None]
        if len(strange) == len(session.outputs):
            return f"output `{strange[0].name}` is {strange[0].kind}, which cannot be compared."
        workload, original = self._workload, self._original
        assert workload is not None
        assert original is not None
        mode = _RunMode(optimise=True, wide=False)
        known = list(workload.outputs) or [session.run(workload.probes[0].feeds)]
        first = known[0]
        second = session.run(workload.probes[0].feeds)
        self._unsteady = differing_outputs(first, second, session)
        inexact = differing_outputs(first, second, session, Fidelity.EXACT)
        self._is_exact = not inexact.keys() - self._unsteady.keys()
        if not self._steady(first):
            return self._why_unsteady
        rest = [session.run(sample.feeds) for sample in workload.probes[len(known) :]]
        runs = [self._steady(run) for run in (*known, *rest)]
        if all(map(is_silent, runs)) and any(a.size for run in runs for a in run.values()):
            where = "all samples" if self._has_samples else "all inputs that could be made up"
            advice = "" if self._has_samples else f" {ADVICE}"
            return f"outputs are NaN or infinite on {where}.{advice}"
        original.outputs[mode] = runs
        self.notes.extend(output_notes(runs, alone=workload.batch == 1))
        return None

    def _steady(self, outputs: Outputs) -> Outputs:
        """Those that the input model gives alike each time, as far as is known."""
        return {name: array for name, array in outputs.items() if name not in self._unsteady}

    @property
    def _why_unsteady(self) -> str:
        """Why outputs are not compared."""
        return (
            "two runs of the input model on the same sample differ (the second "
            f"{next(iter(self._unsteady.values()))}), so it draws random numbers, keeps a state or "
            "returns memory that nothing wrote."
        )

    def _agrees_with_itself(self, mode: _RunMode) -> bool:
        """Whether the input model gives again what was compared; else those outputs are left out.

        Asked when a step seems to be broken, at most once in each mode.
        """
        if mode in self._repeated:
            return True
        self._repeated.add(mode)
        assert self._original is not None
        model, known = self._original.model, len(self._unsteady)
        opened = partial(self._open, model, optimise=mode.optimise)
        reference = self._reference(self._original, mode)
        allowed = Fidelity.CLOSE if mode.optimise else Fidelity.EXACT
        self._unsteady |= unsteady_outputs(opened, list(self._runs(mode)), reference, allowed)
        if len(self._unsteady) == known:
            return True
        self._is_comparable = bool(self._steady(reference[0]))
        self.verified_on = (
            self._compared_on() if self._is_comparable else f"not verified: {self._why_unsteady}"
        )
        return False

    def _mode(self, candidate: Model, fidelity: Fidelity) -> _RunMode:
        wide = self._workload is not None and self._workload.has_wide
        to_the_bit = fidelity is Fidelity.EXACT and self._is_exact
        return _RunMode(
            optimise=not to_the_bit or rounds_between_operators(candidate),
            wide=wide and fidelity is Fidelity.LOSSY,
            alone=fidelity is Fidelity.LOSSY and is_branching(candidate),
        )

    def _prepare(self, mode: _RunMode) -> _RunMode:
        """Compute the outputs of both baselines; the mode, another where onnxruntime refuses it."""
        assert self._original is not None
        assert self._previous is not None
        try:
            self._reference(self._original, mode)
            self._reference(self._previous, mode)
        except RuntimeFailure:
            if mode.optimise:
                raise
            self._is_exact = False
            self.notes.append(
                "onnxruntime runs this model only with its own optimisations, so exact steps were "
                "held to rounding instead of equal bits."
            )
            return self._prepare(replace(mode, optimise=True))
        return mode

    def _reference(self, baseline: _Baseline, mode: _RunMode) -> list[Outputs]:
        if mode not in baseline.outputs:
            with self._open(baseline.model, optimise=mode.optimise) as session:
                runs = self._runs(mode)
                baseline.outputs[mode] = [session.run(sample.feeds) for sample in runs]
        return [self._steady(run) for run in baseline.outputs[mode]]

    def _runs(self, mode: _RunMode) -> Iterable[Sample]:
        assert self._workload is not None
        return self._workload.runs(wide=mode.wide, alone=mode.alone)

    def _changed_signature(self, session: Session) -> str | None:
        inputs, outputs = self._signature
        for word, old, new in (
            ("input", inputs, session.inputs),
            ("output", outputs, session.outputs[: len(outputs)]),  # there may be additional outputs
        ):
            change = signature_breach(word, old, new)
            if change is not None:
                return change
        return None

    def _measured(
        self, candidate: Model, session: Session, mode: _RunMode, fidelity: Fidelity
    ) -> Comparison:
        assert self._original is not None
        assert self._previous is not None
        references = [self._reference(self._previous, mode)]
        if self._original is not self._previous:
            references.append(self._reference(self._original, mode))
        kept: list[Outputs] = []
        parts = self._parts_for(fidelity)
        resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        elastic = self._elastic(fidelity, len(references))
        kinds = self.output_kinds
        meters, broken = measure_drift(
            *(session, self._runs(mode), references, kept, parts, elastic, resized, kinds),
            padding=self._padding,
        )
        self._note_resized(resized)
        reshaped = broken is not None
        broken = broken or first_breach(meters[0], session.outputs, fidelity)
        found = None if reshaped else meters[0]
        if broken is not None and not self._agrees_with_itself(mode):
            if not self._is_comparable:
                return Comparison({}, {})
            return self._measured(candidate, session, mode, fidelity)
        if broken is not None and self._is_noise(broken, fidelity, mode, found, session):
            broken = None
            if reshaped:  # sizes that rounding alone changes: what remains comparable is measured
                kept.clear()
                elastic = [frozenset(kind.name for kind in session.outputs)] * len(references)
                meters, broken = measure_drift(
                    *(session, self._runs(mode), references, kept, parts, elastic),
                    kinds=kinds,
                    padding=self._padding,
                )
                reshaped = broken is not None
        if reshaped:
            return Comparison({}, {}, broken)
        if broken is not None and self._is_choice_of_kernels(broken, candidate, meters[0], mode):
            broken = None
        self._candidate = _Baseline(candidate, {mode: kept})
        drifts = [
            {name: m.result() for name, m in found.items() if m.largest or name in kept[0]}
            for found in meters  # a part that is all zero has no signal-to-noise ratio
        ]
        return Comparison(drifts[0], drifts[-1], broken)

    def _is_choice_of_kernels(
        self, broken: str, candidate: Model, meters: Mapping[str, DriftMeter], mode: _RunMode
    ) -> bool:
        """Whether a lossless step is right, and onnxruntime computes its result less precisely."""
        figures = {name: meter.result() for name, meter in meters.items()}
        if mode.wide or not mode.optimise or missed(default_floors(self.judged_by), figures):
            return False
        assert self._previous is not None
        opened = partial(
            open_session,
            threads=self._threads,
            quantized_kernels=False,
            provider=self._provider,
        )
        runs, before = list(self._runs(mode)), self._previous.model
        if not is_choice_of_kernels(before, candidate, runs, opened, self._steady):
            return False
        note = (
            "onnxruntime computes quantized nodes of the result in kernels that it did not choose "
            f"before, which round to 8 bits: the result {broken}. With the session option "
            f"{DISABLE_QUANTIZED}=1 the outputs agree to rounding."
        )
        if note not in self.notes:
            self.notes.append(note)
        return True

    def _elastic(self, fidelity: Fidelity, references: int) -> Sequence[frozenset[str]]:
        """The outputs whose sizes may differ from those of the previous model, and the original.

        Only lossy steps may change sizes that depend on data; a lossless step after one is held to
        the sizes of the model before it.
        """
        if fidelity is not Fidelity.LOSSY and references == 1:
            return ()
        if self._sized_by_data is None:
            assert self._original is not None
            self._sized_by_data = outputs_sized_by_data(self._original.model)
        previous = self._sized_by_data if fidelity is Fidelity.LOSSY else frozenset()
        return (previous, self._sized_by_data)[:references]

    def _note_resized(self, resized: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
        for name in (resized.keys() & (self._sized_by_data or ())) - self._resized:
            before, after = resized[name]
            self.notes.append(
                f"The size of output `{name}` depends on data, and a lossy step changed it (from "
                f"{list(before)} to {list(after)} on one sample): matching parts were compared."
            )
            self._resized.add(name)

    def _parts_for(self, fidelity: Fidelity) -> Parts:
        """Parts of the outputs of the original; lossless promises concern whole outputs."""
        if fidelity is not Fidelity.LOSSY:
            return {}
        if self._parts is None:
            assert self._original is not None
            self._parts = output_parts(self._original.model)
        return self._parts

    def _is_noise(
        self,
        broken: str,
        fidelity: Fidelity,
        mode: _RunMode,
        meters: Mapping[str, DriftMeter] | None,
        session: Session,
    ) -> bool:
        """Whether changes of rounding alone move the input model as much.

        Without `meters`, the shape of an output changed.
        """
        if fidelity is not Fidelity.CLOSE or not mode.optimise:
            return False
        noise = self._own_noise(mode)
        if meters is None:
            explained = noise.changes_shape
        else:
            explained = noise.explains(meters, session.outputs)
        if not explained:
            return False
        note = (
            "The input model is sensitive to rounding: with onnxruntime's own optimisations off, "
            "float16 rounded after each operator, or inputs (weights, where inputs are integers) "
            "off by one unit in the last place, its outputs move as much as here "
            f"(the result {broken}). Samples from practice (--calib) may show less."
        )
        if note not in self.notes:
            self.notes.append(note)
        return True

    def _own_noise(self, mode: _RunMode) -> RoundingNoise:
        if self._noise is None:
            assert self._original is not None
            self._noise = RoundingNoise()
            reference = self._reference(self._original, mode)
            runs = list(self._runs(mode))
            with self._open(self._original.model) as session:
                for samples in nudged(runs, self._seed):
                    self._noise.add(session, samples, reference)
            model = self._original.model
            if has_integers(runs):
                for moved in nudged_weights(model, self._seed):
                    with suppress(RuntimeFailure), self._open(moved) as session:
                        self._noise.add(session, runs, reference)
            plain = (
                [model, rounded_everywhere(model)] if rounds_between_operators(model) else [model]
            )
            for variant in plain:
                with suppress(RuntimeFailure), self._open(variant, optimise=False) as session:
                    self._noise.add(session, runs, reference)
        return self._noise


def _without_kernel(error: RuntimeFailure) -> list[str]:
    """The operator that onnxruntime knows, but not on the element types that the model has."""
    found = _NO_KERNEL.search(str(error))
    if found is None:
        return []
    where = f" (node `{found[2]}`)" if found[2] else ""
    return [f"`{found[1]}`{where} on the element types of the model"]


def _around(session: Session, tour: Sequence[Feeds]) -> Callable[[], object]:
    """A function that runs all samples of `tour` once."""
    runs = [session.runner(feeds) for feeds in tour]

    def run() -> None:
        for each in runs:
            each()

    return runs[0] if len(runs) == 1 else run

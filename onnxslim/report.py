"""The record of a run, behind the console table and the files of `--report`.

Every figure was measured; a figure that was not measured is None. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from onnxslim.details import Details, Tuning
from onnxslim.records import Change, Fidelity, OutputKind, Skip

BUSY: Final = 0.1
"""Share of the time spent waiting for the processor, above which a machine is busy."""


@dataclass(frozen=True)
class Stats:
    """Size of a model.

    Attributes:
        nodes: number of operators, including those in bodies of If, Loop and Scan.
        parameters: number of elements of all initializers and constants.
        initializer_bytes: bytes of all initializers and constants in the file.
        file_bytes: bytes of the file and its external data.
        macs: multiply-accumulates for one sample (an unknown first dimension counts as one);
            None when another dimension of a layer is unknown.
    """

    nodes: int
    parameters: int
    initializer_bytes: int
    file_bytes: int
    macs: int | None


@dataclass(frozen=True)
class Latency:
    """Run times of one model in milliseconds, measured in turn with those of another.

    Attributes:
        median, p10, p90: quantiles of the run times.
        runs: number of timed runs.
        pairs_mean: mean over the pairs that the ratio of a `LatencyPair` comes from; None where
            nothing was paired.
        quantiles: run times at 0, 5, ... 100 % of the runs; () where they were not kept.
    """

    median: float
    p10: float
    p90: float
    runs: int
    pairs_mean: float | None = None
    quantiles: tuple[float, ...] = ()

    @property
    def ms(self) -> float:
        """The figure to print: figures of a pair give its ratio."""
        return self.median if self.pairs_mean is None else self.pairs_mean


@dataclass(frozen=True)
class LatencyPair:
    """Two models timed in turn (A B A B ...).

    Attributes:
        before: run times of the first model.
        after: run times of the second model.
        ratio: before / after, each the mean over the pairs in the middle of all ratios (see
            `runtime.measure.latency`); above 1 the second model is faster.
        low, high: bounds of the 95 % confidence interval of the median ratio; they enclose `ratio`.
        waiting: share of the time, in [0, 1], in which the models waited for the processor, as
            other programs had it.
    """

    before: Latency
    after: Latency
    ratio: float
    low: float
    high: float
    waiting: float = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether the models waited so long that their processor time was compared instead."""
        return self.waiting > BUSY

    @property
    def is_slower(self) -> bool:
        """Whether the second model is slower, beyond the spread."""
        return self.high < 1.0

    @property
    def is_faster(self) -> bool:
        """Whether the second model is faster, beyond the spread."""
        return self.low > 1.0


@dataclass(frozen=True)
class Drift:
    """How far one output is from its reference, over all samples.

    Attributes:
        max_abs: largest absolute difference.
        rel_l2: ‖new - ref‖ / ‖ref‖.
        sqnr_db: 10 log10(‖ref‖² / ‖new - ref‖²); infinite for equal outputs.
        cosine: cosine similarity of output and reference, both flattened.
        agreement: of classes and token logits, share of rows whose largest entry is at the same
            index; of discrete values, share of equal values; None for other kinds.
        reference_range: max(ref) - min(ref).
        equal_bits: whether all bits are equal (NaN equals NaN).
        unmatched: values without a counterpart, where sizes of the output depend on data; of the
            other figures only the agreement of discrete values counts them.
        kind: what the values are.
        mean_cosine, least_cosine: mean and least cosine similarity of rows along the last axis;
            None where the kind is neither `EMBEDDING` nor `HIDDEN_STATES`.
        mean_kl, largest_kl: mean and largest Kullback-Leibler divergence of rows along the last
            axis, in nats; None where the kind is not `TOKEN_LOGITS`.

    Where a mask among the inputs leaves positions out, all but `max_abs`, `reference_range`,
    `equal_bits` and `unmatched` are those of the positions that count.
    """

    max_abs: float
    rel_l2: float
    sqnr_db: float
    cosine: float
    agreement: float | None
    reference_range: float
    equal_bits: bool
    unmatched: int = 0
    kind: OutputKind = OutputKind.VALUES
    mean_cosine: float | None = None
    least_cosine: float | None = None
    mean_kl: float | None = None
    largest_kl: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Drift of a candidate by output name, against two baselines.

    Attributes:
        previous: drift against the last committed model.
        original: drift against the input model.
        broken: how the candidate breaks the promised fidelity; None when it holds.
    """

    previous: Mapping[str, Drift]
    original: Mapping[str, Drift]
    broken: str | None = None


@dataclass(frozen=True)
class PartReport:
    """One pass inside a step; the parts of a preset are its members, summed over rounds.

    Attributes:
        untouched: what a pass for all weights left as it was, in words, where it is notable.
        notes: what the user should know, a sentence each.
    """

    spec: str
    fidelity: Fidelity
    seconds: float
    changes: tuple[Change, ...]
    skips: tuple[Skip, ...]
    untouched: str | None = None
    notes: tuple[str, ...] = ()


@dataclass
class StepReport:
    """One step of the pipeline.

    Attributes:
        spec: the step as a pipeline spells it.
        fidelity: the promise of its changes.
        committed: whether the step was kept.
        seconds: run time of the step without verification.
        stats, latency, comparison, accuracy: figures of the candidate; None where not measured.
        why_not_committed: why the step was dropped, with the numbers.
        why_partly: which of its rewrites were left out, or why it was done with less strength, with
            the numbers; None: neither.
        floor_missed: whether it was dropped, or weakened, for a floor.
        loss_bound: why its loss is small whatever the inputs are; None: only real data can tell.
        resolved: the spelling that does the same without timing or search; None: `spec` does.
        from_cache: whether an earlier run did it; `seconds` and all figures are those of then.
        weakened_to: the spelling with less strength that was kept, to hold a floor; None: `spec`.
    """

    spec: str
    fidelity: Fidelity
    committed: bool
    seconds: float
    parts: list[PartReport] = field(default_factory=list)
    stats: Stats | None = None
    latency: LatencyPair | None = None
    comparison: Comparison | None = None
    accuracy: float | None = None
    why_not_committed: str | None = None
    why_partly: str | None = None
    floor_missed: bool = False
    resolved: str | None = None
    weakened_to: str | None = None
    loss_bound: str | None = None
    from_cache: bool = False

    @property
    def changes(self) -> tuple[Change, ...]:
        """The changes of all parts."""
        return tuple(change for part in self.parts for change in part.changes)

    @property
    def skips(self) -> tuple[Skip, ...]:
        """The skips of all parts."""
        return tuple(skip for part in self.parts for skip in part.skips)

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of all parts."""
        return tuple(note for part in self.parts for note in part.notes)

    @property
    def untouched(self) -> str | None:
        """What the last weight pass left as it was, in words, where it is notable."""
        return next((part.untouched for part in reversed(self.parts) if part.untouched), None)


@dataclass(frozen=True)
class RunRecord:
    """What a run went by, so that it can be run again.

    Attributes:
        pipeline: the pipeline as given.
        resolved: the pipeline with what timing and search decided spelled out; it gives the same
            bytes on the same input and data, whatever the clock says.
        settings: what else bears on the result, by the name of the option on the command line.
        data_sha256: sha256 in hex of the calibration and evaluation data, by the name of the
            option; of a function, that of its source file.
        processor: name of the processor.
    """

    pipeline: str
    resolved: str
    settings: Mapping[str, str] = field(default_factory=dict)
    data_sha256: Mapping[str, str] = field(default_factory=dict)
    processor: str = ""


@dataclass(frozen=True)
class Failure:
    """What ended a run, or kept it from being what was asked for.

    Attributes:
        type: class of the error, such as `ModelError`.
        exit_code: of the command.
        message: the error in one sentence, as it is printed.
    """

    type: str
    exit_code: int
    message: str


@dataclass
class FileReport:
    """A model file: its path, its sha256 in hex, its size and what was measured of it."""

    path: str | None
    sha256: str | None
    stats: Stats
    latency: Latency | None = None
    accuracy: float | None = None


@dataclass
class Report:
    """The figures of a whole run.

    Attributes:
        command: the command line or the call.
        versions: version by name of a package: onnx, onnxruntime, ...
        before, after: the input file and the output file.
        data: what was understood of the calibration and evaluation data, a line for each.
        verified_on: the inputs on which outputs were compared, or why they were not compared.
        timed_on: the inputs on which models were timed, with their sizes; None: none were.
        notes: facts that the user should know, as sentences.
        floors_missed: steps that were dropped for a floor, each with the numbers.
        has_default_floors: whether these floors are the default ones, not the user's.
        unjudged: steps that were kept and whose loss was not judged on real data.
        latency: input and output, timed in turn at the end.
        seconds: run time of everything.
        record: what it takes to run the same again; None where nothing was run.
        error: what ended the run; the other figures are then those that were known. None: the run
            did what was asked for.
        names: the other names of layers that steps name: of the node, of its weights.
        details: both models part by part; None where they were not asked for.
        tuning: the search that led here; None where the pipeline was given.
    """

    command: str
    versions: Mapping[str, str]
    before: FileReport
    after: FileReport
    steps: list[StepReport] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    verified_on: str = "not verified"
    timed_on: str | None = None
    notes: list[str] = field(default_factory=list)
    floors_missed: list[str] = field(default_factory=list)
    has_default_floors: bool = False
    unjudged: list[str] = field(default_factory=list)
    latency: LatencyPair | None = None
    seconds: float = 0.0
    record: RunRecord | None = None
    error: Failure | None = None
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    details: Details | None = None
    tuning: Tuning | None = None

    def __str__(self) -> str:
        """The result in a few lines; `report_to_text` gives the whole table."""
        before, after = self.before, self.after
        figures = [
            f"{before.stats.file_bytes:,} -> {after.stats.file_bytes:,} bytes",
            f"{before.stats.nodes:,} -> {after.stats.nodes:,} nodes",
        ]
        if self.latency is not None:
            pair = self.latency
            figures.append(f"{pair.before.ms:.3g} -> {pair.after.ms:.3g} ms, {pair.ratio:.2f}x")
        if before.accuracy is not None and after.accuracy is not None:
            figures.append(f"accuracy {100 * before.accuracy:.2f} -> {100 * after.accuracy:.2f} %")
        target = after.path or "nothing written"
        lines = [f"{before.path or 'the model'} -> {target}: {', '.join(figures)}"]
        for step in self.steps:
            why = f": {step.why_not_committed}" if step.why_not_committed else ""
            lines.append(f"{'kept' if step.committed else 'left out'}: {step.spec}{why}")
        return "\n".join(lines)


def report_of(error: BaseException) -> Report | None:
    """The report of the run that `error` ended; None where no model had been opened."""
    found = getattr(error, "report", None)
    return found if isinstance(found, Report) else None

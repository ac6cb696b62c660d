"""The record of a run, behind the console table and the files of `--report`.

Every figure was measured; a figure that was not measured is None. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxslim.records import Change, Fidelity, Skip


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
    """

    median: float
    p10: float
    p90: float
    runs: int


@dataclass(frozen=True)
class LatencyPair:
    """Two models timed in turn (A B A B ...).

    Attributes:
        before: run times of the first model.
        after: run times of the second model.
        ratio: median over the pairs of before / after; above 1 the second model is faster.
        low, high: bounds of the 95 % confidence interval of the median ratio.
    """

    before: Latency
    after: Latency
    ratio: float
    low: float
    high: float

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
        top1_agreement: share of rows whose largest entry is at the same index; None for outputs of
            fewer than two dimensions, or with a last dimension below 2.
        reference_range: max(ref) - min(ref).
        equal_bits: whether all bits are equal (NaN equals NaN).
        unmatched: values without a counterpart, where sizes of the output depend on data; no other
            figure counts them.
    """

    max_abs: float
    rel_l2: float
    sqnr_db: float
    cosine: float
    top1_agreement: float | None
    reference_range: float
    equal_bits: bool
    unmatched: int = 0


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
    """One pass inside a step; the parts of a preset are its members, summed over rounds."""

    spec: str
    fidelity: Fidelity
    seconds: float
    changes: tuple[Change, ...]
    skips: tuple[Skip, ...]


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
        floor_missed: whether it was dropped for a floor of the user.
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
    floor_missed: bool = False

    @property
    def changes(self) -> tuple[Change, ...]:
        """The changes of all parts."""
        return tuple(change for part in self.parts for change in part.changes)

    @property
    def skips(self) -> tuple[Skip, ...]:
        """The skips of all parts."""
        return tuple(skip for part in self.parts for skip in part.skips)


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
        verified_on: the inputs on which outputs were compared, or why they were not compared.
        notes: facts that the user should know, as sentences.
        floors_missed: steps that were dropped for a floor, each with the numbers.
        latency: input and output, timed in turn at the end.
        seconds: run time of everything.
    """

    command: str
    versions: Mapping[str, str]
    before: FileReport
    after: FileReport
    steps: list[StepReport] = field(default_factory=list)
    verified_on: str = "not verified"
    notes: list[str] = field(default_factory=list)
    floors_missed: list[str] = field(default_factory=list)
    latency: LatencyPair | None = None
    seconds: float = 0.0

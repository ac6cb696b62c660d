"""What a run did and measured: the one record behind the console table and `--report` JSON.

Every figure in it was measured; what was not measured is None. Nothing here computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxslim.records import Change, Fidelity, Skip


@dataclass(frozen=True)
class Stats:
    """Size of a model.

    Attributes:
        nodes: operators, bodies of If, Loop and Scan included.
        parameters: elements of all initializers and constants.
        initializer_bytes: their bytes in the file.
        file_bytes: the file, with its external data.
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
    """Run times of one model, in milliseconds, measured in turn with another's.

    Attributes:
        median, p10, p90: of the runs.
        runs: how many were timed.
    """

    median: float
    p10: float
    p90: float
    runs: int


@dataclass(frozen=True)
class LatencyPair:
    """Two models timed in turn (A B A B ...).

    Attributes:
        before, after: the two.
        ratio: median over the pairs of before / after; above 1, the second is faster.
        low, high: bounds between which the true median ratio lies with 95 % confidence.
    """

    before: Latency
    after: Latency
    ratio: float
    low: float
    high: float

    @property
    def is_slower(self) -> bool:
        """Whether the second is slower beyond the spread."""
        return self.high < 1.0

    @property
    def is_faster(self) -> bool:
        """Whether the second is faster beyond the spread."""
        return self.low > 1.0


@dataclass(frozen=True)
class Drift:
    """How far one output moved, over all samples.

    Attributes:
        max_abs: largest absolute difference.
        rel_l2: ‖new - ref‖ / ‖ref‖.
        sqnr_db: 10 log10(‖ref‖² / ‖new - ref‖²); infinite for equal outputs.
        cosine: between the two, flattened.
        top1_agreement: share of rows whose largest entry stays the same, for outputs of at
            least two dimensions whose last has two or more entries; else None.
        reference_range: max(ref) - min(ref).
        equal_bits: whether all bits are equal (NaN equals NaN).
    """

    max_abs: float
    rel_l2: float
    sqnr_db: float
    cosine: float
    top1_agreement: float | None
    reference_range: float
    equal_bits: bool


@dataclass(frozen=True)
class Comparison:
    """What the prover found about a candidate: drift per output name, against two baselines.

    Attributes:
        previous, original: drift against the last committed model and against the input.
        broken: why the candidate breaks the promised fidelity, None when it holds.
    """

    previous: Mapping[str, Drift]
    original: Mapping[str, Drift]
    broken: str | None = None


@dataclass(frozen=True)
class PartReport:
    """One pass inside a step (a preset has many, summed over its rounds)."""

    spec: str
    fidelity: Fidelity
    seconds: float
    changes: tuple[Change, ...]
    skips: tuple[Skip, ...]


@dataclass
class StepReport:
    """One item of the pipeline: what it did, what was measured, whether it was kept."""

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
        """All changes of its parts."""
        return tuple(change for part in self.parts for change in part.changes)

    @property
    def skips(self) -> tuple[Skip, ...]:
        """All skips of its parts."""
        return tuple(skip for part in self.parts for skip in part.skips)


@dataclass
class FileReport:
    """A model file: where, its sha256 (hex), its size and measured figures."""

    path: str | None
    sha256: str | None
    stats: Stats
    latency: Latency | None = None
    accuracy: float | None = None


@dataclass
class Report:
    """A whole run.

    Attributes:
        command: the command line or call that made it.
        versions: of onnx, onnxruntime, ... by name.
        verified_on: which inputs the outputs were compared on, or why they were not.
        notes: things that a user should know (opset raised, inputs that were invented, ...).
        floors_missed: steps dropped because they went below a floor.
        latency: input against output, timed in turn at the end.
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

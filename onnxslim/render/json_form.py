"""The form of a report as JSON: its keys, in order, and what each holds.

`render.json` builds what is declared here, and `docs/build.py` derives the JSON Schema of the
documentation from it. A key that is new leaves `SCHEMA_VERSION` as it is; a key that goes or
changes its meaning raises it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypedDict

from onnxslim.details import Details, Tuning
from onnxslim.report import Drift, Failure, Latency, RunRecord, Stats

SCHEMA_VERSION: Final = 1

FidelityName = Literal["EXACT", "CLOSE", "LOSSY"]


class ChangeForm(TypedDict):
    """One edit: the first output of the node that was edited, and the edit in words."""

    node: str
    what: str


class SkipForm(TypedDict):
    """One edit that was declined: the first output of the node, and the reason in words."""

    node: str
    why: str


class PairForm(TypedDict):
    """Two models timed in turn; with `ratio` (before / after) above 1 the second is faster.

    `ratio_low` and `ratio_high` bound the 95 % interval. `waiting` is the share of the time in
    which the models waited for the processor; where that is much, `clock` is `processor`.
    """

    before_ms: Latency
    after_ms: Latency
    ratio: float
    ratio_low: float
    ratio_high: float
    waiting: float
    clock: Literal["processor", "wall"]


class PartForm(TypedDict):
    """What one pass did: a member of a step, or the step."""

    spec: str
    seconds: float
    fidelity: FidelityName
    changes: list[ChangeForm]
    skips: list[SkipForm]
    untouched: str | None
    notes: Sequence[str]


class StepForm(PartForm):
    """One step of the pipeline, with the figures of the model behind it.

    `committed` says whether the step was kept; else `why_not_committed` has the reason. Drift is
    given by output name, against the model before the step and against the input. `from_cache` says
    whether an earlier run did it; all figures are those of then.
    """

    committed: bool
    parts: list[PartForm]
    stats: Stats | None
    latency_ms: Latency | None
    latency: PairForm | None
    resolved: str
    weakened_to: str | None
    why_not_committed: str | None
    why_partly: str | None
    floor_missed: bool
    loss_bound: str | None
    from_cache: bool
    drift_previous: Mapping[str, Drift] | None
    drift_original: Mapping[str, Drift] | None
    accuracy: float | None


class PathForm(TypedDict):
    """A file: its path and its sha256 in hex."""

    path: str | None
    sha256: str | None


class FileForm(TypedDict):
    """Figures of a file."""

    stats: Stats
    latency_ms: Latency | None
    accuracy: float | None


class ReportForm(TypedDict):
    """The report of a run of onnxslim. Null means "not measured".

    `names` holds the other names of the layers that steps name: of the node, of its weights.
    """

    schema_version: int
    onnxslim: str
    command: str
    versions: Mapping[str, str]
    input: PathForm
    output: PathForm
    passes: list[StepForm]
    before: FileForm
    after: FileForm
    latency: PairForm | None
    data: list[str]
    verified_on: str
    timed_on: str | None
    record: RunRecord | None
    notes: list[str]
    names: Mapping[str, Sequence[str]]
    floors_missed: list[str]
    has_default_floors: bool
    not_judged_on_real_data: list[str]
    seconds: float
    error: Failure | None
    details: Details | None
    tuning: Tuning | None

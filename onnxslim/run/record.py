"""The record of a run: what it takes to get the same bytes again, in the report and in the file."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final

from onnxslim.pipeline.grammar import Pipeline, resolved_text
from onnxslim.pipeline.policy import Policy
from onnxslim.report import Report, RunRecord, StepReport
from onnxslim.run.settings import RunSettings

PIPELINE_KEY: Final = "onnxslim.pipeline"
"""Key in `metadata_props` of the pipeline that made a file, as it was given."""

RESOLVED_KEY: Final = "onnxslim.resolved"
"""Key of the resolved pipeline, which makes the same bytes of the same input and data."""

SOURCE_KEY: Final = "onnxslim.input_sha256"
"""Key of the sha256 of the file that a file was made from."""

_CPU_INFO: Final = Path("/proc/cpuinfo")


def run_record(
    pipeline: Pipeline,
    steps: Iterable[StepReport],
    policy: Policy,
    settings: RunSettings,
    data_sha256: Mapping[str, str],
) -> RunRecord:
    """What a run of `pipeline` went by, with its steps as they were kept or left out."""
    given = str(pipeline) if pipeline.given is None else pipeline.given
    return RunRecord(
        pipeline=given,
        resolved=resolved_text(given, map(_resolved_step, filter(_is_kept, steps))),
        settings=_bearing(policy, settings),
        data_sha256=data_sha256,
        processor=processor_name(),
    )


def metadata(report: Report) -> dict[str, str | None]:
    """The entries of `metadata_props` that tell where a file comes from; nothing of the time."""
    record = report.record
    if record is None:
        return {SOURCE_KEY: report.before.sha256}
    return {
        PIPELINE_KEY: record.pipeline,
        RESOLVED_KEY: record.resolved,
        SOURCE_KEY: report.before.sha256,
        "onnxslim.data_sha256": _spelled(record.data_sha256) or None,
        "onnxslim.settings": _spelled(record.settings),
        "onnxslim.versions": _spelled(report.versions),
        "onnxslim.processor": record.processor,
    }


def processor_name() -> str:
    """The processor of this machine, as the system calls it."""
    named = (value for name, value in cpu_info() if name == "model name")
    return next(named, "") or platform.processor() or platform.machine()


@cache
def onnxruntime_distribution() -> str:
    """The package that brought onnxruntime: builds with other providers have names of their own."""
    name = "onnxruntime"
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return importlib.metadata.packages_distributions().get(name, [name])[0]
    return name


def cpu_info() -> Iterator[tuple[str, str]]:
    """What Linux says of the processors: names and values."""
    try:
        lines = _CPU_INFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    for line in lines:
        name, _, value = line.partition(":")
        yield name.strip(), value.strip()


def _is_kept(step: StepReport) -> bool:
    """Whether a step belongs in the resolved pipeline; timing may have decided to do nothing."""
    return step.committed and bool(step.changes)


def _resolved_step(step: StepReport) -> str:
    return step.resolved or step.spec


def _bearing(policy: Policy, settings: RunSettings) -> dict[str, str]:
    """What bears on the result besides pipeline and data: options of the command, and floors."""
    floors = policy.floors
    kinds = (f"{name}={kind}" for name, kind in settings.output_kinds.items())
    wanted: dict[str, object] = {
        "seed": settings.seed,
        "goal": policy.goal.value,
        "threads": settings.threads,
        "provider": settings.provider,
        "output-kind": ",".join(kinds) or None,
        **settings.data.spelled(),
    }
    if floors.is_default:  # the same data bring the same default floors
        wanted["floor"] = "default"
    else:
        wanted |= floors.named
        wanted["floor"] = None if floors.limits_anything else "none"
    return {name: f"{value}" for name, value in wanted.items() if value is not None}


def _spelled(entries: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in entries.items())

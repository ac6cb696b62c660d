"""A `Report`, and the figures in it, as JSON.

JSON has neither infinities nor NaN. They are written as the strings `"Infinity"`, `"-Infinity"` and
`"NaN"`, which Python's `float` and JavaScript's `Number` both parse. Null means "not measured".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import cast

from onnxslim.render.json_form import (
    SCHEMA_VERSION,
    FidelityName,
    FileForm,
    PairForm,
    PartForm,
    ReportForm,
    StepForm,
)
from onnxslim.render.printable import printable_json
from onnxslim.report import (
    Drift,
    FileReport,
    Latency,
    LatencyPair,
    PartReport,
    Report,
    Stats,
    StepReport,
)
from onnxslim.version import VERSION

Json = bool | int | float | str | None | list["Json"] | dict[str, "Json"]


def report_to_json(report: Report) -> dict[str, Json]:
    """The report as plain data, as `--report` writes it; infinities and NaN are strings."""
    form: ReportForm = {
        "schema_version": SCHEMA_VERSION,
        "onnxslim": VERSION,
        "command": report.command,
        "versions": report.versions,
        "input": {"path": report.before.path, "sha256": report.before.sha256},
        "output": {"path": report.after.path, "sha256": report.after.sha256},
        "passes": [_step(step) for step in report.steps],
        "before": _file(report.before),
        "after": _file(report.after),
        "latency": _pair(report.latency),
        "data": report.data,
        "verified_on": report.verified_on,
        "timed_on": report.timed_on,
        "record": report.record,
        "notes": report.notes,
        "names": report.names,
        "floors_missed": report.floors_missed,
        "has_default_floors": report.has_default_floors,
        "not_judged_on_real_data": report.unjudged,
        "seconds": report.seconds,
        "error": report.error,
        "details": report.details,
        "tuning": report.tuning,
    }
    return {key: _plain(value) for key, value in form.items()}


def json_text(data: Json) -> str:
    """`data` as JSON text; infinities and NaN become strings."""
    text = json.dumps(_plain(data), indent=2, ensure_ascii=False, allow_nan=False)
    return printable_json(text) + "\n"


def plain_json(data: object) -> Json:
    """`data` as a reader of its JSON gets it."""
    plain: Json = json.loads(json_text(_plain(data)))
    return plain


def figures_json(figures: Stats | Latency | None) -> Json:
    """Figures under their own names, run times in milliseconds; null when nothing was measured."""
    return _plain(figures)


def pair_json(pair: LatencyPair | None) -> Json:
    """Two models timed in turn; with `ratio` above 1 the second is faster."""
    return _plain(_pair(pair))


def drifts_json(drifts: Mapping[str, Drift]) -> Json:
    """Drift by output name."""
    return _plain(drifts)


def _file(file: FileReport) -> FileForm:
    return {"stats": file.stats, "latency_ms": file.latency, "accuracy": file.accuracy}


def _pair(pair: LatencyPair | None) -> PairForm | None:
    if pair is None:
        return None
    return {
        "before_ms": pair.before,
        "after_ms": pair.after,
        "ratio": pair.ratio,
        "ratio_low": pair.low,
        "ratio_high": pair.high,
        "waiting": pair.waiting,
        "clock": "processor" if pair.is_busy else "wall",
    }


def _step(step: StepReport) -> StepForm:
    comparison = step.comparison
    return {
        **_part(step),
        "committed": step.committed,
        "parts": [_part(part) for part in step.parts] if len(step.parts) > 1 else [],
        "stats": step.stats,
        "latency_ms": step.latency.after if step.latency else None,
        "latency": _pair(step.latency),
        "resolved": step.resolved or step.spec,
        "weakened_to": step.weakened_to,
        "why_not_committed": step.why_not_committed,
        "why_partly": step.why_partly,
        "floor_missed": step.floor_missed,
        "loss_bound": step.loss_bound,
        "from_cache": step.from_cache,
        "drift_previous": comparison.previous if comparison else None,
        "drift_original": comparison.original if comparison else None,
        "accuracy": step.accuracy,
    }


def _part(part: StepReport | PartReport) -> PartForm:
    return {
        "spec": part.spec,
        "seconds": part.seconds,
        "fidelity": cast("FidelityName", part.fidelity.name),
        "changes": [{"node": change.node, "what": change.what} for change in part.changes],
        "skips": [{"node": skip.node, "why": skip.why} for skip in part.skips],
        "untouched": part.untouched,
        "notes": part.notes,
    }


def _plain(data: object) -> Json:
    """Dictionaries, lists and scalars; of a dataclass, its fields."""
    if is_dataclass(data) and not isinstance(data, type):
        return _plain(asdict(data))
    if isinstance(data, Mapping):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return "NaN" if math.isnan(data) else "Infinity" if data > 0 else "-Infinity"
    return cast("Json", data)

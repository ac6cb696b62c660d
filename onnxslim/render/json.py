"""A `Report`, and the figures in it, as JSON.

JSON has neither infinities nor NaN. They are written as the strings `"Infinity"`, `"-Infinity"` and
`"NaN"`, which Python's `float` and JavaScript's `Number` both parse. Null means "not measured".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict

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
    data: dict[str, Json] = {
        "onnxslim": VERSION,
        "command": report.command,
        "versions": dict(report.versions),
        "input": {"path": report.before.path, "sha256": report.before.sha256},
        "output": {"path": report.after.path, "sha256": report.after.sha256},
        "passes": [_step_json(step) for step in report.steps],
        "before": _file_json(report.before),
        "after": _file_json(report.after),
        "latency": pair_json(report.latency),
        "verified_on": report.verified_on,
        "timed_on": report.timed_on,
        "record": asdict(report.record) if report.record else None,
        "notes": list(report.notes),
        "floors_missed": list(report.floors_missed),
        "has_default_floors": report.has_default_floors,
        "not_judged_on_real_data": list(report.unjudged),
        "seconds": report.seconds,
        "error": asdict(report.error) if report.error else None,
    }
    return {key: _finite(value) for key, value in data.items()}


def json_text(data: Json) -> str:
    """`data` as JSON text; infinities and NaN become strings."""
    return json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def figures_json(figures: Stats | Latency | None) -> Json:
    """Figures under their own names, run times in milliseconds; null when nothing was measured."""
    return None if figures is None else asdict(figures)


def pair_json(pair: LatencyPair | None) -> Json:
    """Two models timed in turn; with `ratio` above 1 the second is faster."""
    if pair is None:
        return None
    return {
        "before_ms": figures_json(pair.before),
        "after_ms": figures_json(pair.after),
        "ratio": pair.ratio,
        "ratio_low": pair.low,
        "ratio_high": pair.high,
        "waiting": pair.waiting,
        "clock": "processor" if pair.is_busy else "wall",
    }


def drifts_json(drifts: Mapping[str, Drift]) -> Json:
    """Drift by output name."""
    return {name: asdict(drift) for name, drift in drifts.items()}


def _file_json(file: FileReport) -> Json:
    return {
        "stats": figures_json(file.stats),
        "latency_ms": figures_json(file.latency),
        "accuracy": file.accuracy,
    }


def _step_json(step: StepReport) -> Json:
    comparison = step.comparison
    return {
        **_done_json(step),
        "committed": step.committed,
        "parts": [_done_json(part) for part in step.parts] if len(step.parts) > 1 else [],
        "stats": figures_json(step.stats),
        "latency_ms": figures_json(step.latency.after if step.latency else None),
        "latency": pair_json(step.latency),
        "resolved": step.resolved or step.spec,
        "why_not_committed": step.why_not_committed,
        "why_partly": step.why_partly,
        "floor_missed": step.floor_missed,
        "loss_bound": step.loss_bound,
        "drift_previous": drifts_json(comparison.previous) if comparison else None,
        "drift_original": drifts_json(comparison.original) if comparison else None,
        "accuracy": step.accuracy,
    }


def _done_json(done: StepReport | PartReport) -> dict[str, Json]:
    return {
        "spec": done.spec,
        "seconds": done.seconds,
        "fidelity": done.fidelity.name,
        "changes": [{"node": change.node, "what": change.what} for change in done.changes],
        "skips": [{"node": skip.node, "why": skip.why} for skip in done.skips],
        "untouched": done.untouched,
    }


def _finite(data: Json) -> Json:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return "NaN" if math.isnan(data) else "Infinity" if data > 0 else "-Infinity"
    return data

"""Why a step, or a rewrite of a layer, was done or not: read from the file of a report alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from onnxslim.errors import UsageError
from onnxslim.pages.html import SIGN as PAGE_SIGN
from onnxslim.pages.html import data_in
from onnxslim.pipeline.patterns import matches
from onnxslim.pipeline.suggest import did_you_mean

_HEAD: Final = 1000  # characters of a page in which it says who made it
_MOST: Final = 5  # reasons of a step that are shown, by frequency

Data = Mapping[str, Any]


def read_reports(path: Path) -> list[Data]:
    """The reports in a file that `--report` wrote: one, or one for each of several models.

    Raises:
        UsageError: the file cannot be read, or is no report of `onnxslim compress`.
    """
    data = read_json(path)
    reports = data.get("models", [data]) if isinstance(data, dict) else []
    if not reports or not all(map(_is_report, reports)):
        raise UsageError(
            f"`{path}` is no report of a run; `onnxslim MODEL --report FILE.json` writes one."
        )
    return reports


def read_json(path: Path) -> Any:
    """The JSON of a report: of the file itself, or of the page that holds it.

    Raises:
        UsageError: the file cannot be read, or holds no JSON.
    """
    try:
        text = path.read_text("utf-8")
        return data_in(text) if PAGE_SIGN in text[:_HEAD] else json.loads(text)
    except FileNotFoundError:
        raise UsageError(f"There is no file `{path}`.") from None
    except OSError as error:
        raise UsageError(f"`{path}` cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"`{path}` is no report: it is not JSON ({error}).") from error


def explain_run(report: Data) -> str:
    """What became of each step, with its reasons."""
    lines = [_title(report)]
    for step in report.get("passes", ()):
        lines += ["", *_step_lines(step)]
    notes = [f"note: {note}" for note in report.get("notes", ())]
    lines += ["", *notes] if notes else []
    error = report.get("error")
    if error:
        lines += ["", f"The run ended with exit code {error['exit_code']}: {error['message']}"]
    return "\n".join(lines)


def explain_layer(report: Data, layer: str) -> str:
    """What each step did with a layer, or why it did nothing.

    Args:
        report: the data of a report.
        layer: name of a node, of a weight or of an output, or a pattern of such names.

    Raises:
        UsageError: the report does not name the layer; with the closest names.
    """
    names = _names(report)
    labels = [name for name, others in names.items() if layer in (name, *others)] or [
        name for name, others in names.items() if any(matches(n, layer) for n in (name, *others))
    ]
    if not labels:
        known = {name for name, others in names.items() for name in (name, *others)}
        raise UsageError(
            f"No step says anything of a layer `{layer}`.{did_you_mean(layer, known)} Give the "
            "name of its node, its weight or its output."
        )
    return "\n\n".join("\n".join(_layer_lines(report, name, names[name])) for name in labels)


def _layer_lines(report: Data, label: str, others: Iterable[str]) -> Iterator[str]:
    also = ", ".join(f"`{name}`" for name in others if name != label)
    yield f"`{label}`" + (f" (also {also})" if also else "")
    silent = []
    for step in report["passes"]:
        lines = [line for part in _parts(step) for line in _said_of(part, label)]
        if not lines:
            silent.append(f"`{step['spec']}`")
            continue
        if not step["committed"]:
            lines.append(f"but the step was left out: {step['why_not_committed']}")
        yield from (f"  {step['spec']}: {line}" for line in lines)
    if silent:
        yield f"  not mentioned by {', '.join(silent)}"


def _said_of(part: Data, label: str) -> Iterator[str]:
    owner = f"{part['spec']}: " if part.get("is_part") else ""
    yield from (f"{owner}{item['what']}" for item in part["changes"] if item["node"] == label)
    for item in part["skips"]:
        if item["node"] == label:
            yield f"{owner}not done: {item['why']}"


def _step_lines(step: Data) -> Iterator[str]:
    changes = sum(len(part["changes"]) for part in _parts(step))
    if not step["committed"]:
        yield f"{step['spec']}: left out, {step['why_not_committed']}"
    elif changes:
        yield f"{step['spec']}: kept, {changes:,} changes"
    else:
        yield f"{step['spec']}: nothing done"
    for part in _parts(step):
        whys = Counter(item["why"] for item in part["skips"])
        owner = f"{part['spec']}: " if part.get("is_part") else ""
        for why, count in whys.most_common(_MOST):
            where = next(item["node"] for item in part["skips"] if item["why"] == why)
            more = f" and {count - 1:,} more" if count > 1 else ""
            yield f"  {owner}not done at `{where}`{more}: {why}"
        if len(whys) > _MOST:
            yield f"  {owner}{len(whys) - _MOST:,} more reasons; give the name of a layer"


def _parts(step: Data) -> list[Data]:
    """The members of a preset, or the step itself."""
    return [{**part, "is_part": True} for part in step.get("parts", ())] or [step]


def _names(report: Data) -> dict[str, list[str]]:
    """Every layer that a step names -> its other names."""
    others: Mapping[str, list[str]] = report.get("names") or {}
    said = [
        item["node"]
        for step in report["passes"]
        for part in _parts(step)
        for item in (*part["changes"], *part["skips"])
    ]
    return {name: list(others.get(name, ())) for name in dict.fromkeys(said)}


def _title(report: Data) -> str:
    source = report["input"]["path"] or "a model in memory"
    target = (report.get("output") or {}).get("path")
    return f"{source} -> {target or 'nothing was written'}"


def _is_report(data: object) -> bool:
    """Whether all that is read above is there, in the form in which it is read."""
    if not isinstance(data, dict) or not isinstance(data.get("input"), dict):
        return False
    if "path" not in data["input"]:
        return False
    steps, error = data.get("passes", []), data.get("error")
    is_error = error is None or (isinstance(error, dict) and {"exit_code", "message"} <= set(error))
    return is_error and isinstance(steps, list) and all(map(_is_step, steps))


def _is_step(step: object) -> bool:
    if not isinstance(step, dict) or not {"committed", "why_not_committed"} <= set(step):
        return False
    parts = step.get("parts", [])
    return isinstance(parts, list) and all(map(_is_part, (step, *parts)))


def _is_part(part: object) -> bool:
    if not isinstance(part, dict) or not isinstance(part.get("spec"), str):
        return False
    return all(
        isinstance(item, dict) and all(isinstance(item.get(key), str) for key in ("node", word))
        for group, word in (("changes", "what"), ("skips", "why"))
        for item in part.get(group, [None])
    )

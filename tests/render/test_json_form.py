"""The JSON of a report against the JSON Schema of the documentation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tiny_models import conv_net

import onnxslim
from onnxslim.records import Change, Fidelity, OutputKind, Skip
from onnxslim.render.json import report_to_json
from onnxslim.report import (
    Comparison,
    Drift,
    Failure,
    FileReport,
    Latency,
    LatencyPair,
    PartReport,
    Report,
    RunRecord,
    Stats,
    StepReport,
)

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())


def strict(schema: Any) -> Any:
    """The schema, in which keys that it does not name are errors."""
    if isinstance(schema, list):
        return [strict(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if schema.get("properties") else {}
    return {key: strict(value) for key, value in schema.items()} | closed


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads((ROOT / "docs/report.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(strict(schema))


def full_report() -> Report:
    """A report in which nothing is None, with infinite figures."""
    stats = Stats(1, 2, 3, 4, 5)
    pair = LatencyPair(Latency(2, 1, 3, 9, 2), Latency(1, 1, 1, 9, 1), 2.0, 1.9, 2.1, 0.5)
    drift = Drift(0, 0, math.inf, math.nan, 1.0, 1, True, 0, OutputKind.EMBEDDING, 1, 1)
    changes, skips = (Change("y", "merged", "x"),), (Skip("z", "is an output"),)
    parts = [PartReport(name, Fidelity.CLOSE, 0.1, changes, skips, "2 kB") for name in "ab"]
    step = StepReport(
        "simplify", Fidelity.CLOSE, False, 0.1, parts, stats, pair,
        Comparison({"y": drift}, {"y": drift}), 0.9, "is larger", "one is left out", True, "a", "b",
    )  # fmt: skip
    file = FileReport("model.onnx", "ab", stats, pair.before, 0.9)
    record = RunRecord("simplify", "simplify", {"seed": "0"}, {"calib": "ab"}, "a processor")
    return Report(
        "onnxslim model.onnx",
        {"onnx": "1"},
        file,
        file,
        [step],
        verified_on="calibration",
        timed_on="image 1x1",
        data=["500 samples"],
        notes=["a note"],
        names={"y": ("conv1", "w")},
        floors_missed=["a floor"],
        has_default_floors=True,
        unjudged=["a step"],
        latency=pair,
        seconds=1.0,
        record=record,
        error=Failure("FloorMissed", 4, "left out"),
    )


def test_a_report_with_every_figure_is_valid(validator: jsonschema.Draft202012Validator) -> None:
    data = report_to_json(full_report())
    assert data["schema_version"] == 1
    validator.validate(data)
    assert None not in data.values()


def test_a_report_of_a_run_is_valid(validator: jsonschema.Draft202012Validator) -> None:
    _, report = onnxslim.compress(conv_net(), passes="simplify,quantize-weights", measure=False)
    validator.validate(report_to_json(report))


@pytest.mark.parametrize(
    ("key", "value"), [("seconds", None), ("notes", "text"), ("schema_version", 2), ("more", 1)]
)
def test_another_form_is_refused(
    key: str, value: object, validator: jsonschema.Draft202012Validator
) -> None:
    data = report_to_json(full_report())
    assert not validator.is_valid({**data, key: value})
    assert not validator.is_valid({k: v for k, v in data.items() if k != "versions"})

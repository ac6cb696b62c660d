"""The JSON of a report against the JSON Schema of the documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from full_reports import full_report
from tiny_models import conv_net

import onnxslim
from onnxslim.render.json import report_to_json

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

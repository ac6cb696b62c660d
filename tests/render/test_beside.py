"""What is written beside a report: JUnit XML, an in-toto statement, a part of a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

from onnxslim.errors import UsageError
from onnxslim.records import Fidelity
from onnxslim.render.beside import BESIDE
from onnxslim.report import Failure, FileReport, Report, RunRecord, Stats, StepReport

STATS = Stats(1, 2, 3, 400, None)
STEPS = [
    StepReport("simplify", Fidelity.CLOSE, True, 1.5),
    StepReport("fuse-pad", Fidelity.EXACT, False, 0.5, why_not_committed="it gains nothing"),
    StepReport(
        "prune-weights:only=a|b<c",
        Fidelity.LOSSY,
        False,
        2.0,
        why_not_committed="top-1 answers of output `y` would agree for 0.8; --min-agreement is 0.9",
        floor_missed=True,
    ),
]


def report(**settings: str) -> Report:
    before = FileReport("in/m.onnx", "a" * 64, STATS, accuracy=0.9)
    after = FileReport("out/o.onnx", "b" * 64, STATS, accuracy=0.8912)
    record = RunRecord("simplify", "resolved:from=simplify", settings, {"calib": "c" * 64}, "CPU")
    found = Report("onnxslim m.onnx", {"onnx": "1.23.2"}, before, after, list(STEPS))
    return replace(found, record=record)


def written(option: str, found: Report) -> str:
    return BESIDE[option].to_bytes(found, Path("f")).decode()


def test_junit_has_a_case_for_each_step_floor_and_run() -> None:
    text = written("--junit", report(**{"min-agreement": "0.9", "max-drop": "1"}))
    (suite,) = ElementTree.fromstring(text)
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("6", "2", "1")
    found = {case.get("name"): [child.tag for child in case] for case in suite}
    assert found == {
        "step simplify": [],
        "step fuse-pad": ["skipped"],
        "step prune-weights:only=a|b<c": ["failure"],
        "floor max-drop 1": [],
        "floor min-agreement 0.9": ["failure"],
        "run": [],
    }
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == STEPS[2].why_not_committed


def test_junit_tells_how_a_run_failed() -> None:
    found = replace(report(floor="default"), error=Failure("ModelError", 3, "it is cut off"))
    (suite,) = ElementTree.fromstring(written("--junit", found))
    failures = {case.get("name") for case in suite if case.find("failure") is not None}
    assert failures == {"step prune-weights:only=a|b<c", "floors, the default ones", "run"}


def test_provenance_is_an_in_toto_statement_with_slsa_provenance() -> None:
    data = json.loads(written("--provenance", report(seed="0")))
    # refuses fields that the published schema lacks
    statement = json_format.ParseDict(data, statement_pb2.Statement())
    Statement.copy_from_pb(statement).validate()
    assert statement.predicate_type == "https://slsa.dev/provenance/v1"
    predicate = json_format.ParseDict(data["predicate"], provenance_pb2.Provenance())
    definition = predicate.build_definition
    assert definition.build_type
    assert definition.external_parameters["pipeline"] == "simplify"
    assert predicate.run_details.builder.id
    digests = [item.digest["sha256"] for item in definition.resolved_dependencies if item.digest]
    assert digests == ["a" * 64, "c" * 64]
    assert [item.uri for item in definition.resolved_dependencies][-1] == "pkg:pypi/onnx@1.23.2"
    assert "/" not in statement.subject[0].name


def test_provenance_of_no_file_is_refused() -> None:
    found = report()
    found.after.path = None
    with pytest.raises(UsageError, match="none was written"):
        written("--provenance", found)


def test_a_model_card_has_metadata_and_a_table() -> None:
    text = written("--model-card", report())
    _, head, body = text.split("---\n", 2)
    metadata: Mapping[str, object] = yaml.safe_load(head)
    assert metadata["library_name"] == "onnx"
    (entry,) = metadata["model-index"]  # type: ignore[misc]
    assert entry["results"][0]["metrics"][0]["value"] == 89.12
    # the reader of the Hub
    card = pytest.importorskip("huggingface_hub").ModelCard(text)
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 89.12)
    assert card.data.library_name == "onnx"
    rows = [line for line in body.splitlines() if line.startswith("| `")]
    assert len(rows) == 3
    assert r"a\|b<c" in rows[2]
    assert "resolved:from=simplify" in body

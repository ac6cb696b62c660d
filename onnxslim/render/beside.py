"""Files that can be written of a run beside its report: for CI, for supply chains, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from onnxslim.render.formats import Formats, json_bytes
from onnxslim.render.junit import JunitSuite, junit_bytes, suite_of
from onnxslim.render.model_card import model_card
from onnxslim.render.provenance import STATEMENT, provenance
from onnxslim.report import Report

JUNIT: Final[Formats[Sequence[JunitSuite]]] = Formats(
    {".xml": junit_bytes}, default=".xml", signs={".xml": b"<testsuites"}
)
"""What held and what did not, for CI."""


def _provenance(report: Report) -> bytes:
    return json_bytes(provenance(report))


def _model_card(report: Report) -> bytes:
    return model_card(report).encode()


BESIDE: Final[Mapping[str, Formats[Report]]] = {
    "--junit": JUNIT.of(lambda report: [suite_of(report)]),
    "--provenance": Formats(
        {".json": _provenance}, default=".json", signs={".json": STATEMENT.encode()}
    ),
    "--model-card": Formats({".md": _model_card}, default=".md", signs={".md": b"- onnxslim"}),
}
"""How each is written, by option."""

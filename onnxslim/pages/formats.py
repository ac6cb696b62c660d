"""The files that a report may be written to: JSON, and the pages that are made from it.

A new format is one function here and one line in `PAGES`.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxslim.render.formats import JSON_SIGN, Formats, json_bytes
from onnxslim.render.json import Json, plain_json, report_to_json
from onnxslim.report import Report
from onnxslim.version import VERSION


def _html_bytes(data: Json) -> bytes:
    from onnxslim.pages.html import page_html
    from onnxslim.pages.report_page import page_of

    return page_html(page_of(plain_json(data))).encode()


def _markdown_bytes(data: Json) -> bytes:
    from onnxslim.pages.markdown import page_markdown
    from onnxslim.pages.report_page import page_of

    return page_markdown(page_of(plain_json(data))).encode()


PAGES: Formats[Json] = Formats(
    {".json": json_bytes, ".html": _html_bytes, ".md": _markdown_bytes},
    default=".json",
    signs={".json": JSON_SIGN, ".html": b'content="onnxslim', ".md": b"<!-- onnxslim report -->"},
)
"""The JSON of any report: as it is, or as the page that it stands for."""


def _several(reports: Sequence[Json]) -> Json:
    return {"onnxslim": VERSION, "models": list(reports)}


REPORTS_OF_SEVERAL: Formats[Sequence[Json]] = PAGES.of(_several)
"""The reports of several models."""

REPORTS: Formats[Report] = PAGES.of(report_to_json)
"""The report of a run."""

"""A page as HTML: one file that asks for nothing else, and holds the JSON that it was made from."""

from __future__ import annotations

import importlib.resources
import json
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from onnxslim.errors import UsageError
from onnxslim.pages.blocks import Fact, Line, Page
from onnxslim.version import VERSION

if TYPE_CHECKING:
    from jinja2 import Template

SIGN: Final = '<meta name="generator" content="onnxslim'
"""Stands near the beginning of each page."""

_OPENING: Final = '<script type="application/json" id="report">'
_CLOSING: Final = "</script>"


def page_html(page: Page) -> str:
    """The page as one HTML file."""
    data = json.dumps(page.data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return _template().render(
        page=page,
        version=VERSION,
        style=_part("page.css"),
        script=_part("page.js"),
        opening=_OPENING,
        # no text of a model may end the element
        data=data.replace("<", "\\u003c"),
    )


def data_in(html: str) -> Any:
    """The JSON in a page.

    Raises:
        UsageError: the text is no page of onnxslim.
    """
    start = html.find(_OPENING)
    end = html.find(_CLOSING, start)
    if start < 0 or end < 0:
        raise UsageError("This page holds no report of onnxslim.")
    return json.loads(html[start + len(_OPENING) : end])


@cache
def _template() -> Template:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.DictLoader({"page.html": _part("page.html")}),
    )
    environment.tests["fact"] = lambda value: isinstance(value, Fact)
    environment.filters["kind"] = lambda block: type(block).__name__.lower()
    environment.filters["parts"] = _parts
    return environment.get_template("page.html")


def _part(name: str) -> str:
    folder = importlib.resources.files("onnxslim.pages") / "templates"
    return (folder / name).read_text("utf-8")


def _parts(line: Line) -> tuple[str | Fact, ...]:
    return line if isinstance(line, tuple) else (line,)

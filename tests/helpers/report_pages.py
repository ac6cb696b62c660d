"""Figures of a page held against the JSON that the page was made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from onnxslim.pages.html import data_in

_EMPTY = frozenset({"area", "br", "hr", "img", "input", "link", "meta"})


@dataclass
class ShownFigure:
    """A `data` element: its value, the place in the JSON that it names, its text."""

    value: str
    at: str
    text: str = ""


@dataclass
class _Reader(HTMLParser):
    figures: list[ShownFigure] = field(default_factory=list)
    open_tags: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _EMPTY:
            self.open_tags.append(tag)
        if tag == "data":
            found = dict(attrs)
            self.figures.append(ShownFigure(found["value"] or "", found["data-at"] or ""))

    def handle_endtag(self, tag: str) -> None:
        if tag in _EMPTY:
            return
        if not self.open_tags or self.open_tags.pop() != tag:
            self.wrong.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if "data" in self.open_tags:
            self.figures[-1].text += data
        if self.open_tags and self.open_tags[-1] not in ("style", "script"):
            self.texts.append(data)


def read_page(html: str) -> _Reader:
    """The figures, texts and faults of a page."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader


def at_pointer(data: Any, pointer: str) -> Any:
    """The value that a JSON pointer names."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        data = data[int(key)] if isinstance(data, list) else data[key]
    return data


def check_figures(html: str) -> list[ShownFigure]:
    """Hold every figure of a page against its JSON; returns them."""
    reader, data = read_page(html), data_in(html)
    assert reader.wrong == []
    for figure in reader.figures:
        value = at_pointer(data, figure.at)
        assert str(value) == figure.value, figure
        assert figure.text.strip(), figure
    return reader.figures

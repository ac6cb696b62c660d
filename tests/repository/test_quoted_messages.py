"""Messages that the page on troubleshooting quotes are messages that are printed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from sources import syntax_nodes

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
VARIES = "…"


def texts(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """All text of a module, with one sign for each value that is put in at run time."""
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else VARIES for p in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.fixture(scope="module")
def printed() -> str:
    paths = [
        path
        for folder in ("onnxslim", "passes", "runtime")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    return "\n".join(text for path in paths for text in texts(syntax_nodes(path)))


def quotes() -> list[str]:
    """The terms of the definition list: code spans on lines of their own."""
    page = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
    return [found[2].strip() for found in re.finditer(r"^(`+)(.+?)\1\n: ", page, re.M)]


@pytest.mark.parametrize("quote", quotes())
def test_a_quoted_message_occurs_in_the_source(quote: str, printed: str) -> None:
    # a value in the page may stand for several values and the words between them
    pieces = [re.escape(piece) for piece in quote.strip(VARIES).split(VARIES)]
    assert re.search(".*?".join(pieces), printed)
    assert max(map(len, quote.split(VARIES))) >= 12


def test_there_are_quotes_and_text_with_values_is_read() -> None:
    assert len(quotes()) > 20
    assert next(texts(ast.walk(ast.parse('raise E(f"no `{name}` of " "it")')))) == "no `…` of it"

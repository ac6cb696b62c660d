"""Pages: lines that fit a screen, and links that lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"))
)
MAX_COLUMNS = 140


def prose(text: str) -> Iterator[tuple[int, str]]:
    """The numbered lines of a page that are neither code, table, link's target nor one quote."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not re.match(r"\s*(\||<!--|\[|(`+)[^\n]*\2$)", line):
            yield number, line


@pytest.mark.parametrize("page", PAGES)
def test_no_line_of_prose_is_wider_than_a_screen(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    assert [number for number, line in prose(text) if len(line) > MAX_COLUMNS] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [
        target
        for target in targets
        if "://" not in target and not (ROOT / page).parent.joinpath(target).exists()
    ]
    assert missing == []

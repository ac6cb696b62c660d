"""The file formats of `--report`: chosen by suffix, from one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxslim.errors import UsageError
from onnxslim.pages.formats import REPORTS
from onnxslim.render.formats import JSON, Formats
from onnxslim.report import FileReport, Report, Stats

WORDS: Formats[str] = Formats({".txt": str.encode, ".up": lambda text: text.upper().encode()})


def test_the_suffix_chooses_the_writer() -> None:
    assert WORDS.to_bytes("a", Path("f.txt")) == b"a"
    assert WORDS.to_bytes("a", Path("f.up")) == b"A"
    assert WORDS.metavar == "FILE.txt|FILE.up"


@pytest.mark.parametrize("name", ["f.TXT", "f.pdf", "f", ".txt"])
def test_without_a_default_an_unknown_suffix_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"must end in \.txt or \.up; got"):
        WORDS.check(Path(name))


@pytest.mark.parametrize("name", ["r.json", "r.txt", "r"])
def test_a_report_is_json_whatever_its_name(name: str) -> None:
    stats = Stats(1, 2, 3, 4, None)
    report = Report("c", {}, FileReport("a", None, stats), FileReport("b", None, stats))
    assert json.loads(REPORTS.to_bytes(report, Path(name)))["before"]["stats"]["nodes"] == 1
    assert json.loads(JSON.to_bytes({"a": 1}, Path(name))) == {"a": 1}

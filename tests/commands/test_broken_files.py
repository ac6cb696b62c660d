"""Broken files are refused in a sentence or taken: none crashes the command (`tests/fuzz.py`)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import attempts
import pytest
from broken_files import (
    Maker,
    broken_bytes,
    broken_files,
    broken_structure,
    packed_files,
    valid_models,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # reproducers are written to the current folder
    return tmp_path


def failures(inputs: Iterable[tuple[str, bytes]], folder: Path) -> dict[str, str]:
    """What went wrong, by the number of the input."""
    verdicts = {name: attempts.attempt(data, folder) for name, data in inputs}
    return {name: verdict.detail for name, verdict in verdicts.items() if verdict.failure}


@pytest.mark.parametrize("maker", [broken_bytes, broken_structure])
def test_no_broken_model_file_crashes_the_command(maker: Maker, folder: Path) -> None:
    inputs = islice(broken_files(valid_models(), [maker], seed=1), 30)
    assert failures(inputs, folder) == {}


def test_no_broken_packed_file_crashes_the_command(folder: Path) -> None:
    inputs = islice(broken_files(packed_files(valid_models()), [broken_bytes], seed=1), 20)
    assert failures(inputs, folder) == {}


def test_what_breaks_files_gives_the_same_file_again_and_another_each_time() -> None:
    for maker in (broken_bytes, broken_structure):
        first, again = (
            [data for _, data in islice(broken_files(valid_models(), [maker], seed=2), 20)]
            for _ in range(2)
        )
        assert first == again
        assert len(set(first)) == 20


def test_a_bug_is_a_failure_named_without_what_differs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*arguments: object) -> int:
        raise ValueError(f"{len(arguments)} values of `w`")

    monkeypatch.setattr("onnxslim.commands.compress._check_request", crash)
    verdict = attempts.attempt(b"", folder)
    assert verdict.code == 5
    assert "internal error" in verdict.failure
    assert not any(digit in verdict.failure for digit in "0123456789")

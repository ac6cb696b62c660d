from __future__ import annotations

import sys
from pathlib import Path

import pytest

from onnxslim.errors import RuntimeFailure, UsageError
from onnxslim.runtime.samples.user_function import call, is_function_name, load_function


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "is_name"),
    [
        ("a:b", True),
        ("pkg.mod:Class.method", True),
        ("a", False),
        ("a/b.npz", False),
        ("a:", False),
    ],
)
def test_spelling_of_a_function_name(text: str, is_name: bool) -> None:
    assert is_function_name(text) == is_name


def test_module_in_the_current_folder_is_found(folder: Path) -> None:
    (folder / "mine_for_test.py").write_text("def samples():\n    return 3\n")
    before = list(sys.path)
    assert load_function("mine_for_test:samples")() == 3
    assert sys.path == before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module_here:f", "no module `no_such_module_here`"),
        ("math:no_such", "Module `math` has no `no_such`"),
        ("math:pi", "is a float; a function is needed"),
    ],
)
def test_what_cannot_be_found_is_named(folder: Path, spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_function(spec)


def test_failing_import_and_failing_call_become_sentences(folder: Path) -> None:
    (folder / "broken_for_test.py").write_text("import no_such_thing_here\n")
    with pytest.raises(UsageError, match="failed with ModuleNotFoundError"):
        load_function("broken_for_test:f")
    (folder / "odd_for_test.py").write_text("1 / 0\n")
    with pytest.raises(UsageError, match="failed with ZeroDivisionError"):
        load_function("odd_for_test:f")
    with pytest.raises(UsageError, match="`int` failed with ValueError"):
        call(int, "int", "x")


def test_failures_of_the_model_inside_a_function_stay_what_they_are() -> None:
    def use_model() -> None:
        raise RuntimeFailure("the model")

    with pytest.raises(RuntimeFailure, match="the model"):
        call(use_model, "m:f")

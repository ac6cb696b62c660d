"""What a fault leaves behind: a few of the points that `tests/faults.py` tries."""

from __future__ import annotations

import contextlib
import errno
import signal
from pathlib import Path

import pytest
from fault_points import (
    CASES,
    ERRORS,
    OLD,
    Attempt,
    Bench,
    FailingCalls,
    count_requests,
    failing_sessions,
    file_faults,
    wrong_outputs,
)

from onnxslim import cli
from onnxslim.commands import failures
from onnxslim.io.files import replaced
from onnxslim.io.staging import map_file
from onnxslim.pipeline import registry


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def wrong(attempts: list[Attempt]) -> list[str]:
    return [text for attempt in attempts for text in attempt.wrong]


@pytest.mark.parametrize("name", ["nothing to do", "external data, copied", "groups"])
def test_each_request_to_the_file_system_may_fail(bench: Bench, name: str) -> None:
    count = len(count_requests(bench, CASES[name]))
    for at in range(1, count + 1):
        attempts = list(file_faults(bench, CASES[name], [ERRORS[at % len(ERRORS)]], [at]))
        assert wrong(attempts) == []


def test_the_last_requests_of_a_model_with_a_data_file_may_fail(bench: Bench) -> None:
    case = CASES["unpack, external data"]
    count = len(count_requests(bench, case))
    attempts = list(file_faults(bench, case, ERRORS[:2], range(count - 6, count + 1)))
    assert wrong(attempts) == []
    assert {attempt.code for attempt in attempts} == {0, 2}


@pytest.mark.parametrize("error", [RuntimeError("no"), MemoryError("bad allocation")])
def test_onnxruntime_may_throw(bench: Bench, error: Exception) -> None:
    with failing_sessions(0, error) as clean:
        assert bench.run(CASES["simplify"], contextlib.nullcontext(), old=False).code == 0
    for at in (1, 2, len(clean)):
        attempt = bench.run(CASES["simplify"], failing_sessions(at, error), old=True)
        assert attempt.wrong == []
        assert attempt.code in ((0, 6) if isinstance(error, MemoryError) else (0, 5, 6))


def test_what_a_fault_must_not_leave_is_found(tmp_path: Path) -> None:
    case = CASES["report"]
    (tmp_path / "o.onnx").write_bytes(b"half a mod")
    assert any("broken" in text for text in wrong_outputs(case, tmp_path, 2, False))
    (tmp_path / "o.onnx").write_bytes(OLD)
    assert list(wrong_outputs(case, tmp_path, 2, True)) == []
    assert list(wrong_outputs(case, tmp_path, 0, True)) == ["exit 0, and `o.onnx` is old"]
    (tmp_path / "o.onnx.data").write_bytes(b"weights")
    assert any("o.onnx.data" in text for text in wrong_outputs(case, tmp_path, 2, True))
    (tmp_path / "o.onnx.data").unlink()
    (tmp_path / "r.json").write_text("{}")
    assert any("report" in text for text in wrong_outputs(case, tmp_path, 2, True))


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, cli.INTERRUPTED, "interrupted"),
        (signal.SIGTERM, cli.TERMINATED, "terminated"),
    ],
)
def test_a_signal_that_an_import_turns_into_another_error_is_still_a_signal(
    number: int,
    code: int,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(*_: object, **__: object) -> None:
        try:
            cli._stop(number, None)
        except BaseException as stop:
            raise ImportError("initialization failed") from stop

    seen: list[int] = []
    for module in (cli, failures):
        monkeypatch.setattr(module, "received", seen)
    monkeypatch.setattr("onnxslim.cli.cli.main", load)
    assert cli.run(["compress"]) == code
    assert capsys.readouterr().err == f"onnxslim: error: {word}.\n"


def test_a_library_that_finds_no_memory_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: object, **__: object) -> None:
        raise ImportError("libx.so: failed to map segment from shared object")

    monkeypatch.setattr("onnxslim.cli.cli.main", load)
    assert cli.run(["compress"]) == 6
    assert "not enough memory" in capsys.readouterr().err


def test_a_process_with_too_little_memory_for_the_libraries_ends_before_they_are_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "STARTING_BYTES", 1 << 50)
    assert cli.run(["inspect", "no such file"]) == 6
    assert "not enough memory" in capsys.readouterr().err


def test_a_pass_whose_module_finds_no_memory_is_no_broken_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: object) -> None:
        raise ImportError("libx.so: failed to map segment from shared object")

    entry = registry._Entry("never-loaded", "nowhere:Nothing", "onnxslim itself")
    monkeypatch.setattr(registry.importlib, "import_module", load)
    with pytest.raises(MemoryError):
        registry._load(entry)


def test_a_file_that_does_not_fit_into_the_address_space_is_a_lack_of_memory(
    tmp_path: Path,
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    with replaced(FailingCalls(1, errno.ENOMEM)), pytest.raises(MemoryError):
        map_file(tmp_path / "m.onnx")

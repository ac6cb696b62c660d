"""`--cache`: the same steps are done once, by several processes, whatever ends them."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Said, run
from fault_points import Bench, Case, FailingCalls, count_requests
from layer_nets import dense_net

PASSES = "simplify,prune-channels:ratio=0.2,quantize-weights"
_KILLED = """
import os, signal, sys
from onnxslim import cli
from onnxslim.pipeline import manager
run_bundle = manager._PipelineRun.run_bundle

def killed(self, current, bundle):
    if bundle[0].name == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    return run_bundle(self, current, bundle)

manager._PipelineRun.run_bundle = killed
sys.exit(cli.run(sys.argv[2:]))
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    onnx.save(dense_net(200, 128, 10), tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "c.npz", x=rng.standard_normal((40, 200)).astype(np.float32))
    return tmp_path


def words(work: Path, output: str, cache: str | None = "cache") -> list[str]:
    settings = ["--passes", PASSES, "--no-floor", "--force", "--no-latency", "--calib"]
    kept = [] if cache is None else ["--cache", str(work / cache)]
    return [str(work / "m.onnx"), str(work / output), *settings, str(work / "c.npz"), *kept]


def from_cache(report: Path) -> list[bool]:
    return [step["from_cache"] for step in json.loads(report.read_text())["passes"]]


def start(before: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """The command in a process of its own, which is killed before it runs the pass `before`."""
    command = [sys.executable, "-c", _KILLED, before, *arguments, "--quiet"]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_second_run_is_told_from_the_first(work: Path, capsys: Said) -> None:
    assert run(*words(work, "a.onnx"), "--report", work / "a.json") == 0
    assert "from cache" not in capsys.readouterr().out
    assert run(*words(work, "b.onnx"), "--report", work / "b.json") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "simplify (from cache)" in shown
    assert from_cache(work / "a.json") == [False] * 3
    assert from_cache(work / "b.json") == [True] * 3
    assert (work / "a.onnx").read_bytes() == (work / "b.onnx").read_bytes()
    assert run(*words(work, "c.onnx", None)) == 0
    assert (work / "a.onnx").read_bytes() == (work / "c.onnx").read_bytes()


def test_the_environment_names_the_folder(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXSLIM_STEP_CACHE", str(work / "elsewhere"))
    assert run(*words(work, "a.onnx", None)) == 0
    assert run(*words(work, "b.onnx", None), "--report", work / "b.json") == 0
    assert from_cache(work / "b.json") == [True] * 3
    assert (work / "elsewhere" / "steps").is_dir()


def test_a_killed_run_loses_no_step_but_the_one_in_hand(work: Path) -> None:
    killed = start("quantize-weights", words(work, "a.onnx"))
    assert killed.wait() == -signal.SIGKILL
    assert not (work / "a.onnx").exists()
    assert run(*words(work, "b.onnx"), "--report", work / "b.json") == 0
    assert from_cache(work / "b.json") == [True, True, False]
    assert not list((work / "cache").glob(".onnxslim-*"))


def test_two_processes_may_use_one_folder_at_once(work: Path) -> None:
    both = [start("none", words(work, name)) for name in ("a.onnx", "b.onnx")]
    assert [process.wait() for process in both] == [0, 0]
    assert run(*words(work, "c.onnx"), "--report", work / "c.json") == 0
    assert from_cache(work / "c.json") == [True] * 3
    contents = {(work / name).read_bytes() for name in ("a.onnx", "b.onnx", "c.onnx")}
    assert len(contents) == 1


def test_no_request_to_the_file_system_that_fails_ends_a_run(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    plain = Case(("compress", "{in}/m.onnx", "{out}/o.onnx"), ("o.onnx",))
    case = Case((*plain.arguments, "--cache", "{out}/../cache"), ("o.onnx",))
    requests = count_requests(bench, case)
    of_cache = range(2, len(requests) - len(count_requests(bench, plain)) + 2)
    assert {"create", "write", "rename", "make_folder"} <= {requests[at - 1] for at in of_cache}
    for at in of_cache[::2]:
        attempt = bench.run(case, FailingCalls(at, errno.ENOSPC), old=at % 2 == 0)
        assert (attempt.code, attempt.wrong) == (0, []), (at, requests[at - 1])


def test_the_cache_is_shown_bounded_and_cleared(work: Path, capsys: Said) -> None:
    assert run(*words(work, "a.onnx"), "--quiet") == 0
    assert run("cache", work / "cache") == 0
    shown = capsys.readouterr().out
    assert "3 steps that took" in shown
    assert "prune-channels:ratio=0.2" in shown
    assert run("cache", work / "cache", "--limit", "1kB", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["bytes"] <= figures["limit_bytes"] == 1000
    assert run("cache", work / "cache", "--clear") == 0
    assert not list((work / "cache").iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{}/none"], "There is no folder"),
        (["{}", "--limit", "much"], "must be a size such as 500MB or 2GB; got 'much'"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    tmp_path: Path, capsys: Said, arguments: Sequence[str], sentence: str
) -> None:
    assert run("cache", *[word.format(tmp_path) for word in arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_cache_that_is_a_file_is_refused(work: Path, capsys: Said) -> None:
    assert run(*words(work, "a.onnx", "m.onnx")) == 2
    assert "is a file; give the path of a folder" in capsys.readouterr().err

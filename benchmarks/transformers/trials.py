"""What is done to each model: a task by a tool, and how its process is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.fp16 import PEER as FLOAT16
from benchmarks.int8.weight_only import PEER as NBITS
from benchmarks.models.transformers import EXPORTER, Transformer, path, samples_file
from benchmarks.models.zoo import cache_folder
from benchmarks.peers.environments import (
    DRIVERS,
    PEERS,
    QUANTIZERS,
    PeerError,
    Tool,
    python_of,
)
from benchmarks.reporting import ROOT, Found

CALIBRATION: Final = 64  # samples
BUSY: Final = 6  # a process may take this much longer by the clock than in processor time
WORDS: Final = 160  # characters of a message that a row keeps

_SIMPLIFIERS: Final = {tool.name: tool for tool in PEERS}
_QUANTIZERS: Final = {tool.name: tool for tool in QUANTIZERS}
# onnxruntime's optimizer imports torch
_OPTIMIZER: Final = replace(EXPORTER, driver="optimize_ort.py")
_COMMAND: Final = Tool("ours", "command.py")
_UNTIMED: Final = ("--no-verify", "--no-latency")
_ANY_LOSS: Final = ("--no-floor", "--force", "--no-latency")


@dataclass(frozen=True)
class Trial:
    """One task by one tool.

    Attributes:
        tool: its name in tables; `ours` and what follows is this project.
        driver: and the environment that it runs in.
        options: after the input and output of the driver; SAMPLES stands for the file of
            calibration samples.
        portable: whether it keeps to operators that ONNX defines.
    """

    task: str
    tool: str
    driver: Tool
    options: Callable[[Transformer], Sequence[str]]
    portable: bool = True

    @property
    def is_ours(self) -> bool:
        """Whether this project does it."""
        return self.driver is _COMMAND


SAMPLES: Final = "SAMPLES"


def _fixed(*options: str) -> Callable[[Transformer], Sequence[str]]:
    return lambda model: options


def _ours(task: str, name: str, passes: str, *options: str) -> Trial:
    return Trial(task, name, _COMMAND, _fixed("--passes", passes, "--overwrite", *options))


def _peer(task: str, name: str, tool: str, driver: str, *options: str, **about: bool) -> Trial:
    return Trial(task, name, replace(_QUANTIZERS[tool], driver=driver), _fixed(*options), **about)


def _optimizer(model: Transformer) -> Sequence[str]:
    return (model.optimizer, str(model.heads), str(model.width))


_CALIB: Final = ("--calib", SAMPLES)
_PRUNE: Final = "simplify,prune-channels:ratio={}"
_NARROW: Final = "simplify,prune-residual-stream:ratio={}"

TRIALS: Final = (
    _ours("simplify", "ours", "simplify", *_UNTIMED),
    _ours("simplify", "ours, fuse-attention", "simplify,fuse-rotary,fuse-attention", *_UNTIMED),
    *(
        Trial("simplify", name, _SIMPLIFIERS[name], _fixed())
        for name in ("OnnxSlim", "onnxsim", "onnxscript")
    ),
    Trial("simplify", "onnxruntime", _OPTIMIZER, _optimizer, portable=False),
    _ours("int8", "ours", "simplify,quantize-int8", *_CALIB),
    _peer("int8", "onnxruntime dynamic", "onnxruntime", "quantize_dynamic_ort.py"),
    _peer("int8", "onnxruntime static", "onnxruntime", "quantize_ort.py", SAMPLES, "u8"),
    _peer(
        "int8",
        "onnxruntime static, products",
        "onnxruntime",
        "quantize_ort.py",
        SAMPLES,
        "u8",
        "products",
    ),
    _peer("int8", "NNCF", "nncf", "quantize_nncf.py", SAMPLES),
    _ours("weights of 8 bits", "ours", "simplify,quantize-weights", "--no-floor"),
    Trial("weights of 8 bits", "onnxruntime", NBITS, _fixed("8", "32", "4"), portable=False),
    _ours("weights of 4 bits", "ours", "simplify,quantize-weights:bits=4", "--no-floor"),
    _ours(
        "weights of 4 bits",
        "ours, samples",
        "simplify,quantize-weights:bits=4",
        "--no-floor",
        *_CALIB,
    ),
    Trial("weights of 4 bits", "onnxruntime", NBITS, _fixed("4", "32", "4"), portable=False),
    _ours("float16", "ours", "simplify,convert-fp16", "--no-floor"),
    Trial("float16", "onnxconverter-common", FLOAT16, _fixed(SAMPLES)),
    _ours("25 % of channels away", "ours", _PRUNE.format(0.25), *_ANY_LOSS, *_CALIB),
    _peer("25 % of channels away", "onnxsim", "onnxsim", "prune_onnxsim.py", "0.25"),
    _ours("50 % of channels away", "ours", _PRUNE.format(0.5), *_ANY_LOSS, *_CALIB),
    _peer("50 % of channels away", "onnxsim", "onnxsim", "prune_onnxsim.py", "0.5"),
    *(
        _ours(
            "a narrower stream",
            f"ours, {100 * ratio:.0f} %",
            _NARROW.format(ratio),
            *_ANY_LOSS,
            *_CALIB,
        )
        for ratio in (0.1, 0.2, 0.3)
    ),
)
TASKS: Final = tuple(dict.fromkeys(trial.task for trial in TRIALS))


# ---------------------------------------------------------------------------- running


def written_by(trial: Trial, model: Transformer) -> Path:
    """Where a trial writes its version of a model."""
    folder = cache_folder() / "transformers" / trial.task.replace(" ", "_").replace("%", "")
    return folder / trial.tool.replace(" ", "_").replace(",", "") / model.name / "model.onnx"


def run(trial: Trial, model: Transformer, limit_seconds: int, limit_megabytes: int) -> Found:
    """Processor seconds and peak memory of a trial's process; `error` where it wrote nothing."""
    source, target = path(model), written_by(trial, model)
    target.parent.mkdir(parents=True, exist_ok=True)
    for old in target.parent.iterdir():
        old.unlink()
    options = [
        str(samples_file(model, CALIBRATION)) if word == SAMPLES else word
        for word in trial.options(model)
    ]
    report = target.with_suffix(".json")
    if trial.is_ours:
        options += ["--report", str(report), "--quiet"]
    try:
        line = [str(python_of(trial.driver)), str(DRIVERS / "measured.py")]
        line += [str(limit_seconds), str(limit_megabytes)]
        line += [str(DRIVERS / trial.driver.driver), str(source), str(target), *options]
        done = _completed(line, trial, BUSY * limit_seconds)
    except PeerError as error:
        return {"error": short(str(error))}
    except subprocess.TimeoutExpired:
        return {"error": f"no result in {BUSY * limit_seconds} s"}
    found = _parsed(done)
    if found["error"] is None and not target.exists():
        found["error"] = f"wrote nothing: {short(done.stderr)[-WORDS:]}"
    return {**found, **(_last_step(report) if trial.is_ours and report.exists() else {})}


def _completed(
    line: Sequence[str], trial: Trial, clock_seconds: float
) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if not trial.is_ours:
        environment.pop("PYTHONPATH", None)  # a peer must not see this project
    return subprocess.run(
        line,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=clock_seconds,
        env=environment,
    )


def _parsed(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
    lines = done.stdout.strip().splitlines()
    if not lines:
        return {"error": short(f"exit code {done.returncode}: {last}")}
    found: dict[str, object] = json.loads(lines[-1])
    if found["error"] is not None:
        detail = f": {last}" if str(found["error"]).startswith("exit code") else ""
        found["error"] = short(f"{found['error']}{detail}")
    return found


def _last_step(report: Path) -> dict[str, object]:
    """Whether the step that a task is about was kept, and why it was not."""
    steps = json.loads(report.read_text())["passes"]
    if not steps:
        return {}
    step = steps[-1]
    return {"kept": step["committed"], "why": short(step["why_not_committed"] or "") or None}


def short(text: str) -> str:
    """One line, without this machine's folders."""
    for folder in (cache_folder(), ROOT, Path(sys.prefix)):
        text = text.replace(str(folder), folder.name)
    return " ".join(text.split())[:WORDS]


__all__ = ["BUSY", "TASKS", "TRIALS", "Trial", "run", "short", "written_by"]

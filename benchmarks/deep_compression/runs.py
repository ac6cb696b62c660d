"""Running `onnxslim` as its users do, and what its files are: seconds, memory, bytes, errors."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks import reporting

BATCH: Final = 1000
_PACKAGES: Final = ("onnxslim-compiler", "onnx", "onnxruntime", "numpy", "scipy")

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
Figures = dict[str, Json]


class RunError(Exception):
    """A command failed; its last words are in the message."""


@dataclass(frozen=True)
class Run:
    """A finished command.

    `seconds` as its parent sees it, imports included; `load` is the machine's load average just
    before, from which to tell a disturbed figure. `is_paused` is set by hand in the kept record of
    a run that somebody stopped for a while: its seconds say nothing.
    """

    command: str
    seconds: float
    peak_rss_bytes: int
    load: float
    is_paused: bool = False


def onnxslim(*arguments: str | Path) -> Run:
    """Run `onnxslim` in a process of its own.

    Raises:
        RunError: it did not exit with 0.
    """
    command = [sys.executable, "-m", "onnxslim", *map(str, arguments)]
    load = os.getloadavg()[0]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    assert process.stderr is not None
    with process.stderr:
        said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)  # the memory of this child, not of all so far
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    shown = shlex.join(["onnxslim", *(_shown(item) for item in arguments)])
    if process.returncode:
        last = "\n".join(said.strip().splitlines()[-3:])
        raise RunError(f"`{shown}` ended with exit code {process.returncode}: {last}")
    return Run(shown, round(seconds, 2), usage.ru_maxrss * 1024, round(load, 2))


def _shown(argument: str | Path) -> str:
    """An argument without this machine's folders: results are for everybody."""
    return argument.name if isinstance(argument, Path) else argument


@dataclass(frozen=True)
class Kept:
    """A file that a command made, with its report, kept for the next time."""

    output: Path
    report: Path
    run: Run


def kept(output: Path, *arguments: str | Path) -> Kept:
    """Let `onnxslim ARGUMENTS --report` write `output`, unless an earlier run has.

    Raises:
        RunError: the command failed.
    """
    report = output.with_suffix(output.suffix + ".report.json")
    record = output.with_suffix(output.suffix + ".run.json")
    if not record.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        done = onnxslim(*arguments, "--report", report, "--quiet")
        record.write_text(json.dumps(asdict(done)))
    return Kept(output, report, Run(**json.loads(record.read_text())))


def read_json(file: Path) -> dict[str, Json]:
    """The object in a JSON file."""
    return cast("dict[str, Json]", json.loads(file.read_text()))


def save(name: str, content: Mapping[str, Json]) -> None:
    """Write `content` and what it was measured with to `results/deep_compression_NAME.json`."""
    reporting.save(f"deep_compression_{name}", {"versions": versions(), **content})


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


@dataclass(frozen=True)
class Labelled:
    """Images and the digits they show, as `examples/mnist_samples.py` writes them."""

    image: NDArray[np.float32]  # (n, 1, 28, 28)
    label: NDArray[np.int64]  # (n,)

    @classmethod
    def read(cls, file: Path) -> Labelled:
        """The arrays `image` and `label` of an .npz file."""
        with np.load(file) as arrays:
            return cls(arrays["image"], arrays["label"])

    def error(self, model: Path | bytes) -> float:
        """Share of the images that onnxruntime, running `model`, does not recognise, in percent."""
        source = str(model) if isinstance(model, Path) else model
        session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        parts = np.array_split(self.image, max(1, len(self.image) // BATCH))
        guesses = [session.run(None, {name: part})[0].argmax(axis=1) for part in parts]
        return round(100 * float(np.mean(np.concatenate(guesses) != self.label)), 2)

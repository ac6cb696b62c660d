"""The tools that the benchmarks compare, each peer in a virtual environment of its own.

    python -m benchmarks.peers.environments [NAMES...]

Environments lie in the cache folder. OnnxSlim needs one most: it shares our import name.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.models.zoo import cache_folder

CONSOLE = Console()
DRIVERS = Path(__file__).parent / "drivers"
TIMEOUT_SECONDS = 600
QUANTIZER_SECONDS = 1800
WORDS = 200  # characters of a message that a row keeps
STAMP = "requirements.sha256"  # written last into an environment that is complete

ONNX = (
    "flatbuffers==25.12.19",
    "ml_dtypes==0.6.0",
    "numpy==2.4.6",
    "onnx==1.23.2",
    "packaging==26.3",
    "protobuf==7.36.2",
    "typing_extensions==4.16.0",
)
ONNXRUNTIME = "onnxruntime==1.31.1"
SYMPY = ("mpmath==1.3.0", "sympy==1.14.0")


@dataclass(frozen=True)
class Tool:
    """A simplifier; `requirements` is what its environment holds, none for ours: it runs here."""

    name: str
    driver: str
    requirements: tuple[str, ...] = ()


OURS = Tool("ours", "ours.py")
PEERS: tuple[Tool, ...] = (
    Tool(
        "OnnxSlim",
        "peer_onnxslim.py",
        ("onnxslim==0.1.98", "colorama==0.4.6", ONNXRUNTIME, *SYMPY, *ONNX),
    ),
    Tool("onnxsim", "peer_onnxsim.py", ("onnxsim==0.8.1", ONNXRUNTIME, *ONNX)),
    Tool("onnxoptimizer", "peer_onnxoptimizer.py", ("onnxoptimizer==0.4.2", *ONNX)),
    Tool(
        "onnxscript",
        "peer_onnxscript.py",
        ("onnxscript==0.7.2", "onnx_ir==1.1.0", *SYMPY, *ONNX),
    ),
)
TOOLS: tuple[Tool, ...] = (OURS, *PEERS)
QUANTIZERS: tuple[Tool, ...] = (
    Tool("onnxruntime", "quantize_ort.py", (ONNXRUNTIME, *SYMPY, *ONNX)),
    Tool("onnxsim", "quantize_onnxsim.py", PEERS[1].requirements),
    Tool("nncf", "quantize_nncf.py", ("nncf==3.4.0", ONNXRUNTIME, *ONNX)),
)


class PeerError(Exception):
    """A tool that is not known or cannot be installed."""


@dataclass(frozen=True)
class Run:
    """One run of a tool; with an `error`, the other numbers say only how far it came.

    `seconds` is load, simplify and save inside the process, imports excluded; `seconds_cpu` the
    same in processor time of all threads, which a busy machine sways less; `seconds_process` the
    whole process as its parent sees it; `peak_rss_bytes` the most memory the process held;
    `late_imports` how many modules were loaded inside `seconds` all the same.
    """

    seconds_import: float
    seconds: float
    seconds_cpu: float
    seconds_process: float
    peak_rss_bytes: int
    late_imports: int
    error: str | None


def tools(names: Sequence[str] | None = None) -> list[Tool]:
    """Return the tools called `names` (any case), all by default.

    Raises:
        PeerError: for a name that is not a tool.
    """
    known = {tool.name.lower(): tool for tool in TOOLS}
    wanted = [name.lower() for name in names or known]
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        message = f"No tool is named {', '.join(unknown)}; there are {', '.join(known)}"
        raise PeerError(message)
    return [known[name] for name in wanted]


def python_of(tool: Tool) -> Path:
    """Return the interpreter that runs `tool`, installing its environment when it is not there.

    Raises:
        PeerError: if pip cannot install the pinned requirements.
    """
    if not tool.requirements:
        return Path(sys.executable)
    folder = cache_folder() / "peers" / tool.name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pins = "\n".join((*tool.requirements, sys.version))
    digest = hashlib.sha256(pins.encode()).hexdigest()
    stamp = folder / STAMP
    if not stamp.exists() or stamp.read_text() != digest:
        _install(tool, folder, python)
        stamp.write_text(digest)
    return python


def _install(tool: Tool, folder: Path, python: Path) -> None:
    venv.create(folder, clear=True, with_pip=True)
    command = [str(python), "-m", "pip", "install", "--quiet", *tool.requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"pip cannot install {tool.name}: {done.stderr.strip()}"
        raise PeerError(message)


def run_driver(tool: Tool, *arguments: str | os.PathLike[str]) -> str | None:
    """Run the driver of `tool` in its environment; the last line of what went wrong, if so."""
    try:
        done = _completed(tool, _command(tool, *arguments), QUANTIZER_SECONDS)
    except PeerError as error:
        return str(error)[:WORDS]
    except subprocess.TimeoutExpired:
        return f"still running after {QUANTIZER_SECONDS} s"
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or ["no message"])[-1][:WORDS]


def run(tool: Tool, source: Path, target: Path, timeout_seconds: float = TIMEOUT_SECONDS) -> Run:
    """Simplify `source` into `target` with `tool` in a process of its own; never raises for it."""
    command = _command(tool, source, target)
    started = time.perf_counter()
    try:
        done = _completed(tool, command, timeout_seconds)
    except subprocess.TimeoutExpired:
        return _failure(time.perf_counter() - started, f"no result in {timeout_seconds:g} s")
    return _parse(done, time.perf_counter() - started)


def _command(tool: Tool, *arguments: str | os.PathLike[str]) -> list[str]:
    """That runs the driver; its environment is installed, where it is not there yet."""
    return [os.fspath(item) for item in (python_of(tool), DRIVERS / tool.driver, *arguments)]


def _completed(
    tool: Tool, command: Sequence[str], timeout_seconds: float
) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if tool.requirements:
        environment.pop("PYTHONPATH", None)  # a peer must not see this project
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=timeout_seconds,
        env=environment,
    )


def _parse(done: subprocess.CompletedProcess[str], seconds_process: float) -> Run:
    try:
        line = json.loads(done.stdout)
    except json.JSONDecodeError:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing on stderr"]
        return _failure(seconds_process, f"exit code {done.returncode}: {last[0]}")
    return Run(seconds_process=seconds_process, **line)


def _failure(seconds_process: float, error: str) -> Run:
    return Run(0, 0, 0, seconds_process, 0, 0, error)


def main() -> int:
    """Install the named peers, or all; exit code 1 if one cannot be installed."""
    parser = argparse.ArgumentParser(description="Install the peers into the cache.")
    parser.add_argument("names", nargs="*", help="tools to install (default: all)")
    try:
        for tool in tools(parser.parse_args().names):
            python_of(tool)
            CONSOLE.print(f"{tool.name}: {', '.join(tool.requirements) or 'runs here'}")
    except PeerError as error:
        CONSOLE.print(f"[red]{error}[/red]")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Look for files that crash the command, hang it, or take too much memory.

    python tests/fuzz.py files --minutes 10          # broken model files, by bytes and by structure
    python tests/fuzz.py files --count 10000 --seed 7
    python tests/fuzz.py packed --count 1000         # broken packed files
    python tests/fuzz.py --replay finding.onnx       # a finding again, with its traceback

Each input goes through the command in a worker process with a limit on time and memory. A finding
is an exit code that says "bug" (5), a worker that died or hung, or memory beyond the limit. A file
for each kind of failure is kept in `--keep`. `tests/commands/test_broken_files.py` tries a few
inputs in CI.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing as mp
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

sys.path.append(str(Path(__file__).parent / "helpers"))  # pytest does so by itself

from attempts import Verdict, attempt
from broken_files import (
    broken_bytes,
    broken_files,
    broken_structure,
    packed_files,
    valid_models,
)

SECONDS: Final = 60
MEMORY_BYTES: Final = 4 << 30


# ----------------------------------------------------------------- the worker


def answer(pipe: Connection) -> None:
    """Judge inputs until there are no more, in a process of limited memory."""
    resource.setrlimit(resource.RLIMIT_AS, (2 * MEMORY_BYTES, 2 * MEMORY_BYTES))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # onnxruntime writes there by itself
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        os.chdir(folder)
        while True:
            try:
                data = pipe.recv()
            except EOFError:
                return
            verdict = attempt(data, Path(folder))
            peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if not verdict.failure and peak > MEMORY_BYTES:
                verdict = Verdict("more memory than the limit", f"{peak:,} bytes")
            pipe.send(verdict)
            if peak > MEMORY_BYTES // 4:
                return  # memory once taken is not given back: the next input gets a new process


class Judge:
    """A worker at a time, made anew when it dies or hangs."""

    def __init__(self) -> None:
        self.context = mp.get_context("spawn")
        self.process: mp.process.BaseProcess | None = None

    def verdict(self, data: bytes) -> Verdict:
        """The verdict on one input."""
        if self.process is None or not self.process.is_alive():
            self.pipe, theirs = self.context.Pipe()
            self.process = self.context.Process(target=answer, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
        try:
            self.pipe.send(data)
            if not self.pipe.poll(SECONDS):
                self.stop()
                return Verdict(f"no answer within {SECONDS} s")
            verdict: Verdict = self.pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.process.join(5)
            return Verdict(f"the process died with exit code {self.process.exitcode}")
        return verdict

    def stop(self) -> None:
        """End the worker."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


# ----------------------------------------------------------------- the command


def search(
    inputs: Iterator[tuple[str, bytes]], minutes: float | None, keep: Path
) -> tuple[Counter[str], dict[str, str]]:
    """Judge inputs until the time is up; how often each exit code came, and findings by kind."""
    judge, codes, findings = Judge(), Counter[str](), dict[str, str]()
    end = None if minutes is None else time.monotonic() + 60 * minutes
    for name, data in inputs:
        if end is not None and time.monotonic() > end:
            break
        verdict = judge.verdict(data)
        if not verdict.failure:
            codes[f"exit {verdict.code}"] += 1
            continue
        codes["findings"] += 1
        if verdict.failure not in findings:
            findings[verdict.failure] = name
            keep.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256(verdict.failure.encode()).hexdigest()[:8]
            (keep / f"{digest}.onnx").write_bytes(data)
            (keep / f"{digest}.txt").write_text(f"{verdict.failure}\n{verdict.detail}", "utf-8")
    judge.stop()
    return codes, findings


def main(arguments: list[str]) -> int:
    """Search until the time or the count is up; 1 where there are findings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", nargs="?", choices=("files", "packed"), default="files")
    parser.add_argument("--minutes", type=float, help="stop after so long (1 without --count)")
    parser.add_argument("--count", type=int, help="stop after so many inputs")
    parser.add_argument("--seed", type=int, default=0, help="of all randomness")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="findings")
    parser.add_argument("--replay", type=Path, help="one finding, in this process")
    options = parser.parse_args(arguments)
    if options.replay:
        with tempfile.TemporaryDirectory() as folder:
            verdict = attempt(options.replay.read_bytes(), Path(folder), tell="--verbose")
        print(verdict.failure or f"exit {verdict.code}", verdict.detail, sep="\n")
        return int(bool(verdict.failure))
    minutes = options.minutes if options.minutes or options.count else 1.0
    base = valid_models()
    makers = [broken_bytes, broken_structure]
    if options.what == "packed":
        base, makers = packed_files(base), [broken_bytes]
    inputs = islice(broken_files(base, makers, options.seed), options.count)
    started = time.monotonic()
    codes, findings = search(inputs, minutes, options.keep)
    print(f"{sum(codes.values()):,} inputs in {time.monotonic() - started:.0f} s: {dict(codes)}")
    for kind, name in findings.items():
        print(f"  {name}: {kind}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

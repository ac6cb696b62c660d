"""Make commands fail on purpose, at every point where the machine can, and look at what is left.

    python tests/faults.py                 # everything, some minutes
    python tests/faults.py files           # each request to the file system fails once, in each way
    python tests/faults.py sessions        # onnxruntime throws at each session and each run
    python tests/faults.py memory          # memory ends, at limits from too little to enough
    python tests/faults.py signals         # SIGINT, SIGTERM and SIGKILL at --moments of a run
    python tests/faults.py disk            # a disk that is really full, and a limit on file sizes

After each fault the inputs must be untouched, each output old or new and whole, no temporary file
left, the exit code one that is documented, and standard error one sentence. `tests/commands/
test_faults.py` tries a few points in CI.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

sys.path.append(str(Path(__file__).parent / "helpers"))  # pytest does so by itself

from fault_points import (
    CASES,
    OLD,
    Attempt,
    Bench,
    Case,
    digests,
    file_faults,
    session_faults,
    wrong_outputs,
)

from onnxslim.errors import RuntimeFailure

LONG: Final = Case(
    ("compress", "{in}/e.onnx", "{out}/o.onnx", "--calib", "{in}/c.npz", "--no-floor", "--force",
     "--passes", "simplify,prune-weights:ratio=0.5", "--no-latency"),
    ("o.onnx", "o.onnx.data"),
)  # fmt: skip
_COMMAND: Final = "from onnxslim import cli; print('started', flush=True); cli.main()"
_MEGABYTES: Final = (*range(40, 320, 40), *range(320, 440, 5), *range(440, 1000, 140))


@dataclass
class Tally:
    """What was tried, and what went wrong."""

    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, name: str, attempt: Attempt) -> None:
        """Count an attempt."""
        self.codes[f"exit {attempt.code}"] += 1
        self.wrong += [f"{name}: {text}" for text in attempt.wrong]


# ------------------------------------------------------------------- in this process


def files_fail(bench: Bench, moments: int) -> Iterator[tuple[str, Tally]]:
    """Each request to the file system fails once, in each way."""
    for name, case in CASES.items():
        tally = Tally()
        for attempt in file_faults(bench, case):
            tally.add(name, attempt)
        yield name, tally


def sessions_fail(bench: Bench, moments: int) -> Iterator[tuple[str, Tally]]:
    """Onnxruntime throws, once at each session and each run."""
    for name in ("simplify", "lossy", "sensitivity", "external data"):
        tally = Tally()
        for attempt in session_faults(bench, CASES[name]):
            tally.add(name, attempt)
        yield name, tally


# ----------------------------------------------------------------- in other processes


def start(
    bench: Bench, case: Case, work: Path, limit: Callable[[], None] | None = None
) -> subprocess.Popen[str]:
    """The command in a process of its own, in the folder `work`."""
    out, scratch = work / "out", work / "tmp"
    for folder in (out, scratch):
        folder.mkdir()
    for name in case.outputs[:1]:
        (out / name).write_bytes(OLD)
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *bench.arguments(case, out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=work,
        env={**os.environ, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"},
        preexec_fn=limit,
    )


def ended(
    bench: Bench, case: Case, work: Path, process: subprocess.Popen[str], *, killed: bool = False
) -> Attempt:
    """Wait for the command and judge what is left."""
    try:
        errors = process.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Attempt(-1, "", ["it hangs"])
    attempt = Attempt(process.returncode, errors)
    if digests(bench.inputs) != bench.digests:
        attempt.wrong.append("an input changed")
    code = 2 if process.returncode < 0 else process.returncode
    orphans = work / "out" / "o.onnx.data"
    if killed and (work / "out" / "o.onnx").read_bytes() == OLD and orphans.exists():
        orphans.unlink()  # the data came into place, the model did not: nothing reads them
    attempt.wrong += wrong_outputs(case, work / "out", code, True)
    left = [*(work / "tmp").iterdir(), *(work / "out").glob(".onnxslim-*")]
    left = [item for item in left if item.name != ".ses"]  # onnxruntime's own
    if left and not killed:
        attempt.wrong.append(f"left behind: {[item.name for item in left]}")
    lines = [line for line in errors.splitlines() if line.startswith("onnxslim: error:")]
    if "Traceback" in errors or "internal error" in errors:
        attempt.wrong.append(f"exit {attempt.code}: {errors[-1500:]}")
    elif not killed and len(lines) != (attempt.code != 0):
        attempt.wrong.append(f"exit {attempt.code} with {len(lines)} sentences: {errors[-300:]}")
    return attempt


def memory_ends(bench: Bench, moments: int) -> Iterator[tuple[str, Tally]]:
    """The address space, or the data, of the process is limited."""
    for name, which in (("RLIMIT_AS", resource.RLIMIT_AS), ("RLIMIT_DATA", resource.RLIMIT_DATA)):
        tally = Tally()
        for megabytes in _MEGABYTES:
            nbytes = megabytes << 20
            with tempfile.TemporaryDirectory(dir=bench.folder) as work:
                limit = lambda: resource.setrlimit(which, (nbytes, nbytes))  # noqa: B023, E731
                process = start(bench, LONG, Path(work), limit)
                attempt = ended(bench, LONG, Path(work), process)
                if attempt.code not in (0, RuntimeFailure.exit_code):
                    attempt.wrong.append(f"exit {attempt.code}: {attempt.errors[-300:]}")
                tally.add(f"{name} {megabytes} MB", attempt)
        yield name, tally


def signals_come(bench: Bench, moments: int) -> Iterator[tuple[str, Tally]]:
    """Signals at moments spread over a run, from where the command line is read."""
    with tempfile.TemporaryDirectory(dir=bench.folder) as work:
        started = time.monotonic()
        clean = ended(bench, LONG, Path(work), start(bench, LONG, Path(work)))
        seconds = time.monotonic() - started
    assert (clean.code, clean.wrong) == (0, []), clean
    rng = random.Random(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        tally = Tally()
        is_kill = number == signal.SIGKILL
        for moment in range(moments if is_kill else moments // 5):
            with tempfile.TemporaryDirectory(dir=bench.folder) as work:
                process = start(bench, LONG, Path(work))
                if not is_kill and process.stdout is not None:
                    process.stdout.readline()  # until here a signal is Python's to answer
                time.sleep(0.01 + rng.random() * seconds)
                process.send_signal(number)
                attempt = ended(bench, LONG, Path(work), process, killed=is_kill)
                tally.add(f"{number.name} at moment {moment}", attempt)
                if is_kill:
                    tally.add(f"the run after {moment}", again(bench, Path(work)))
        yield number.name, tally


def again(bench: Bench, work: Path) -> Attempt:
    """A quick run into the same folder, which must not mind what the one before left."""
    for folder in ("tmp", "tmp2"):
        if (work / folder).exists():
            shutil.rmtree(work / folder)
    (work / "out").rename(work / "left")
    case = CASES["external data"]
    process = start(bench, case, work)
    for item in (work / "left").iterdir():
        if item.name != "o.onnx":
            item.rename(work / "out" / item.name)
    return ended(bench, case, work, process, killed=True)


def disk_is_full(bench: Bench, moments: int) -> Iterator[tuple[str, Tally]]:
    """A limit on the size of files; a small file system, where one can be mounted."""
    tally = Tally()
    for nbytes in (0, 1, 4096, 20_000):
        with tempfile.TemporaryDirectory(dir=bench.folder) as work:

            def limit() -> None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))  # noqa: B023

            process = start(bench, CASES["simplify"], Path(work), limit)
            attempt = ended(bench, CASES["simplify"], Path(work), process)
            tally.add(f"RLIMIT_FSIZE {nbytes}", attempt)
    yield "RLIMIT_FSIZE", tally
    with tempfile.TemporaryDirectory(dir=bench.folder) as work:
        mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", work]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            print("no file system can be mounted here: a full disk was not tried")
            return
        try:
            tally = Tally()
            process = start(bench, CASES["simplify"], Path(work))
            tally.add("tmpfs", ended(bench, CASES["simplify"], Path(work), process))
            yield "full tmpfs", tally
        finally:
            subprocess.run(["umount", work], check=True)


# ------------------------------------------------------------------------ the command

KINDS: Final[dict[str, Callable[[Bench, int], Iterator[tuple[str, Tally]]]]] = {
    "files": files_fail,
    "sessions": sessions_fail,
    "memory": memory_ends,
    "signals": signals_come,
    "disk": disk_is_full,
}


def main(arguments: list[str]) -> int:
    """Try every fault point; 1 where something was left that must not be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], help="default: all")
    parser.add_argument("--moments", type=int, default=200, help="at which SIGKILL comes")
    options = parser.parse_args(arguments)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        bench = Bench(Path(folder))
        for kind in options.kinds or KINDS:
            for name, tally in KINDS[kind](bench, options.moments):
                points = sum(tally.codes.values())
                codes = dict(sorted(tally.codes.items()))
                print(f"{kind}: {name}: {points} points, {len(tally.wrong)} wrong, {codes}")
                wrong += tally.wrong
    print(*wrong, sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

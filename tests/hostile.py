"""Give the command files that ask for more than any machine has, and watch what it takes.

    python tests/hostile.py                    # all cases, some minutes
    python tests/hostile.py Loop functions     # those with one of these words in their names

Each case runs in a process of its own with a limit on time and memory. It must end by itself with a
documented exit code, one sentence without control characters where it is refused, nothing
half-written, and no input touched. Prints seconds, seconds of processor and peak memory of each.
`tests/commands/test_hostile.py` tries a few in CI.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.append(str(Path(__file__).parent / "helpers"))  # pytest does so by itself

from attempts import GOOD_CODES
from hostile_files import CASES, SECONDS_OF
from isolated import MEMORY_BYTES, SECONDS

_COMMAND: Final = "from onnxslim import cli; cli.main()"
_MOST_WORDS: Final = 3000
_PATIENCE: Final = 4  # on a machine with other work; a case that uses the processor gets no more


@dataclass
class Outcome:
    """How the command ended."""

    code: int
    seconds: float
    processor_seconds: float
    peak_bytes: int
    output: str
    errors: str
    wrong: tuple[str, ...] = ()


def try_case(name: str) -> Outcome:
    """Write the files of a case and give them to the command."""
    seconds = SECONDS_OF.get(name, SECONDS)
    with tempfile.TemporaryDirectory(prefix="hostile-") as work:
        folder = Path(work) / "files"
        folder.mkdir()
        words = CASES[name](folder)
        before = set(folder.iterdir())
        outcome = _run(words, folder, Path(work), seconds)
        outcome.wrong = tuple(_wrong(outcome, folder, before, seconds))
        return outcome


def _run(words: list[str], folder: Path, work: Path, seconds: float) -> Outcome:
    """The command in a process of its own, ended after `seconds`."""
    (work / "tmp").mkdir()
    limit = 2 * MEMORY_BYTES
    quick = ["--no-latency"] if words[0] == "compress" else []
    with (work / "out").open("wb") as out, (work / "err").open("wb") as err:
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *words, *quick],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=folder,
            env={**os.environ, "TMPDIR": str(work / "tmp")},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        )
        timer = threading.Timer(_PATIENCE * seconds, process.kill)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
    return Outcome(
        process.returncode,
        time.monotonic() - started,
        usage.ru_utime + usage.ru_stime,
        1024 * usage.ru_maxrss,
        (work / "out").read_bytes().decode(errors="replace"),
        (work / "err").read_bytes().decode(errors="replace"),
    )


def _wrong(outcome: Outcome, folder: Path, before: set[Path], seconds: float) -> Iterator[str]:
    if outcome.seconds >= _PATIENCE * seconds or outcome.processor_seconds >= seconds:
        yield f"it hangs: {outcome.processor_seconds:.0f} s of processor in {outcome.seconds:.0f} s"
    elif outcome.code not in GOOD_CODES:
        yield f"exit {outcome.code}: {outcome.errors[-600:]!r}"
    if outcome.peak_bytes > MEMORY_BYTES:
        yield f"{outcome.peak_bytes >> 20} MB"
    sentences = [line for line in outcome.errors.splitlines() if line.startswith("onnxslim: error")]
    if outcome.code in (2, 3, 6) and (len(sentences) != 1 or len(outcome.errors) > _MOST_WORDS):
        yield f"{len(sentences)} sentences of {len(outcome.errors)} characters"
    texts = [outcome.output, outcome.errors]
    texts += [item.read_text() for item in folder.glob("r.*") if item not in before]
    controls = {c for text in texts for c in text if unicodedata.category(c) in ("Cc", "Cf")}
    if controls - {"\n", "\t"}:
        yield f"control characters {sorted(map(ascii, controls))}"
    left = {item.name for item in set(folder.iterdir()) - before}
    if left - (
        {"out.onnx", "out.onnx.data", "r.json", "r.txt"} if outcome.code in (0, 4) else set()
    ):
        yield f"left behind: {sorted(left)}"


def main(arguments: list[str]) -> int:
    """Try cases; 1 where something came out that must not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("words", nargs="*", help="parts of names; default: all cases")
    options = parser.parse_args(arguments)
    names = [n for n in CASES if not options.words or any(w in n for w in options.words)]
    wrong = 0
    for name in names:
        outcome = try_case(name)
        wrong += bool(outcome.wrong)
        print(
            f"{outcome.seconds:6.1f} s {outcome.processor_seconds:6.1f} s of processor"
            f" {outcome.peak_bytes >> 20:6} MB"
            f"  exit {outcome.code}  {name}",
            *(f"    WRONG: {text}" for text in outcome.wrong),
            *([f"    {outcome.errors.strip()[:200]!r}"] if outcome.errors else []),
            sep="\n",
            flush=True,
        )
    print(f"{len(names)} cases, {wrong} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

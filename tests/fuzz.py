"""Look for inputs that the command gets wrong.

    python tests/fuzz.py files --minutes 10          # broken model files, by bytes and by structure
    python tests/fuzz.py files --count 10000 --seed 7
    python tests/fuzz.py packed --count 1000         # broken packed files
    python tests/fuzz.py models --minutes 60         # random valid models through random pipelines
    python tests/fuzz.py node-tests --only softmax   # the node tests of onnx through every pass
    python tests/fuzz.py --replay finding.onnx       # a finding again, with its traceback

Each input is worked on in a process with a limit on time and memory. A finding is an exit code that
says "bug" (5), a process that died or hung, memory beyond the limit; of valid models also outputs
that are not those of the model as it was, a changed signature, and a lossless step that the tool
took back. A finding of each kind is kept in `--keep`, reduced, with a line that shows it again.
The suite tries a few inputs of each sort.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from threading import Lock
from typing import Any, Final

sys.path.append(str(Path(__file__).parent / "helpers"))  # pytest does so by itself

from attempts import Verdict, attempt
from broken_files import (
    broken_bytes,
    broken_files,
    broken_structure,
    packed_files,
    valid_models,
)
from isolated import MEMORY_BYTES, Died, Stage, Task, Worker
from model_trials import Findings, try_model
from node_trials import node_tests, try_node_test
from random_models import drawn_model
from rewrite_trials import Trial

SECONDS_OF_A_MODEL: Final = 120  # all pipelines on it, and the reduction of what fails
_TOLD: Final = 100  # inputs after which progress is told


@dataclass
class Tally:
    """What came of the inputs so far.

    Attributes:
        inputs: how many there were.
        counts: how often each outcome came.
        kinds: the name of the first input that showed each kind of failure.
    """

    keep: Path
    inputs: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, str] = field(default_factory=dict)

    def is_new(self, kind: str, name: str) -> Path | None:
        """Note a failure; where to keep it if it is the first of its kind, without suffix."""
        self.counts["findings"] += 1
        if kind in self.kinds:
            return None
        self.kinds[kind] = name
        print(f"  {name}: {kind}", flush=True)
        self.keep.mkdir(parents=True, exist_ok=True)
        return self.keep / hashlib.sha256(kind.encode()).hexdigest()[:8]


# ----------------------------------------------------------------- tasks


def judge_file(data: bytes, folder: Path, stage: Stage) -> Verdict:
    """Give a broken file to the command."""
    return attempt(data, folder)


def judge_model(seed: str, folder: Path, stage: Stage) -> Findings:
    """Try pipelines on the random model of a seed."""
    return try_model(seed, stage)


def judge_node_test(name: str, folder: Path, stage: Stage) -> Findings:
    """Try every pass on a node test."""
    return try_node_test(name, stage)


def note_file(tally: Tally, name: str, data: bytes, outcome: Verdict | Died, peak: int) -> None:
    """Count what came of a file, and keep it where it shows something new."""
    if isinstance(outcome, Died):
        outcome = Verdict(str(outcome))
    elif not outcome.failure and peak > MEMORY_BYTES:
        outcome = Verdict("more memory than the limit", f"{peak:,} bytes")
    if not outcome.failure:
        tally.counts[f"exit {outcome.code}"] += 1
    elif (path := tally.is_new(outcome.failure, name)) is not None:
        path.with_suffix(".onnx").write_bytes(data)
        path.with_suffix(".txt").write_text(f"{outcome.failure}\n{outcome.detail}", "utf-8")


def note_model(tally: Tally, name: str, seed: str, outcome: Findings | Died, peak: int) -> None:
    """Count what came of a valid model, and keep what fails."""
    if isinstance(outcome, Died):
        if outcome.stage in ("", "drawing", "original"):
            tally.counts["models that ended onnxruntime"] += 1
        elif path := tally.is_new(f"{outcome.stage}: {outcome}", name):
            if not seed.startswith("test_"):
                path.with_suffix(".onnx").write_bytes(drawn_model(seed).model.SerializeToString())
            path.with_suffix(".txt").write_text(f"seed {seed}, {outcome.stage}\n{outcome}", "utf-8")
        return
    tally.counts["refused by onnxruntime" if outcome.refused else "models"] += 1
    tally.counts["pipelines"] += outcome.pipelines
    for trial, failure in outcome.found:
        kind = f"{failure.kind} ({', '.join(trial.operators())})"
        if (path := tally.is_new(kind, name)) is not None:
            trial.save(path.with_suffix(".onnx"), failure)
    if peak > MEMORY_BYTES and (path := tally.is_new("more memory than the limit", name)):
        path.with_suffix(".txt").write_text(f"seed {seed}: {peak:,} bytes", "utf-8")


# ----------------------------------------------------------------- the command


def search(
    task: Task, inputs: Iterable[tuple[str, Any]], tally: Tally, minutes: float | None, jobs: int
) -> None:
    """Work on inputs until the time is up, in so many processes."""
    end = None if minutes is None else time.monotonic() + 60 * minutes
    note = note_file if task is judge_file else note_model
    lock, source = Lock(), iter(inputs)

    def work(_: int) -> None:
        worker = Worker(task, SECONDS_OF_A_MODEL) if note is note_model else Worker(task)
        while end is None or time.monotonic() < end:
            with lock:
                name, item = next(source, (None, None))
            if name is None:
                break
            outcome, peak = None, 0
            try:
                outcome, peak = worker.do(item)
            except Died as death:
                outcome = death
            with lock:
                note(tally, name, item, outcome, peak)
                tally.inputs += 1
                if tally.inputs % _TOLD == 0:
                    print(f"{tally.inputs} so far, the last is {name}", file=sys.stderr, flush=True)
        worker.stop()

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, range(jobs)))


def inputs_of(options: argparse.Namespace) -> tuple[Task, Iterator[tuple[str, Any]]]:
    """What is to be done, and on what."""
    if options.what == "models":
        seeds = (f"{options.seed}-{number}" for number in count(options.start))
        return judge_model, ((seed, seed) for seed in seeds)
    if options.what == "node-tests":
        names = sorted(name for name in node_tests() if options.only in name)
        return judge_node_test, ((name, name) for name in names[options.start :])
    base = valid_models()
    makers = [broken_bytes, broken_structure]
    if options.what == "packed":
        base, makers = packed_files(base), [broken_bytes]
    return judge_file, broken_files(base, makers, options.seed)


def replay(path: Path) -> int:
    """A finding again, in this process."""
    if path.with_suffix(".npz").exists():
        failure = Trial.load(path).failure()
        print(failure.detail if failure else "nothing is wrong")
        return int(failure is not None)
    with tempfile.TemporaryDirectory() as folder:
        verdict = attempt(path.read_bytes(), Path(folder), tell="--verbose")
    print(verdict.failure or f"exit {verdict.code}", verdict.detail, sep="\n")
    return int(bool(verdict.failure))


def main(arguments: list[str]) -> int:
    """Search until the time or the count is up; 1 where there are findings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    sorts = ("files", "packed", "models", "node-tests")
    parser.add_argument("what", nargs="?", choices=sorts, default="files")
    parser.add_argument("--minutes", type=float, help="stop after so long (1 without --count)")
    parser.add_argument("--count", type=int, help="stop after so many inputs")
    parser.add_argument("--seed", type=int, default=0, help="of all randomness")
    parser.add_argument(
        "--start", type=int, default=0, help="number of the first model or node test"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--only", default="", help="node tests with this in their names")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="findings")
    parser.add_argument("--replay", type=Path, help="one finding, in this process")
    options = parser.parse_args(arguments)
    if options.replay:
        return replay(options.replay)
    endless = options.what != "node-tests" and options.count is None
    minutes = options.minutes or (1.0 if endless else None)
    task, inputs = inputs_of(options)
    tally, started = Tally(options.keep), time.monotonic()
    search(task, islice(inputs, options.count), tally, minutes, options.jobs)
    print(f"{time.monotonic() - started:.0f} s: {dict(tally.counts)}")
    return 1 if tally.kinds else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Transformers: every model through every task, peers beside.

    python -m benchmarks.transformers measure [--models M,...] [--tasks T,...] [--tools T,...]
    python -m benchmarks.transformers tables

Models are those of `benchmarks.models.transformers`; a name stands for all that begin with it. Each
tool runs in a process of its own (peers in environments of their own), with a limit of seconds and
memory; so does what judges its file. Rows are saved to `benchmarks/results/transformers.json` as
they come, and a run goes on where the last one ended: rows that are there are not measured again
but with `--again`. `--seconds 0` leaves latency out; `--only-timing` adds it later, with the files
that are still there. All but the ratios of latency is told from
outside this project: agreement by numpy over onnxruntime, fused kernels by the graph that the
session saves. `tables` writes those of `docs/transformers.md` anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.models.transformers import Transformer, path, transformers
from benchmarks.reporting import CONSOLE, DOCS, ROOT, Found, read, refresh, saved
from benchmarks.transformers.tables import NAME, table_of
from benchmarks.transformers.trials import BUSY, TASKS, TRIALS, Trial, run, short, written_by
from onnxslim.run.record import processor_name

AS_IT_CAME: Final = "as it came"  # the task of the row that holds a model's own figures
KEYS: Final = ("model", "task", "tool")


@click.group()
def main() -> None:
    """Measure transformers."""


@main.command("measure")
@click.option("--models", "names", default="", help="Beginnings of names, with commas between.")
@click.option("--tasks", default="", help=f"Beginnings of {', '.join(TASKS)}.")
@click.option("--tools", default="", help="Beginnings of tools' names; ours are `ours`.")
@click.option("--seconds", default=2.0, show_default=True, help="Of timing, for each pair.")
@click.option("--threads", default="1,2", show_default=True, help="Numbers of threads to time.")
@click.option("--limit", default=600, show_default=True, help="Processor seconds for each tool.")
@click.option("--memory", default=6000, show_default=True, help="Megabytes it may take.")
@click.option("--again", is_flag=True, help="Measure rows that are there, too.")
@click.option("--only-timing", is_flag=True, help="Of files that the last run left behind.")
def measure(
    names: str,
    tasks: str,
    tools: str,
    seconds: float,
    threads: str,
    limit: int,
    memory: int,
    *,
    again: bool,
    only_timing: bool,
) -> None:
    """One row for each model, task and tool."""
    trials = [t for t in TRIALS if _begins(t.task, tasks) and _begins(t.tool, tools)]
    if not trials:
        raise click.UsageError(f"No tool does that; tasks are {', '.join(TASKS)}.")
    try:
        models = transformers([name for name in names.split(",") if name])
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    timing = [json.dumps([int(count) for count in threads.split(",")]), str(seconds)]
    if only_timing:
        rows = _timed(models, trials, timing, limit)
    else:
        rows = _rows(models, trials, timing, limit, memory, again=again)
    saved(NAME, rows, replacing=KEYS)


@main.command("tables")
def tables_command() -> None:
    """Write the tables of the page anew, from the results."""
    refresh(DOCS / "transformers.md", table_of)


def _begins(name: str, wanted: str) -> bool:
    return name.startswith(tuple(wanted.split(",")))


def _rows(
    models: Sequence[Transformer],
    trials: Sequence[Trial],
    timing: Sequence[str],
    limit: int,
    memory: int,
    *,
    again: bool,
) -> Iterator[Found]:
    known = {tuple(row[key] for key in KEYS) for row in (read(NAME) or {}).get("rows", ())}
    for model in models:
        if (model.name, AS_IT_CAME, "") not in known:
            yield {**_about(model, AS_IT_CAME, ""), **_judged(model, path(model), timing, limit)}
        for trial in trials:
            if not again and (model.name, trial.task, trial.tool) in known:
                continue
            CONSOLE.print(f"{model.name}: {trial.task}, {trial.tool}")
            yield _row(model, trial, timing, limit, memory)


def _timed(
    models: Sequence[Transformer], trials: Sequence[Trial], timing: Sequence[str], limit: int
) -> Iterator[Found]:
    """Rows whose files are there, judged anew with their latency."""
    known = {tuple(row[key] for key in KEYS): row for row in (read(NAME) or {}).get("rows", ())}
    for model in models:
        for trial in trials:
            row, file = known.get((model.name, trial.task, trial.tool)), written_by(trial, model)
            if row is not None and row["error"] is None and file.exists():
                judged = _judged(model, file, timing, limit)
                yield {**row, **judged, "load": round(os.getloadavg()[0], 1)}


def _row(model: Transformer, trial: Trial, timing: Sequence[str], limit: int, memory: int) -> Found:
    about = {**_about(model, trial.task, trial.tool), "portable": trial.portable}
    found = run(trial, model, limit, memory)
    if found["error"] is None:
        judged = _judged(model, written_by(trial, model), timing, limit)
        found = {**found, **judged}
    return {**about, **found, "load": round(os.getloadavg()[0], 1)}


def _about(model: Transformer, task: str, tool: str) -> dict[str, Any]:
    return {
        "model": model.name,
        "output": model.output,
        "task": task,
        "tool": tool,
        "processor": processor_name(),
    }


def _judged(model: Transformer, file: Path, timing: Sequence[str], limit: int) -> dict[str, Any]:
    """What `judge` finds; `error` says why it found nothing."""
    command = [sys.executable, "-m", "benchmarks.transformers.judge", model.name, str(file)]
    try:
        done = subprocess.run(
            [*command, *timing],
            capture_output=True,
            text=True,
            check=False,
            timeout=BUSY * limit,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": _path()},
        )
    except subprocess.TimeoutExpired:
        return {"error": f"its file was not judged in {BUSY * limit} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"error": short(f"its file fails: {last}")}
    return {"error": None, **json.loads(done.stdout.splitlines()[-1])}


def _path() -> str:
    """Where a child finds what this process found."""
    return os.pathsep.join([os.fspath(ROOT), os.environ.get("PYTHONPATH", "")])


if __name__ == "__main__":
    main()

"""One budget over all passes, on trained models and on graphs with drawn weights.

    python -m benchmarks.tune measure [NAMES...] [--goal latency|bytes] [--for 30m] [--trials N]
    python -m benchmarks.tune peers [NAMES...]   # the quantizers of others on the same models
    python -m benchmarks.tune budgets            # what single passes were asked for, and what came
    python -m benchmarks.tune workers            # trials a minute with 1, 2 and 4 processes
    python -m benchmarks.tune tables             # into docs/tune.md

Each search is a command of its own. What it found is judged by data that it never saw: test
pictures with labels, or other samples. Beside it stands each single pass at its best setting under
the same floor, as the search tries it first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.int8.runs import written
from benchmarks.reporting import DOCS, Found, markdown, read, refresh, saved
from benchmarks.tune.judged import by_peers, judged
from benchmarks.tune.subjects import SUBJECTS, Subject
from onnxslim import compress
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.run.record import processor_name

_MAIN: Final = "import sys; from onnxslim.cli import main; sys.exit(main())"
_COLUMNS: Final = {"latency": "latency_ms", "bytes": "file_bytes"}
_BUDGETED: Final = (
    ("prune-channels", "latency"),
    ("prune-channels", "bytes"),
    ("factorize-conv", "latency"),
    ("factorize-conv", "bytes"),
)


@click.group()
def main() -> None:
    """Measure tune, or put what was measured into its page."""


@main.command()
@click.argument("names", nargs=-1)
@click.option("--goal", type=click.Choice(["latency", "bytes"]), default="latency")
@click.option("--for", "limit", default="30m", show_default=True)
@click.option("--trials", default=60, show_default=True)
@click.option("--keep", type=Path, help="Folder of journals and steps, by which searches go on.")
def measure(names: Sequence[str], goal: str, limit: str, trials: int, keep: Path | None) -> None:
    """Tune each model, all of them by default, and judge what was found by unseen data."""
    rows = (_tuned(name, goal, limit, trials, keep) for name in names or SUBJECTS)
    saved("tune", rows, replacing=("model", "goal"))


def _tuned(name: str, goal: str, limit: str, trials: int, keep: Path | None) -> Found:
    subject = SUBJECTS[name]()
    with tempfile.TemporaryDirectory() as folder:
        output, report = Path(folder) / "o.onnx", Path(folder) / "report.json"
        options = ["--goal", goal, "--for", limit, "--trials", f"{trials}", "--threads", "1"]
        options += ["--clock" if goal == "latency" else "--no-clock"]
        if keep is not None:
            journal = keep / f"{name} {goal}.journal"
            options += ["--study", str(journal), "--cache", str(keep / "steps")]
        seconds = _command(subject, Path(folder), [*options, "--report", str(report)], output)
        found = json.loads(report.read_text())
        return {
            "model": name,
            "goal": goal,
            "floor": " ".join(subject.options),
            "limit": limit,
            "processor": processor_name(),
            "cpu_seconds": seconds,
            "pipeline": found["record"]["resolved"],
            "tuning": {key: found["tuning"][key] for key in ("trials", "predicted", "measured")},
            "singles": _singles(found["tuning"]["trial_log"], _COLUMNS[goal]),
            **judged(subject, output),
        }


def _command(subject: Subject, folder: Path, options: Sequence[str], output: Path) -> float:
    """Run a search to its end; returns the processor seconds that it took."""
    sources = {
        "calib": subject.calibration,
        "eval": subject.evaluation,
        "train": subject.training,
    }
    data = []
    for name, arrays in sources.items():
        if arrays is not None:
            data += [f"--{name}", str(written(folder / f"{name}.npz", arrays))]
    before = os.times()
    subprocess.run(
        [
            *(sys.executable, "-c", _MAIN, "tune", str(subject.model), str(output), "--quiet"),
            *(*data, *subject.options, *options),
        ],
        check=False,  # 4: a target is out of reach
    )
    after = os.times()
    return after.children_user + after.children_system - before[2] - before[3]


def _singles(log: Sequence[Mapping[str, Any]], column: str) -> dict[str, Any]:
    """The best trial by a column of each pass that was alone behind simplify."""
    found: dict[str, Any] = {}
    for row in log:
        steps = row["pipeline"].split(",")
        is_single = len(steps) == 2 and "only=" not in row["pipeline"]
        if is_single and row["state"] == "held" and row[column] is not None:
            name = steps[1].partition(":")[0]
            known = found.get(name)
            if known is None or row[column] < known[column]:
                found[name] = {key: row[key] for key in ("file_bytes", "latency_ms")}
    return found


@main.command()
@click.argument("names", nargs=-1)
def peers(names: Sequence[str]) -> None:
    """What the quantizers of others make of the models, judged by the same data."""
    known = names or [name for name in SUBJECTS if "," not in name]
    rows = ({"model": name, "files": by_peers(SUBJECTS[name]())} for name in known)
    saved("tune_peers", rows, replacing=("model",))


# ---------------------------------------------------------------------------- budgets


@main.command()
@click.argument("names", nargs=-1)
def budgets(names: Sequence[str]) -> None:
    """The share of latency or bytes that a pass was asked for, beside the one that came."""
    rows = (
        _asked(name, rewrite, kind, share)
        for name in names or ("resnet14", "lenet5", "squeezenet")
        for rewrite, kind in _BUDGETED
        for share in (0.7, 0.4)
    )
    saved("tune_budgets", rows, replacing=("model", "pass", "kind", "asked"))


def _asked(name: str, rewrite: str, kind: str, share: float) -> Found:
    subject = SUBJECTS[name]()
    _, plain = compress(subject.model, measure=False, verify=False)
    _, report = compress(
        subject.model,
        passes=f"simplify,{rewrite}:{kind}={share}",
        calibration=dict(subject.calibration),
        floors=None,
        measure=kind == "latency",
        threads=1,
    )
    came: float | None = report.after.stats.file_bytes / plain.after.stats.file_bytes
    if kind == "latency":
        pair = report.steps[-1].latency
        came = None if pair is None else 1 / pair.ratio
    return {
        "model": name,
        "pass": rewrite,
        "kind": kind,
        "asked": share,
        "came": came if report.steps[-1].committed else None,
        "why": [skip.why for skip in report.steps[-1].skips][:1],
        "processor": processor_name(),
    }


# ---------------------------------------------------------------------------- workers


@main.command()
@click.option("--trials", default=24, show_default=True)
def workers(trials: int) -> None:
    """Trials a minute, on a stage without clocks, with 1, 2 and 4 processes."""
    subject = SUBJECTS["lenet5"]()
    rows = (_shared(subject, count, trials) for count in (1, 2, 4))
    saved("tune_workers", rows, replacing=("processes",))


def _shared(subject: Subject, count: int, trials: int) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        options = ["--goal", "bytes", "--no-clock", "--trials", f"{trials}", "--for", "1h"]
        options += ["--jobs", f"{count}", "--study", str(Path(folder) / "journal")]
        cpu = _command(subject, Path(folder), options, Path(folder) / "o.onnx")
        minutes = (time.monotonic() - started) / 60
    return {
        "processes": count,
        "trials": trials,
        "trials_a_minute": trials / minutes,
        "cpu_seconds": cpu,
        "processor": processor_name(),
    }


# ---------------------------------------------------------------------------- the page


@main.command()
def tables() -> None:
    """Put what was measured into docs/tune.md."""
    made = {
        "tune": _found_table,
        "tune-budgets": _budgets_table,
        "tune-workers": _workers_table,
    }
    refresh(DOCS / "tune.md", lambda name: made[name]())


def _found_table() -> str | None:
    rows = (read("tune") or {}).get("rows", ())
    return markdown(_line(row) for row in rows)


def _line(row: Found) -> dict[str, str]:
    before, after = row["bytes"]
    measured, predicted = row["tuning"]["measured"], row["tuning"]["predicted"]
    return {
        "model": row["model"],
        "goal": row["goal"],
        "floor": f"`{row['floor']}`",
        "bytes": f"{before / 1e6:.2f} MB to {after / 1e6:.3f}: **{before / after:.1f}** times",
        "times as fast": "{:.2f} ({:.2f} to {:.2f})".format(*row["faster"]),
        "in a loop": "{:.2f} ({:.2f} to {:.2f})".format(*row["loop"]) if "loop" in row else "",
        "on unseen data": _closeness(row),
        "best single pass": _best_single(row),
        "best peer": _best_peer(row),
        "table said, came": "no table"
        if predicted is None
        else f"{predicted['bytes'] / 1e6:.3f} MB, {measured['bytes'] / 1e6:.3f} MB",
        "trials": f"{row['tuning']['trials']}",
        "CPU minutes": f"{row['cpu_seconds'] / 60:.0f}",
        "steps": f"`{_steps(row['pipeline'])}`",
    }


def _steps(resolved: str) -> str:
    """The passes of a resolved pipeline, without their options."""
    steps = parse_pipeline(resolved).passes
    return ", ".join(step.name for step in steps)


def _best_single(row: Found) -> str:
    singles, column = row["singles"], _COLUMNS[row["goal"]]
    if not singles:
        return "none held"
    name = min(singles, key=lambda one: singles[one][column])
    value = singles[name][column]
    if column == "file_bytes":
        return f"`{name}`: {row['bytes'][0] / value:.1f} times"
    return f"`{name}`: {value:.3g} ms"


def _best_peer(row: Found) -> str:
    """The best file of a peer that holds the floor, or the closest one where none does."""
    rows = {one["model"]: one["files"] for one in (read("tune_peers") or {}).get("rows", ())}
    files = rows.get(row["model"].partition(",")[0], {})
    made = {name: found for name, found in files.items() if isinstance(found, dict)}
    if not made:
        return "not measured"

    def gain(name: str) -> float:
        found = made[name]
        if row["goal"] == "latency":
            return float(found["loop"][0])
        return float(found["bytes"][0] / found["bytes"][1])

    held = [name for name, found in made.items() if found["holds"]]
    if held:
        best = max(held, key=gain)
        return f"{best}: {gain(best):.2f} times"
    closest = max(made, key=lambda name: made[name]["sqnr_db"])
    return (
        f"none holds the floor; {closest}: {gain(closest):.2f} times, {_closeness(made[closest])}"
    )


def _closeness(row: Found) -> str:
    before, after = row["accuracy"]
    if before is not None:
        return f"{100 * before:.2f} %, {100 * after:.2f} %"
    parts = [f"{row['sqnr_db']:.1f} dB"]
    if row["cosine"] is not None:
        parts = [f"cosine {row['cosine']:.4f}"]
    if row["own_figure"] is not None:
        parts.append(f"own figure {100 * row['own_figure']:.1f} %")
    return ", ".join(parts)


def _budgets_table() -> str | None:
    rows = (read("tune_budgets") or {}).get("rows", ())
    return markdown(
        {
            "model": row["model"],
            "step": f"`{row['pass']}:{row['kind']}={row['asked']:g}`",
            "came": "out of reach" if row["came"] is None else f"{row['came']:.3f}",
        }
        for row in rows
    )


def _workers_table() -> str | None:
    rows = (read("tune_workers") or {}).get("rows", ())
    return markdown(
        {
            "processes": f"{row['processes']}",
            "trials": f"{row['trials']}",
            "trials a minute": f"{row['trials_a_minute']:.1f}",
            "CPU seconds": f"{row['cpu_seconds']:.0f}",
        }
        for row in rows
    )


if __name__ == "__main__":
    main()

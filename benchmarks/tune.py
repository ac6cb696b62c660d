"""One budget over all passes, on trained models and on graphs with drawn weights.

    python -m benchmarks.tune measure [NAMES...] [--goal latency|bytes] [--for 30m] [--trials N]
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from benchmarks.models.sentence_encoder import model_file as sentence_encoder
from benchmarks.models.sentence_encoder import padded, sentences, tokenized
from benchmarks.models.small_nets import NETS
from benchmarks.models.tasks import CALIBRATION, CALIBRATION_SEED, HELD_OUT_SEED, TASKS
from benchmarks.models.tasks import outputs_of as answers_of
from benchmarks.models.zoo import models, path, sample_inputs
from benchmarks.reporting import DOCS, Found, markdown, read, refresh, saved
from onnxslim import bench_models, compare_models, compress
from onnxslim.run.record import processor_name

_MAIN: Final = "import sys; from onnxslim.cli import main; sys.exit(main())"
_CHOOSING, _LABELLED = 1000, 5000  # samples of small nets
_DRAWN: Final = 24  # samples of graphs with drawn weights
_SENTENCES, _LENGTH = 96, 48
_TIMED_SECONDS: Final = 4.0
_BUDGETED: Final = (
    ("prune-channels", "latency"),
    ("prune-channels", "bytes"),
    ("factorize-conv", "latency"),
    ("factorize-conv", "bytes"),
)

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Subject:
    """A model that is tuned.

    Attributes:
        model: its file.
        calibration: samples for `--calib`.
        evaluation: labelled samples for `--eval`; None: there are none.
        unseen: samples that no search sees; with `label` where there are labels.
        floors: options of the command.
        own_figure: share of equal answers of two files, by the model's own measure.
    """

    model: Path
    calibration: Arrays
    evaluation: Arrays | None
    unseen: Arrays
    floors: Sequence[str]
    own_figure: Callable[[Path, Path], float] | None = None


def _small_net(name: str, drop: str) -> Subject:
    net = NETS[name]
    train, test = net.data().train, net.data().test
    return Subject(
        net.file(),
        {"image": train.image[:_CHOOSING]},
        {"image": test.image[:_LABELLED], "label": test.label[:_LABELLED]},
        {"image": test.image[_LABELLED:], "label": test.label[_LABELLED:]},
        ("--max-drop", drop),
    )


def _with_task(name: str) -> Subject:
    (task,) = (task for task in TASKS if task.model == name)
    model = path(*models([name]))
    chosen = np.stack(task.pictures(CALIBRATION, CALIBRATION_SEED))
    unseen = task.pictures(CALIBRATION, HELD_OUT_SEED)

    def own_figure(before: Path, after: Path) -> float:
        return task.agreement(model, answers_of(before, unseen), answers_of(after, unseen))

    feed = _input_name(model)
    return Subject(
        model, {feed: chosen}, None, {feed: np.stack(unseen)}, ("--min-sqnr", "30"), own_figure
    )


def _drawn(name: str) -> Subject:
    (model,) = models([name])
    chosen, unseen = (_stacked(sample_inputs(model, _DRAWN, seed)) for seed in (1, 2))
    return Subject(path(model), chosen, None, unseen, ("--min-sqnr", "30"))


def _encoder() -> Subject:
    tokens = tokenized(sentences(2 * _SENTENCES))
    chosen, unseen = (padded(part, _LENGTH) for part in (tokens[:_SENTENCES], tokens[_SENTENCES:]))
    floors = ("--min-cosine", "0.99", "--min-row-cosine", "0.97")
    return Subject(sentence_encoder(), chosen, None, unseen, floors)


SUBJECTS: Final[Mapping[str, Callable[[], Subject]]] = {
    "lenet5": lambda: _small_net("lenet5", "0.5"),
    "resnet14": lambda: _small_net("resnet14", "1"),
    "resnet14 at half a point": lambda: _small_net("resnet14", "0.5"),
    "nudenet": lambda: _with_task("nudenet_320n"),
    "ppocr_v4_rec": lambda: _with_task("ppocr_v4_rec"),
    "minilm": _encoder,
    "resnet50": lambda: _drawn("resnet50"),
    "densenet121": lambda: _drawn("densenet121"),
    "squeezenet": lambda: _drawn("squeezenet"),
}


@click.group()
def main() -> None:
    """Measure tune, or put what was measured into its page."""


@main.command()
@click.argument("names", nargs=-1)
@click.option("--goal", type=click.Choice(["latency", "bytes"]), default="latency")
@click.option("--for", "limit", default="30m", show_default=True)
@click.option("--trials", default=60, show_default=True)
def measure(names: Sequence[str], goal: str, limit: str, trials: int) -> None:
    """Tune each model, all of them by default, and judge what was found by unseen data."""
    rows = (_tuned(name, goal, limit, trials) for name in names or SUBJECTS)
    saved("tune", rows, replacing=("model", "goal"))


def _tuned(name: str, goal: str, limit: str, trials: int) -> Found:
    subject = SUBJECTS[name]()
    with tempfile.TemporaryDirectory() as folder:
        output, report = Path(folder) / "o.onnx", Path(folder) / "report.json"
        options = ["--goal", goal, "--for", limit, "--trials", f"{trials}", "--threads", "1"]
        options += ["--clock" if goal == "latency" else "--no-clock"]
        seconds = _command(subject, Path(folder), [*options, "--report", str(report)], output)
        found = json.loads(report.read_text())
        return {
            "model": name,
            "goal": goal,
            "floor": " ".join(subject.floors),
            "limit": limit,
            "processor": processor_name(),
            "cpu_seconds": seconds,
            "pipeline": found["record"]["resolved"],
            "tuning": {key: found["tuning"][key] for key in ("trials", "predicted", "measured")},
            "singles": _singles(found["tuning"]["trial_log"]),
            **_judged(subject, output),
        }


def _command(subject: Subject, folder: Path, options: Sequence[str], output: Path) -> float:
    """Run a search to its end; returns the processor seconds that it took."""
    data = ["--calib", str(_written(folder / "calib.npz", subject.calibration))]
    if subject.evaluation is not None:
        data += ["--eval", str(_written(folder / "eval.npz", subject.evaluation))]
    before = os.times()
    subprocess.run(
        [
            *(sys.executable, "-c", _MAIN, "tune", str(subject.model), str(output), "--quiet"),
            *(*data, *subject.floors, *options),
        ],
        check=False,  # 4: a target is out of reach
    )
    after = os.times()
    return after.children_user + after.children_system - before[2] - before[3]


def _singles(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The best trial of each pass that was alone behind simplify."""
    found: dict[str, Any] = {}
    for row in log:
        steps = row["pipeline"].split(",")
        if len(steps) == 2 and row["state"] == "held" and "only=" not in row["pipeline"]:
            name = steps[1].partition(":")[0]
            known = found.get(name)
            if known is None or row["file_bytes"] < known["file_bytes"]:
                found[name] = {key: row[key] for key in ("file_bytes", "latency_ms")}
    return found


def _judged(subject: Subject, output: Path) -> dict[str, Any]:
    """The result on data that no search saw, beside the input model and beside `simplify`."""
    inputs = {name: array for name, array in subject.unseen.items() if name != "label"}
    comparison, _, before, after, _ = compare_models(
        subject.model, output, calibration=inputs, measure=False, threads=1
    )
    one = {name: array[:1] for name, array in inputs.items()}
    ((_, _, _), (_, _, pair)) = bench_models(
        [subject.model, output], calibration=one, threads=1, seconds=_TIMED_SECONDS
    )
    assert pair is not None
    worst = min(comparison.original.values(), key=lambda drift: drift.sqnr_db)
    return {
        "bytes": [before.file_bytes, after.file_bytes],
        "faster": [pair.ratio, pair.low, pair.high],
        "sqnr_db": worst.sqnr_db,
        "cosine": worst.mean_cosine,
        "accuracy": [_accuracy(file, subject.unseen) for file in (subject.model, output)],
        "own_figure": None
        if subject.own_figure is None
        else subject.own_figure(subject.model, output),
    }


def _accuracy(model: Path, unseen: Arrays) -> float | None:
    if "label" not in unseen:
        return None
    _, report = compress(model, passes="eliminate-dead", evaluation=dict(unseen), measure=False)
    return report.before.accuracy


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
    single = _best_single(row)
    measured, predicted = row["tuning"]["measured"], row["tuning"]["predicted"]
    return {
        "model": row["model"],
        "goal": row["goal"],
        "floor": f"`{row['floor']}`",
        "bytes": f"{before / 1e6:.2f} MB to {after / 1e6:.3f}: **{before / after:.1f}** times",
        "times as fast": "{:.2f} ({:.2f} to {:.2f})".format(*row["faster"]),
        "on unseen data": _closeness(row),
        "best single pass": single,
        "table said, came": "no table"
        if predicted is None
        else f"{predicted['bytes'] / 1e6:.3f} MB, {measured['bytes'] / 1e6:.3f} MB",
        "trials": f"{row['tuning']['trials']}",
        "CPU minutes": f"{row['cpu_seconds'] / 60:.0f}",
    }


def _best_single(row: Found) -> str:
    singles = row["singles"]
    if not singles:
        return "none held"
    by = "latency_ms" if row["goal"] == "latency" else "file_bytes"
    known = {name: found for name, found in singles.items() if found[by] is not None}
    if not known:
        return "none held"
    name = min(known, key=lambda one: known[one][by])
    value = known[name][by]
    if by == "file_bytes":
        return f"`{name}`: {row['bytes'][0] / value:.1f} times"
    return f"`{name}`: {value:.3g} ms"


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


# ---------------------------------------------------------------------------- data


def _written(file: Path, arrays: Arrays) -> Path:
    np.savez(file, **arrays)
    return file


def _stacked(samples: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Samples of one run each as arrays whose first axis counts them."""
    return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}


def _input_name(model: Path) -> str:
    import onnx

    return str(onnx.load(model, load_external_data=False).graph.input[0].name)


if __name__ == "__main__":
    main()

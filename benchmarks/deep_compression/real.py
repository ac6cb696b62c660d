"""Trained models clustered to 4 bits: bytes, drift, and what loading and running them costs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.deep_compression.runs import Figures, RunError, kept
from benchmarks.models.pictures import lines
from benchmarks.models.tasks import (
    CALIBRATION,
    CALIBRATION_SEED,
    HELD_OUT,
    HELD_OUT_SEED,
    Task,
    outputs_of,
    sqnr_db,
    texts_of,
)
from benchmarks.models.zoo import models, path
from benchmarks.reporting import ROOT, read
from onnxslim.api import bench_models
from onnxslim.report import LatencyPair

PASSES: Final = "simplify,cluster-weights:bits=4"
_LOADS: Final = 5
_LOADER: Final = "benchmarks.deep_compression.load"


def measure(task: Task, work: Path) -> Figures:
    """All figures of one model but those of time.

    Raises:
        RunError: a command failed.
    """
    files, run = _files(task, work)
    clustered, original = files["clustered"], files["float32"]
    pictures = task.pictures(HELD_OUT, HELD_OUT_SEED)
    before, after = outputs_of(original, pictures), outputs_of(clustered, pictures)
    sizes = {name: file.stat().st_size for name, file in files.items()}
    return {
        "model": task.model,
        "inputs": task.inputs,
        "calibration": CALIBRATION,
        "held_out": HELD_OUT,
        "bytes": sizes,
        "ratio_onnx": round(sizes["float32"] / sizes["clustered"], 2),
        "ratio_packed": round(sizes["float32"] / sizes["packed"], 2),
        "sqnr_db": sqnr_db(before, after),
        "agreement": round(task.agreement(original, before, after), 4),
        "agreement_of": task.measure,
        **_truth(task, original, before, after),
        "run": run,
    }


def _truth(
    task: Task, model: Path, before: Sequence[np.ndarray], after: Sequence[np.ndarray]
) -> Figures:
    """Lines read right, where the text is known."""
    if task.model != "ppocr_v4_rec":
        return {}
    truth = lines(HELD_OUT, HELD_OUT_SEED)[1]
    right = [
        sum(a == b for a, b in zip(texts_of(model, outputs), truth, strict=True))
        for outputs in (before, after)
    ]
    return {"lines_right_before": right[0], "lines_right_after": right[1]}


def _files(task: Task, work: Path) -> tuple[dict[str, Path], Figures]:
    """The model as it came, simplified, clustered and packed; and the run that clustered it."""
    original = path(models([task.model])[0])
    folder = work / task.model
    folder.mkdir(parents=True, exist_ok=True)
    samples = folder / "calibration.npz"
    if not samples.exists():
        name = models([task.model])[0].inputs[0].name
        arrays: dict[str, Any] = {name: task.pictures(CALIBRATION, CALIBRATION_SEED)}
        np.savez(samples, **arrays)
    simplified, clustered = folder / "simplified.onnx", folder / "clustered.onnx"
    packed = folder / "clustered.onnxz"
    # latency is measured apart, of all files in turn
    common = ("--calib", samples, "--no-latency")
    kept(simplified, original, simplified, *common)
    done = kept(clustered, original, clustered, "--passes", PASSES, *common)
    kept(packed, "pack", clustered, packed)
    files = {
        "float32": original,
        "simplified": simplified,
        "clustered": clustered,
        "packed": packed,
    }
    return files, asdict(done.run)


def known(model: str) -> Figures:
    """What the results already have of a model.

    Raises:
        RunError: they have nothing.
    """
    rows: list[Figures] = (read("deep_compression_real") or {"models": []})["models"]
    for row in rows:
        if row["model"] == model:
            return row
    raise RunError(f"There are no results of {model} yet: run `real` without --times first.")


def measure_times(task: Task, work: Path) -> Figures:
    """Latency of all files in turn, and what it takes to load each; for a quiet machine."""
    files, _ = _files(task, work)
    name = models([task.model])[0].inputs[0].name
    sample = {name: task.pictures(1, HELD_OUT_SEED)}
    runnable = [files[key] for key in ("simplified", "clustered", "float32")]
    rows = bench_models(runnable, calibration=[sample])
    pairs = [row[2] for row in rows[1:]]
    assert pairs[0] is not None
    assert pairs[1] is not None
    return {
        "float32_ms": round(rows[2][1].median, 3),
        "simplified_to_clustered": _pair_json(pairs[0]),
        "simplified_to_float32": _pair_json(pairs[1]),
        "loads": load_figures(files),
    }


def _pair_json(pair: LatencyPair) -> list[float]:
    return [round(value, 3) for value in (pair.ratio, pair.low, pair.high)]


def load_figures(files: Mapping[str, Path], repeats: int = _LOADS) -> Figures:
    """Medians of `repeats` processes a file, in turn, with all the seconds.

    Raises:
        RunError: one of them failed.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in files}
    for _ in range(repeats):
        for name, file in files.items():
            found[name].append(_load(file))
    return {name: _medians(runs) for name, runs in found.items()}


def _load(file: Path) -> dict[str, float]:
    command = [sys.executable, "-m", _LOADER, str(file.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RunError(f"{file.name} cannot be loaded: {done.stderr.strip()[-300:]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _medians(runs: Sequence[Mapping[str, float]]) -> Figures:
    seconds = sorted(run["seconds"] for run in runs)
    return {
        "seconds": statistics.median(seconds),
        "seconds_low": seconds[0],
        "seconds_high": seconds[-1],
        **{
            name: int(statistics.median(run[name] for run in runs))
            for name in ("start_bytes", "peak_bytes", "after_bytes")
        },
    }

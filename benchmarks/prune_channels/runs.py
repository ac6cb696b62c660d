"""The measurements behind `benchmarks.prune_channels`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from benchmarks.models.zoo import ZooModel, cache_folder, path, sample_inputs
from benchmarks.peers.environments import DRIVERS, PeerError, python_of, tools
from onnxslim.api import bench_models, compress
from onnxslim.channels.groups import channel_groups
from onnxslim.errors import OnnxslimError
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes

DRIVER: Final = DRIVERS / "prune_onnxsim.py"
SHARE: Final = 0.5
SAMPLES: Final = 500
CRITERIA: Final = (
    *("random", "l1", "l2", "fpgm", "product"),
    *("mean-activation", "apoz", "entropy"),
    *("taylor", "obd", "lasso", "thinet", "obs"),
)


def _simplified(model: ZooModel) -> Model:
    return compress(path(model), passes="simplify", verify=False, measure=False)[0]


def coverage_of(model: ZooModel) -> dict[str, Any]:
    """What half of the channels are, which must stay and why, and whether the rest runs."""
    before = _inferred(_simplified(model))
    channels = channel_groups(before.graph)
    units = channels.units
    pins: dict[str, int] = {}
    free = 0
    for member in channels.trace.writers:
        own = units.of_ids(member.ids)
        free += int((~units.pinned[own]).sum())
        for unit in own[units.pinned[own]].tolist():
            pins[units.pins[unit]] = pins.get(units.pins[unit], 0) + 1
    sizes = {member.label: len(member.ids) for member in channels.trace.writers}
    after, _ = compress(
        path(model),
        passes=f"simplify,prune-channels:ratio={SHARE}",
        verify=False,  # it is run below
        measure=False,
        force=True,
        floors=None,
    )
    left = {m.label: len(m.ids) for m in channel_groups(_inferred(after).graph).trace.writers}
    gone = sum(sizes[label] - left[label] for label in sizes)
    return {
        "model": model.name,
        "layers": len(sizes),
        "groups": len(channels.groups),
        "channels": sum(sizes.values()),
        "prunable": free,
        "removed": gone,
        "removed_of_prunable": round(gone / max(1, free), 4),
        "runs": _runs(after, model),
        "pins": dict(sorted(pins.items(), key=lambda item: -item[1])),
    }


def _runs(after: Model, model: ZooModel) -> bool:
    """Whether onnxruntime runs it on a sample, and all that it returns is finite."""
    session = ort.InferenceSession(after.to_bytes(), providers=["CPUExecutionProvider"])
    outputs = session.run(None, dict(sample_inputs(model, 1, 0)[0]))
    return all(bool(np.isfinite(out).all()) for out in outputs if out.dtype.kind == "f")


def _inferred(model: Model) -> Model:
    copy = model.clone()
    infer_shapes(copy)
    return copy


def speed_of(model: ZooModel) -> dict[str, Any]:
    """Latency against the model as it came, ours and onnxsim's, timed in turn."""
    folder = cache_folder() / "prune_channels" / model.name
    folder.mkdir(parents=True, exist_ok=True)
    simplified, ours = folder / "simplified.onnx", folder / "ours.onnx"
    peer = folder / "onnxsim.onnx"
    compress(path(model), simplified, passes="simplify", verify=False, measure=False)
    _, report = compress(
        path(model),
        ours,
        passes=f"simplify,prune-channels:ratio={SHARE}",
        calibration=None,
        force=True,
        floors=None,
    )
    files = {"simplified": simplified, "ours": ours}
    failed = _peer(path(model), peer)
    if failed is None:
        files["onnxsim"] = peer
    sample = {name: np.asarray(array) for name, array in sample_inputs(model, 1, 0)[0].items()}
    timed = bench_models([path(model), *files.values()], calibration=[sample])
    pairs = {
        name: [round(value, 3) for value in (row[2].ratio, row[2].low, row[2].high)]
        for name, row in zip(files, timed[1:], strict=True)
        if row[2] is not None
    }
    return {
        "model": model.name,
        "input_ms": round(timed[0][1].median, 3),
        "load": round(os.getloadavg()[0], 2),
        "macs_left": _share(report.after.stats.macs, report.before.stats.macs),
        "input_bytes": path(model).stat().st_size,
        "bytes": {name: file.stat().st_size for name, file in files.items()},
        "seconds": round(report.steps[-1].seconds, 2),
        "faster": pairs,
        "onnxsim_failed": failed,
    }  # fmt: skip


def _share(after: int | None, before: int | None) -> float | None:
    return None if not before or after is None else round(after / before, 3)


def _peer(source: Path, target: Path) -> str | None:
    """Let onnxsim prune; why it could not, if so."""
    try:
        python = python_of(tools(["onnxsim"])[0])
    except PeerError as error:
        return str(error)
    command = [str(python), str(DRIVER), str(source), str(target), str(SHARE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["?"])[-1][:200]


def settings(share: float) -> list[tuple[str, str, bool]]:
    """Name, pass, and whether it uses samples."""
    head = f"prune-channels:macs={share}:align=1"
    found = [
        ("l1, nothing refitted", f"{head}:criterion=l1:scope=layer:reconstruct=false", False),
        *((f"{c}, refitted", f"{head}:criterion={c}:scope=layer", True) for c in CRITERIA),
        ("auto (obs, budget spread, refitted)", head, True),
        ("auto in four steps", f"{head}:steps=4", True),
    ]
    return found


def accuracy_row(
    file: Path, calib: Path, spec: str, accuracy_of: Callable[[bytes], float], seeds: int
) -> dict[str, Any]:
    """Accuracy in percent after a pass, one for each draw of calibration samples."""
    found = []
    for seed in range(seeds):
        with np.load(calib) as arrays:
            (name,) = arrays.files
            whole = arrays[name]
        chosen = np.random.default_rng(seed).choice(len(whole), SAMPLES, replace=False)
        model, report = compress(
            file,
            passes=f"simplify,{spec}",
            calibration={name: whole[chosen]},
            verify=False,
            measure=False,
            force=True,
            floors=None,
            seed=seed,
        )
        seconds = report.steps[-1].seconds
        found.append((accuracy_of(model.to_bytes()), report.after.stats.macs, seconds))
    accuracies = [item[0] for item in found]
    return {
        "accuracy": accuracies,
        "mean": round(float(np.mean(accuracies)), 3),
        "macs_left": _share(found[0][1], report.before.stats.macs),
        "seconds": round(float(np.median([item[2] for item in found])), 1),
    }


def judge(labelled: Path) -> Callable[[bytes], float]:
    """Top-1 accuracy in percent on the labelled images."""
    with np.load(labelled) as arrays:
        key = next(name for name in arrays.files if name not in ("label", "labels"))
        images, labels = arrays[key], arrays["label"]

    def accuracy_of(model: bytes) -> float:
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        feed = session.get_inputs()[0].name
        parts = np.array_split(images, max(1, len(images) // 500))
        right = np.concatenate([session.run(None, {feed: p})[0].argmax(1) for p in parts])
        return round(100 * float((right == labels).mean()), 2)

    return accuracy_of


def timed(source: Path, target: Path, *extra: str) -> dict[str, float]:
    command = [sys.executable, "-m", "onnxslim", str(source), str(target), *extra]
    command += ["--passes", "simplify,prune-channels:ratio=0.5", "--no-latency", "--no-verify"]
    load = os.getloadavg()[0]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--quiet", "--force"], cwd=target.parent)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise OnnxslimError(f"`{' '.join(command)}` ended with {process.returncode}")
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 1),
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "peak_of_file": round(usage.ru_maxrss * 1024 / source.stat().st_size, 2),
        "load": round(load, 2),
    }

"""VGG-19 with seeded weights: what clustering, packing and loading 143 million weights costs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Final

from benchmarks.deep_compression.real import load_figures
from benchmarks.deep_compression.runs import Figures, onnxslim
from benchmarks.models.zoo import models, path

MODEL: Final = "vgg19"
PASSES: Final = "cluster-weights:bits=4"
_LOADS: Final = 3


def measure(work: Path) -> Figures:
    """All figures; seconds are of whole processes, one run each.

    Raises:
        RunError: a command failed.
    """
    original = path(models([MODEL])[0])
    work.mkdir(parents=True, exist_ok=True)
    clustered, packed = work / "clustered.onnx", work / "clustered.onnxz"
    unpacked = work / "unpacked.onnx"
    steps = {
        "cluster, unproven": (
            *(original, clustered, "--passes", PASSES),
            *("--no-verify", "--no-latency", "--quiet"),
        ),
        "cluster, verified": (original, clustered, "--passes", PASSES, "--no-latency", "--quiet"),
        "pack": ("pack", clustered, packed, "--quiet"),
        "unpack": ("unpack", packed, unpacked, "--quiet"),
    }
    size = original.stat().st_size
    runs: list[Figures] = []
    for name, arguments in steps.items():
        done = onnxslim(*arguments)
        peak = round(done.peak_rss_bytes / size, 2)
        runs.append({"step": name, "peak_of_float32_file": peak, **asdict(done)})
    files = {"float32": original, "clustered": clustered, "packed": packed}
    sizes = {name: file.stat().st_size for name, file in files.items()}
    is_equal = unpacked.read_bytes() == clustered.read_bytes()
    unpacked.unlink()
    return {
        "model": MODEL,
        "bytes": sizes,
        "ratio_onnx": round(sizes["float32"] / sizes["clustered"], 2),
        "ratio_packed": round(sizes["float32"] / sizes["packed"], 2),
        "unpacked_is_equal": is_equal,
        "runs": runs,
        "loads": load_figures(files, _LOADS),
    }

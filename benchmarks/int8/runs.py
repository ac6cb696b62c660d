"""What `benchmarks.int8` measures."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from benchmarks.low_rank.runs import stacked
from benchmarks.models.zoo import ZooModel, cache_folder, path, sample_inputs
from benchmarks.peers.environments import DRIVERS, QUANTIZERS, Tool, python_of, run_driver
from onnxslim import compress
from onnxslim.api import bench_models

Arrays = Mapping[str, np.ndarray]
Row = dict[str, Any]

IMAGES: Final = 32
HELD: Final = 16
SECONDS: Final = 10.0  # of timing, for each pair of models
FEW: Final = 500  # unlabelled images of trained nets
MAX_MEMORY: Final = 16 << 30  # of one quantizer; beyond, the machine would have none left
SETTINGS: Final = (
    "quantize-int8:placement=all",
    "quantize-int8:placement=all:rounding=nearest",
    "quantize-int8:placement=all:rounding=nearest:bias-correct=false:calibration=minmax",
)


@dataclass(frozen=True)
class Subject:
    """A model and samples of it: the first `IMAGES` to calibrate, the rest to judge by."""

    name: str
    file: Path
    samples: Sequence[Mapping[str, Any]]

    @classmethod
    def of_zoo(cls, model: ZooModel) -> Subject:
        """A model of the zoo."""
        return cls(model.name, path(model), sample_inputs(model, IMAGES + HELD, 1))

    @classmethod
    def trained(cls, file: Path, calibration: Path) -> Subject:
        """A net that a script in `examples/` trained, with its unlabelled samples."""
        name, images = _unlabelled(calibration)
        some = images[: IMAGES + HELD]
        return cls(file.stem, file, [{name: image[None]} for image in some])


def _unlabelled(file: Path) -> tuple[str, np.ndarray]:
    """The only input in a file of samples: its name, its values."""
    with np.load(file) as arrays:
        (name,) = [key for key in arrays.files if not key.startswith("label")]
        return name, arrays[name]


def speed_of(subject: Subject) -> Row:
    """One model through all quantizers; those that fail say why."""
    source = subject.file
    folder = cache_folder() / "int8" / subject.name
    folder.mkdir(parents=True, exist_ok=True)
    known, held = subject.samples[:IMAGES], subject.samples[IMAGES:]
    file = written(folder / "samples.npz", stacked(known))
    begun = time.perf_counter()
    _, report = compress(
        source,
        folder / "ours.onnx",
        passes="simplify,quantize-int8",
        floors=None,
        calibration=stacked(known),
        goal="latency",
    )
    seconds: dict[str, float | None] = {"ours": time.perf_counter() - begun}
    files, failed = {"ours": folder / "ours.onnx"}, {}
    for name, tool, extra in peers():
        begun = time.perf_counter()
        why = run_driver(tool, source, folder / f"{name}.onnx", file, *extra)
        seconds[name] = time.perf_counter() - begun
        if why is None and (why := unusable(folder / f"{name}.onnx", held[0])) is None:
            files[name] = folder / f"{name}.onnx"
        else:
            failed[name] = why
    step = report.steps[-1]
    return {
        "model": subject.name,
        **timed(subject, files),
        "sqnr_db": {name: sqnr(source, found, held) for name, found in files.items()},
        "bytes_left": {
            name: found.stat().st_size / source.stat().st_size for name, found in files.items()
        },
        "seconds": seconds,
        "kernels": sum("became" in change.what for change in step.changes),
        "committed": step.committed,
        "ranges": next((c.what for c in step.changes if c.what.startswith("ranges by")), None),
        "why": step.why_not_committed or next((s.why for s in step.skips[-1:]), None),
        "failed": failed,
    }


def timed(subject: Subject, files: Mapping[str, Path]) -> Row:
    """How fast files are, all in turn with the model that they came from."""
    sample = _arrays(subject.samples[IMAGES])
    first, *others = bench_models(
        [subject.file, *files.values()], calibration=[sample], seconds=SECONDS
    )
    return {
        "input_ms": first[1].median,
        "faster": {
            name: [row[2].ratio, row[2].low, row[2].high]
            for name, row in zip(files, others, strict=True)
            if row[2] is not None
        },
        "load": os.getloadavg()[0],
    }


def timed_again(subject: Subject, row: Mapping[str, Any]) -> Row:
    """The row of `speed_of`, with the files that it left behind timed anew."""
    folder = cache_folder() / "int8" / subject.name
    return {**row, **timed(subject, {name: folder / f"{name}.onnx" for name in row["faster"]})}


def peers() -> Iterator[tuple[str, Tool, tuple[str, ...]]]:
    """What a row calls it, the tool, and what its driver is told beside the files."""
    by_name = {tool.name: tool for tool in QUANTIZERS}
    yield "onnxruntime u8", by_name["onnxruntime"], ("u8",)
    yield "onnxruntime u8, 7 bits", by_name["onnxruntime"], ("u8", "minmax", "reduced")
    yield "onnxruntime s8", by_name["onnxruntime"], ("s8",)
    yield "nncf", by_name["nncf"], ()
    yield "onnxsim", by_name["onnxsim"], ()


def unusable(file: Path, sample: Mapping[str, Any]) -> str | None:
    """Why onnxruntime cannot run what a peer wrote, if so."""
    try:
        _session(file).run(None, _arrays(sample))
    except Exception as error:  # whatever it is, it is the peer's row, not the end of the run
        return str(error).strip().splitlines()[0][:200]
    return None


def sqnr(source: Path, file: Path, samples: Sequence[Mapping[str, Any]]) -> list[float]:
    """Signal over quantization noise, in dB, of each output over all samples."""
    sessions = [_session(source), _session(file)]
    signal: list[float] = []
    noise: list[float] = []
    for sample in samples:
        before, after = (session.run(None, _arrays(sample)) for session in sessions)
        signal = signal or [0.0] * len(before)
        noise = noise or [0.0] * len(before)
        for index, (y, other) in enumerate(zip(before, after, strict=True)):
            exact = np.asarray(y, np.float64)
            signal[index] += float(np.square(exact).sum())
            noise[index] += float(np.square(exact - np.asarray(other, np.float64)).sum())
    pairs = zip(signal, noise, strict=True)
    return [float(10 * np.log10(s / n)) if n else float("inf") for s, n in pairs]


def _session(file: Path) -> ort.InferenceSession:
    return ort.InferenceSession(os.fspath(file), providers=["CPUExecutionProvider"])


def _arrays(sample: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in sample.items()}


def written(file: Path, arrays: Arrays) -> Path:
    """The file, with samples as the command and the drivers read them."""
    plain: dict[str, Any] = dict(arrays)
    np.savez(file, **plain)
    return file


# ---------------------------------------------------------------------------- accuracy


def accuracy_of(file: Path, calibration: Path, evaluation: Path) -> Iterator[Row]:
    """Ours, with everything on integers, and the peers; percent of labelled images."""
    name, whole = _unlabelled(calibration)
    chosen = np.random.default_rng(0).choice(len(whole), FEW, replace=False)
    known = {name: whole[chosen]}
    with np.load(evaluation) as arrays:
        key = next(item for item in arrays.files if item.startswith("label"))
        images, labels = arrays[name], arrays[key]
    before = _accuracy(file.read_bytes(), name, images, labels)
    for spec in SETTINGS:
        model, _ = compress(
            file,
            passes=f"simplify,{spec}",
            calibration=known,
            measure=False,
            force=True,
            floors=None,
        )
        after = _accuracy(model.to_bytes(), name, images, labels)
        yield {"model": file.stem, "setting": spec, "before": before, "after": after}
    with tempfile.TemporaryDirectory() as folder:
        samples = written(Path(folder) / "samples.npz", known)
        for peer, tool, extra in peers():
            target = Path(folder) / f"{peer}.onnx"
            why = run_driver(tool, file, target, samples, *extra)
            row: Row = {"model": file.stem, "setting": peer, "before": before, "failed": why}
            if why is None:
                row["after"] = _accuracy(target.read_bytes(), name, images, labels)
            yield row


def _accuracy(model: bytes, name: str, images: np.ndarray, labels: np.ndarray) -> float:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    right = 0
    for at in range(0, len(images), 100):
        (scores, *_) = session.run(None, {name: images[at : at + 100]})
        right += int(
            (scores.reshape(len(scores), -1).argmax(axis=1) == labels[at : at + 100]).sum()
        )
    return 100 * right / len(images)


# ---------------------------------------------------------------------------- cost


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))


def cost_of(model: ZooModel, images: int) -> Iterator[Row]:
    """Seconds and peak memory, ours through the command, onnxruntime's through its driver."""
    folder = cache_folder() / "int8" / model.name
    folder.mkdir(parents=True, exist_ok=True)
    samples = written(folder / f"images{images}.npz", stacked(sample_inputs(model, images, 1)))
    spec = "simplify,quantize-int8:calibration=entropy:placement=all:rounding=nearest"
    ours = [sys.executable, "-m", "onnxslim", path(model), folder / "cost.onnx", "--passes", spec]
    ours += ["--calib", samples, "--force", "--quiet", "--no-verify", "--no-latency"]
    (tool,) = (tool for tool in QUANTIZERS if tool.name == "onnxruntime")
    peer = [python_of(tool), DRIVERS / tool.driver, path(model), folder / "peer.onnx", samples]
    peer += ["u8", "entropy"]
    for name, command in (("ours", ours), ("onnxruntime", peer)):
        begun = time.perf_counter()
        arguments = [os.fspath(item) for item in command]
        process = subprocess.Popen(arguments, cwd=folder, preexec_fn=_limit_memory)
        _, status, usage = os.wait4(process.pid, 0)
        yield {
            "tool": name,
            "limit_bytes": MAX_MEMORY,
            "images": images,
            "seconds": time.perf_counter() - begun,
            "peak_rss_bytes": usage.ru_maxrss * 1024,
            "status": status,
            "load": os.getloadavg()[0],
        }


__all__ = [
    "Subject",
    "accuracy_of",
    "cost_of",
    "peers",
    "speed_of",
    "unusable",
    "written",
]

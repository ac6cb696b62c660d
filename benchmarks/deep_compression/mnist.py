"""LeNet-5 and LeNet-300-100 through `deep-compression` and `pack`, no labels and no retraining."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks.deep_compression.layers import layer_rows
from benchmarks.deep_compression.runs import (
    Figures,
    Json,
    Labelled,
    RunError,
    kept,
    onnxslim,
    read_json,
)

_CHOSE: Final = "chose "
_SECOND: Final = ",cluster-weights"
_CODERS: Final = {"huffman": "Huffman coded", "entropy": "entropy coder"}  # the best one last


@dataclass(frozen=True)
class Inputs:
    """What is measured on: unlabelled images, and labelled ones that no pass sees."""

    calibration: Path
    evaluation: Path


def measure(model: Path, inputs: Inputs, work: Path) -> Figures:
    """All figures of one model; files stay in `work` and are used again.

    Raises:
        RunError: a command failed.
    """
    folder = work / model.stem
    clustered = folder / "clustered.onnx"
    calib = ("--calib", inputs.calibration)
    whole = kept(clustered, model, clustered, "--passes", "deep-compression", *calib)
    pipeline = chosen(read_json(whole.report))
    simplified, pruned = folder / "simplified.onnx", folder / "pruned.onnx"
    kept(simplified, model, simplified, "--no-latency")
    # pruning alone need not pay, and is not to be judged here
    spec = f"simplify,{pipeline[0]}"
    kept(pruned, model, pruned, "--passes", spec, *calib, "--force", "--no-verify", "--no-latency")
    files = {
        "float32": model,
        "simplified": simplified,
        "pruned (sparse initializers)": pruned,
        "clustered (what `deep-compression` writes)": clustered,
    }
    labelled = Labelled.read(inputs.evaluation)
    steps = [_step(name, file, model, labelled.error(file)) for name, file in files.items()]
    packed = folder / "clustered.onnxz"
    for coder, name in _CODERS.items():
        packed = folder / f"{coder}.onnxz"
        report = kept(packed, "pack", clustered, packed, "--coder", coder).report
        # what it is when it is read again, by the command that users have for it
        unpacked = folder / f"{coder}.unpacked.onnx"
        onnxslim("unpack", packed, unpacked)
        steps.append(_step(f"packed, {name}", packed, model, labelled.error(unpacked)))
    nbytes = packed.stat().st_size
    rows = layer_rows(clustered, nbytes)
    return {
        "model": model.stem,
        "test_images": len(labelled.label),
        "ratio": steps[-1]["ratio"],
        "error_before_percent": steps[0]["error_percent"],
        "error_after_percent": steps[-1]["error_percent"],
        "steps": steps,
        "pipeline": ",".join(pipeline),
        "packed_bytes": nbytes,
        "layers": [row.as_json() for row in rows],
        "others_bytes": nbytes - sum(row.packed_bytes for row in rows),
        "classes": read_json(report)["classes"],
        "run": asdict(whole.run),
    }


def chosen(report: Json) -> tuple[str, str]:
    """The two explicit passes that `deep-compression` reports to have chosen.

    Raises:
        RunError: the report names none.
    """
    for text in _texts(report):
        if text.startswith(_CHOSE):
            first, second = text.removeprefix(_CHOSE).split(_SECOND)
            return first, _SECOND[1:] + second
    raise RunError("The report of `deep-compression` does not say what it chose.")


def _texts(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)


def _step(name: str, file: Path, original: Path, error: float) -> Figures:
    nbytes = file.stat().st_size
    ratio = round(original.stat().st_size / nbytes, 2)
    return {"step": name, "bytes": nbytes, "ratio": ratio, "error_percent": error}

"""Files for OpenVINO and TensorRT from real models: read by rule, run in OpenVINO, beside NNCF's.

    python -m benchmarks.targets files [MODELS...]
    python -m benchmarks.targets peers [MODELS...]
    python -m benchmarks.targets tables

`files`: each model in each form with `--target`; what a reader that shares no code with onnxslim
(`tests/helpers/target_rules.py`) finds in the file that the target does not take; how near OpenVINO
is to onnxruntime on the same file. `peers`: int8 files, codebooks and 4-bit weights of onnxslim in
OpenVINO beside int8 and 4-bit files of NNCF: bytes, SQNR against the float model in OpenVINO, speed
as a ratio to the float model, timed in turn by processor time of all threads. Results go to
`benchmarks/results/targets.json` and `targets_peers.json`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import onnx

import onnxslim
from benchmarks.models import sentence_encoder, small_nets
from benchmarks.models.zoo import models, path, sample_inputs
from benchmarks.peers.environments import QUANTIZERS, Tool, run_driver
from benchmarks.reporting import DOCS, ROOT, Found, markdown, read, refresh, saved
from onnxslim.errors import OnnxslimError, TargetMissed
from onnxslim.run.record import processor_name
from onnxslim.runtime.engines.opened import EngineFailure
from onnxslim.runtime.engines.opening import open_in
from onnxslim.runtime.measure.latency import RunTimes, compare_times
from onnxslim.runtime.session import open_session

sys.path.insert(0, str(ROOT / "tests" / "helpers"))
from target_rules import broken, functions

Arrays = Mapping[str, np.ndarray]
MODELS: Final = ("nudenet_320n", "ppocr_v4_rec", "resnet14", "minilm")
TARGETS: Final = ("openvino", "tensorrt")
INT8: Final = "quantize-int8:placement=all:activation-ranges=static"
FORMS: Final = {
    "simplified": "simplify",
    "int8": f"simplify,{INT8}",
    "4-bit weights": "simplify,quantize-weights:bits=4",
    "16 values": "simplify,cluster-weights:values=16",
    "float16 weights": "simplify,convert-fp16",
}
PEER_FORMS: Final = ("int8", "16 values", "4-bit weights")
KNOWN, HELD = 16, 4  # samples to fit on, and to compare on
_ROUNDS: Final = 15
_LENGTH: Final = 32  # tokens of a sentence
_NNCF: Final = next(tool for tool in QUANTIZERS if tool.name == "nncf")
_NNCF_WEIGHTS: Final = Tool("nncf", "compress_weights_nncf.py", _NNCF.requirements)


@dataclass(frozen=True)
class _Subject:
    name: str
    file: Path
    samples: Sequence[Arrays]

    @property
    def known(self) -> dict[str, np.ndarray]:
        """The samples to fit on, as one batch."""
        rows = self.samples[:KNOWN]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    @property
    def held(self) -> Sequence[Arrays]:
        return self.samples[KNOWN:]


def _subject(name: str) -> _Subject:
    if name == "minilm":
        texts = sentence_encoder.tokenized(sentence_encoder.sentences(KNOWN + HELD))
        rows = [sentence_encoder.padded([text], _LENGTH) for text in texts]
        return _Subject(name, sentence_encoder.model_file(), rows)
    if name == "resnet14":
        images = small_nets.fashion().test.image[: KNOWN + HELD]
        rows = [{"image": image[None]} for image in images]
        return _Subject(name, small_nets.NETS[name].file(), rows)
    (model,) = models([name])
    return _Subject(name, path(model), sample_inputs(model, KNOWN + HELD, 1))  # type: ignore[arg-type]


@click.group()
def main() -> None:
    """Files for other engines from real models."""


@main.command()
@click.argument("names", nargs=-1)
@click.option("--form", "forms", multiple=True, type=click.Choice(list(FORMS)))
def files(names: Sequence[str], forms: Sequence[str]) -> None:
    """Read and run the files of each form for each target."""
    rows = (
        _file_row(subject, target, form)
        for subject in map(_subject, names or MODELS)
        for form in forms or FORMS
        for target in TARGETS
    )
    saved("targets", rows, replacing=("model", "form", "target"))


def _file_row(subject: _Subject, target: str, form: str) -> Found:
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "made.onnx"
        missed = _compressed(subject, file, form, target)
        model = onnx.load(file)
        found = broken(model, target)
        return {
            "model": subject.name,
            "form": form,
            "target": target,
            "processor": processor_name(),
            "opset": max(item.version for item in model.opset_import if not item.domain),
            "bytes": file.stat().st_size,
            "input_bytes": subject.file.stat().st_size,
            "broken": found,
            "functions": len(functions(model)),
            "missed": missed,
            **_agreement(subject, file),
            "cpu_seconds": round(time.process_time() - started, 1),
        }


def _compressed(subject: _Subject, file: Path, form: str, target: str) -> str | None:
    """Write the file; what the target does not take of it, as onnxslim says."""
    try:
        onnxslim.compress(
            subject.file,
            file,
            passes=FORMS[form],
            target=target,
            calibration=subject.known,
            floors=None,
            force=True,
            measure=False,
            overwrite=True,
        )
    except TargetMissed as error:
        return str(error)
    return None


def _agreement(subject: _Subject, file: Path) -> Found:
    """SQNR of OpenVINO against onnxruntime on the file; of the file against the input model."""
    try:
        there = _outputs_in("openvino", file, subject.held)
    except EngineFailure as failure:
        return {"openvino_db": None, "why": str(failure)}
    here, original = (_outputs_here(each, subject.held) for each in (file, subject.file))
    return {"openvino_db": _sqnr_db(here, there), "loss_db": _sqnr_db(original, here)}


def _outputs_here(file: Path, samples: Sequence[Arrays]) -> list[np.ndarray]:
    with open_session(file, threads=1) as session:
        return [next(iter(session.run(feeds).values())) for feeds in samples]


def _outputs_in(engine: str, file: Path, samples: Sequence[Arrays]) -> list[np.ndarray]:
    opened = open_in(engine, file, samples[0], threads=1)
    try:
        return [np.asarray(opened.timed(feeds)[0][0]) for feeds in samples]
    finally:
        opened.close()


def _sqnr_db(references: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    signal = sum(float(np.square(ref.astype(np.float64)).sum()) for ref in references)
    noise = sum(
        float(np.square(ref.astype(np.float64) - new).sum())
        for ref, new in zip(references, found, strict=True)
    )
    return float("inf") if noise == 0 else round(10 * float(np.log10(signal / noise)), 1)


# ---------------------------------------------------------------------------- beside NNCF


@main.command()
@click.argument("names", nargs=-1)
def peers(names: Sequence[str]) -> None:
    """Run onnxslim's and NNCF's files in OpenVINO, in turn."""
    rows = (row for subject in map(_subject, names or MODELS) for row in _peer_rows(subject))
    saved("targets_peers", rows, replacing=("model", "file"))


def _peer_rows(subject: _Subject) -> Iterator[Found]:
    with tempfile.TemporaryDirectory() as folder:
        made, failed = _peer_files(subject, Path(folder))
        reference = _outputs_in("openvino", subject.file, subject.held)
        times = _in_turn([subject.file, *made.values()], subject.held[0])
        for at, (name, file) in enumerate(made.items(), 1):
            pair = compare_times(times.rows(0, at))
            yield {
                "model": subject.name,
                "file": name,
                "processor": processor_name(),
                "bytes_left": file.stat().st_size / subject.file.stat().st_size,
                "sqnr_db": _sqnr_db(reference, _outputs_in("openvino", file, subject.held)),
                "faster": [pair.ratio, pair.low, pair.high],
            }
        for name, why in failed.items():
            yield {"model": subject.name, "file": name, "failed": why}


def _peer_files(subject: _Subject, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Files that OpenVINO loads, and why the others do not exist."""
    made: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for form in PEER_FORMS:
        made[f"onnxslim, {form}"] = file = folder / f"{len(made)}.onnx"
        _compressed(subject, file, form, "openvino")
    arrays = folder / "samples.npz"
    np.savez(arrays, **subject.known)  # type: ignore[arg-type]
    for name, tool in (("NNCF, int8", _NNCF), ("NNCF, 4-bit weights", _NNCF_WEIGHTS)):
        file = folder / f"{len(made) + len(failed)}.onnx"
        why = run_driver(tool, subject.file, file, arrays)
        if why is None:
            made[name] = file
        else:
            failed[name] = why
    for name, file in list(made.items()):
        try:
            open_in("openvino", file, subject.held[0], threads=1).close()
        except OnnxslimError as error:
            failed[name] = str(error)
            del made[name]
    return made, failed


def _in_turn(chosen: Sequence[Path], sample: Arrays) -> RunTimes:
    """Processor time of all threads, in milliseconds, (files, rounds), in an order drawn anew."""
    opened = [open_in("openvino", file, sample, threads=1) for file in chosen]
    rng, ms = np.random.default_rng(0), np.zeros((len(chosen), _ROUNDS))
    for turn in range(-2, _ROUNDS):  # two rounds to warm up
        for at in rng.permutation(len(chosen)):
            started = time.process_time()
            opened[at].timed(sample)
            ms[at, turn] = 1000 * (time.process_time() - started)
    for each in opened:
        each.close()
    return RunTimes(ms, ms)


# ---------------------------------------------------------------------------- tables


@main.command()
def tables() -> None:
    """Make the tables of the page anew from the results."""
    page = {"targets-files": _files_table, "targets-peers": _peers_table}
    refresh(DOCS / "targets.md", lambda name: page[name]() if name in page else None)


def _rows_of(name: str) -> list[dict[str, Any]]:
    found = read(name)
    return [] if found is None else list(found["rows"])


def _files_table() -> str | None:
    rows = _rows_of("targets")
    return markdown(
        {
            "model": row["model"],
            "form": row["form"],
            "target": row["target"],
            "bytes": f"{row['bytes']:,}",
            "opset": str(row["opset"]),
            "rules broken": "; ".join(row["broken"]) or "none",
            "OpenVINO against onnxruntime": _db(row["openvino_db"]),
            "against the input": _db(row.get("loss_db")),
        }
        for row in rows
    )


def _peers_table() -> str | None:
    return markdown(
        {
            "model": row["model"],
            "file": row["file"],
            "bytes left": f"{100 * row['bytes_left']:.1f} %",
            "SQNR": _db(row["sqnr_db"]),
            "faster in OpenVINO": "{:.2f} ({:.2f} to {:.2f})".format(*row["faster"]),
        }
        if "failed" not in row
        else {
            "model": row["model"],
            "file": row["file"],
            "bytes left": "",
            "SQNR": "",
            "faster in OpenVINO": f"none: {row['failed']}",
        }
        for row in _rows_of("targets_peers")
    )


def _db(value: float | None) -> str:
    if value is None:
        return "refused"
    return "equal" if np.isinf(value) else f"{value:.0f} dB"


if __name__ == "__main__":
    main()

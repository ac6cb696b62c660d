"""Weights alone as 8 and 4 bits on transformers; onnxruntime's MatMulNBitsQuantizer beside.

    python -m benchmarks.int8.weight_only measure [--calibration N] [--sentences N] [--no-timing]
    python -m benchmarks.int8.weight_only decoding [--models NAMES]
    python -m benchmarks.int8.weight_only tables

The model of `measure` is `benchmarks.models.sentence_encoder`'s, those of `decoding` are decoders
with a cache of `benchmarks.models.transformers`, with seeded weights; onnxruntime's quantizer runs
in environments of its own. Both write to `benchmarks/results`, and `measure` wants a quiet machine:
all models are timed in turn. `decoding` compares processor time of one thread, in turn as well.
`tables` writes those of `docs/int8.md` anew. Needs the extra `bench`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import onnxruntime as ort

from benchmarks.models.sentence_encoder import (
    TABLES,
    Arrays,
    batch_of,
    model_file,
    sentences,
    tokenized,
)
from benchmarks.models.transformers import EXPORTER, Transformer, path, shaped, transformers
from benchmarks.models.zoo import cache_folder
from benchmarks.peers.environments import QUANTIZERS, run_driver
from benchmarks.reporting import DOCS, Found, Row, markdown, read, refresh, saved, times
from benchmarks.transformers.judge import agreement
from onnxslim import compress
from onnxslim.api import bench_models
from onnxslim.run.record import processor_name

NAME: Final = "weight_only"
BATCH: Final = 16
ONNXRUNTIME: Final = next(tool for tool in QUANTIZERS if tool.name == "onnxruntime")
PEER: Final = replace(
    ONNXRUNTIME,
    name="onnxruntime-nbits",
    driver="quantize_nbits_ort.py",
    requirements=(*ONNXRUNTIME.requirements, "onnx_ir==1.1.0"),
)
MATMUL: Final = f"skip={'+'.join(TABLES)}"


@dataclass(frozen=True)
class Setting:
    """A row; `options` of our pass, or of onnxruntime's driver."""

    name: str
    options: tuple[str, ...]
    is_ours: bool = True
    has_data: bool = False


SETTINGS: Final = (
    Setting("8 bits, to nearest", ("rounding=nearest",)),
    Setting("8 bits, feedback", (), has_data=True),
    Setting("8 bits, feedback, folded", ("form=folded",), has_data=True),
    Setting("4 bits, to nearest", ("bits=4", "rounding=nearest")),
    Setting("4 bits, feedback", ("bits=4",), has_data=True),
    Setting("4 bits, feedback, zero points", ("bits=4", "symmetric=false"), has_data=True),
    Setting("4 bits, feedback, folded", ("bits=4", "form=folded"), has_data=True),
    Setting("4 bits, feedback, MatMulNBits", ("bits=4", "form=matmul-nbits"), has_data=True),
    Setting("4 bits, feedback, MatMul only", ("bits=4", MATMUL), has_data=True),
    Setting("onnxruntime, 8 bits, MatMul only", ("8", "32", "4", "symmetric"), is_ours=False),
    Setting("onnxruntime, 4 bits, MatMul only", ("4", "32", "4", "symmetric"), is_ours=False),
    Setting("onnxruntime, 4 bits, zero points, MatMul only", ("4", "32", "4"), is_ours=False),
    Setting("onnxruntime, 4 bits", ("4", "32", "4", "symmetric", "gather"), is_ours=False),
    Setting("onnxruntime, 4 bits, HQQ", ("4", "32", "4", "hqq"), is_ours=False),
    Setting("onnxruntime, 4 bits, k-quant", ("4", "32", "4", "k_quant"), is_ours=False),
    Setting("onnxruntime, 4 bits, GPTQ", ("4", "32", "4"), is_ours=False, has_data=True),
)

DECODING: Final = "weight_only_decoding"
DECODERS: Final = (
    Setting("8 bits, native", ("form=native",)),
    Setting("8 bits, MatMulNBits", ("form=matmul-nbits",)),
    Setting("4 bits, native", ("bits=4", "form=native")),
    Setting("4 bits, MatMulNBits", ("bits=4", "form=matmul-nbits")),
    Setting("4 bits, folded", ("bits=4", "form=folded")),
    Setting("onnxruntime, 8 bits", ("8", "32", "4", "symmetric"), is_ours=False),
    Setting("onnxruntime, 4 bits", ("4", "32", "4", "symmetric", "gather"), is_ours=False),
)
RUNS: Final = {(1, 128): 31, (128, 0): 9}  # of each model, by tokens and length of the cache
OTHER_DATA: Final = np.zeros(1 << 21)  # read before each run, as an application would


@click.group()
def main() -> None:
    """Measure quantize-weights."""


@main.command("measure")
@click.option("--calibration", type=int, default=256, help="Sentences to calibrate on.")
@click.option("--sentences", "held", type=int, default=256, help="Sentences to judge on.")
@click.option("--timing/--no-timing", default=True, help="Time all models in turn.")
@click.option("--save/--no-save", default=True, help="Write the result.")
def measure(calibration: int, held: int, *, timing: bool, save: bool) -> None:
    """Bytes, drift and latency of every setting."""
    samples = tokenized(sentences(calibration + held))
    known, judged = samples[:calibration], samples[calibration:]
    files: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for setting in SETTINGS:
        file = cache_folder() / NAME / f"{setting.name.replace(' ', '_')}.onnx"
        why = _ours(setting, file, known) if setting.is_ours else _peer(setting, file, known)
        if why is None:
            files[setting.name] = file
        else:
            failed[setting.name] = why
    faster = _faster(files, judged) if timing else {}
    rows = _rows(files, failed, judged, faster)
    about = {"calibration": calibration, "sentences": held, "load": os.getloadavg()[0]}
    saved(NAME if save else None, rows, **about)


@main.command("decoding")
@click.option("--models", "names", default="llama_dynamo,gpt2_dynamo", help="Names of decoders.")
@click.option("--save/--no-save", default=True, help="Write the result.")
def decoding(names: str, *, save: bool) -> None:
    """Bytes, divergence, and processor time of one token and of a prompt, by setting."""
    rows = _decoded(transformers(names.split(",")))
    about = {"processor": processor_name(), "load": os.getloadavg()[0]}
    saved(DECODING if save else None, rows, replacing=("model", "setting"), **about)


@main.command("tables")
def tables_command() -> None:
    """Write the table of the page anew, from the result."""
    refresh(DOCS / "int8.md", table_of)


# ---------------------------------------------------------------------------- quantizing


def _ours(
    setting: Setting, file: Path, known: Sequence[Arrays], source: Path | None = None
) -> str | None:
    """Quantize with our pass."""
    options = setting.options
    if not any(option.startswith("form=") for option in options):
        options = (*options, "form=native")  # what `auto` is before it is timed
    compress(
        source or model_file(),
        file,
        passes=":".join(("quantize-weights", *options)),
        calibration=list(known) if setting.has_data else None,
        measure=False,
        force=True,
        floors=None,
    )
    return None


def _peer(
    setting: Setting, file: Path, known: Sequence[Arrays], source: Path | None = None
) -> str | None:
    """Quantize with onnxruntime; why it could not, if so."""
    words, tool = setting.options, PEER
    if setting.has_data:
        archive = file.with_suffix(".npz")
        rows = {f"{i}/{name}": x for i, row in enumerate(known) for name, x in row.items()}
        np.savez(archive, **rows)
        words = (*words, f"gptq={archive}")
    if setting.has_data or "hqq" in words:
        tool = replace(EXPORTER, driver=PEER.driver)  # torch is there
    return run_driver(tool, source or model_file(), file, *words)


# ---------------------------------------------------------------------------- measuring


def _rows(
    files: dict[str, Path],
    failed: dict[str, str],
    judged: Sequence[Arrays],
    faster: dict[str, dict[str, Any]],
) -> Iterator[Found]:
    reference = _outputs(model_file(), judged)
    size = model_file().stat().st_size
    for setting in SETTINGS:
        row = {"setting": setting.name, "is_ours": setting.is_ours, "failed": None}
        if setting.name not in files:
            yield {**row, "failed": failed[setting.name]}
            continue
        file = files[setting.name]
        row["bytes_left"] = file.stat().st_size / size
        yield {
            **row,
            "bytes": file.stat().st_size,
            **_drift(reference, _outputs(file, judged)),
            "faster": faster.get(setting.name, {}),
        }


def _outputs(file: Path, samples: Sequence[Arrays]) -> list[np.ndarray]:
    session = ort.InferenceSession(os.fspath(file), providers=["CPUExecutionProvider"])
    return [np.asarray(session.run(None, dict(sample))[0][0], np.float64) for sample in samples]


def _drift(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> dict[str, float]:
    """Of embeddings, which are means over words, and of what the last layer returns."""
    pairs = list(zip(before, after, strict=True))
    cosines = [_cosine(a.mean(axis=0), b.mean(axis=0)) for a, b in pairs]
    signal = sum(float(np.square(a).sum()) for a, _ in pairs)
    noise = sum(float(np.square(a - b).sum()) for a, b in pairs)
    return {
        "cosine_mean": float(np.mean(cosines)),
        "cosine_least": float(np.min(cosines)),
        "sqnr_db": float(10 * np.log10(signal / noise)),
    }


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _faster(files: dict[str, Path], judged: Sequence[Arrays]) -> dict[str, dict[str, Any]]:
    """How many times as fast as float, with 95 % intervals: one sentence, and a batch."""
    found: dict[str, dict[str, Any]] = {name: {} for name in files}
    for what, feeds in (("one", dict(judged[0])), ("batch", batch_of(judged[:BATCH]))):
        timed = bench_models([model_file(), *files.values()], calibration=[feeds])
        for name, (_, _, pair) in zip(files, timed[1:], strict=True):
            if pair is not None:
                found[name][what] = [pair.ratio, pair.low, pair.high]
    return found


# ---------------------------------------------------------------------------- decoding


def _decoded(models: Sequence[Transformer]) -> Iterator[Found]:
    for model in models:
        folder = cache_folder() / DECODING
        folder.mkdir(parents=True, exist_ok=True)
        files = {"float": path(model)}
        for setting in DECODERS:
            file = folder / f"{model.name}_{setting.name.replace(' ', '_')}.onnx"
            quantize = _ours if setting.is_ours else _peer
            if (why := quantize(setting, file, (), path(model))) is None:
                files[setting.name] = file
            else:
                yield {"model": model.name, "setting": setting.name, "failed": why}
        sessions = {name: _session(file) for name, file in files.items()}
        ratios = {name: {} for name in files}
        for (tokens, past), runs in RUNS.items():
            feeds = shaped(model, 1, tokens, past)
            for name, ratio in _ratios(sessions, feeds, runs).items():
                ratios[name][f"{tokens} after {past}"] = ratio
        ours = {setting.name for setting in DECODERS if setting.is_ours}
        for name, file in files.items():
            yield {
                "model": model.name,
                "setting": name,
                "is_ours": name in ours,
                "failed": None,
                "bytes": file.stat().st_size,
                "faster": ratios[name],
                **agreement(model, sessions[name]),
            }


def _session(file: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _ratios(
    sessions: Mapping[str, ort.InferenceSession], feeds: Arrays, runs: int
) -> dict[str, float]:
    """Median processor time of the first session over that of each; all run in turn."""
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(runs + 1):
        for name, session in sessions.items():
            OTHER_DATA.sum()
            start = time.thread_time()
            session.run(None, dict(feeds))
            if number:  # the first run is a warm-up
                taken[name].append(time.thread_time() - start)
    medians = {name: float(np.median(each)) for name, each in taken.items()}
    first = next(iter(medians.values()))
    return {name: first / each for name, each in medians.items()}


# ---------------------------------------------------------------------------- tables


def table_of(name: str) -> str | None:
    """The table of that name, where there is a result."""
    source, row_of = {"weights": (NAME, _row), "decoding": (DECODING, _decoder_row)}.get(
        name, (None, _row)
    )
    found = None if source is None else read(source)
    return None if found is None else markdown(row_of(row) for row in found["rows"])


def _decoder_row(row: Found) -> Row:
    name, failed = str(row["setting"]), row["failed"]
    line = {"model": row["model"], "weights": f"**{name}**" if row.get("is_ours") else name}
    for tokens, past in RUNS:
        ratio = None if failed else row["faster"][f"{tokens} after {past}"]
        line[f"{tokens} after {past}"] = "fails" if ratio is None else f"{ratio:.2f}"
    line["MB"] = "" if failed else f"{row['bytes'] / 1e6:.1f}"
    line["divergence"] = "" if failed else f"{row['divergence']:.1e}"
    line["same first word"] = "" if failed else f"{100 * row['top_1']:.1f} %"
    return line


def _row(row: Found) -> Row:
    heads = ("bytes left", "SQNR", "cosine, mean", "cosine, least")
    line = {"setting": f"**{row['setting']}**" if row["is_ours"] else row["setting"]}
    if row["failed"]:
        line.update(dict.fromkeys(heads, "fails"))
    else:
        cells = (
            f"{100 * row['bytes_left']:.1f} %",
            f"{row['sqnr_db']:.1f} dB",
            f"{row['cosine_mean']:.4f}",
            f"{row['cosine_least']:.4f}",
        )
        line.update(zip(heads, cells, strict=True))
    faster = row.get("faster") or {}
    line["one sentence"] = times(faster.get("one"), "")
    line[f"a batch of {BATCH}"] = times(faster.get("batch"), "")
    return line


if __name__ == "__main__":
    main()

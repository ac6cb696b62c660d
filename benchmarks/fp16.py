"""float16: bytes, speed and closeness, onnxconverter-common's conversion beside.

    python -m benchmarks.fp16 convert [MODELS...]
    python -m benchmarks.fp16 tables

The peer runs in an environment of its own. `convert` writes `benchmarks/results/fp16.json`;
`tables` writes that of `docs/fp16.md` anew. Speed wants a quiet machine: all models of a row are
timed in turn.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import click

from benchmarks.int8.runs import sqnr, unusable, written
from benchmarks.low_rank.runs import stacked
from benchmarks.models.zoo import ZooModel, cache_folder, models, path, sample_inputs
from benchmarks.peers.environments import ONNX, Tool, run_driver
from benchmarks.reporting import DOCS, Found, Row, markdown, read, refresh, saved, times
from onnxslim import compress
from onnxslim.api import bench_models

PAGE: Final = DOCS / "fp16.md"
PEER: Final = Tool(
    "onnxconverter-common", "fp16_converter.py", ("onnxconverter-common==1.16.0", *ONNX)
)
OURS: Final[Mapping[str, str]] = {
    "weights": "convert-fp16",
    "compute": "convert-fp16:compute=float16",
}
KNOWN: Final = 8  # samples that show ranges
HELD: Final = 8


@click.group()
def main() -> None:
    """Measure convert-fp16."""


@main.command("convert")
@click.argument("names", nargs=-1)
def convert(names: Sequence[str]) -> None:
    """Bytes, latency against the model as it came, and SQNR on samples held back."""
    saved(None if names else "fp16", map(_row_of, models(names or None)))


@main.command("tables")
def tables() -> None:
    """Write the table of the page anew, from the results."""
    refresh(PAGE, _table_of)


def _row_of(model: ZooModel) -> Found:
    folder = cache_folder() / "fp16" / model.name
    folder.mkdir(parents=True, exist_ok=True)
    samples = sample_inputs(model, KNOWN + HELD, 1)
    known, held = stacked(samples[:KNOWN]), samples[KNOWN:]
    source = path(model)
    files, failed = {}, {}
    for name, spec in OURS.items():
        files[name] = folder / f"{name}.onnx"
        compress(
            source,
            files[name],
            passes=spec,
            calibration=known,
            measure=False,
            force=True,
            floors=None,
        )
    target = folder / "peer.onnx"
    why = run_driver(PEER, source, target, written(folder / "samples.npz", known))
    why = why or unusable(target, held[0])
    if why is None:
        files["peer"] = target
    else:
        failed["peer"] = why
    first = dict(held[0])
    timed = bench_models([source, *files.values()], calibration=[first])
    pairs = zip(files, timed[1:], strict=True)
    return {
        "model": model.name,
        "input_ms": timed[0][1].median,
        "faster": {n: [r[2].ratio, r[2].low, r[2].high] for n, r in pairs if r[2] is not None},
        "bytes_left": {n: f.stat().st_size / source.stat().st_size for n, f in files.items()},
        "sqnr_db": {name: sqnr(source, file, held) for name, file in files.items()},
        "failed": failed,
        "load": os.getloadavg()[0],
    }


def _table_of(name: str) -> str | None:
    whole = read("fp16")
    return markdown(_lines(whole["rows"])) if name == "fp16" and whole is not None else None


def _lines(rows: Sequence[Found]) -> Iterator[Row]:
    names = {"weights": "weights", "compute": "compute=float16", "peer": PEER.name}
    for row in rows:
        line = {"model": row["model"]}
        for key, words in names.items():
            share = row["bytes_left"].get(key)
            line[f"{words}: bytes"] = "fails" if share is None else f"{100 * share:.1f} %"
            line[f"{words}: speed"] = times(row["faster"].get(key), "fails")
            line[f"{words}: SQNR"] = ", ".join(f"{x:.0f}" for x in row["sqnr_db"].get(key, ()))
        yield line


if __name__ == "__main__":
    main()

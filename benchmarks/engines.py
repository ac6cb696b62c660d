"""Which forms other engines take, before and after `retarget`, on the bundled LeNet-5.

    python -m benchmarks.engines [FORMS...]

For each form that a pass writes and each engine that is installed: whether the file loads there and
agrees with onnxruntime on the same file, as it is written for onnxruntime and as `retarget` writes
it for that engine; with the bytes of both. Results go to `benchmarks/results/engines.json`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np

import onnxslim
from benchmarks.reporting import DOCS, Found, markdown, refresh, saved
from onnxslim.errors import TargetMissed, UsageError
from onnxslim.run.record import processor_name
from onnxslim.runtime.engines.agreement import agreement
from onnxslim.runtime.engines.opened import EngineFailure
from onnxslim.runtime.engines.opening import ENGINES, require_engine

ASSETS = Path(onnxslim.__path__[0]) / "assets"
FORMS = {
    "simplified": "simplify",
    "95 % zeros": "prune-weights:ratio=0.95",
    "16 values": "cluster-weights",
    "ternary": "ternarize-weights",
    "binary": "binarize-weights",
    "powers of two": "quantize-power-of-two",
    "fixed point": "quantize-fixed-point",
    "8-bit weights, folded": "quantize-weights:form=folded",
    "8-bit weights, DequantizeLinear": "quantize-weights:form=dequantize",
    "4-bit weights, folded": "quantize-weights:bits=4:form=folded",
    "4-bit weights, DequantizeLinear": "quantize-weights:bits=4:form=dequantize",
    "4-bit weights, MatMulNBits": "quantize-weights:bits=4:form=matmul-nbits",
    "8-bit weights, MatMulNBits": "quantize-weights:form=matmul-nbits",
    "int8": "quantize-int8:placement=all:activation-ranges=static",
    "int8, ranges of run time": "quantize-int8:placement=all:activation-ranges=dynamic",
    "float16 weights": "convert-fp16",
    "float16 arithmetic": "convert-fp16:compute=float16",
}


def outcome(engine: str, path: Path, samples: list[dict[str, np.ndarray]]) -> Found:
    """The SQNR in dB, or why the engine refuses the file or computes something else."""
    try:
        words = agreement(engine, path, samples, {}, threads=1)
    except EngineFailure as failure:
        return {"db": None, "why": str(failure).partition(": ")[2][:60]}
    return {"db": float(words.partition(" has ")[2].partition(" dB")[0]), "why": None}


def installed() -> list[str]:
    """The engines that are here."""
    found = []
    for engine in ENGINES:
        try:
            require_engine(engine)
        except UsageError as error:
            click.echo(str(error))
            continue
        found.append(engine)
    return found


def _rows(engines: Sequence[str], forms: Sequence[str]) -> Iterator[Found]:
    images = np.load(ASSETS / "mnist_calib.npz")
    name = next(iter(images))
    samples = [{name: images[name][:1].astype(np.float32)}]
    with tempfile.TemporaryDirectory() as folder:
        path, target = Path(folder) / "form.onnx", Path(folder) / "target.onnx"
        for form in forms:
            onnxslim.compress(
                ASSETS / "lenet5.onnx", path, passes=FORMS[form],
                calib=str(ASSETS / "mnist_calib.npz"),
                floors=None, force=True, measure=False, overwrite=True,
            )  # fmt: skip
            for engine in engines:
                missed = None
                try:
                    onnxslim.retarget(path, target, target=engine, floors=None, overwrite=True)
                except TargetMissed as error:
                    missed = str(error)
                yield {
                    "form": form,
                    "engine": engine,
                    "processor": processor_name(),
                    "before": outcome(engine, path, samples),
                    "after": outcome(engine, target, samples),
                    "bytes_before": path.stat().st_size,
                    "bytes_after": target.stat().st_size,
                    "missed": missed,
                }


@click.command()
@click.argument("forms", nargs=-1, type=click.Choice(list(FORMS)))
def main(forms: Sequence[str]) -> None:
    """Print the matrix, of all forms by default, and make the table of the page anew."""
    rows = _rows(installed(), forms or list(FORMS))
    found = saved("engines", rows, replacing=("form", "engine"))
    refresh(DOCS / "targets.md", lambda name: _table(found) if name == "engines" else None)


def _table(rows: Sequence[Found]) -> str | None:
    """A row for each form; `n` where a file is refused, bytes for the first engine."""
    forms = dict.fromkeys(row["form"] for row in rows)
    engines = dict.fromkeys(row["engine"] for row in rows)
    found = {(row["form"], row["engine"]): row for row in rows}
    lines = []
    for form in forms:
        cells = {"form": form}
        for engine in engines:
            row = found[form, engine]
            cells[engine] = f"{_cell(row['before'])} → {_cell(row['after'])}"
        first = found[form, next(iter(engines))]
        cells["bytes"] = f"{first['bytes_before']:,} → {first['bytes_after']:,}"
        lines.append(cells)
    return markdown(lines)


def _cell(found: Found) -> str:
    if found["db"] is None:
        return "n"
    return "equal" if np.isinf(found["db"]) else f"{found['db']:.0f}"


if __name__ == "__main__":
    main()

"""Which forms other engines take, before and after `retarget`, on the bundled LeNet-5.

    python -m benchmarks.engines [--seconds 60]

For each form that a pass writes and each engine that is installed: whether the file loads there and
agrees with onnxruntime on the same file, as it is written for onnxruntime and as `retarget` writes
it for that engine; with the bytes of both.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import onnxslim
from onnxslim.errors import TargetMissed, UsageError
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


def outcome(engine: str, path: Path, samples: list[dict[str, np.ndarray]]) -> str:
    """`y` with the SQNR, or `n` with the reason."""
    try:
        words = agreement(engine, path, samples, {}, threads=1)
    except EngineFailure as failure:
        return f"n ({str(failure).partition(': ')[2][:60]})"
    return f"y ({words.partition(' has ')[2].partition(' dB')[0]} dB)"


def installed() -> list[str]:
    """The engines that are here."""
    found = []
    for engine in ENGINES:
        try:
            require_engine(engine)
        except UsageError as error:
            print(error)  # noqa: T201
            continue
        found.append(engine)
    return found


def main() -> None:
    """Print the matrix."""
    engines = installed()
    images = np.load(ASSETS / "mnist_calib.npz")
    name = next(iter(images))
    samples = [{name: images[name][:1].astype(np.float32)}]
    with tempfile.TemporaryDirectory() as folder:
        for title, passes in FORMS.items():
            path = Path(folder) / "form.onnx"
            onnxslim.compress(
                ASSETS / "lenet5.onnx", path, passes=passes, calib=str(ASSETS / "mnist_calib.npz"),
                floors=None, force=True, measure=False, overwrite=True,
            )  # fmt: skip
            cells = []
            for engine in engines:
                target = Path(folder) / f"{engine}.onnx"
                try:
                    onnxslim.retarget(path, target, target=engine, floors=None, overwrite=True)
                except TargetMissed as error:
                    cells.append(f"{outcome(engine, path, samples)} -> {error}")
                    continue
                sizes = f"{path.stat().st_size:,} -> {target.stat().st_size:,} B"
                before, after = (outcome(engine, each, samples) for each in (path, target))
                cells.append(f"{engine}: {before} -> {after}, {sizes}")
            print(f"{title}: {'; '.join(cells)}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()

"""What a job costs: processor seconds, peak memory, wall-clock time; of int8 also its closeness.

    python -m benchmarks.cost [JOBS...] [--package DIR] [--label NAME]

Each job is one command of onnxslim in its own process, on a model of the zoo, the sentence encoder
or a network that is made here; samples are seeded. `--package` names the folder of another revision
that holds the importable package `onnxslim`, for the figures before a change. Results go to
`benchmarks/results/cost.json`, one row for each job and label.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.models.sentence_encoder import model_file
from benchmarks.models.zoo import cache_folder, models, path
from benchmarks.reporting import Found, saved
from onnxslim.run.record import processor_name

_MAIN: Final = "import sys; from onnxslim.cli import main; sys.exit(main())"
_WIDTHS: Final = (16, 32, 64, 128)  # of the U-Net's levels

Command = Sequence[str]


@click.command()
@click.argument("names", nargs=-1)
@click.option("--package", type=click.Path(exists=True), help="Folder of another revision.")
@click.option("--label", default="now", show_default=True, help="What the rows are called.")
def main(names: Sequence[str], package: str | None, label: str) -> None:
    """Measure jobs; all of them by default."""
    unknown = [name for name in names if name not in JOBS]
    if unknown:
        raise click.UsageError(f"There is no job {unknown[0]}; there are {', '.join(JOBS)}.")
    saved("cost", _rows(names or tuple(JOBS), package, label), replacing=("job", "label"))


def _rows(names: Sequence[str], package: str | None, label: str) -> Iterator[Found]:
    for name in names:
        source, *arguments = JOBS[name]()
        found = _measured([source, *arguments], package)
        yield {"job": name, "label": label, "processor": processor_name(), **found}


def _measured(arguments: Command, package: str | None) -> Mapping[str, Any]:
    """Run one command to its end."""
    environment = dict(os.environ)
    if package is not None:
        environment["PYTHONPATH"] = os.path.abspath(package)
    command = [sys.executable, "-P", "-c", _MAIN, *arguments]
    load, started = os.getloadavg()[0], time.perf_counter()
    report = cache_folder() / "cost" / "report.json"
    report.unlink(missing_ok=True)
    options = ["--report", str(report)] if "--calib" in arguments else []
    process = subprocess.Popen([*command, *options, "--quiet"], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "wall_seconds": round(time.perf_counter() - started, 1),
        "exit": process.returncode,
        "load": round(load, 2),
        **({"sqnr_db": _sqnr_db(report)} if report.exists() else {}),
    }


def _sqnr_db(report: Path) -> float | None:
    """The least SQNR of an output of the result in dB; None where no bit moved."""
    steps = json.loads(report.read_text("utf-8"))["passes"]
    kept = [step for step in steps if step["committed"] and step["drift_original"]]
    drifts = kept[-1]["drift_original"].values() if kept else ()
    least = min((float(each["sqnr_db"]) for each in drifts), default=math.inf)
    return round(least, 2) if math.isfinite(least) else None


# ---------------------------------------------------------------------------- jobs


def _compressed(model: Path, *arguments: str) -> Command:
    return [str(model), str(model.with_suffix(".cost.onnx")), *arguments]


def _simplify() -> Command:
    return _compressed(path(models(["resnet50"])[0]))


def _int8_images(name: str, key: str, height: int, width: int, low: float = -1) -> Command:
    """A model of pictures; `low` is their lowest value, the highest is 1."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(32, 3, height // 8, width // 8)).astype(np.float32)
    if low == 0:
        coarse = 1 / (1 + np.exp(-coarse))
    pictures = coarse.repeat(8, 2).repeat(8, 3)
    samples = _samples(f"pictures_{name}", **{key: pictures})
    model = path(models([name])[0])
    return _compressed(model, "-p", "simplify,quantize-int8", "--calib", samples)


def _int8_small() -> Command:
    """A ResNet-14 that was trained here, on pictures of its own data."""
    from benchmarks.models.small_nets import NETS, fashion

    samples = _samples("fashion", image=fashion().test.image[:256])
    return _compressed(NETS["resnet14"].file(), "-p", "simplify,quantize-int8", "--calib", samples)


def _int8_words() -> Command:
    rng = np.random.default_rng(0)
    words = rng.integers(1000, 20000, (64, 64))
    samples = _samples("words", input_ids=words, attention_mask=np.ones_like(words))
    passes = ("-p", "simplify,quantize-int8", "--calib", samples)
    return _compressed(model_file(), *passes)


def _pack() -> Command:
    model = path(models(["resnet50"])[0])
    return ["pack", str(model), str(model.with_suffix(".cost.onnxz"))]


def _pack_codes() -> Command:
    """A ResNet-50 whose weights are codes of 4 bits, made once by this revision."""
    model = path(models(["resnet50"])[0])
    coded = model.with_suffix(".codes.onnx")
    if not coded.exists():
        unproven = ("--no-verify", "--no-latency", "--quiet")
        arguments = (str(model), str(coded), "--passes", "cluster-weights:bits=4", *unproven)
        subprocess.run([sys.executable, "-P", "-c", _MAIN, *arguments], check=True)
    return ["pack", str(coded), str(coded.with_suffix(".onnxz"))]


def _verification() -> Command:
    model = _built("unet", _unet)
    return _compressed(model, "--input-shape", "x:1,3,512,512")


def _trees() -> Command:
    return _compressed(_built("trees", _tree_ensemble))


JOBS: Final[Mapping[str, Callable[[], Command]]] = {
    "simplify ResNet-50": _simplify,
    "int8 PP-OCRv4 detector": partial(_int8_images, "ppocr_v4_det", "x", 320, 320),
    "int8 PP-OCRv4 reader": partial(_int8_images, "ppocr_v4_rec", "x", 48, 320),
    "int8 NudeNet": partial(_int8_images, "nudenet_320n", "images", 320, 320, low=0),
    "int8 ResNet-14": _int8_small,
    "int8 MiniLM": _int8_words,
    "pack ResNet-50": _pack,
    "pack ResNet-50 in codes": _pack_codes,
    "simplify U-Net 512x512": _verification,
    "simplify tree ensemble": _trees,
}


def _samples(name: str, **arrays: np.ndarray) -> str:
    file = cache_folder() / "cost" / f"{name}.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return str(file)


def _built(name: str, build: Callable[[], onnx.ModelProto]) -> Path:
    file = cache_folder() / "cost" / f"{name}.onnx"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(build(), file)
    return file


def _tree_ensemble(trees: int = 122, depth: int = 12, features: int = 30) -> onnx.ModelProto:
    """Full regression trees, a million nodes in all."""
    own = np.arange(2 ** (depth + 1) - 1)
    ids, rng = np.tile(own, trees), np.random.default_rng(0)
    owner = np.repeat(np.arange(trees), own.size)
    leaf = ids >= 2**depth - 1
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_nodeids=ids.tolist(),
        nodes_treeids=owner.tolist(),
        nodes_featureids=rng.integers(0, features, ids.size).tolist(),
        nodes_modes=np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_values=rng.normal(size=ids.size).tolist(),
        nodes_truenodeids=np.where(leaf, 0, 2 * ids + 1).tolist(),
        nodes_falsenodeids=np.where(leaf, 0, 2 * ids + 2).tolist(),
        target_ids=[0] * int(leaf.sum()),
        target_nodeids=ids[leaf].tolist(),
        target_treeids=owner[leaf].tolist(),
        target_weights=rng.normal(size=int(leaf.sum())).tolist(),
    )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", features])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph([node], "trees", [x], [y])
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def _unet() -> onnx.ModelProto:
    """A U-Net of 3 MB with BatchNormalization after each Conv, sizes open."""
    made = _Layers()
    x, channels, skips = "x", 3, list[tuple[str, int]]()
    for width in _WIDTHS:
        x, channels = made.block(x, channels, width), width
        if width != _WIDTHS[-1]:
            skips.append((x, width))
            x = made.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    x = made.block(x, channels, channels)
    for skip, width in reversed(skips):
        scales = made.weight(np.array([1, 1, 2, 2], np.float32))
        x = made.node("Resize", [x, "", scales], mode="nearest")
        x = made.node("Concat", [x, skip], axis=1)
        x, channels = made.block(x, channels + width, width), width
    x = made.conv(x, channels, 1, 1)
    made.nodes.append(helper.make_node("Sigmoid", [x], ["y"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1, "H", "W"])]
    graph = helper.make_graph(made.nodes, "unet", inputs, outputs, made.weights)
    imports = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


class _Layers:
    """Nodes and seeded weights of a network, one after the other."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def weight(self, values: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(self, x: str, inputs: int, outputs: int, size: int = 3) -> str:
        deviation = (2 / (inputs * size**2)) ** 0.5
        weight = self._rng.normal(0, deviation, (outputs, inputs, size, size))
        return self.node("Conv", [x, self.weight(weight)], pads=[size // 2] * 4)

    def block(self, x: str, inputs: int, outputs: int) -> str:
        """Twice Conv, BatchNormalization and Relu."""
        for width in (inputs, outputs):
            x = self.conv(x, width, outputs)
            near_one = [self.weight(self._rng.uniform(0.8, 1.2, outputs)) for _ in range(2)]
            near_zero = [self.weight(self._rng.normal(0, 0.1, outputs)) for _ in range(2)]
            x = self.node("BatchNormalization", [x, near_one[0], *near_zero, near_one[1]])
            x = self.node("Relu", [x])
        return x


if __name__ == "__main__":
    main()

"""ONNX graphs as torch functions: outputs, gradients and speed on real models.

    python -m benchmarks.retraining.executor models [FILES...]
    python -m benchmarks.retraining.executor passes [FILE --calib C.npz]
    python -m benchmarks.retraining.executor speed
    python -m benchmarks.retraining.executor tables

`models` takes files, or the models of the zoo; `passes` compresses one file with each pass that
stores weights in a form of its own. Needs the extra `train`; the peer runs in an environment of its
own. Each command but the last writes `benchmarks/results/executor_NAME.json`, and `tables` the
tables of `docs/retraining.md` anew from them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch import Tensor

import onnxslim
from benchmarks.models.zoo import cache_folder, models, path
from benchmarks.peers.environments import ONNX, Tool, run_driver
from benchmarks.reporting import DOCS, Found, Row, markdown, read, refresh, saved
from onnxslim.analysis.input_demands import input_demands
from onnxslim.errors import OnnxslimError
from onnxslim.graph.ir import walk_graphs
from onnxslim.io.model import Model
from onnxslim.runtime.samples.seeded import find_inputs
from onnxslim.runtime.session import Feeds, open_session
from onnxslim.runtime.training import TorchGraph

PAGE: Final = DOCS / "retraining.md"
ASSETS: Final = Path(onnxslim.__file__).parent / "assets"
CPU: Final = torch.device("cpu")
PEER: Final = Tool(
    "onnx2pytorch", "convert_onnx2pytorch.py", ("onnx2pytorch==0.6.0", "torch==2.13.0", *ONNX)
)
PASSES: Final = (
    "cluster-weights",
    "ternarize-weights",
    "binarize-weights",
    "quantize-weights",
    "quantize-weights:bits=4",
    "quantize-int8",
    "quantize-fixed-point",
    "quantize-power-of-two",
    "prune-weights",
    "factorize-dense",
    "prune-channels",
    "convert-fp16",
    "convert-fp16:compute=float16",
    "inject-exits",
)
TENSORS: Final = 6  # whose gradients are checked
STEPS: Final = (1e-6, 1e-8)  # shares of a tensor's norm; the smaller one crosses fewer kinks
BATCHES: Final = (1, 8, 128)
SLOPE: Final = 1e-5  # the least length of a slope that errors are shares of, by the loss
SECONDS: Final = 10.0  # for each batch, of both nets together

FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
Arrays = Mapping[str, np.ndarray]


@click.group()
def main() -> None:
    """Measure graphs as torch functions."""


@main.command("models")
@click.argument("files", nargs=-1, type=FILE)
def of_models(files: Sequence[Path]) -> None:
    """Outputs and gradients of files, or of the zoo."""
    torch.set_num_threads(1)
    named = [(file.stem, file) for file in files] or [(m.name, path(m)) for m in models()]
    rows = (_row(name, Model.load(file), file) for name, file in named)
    saved("executor_models", rows, replacing=("name",))


@main.command("passes")
@click.argument("file", type=FILE, default=ASSETS / "lenet5.onnx")
@click.option("--calib", type=FILE, default=ASSETS / "mnist_calib.npz")
def of_passes(file: Path, calib: Path) -> None:
    """The same of what each pass makes of a file."""
    torch.set_num_threads(1)
    rows = (_row(spec, _compressed(file, spec, calib)) for spec in PASSES)
    saved("executor_passes", rows, replacing=("name",))


@main.command("speed")
def speed() -> None:
    """Forward and backward of LeNet-5, beside a module of torch written by hand."""
    torch.set_num_threads(1)
    saved("executor_speed", map(_times, BATCHES))


@main.command("tables")
def tables() -> None:
    """Write the tables of the page anew, from the results."""
    refresh(PAGE, _table_of)


def _compressed(file: Path, spec: str, calib: Path) -> Model:
    model, _ = onnxslim.compress(file, passes=spec, calibration=calib, floors=None)
    return model


# ---------------------------------------------------------------------------- outputs


def _row(name: str, model: Model, file: Path | None = None) -> Found:
    nodes = [node for graph in walk_graphs(model.graph) for node in graph.nodes]
    row: dict[str, Any] = {
        "name": name,
        "nodes": len(nodes),
        "types": len({(node.domain, node.op) for node in nodes}),
    }
    try:
        with open_session(model, optimise=False, threads=1) as session:
            found = find_inputs(session.inputs, session.run, demands=input_demands(model))
            feeds = found.samples[0]
            reference = session.run(feeds)
        started = time.process_time()
        graph = TorchGraph(model.graph, device=CPU)
        row["seconds"] = round(time.process_time() - started, 2)
        exact = TorchGraph(model.graph, device=CPU, dtype=torch.float64)
    except OnnxslimError as error:
        return {**row, "error": str(error)}
    with torch.no_grad():
        ours, truth = _arrays(graph(_tensors(feeds))), _arrays(exact(_tensors(feeds)))
    row |= {
        "between": _distance(reference, ours),
        "ours": _distance(truth, ours),
        "onnxruntime": _distance(truth, reference),
        **({} if _rounds(nodes) else _gradients(exact, feeds)),
    }
    if file is not None:
        row["peer"] = _peer(name, file, feeds, truth)
    return row


def _rounds(nodes: Sequence[gs.Node]) -> bool:
    """Whether a slope is that of a staircase: straight-through estimators mean another one."""
    return any("Quantize" in node.op and "Dequantize" not in node.op for node in nodes)


def _tensors(feeds: Feeds) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}


def _arrays(outputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in outputs.items()}


def _distance(truth: Arrays, other: Arrays) -> float:
    """The largest difference of an output, as a share of its range."""
    worst = 0.0
    for name, array in other.items():
        wanted = truth[name].astype(np.float64)
        if array.size and np.isfinite(wanted).all():
            worst = max(worst, float(np.abs(array - wanted).max() / (np.ptp(wanted) or 1.0)))
    return worst


def _peer(name: str, file: Path, feeds: Feeds, truth: Arrays) -> float | str:
    """The same distance of the peer's outputs, or why it has none."""
    folder = cache_folder() / "executor" / name
    folder.mkdir(parents=True, exist_ok=True)
    given, outputs = folder / "inputs.npz", folder / "outputs.npz"
    np.savez(given, **feeds)  # type: ignore[arg-type]
    failed = run_driver(PEER, file, outputs, given)
    if failed is not None:
        return failed
    found = np.load(outputs)
    try:
        return _distance(truth, {key: found[key] for key in found.files})
    except (KeyError, ValueError) as error:
        return f"other outputs: {error}"


# ---------------------------------------------------------------------------- gradients


def _gradients(graph: TorchGraph, feeds: Feeds) -> Found:
    """The largest error of a slope against central differences, of up to `TENSORS` tensors.

    A slope is one along a random direction of one stored tensor; its error is a share of the
    product of both lengths.
    """
    rng, inputs = np.random.default_rng(0), _tensors(feeds)
    stored = graph.weights.items()
    floats = {name: w.double() for name, w in stored if w.is_floating_point() and w.numel()}
    names = sorted(floats)
    names = [names[k] for k in rng.permutation(len(names))[:TENSORS]]
    mixing: dict[str, Tensor] = {}

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for name, value in graph(inputs, weights).items():
            if value.is_floating_point():
                if name not in mixing:
                    mixing[name] = torch.from_numpy(rng.standard_normal(value.shape))
                total = total + (value * mixing[name]).sum()
        return total

    learned = {name: floats[name].clone().requires_grad_() for name in names}
    whole = loss(learned)
    if not whole.requires_grad:
        return {"gradients": None, "without": len(names), "checked": len(names)}
    slopes = torch.autograd.grad(whole, list(learned.values()), allow_unused=True)
    errors = [
        _slope_error(loss, {n: w.detach() for n, w in learned.items()}, name, slope, rng)
        for name, slope in zip(names, slopes, strict=True)
        if slope is not None
    ]
    without = sum(slope is None for slope in slopes)
    return {"gradients": max(errors), "without": without, "checked": len(names)}


def _slope_error(
    loss: Callable[[Mapping[str, Tensor]], Tensor],
    weights: Mapping[str, Tensor],
    name: str,
    slope: Tensor,
    rng: np.random.Generator,
) -> float:
    weight = weights[name]
    direction = torch.from_numpy(rng.standard_normal(weight.shape))
    direction = direction / direction.norm() * max(float(weight.norm()), 1e-3)
    expected = float((slope * direction).sum())
    # rounding of two losses that hardly differ hides slopes that are smaller yet
    least = SLOPE * abs(float(loss(weights)))
    length = max(float(slope.norm() * direction.norm()), least)
    errors = []
    for share in STEPS:
        with torch.no_grad():
            ahead, back = (
                float(loss({**weights, name: weight + sign * share * direction}))
                for sign in (1, -1)
            )
        errors.append(abs((ahead - back) / (2 * share) - expected) / length)
    return min(errors)


# ---------------------------------------------------------------------------- speed


class HandWritten(torch.nn.Module):
    """LeNet-5 as a module of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(1, 20, 5), torch.nn.Conv2d(20, 50, 5)
        self.third, self.fourth = torch.nn.Linear(800, 500), torch.nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of pictures (N, 1, 28, 28)."""
        pool = torch.nn.functional.max_pool2d
        x = pool(self.first((x - 0.5) / 0.5), 2)
        x = pool(self.second(x), 2).flatten(1)
        return self.fourth(torch.relu(self.third(x)))


def _times(batch: int) -> Found:
    """Microseconds a sample, by the processor time of the one thread, medians of runs in turn."""
    graph = TorchGraph(Model.load(ASSETS / "lenet5.onnx").graph, device=CPU)
    weights = {
        name: weight.clone().requires_grad_()
        for name, weight in graph.weights.items()
        if weight.is_floating_point() and weight.dim()
    }
    module, x = HandWritten(), torch.rand(batch, 1, 28, 28)
    runs: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: graph({"image": x}, weights)["logits"],
        "by hand": lambda: module(x),
    }
    found: dict[str, list[float]] = {name: [] for name in runs}
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for name, forward in runs.items():
            started = time.thread_time()
            forward().sum().backward()
            found[name].append(time.thread_time() - started)
    medians = {name: float(np.median(seconds)) / batch * 1e6 for name, seconds in found.items()}
    return {"batch": batch, **medians}


# ---------------------------------------------------------------------------- tables


def _table_of(name: str) -> str | None:
    result = read(name)
    if result is None:
        return None
    if name == "executor_speed":
        return markdown(_speed_rows(result["rows"]))
    return markdown(_rows(result["rows"]))


def _speed_rows(rows: Sequence[Found]) -> Iterator[Row]:
    for row in rows:
        yield {
            "batch": str(row["batch"]),
            "TorchGraph, µs a sample": f"{row['ours']:,.0f}",
            "written by hand": f"{row['by hand']:,.0f}",
        }


def _rows(rows: Sequence[Found]) -> Iterator[Row]:
    for row in rows:
        cells = {
            "model": row["name"],
            "nodes": f"{row['nodes']:,}",
            "operators": str(row["types"]),
            "TorchGraph": _share(row.get("ours")),
            "onnxruntime": _share(row.get("onnxruntime")),
            "gradients": _share(row.get("gradients")),
        }
        if any("peer" in other for other in rows):
            cells["onnx2pytorch"] = _share(row.get("peer"))
        yield cells


def _share(value: object) -> str:
    return f"{value:.0e}" if isinstance(value, float) else "–"


if __name__ == "__main__":
    main()

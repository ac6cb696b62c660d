"""Small classifiers that can be left early, and samples of which most are easy.

Each class is a pattern; a sample is a pattern with a little or much noise. Weights are random, but
the last layer is fitted to the classes, so that answers have sense.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from fake_stopwatch import FakeStopwatch
from layer_nets import FORCE, REPRODUCERS, net, node, normal, runs
from onnx import numpy_helper

from onnxslim.exits.nested_ifs import Exit, ExitOptions, insert_exits
from onnxslim.exits.operators import Confidence, Head, Pooling, ScoreForm
from onnxslim.exits.points import candidate_points, score_outputs
from onnxslim.graph.counts import node_macs
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.report import LatencyPair, StepReport
from onnxslim.runtime.evaluate import evaluate
from onnxslim.runtime.session import open_session
from onnxslim.services.stopwatch import Stopwatch

CLASSES = 4
SIZE = 8


class ExitStopwatch(FakeStopwatch):
    """Counts the work on the way that thresholds out of reach, or of 0, send all samples."""

    def pair(self, before: Model, after: Model) -> LatencyPair:
        infer_shapes(before)
        infer_shapes(after)
        return self._pair(_work(before.graph), _work(after.graph))


def _work(graph: gs.Graph) -> int:
    total = 0
    for item in graph.nodes:
        total += node_macs(item) or 0
        if item.op == "If":
            (decision,) = item.inputs[0].inputs
            is_out_of_reach = float(decision.inputs[1].values) > 1
            total += _work(item.attrs["else_branch" if is_out_of_reach else "then_branch"])
    return total


def images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Samples (count, 2, 8, 8) and their classes."""
    patterns = np.random.default_rng(99).standard_normal((CLASSES, 2, SIZE, SIZE))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    noise = np.where(rng.random(count) < 0.7, 0.4, 2.5)[:, None, None, None]
    x = patterns[labels] + noise * rng.standard_normal((count, 2, SIZE, SIZE))
    return x.astype(np.float32), labels


def classifier(
    *,
    batch: int | str = "N",
    last: str = "",
    opset: int = 17,
    extra: Sequence[onnx.NodeProto] = (),
    outputs: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    """Four convolutions, a pooling, a layer of four classes; `last` is an operator behind it."""
    nodes, weights, tensor = [], {}, "x"
    channels = (2, 8, 8, 8, 8)
    for number in range(4):
        shape = (channels[number + 1], channels[number], 3, 3)
        weights[f"w{number}"] = normal(*shape, seed=number, scale=0.3)
        nodes += [
            node("Conv", [tensor, f"w{number}"], f"c{number}", pads=[1, 1, 1, 1]),
            node("Relu", [f"c{number}"], f"r{number}"),
        ]
        tensor = f"r{number}"
    nodes += [
        node("AveragePool", [tensor], "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["p"], "f"),
    ]
    if last:
        end = [node("Gemm", ["f", "o", "b"], "z"), node(last, ["z"], "y", axis=1)]
    else:
        end = [node("Gemm", ["f", "o", "b"], "y")]
    weights |= {"o": np.zeros((128, CLASSES), np.float32), "b": np.zeros(CLASSES, np.float32)}
    shape = [batch, 2, SIZE, SIZE]
    fitted = _last_layer(net([*nodes, node("Identity", ["f"], "y")], weights, ["N", *shape[1:]]))
    weights["o"], weights["b"] = fitted
    return net([*nodes, *end, *extra], weights, shape, outputs=outputs, opset=opset)


def _last_layer(body: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    x, labels = images(800, seed=5)
    with open_session(Model.load(body)) as session:
        features = session.run({"x": x})["y"].astype(np.float64)
    wished = 8 * np.eye(CLASSES)[labels]
    mean = features.mean(axis=0)
    centered = features - mean
    second = centered.T @ centered / len(x)
    damped = second + 1e-2 * np.trace(second) / len(second) * np.eye(len(second))
    weight = np.linalg.solve(damped, centered.T @ (wished - wished.mean(axis=0)) / len(x))
    bias = wished.mean(axis=0) - mean @ weight
    return weight.astype(np.float32), bias.astype(np.float32)


def loaded(proto: onnx.ModelProto) -> Model:
    """With shapes, as the manager hands a model to a pass."""
    model = Model.load(proto)
    infer_shapes(model)
    return model


def random_head(model: Model, tensor: str, cells: tuple[int, ...] = (2, 2), seed: int = 0) -> Head:
    """A head at `tensor` with random weights."""
    output = score_outputs(model.graph)[0]
    point = next(p for p in candidate_points(model.graph, output) if p.tensor == tensor)
    pooling = Pooling(point, cells if point.is_map else ())
    return Head(pooling, normal(CLASSES, pooling.features, seed=seed), np.zeros(CLASSES))


def with_exits(
    proto: onnx.ModelProto, exits: Sequence[Exit], style: ExitOptions
) -> tuple[Model, str | None]:
    """The model with exits put in, and the output that tells which was taken."""
    model = loaded(proto)
    rw = Rewriter(model.graph)
    told = insert_exits(rw, score_outputs(model.graph)[0].name, exits, style)
    rw.note("y", "exits")
    rw.result()
    model.has_shapes = False
    return model, told


def style(form: ScoreForm = ScoreForm.LOGITS, **options: object) -> ExitOptions:
    """A style; by default whole batches leave by the largest probability."""
    return replace(ExitOptions(form, Confidence.MAX_PROBABILITY), **options)  # type: ignore[arg-type]


def injected(
    proto: onnx.ModelProto,
    x: np.ndarray | dict[str, np.ndarray] | None,
    rewrite: Pass | str,
    stopwatch: Stopwatch | None = None,
    seed: int = 0,
) -> tuple[Model, list[StepReport]]:
    """The model after a pipeline, kept in any case."""
    calibration = None if x is None else runs(x)
    context = Context(seed, evaluate, calibration, stopwatch=stopwatch)
    manager = PassManager.parse(str(rewrite))
    return manager.run(Model.load(proto), context, policy=FORCE, reproducers=REPRODUCERS)


def answers(model: Model | onnx.ModelProto, x: np.ndarray, *, alone: bool = False) -> np.ndarray:
    """`y`, with onnxruntime's optimisations off and one thread."""
    return answers_of(model, x, "y", alone=alone)


def answers_of(
    model: Model | onnx.ModelProto, x: np.ndarray, name: str, *, alone: bool = False
) -> np.ndarray:
    """An output, of all samples together or of each in a run of its own."""
    source = model if isinstance(model, Model) else Model.load(model)
    parts = np.split(x, len(x)) if alone else [x]
    with open_session(source, optimise=False, threads=1) as session:
        return np.concatenate([session.run({"x": part})[name] for part in parts])


def constants(proto: onnx.ModelProto) -> set[str]:
    """Names of the main graph's initializers."""
    return {tensor.name for tensor in proto.graph.initializer}


def arrays(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The main graph's initializers."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}

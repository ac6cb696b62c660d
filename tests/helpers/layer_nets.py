"""Small nets of weight layers with correlated samples, and what the tests of lossy passes measure.

Samples have a mean and few strong directions, as real data do: on white inputs all criteria and
all roundings would be alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxslim.analysis.layers import weight_layers
from onnxslim.codebook.weight import codebook_for_layer
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.lossy.codebooks import Codebook
from onnxslim.lossy.problems import Problem, Problems, Schedule
from onnxslim.lossy.scalar_codebooks import TableSpec
from onnxslim.pipeline.layer_filter import LayerFilter
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.pipeline.policy import Policy
from onnxslim.report import StepReport
from onnxslim.runtime.evaluate import evaluate
from onnxslim.runtime.probes.calibration_runs import CalibrationRuns
from onnxslim.runtime.session import open_session
from onnxslim.solvers.metric import Metric

FORCE = Policy(force=True)
REPRODUCERS = Path(tempfile.gettempdir()) / "onnxslim-tests-repro"
Arrays = Mapping[str, np.ndarray]
Given = np.ndarray | Arrays | Sequence[Arrays]
"""Samples: an array for `x`, arrays by input, or the inputs of one run after the other."""


def samples(count: int, *shape: int, seed: int = 0, rank: int = 4) -> np.ndarray:
    """Float32 samples with a mean of about one and a few strong directions."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    strong = rng.standard_normal((count, rank)) @ rng.standard_normal((rank, size))
    x = 1 + strong + 0.3 * rng.standard_normal((count, size))
    return x.reshape(count, *shape).astype(np.float32)


def normal(*shape: int, seed: int = 1, scale: float = 1.0) -> np.ndarray:
    """Float32 weights."""
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def node(op: str, inputs: Sequence[str], output: str, **attrs: object) -> onnx.NodeProto:
    """A node with one output."""
    return helper.make_node(op, list(inputs), [output], **attrs)


def net(
    nodes: Sequence[onnx.NodeProto],
    weights: Arrays,
    shape: Sequence[int | str],
    *,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    ir_version: int = 8,
    dtype: int = onnx.TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model with the input `x` of `shape`."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", dtype, list(shape))],
        [
            onnx.ValueInfoProto(name=name, type=helper.make_tensor_type_proto(dtype, None))
            for name in outputs
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, ir_version=ir_version, opset_imports=imports)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def conv_and_dense() -> onnx.ModelProto:
    """Conv with the weight `k` and the bias `c`, Relu, Flatten, Gemm with `w` and `b`."""
    nodes = [
        node("Conv", ["x", "k", "c"], "f", pads=[1, 1, 1, 1]),
        node("Relu", ["f"], "r"),
        node("Flatten", ["r"], "v"),
        node("Gemm", ["v", "w", "b"], "y", transB=1),
    ]
    weights = {"k": normal(8, 2, 3, 3), "c": normal(8), "w": normal(32, 288), "b": normal(32)}
    return net(nodes, weights, ["N", 2, 6, 6])


def dense_net(*widths: int, seed: int = 1, relu: bool = True) -> onnx.ModelProto:
    """Gemm, Relu, Gemm, ...: `x` (N, widths[0]) to `y`; weights `w0`, ..., biases `b0`, ..."""
    nodes, weights, last = [], {}, "x"
    for number, (columns, rows) in enumerate(pairwise(widths)):
        end = number == len(widths) - 2
        result = "y" if end else f"h{number}"
        nodes.append(node("Gemm", [last, f"w{number}", f"b{number}"], result))
        if relu and not end:
            nodes.append(node("Relu", [result], f"r{number}"))
        last = f"r{number}" if relu else result
        weights[f"w{number}"] = normal(
            columns, rows, seed=seed + 2 * number, scale=(2 / columns) ** 0.5
        )
        weights[f"b{number}"] = normal(rows, seed=seed + 2 * number + 1, scale=0.1)
    return net(nodes, weights, ["N", widths[0]])


def residual_net() -> Model:
    """Four layers, the first of which is also added to what the third returns."""
    nodes = [
        node("MatMul", ["x", "w0"], "a"),
        node("Relu", ["a"], "ra"),
        node("MatMul", ["ra", "w1"], "b"),
        node("Relu", ["b"], "rb"),
        node("MatMul", ["rb", "w2"], "c"),
        node("Add", ["c", "ra"], "s"),
        node("MatMul", ["s", "w3"], "y"),
    ]
    weights = {f"w{i}": normal(6, 6, seed=i, scale=0.4) for i in range(4)}
    return Model.load(net(nodes, weights, ["N", 6]))


def context(model: Model, x: Given | None, reference: Model | None = None) -> Context:
    """What the manager gives a pass that rewrites `model`."""
    return Context(
        evaluate=evaluate,
        calibration=None if x is None else runs(x),
        model=model,
        target=reference or model.clone(),
    )


def boxes_beside_scores(inputs: int) -> onnx.ModelProto:
    """Large values from one MatMul joined with those below one from another."""
    nodes = [
        node("MatMul", ["x", "w"], "boxes"),
        node("MatMul", ["x", "v"], "logits"),
        node("Sigmoid", ["logits"], "scores"),
        node("Concat", ["boxes", "scores"], "y", axis=1),
    ]
    return net(nodes, {"w": normal(inputs, 4, scale=100), "v": normal(inputs, 3)}, ["N", inputs])


def runs(x: Given) -> CalibrationRuns:
    """What passes may ask of samples."""
    return CalibrationRuns({"x": x} if isinstance(x, np.ndarray) else x)


def feeds(x: np.ndarray | Arrays) -> dict[str, np.ndarray]:
    """The inputs of one run; a single array is `x`'s."""
    return {"x": x} if isinstance(x, np.ndarray) else dict(x)


def problems_of(
    source: onnx.ModelProto | Model,
    x: Given | None,
    *,
    reference: Model | None = None,
    selection: LayerFilter | None = None,
    schedule: Schedule | None = None,
) -> tuple[Problems, Model]:
    """The problems of a model, and the model that answers change."""
    model = source if isinstance(source, Model) else Model.load(source)
    made = Problems(
        Rewriter(model.graph),
        context(model, x, reference),
        selection or LayerFilter(),
        schedule or Schedule(),
    )
    return made, model


def rewritten(
    source: onnx.ModelProto | Model, x: Given | None, *passes: Pass | str
) -> tuple[Model, list[StepReport]]:
    """The model after `passes`, run by the manager on calibration samples, kept in any case."""
    model = source if isinstance(source, Model) else Model.load(source)
    text = ",".join(map(str, passes))
    made = Context(evaluate=evaluate, calibration=None if x is None else runs(x))
    return PassManager.parse(text).run(model, made, policy=FORCE, reproducers=REPRODUCERS)


def outputs(model: Model | onnx.ModelProto, x: np.ndarray | Arrays) -> dict[str, np.ndarray]:
    """Outputs of `model` in onnxruntime, optimised as users run it."""
    loaded = model if isinstance(model, Model) else Model.load(model)
    with open_session(loaded) as session:
        return dict(session.run(feeds(x)))


def output_error(
    a: Model | onnx.ModelProto, b: Model | onnx.ModelProto, x: np.ndarray | Arrays, name: str = "y"
) -> float:
    """E‖y − y'‖² / E‖y‖²."""
    ref, new = (np.asarray(outputs(m, x)[name], np.float64) for m in (a, b))
    return float(np.square(ref - new).sum() / np.square(ref).sum())


def weights_of(model: Model | onnx.ModelProto) -> dict[str, np.ndarray]:
    """The canonical weight of each layer, by the layer's name."""
    loaded = model if isinstance(model, Model) else Model.load(model)
    return {layer.name: layer.canonical() for layer in weight_layers(loaded.graph)[0]}


def whats(reports: Sequence[StepReport]) -> list[str]:
    """What was done, in words."""
    return [change.what for report in reports for change in report.changes]


def whys(reports: Sequence[StepReport]) -> list[str]:
    """What was declined, in words."""
    return [skip.why for report in reports for skip in report.skips]


# ------------------------------------------------------------------- problems without a run


def matmul_problem(
    rows: int = 20, columns: int = 16, *, data: bool = True, seed: int = 0, dead: int = 0
) -> Problem:
    """Y = W·x with correlated x, of which the first `dead` are always zero."""
    source = net(
        [node("MatMul", ["x", "w"], "y")], {"w": normal(columns, rows, seed=seed)}, ["N", columns]
    )
    return problem_of(source, moments_of(columns, seed, dead) if data else None)


def moments_of(columns: int, seed: int, dead: int = 0) -> np.ndarray:
    """H of correlated inputs, of which the first `dead` are always zero."""
    x = samples(300, columns, seed=seed).astype(np.float64)
    x[:, :dead] = 0
    return x.T @ x / len(x)


def grouped_problem(*, data: bool = True) -> Problem:
    """Four groups, each with moments of its own."""
    source = net(
        [node("Conv", ["x", "w"], "y", group=4)], {"w": normal(12, 2, 3, 3)}, ["N", 8, 5, 5]
    )
    return problem_of(source, *(moments_of(18, seed) if data else None for seed in range(4)))


def problem_of(source: onnx.ModelProto, *seconds: np.ndarray | None) -> Problem:
    """The problem of a one-layer model, with H of each group given."""
    (layer,), _ = weight_layers(Model.load(source).graph)
    return Problem((layer,), tuple(Metric(second, layer.columns) for second in seconds))


def decoded(problem: Problem, form: TableSpec, found: Codebook) -> np.ndarray:
    """What is stored, read as the file's reader does."""
    stored = codebook_for_layer(problem.layer, found.stages, form.per, form.width)
    problem.layer.holder.values = stored.dense()
    return problem.layer.canonical().astype(np.float64)

"""What the tests of quantize-int8 share: one-node nets on integers, and what runs them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from fake_stopwatch import FakeStopwatch
from layer_nets import feeds

from onnxslim.graph.ir import node_label
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.quantization.clusters import Clusters, clusters_of
from onnxslim.quantization.grid import S8_SYMMETRIC, U8, GridForm
from onnxslim.quantization.layer_codes import nearest_codes
from onnxslim.quantization.qdq import QdqPlan, quantized_copy
from onnxslim.quantization.weight_scales import WeightForm
from onnxslim.report import Latency, LatencyPair
from onnxslim.runtime.session import open_session
from onnxslim.services.stopwatch import Kernel

# recurrent layers read u8, whose products with 8 bits saturate on some processors
_REDUCED = WeightForm(replace(S8_SYMMETRIC, reduced=True))
Times = Mapping[tuple[str, bool], float]


def loaded(source: onnx.ModelProto) -> tuple[Model, Clusters]:
    """A model with its shapes, and its clusters."""
    model = Model.load(source)
    infer_shapes(model)
    return model, clusters_of(model.graph)


def values_of(model: Model, x: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """What inner tensors hold on `x`."""
    copy = model.clone()
    made = {tensor.name: tensor for node in copy.graph.nodes for tensor in node.outputs}
    known = {tensor.name for tensor in copy.graph.outputs}
    copy.graph.outputs += [made[name] for name in names if name in made and name not in known]
    with open_session(copy, optimise=False) as session:
        return {**session.run(feeds(x)), **feeds(x)}


def plan_of(
    model: Model,
    clusters: Clusters,
    x: np.ndarray,
    chosen: Sequence[str] | None = None,
    form: GridForm = U8,
) -> QdqPlan:
    """Grids over all values that `x` leads to, and weights to nearest."""
    names = {t.name for cluster in clusters.all for t in (*cluster.reads, *cluster.makes)}
    values = values_of(model, x, sorted(names))
    grids = {n: form.over(float(values[n].min()), float(values[n].max())) for n in names}
    for cluster in clusters.all:
        if cluster.rule.fixed is not None:
            own = replace(form, symmetric=False)
            grids.update({t.name: own.over(*cluster.rule.fixed(own)) for t in cluster.makes})
    picked = [cluster.name for cluster in clusters.all] if chosen is None else chosen
    return QdqPlan(
        frozenset(picked), grids, nearest_codes(model, clusters, WeightForm()), form, _REDUCED
    )


def on_integers(
    source: onnx.ModelProto,
    x: np.ndarray,
    chosen: Sequence[str] | None = None,
    form: GridForm = U8,
) -> Model:
    """`source` with the chosen clusters, or all, as integer kernels."""
    model, clusters = loaded(source)
    return quantized_copy(model, plan_of(model, clusters, x, chosen, form))


def kernels(model: Model) -> list[str]:
    """The operators that onnxruntime runs, layouts left out."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 4
        ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    return [node.op_type for node in graph.node if node.op_type not in _LAYOUT]


_LAYOUT = ("ReorderInput", "ReorderOutput")


class ScriptedStopwatch(FakeStopwatch):
    """Says of every operator what it takes, in float and on integers.

    Args:
        times: milliseconds by operator and whether it is on integers; others take 0.01.
        faster: how many times as fast as float any quantized model is.
    """

    def __init__(self, times: Times | None = None, faster: float = 2.0) -> None:
        super().__init__()
        self.times, self.faster = dict(times or {}), faster
        self.profiled = self.paired = 0

    def profile(self, model: Model) -> Sequence[Kernel]:
        self.profiled += 1
        found = []
        for node in model.graph.nodes:
            makers = [tensor.inputs[0].op for tensor in node.inputs if tensor.inputs]
            if all(not t.inputs for t in node.inputs) and node.op == "DequantizeLinear":
                continue  # weights are folded
            readers = {reader.op for tensor in node.outputs for reader in tensor.outputs}
            is_fused = bool(readers & {"QuantizeLinear", "Relu", "Clip"})
            on_integers = "DequantizeLinear" in makers and is_fused
            ms = self.times.get((node.op, on_integers), 0.01)
            found.append(Kernel(node_label(node), node.op, False, 100, ms))
        return found

    def pair(self, before: Model, after: Model) -> LatencyPair:
        self.paired += 1
        a, b = Latency(1.0, 1.0, 1.0, 9), Latency(1 / self.faster, 0.0, 1.0, 9)
        return LatencyPair(a, b, self.faster, self.faster - 0.01, self.faster + 0.01)


__all__ = ["ScriptedStopwatch", "kernels", "loaded", "on_integers", "plan_of", "values_of"]

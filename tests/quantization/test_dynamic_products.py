"""Products whose ranges are found at run time: the form, its kernels, and how near it stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from layer_nets import feeds, net, node, normal, output_error, samples
from qdq_nets import kernels

from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.quantization.clusters import Clusters, clusters_of, worth_observing
from onnxslim.quantization.dynamic_products import objection_to_dynamic
from onnxslim.quantization.grid import GridForm
from onnxslim.quantization.layer_codes import nearest_codes
from onnxslim.quantization.qdq import QdqPlan, quantized_copy
from onnxslim.quantization.rules import ActivationRanges, KernelKind
from onnxslim.quantization.weight_scales import PerTensor, WeightForm
from onnxslim.runtime.session import open_session

DYNAMIC = ActivationRanges.DYNAMIC
# 7 bits: nothing saturates on any processor
REDUCED = WeightForm(GridForm(np.dtype(np.int8), symmetric=True, reduced=True))
UNSIGNED = WeightForm(GridForm(np.dtype(np.uint8), symmetric=True, reduced=True))
X = samples(6, 5, 16)
WEIGHTS = {"w": normal(16, 8), "v": normal(16, 6, seed=2), "b": normal(8, seed=3)}


def loaded(source: onnx.ModelProto) -> tuple[Model, Clusters]:
    model = Model.load(source)
    infer_shapes(model)
    return model, clusters_of(model.graph, DYNAMIC)


def on_integers(source: onnx.ModelProto, form: WeightForm = REDUCED) -> Model:
    """All products and tables of a net, rounded to nearest."""
    model, clusters = loaded(source)
    chosen = frozenset(c.name for c in clusters.all if c.rule.kind.is_between_floats)
    plan = QdqPlan(chosen, {}, nearest_codes(model, clusters, form), ranges=DYNAMIC)
    return quantized_copy(model, plan)


def product(
    op: str = "MatMul", shape: Sequence[int | str] = ("N", 5, 16), **attrs: object
) -> onnx.ModelProto:
    inputs = ["x", "w", "b"] if op == "Gemm" else ["x", "w"]
    return net([node(op, inputs, "y", **attrs)], WEIGHTS, shape)


@pytest.mark.parametrize("form", [REDUCED, UNSIGNED, WeightForm(REDUCED.grid, PerTensor())])
@pytest.mark.parametrize(
    "source",
    [
        product(),
        product("Gemm", ("N", 16)),
        product("Gemm", ("N", 16), alpha=0.5),
        net([node("Gemm", ["x", "w"], "y", transB=1)], {"w": normal(8, 16)}, ["N", 16]),
        net([node("MatMul", ["x", "w"], "y")], WEIGHTS, ["N", 16]),
    ],
)
def test_a_product_stays_near(source: onnx.ModelProto, form: WeightForm) -> None:
    ndim = len(source.graph.input[0].type.tensor_type.shape.dim)
    x = X if ndim == 3 else X.reshape(-1, 16)
    model = on_integers(source, form)
    onnx.checker.check_model(model.to_proto(), full_check=True)
    assert "MatMulInteger" in {item.op for item in model.graph.nodes}
    assert 0 < output_error(source, model, x) < 0.03**2


def test_onnxruntime_runs_it_as_one_kernel_with_the_bias_inside() -> None:
    nodes = [node("MatMul", ["x", "w"], "p"), node("Add", ["b", "p"], "y")]
    model = on_integers(net(nodes, WEIGHTS, ["N", 5, 16]))
    assert kernels(model) == ["DynamicQuantizeMatMul"]


def test_products_that_read_one_tensor_share_its_codes() -> None:
    nodes = [
        node("MatMul", ["x", "w"], "p"),
        node("MatMul", ["x", "v"], "q"),
        node("Concat", ["p", "q"], "y", axis=-1),
    ]
    model = on_integers(net(nodes, WEIGHTS, ["N", 5, 16]))
    found = Counter(item.op for item in model.graph.nodes)
    assert found["DynamicQuantizeLinear"] == 1
    assert kernels(model).count("MatMulIntegerToFloat") == 2


def test_the_range_is_that_of_the_input() -> None:
    source = product()
    model = on_integers(source)
    for size in (1e-3, 1e3):
        assert output_error(source, model, size * X) < 0.03**2


def test_rows_of_a_table_are_picked_from_integers() -> None:
    table = normal(40, 16)
    graph = onnx.helper.make_graph(
        [node("Gather", ["t", "x"], "y")],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.INT64, ["N", 3])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 3, 16])],
        [onnx.numpy_helper.from_array(table, "t")],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    source = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    model = on_integers(source)
    codes = next(t for n in model.graph.nodes for t in n.inputs if t.name.endswith("_codes"))
    assert codes.values.dtype == np.int8
    with open_session(model) as session:
        found = session.run(feeds(np.array([[0, 7, 39]])))["y"][0]
    steps = np.abs(table).max(axis=1)[[0, 7, 39], None] / 127
    assert (np.abs(found - table[[0, 7, 39]]) <= 0.501 * steps).all()


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([node("Gemm", ["x", "w", "b"], "y", beta=0.5)], "beta is not 1"),
        ([node("Gemm", ["z", "w", "b"], "y", transA=1)], "no matrix that multiplies"),
        ([node("MatMul", ["x", "x"], "y")], "computed at run time"),
    ],
)
def test_other_products_stay_as_they_are(nodes: Sequence[onnx.NodeProto], why: str) -> None:
    model = Model.load(net(nodes, {**WEIGHTS, "z": normal(16, 16)}, [16, 16]))
    infer_shapes(model)
    assert why in (objection_to_dynamic(model.graph.nodes[0]) or "")


def test_a_table_that_others_read_stays_float() -> None:
    nodes = [
        node("ArgMax", ["x"], "i", axis=-1, keepdims=0),
        node("Gather", ["w", "i"], "r"),
        node("MatMul", ["x", "w"], "m"),
        node("Concat", ["r", "m"], "y", axis=-1),
    ]
    _, clusters = loaded(net(nodes, WEIGHTS, ["N", 5, 16]))
    kinds = {cluster.name: cluster.rule.kind for cluster in clusters.all}
    assert kinds["m"] is KernelKind.DYNAMIC
    assert KernelKind.TABLE not in kinds.values()


def test_beside_products_only_layers_and_what_follows_them_is_worth_integers() -> None:
    weights = {**WEIGHTS, "k": normal(4, 4, 3), "s": normal(16, 16, seed=4)}
    nodes = [
        node("Conv", ["x", "k"], "c", pads=[1, 1]),
        node("Add", ["c", "c"], "d"),
        node("MatMul", ["d", "s"], "m"),
        node("Add", ["m", "d"], "y"),
    ]
    model, clusters = loaded(net(nodes, weights, ["N", 4, 16]))
    assert worth_observing(clusters, DYNAMIC) == {"c", "d", "m"}
    everything = clusters_of(model.graph)
    assert worth_observing(everything, ActivationRanges.STATIC) == {"c", "d", "m", "y"}

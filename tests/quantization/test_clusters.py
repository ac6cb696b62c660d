from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from layer_nets import net, node, normal, output_error, samples
from qdq_nets import kernels, loaded, on_integers
from recurrent_nets import recurrent_net

from onnxslim.pipeline.layer_filter import LayerFilter
from onnxslim.quantization.clusters import clusters_of
from onnxslim.quantization.grid import S8, S8_SYMMETRIC, U8, GridForm
from onnxslim.quantization.rules import _RULES, ActivationRanges, KernelKind, absorbed_interval
from support import parse

MAP = [2, 8, 6, 6]
INT64 = np.int64


def ints(*values: int) -> np.ndarray:
    return np.array(values, INT64)


def one(
    op: str,
    shape: Sequence[int] = MAP,
    weights: Mapping[str, np.ndarray] | None = None,
    opset: int = 17,
    more: Sequence[str] = (),
    **attrs: object,
) -> onnx.ModelProto:
    """A net of one operator that reads `x`, `more`, and constants in alphabetical order."""
    weights = weights or {}
    inputs = ["x", *more, *sorted(weights)]
    return net([node(op, inputs, "y", **attrs)], weights, shape, opset=opset)


def two_outputs(op: str, **attrs: object) -> onnx.ModelProto:
    nodes = [onnx.helper.make_node(op, ["x", "s"], ["y", "z"], **attrs)]
    return net(nodes, {"s": ints(3, 5)}, MAP, outputs=("y", "z"))


def resized(mode: str = "nearest") -> onnx.ModelProto:
    weights = {"s": np.array([1, 1, 2, 2], np.float32)}
    return net([node("Resize", ["x", "", "s"], "y", mode=mode)], weights, MAP)


FIELD = {"w": normal(8, 8, 3, 3, scale=0.1), "wb": normal(8)}
TABLE: dict[str, onnx.ModelProto] = {
    "Conv": one("Conv", weights=FIELD),
    "Conv depthwise": one("Conv", weights={"w": normal(8, 1, 3, 3)}, group=8),
    "Conv grouped": one("Conv", weights={"w": normal(8, 4, 3, 3)}, group=2),
    "Conv of one axis": one("Conv", [2, 8, 9], {"w": normal(8, 8, 3)}),
    "Gemm": one("Gemm", [3, 16], {"w": normal(16, 5), "wb": normal(5)}),
    "Gemm transB": one("Gemm", [3, 16], {"w": normal(5, 16), "wb": normal(5)}, transB=1),
    "MatMul": one("MatMul", [3, 16], {"w": normal(16, 5)}),
    "MatMul stacked": one("MatMul", [2, 3, 16], {"w": normal(16, 5)}),
    "MatMul of two": net(
        [node("Transpose", ["x"], "t", perm=[0, 2, 1]), node("MatMul", ["x", "t"], "y")],
        {},
        [2, 3, 16],
    ),
    "Add": one("Add", more=["x"]),
    "Add a constant": one("Add", weights={"c": normal(8, 1, 1)}),
    "Mul": one("Mul", more=["x"]),
    "Mul by a number": one("Mul", weights={"c": np.array(0.5, np.float32)}),
    "Concat": one("Concat", more=["x"], axis=1),
    "AveragePool": one("AveragePool", kernel_shape=[2, 2]),
    "BatchNormalization": one(
        "BatchNormalization",
        weights={"a": normal(8), "b": normal(8), "c": normal(8), "d": 1 + normal(8) ** 2},
    ),
    "HardSigmoid": one("HardSigmoid", alpha=0.2),
    "GlobalAveragePool": one("GlobalAveragePool"),
    "Sigmoid": one("Sigmoid"),
    "LeakyRelu": one("LeakyRelu", alpha=0.1),
    "LSTM": recurrent_net(),
    "Softmax": net([node("Softmax", ["x"], "p", axis=1), node("Mul", ["p", "x"], "y")], {}, MAP),
    "MaxPool": one("MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
    "Resize": resized(),
    "DepthToSpace": one("DepthToSpace", blocksize=2),
    "Expand": one("Expand", [1, 8, 1, 1], {"s": ints(1, 8, 3, 3)}),
    "Flatten": one("Flatten"),
    "Gather": one("Gather", weights={"i": ints(1, 0)}, axis=1),
    "Reshape": one("Reshape", weights={"s": ints(2, -1)}),
    "Slice": one("Slice", weights={"a": ints(1), "b": ints(5), "c": ints(1)}),
    "Split": two_outputs("Split", axis=1),
    "Squeeze": one("Squeeze", [1, 8, 4], {"a": ints(0)}),
    "Tile": one("Tile", weights={"r": ints(1, 1, 2, 1)}),
    "Transpose": one("Transpose", perm=[0, 2, 3, 1]),
    "Unsqueeze": one("Unsqueeze", weights={"a": ints(0)}),
}


def shape_of(source: onnx.ModelProto) -> list[int]:
    return [dim.dim_value for dim in source.graph.input[0].type.tensor_type.shape.dim]


@pytest.mark.parametrize("name", TABLE)
def test_what_the_table_promises_onnxruntime_does(name: str) -> None:
    source = TABLE[name]
    x = samples(*shape_of(source))
    _, clusters = loaded(source)
    model = on_integers(source, x)
    found, promised = set(kernels(model)), {c.rule.kernel or c.node.op for c in clusters.all}
    # what is left is what goes in, what comes out, and changes of layout
    assert promised <= found <= promised | {"QuantizeLinear", "DequantizeLinear", "Transpose"}
    assert output_error(source, model, x) < 2e-3


def test_every_operator_of_the_table_is_tried() -> None:
    assert set(_RULES) == {name.split()[0] for name in TABLE}


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (one("Softmax", [3, 8]), "is an answer"),
        (one("HardSigmoid", [3, 8]), "no map with a known number of channels"),
        (one("Tanh"), "no integer kernel for Tanh"),
        (resized("linear"), "the nearest"),
        (one("Gemm", [3, 16], {"w": normal(16, 5)}, alpha=0.5), "no alpha or beta"),
        (one("Gemm", [16, 3], {"w": normal(16, 5)}, transA=1), "no transposed input"),
        (one("MatMul", [2, 3, 16], {"w": normal(2, 16, 5)}), "a stack of matrices"),
        (one("Gemm", [3, 16], {"w": normal(16, 5), "wb": normal(3, 5)}), "for each output"),
        (one("Gemm", [3, 16], {"w": np.full((16, 5), np.nan, np.float32)}), "not finite"),
        (
            one("ConvTranspose", weights={"w": normal(8, 4, 2, 2)}, strides=[2, 2]),
            "no integer kernel for ConvTranspose",
        ),
    ],
)
def test_what_has_no_integer_kernel_is_left_alone_with_the_reason(
    source: onnx.ModelProto, why: str
) -> None:
    _, clusters = loaded(source)
    assert clusters.all == ()
    (skip,) = clusters.skips
    assert skip.node == "y"
    assert why in skip.why


def test_a_model_of_another_type_is_left_alone() -> None:
    source = net(
        [node("Conv", ["x", "w"], "y")],
        {"w": normal(4, 8, 1, 1).astype(np.float16)},
        MAP,
        dtype=onnx.TensorProto.FLOAT16,
    )
    _, clusters = loaded(source)
    assert clusters.all == ()
    assert "float16, not float32" in clusters.skips[0].why


def test_integers_that_a_graph_computes_with_are_nobodys_business() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (int64[2] y) {
            s = Shape (x)
            y = Add (s, s)
        }"""
    )
    _, clusters = loaded(source)
    assert clusters.all == ()
    assert clusters.skips == ()


@pytest.mark.parametrize("ranges", ActivationRanges)
def test_rows_of_a_table_of_embeddings_become_integers(ranges: ActivationRanges) -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (int64[N] i) => (float[N, 2] y) <float[3, 2] table = {1, 2, 3, 4, 5, 6}> {
            y = Gather (table, i)
        }"""
    )
    model, _ = loaded(source)
    (cluster,) = clusters_of(model.graph, ranges).all
    assert cluster.rule.kind is KernelKind.TABLE


def test_a_table_that_others_read_is_moved_in_float() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (int64[N] i) => (float[N, 2] y, float[2, 3] z)
            <float[3, 2] table = {1, 2, 3, 4, 5, 6}> {
            y = Gather (table, i)
            z = Transpose (table)
        }"""
    )
    _, clusters = loaded(source)
    assert clusters.all == ()
    assert clusters.skips[0].why == "what it moves is constant"


# ------------------------------------------------------------------- activations


@pytest.mark.parametrize("form", [U8, S8], ids=["u8", "s8"])
def test_a_relu_behind_a_layer_is_the_end_of_a_range(form: GridForm) -> None:
    source = net([node("Conv", ["x", "w", "wb"], "h"), node("Relu", ["h"], "y")], FIELD, MAP)
    x = samples(*MAP)
    _, clusters = loaded(source)
    (cluster,) = clusters.all
    assert (cluster.name, cluster.interval) == ("h", (0.0, np.inf))
    model = on_integers(source, x, form=form)
    assert not {"Relu", "Conv"} & set(kernels(model))
    assert output_error(source, model, x) < 2e-3


def test_a_clip_to_six_is_the_end_of_a_range() -> None:
    bounds = {"lo": np.array(0, np.float32), "hi": np.array(6, np.float32)}
    source = net(
        [node("Conv", ["x", "w"], "h"), node("Clip", ["h", "lo", "hi"], "y")],
        {"w": normal(8, 8, 1, 1, scale=3), **bounds},
        MAP,
    )
    x = samples(*MAP)
    _, clusters = loaded(source)
    (cluster,) = clusters.all
    assert cluster.interval == (0.0, 6.0)
    model = on_integers(source, x)
    assert "Clip" not in kernels(model)
    assert output_error(source, model, x) < 5e-3


@pytest.mark.parametrize(("low", "high"), [(0.5, 1.0), (-2.0, -1.0)])
def test_a_clip_that_leaves_out_zero_stays(low: float, high: float) -> None:
    bounds = {"lo": np.array(low, np.float32), "hi": np.array(high, np.float32)}
    source = net([node("Clip", ["x", "lo", "hi"], "y")], bounds, MAP)
    model, _ = loaded(source)
    assert absorbed_interval(model.graph.nodes[0]) is None


@pytest.mark.parametrize(
    "nodes",
    [
        # somebody else reads what the Relu does
        [node("Conv", ["x", "w"], "h"), node("Relu", ["h"], "r"), node("Add", ["h", "r"], "y")],
        # what moves integers has no range of its own
        [node("MaxPool", ["x"], "h", kernel_shape=[2, 2]), node("Relu", ["h"], "y")],
    ],
)
def test_a_relu_that_cannot_be_a_range_stays_a_float_node(nodes: list[onnx.NodeProto]) -> None:
    _, clusters = loaded(net(nodes, {"w": normal(8, 8, 1, 1)}, MAP))
    assert all(cluster.activation is None for cluster in clusters.all)
    assert any("Relu" in skip.why for skip in clusters.skips)


def test_a_relu_behind_a_graph_output_stays() -> None:
    source = net(
        [node("Conv", ["x", "w"], "h"), node("Relu", ["h"], "y")],
        {"w": normal(8, 8, 1, 1)},
        MAP,
        outputs=("h", "y"),
    )
    _, clusters = loaded(source)
    assert clusters.all[0].activation is None
    assert {tensor.name for tensor in clusters.outside} == {"h", "y"}


# ------------------------------------------------------------------- Softmax


@pytest.mark.parametrize("form", [U8, S8, S8_SYMMETRIC], ids=["u8", "s8", "s8 symmetric"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("opset", [13, 17])
def test_a_softmax_on_integers_can_be_quite_sure(form: GridForm, axis: int, opset: int) -> None:
    """The kernel neither rounds its factor nor saturates: one and zero must come out."""
    nodes = [node("Softmax", ["x"], "p", axis=axis), node("MatMul", ["p", "w"], "y")]
    x = np.zeros((5, 5), np.float32)
    x[np.arange(5), [3, 0, 4, 1, 2]] = 60.0
    x[0, 1] = 60.0 if axis else 0.0  # not quite sure
    source = net(nodes, {"w": np.eye(5, dtype=np.float32)}, [5, 5], opset=opset)
    model = on_integers(source, x, form=form)
    assert "QLinearSoftmax" in kernels(model)
    assert output_error(source, model, x) < 1e-4


def test_a_clip_behind_a_softmax_is_no_part_of_its_range() -> None:
    bounds = {"lo": np.array(0, np.float32), "hi": np.array(0.1, np.float32)}
    nodes = [
        node("Softmax", ["x"], "p"),
        node("Clip", ["p", "lo", "hi"], "c"),
        node("Mul", ["c", "x"], "y"),
    ]
    source = net(nodes, bounds, MAP)
    x = samples(*MAP)
    _, clusters = loaded(source)
    assert clusters.all[0].activation is None
    assert output_error(source, on_integers(source, x), x) < 2e-3


def test_a_softmax_whose_result_only_moves_is_an_answer() -> None:
    nodes = [
        node("Softmax", ["x"], "p"),
        node("Transpose", ["p"], "t", perm=[0, 2, 3, 1]),
        node("Identity", ["t"], "y"),
    ]
    _, clusters = loaded(net(nodes, {}, MAP))
    assert "Softmax" not in {cluster.node.op for cluster in clusters.all}
    assert "is an answer" in {skip.node: skip.why for skip in clusters.skips}["p"]


# ------------------------------------------------------------------- names


def test_patterns_and_names_with_brackets_find_clusters() -> None:
    source = net(
        [
            node("Sigmoid", ["x"], "a[0]"),
            node("Sigmoid", ["a[0]"], "b"),
            node("Add", ["b", "x"], "y"),
        ],
        {},
        MAP,
    )
    _, clusters = loaded(source)
    wanted = LayerFilter(only=("a[0]", "y*"))
    assert {c.name for c in clusters.all if wanted.accepts(c.name)} == {"a[0]", "y"}
    kinds = {cluster.name: cluster.rule.kind for cluster in clusters.all}
    assert set(kinds.values()) == {KernelKind.PLAIN}

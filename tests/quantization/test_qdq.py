from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from layer_nets import net, node, normal, output_error, outputs, samples
from onnx import numpy_helper
from qdq_nets import kernels, loaded, on_integers, plan_of

from onnxslim.graph.rewrite import Rewriter
from onnxslim.quantization.biases import with_bias
from onnxslim.quantization.grid import S8, S8_SYMMETRIC, U8, Grid, GridForm
from onnxslim.quantization.kernel_forms import sums_to_adds
from onnxslim.quantization.layer_codes import nearest_codes
from onnxslim.quantization.qdq import QdqPlan, quantize, quantized_copy
from onnxslim.quantization.weight_scales import WeightForm
from support import parse

MAP = [2, 8, 6, 6]
X = samples(*MAP)


def conv(name: str, x: str, y: str) -> onnx.NodeProto:
    return node("Conv", [x, name, f"{name}_b"], y, pads=[1, 1, 1, 1])


def field(name: str, seed: int = 1) -> dict[str, np.ndarray]:
    weight = normal(8, 8, 3, 3, seed=seed, scale=0.1)
    return {name: weight, f"{name}_b": normal(8, seed=seed + 1)}


def counts(model: object) -> Counter[str]:
    return Counter(n.op for n in model.graph.nodes)  # type: ignore[attr-defined]


RESIDUAL = net(
    [
        conv("v", "x", "a"),
        node("Relu", ["a"], "b"),
        conv("w", "b", "c"),
        node("Add", ["c", "b"], "d"),
        node("Relu", ["d"], "e"),
        node("MaxPool", ["e"], "y", kernel_shape=[2, 2]),
    ],
    {**field("v"), **field("w", 3)},
    MAP,
)


def test_a_residual_block_becomes_integer_kernels_with_one_quantization_each_way() -> None:
    model = on_integers(RESIDUAL, X)
    onnx.checker.check_model(model.to_proto(), full_check=True)
    found = Counter(kernel.removeprefix("Nhwc") for kernel in kernels(model))
    del found["Transpose"]
    assert found == {
        "QuantizeLinear": 1,
        "QLinearConv": 2,
        "QLinearAdd": 1,
        "MaxPool": 1,
        "DequantizeLinear": 1,
    }
    assert output_error(RESIDUAL, model, X) < 2e-3


def test_what_the_file_holds_is_a_quarter_and_of_the_types_that_were_promised() -> None:
    model = on_integers(RESIDUAL, X)
    types = {
        tensor.name: numpy_helper.to_array(tensor).dtype
        for tensor in model.to_proto().graph.initializer
    }
    assert types["v_codes"] == np.int8
    assert types["v_b_codes"] == np.int32
    assert not [name for name in types if name in ("v", "v_b", "w", "w_b")]


def test_tensors_keep_their_names_for_whoever_reads_them() -> None:
    model = on_integers(RESIDUAL, X)
    names = {tensor.name for n in model.graph.nodes for tensor in n.outputs}
    assert {"b", "c", "e", "y"} <= names
    assert [tensor.name for tensor in model.graph.outputs] == ["y"]


def test_one_tensor_is_quantized_once_for_all_its_readers() -> None:
    source = net(
        [conv("v", "x", "a"), conv("w", "x", "b"), node("Add", ["a", "b"], "y")],
        {**field("v"), **field("w", 3)},
        MAP,
    )
    model = on_integers(source, X)
    assert counts(model)["QuantizeLinear"] == 4  # x, a, b, y
    assert Counter(kernels(model))["QuantizeLinear"] == 1


def test_float_nodes_that_read_a_float_tensor_go_on_reading_it() -> None:
    source = net(
        [conv("v", "x", "a"), node("Tanh", ["x"], "t"), node("Add", ["a", "t"], "y")],
        field("v"),
        MAP,
    )
    model = on_integers(source, X, ["a"])
    tanh = next(n for n in model.graph.nodes if n.op == "Tanh")
    assert tanh.inputs[0].name == "x"
    assert output_error(source, model, X) < 2e-3


def test_between_float_nodes_there_is_no_pair() -> None:
    model = on_integers(RESIDUAL, X, ["a"])
    assert counts(model)["QuantizeLinear"] == 2
    assert Counter(kernels(model))["QLinearConv"] == 1


def test_what_moves_integers_stays_on_the_grid_of_its_input() -> None:
    source = net(
        [
            conv("v", "x", "a"),
            node("Transpose", ["a"], "t", perm=[0, 2, 3, 1]),
            node("Reshape", ["t", "s"], "y"),
        ],
        {**field("v"), "s": np.array([2, -1])},
        MAP,
    )
    model = on_integers(source, X)
    scales = {
        n.outputs[0].name: float(n.inputs[1].values)
        for n in model.graph.nodes
        if n.op == "QuantizeLinear"
    }
    assert scales["a_quantized"] == scales["t_quantized"] == scales["y_quantized"]


def test_both_parts_of_a_split_are_read_as_integers() -> None:
    nodes = [
        onnx.helper.make_node("Split", ["x", "s"], ["p", "q"], axis=1),
        node("Concat", ["q", "p"], "y", axis=1),
    ]
    source = net(nodes, {"s": np.array([3, 5])}, MAP)
    model = on_integers(source, X)
    found = kernels(model)
    assert Counter(found)["DequantizeLinear"] == 1
    assert {"Split", "QLinearConcat"} <= set(found)
    assert output_error(source, model, X) < 1e-3


def test_a_split_whose_parts_are_returned_keeps_their_names() -> None:
    nodes = [onnx.helper.make_node("Split", ["x", "s"], ["p", "q"], axis=1)]
    source = net(nodes, {"s": np.array([3, 5])}, MAP, outputs=("p", "q"))
    model = on_integers(source, X)
    assert [tensor.name for tensor in model.graph.outputs] == ["p", "q"]
    for name in ("p", "q"):
        assert output_error(source, model, X, name) < 1e-3


def test_a_shared_weight_is_stored_once() -> None:
    source = net([conv("v", "x", "a"), conv("v", "a", "y")], field("v"), MAP)
    model = on_integers(source, X)
    stored = [t for t in model.to_proto().graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert len([t for t in stored if len(t.dims) == 4]) == 1
    assert Counter(kernels(model))["QLinearConv"] == 2
    assert output_error(source, model, X) < 2e-3


def test_the_batch_may_stay_open() -> None:
    source = net([conv("v", "x", "y")], field("v"), ["N", 8, 6, 6])
    model = on_integers(source, X)
    assert outputs(model, samples(5, 8, 6, 6))["y"].shape == (5, 8, 6, 6)


def test_bodies_read_floats_under_the_old_name() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[2, 4] x, bool c) => (float[2, 4] y)
        <float[4, 4] w = {1,0,0,0, 0,2,0,0, 0,0,3,0, 0,0,0,4}> {
            h = MatMul (x, w)
            y = If (c) <
                then_branch = a () => (float[2, 4] t) { t = Neg (h) },
                else_branch = b () => (float[2, 4] e) { e = Identity (h) }
            >
        }"""
    )
    model, clusters = loaded(source)
    grids = {"x": U8.over(-3, 3), "h": U8.over(-12, 12)}
    plan = QdqPlan(frozenset({"h"}), grids, nearest_codes(model, clusters, WeightForm()))
    made = quantized_copy(model, plan)
    x = {"x": samples(2, 4), "c": np.array(True)}
    assert "QLinearMatMul" in kernels(made)
    np.testing.assert_allclose(outputs(made, x)["y"], outputs(source, x)["y"], atol=0.15)


# ------------------------------------------------------------------- biases


def test_a_bias_counts_in_steps_of_input_times_weight() -> None:
    grid = Grid.over([-1, -2], [1, 2], np.int8, symmetric=True, axis=0)
    codes = grid.quantized(np.array([[1.0, -0.5], [2.0, 0.3]]))
    bias = np.array([0.37, -4.2])
    kept, same, steps, own = with_bias(codes, grid, bias, 0.02)
    assert kept is codes
    assert same is grid
    assert steps.dtype == np.int32
    np.testing.assert_allclose(own.scale, 0.02 * grid.scale)
    np.testing.assert_allclose(steps * own.scale, bias, atol=float(own.scale.max()) / 2)


def test_a_row_of_zeros_leaves_its_bias_exact() -> None:
    grid = Grid.over([0, -2], [0, 2], np.int8, symmetric=True, axis=0)
    codes = grid.quantized(np.array([[0.0, 0.0], [2.0, 0.3]]))
    _, _, steps, own = with_bias(codes, grid, np.array([1e-3, 0.5]), 0.02)
    np.testing.assert_allclose(steps[0] * own.scale[0], 1e-3, rtol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-34])
def test_a_bias_that_is_next_to_nothing_leaves_a_scale_that_is_not_lost(size: float) -> None:
    weight = np.array([[size, -size], [1.0, 0.5]])
    grid = Grid.over(weight.min(axis=1), weight.max(axis=1), np.int8, symmetric=True, axis=0)
    _, moved, steps, own = with_bias(grid.quantized(weight), grid, np.array([1e-37, 0.5]), 1e-3)
    assert np.all(moved.scale >= np.finfo(np.float32).tiny)
    assert np.all(own.scale >= np.finfo(np.float32).tiny)
    np.testing.assert_allclose(steps * own.scale, [0, 0.5], atol=1e-6)


@pytest.mark.parametrize("axis", [0, None])
def test_a_bias_too_large_for_32_bits_makes_the_weight_coarser(axis: int | None) -> None:
    weight = np.full((1, 2), 1e-9) if axis is None else np.array([[1e-9, 1e-9], [1.0, 1.0]])
    most = weight.max() if axis is None else weight.max(axis=1)
    grid = Grid.over(-most, most, np.int8, symmetric=True, axis=axis)
    bias = np.full(len(weight), 1e3)
    codes, moved, steps, own = with_bias(grid.quantized(weight), grid, bias, 1e-3)
    np.testing.assert_allclose(steps * own.scale, bias, rtol=1e-6)
    np.testing.assert_allclose(own.scale, np.float32(1e-3) * moved.scale)
    assert codes.max() <= grid.high


# ------------------------------------------------------------------- canonical forms


def test_a_sum_of_three_becomes_two_adds_and_rounds_as_before() -> None:
    source = net([node("Sum", ["x", "a", "b"], "y")], {"a": normal(8, 1, 1), "b": normal(6)}, MAP)
    model, _ = loaded(source)
    rewriter = Rewriter(model.graph)
    sums_to_adds(rewriter)
    rewriter.result()
    assert counts(model) == {"Add": 2}
    np.testing.assert_array_equal(outputs(source, X)["y"], outputs(model, X)["y"])


# ------------------------------------------------------------------- pooling in float


POOLED = net(
    [
        node("Neg", ["x"], "a"),
        node("MaxPool", ["a"], "b", kernel_shape=[2, 2]),
        conv("v", "b", "c"),
        node("MaxPool", ["c"], "d", kernel_shape=[2, 2]),
        conv("w", "d", "y"),
    ],
    {**field("v"), **field("w", 3)},
    MAP,
)


@pytest.mark.parametrize("base", [U8, S8, S8_SYMMETRIC])
@pytest.mark.parametrize("reduced", [False, True])
def test_a_pool_between_floats_stays_there(base: GridForm, reduced: bool) -> None:
    """Onnxruntime would put QuantizeLinear in front of it; what keeps it there costs nothing."""
    model = on_integers(POOLED, X, ["c", "y"], replace(base, reduced=reduced))
    onnx.checker.check_model(model.to_proto(), full_check=True)
    found = kernels(model)
    assert found[:3] == ["Neg", "MaxPool", "QuantizeLinear"]
    assert "Clip" not in found
    assert counts(model)["Clip"] == 1  # the second pool reads what an integer kernel makes
    assert output_error(POOLED, model, X) < 0.05  # sums of full codes may saturate here


def test_a_pool_on_integers_is_left_alone() -> None:
    model = on_integers(POOLED, X, ["b", "c", "d", "y"])
    assert "Clip" not in counts(model)
    assert kernels(model)[:3] == ["Neg", "QuantizeLinear", "MaxPool"]


MIXED = net(
    [
        conv("v", "x", "a"),
        node("AveragePool", ["a"], "b", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        conv("w", "b", "c"),
        node("Mul", ["c", "a"], "d"),
        node("Relu", ["d"], "e"),
        conv("w", "e", "y"),
    ],
    {**field("v"), **field("w", 3)},
    MAP,
)


def test_what_is_in_float_between_integer_kernels_stays_there() -> None:
    """In the form that onnxruntime takes for an integer kernel, all around it being on integers."""
    layers = ["a", "c", "y"]
    model = on_integers(MIXED, X, layers)
    onnx.checker.check_model(model.to_proto(), full_check=True)
    found = {kernel.removeprefix("Nhwc") for kernel in kernels(model)}
    assert {"AveragePool", "Mul"} <= found
    assert not found & {"QLinearAveragePool", "QLinearMul"}
    assert counts(model)["Clip"] == 2
    assert output_error(MIXED, model, X) < 0.05
    every = kernels(on_integers(MIXED, X))
    assert {"QLinearAveragePool", "QLinearMul"} <= set(every)
    assert "Clip" not in every


def test_the_time_of_what_keeps_a_cluster_in_float_is_the_clusters() -> None:
    model, clusters = loaded(MIXED)
    plan = plan_of(model, clusters, X, ["a", "c"])
    changed = model.clone()
    inserted = quantize(changed, plan)
    (clip,) = [n for n in changed.graph.nodes if n.op == "Clip"]
    assert inserted.clusters[clip.outputs[0].name] == "b"


def test_what_has_a_reader_in_float_needs_no_keeping() -> None:
    model = on_integers(MIXED, X, ["a", "y"])
    assert "Clip" not in counts(model)


def test_a_layer_in_float_between_integer_kernels_stays_there() -> None:
    """Onnxruntime would quantize its weights, as it finds best, when the model is loaded."""
    chain = [conv("v", "x", "a"), conv("w", "a", "b"), conv("v", "b", "y")]
    model = on_integers(net(chain, {**field("v"), **field("w", 3)}, MAP), X, ["a", "y"])
    assert counts(model)["Clip"] == 1
    found = [kernel for kernel in kernels(model) if "Conv" in kernel]
    assert found == ["QLinearConv", "Conv", "QLinearConv"]


def test_a_channel_map_in_float_between_integer_kernels_needs_no_keeping() -> None:
    chain = [conv("v", "x", "a"), node("HardSigmoid", ["a"], "b"), conv("w", "b", "y")]
    model = on_integers(net(chain, {**field("v"), **field("w", 3)}, MAP), X, ["a", "y"])
    assert "Clip" not in counts(model)
    assert "HardSigmoid" in kernels(model)

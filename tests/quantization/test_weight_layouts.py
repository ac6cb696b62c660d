from __future__ import annotations

import numpy as np
import onnx
import pytest
from layer_nets import net, node, normal
from onnx.reference import ReferenceEvaluator

from onnxslim.analysis.layers import WeightLayer, weight_layers
from onnxslim.io.model import Model
from onnxslim.lossy.problems import Problem
from onnxslim.quantization import weight_layouts
from onnxslim.quantization.grid import GridForm
from onnxslim.quantization.weight_layouts import DequantizeFunction
from onnxslim.quantization.weight_rounding import (
    QuantizedWeight,
    Rounding,
    quantized_weight,
)
from onnxslim.quantization.weight_scales import PerBlock, PerChannel, WeightForm
from onnxslim.solvers.metric import Metric

NETS = {
    "MatMul": net([node("MatMul", ["x", "w"], "y")], {"w": normal(64, 6)}, ["N", 64]),
    "MatMul from the left": net([node("MatMul", ["w", "x"], "y")], {"w": normal(6, 64)}, [64, 3]),
    "Gemm, turned": net([node("Gemm", ["x", "w"], "y", transB=1)], {"w": normal(6, 64)}, ["N", 64]),
    "a stack": net([node("MatMul", ["x", "w"], "y")], {"w": normal(3, 64, 6)}, [3, 2, 64]),
    "a vector": net([node("MatMul", ["x", "w"], "y")], {"w": normal(64)}, ["N", 64]),
    "Conv": net([node("Conv", ["x", "w"], "y")], {"w": normal(6, 16, 2, 2)}, ["N", 16, 4, 4]),
    "grouped Conv": net(
        [node("Conv", ["x", "w"], "y", group=2)], {"w": normal(6, 16, 2, 2)}, ["N", 32, 4, 4]
    ),
    "ConvTranspose": net(
        [node("ConvTranspose", ["x", "w"], "y")], {"w": normal(16, 6, 2, 2)}, ["N", 16, 4, 4]
    ),
}
ALL = pytest.mark.parametrize("name", NETS)
MATRICES = ("MatMul", "MatMul from the left", "Gemm, turned")
BITS = pytest.mark.parametrize("bits", [4, 8])
SYMMETRIC = pytest.mark.parametrize("symmetric", [True, False])


def quantized(
    name: str, block: int | None, bits: int = 8, *, symmetric: bool = True
) -> tuple[QuantizedWeight, WeightLayer]:
    (layer,), _ = weight_layers(Model.load(NETS[name]).graph)
    problem = Problem((layer,), tuple(Metric(None, layer.columns) for _ in range(layer.groups)))
    grid = GridForm(np.dtype(np.int8), symmetric=symmetric, bits=bits)
    form = WeightForm(grid, PerBlock(block) if block else PerChannel())
    return quantized_weight(problem, form, Rounding.NEAREST), layer


def expected(weight: QuantizedWeight, layer: WeightLayer) -> np.ndarray:
    return layer.restored(weight.weight)


def run(
    node_: onnx.NodeProto, stored: weight_layouts.StoredCodes, *functions: onnx.FunctionProto
) -> np.ndarray:
    graph = onnx.helper.make_graph(
        [node_],
        "g",
        [],
        [onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in stored.inputs.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("onnxslim", 1)]
    model = onnx.helper.make_model(
        graph, opset_imports=opsets, ir_version=10, functions=list(functions)
    )
    (found,) = ReferenceEvaluator(model).run(None, {})
    return np.asarray(found)


# ----------------------------------------------------------------- DequantizeLinear


@ALL
@BITS
@SYMMETRIC
def test_dequantize_linear_gives_the_weight_in_its_own_layout(
    name: str, bits: int, symmetric: bool
) -> None:
    weight, layer = quantized(name, None, bits, symmetric=symmetric)
    stored = weight_layouts.linear(weight, layer, bits)
    made = onnx.helper.make_node("DequantizeLinear", list(stored.inputs), ["w"])
    made.attribute.extend(onnx.helper.make_attribute(*item) for item in stored.attributes.items())
    np.testing.assert_allclose(run(made, stored), expected(weight, layer), rtol=1e-6)
    assert stored.inputs["codes"].dtype == (np.int8 if bits == 8 else weight_layouts.INT4)


@pytest.mark.parametrize("name", MATRICES)
@BITS
@SYMMETRIC
def test_blocks_of_a_matrix_have_scales_along_the_columns(
    name: str, bits: int, symmetric: bool
) -> None:
    weight, layer = quantized(name, 16, bits, symmetric=symmetric)
    stored = weight_layouts.linear(weight, layer, bits)
    assert stored.attributes == {"axis": 0 if layer.inputs_first else 1, "block_size": 16}
    assert sorted(stored.inputs["scale"].shape) == [4, 6]
    made = onnx.helper.make_node("DequantizeLinear", list(stored.inputs), ["w"])
    made.attribute.extend(onnx.helper.make_attribute(*item) for item in stored.attributes.items())
    np.testing.assert_allclose(run(made, stored), expected(weight, layer), rtol=1e-6)


def test_equal_scales_are_still_written_for_each_channel() -> None:
    weight, layer = quantized("MatMul", None)
    weight.scale[:] = 0.5
    stored = weight_layouts.linear(weight, layer, 8)
    assert stored.inputs["scale"].shape == (6,)
    assert stored.attributes == {"axis": 1}


def test_zero_points_that_are_all_zero_are_left_out() -> None:
    weight, layer = quantized("MatMul", None)
    assert set(weight_layouts.linear(weight, layer, 8).inputs) == {"codes", "scale"}
    weight, layer = quantized("MatMul", None, symmetric=False)
    assert set(weight_layouts.linear(weight, layer, 8).inputs) == {"codes", "scale", "zero_point"}


# ----------------------------------------------------------------- the local function


@ALL
@BITS
@SYMMETRIC
@pytest.mark.parametrize("block", [None, 32, 24])
def test_the_function_gives_the_weight_in_its_own_layout(
    name: str, bits: int, symmetric: bool, block: int | None
) -> None:
    layer = quantized(name, None)[1]
    if block is not None:
        block = weight_layouts.folding_block(layer, block)
        assert (block is None) == (name == "ConvTranspose")
    weight, layer = quantized(name, block, bits, symmetric=symmetric)
    stored = weight_layouts.folded(weight, layer, bits)
    axis = 0 if layer.inputs_first else 1
    function = DequantizeFunction(tuple(stored.inputs), bits, axis=axis)
    made = onnx.helper.make_node(function.name, list(stored.inputs), ["w"], domain="onnxslim")
    found = run(made, stored, function.function(21))
    np.testing.assert_allclose(found, expected(weight, layer), rtol=1e-6)
    assert found.shape == layer.holder.values.shape


def test_patches_are_cut_into_equal_blocks_and_rows_of_a_matrix_need_not_be() -> None:
    conv, matrix = (quantized(name, None)[1] for name in ("Conv", "MatMul"))
    assert (conv.columns, matrix.columns) == (64, 64)
    blocks = [weight_layouts.folding_block(conv, block) for block in (64, 50, 24, 8, 7)]
    assert blocks == [None, 32, 16, 8, None]
    assert [weight_layouts.folding_block(matrix, block) for block in (64, 24)] == [None, 24]
    weight, layer = quantized("ConvTranspose", 16)
    with pytest.raises(ValueError, match="blocks of 16"):
        weight_layouts.folded(weight, layer, 8)


@pytest.mark.parametrize(
    ("columns", "block", "found"),
    [(384, 128, 128), (96, 128, 32), (48, 32, 16), (300, 32, 32), (75, 128, 32), (17, 16, 16)],
)
def test_blocks_of_the_kernel_divide_the_columns_or_take_few_bytes(
    columns: int, block: int, found: int
) -> None:
    assert weight_layouts.kernel_block(columns, block) == found


def test_a_function_has_one_name_for_each_set_of_inputs() -> None:
    names = {
        DequantizeFunction(inputs).name
        for inputs in (
            ("codes", "scale"),
            ("codes", "scale", "zero_point"),
            ("codes", "scale", "shape"),
            ("codes", "scale", "zero_point", "shape"),
            ("codes", "scale", "places"),
        )
    }
    names.add(DequantizeFunction(("codes", "scale", "places"), axis=1).name)
    assert len(names) == 6
    assert DequantizeFunction(("codes", "scale"), 8).least_opset == 7
    assert DequantizeFunction(("codes", "scale"), 4).least_opset == 21


# ----------------------------------------------------------------- MatMulNBits


def unpacked(stored: weight_layouts.StoredCodes, bits: int) -> np.ndarray:
    """The matrix (K, N) that MatMulNBits multiplies by, as its documentation says."""
    columns, rows = stored.attributes["K"], stored.attributes["N"]
    block = stored.attributes["block_size"]
    count = -(-columns // block)
    codes, scale = stored.inputs["codes"].reshape(rows, -1), stored.inputs["scale"]
    zero = stored.inputs.get("zero_point", np.full((rows, 99), 128 if bits == 8 else 0x88))
    if bits == 4:
        codes, zero = (np.stack([x & 15, x >> 4], -1).reshape(rows, -1) for x in (codes, zero))
    zero = zero[:, :count, None].astype(np.float32)
    values = (codes.reshape(rows, count, block) - zero) * scale.reshape(rows, count, 1)
    return np.asarray(values.reshape(rows, -1)[:, :columns].T)


@BITS
@SYMMETRIC
@pytest.mark.parametrize("block", [16, 128])
def test_packed_codes_are_those_that_the_kernel_reads(
    bits: int, symmetric: bool, block: int
) -> None:
    weight, layer = quantized("MatMul", block if block < 64 else None, bits, symmetric=symmetric)
    stored = weight_layouts.packed(weight, layer, bits, block)
    np.testing.assert_allclose(unpacked(stored, bits), expected(weight, layer), rtol=1e-6)
    assert stored.inputs["codes"].shape == (6, -(-64 // block), block * bits // 8)


def test_packing_wants_the_scales_of_its_blocks() -> None:
    weight, layer = quantized("MatMul", None)
    with pytest.raises(ValueError, match="4 scales"):
        weight_layouts.packed(weight, layer, 8, 16)


def test_two_codes_share_a_byte_and_an_odd_one_is_alone() -> None:
    codes = np.array([[1, 2, 3]], np.uint8)
    assert weight_layouts.packed_pairs(codes, 4).tolist() == [[0x21, 0x03]]
    assert weight_layouts.packed_pairs(codes, 8) is codes


def test_bytes_are_counted_before_anything_is_solved() -> None:
    layer = quantized("MatMul", None)[1]
    assert weight_layouts.stored_bytes(layer, 8, None, symmetric=True) == 64 * 6 + 6 * 4
    assert weight_layouts.stored_bytes(layer, 4, 32, symmetric=True) == 64 * 6 // 2 + 12 * 4
    assert weight_layouts.stored_bytes(layer, 4, 32, symmetric=False) == 64 * 6 // 2 + 12 * 4 + 6
    padded = weight_layouts.stored_bytes(layer, 8, 128, symmetric=True, is_padded=True)
    assert padded == 128 * 6 + 6 * 4


@pytest.mark.parametrize("block", [None, 16, 32, 256])
def test_kernels_take_blocks_that_are_powers_of_two(block: int | None) -> None:
    assert weight_layouts.is_block_of_kernel(block)


@pytest.mark.parametrize("block", [8, 24, 33])
def test_kernels_take_no_other_blocks(block: int) -> None:
    assert not weight_layouts.is_block_of_kernel(block)


def test_four_bits_use_all_codes_with_scales_of_either_sign() -> None:
    layer = quantized("MatMul", None)[1]
    problem = Problem((layer,), (Metric(None, layer.columns),))
    grid = GridForm(np.dtype(np.int8), symmetric=True, bits=4)
    found, plain = (
        quantized_weight(problem, WeightForm(grid, PerBlock(16), full_range=full), Rounding.NEAREST)
        for full in (True, False)
    )
    assert (found.codes.min(), found.codes.max()) == (-8, 7)
    assert plain.codes.min() == -7
    assert found.scale.min() < 0 < found.scale.max()
    assert found.error < 0.9 * plain.error
    np.testing.assert_allclose(
        unpacked(weight_layouts.packed(found, layer, 4, 16), 4), expected(found, layer), rtol=1e-6
    )

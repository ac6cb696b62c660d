"""The function gives, in onnxruntime, the bits of the dense weight, and says what it is."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim.codebook.lookup import _arrays
from onnxslim.codebook.lookup_function import LookupVariant, StageVariant, variant_of
from onnxslim.codebook.weight import CodebookWeight, Stage
from onnxslim.graph.functions import DOMAIN

F32, F16, F64 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.float64)


def weight_of(
    levels: int,
    shape: tuple[int, ...],
    *,
    blocks: int = 1,
    vector: int = 1,
    stages: int = 1,
    table: np.dtype = F32,
    dtype: np.dtype = F32,
    inner: tuple[int, ...] = (),
    perm: tuple[int, ...] = (),
) -> CodebookWeight:
    """A random codebook weight."""
    rng = np.random.default_rng(levels)
    sizes = (*((blocks,) if blocks > 1 else ()), levels, *((vector,) if vector > 1 else ()))
    code = np.uint8 if levels <= 256 else np.uint16
    made = [
        Stage(
            rng.integers(0, levels, (blocks, prod(shape) // vector // blocks)).astype(code),
            rng.standard_normal(sizes).astype(table),
        )
        for _ in range(stages)
    ]
    return CodebookWeight(tuple(made), shape, dtype, inner, perm)


def model_of(weight: CodebookWeight, opset: int) -> onnx.ModelProto:
    """A model that returns the weight, plus its input."""
    variant = LookupVariant.of(weight)
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    graph = helper.make_graph(
        [
            helper.make_node(variant.name, variant.inputs, ["w"], domain=DOMAIN),
            helper.make_node("Add", ["w", "x"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", kind, [])],
        [helper.make_tensor_value_info("y", kind, weight.shape)],
        [
            numpy_helper.from_array(array, name)
            for name, array in zip(variant.inputs, _arrays(variant, weight), strict=True)
        ],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)],
        functions=[variant.function(opset)],
        ir_version=8,
    )


def computed(model: onnx.ModelProto, dtype: np.dtype, folded_to: str = "") -> np.ndarray:
    """What the model returns for 0; with onnxruntime's optimisations if `folded_to` is a path."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if folded_to else level.ORT_DISABLE_ALL
    options.optimized_model_filepath = folded_to
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"x": np.zeros((), dtype)})[0]


def assert_computes(weight: CodebookWeight, opset: int, folder: object) -> None:
    model = model_of(weight, opset)
    onnx.checker.check_model(model, full_check=True)
    path = f"{folder}/folded.onnx"
    for folded_to in ("", path):
        found = computed(model, weight.dtype, folded_to)
        np.testing.assert_array_equal(found, weight.dense(), strict=True)
    left = {node.op_type for node in onnx.load(path).graph.node}
    assert left <= {"Add", "Cast"}, "onnxruntime did not fold the function"
    function = model.functions[0]
    assert variant_of(function) == LookupVariant.of(weight) == LookupVariant.parse(function.name)


# one shape that fills all bytes, and one that leaves the last of them unfilled
@pytest.mark.parametrize("shape", [(8, 12, 5), (7, 11)])
@pytest.mark.parametrize(
    "levels",
    [1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 18, 25, 27, 32, 36, 48, 64, 96, 128, 144, 200, 256, 300],
)  # fmt: skip
def test_any_number_of_levels(levels: int, shape: tuple[int, ...], tmp_path: object) -> None:
    assert_computes(weight_of(levels, shape), 17, tmp_path)


@pytest.mark.parametrize("vector", [1, 2, 3])
@pytest.mark.parametrize("levels", [2, 3, 8, 9, 16, 256, 300])
@pytest.mark.parametrize(("shape", "blocks"), [((8, 30), 8), ((7, 36), 7)])
def test_tables_of_blocks(
    levels: int, vector: int, shape: tuple[int, ...], blocks: int, tmp_path: object
) -> None:
    assert_computes(weight_of(levels, shape, blocks=blocks, vector=vector), 17, tmp_path)


@pytest.mark.parametrize("shape", [(6, 16), (6, 5, 4)])
@pytest.mark.parametrize("levels", [2, 3, 8, 9, 16, 32, 256])
def test_sub_vectors(levels: int, shape: tuple[int, ...], tmp_path: object) -> None:
    assert_computes(weight_of(levels, shape, vector=4), 17, tmp_path)


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("dtype", [F32, F16, F64])
@pytest.mark.parametrize("table", [F32, F16])
def test_types_and_stages(table: np.dtype, dtype: np.dtype, stages: int, tmp_path: object) -> None:
    weight = weight_of(4, (7, 9), table=table, dtype=dtype, stages=stages)
    assert_computes(weight, 17, tmp_path)


@pytest.mark.parametrize(
    "weight",
    [
        weight_of(16, (6, 20), inner=(20, 6), perm=(1, 0)),
        weight_of(16, (20, 6), inner=(2, 3, 20), perm=(2, 0, 1), blocks=6),
        weight_of(8, (6, 20), inner=(20, 2, 3), perm=(1, 2, 0), blocks=5, stages=2),
        weight_of(16, (6, 20), inner=(20, 6), perm=(1, 0), vector=3),
    ],
)
def test_permuted_values(weight: CodebookWeight, tmp_path: object) -> None:
    assert_computes(weight, 17, tmp_path)


def test_stages_may_differ(tmp_path: object) -> None:
    parts = (
        weight_of(16, (8, 12)),
        weight_of(3, (8, 12), blocks=8),
        weight_of(5, (8, 12), vector=2),
    )
    weight = CodebookWeight(tuple(part.stages[0] for part in parts), (8, 12), F32)
    assert LookupVariant.of(weight).name == "Lookup16And3BlocksPaddedAnd6Vectors2"
    assert_computes(weight, 17, tmp_path)


@pytest.mark.parametrize("opset", [10, 11, 13, 18, 24])
def test_any_opset(opset: int, tmp_path: object) -> None:
    weights = [
        weight_of(16, (8, 4)),
        weight_of(7, (7, 5)),
        weight_of(12, (7, 5), vector=5),
        weight_of(4, (7, 5), stages=2, dtype=F16),
    ]
    if opset > 10:
        weights += [weight_of(9, (7, 6), blocks=7), weight_of(9, (7, 6), blocks=7, vector=2)]
    for weight in weights:
        assert_computes(weight, opset, tmp_path)


@pytest.mark.parametrize(
    ("weight", "name"),
    [
        (weight_of(16, (4, 4)), "Lookup16"),
        (weight_of(13, (4, 4)), "Lookup16"),
        (weight_of(8, (4, 4)), "Lookup2x4"),
        (weight_of(3, (4, 4)), "Lookup3Padded"),
        (weight_of(16, (4, 4), blocks=4), "Lookup16Blocks"),
        (weight_of(256, (4, 4), vector=4), "Lookup256Vectors4"),
        (weight_of(2, (4, 4), stages=2), "Lookup2And2"),
        (weight_of(16, (4, 4), blocks=2, inner=(4, 2, 2), perm=(1, 0, 2)),
         "Lookup16BlocksTransposed102"),
        (weight_of(16, (4, 4), table=F16), "Lookup16ToFloat"),
        (weight_of(16, (4, 4), dtype=F16), "Lookup16ToFloat16"),
        (weight_of(16, (4, 4), table=F16, dtype=F16), "Lookup16"),
    ],
)  # fmt: skip
def test_name_says_which_weights_a_function_serves(weight: CodebookWeight, name: str) -> None:
    assert LookupVariant.of(weight).name == name


@pytest.mark.parametrize(
    "name",
    [
        "Lookup", "Lookup17", "Lookup2x", "Lookup16And", "Lookup016", "Lookup16Vectors1",
        "Lookup16ToInt", "Lookup16Transposed", "Lookup16PaddedBlocks", "lookup16", "Lookup16 ",
    ],
)  # fmt: skip
def test_other_names_are_not_ours(name: str) -> None:
    assert LookupVariant.parse(name) is None


def test_function_with_another_body_is_not_ours() -> None:
    function = LookupVariant((StageVariant((16,)),)).function(17)
    assert variant_of(function) is not None
    other = onnx.FunctionProto.FromString(function.SerializeToString())
    other.node[-1].op_type = "Flatten"
    assert variant_of(other) is None
    other.CopyFrom(function)
    other.domain = "someone"
    assert variant_of(other) is None
    other.CopyFrom(function)
    other.opset_import[0].version = 9
    assert variant_of(other) is None


def test_shape_inference_sees_through_the_function() -> None:
    model = model_of(weight_of(12, (4, 6)), 17)
    found = onnx.shape_inference.infer_shapes(model).graph.value_info
    (weight,) = (info for info in found if info.name == "w")
    assert weight.type.tensor_type.elem_type == TensorProto.FLOAT
    assert [dim.dim_value for dim in weight.type.tensor_type.shape.dim] == [4, 6]

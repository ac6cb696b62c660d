"""A codebook weight stands for the tensor that a layer's node uses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from cases import case
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxslim.analysis.layers import WeightLayer, weight_layers
from onnxslim.codebook.weight import (
    CodebookWeight,
    Stage,
    TableGranularity,
    codebook_for_layer,
)
from onnxslim.io.model import Model

F32, F16, F64 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.float64)


def layer_of(
    op: str, shape: tuple[int, ...], dtype: type = np.float32, *, first: bool = False, **attrs: int
) -> WeightLayer:
    """The layer of a model of one node whose weight has this shape."""
    names = ["w", "x"] if first else ["x", "w"]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x, y = (helper.make_tensor_value_info(name, kind, None) for name in "xy")
    weight = onnx.numpy_helper.from_array(np.ones(shape, dtype), "w")
    node = helper.make_node(op, names, ["y"], **attrs)
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (layer,), _ = weight_layers(Model.load(model).graph)
    return layer


LAYERS = {
    "MatMul": lambda: layer_of("MatMul", (12, 5)),
    "MatMul, weight first": lambda: layer_of("MatMul", (5, 12), first=True),
    "MatMul of a vector": lambda: layer_of("MatMul", (12,)),
    "stacked MatMul": lambda: layer_of("MatMul", (2, 3, 12, 5)),
    "stacked MatMul, weight first": lambda: layer_of("MatMul", (2, 5, 12), first=True),
    "Gemm": lambda: layer_of("Gemm", (12, 5)),
    "Gemm transB": lambda: layer_of("Gemm", (5, 12), transB=1),
    "Gemm, weight first": lambda: layer_of("Gemm", (5, 12), first=True),
    "Gemm transA, weight first": lambda: layer_of("Gemm", (12, 5), first=True, transA=1),
    "Conv": lambda: layer_of("Conv", (6, 3, 2, 2)),
    "Conv 1x1": lambda: layer_of("Conv", (5, 12, 1, 1)),
    "grouped Conv": lambda: layer_of("Conv", (6, 3, 2, 2), group=2),
    "depthwise Conv": lambda: layer_of("Conv", (6, 1, 3, 4), group=6),
    "Conv 1d": lambda: layer_of("Conv", (4, 3, 4)),
    "ConvTranspose": lambda: layer_of("ConvTranspose", (3, 5, 2, 2)),
    "grouped ConvTranspose": lambda: layer_of("ConvTranspose", (6, 5, 2, 2), group=2),
    "ConvTranspose 1x1": lambda: layer_of("ConvTranspose", (12, 5, 1, 1)),
    "depthwise ConvTranspose": lambda: layer_of("ConvTranspose", (6, 1, 3, 4), group=6),
}


def canonical_of(
    codes: np.ndarray, table: np.ndarray, per: TableGranularity, width: int | None, columns: int
) -> np.ndarray:
    """The canonical weight, computed plainly: one sub-vector after the other."""
    groups, rows, vectors = codes.shape
    vector = columns // vectors
    out = np.empty((groups, rows, columns), np.float32)
    for g, r, c in np.ndindex(groups, rows, vectors):
        at = c * vector
        block = {
            TableGranularity.TENSOR: 0,
            TableGranularity.ROW: g * rows + r,
            TableGranularity.RUN: 0,
        }[per]
        if per is TableGranularity.RUN:
            assert width is not None
            block = g * (columns // width) + at // width
        chosen = table if per is TableGranularity.TENSOR else table[block]
        out[g, r, at : at + vector] = chosen[codes[g, r, c]]
    return out


def layouts(layer: WeightLayer, name: str) -> list[tuple[int, TableGranularity, int | None]]:
    """Every kind of codebook that fits a layer."""
    kinds = [
        (TableGranularity.TENSOR, None),
        (TableGranularity.ROW, None),
        *((TableGranularity.RUN, w) for w in (1, 2, 4, 6, 12)),
    ]
    found: list[tuple[int, TableGranularity, int | None]] = []
    taps = int(np.prod(layer.holder.shape[2:])) if "ConvTranspose" in name else 1
    for per, width in kinds:
        run = width or layer.columns
        if layer.columns % run or (run % taps and taps % run):
            continue  # refused, see below
        found += [(vector, per, width) for vector in (1, 2, 4) if run % vector == 0]
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_codes_of_a_layer_give_its_stored_weight(name: str) -> None:
    layer = LAYERS[name]()
    for layout in layouts(layer, name):
        with case(*layout):
            assert_gives_its_stored_weight(layer, *layout)


def assert_gives_its_stored_weight(
    layer: WeightLayer, vector: int, per: TableGranularity, width: int | None
) -> None:
    groups, rows, columns = layer.groups, layer.rows, layer.columns
    rng = np.random.default_rng(vector)
    blocks = {
        TableGranularity.TENSOR: (),
        TableGranularity.ROW: (groups * rows,),
        TableGranularity.RUN: (0,),
    }[per]
    if per is TableGranularity.RUN:
        assert width is not None
        blocks = (groups * columns // width,)
    table = rng.standard_normal((*blocks, 5, *([vector] if vector > 1 else []))).astype(F32)
    codes = rng.integers(0, 5, (groups, rows, columns // vector)).astype(np.uint8)
    weight = codebook_for_layer(layer, [(codes, table)], per, width)
    expected = layer.restored(canonical_of(codes, table, per, width, columns))
    np.testing.assert_array_equal(weight.dense(), expected, strict=True)
    assert weight.levels == 5
    assert weight.size == expected.size


@pytest.mark.parametrize("name", LAYERS)
def test_one_table_needs_no_permutation(name: str) -> None:
    layer = LAYERS[name]()
    codes = np.zeros((layer.groups, layer.rows, layer.columns), np.uint8)
    assert codebook_for_layer(layer, [(codes, np.ones(2, F32))]).perm == ()


def test_runs_of_inputs_that_stand_before_outputs_need_no_permutation() -> None:
    layer = LAYERS["MatMul"]()
    codes, table = np.zeros((1, 5, 12), np.uint8), np.ones((3, 2), F32)
    assert codebook_for_layer(layer, [(codes, table)], TableGranularity.RUN, 4).perm == ()


@pytest.mark.slow
@given(
    stages=st.integers(1, 3),
    table=st.sampled_from([F32, F16]),
    kind=st.sampled_from([F32, F16, F64]),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_stages_are_added_in_the_order_of_the_tables(
    stages: int, table: np.dtype, kind: np.dtype, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    made = tuple(
        Stage(
            rng.integers(0, 3, (1, 6)).astype(np.uint8),
            rng.standard_normal(3).astype(table),
        )
        for _ in range(stages)
    )
    weight = CodebookWeight(made, (2, 3), kind)
    between = F32 if kind == F16 and stages > 1 else kind
    total = made[0].table.astype(between)[made[0].codes]
    for stage in made[1:]:
        total = total + stage.table.astype(between)[stage.codes]
    np.testing.assert_array_equal(weight.dense(), total.reshape(2, 3).astype(kind), strict=True)
    assert weight.levels == 3**stages
    assert weight.nbytes == stages * (2 + 3 * table.itemsize)


@pytest.mark.parametrize("blocks", [1, 2, 600])
def test_large_weights_are_looked_up_in_pieces(blocks: int) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (blocks, 600_000 // blocks)).astype(np.uint8)
    table = rng.standard_normal((blocks, 4) if blocks > 1 else 4).astype(F32)
    weight = CodebookWeight((Stage(codes, table),), (600_000,), F32)
    expected = np.take_along_axis(table.reshape(blocks, 4), codes.astype(np.int64), 1)
    np.testing.assert_array_equal(weight.dense(), expected.reshape(-1))


ONE = np.zeros((1, 6), np.uint8)


@pytest.mark.parametrize(
    ("codes", "table", "message"),
    [
        (ONE.astype(np.int8), np.ones(2, F32), "unsigned integers"),
        (ONE[0], np.ones(2, F32), r"of shape \(B, n\)"),
        (ONE, np.ones(2, F64), "float32 or float16, not float64"),
        (ONE, np.ones((1, 2, 1), F32), r"\(1, 2, 1\) does not fit 1 blocks"),
        (ONE, np.ones(0, F32), "does not fit"),
        (ONE.reshape(2, 3), np.ones(2, F32), r"\(2,\) does not fit 2 blocks"),
        (ONE.reshape(2, 3), np.ones((3, 2), F32), "3 tables for 2 blocks"),
        (ONE, np.ones(1 << 17, F32), "at most 65,536 levels"),
    ],
)
def test_stage_that_does_not_fit_together_is_refused(
    codes: np.ndarray, table: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Stage(codes, table)


STAGE = Stage(ONE, np.ones(2, F32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), (6,), F32), "at least one stage"),
        (((STAGE,), (6,), np.dtype(np.int32)), "float16, 32 or 64, not int32"),
        (((STAGE,), (7,), F32), r"do not fill the shape \(7,\)"),
        (((Stage(ONE[:, :0], np.ones(2, F32)),), (0,), F32), "at least one element"),
        (((STAGE,), (3, 2), F32, (2, 3), (1, 1)), "no permutation"),
        (((STAGE,), (3, 2), F32, (2, 4), (1, 0)), r"inner shape \(2, 4\)"),
        (((STAGE,), (3, 2), F32, (6,), (1, 0)), r"inner shape \(6,\)"),
    ],
)
def test_weight_that_does_not_fit_together_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodebookWeight(*arguments)


def test_identical_permutation_is_none() -> None:
    weight = CodebookWeight((STAGE,), (6,), F32, (2, 3), (0, 1))
    assert (weight.perm, weight.inner_shape) == ((), (6,))


@pytest.mark.parametrize(
    ("per", "width", "vector", "message"),
    [
        (TableGranularity.RUN, None, 1, "needs a `width`"),
        (TableGranularity.TENSOR, 4, 1, "needs a `width`"),
        (TableGranularity.RUN, 5, 1, "12 columns are no whole number of runs of 5"),
        (TableGranularity.RUN, 3, 2, "in vectors of 2"),
        (TableGranularity.RUN, 0, 1, "runs of 0"),
        (
            TableGranularity.RUN,
            6,
            1,
            "Runs of 6 columns and kernels of 4 do not fit into each other",
        ),
    ],
)
def test_runs_that_do_not_fit_are_refused(
    per: TableGranularity, width: int | None, vector: int, message: str
) -> None:
    layer = LAYERS["ConvTranspose"]()
    codes = np.zeros((1, 5, 12 // vector), np.uint8)
    table = np.ones(
        ((1,) if per is not TableGranularity.TENSOR else ()) + (2,) + (vector,) * (vector > 1), F32
    )
    with pytest.raises(ValueError, match=message):
        codebook_for_layer(layer, [(codes, table)], per, width)


def test_codes_of_another_layer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Codes of shape \(1, 4, 12\) do not fit"):
        codebook_for_layer(LAYERS["MatMul"](), [(np.zeros((1, 4, 12), np.uint8), np.ones(2, F32))])


def test_stages_with_other_sub_vectors_are_refused() -> None:
    layer = LAYERS["MatMul"]()
    one = (np.zeros((1, 5, 12), np.uint8), np.ones(2, F32))
    two = (np.zeros((1, 5, 6), np.uint8), np.ones((2, 2), F32))
    with pytest.raises(ValueError, match="sub-vectors of one length"):
        codebook_for_layer(layer, [one, two])

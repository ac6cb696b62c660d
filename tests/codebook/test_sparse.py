"""Weights that are mostly zero go into the file as sparse initializers, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxslim
from onnxslim.codebook.sparse import sparse_or_dense
from onnxslim.graph.dims import static_shape
from onnxslim.graph.ir import Constant, StoredSparse, walk_graphs
from onnxslim.io.check import check_model
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.pipeline.stats import measure_stats
from onnxslim.runtime.session import open_session
from support import parse, random_feeds, run


def mostly_zero(
    shape: tuple[int, ...], dtype: type = np.float32, density: float = 0.1
) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(shape) * 9
    return np.where(rng.random(shape) < density, values, 0).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int32, np.int64])
@pytest.mark.parametrize("shape", [(500,), (20, 30), (10, 10, 3, 3)])
def test_values_come_back_bit_for_bit(dtype: type, shape: tuple[int, ...]) -> None:
    array = mostly_zero(shape, dtype)
    stored = sparse_or_dense(array)
    assert isinstance(stored, StoredSparse)
    np.testing.assert_array_equal(stored.load(), array, strict=True)
    assert (stored.shape, stored.dtype, stored.size) == (array.shape, array.dtype, array.size)
    assert stored.nbytes < array.nbytes


def test_negative_zero_is_a_value() -> None:
    array = mostly_zero((100,))
    array[3] = -0.0
    stored = sparse_or_dense(array)
    assert isinstance(stored, StoredSparse)
    assert stored.load().tobytes() == array.tobytes()


def test_indices_take_fewer_bytes_than_as_int64() -> None:
    array = mostly_zero((512, 512))
    stored = sparse_or_dense(array)
    count = np.count_nonzero(array)
    assert stored.nbytes < count * (4 + 3) + 64


def test_all_zero_weight_takes_no_bytes_to_speak_of() -> None:
    assert sparse_or_dense(np.zeros((64, 64), np.float32)).nbytes < 32


@pytest.mark.parametrize(
    "array",
    [
        mostly_zero((50, 50), density=0.9),
        mostly_zero((3, 2)),  # the header alone takes more
        np.zeros((), np.float32),
        np.zeros((0, 4), np.float32),
        np.zeros(100, bool),
        np.zeros(100, object),
        mostly_zero((400,), np.int8, density=0.6),
    ],
)
def test_array_that_takes_fewer_bytes_stays_dense(array: np.ndarray) -> None:
    assert sparse_or_dense(array) is array


def test_order_of_memory_does_not_matter() -> None:
    array = mostly_zero((40, 30)).T
    np.testing.assert_array_equal(sparse_or_dense(array).load(), array)


# ----------------------------------------------------------------- in a model


def sparsified(source: onnx.ModelProto) -> Model:
    """The model with every initializer whichever way takes fewer bytes."""
    model = Model.load(source)
    for graph in walk_graphs(model.graph):
        for node in graph.nodes:
            for tensor in node.inputs:
                if isinstance(tensor, Constant):
                    tensor.values = sparse_or_dense(tensor.values)
    check_model(model)
    return model


def sparse_names(model: Model) -> set[str]:
    proto, _ = model.skeleton()
    bodies = [a.g for node in proto.graph.node for a in node.attribute if a.HasField("g")]
    return {s.values.name for g in (proto.graph, *bodies) for s in g.sparse_initializer}


def model_of(
    op: str, weight: np.ndarray, x: tuple[int, ...], where: str = "main", ir_version: int = 8
) -> onnx.ModelProto:
    """One node with this weight: of the main graph, of a body, or captured by one."""
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    made = [numpy_helper.from_array(weight, "w")]
    inputs = [helper.make_tensor_value_info("x", kind, x)]
    outputs = [helper.make_tensor_value_info("y", kind, [None] * len(x))]
    if where == "main":
        graph = helper.make_graph(
            [helper.make_node(op, ["x", "w"], ["y"])], "g", inputs, outputs, made
        )
    else:
        bodies = {
            f"{name}_branch": helper.make_graph(
                [helper.make_node(op, ["x", "w"], [name])],
                name,
                [],
                [helper.make_tensor_value_info(name, kind, [None] * len(x))],
                made if where == "body" else [],
            )
            for name in ("then", "else")
        }
        choose = helper.make_node("If", ["c"], ["y"], **bodies)
        inputs.append(helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
        held = [] if where == "body" else made
        graph = helper.make_graph([choose], "g", inputs, outputs, held)
    if ir_version < 4:
        graph.input.append(helper.make_tensor_value_info("w", kind, weight.shape))
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


CASES = {
    "MatMul": ((32, 16), (2, 32)),
    "Gemm": ((32, 16), (2, 32)),
    "Conv": ((8, 4, 3, 3), (1, 4, 8, 8)),
    "ConvTranspose": ((4, 8, 3, 3), (1, 4, 8, 8)),
    "Mul": ((128,), (3, 128)),
}


@pytest.mark.parametrize("where", ["main", "body", "captured"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("op", CASES)
def test_onnxruntime_runs_it_as_the_dense_model(
    op: str, dtype: type, where: str, tmp_path: Path
) -> None:
    shape, x = CASES[op]
    source = model_of(op, mostly_zero(shape, dtype, 0.05), x, where)
    model = sparsified(source)
    assert sparse_names(model) == {"w"}
    model.save(tmp_path / "model.onnx")
    again = Model.load(tmp_path / "model.onnx")
    assert again.to_bytes() == model.to_bytes() == model.clone().to_bytes()
    feeds = random_feeds(source)
    expected = run(source, feeds)[0]
    for item in (model, again, tmp_path / "model.onnx", model.to_bytes()):
        with open_session(item, optimise=False) as session:
            np.testing.assert_array_equal(session.run(feeds)["y"], expected, strict=True)
        with open_session(item) as session, open_session(Model.load(source)) as dense:
            np.testing.assert_array_equal(session.run(feeds)["y"], dense.run(feeds)["y"])


def test_no_value_at_all_runs() -> None:
    source = model_of("MatMul", np.zeros((32, 16), np.float32), (2, 32))
    model = sparsified(source)
    assert sparse_names(model) == {"w"}
    with open_session(model) as session:
        assert not session.run(random_feeds(source))["y"].any()


@pytest.mark.parametrize("ir_version", [3, 4, 10])
def test_any_ir_version_will_do(ir_version: int) -> None:
    source = model_of("MatMul", mostly_zero((32, 16)), (2, 32), ir_version=ir_version)
    model = sparsified(source)
    assert sparse_names(model) == {"w"}
    feeds = random_feeds(source)
    np.testing.assert_array_equal(run(model.to_proto(), feeds)[0], run(source, feeds)[0])


def test_shapes_are_inferred_and_macs_counted() -> None:
    source = model_of("Conv", mostly_zero((8, 4, 3, 3)), (1, 4, 8, 8))
    model = sparsified(source)
    infer_shapes(model)
    assert static_shape(model.graph.outputs[0]) == (1, 8, 6, 6)
    assert measure_stats(model).macs == measure_stats(Model.load(source)).macs
    assert measure_stats(model).parameters == 8 * 4 * 9


TWINS = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[2, 16] x) => (float[2, 16] y) <float[16, 16] u, float[16, 16] v, float[1] w>
    {
        a = MatMul (x, u)
        b = MatMul (x, v)
        c = Identity (a)
        d = Constant <value = float[1] {2.5}> ()
        e = Add (c, b)
        y = Mul (e, d)
    }"""


def test_simplify_keeps_it_sparse() -> None:
    text = TWINS.replace(", float[1] w", "")
    values = ", ".join("3" if index % 20 == 0 else "0" for index in range(256))
    for name in "uv":
        text = text.replace(f"float[16, 16] {name}", f"float[16, 16] {name} = {{{values}}}")
    source = parse(text)
    model = sparsified(source)
    assert sparse_names(model) == {"u", "v"}
    simple, _ = onnxslim.compress(model.to_bytes(), passes="simplify", measure=False)
    assert [node.op for node in simple.graph.nodes].count("MatMul") == 1
    assert len(sparse_names(simple)) == 1
    feeds = random_feeds(source)
    np.testing.assert_allclose(run(simple.to_proto(), feeds)[0], run(source, feeds)[0], 1e-6)


def test_value_of_a_constant_node_is_written_dense_and_then_lifted() -> None:
    array = mostly_zero((16, 16))
    tensor = numpy_helper.from_array(array, "v")
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["w"], value=tensor),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, [2, 16])],
        [helper.make_tensor_value_info("y", 1, [2, 16])],
    )
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = Model.load(source)
    holder = model.graph.nodes[0].attrs["value"]
    holder.values = sparse_or_dense(holder.values)
    feeds = random_feeds(source)
    np.testing.assert_array_equal(run(model.to_proto(), feeds)[0], run(source, feeds)[0])
    assert isinstance(holder.stored, StoredSparse)

"""Rows of a table of embeddings count as often as samples read them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.lossy.problems import Problem, Problems
from onnxslim.lossy.scalar_codebooks import TableSpec, find_scalar_codebook
from onnxslim.lossy.table_reads import row_shares
from onnxslim.pipeline.passes import Context
from onnxslim.runtime.probes.calibration_runs import CalibrationRuns

ROWS, WIDTH = 200, 4
TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (int64[N, T] ids, int64[N, T] mask) => (float[N, T, T] y)
<int64[1] second = {1}, float low = {-10000}, int64 one = {1}> {
    places = INDICES
    h = Gather (table, places)
    t = Transpose <perm = [0, 2, 1]> (h)
    q = MatMul (h, t)
    c = Cast <to = 9> (mask) u = Unsqueeze (c, second)
    s = Where (u, q, low)
    y = Softmax (s)
}"""
IDS = np.array([[3, 3, 7, 0], [3, 9, 0, 0]])
MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])


def model(indices: str = "Identity (ids)") -> Model:
    proto = onnx.parser.parse_model(TEXT.replace("INDICES", indices))
    rng = np.random.default_rng(0)
    scales = np.where(np.arange(ROWS) < 10, 0.05, 1.0)[:, None]
    table = (rng.standard_normal((ROWS, WIDTH)) * scales).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(table, "table"))
    found = Model.load(proto)
    infer_shapes(found)
    return found


def context(source: Model, ids: np.ndarray = IDS, mask: np.ndarray = MASK) -> Context:
    samples = {"ids": ids.astype(np.int64), "mask": mask.astype(np.int64)}
    return Context(model=source, calibration=CalibrationRuns(samples), target=source)


@pytest.mark.parametrize(
    ("indices", "read"),
    [
        ("Identity (ids)", (3, 3, 7, 3, 9)),  # what the mask leaves out does not count
        ("Add (ids, one)", (4, 4, 8, 1, 4, 10, 1, 1)),  # no token input, so it has no mask
        ("Sub (one, ids)", (-2, -2, -6, 1, -2, -8, 1, 1)),
    ],
    ids=["given", "computed", "negative"],
)
def test_rows_count_as_often_as_they_are_read(indices: str, read: tuple[int, ...]) -> None:
    found = row_shares("h", context(model(indices)))
    reads = np.ones(ROWS)
    np.add.at(reads, list(read), 1)
    np.testing.assert_allclose(found, reads / reads.sum())


def test_without_samples_and_in_bodies_all_rows_count_alike() -> None:
    source = model()
    assert row_shares("h", Context(model=source)) is None
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (bool p, int64[N] ids) => (float[N, 2] y) <float[3, 2] table = {1, 2, 3, 4, 5, 6}> {
        y = If (p) <then_branch = t () => (float[N, 2] a) { a = Gather (table, ids) },
            else_branch = e () => (float[N, 2] b) { c = Gather (table, ids) b = Neg (c) }>
    }"""
    inner = Model.load(onnx.parser.parse_model(text))
    infer_shapes(inner)
    samples = [{"p": np.array(True), "ids": np.array([0, 1])}]
    calibrated = Context(model=inner, calibration=CalibrationRuns(samples))
    assert row_shares("a", calibrated) is None


def table_problem(given: Context) -> Problem:
    assert given.model is not None
    problems = Problems(Rewriter(given.model.graph), given)
    return next(problem for problem in problems if problem.name == "h")


def test_the_values_of_a_table_are_where_its_frequent_rows_are() -> None:
    """The first ten rows are small, and read by all samples."""
    ids = np.random.default_rng(1).integers(0, 10, (5000, 8))
    given = context(model(), ids, np.ones_like(ids))
    problem, plain = table_problem(given), table_problem(Context(model=given.model))
    assert problem.notes == ("rows count as often as samples read them",)
    assert plain.row_shares is None
    found, other = decoded(problem, TableSpec(8)), decoded(plain, TableSpec(8))
    assert problem.error(found) < 0.5 * problem.error(other)
    assert plain.error(found) > plain.error(other)
    reads = np.bincount(ids.ravel(), minlength=ROWS) + 1
    moved = np.square(found[0] - problem.target[0]).sum(1)
    assert problem.error(found) == pytest.approx((moved * reads).sum() / reads.sum())
    np.testing.assert_array_equal(decoded(problem, TableSpec(8, weighted=False)), other)


def decoded(problem: Problem, spec: TableSpec) -> np.ndarray:
    ((codes, table),) = find_scalar_codebook(problem, spec, None, 0).stages
    return np.asarray(table[codes], np.float64)

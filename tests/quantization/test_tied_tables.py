"""Tables of embeddings that are the head, too: one set of codes, or floats for both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from layer_nets import feeds, node, normal, output_error, rewritten
from onnx import TensorProto, helper, numpy_helper
from qdq_nets import kernels

from onnxslim.graph.ir import Constant
from onnxslim.io.model import Model
from onnxslim.report import StepReport

WORDS, WIDTH = 50, 32
QUANTIZE = "quantize-int8:placement=all:activation-ranges=dynamic"
GAINS = np.ones(WIDTH, np.float32)
HEADS: Mapping[str, Sequence[onnx.NodeProto]] = {
    "Gemm": [
        node("Reshape", ["n", "flat"], "f"),
        node("Gemm", ["f", "t"], "y", transB=1),
    ],
    "own": [node("MatMul", ["n", "own"], "y")],
    "MatMul": [node("Transpose", ["t"], "u", perm=[1, 0]), node("MatMul", ["n", "u"], "y")],
}
X = np.random.default_rng(5).integers(0, WORDS, (24, 6))
SAMPLES = [{"x": row[None]} for row in X]


def language_model(
    head: str, gains: np.ndarray = GAINS, *extra: onnx.NodeProto, twist: float = 1
) -> Model:
    """Words through a dense layer, a normalization, and the transpose of their own table.

    A head of its own is `twist` times that.
    """
    nodes = [
        node("Gather", ["t", "x"], "e"),
        *extra,
        node("MatMul", ["e", "w"], "h"),
        node("LayerNormalization", ["h", "g", "o"], "n", axis=-1),
        *HEADS[head],
    ]
    weights = {
        "t": normal(WORDS, WIDTH),
        "w": normal(WIDTH, WIDTH, seed=2),
        "g": gains,
        "o": np.zeros(WIDTH, np.float32),
        "flat": np.array([-1, WIDTH]),
        "own": np.float32(twist) * normal(WORDS, WIDTH).T,
    }
    outputs = ["y", *(output for item in extra for output in item.output)]
    used = {name for item in nodes for name in item.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["N", "T"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(a, name) for name, a in weights.items() if name in used],
    )
    opset = [helper.make_opsetid("", 17)]
    return Model.load(helper.make_model(graph, opset_imports=opset, ir_version=8))


def quantized(source: Model, options: str = "") -> tuple[Model, StepReport]:
    model, (report,) = rewritten(source, SAMPLES, QUANTIZE + options)
    return model, report


def sets_of(model: Model) -> Counter[str]:
    """How often a matrix of the table's size is stored, by its type."""
    found = {t.name: t for item in model.graph.nodes for t in item.inputs}
    held = (t for t in found.values() if isinstance(t, Constant) and len(t.shape) == 2)
    return Counter(str(t.dtype) for t in held if sorted(t.shape) == [WIDTH, WORDS])


@pytest.mark.parametrize("head", HEADS)
def test_table_and_head_are_one_set_of_codes(head: str) -> None:
    source = language_model(head)
    model, report = quantized(source, ":reduce-range=true")
    assert sets_of(model) == {"int8": 1}
    assert Counter(item.op for item in model.graph.nodes)["MatMulInteger"] == 2
    assert not report.skips or "MatMul" not in " ".join(skip.why for skip in report.skips)
    found = kernels(model)
    assert {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"} & set(found)
    assert "Transpose" not in found  # folded when the session starts
    assert output_error(source, model, feeds(X[:4])) < 3e-3


@pytest.mark.parametrize(("largest", "sets"), [(2, 1), (60, 2)])
@pytest.mark.parametrize("head", HEADS)
def test_a_smoothed_head_shares_its_codes_unless_the_table_would_lose_by_it(
    head: str, largest: float, sets: int
) -> None:
    gains = np.where(np.arange(WIDTH) % 4 == 3, np.float32(largest), GAINS)
    source, x = language_model(head, gains), feeds(X[:4])
    model, report = quantized(source, ":reduce-range=true:alpha-of='y=0.8'")
    assert any("smoothed" in change.what for change in report.changes)
    assert sets_of(model) == {"int8": sets}
    assert output_error(source, model, x) < 3e-3
    if sets == 2:
        plain, _ = quantized(source, ":reduce-range=true:smooth=false")
        assert sets_of(plain) == {"int8": 1}
        assert output_error(source, model, x) < output_error(source, plain, x)


@pytest.mark.parametrize(
    ("head", "options"),
    [("Gemm", ":skip=y"), ("MatMul", ":skip=y"), ("MatMul", ":skip=e"), ("Gemm", ":only=e+h")],
)
def test_a_table_or_head_that_is_left_out_keeps_the_other_in_float(head: str, options: str) -> None:
    model, _ = quantized(language_model(head), options)
    assert sets_of(model) == {"float32": 1}
    assert Counter(item.op for item in model.graph.nodes)["MatMulInteger"] == 1


def test_a_head_of_its_own_that_stays_float_leaves_the_table_on_integers() -> None:
    model, _ = quantized(language_model("own"), ":skip=y")
    assert sets_of(model) == {"float32": 1, "int8": 1}


def test_a_head_that_only_looks_like_its_table_has_codes_of_its_own() -> None:
    model, _ = quantized(language_model("own", twist=1.5))
    assert sets_of(model) == {"int8": 2}


@pytest.mark.parametrize("head", ["Gemm", "MatMul"])
def test_a_head_that_goes_back_to_float_reads_its_table_again(head: str) -> None:
    source = language_model(head)
    closest, report = quantized(source, ":skip=y:reduce-range=true")
    least = output_error(source, closest, feeds(X)) ** 0.5
    limit = f":reduce-range=true:max-error={1.1 * least:.4g}"
    model, report = quantized(source, limit)
    assert any("back to float" in skip.why for skip in report.skips if skip.node == "y")
    assert sets_of(model) == {"float32": 1}
    old = next(item for item in source.graph.nodes if item.outputs[0].name == "y")
    new = next(item for item in model.graph.nodes if item.outputs[0].name == "y")
    assert (old.op, old.attrs) == (new.op, new.attrs)


def test_nodes_that_pick_rows_of_one_table_share_its_codes() -> None:
    again = node("Gather", ["t", "x"], "again")
    model, _ = quantized(language_model("MatMul", GAINS, again))
    assert sets_of(model) == {"int8": 1}


def test_a_table_that_another_operator_reads_stays_float() -> None:
    total = node("ReduceSum", ["t"], "total")
    model, _ = quantized(language_model("MatMul", GAINS, total))
    assert sets_of(model) == {"float32": 1}

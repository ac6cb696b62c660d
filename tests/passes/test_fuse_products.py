from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxslim.passes.fuse_products import FuseProducts
from onnxslim.records import Fidelity
from support import apply, assert_declines, assert_equivalent, assert_rewrites, parse

HEAD = '<opset_import: ["" : 17]> g (float[B, 2] x) => (float[B, 1] q, float[B, 2] k) '
WEIGHTS = "<float[2, 1] wq = {1, 2}, float[2, 2] wk = {3, 4, 5, 6}"


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


# ------------------------------------------------------------------------------ fires


def test_gemms_with_biases_become_one() -> None:
    assert_rewrites(
        """<opset_import: ["" : 11]>
        g (float[B, 2] x) => (float[B, 1] q, float[B, 2] k)
            <float[1, 2] wq = {1, 2}, float[2, 2] wk = {3, 5, 4, 6}, float[1] b = {9}> {
            q = Gemm <transB = 1> (x, wq, b)
            k = Gemm <transB = 1> (x, wk)
        }""",
        FuseProducts(),
        """<opset_import: ["" : 11]>
        g (float[B, 2] x) => (float[B, 1] q, float[B, 2] k)
            <float[3, 2] w = {1, 2, 3, 5, 4, 6}, float[3] b = {9, 0, 0}> {
            all = Gemm <transB = 1> (x, w, b)
            q, k = Split <axis = -1, split = [1, 2]> (all)
        }""",
    )


def test_products_with_other_weights_of_a_tensor_are_left_out() -> None:
    source = f"""{HEAD} {WEIGHTS}, float[2] v = {{1, 1}}> {{
        q = MatMul (x, wq) k1 = MatMul (x, wk) k2 = MatMul (x, v) k3 = ReduceSum (k2)
        k = Add (k1, k3)
    }}"""
    result, report = apply(FuseProducts(), parse(source))
    assert operators(result).count("MatMul") == 2
    assert "Split" in operators(result)
    assert report.changed


def projections(rng: np.random.Generator, widths: list[int], biased: list[bool]) -> onnx.ModelProto:
    """Products of x with matrices of `widths` columns, some with an Add behind."""
    nodes, weights, outputs = [], {}, []
    for index, (width, has_bias) in enumerate(zip(widths, biased, strict=True)):
        weights[f"w{index}"] = rng.standard_normal((5, width)).astype(np.float32)
        result = f"m{index}" if has_bias else f"y{index}"
        nodes.append(helper.make_node("MatMul", ["x", f"w{index}"], [result]))
        if has_bias:
            weights[f"b{index}"] = rng.standard_normal(width).astype(np.float32)
            nodes.append(helper.make_node("Add", [f"b{index}", result], [f"y{index}"]))
        outputs.append(
            helper.make_tensor_value_info(f"y{index}", onnx.TensorProto.FLOAT, ["B", "S", width])
        )
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["B", "S", 5])
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.integers(1, 7), st.booleans()), min_size=2, max_size=4),
    st.integers(0, 9),
)
def test_one_product_returns_what_several_did(parts: list[tuple[int, bool]], seed: int) -> None:
    widths, biased = (list(column) for column in zip(*parts, strict=True))
    source = projections(np.random.default_rng(seed), widths, biased)
    result, report = apply(FuseProducts(), source)
    assert report.changed
    assert operators(result).count("MatMul") == 1
    assert_equivalent(source, result, Fidelity.CLOSE, seed)


# ------------------------------------------------------------------------------ declines


@pytest.mark.parametrize(
    ("weights", "body", "why"),
    [
        (
            "<float[2, 1] wq = {1, 2}, float[2, 2] wk = {3, 4, 5, 6}>",
            "q = MatMul (x, wq) k1 = MatMul (x, wk) k = MatMul (k1, wk)",
            "used elsewhere",
        ),
        (
            "<float[2, 1] wq = {1, 2}, float[2, 2] wk = {3, 4, 5, 6}>",
            "y = Neg (x) q = MatMul (x, wq) k = MatMul (y, wk)",
            None,
        ),
        (
            "<float[2, 1] wq = {1, 2}, float[2, 2] wk = {3, 4, 5, 6}>",
            "q = MatMul (x, wq) k = Gemm <alpha = 2.0> (x, wk)",
            None,
        ),
    ],
)
def test_other_products_stay(weights: str, body: str, why: str | None) -> None:
    assert_declines(f"{HEAD} {weights} {{ {body} }}", FuseProducts(), why)


# ------------------------------------------------------------------------------ edges


def test_a_product_that_others_read_before_its_bias_keeps_its_add() -> None:
    rng = np.random.default_rng(0)
    source = projections(rng, [3, 4], [True, True])
    source.graph.output.append(
        helper.make_tensor_value_info("m0", onnx.TensorProto.FLOAT, ["B", "S", 3])
    )
    result, _ = apply(FuseProducts(), source)
    assert operators(result).count("MatMul") == 1
    assert operators(result).count("Add") == 2
    assert_equivalent(source, result, Fidelity.CLOSE)


def test_one_group_can_be_left_out() -> None:
    source = projections(np.random.default_rng(0), [3, 4], [False, False])
    assert apply(FuseProducts(skip=("y0",)), source)[1].changes == ()

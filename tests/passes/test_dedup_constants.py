from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxslim.passes.dedup_constants import DedupConstants
from onnxslim.records import Fidelity
from support import apply, assert_declines, assert_equivalent, assert_rewrites, parse

# ----------------------------------------------------------------- fires


def test_equal_initializers_share_the_one_with_the_shortest_name() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y)
        <float[2] long = {1, 2}, float[2] w = {1, 2}, float[2] other = {1, 3}>
        { a = Add (x, long) b = Mul (a, w) y = Sub (b, other) }""",
        DedupConstants(),
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float[2] other = {1, 3}>
        { a = Add (x, w) b = Mul (a, w) y = Sub (b, other) }""",
    )


def test_large_weights_share_their_bytes() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    almost = weight.copy()
    almost[10, 10] += 1
    source = net([weight, weight, almost, weight])
    rewritten, result = apply(DedupConstants(), source)
    assert len(rewritten.graph.initializer) == 2
    assert len(result.changes) == 2
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def tied_model(head: np.ndarray, table: np.ndarray, op: str = "MatMul") -> onnx.ModelProto:
    """A table that is read by Gather, and a product with `head`."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node(op, ["rows", "head"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3, head.shape[1]])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(head, "head")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_a_head_that_is_the_transposed_table_reads_the_table() -> None:
    table = np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)
    source = tied_model(np.ascontiguousarray(table.T), table)
    rewritten, result = apply(DedupConstants(), source)
    assert [one.name for one in rewritten.graph.initializer] == ["table"]
    assert [node.op_type for node in rewritten.graph.node].count("Transpose") == 1
    assert len(result.changes) == 1
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_a_head_with_another_bit_or_of_few_bytes_stays() -> None:
    table = np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)
    head = np.ascontiguousarray(table.T)
    head[3, 400] = np.nextafter(head[3, 400], np.float32(9))
    small = table[:50]
    for source in (tied_model(head, table), tied_model(np.ascontiguousarray(small.T), small)):
        _, result = apply(DedupConstants(), source)
        assert not result.changes


# ----------------------------------------------------------------- declines


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.array([0.0, 1]), np.array([-0.0, 1])),
        (np.array([np.nan]), np.array([0x7FF8000000000001], np.uint64).view(np.float64)),
        (np.array([1, 2]), np.array([[1, 2]])),
        (np.zeros(2, np.int32), np.zeros(2, np.float32)),
    ],
)
def test_constants_that_differ_in_any_bit_stay(a: np.ndarray, b: np.ndarray) -> None:
    nodes = [helper.make_node("Identity", ["a"], ["y"]), helper.make_node("Neg", ["b"], ["z"])]
    infos = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in (("y", a), ("z", b))
    ]
    constants = [numpy_helper.from_array(a, "a"), numpy_helper.from_array(b, "b")]
    graph = helper.make_graph(nodes, "g", [], infos, constants)
    source = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    rewritten, result = apply(DedupConstants(), source)
    assert result.changes == ()
    assert rewritten.SerializeToString() == source.SerializeToString()


def test_default_of_an_input_is_not_shared() -> None:
    assert_declines(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x, float[2] w = {1, 2}) => (float[2] y) <float[2] k = {1, 2}>
        { a = Mul (x, w) y = Add (a, k) }""",
        DedupConstants(),
    )


# ----------------------------------------------------------------- edges


def test_constants_of_bodies_and_of_the_main_graph_share_one() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            a = Mul (x, w)
            y = If (c) <
                then_branch = t () => (float[2] r) <float[2] k = {1, 2}> { r = Add (a, k) },
                else_branch = e () => (float[2] s) <float[2] k = {1, 2}> { s = Sub (a, k) }
            >
        }"""
    )
    rewritten, result = apply(DedupConstants(), source)
    assert len(result.changes) == 2
    assert len(rewritten.graph.initializer) == 1
    assert not any(a.g.initializer for a in rewritten.graph.node[1].attribute)
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_constant_that_a_body_returns_stays_in_the_body() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (bool c, float[2] x) => (float[2] y, float[2] z) <float[2] w = {1, 2}> {
            z = Mul (x, w)
            y = If (c) <
                then_branch = t () => (float[2] r) <float[2] k = {1, 2}> { r = Add (x, k) },
                else_branch = e () => (float[2] s) <float[2] s = {1, 2}> { t = Abs (x) }
            >
        }"""
    )
    rewritten, result = apply(DedupConstants(), source)
    assert [change.node for change in result.changes] == ["k"]
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_merged_constant_gets_a_name_that_no_other_graph_uses() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (bool c, bool d, float[2] x) => (float[2] y, float[2] z) {
            y = If (c) <
                then_branch = t () => (float[2] r) <float[2] k = {1, 2}> { r = Add (x, k) },
                else_branch = e () => (float[2] s) <float[2] kk = {1, 2}> { s = Sub (x, kk) }
            >
            z = If (d) <
                then_branch = t () => (float[2] r) <float[2] k = {3, 4}> { r = Add (x, k) },
                else_branch = e () => (float[2] s) <float[2] kk = {5, 6}> { s = Sub (x, kk) }
            >
        }"""
    )
    rewritten, result = apply(DedupConstants(), source)
    assert result.changed
    (shared,) = rewritten.graph.initializer
    assert shared.name not in ("k", "kk")
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_constant_that_is_returned_keeps_its_name() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) <float[2] returned = {1, 2}, float[2] w = {1, 2}>
        { a = Mul (x, w) b = Mul (a, returned) y = Add (b, w) }"""
    )
    source.graph.output.append(helper.make_tensor_value_info("returned", 1, [2]))
    rewritten, _ = apply(DedupConstants(), source)
    assert [tensor.name for tensor in rewritten.graph.initializer] == ["returned"]
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_two_returned_constants_stay() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {1, 2}>
        { c = Mul (x, a) y = Add (c, b) }"""
    )
    source.graph.output.append(helper.make_tensor_value_info("a", 1, [2]))
    source.graph.output.append(helper.make_tensor_value_info("b", 1, [2]))
    rewritten, result = apply(DedupConstants(), source)
    assert result.changes == ()
    assert len(rewritten.graph.initializer) == 2
    assert any("outputs, too" in skip.why for skip in result.skips)


def net(weights: list[np.ndarray]) -> onnx.ModelProto:
    """X times each of the square `weights` in turn."""
    names = [f"w{index}" for index in range(len(weights))]
    nodes = [
        helper.make_node("MatMul", [f"t{index}", name], [f"t{index + 1}"])
        for index, name in enumerate(names)
    ]
    infos = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, len(weights[0])])
        for name in ("t0", f"t{len(weights)}")
    ]
    pairs = zip(weights, names, strict=True)
    constants = [numpy_helper.from_array(array, name) for array, name in pairs]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], constants)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])

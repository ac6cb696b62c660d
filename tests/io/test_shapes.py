"""Types and shapes that follow from the inputs."""

from __future__ import annotations

import numpy as np
from onnx import helper, numpy_helper

from onnxslim.graph.counts import node_macs
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from support import parse


def test_an_initializer_that_callers_may_override_says_nothing_about_shapes() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[6] x, int64[2] shape = {2, 3}) => (float[A, B] y) { a = Relu (x)
        y = Reshape (a, shape) }"""
    model = Model.load(parse(text))
    infer_shapes(model)
    relu, reshape = model.graph.nodes
    assert relu.outputs[0].shape == [6]
    assert not any(isinstance(size, int) for size in reshape.outputs[0].shape)


def test_shapes_go_on_behind_products_of_onnxruntime() -> None:
    node = helper.make_node(
        "MatMulNBits", ["x", "codes", "scale"], ["p"], domain="com.microsoft", K=32, N=4, bits=8,
        block_size=32,
    )  # fmt: skip
    graph = helper.make_graph(
        [node, helper.make_node("Concat", ["p", "p"], ["y"], axis=1)],
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 32])],
        [helper.make_tensor_value_info("y", 1, None)],
        [
            numpy_helper.from_array(np.zeros((4, 1, 32), np.uint8), "codes"),
            numpy_helper.from_array(np.ones((4, 1), np.float32), "scale"),
        ],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = Model.load(helper.make_model(graph, opset_imports=imports, ir_version=8))
    infer_shapes(model)
    product, concat = model.graph.nodes
    assert concat.outputs[0].shape == ["N", 8]
    assert node_macs(product) == 32 * 4


def test_multiplications_of_attention_are_counted() -> None:
    text = """<ir_version: 11, opset_import: ["" : 23]>
    g (float[1, 2, 3, 4] q, float[1, 2, 5, 4] k, float[1, 2, 5, 4] v) => (float[A, B, C, D] y) {
        y = Attention (q, k, v) }"""
    model = Model.load(parse(text))
    infer_shapes(model)
    assert node_macs(model.graph.nodes[0]) == 2 * (2 * 3 * 4 * 5)


def test_tensors_of_one_name_in_two_bodies_keep_their_values_apart() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[8, 4, 5] x) => (float[a, b, c] y, float[d, e, f] z)
    <int64 one = {1}, int64 none = {0}, int64[1] o = {0}> {
        y = Loop (one, "", x) <body = first (int64 i, bool go, float[l, m, n] s)
            => (bool on, float[l, m, n] t) <int64[1] size = {9223372036854775807}> {
            two = Constant <value = int64[1] {2}> ()
            r = Slice (s, o, size, two) t = Identity (s) on = Identity (go)
        }>
        z = Loop (one, "", x) <body = second (int64 i, bool go, float[l, m, n] s)
            => (bool on, float[l, m, n] t) <int64[1] rest = {-1}> {
            k = Shape (s) h = Gather <axis = 0> (k, none) size = Unsqueeze (h, o)
            to = Concat <axis = 0> (size, rest) r = Reshape (s, to)
            t = Identity (s) on = Identity (go)
        }>
    }"""
    model = Model.load(parse(text))
    infer_shapes(model)
    made = {t.name: t for n in model.graph.nodes[1].attrs["body"].nodes for t in n.outputs}
    assert list(made) == ["k", "h", "size", "to", "r", "t", "on"]
    assert 9223372036854775807 not in (made["r"].shape or ())


def test_a_slice_of_opset_10_does_not_keep_all_of_an_open_axis() -> None:
    text = """<ir_version: 8, opset_import: ["" : 10]>
    g (bool p, float[n, 5] x) => (float[A, B] y, float[C, D] z, float[E, F] u)
    <int64[1] last = {-1}, int64[1] end = {1000}, int64[1] one = {1}, int64[1] zero = {0}> {
        y = Slice (x, last, end, one)
        z = Slice (x, last, end, zero, one)
        u = If (p) <
            then_branch = t () => (float[G, H] r)
                <int64[1] s = {-2}, int64[1] e = {9}, int64[1] a = {0}>
                { r = Slice (x, s, e, a) },
            else_branch = e () => (float[G, H] w) { w = Relu (x) }
        >
    }"""
    model = Model.load(parse(text))
    infer_shapes(model)
    columns, rows, chosen = (node.outputs[0] for node in model.graph.nodes)
    assert columns.shape == ["n", 1]
    assert rows.shape[0] != "n"
    assert rows.shape[1] == chosen.shape[1] == 5
    branch = next(iter(model.graph.nodes[2].attrs.values()))
    assert branch.nodes[0].outputs[0].shape[0] != "n"
    assert [node.op for node in model.graph.nodes] == ["Slice", "Slice", "If"]

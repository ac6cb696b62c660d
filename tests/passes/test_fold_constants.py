from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxslim.errors import RuntimeFailure
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.passes.fold_constants import FoldConstants
from onnxslim.pipeline.passes import Context
from onnxslim.records import Fidelity
from support import apply, assert_declines, assert_equivalent, assert_rewrites, parse

# ----------------------------------------------------------------- fires


def test_constant_nodes_of_every_kind_become_initializers() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) {
            a = Constant <value = float[2] {1, 2}> ()
            b = Constant <value_float = 2.0> ()
            c = Constant <value_floats = [3.0, 4.0]> ()
            d = Constant <value_ints = [2]> ()
            e = Constant <value_int = 0> ()
            f = Add (x, a)
            h = Mul (f, b)
            i = Sub (h, c)
            j = Reshape (i, d)
            k = Cast <to = 1> (e)
            y = Sub (j, k)
        }"""
    )
    rewritten, _ = apply(FoldConstants(), source)
    assert {node.op_type for node in rewritten.graph.node} == {"Add", "Mul", "Sub", "Reshape"}
    assert {tensor.name for tensor in rewritten.graph.initializer} == {"a", "b", "c", "d", "k"}
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_shape_arithmetic_becomes_one_constant() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[3, 2] y)
        <int64[4] s = {4, 2, 3, 5}, int64 one = {1}, int64 two = {2}>
        {
            b = Gather (s, one)
            a = Gather (s, two)
            axis = Constant <value_ints = [0]> ()
            a1 = Unsqueeze (a, axis)
            b1 = Unsqueeze (b, axis)
            t = Concat <axis = 0> (a1, b1)
            y = Reshape (x, t)
        }""",
        FoldConstants(),
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[3, 2] y) <int64[2] t = {3, 2}> { y = Reshape (x, t) }""",
    )


@pytest.mark.parametrize("middle", ["Expand (w, shape)", "ConstantOfShape (shape)"])
def test_large_tensor_in_the_middle_goes_with_the_small_one_behind_it(middle: str) -> None:
    source = parse(
        f"""<opset_import: ["" : 17]>
        g (float[4] x) => (float[4] y)
        <float[4] w = {{1, 2, 3, 4}}, int64[2] shape = {{1000, 4}}, int64[1] axis = {{0}}>
        {{
            big = {middle}
            big2 = Relu (big)
            small = ReduceSum <keepdims = 0> (big2, axis)
            y = Add (x, small)
        }}"""
    )
    rewritten, result = apply(FoldConstants(), source)
    assert [node.op_type for node in rewritten.graph.node] == ["Add"]
    assert len(result.changes) == 1
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_slices_of_one_weight_are_folded_together() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 100)).astype(np.float32)
    source = model(
        [
            helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
            helper.make_node("Gather", ["t", "first"], ["a"], axis=1),
            helper.make_node("Gather", ["t", "last"], ["b"], axis=1),
            helper.make_node("MatMul", ["x", "a"], ["p"]),
            helper.make_node("MatMul", ["x", "b"], ["q"]),
            helper.make_node("Mul", ["p", "q"], ["y"]),
        ],
        {"w": weight, "first": np.arange(3), "last": np.arange(3, 6)},
        ([2, 100], [2, 3]),
    )
    rewritten, _ = apply(FoldConstants(), source)
    assert [node.op_type for node in rewritten.graph.node] == ["MatMul", "MatMul", "Mul"]
    assert rewritten.ByteSize() <= source.ByteSize()
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_node_with_several_outputs_is_folded() -> None:
    source = model(
        [
            helper.make_node("Split", ["w"], ["a", "b"], axis=0),
            helper.make_node("Mul", ["x", "a"], ["p"]),
            helper.make_node("Mul", ["p", "b"], ["y"]),
        ],
        {"w": np.arange(4, dtype=np.float32)},
        ([2], [2]),
    )
    rewritten, _ = apply(FoldConstants(), source)
    assert [node.op_type for node in rewritten.graph.node] == ["Mul", "Mul"]
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_control_flow_that_sees_only_constants_is_run() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) <int64 trips = {3}, bool go = {1}, float[2] w = {1, 2}>
        {
            k = Loop (trips, go, w) <body = b (int64 i, bool p, float[2] s) => (bool q, float[2] t)
                { q = Identity (p) t = Add (s, w) }>
            y = Mul (x, k)
        }""",
        FoldConstants(),
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) <float[2] k = {4, 8}> { y = Mul (x, k) }""",
    )


# ----------------------------------------------------------------- declines


def test_expanded_weight_stays_an_expand_and_its_size_is_said() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (float[100, 4] x) => (float[100, 4] y)
        <float[4] w = {1, 2, 3, 4}, int64[2] shape = {100, 4}>
        { big = Expand (w, shape) y = Add (x, big) }""",
        FoldConstants(),
        "the result takes 1,6",
    )


def test_growth_allows_a_larger_file() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[100, 4] x) => (float[100, 4] y)
        <float[4] w = {1, 2, 3, 4}, int64[2] shape = {100, 4}>
        { big = Expand (w, shape) y = Add (x, big) }"""
    )
    rewritten, _ = apply(FoldConstants(growth=2000), source)
    assert [node.op_type for node in rewritten.graph.node] == ["Add"]
    assert source.ByteSize() < rewritten.ByteSize() <= source.ByteSize() + 2000
    assert_equivalent(source, rewritten, Fidelity.EXACT)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("k = RandomNormalLike (w)", "random"),
        ("s = Shape (w) k = RandomUniform <shape = [2]> ()", "random"),
        ("k = Dropout (w, half, yes)", "random"),
        ("k = local.Twice (w)", "`local.Twice` is not of the ONNX standard"),
        ("k = DequantizeLinear (q, half)", "quantized"),
    ],
)
def test_node_that_must_not_be_computed_now_stays(body: str, why: str) -> None:
    source = parse(
        f"""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[2] x) => (float[2] y)
        <float[2] w = {{1, 2}}, float half = {{0.5}}, bool yes = {{1}}, int8[2] q = {{1, 2}}>
        {{ {body} y = Mul (x, k) }}
        <opset_import: ["" : 17], domain: "local"> Twice (x) => (y) {{ y = Add (x, x) }}"""
    )
    rewritten, result = apply(FoldConstants(), source)
    assert any(why in skip.why for skip in result.skips), result.skips
    assert [n.op_type for n in rewritten.graph.node][-2:] == [n.op_type for n in source.graph.node][
        -2:
    ]


def test_node_that_onnxruntime_cannot_run_stays_and_the_others_are_folded() -> None:
    source = model(
        [
            helper.make_node("Neg", ["w"], ["a"]),
            helper.make_node("Gather", ["a", "wrong"], ["bad"]),  # there is no element 9
            helper.make_node("ReduceSum", ["bad"], ["scalar"], keepdims=0),
            helper.make_node("Mul", ["x", "scalar"], ["p"]),
            helper.make_node("Abs", ["v"], ["b"]),
            helper.make_node("Mul", ["p", "b"], ["y"]),
        ],
        {
            "w": np.arange(4, dtype=np.float32),
            "v": np.ones(4, np.float32),
            "wrong": np.array([9]),
        },
        ([4], [4]),
    )
    rewritten, result = apply(FoldConstants(), source)
    assert [node.op_type for node in rewritten.graph.node] == ["Gather", "ReduceSum", "Mul", "Mul"]
    assert any(skip.node == "bad" and "Gather" in skip.why for skip in result.skips)


def test_result_that_would_take_a_gigabyte_is_not_even_tried() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float x) => (float[a, b, c] y) <int64[3] shape = {2000, 2000, 2000}>
        { big = ConstantOfShape (shape) y = Add (x, big) }"""
    )
    _, result = apply(FoldConstants(), source)
    assert result.changes == ()
    assert any("too many to compute" in skip.why for skip in result.skips)


def test_constant_that_is_an_output_stays_a_node() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y, float[2] k) {
            k = Constant <value = float[2] {1, 2}> ()
            y = Add (x, k)
        }""",
        FoldConstants(),
    )


def test_a_large_constant_that_is_an_output_is_read_by_others() -> None:
    numbers = ", ".join(map(str, range(1024)))
    source = parse(
        f"""<opset_import: ["" : 17]>
        g (float[1] x) => (float[1024] c, float[1] y) {{
            c = Constant <value = float[1024] {{{numbers}}}> ()
            d = Neg (c)
            s = ReduceMax <keepdims = 0> (d)
            y = Add (x, s)
        }}"""
    )
    rewritten, _ = apply(FoldConstants(), source)
    assert sorted(node.op_type for node in rewritten.graph.node) == ["Add", "Constant"]
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_a_result_of_other_sizes_than_inference_says_stays_a_node() -> None:
    text = """<ir_version: 8, opset_import: ["" : 11]>
    g (float[1, 1, 1, 2] x) => (float[A, B, C, D] y)
    <float[1, 1, 3, 2] c = {1, 2, 3, 4, 5, 6}> {
        a = Neg (c)
        b = MaxPool <ceil_mode = 1, kernel_shape = [2, 1], strides = [2, 2]> (a)
        y = Add (x, b)
    }"""
    result, report = apply(FoldConstants(), parse(text))
    assert [node.op_type for node in result.graph.node] == ["MaxPool", "Add"]
    assert any(
        "inferred as [1, 1, 2, 2], and computed as [1, 1, 2, 1]" in s.why for s in report.skips
    )


def test_nodes_that_fail_together_and_not_alone_end_the_search() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { n = Neg (w) y = Add (x, n) }"""
    )
    calls = []

    def evaluate(model: onnx.ModelProto, feeds: object) -> list[object]:
        calls.append(model)
        raise RuntimeFailure("the file of a tensor is missing")

    model = Model.load(source)
    result = FoldConstants().run(model.graph, Context(evaluate=evaluate))
    assert not result.changes
    assert len(calls) < 10


def test_input_with_a_default_is_no_constant() -> None:
    assert_declines(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { a = Neg (w) y = Add (x, a) }""",
        FoldConstants(),
    )


# ----------------------------------------------------------------- edges


def test_computed_output_becomes_a_constant_node_of_the_same_name() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y, float k) <float[8] w = {1, 2, 3, 4, 5, 6, 7, 8}> {
            a = Neg (w)
            k = ReduceSum <keepdims = 0> (a)
            y = Add (x, k)
        }""",
        FoldConstants(),
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y, float k) {
            k = Constant <value = float {-36}> ()
            y = Add (x, k)
        }""",
    )


def test_weight_that_is_used_elsewhere_is_not_duplicated() -> None:
    source = model(
        [
            helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("MatMul", ["a", "t"], ["y"]),
        ],
        {"w": np.ones((30, 30), np.float32)},
        ([2, 30], [2, 30]),
    )
    rewritten, result = apply(FoldConstants(), source)
    assert rewritten.SerializeToString() == source.SerializeToString()
    assert any(skip.node == "t" for skip in result.skips)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "int4"])
def test_unusual_types_are_read_but_never_written_wrongly(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    source = model(
        [
            helper.make_node("Cast", ["w"], ["f"], to=onnx.TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["f"], ["s"], keepdims=0),
            helper.make_node("Cast", ["s"], ["back"], to=kind),
            helper.make_node("Cast", ["back"], ["again"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", ["x", "again"], ["y"]),
        ],
        {"w": np.array([1, 2, 1], dtype)},
        ([3], [3]),
        opset=21,
    )
    rewritten, _ = apply(FoldConstants(), source)
    assert [node.op_type for node in rewritten.graph.node] == ["Mul"]
    assert_equivalent(source, rewritten, Fidelity.EXACT)

    frontier = model(
        [
            helper.make_node("Cast", ["w"], ["t"], to=kind),
            helper.make_node("Cast", ["t"], ["f"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", ["x", "f"], ["y"]),
        ],
        {"w": np.array([1, 2, 1], np.float32)},
        ([3], [3]),
        opset=21,
    )
    frontier.graph.output.append(helper.make_tensor_value_info("t", kind, [3]))
    rewritten, result = apply(FoldConstants(), frontier)
    assert any(skip.node == "t" and name in skip.why for skip in result.skips)
    assert rewritten.graph.node[0].op_type == "Cast"


def test_special_values_and_strings_survive() -> None:
    special = np.array([np.nan, -0.0, np.inf, -np.inf, 1e-42, 0.0], np.float32)
    source = model(
        [
            helper.make_node("Reshape", ["w", "shape"], ["t"]),
            helper.make_node("Add", ["x", "t"], ["y"]),
            helper.make_node("Identity", ["text"], ["same"]),
            helper.make_node("Equal", ["same", "text"], ["z"]),
        ],
        {"w": special, "shape": np.array([2, 3]), "text": np.array(["a", "bé"], object)},
        ([2, 3], [2, 3]),
        opset=19,
    )
    rewritten, _ = apply(FoldConstants(), source)
    (folded,) = (t for t in rewritten.graph.initializer if t.name == "t")
    assert numpy_helper.to_array(folded).tobytes() == special.tobytes()
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_bodies_are_folded_with_what_they_capture() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            n = Neg (w)
            y = If (c) <
                then_branch = t () => (float[2] r) { k = Abs (n) r = Add (x, k) },
                else_branch = e () => (float[2] s)
                    { k = Constant <value = float[2] {3, 4}> () m = Neg (k) s = Add (x, m) }
            >
        }"""
    )
    rewritten, _ = apply(FoldConstants(), source)
    assert [node.op_type for node in rewritten.graph.node] == ["If"]
    bodies = [attribute.g for attribute in rewritten.graph.node[0].attribute]
    assert [[node.op_type for node in body.node] for body in bodies] == [["Add"], ["Add"]]
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_bodies_below_ir_version_4_keep_their_constant_nodes() -> None:
    source = parse(
        """<ir_version: 3, opset_import: ["" : 9]>
        g (bool c, float[2] x) => (float[2] y) {
            k = Constant <value = float[2] {1, 2}> ()
            n = Neg (k)
            y = If (c) <
                then_branch = t () => (float[2] r) { r = Add (x, n) },
                else_branch = e () => (float[2] s)
                    { m = Constant <value = float[2] {3, 4}> () s = Add (x, m) }
            >
        }"""
    )
    rewritten, result = apply(FoldConstants(), source)
    assert [tensor.name for tensor in rewritten.graph.initializer] == ["n"]
    assert any("below IR version 4" in skip.why for skip in result.skips)
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_without_an_evaluator_only_constant_nodes_change() -> None:
    loaded = Model.load(
        parse(
            """<opset_import: ["" : 17]>
            g (float[2] x) => (float[2] y)
            { k = Constant <value = float[2] {1, 2}> () n = Neg (k) y = Add (x, n) }"""
        )
    )
    infer_shapes(loaded)
    result = FoldConstants().run(loaded.graph, Context())
    assert [change.node for change in result.changes] == ["k"]
    assert [node.op for node in loaded.graph.nodes] == ["Neg", "Add"]


def test_long_constant_chain_is_run_once() -> None:
    length = 300
    nodes = [helper.make_node("Neg", [f"t{i}"], [f"t{i + 1}"]) for i in range(length)]
    nodes.append(helper.make_node("Add", ["x", f"t{length}"], ["y"]))
    source = model(nodes, {"t0": np.ones(2, np.float32)}, ([2], [2]))
    calls = []

    def counting(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        calls.append(len(proto.graph.node))
        return [np.ones(2, np.float32)]

    loaded = Model.load(source)
    infer_shapes(loaded)
    FoldConstants().run(loaded.graph, Context(evaluate=counting))
    assert calls == [length]
    assert [node.op for node in loaded.graph.nodes] == ["Add"]


def model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    shapes: tuple[list[int], list[int]],
    opset: int = 17,
) -> onnx.ModelProto:
    """A model of one input `x` and one output `y`, floats of the given shapes."""
    infos = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in zip("xy", shapes, strict=True)
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], initializers)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)])

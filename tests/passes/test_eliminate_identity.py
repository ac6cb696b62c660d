from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxslim.passes.eliminate_identity import EliminateIdentity
from onnxslim.records import Fidelity
from support import apply, assert_declines, assert_equivalent, assert_rewrites, parse, run

# ----------------------------------------------------------------- fires


def test_chain_of_no_ops_disappears() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] y) {
            a = Identity (x)
            b = Cast <to = 1> (a)
            y = Relu (b)
        }""",
        EliminateIdentity(),
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] y) {
            y = Relu (x)
        }""",
    )


def test_no_op_behind_the_last_operator_hands_over_the_output_name() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] y) {
            a = Relu (x)
            y = Identity (a)
        }""",
        EliminateIdentity(),
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] y) {
            y = Relu (x)
        }""",
    )


# one row each: opset, type and shape of x, initializers, the body with `z` made of `x`
NO_OPS = {
    "Dropout 7": (7, "float[2, 3]", "", "z = Dropout (x)"),
    "Dropout 11": (11, "float[2, 3]", "", "z, m = Dropout (x)"),
    "Dropout 13": (13, "float[2, 3]", "", "z = Dropout (x)"),
    "Dropout, told not to train": (
        13, "float[2, 3]", "float r = {0.5}, bool t = {0}", "z = Dropout (x, r, t)"
    ),
    "Dropout of nothing": (
        13, "float[2, 3]", "float r = {0}, bool t = {1}", "z = Dropout (x, r, t)"
    ),
    "CastLike": (17, "float[2, 3]", "float k = {1}", "z = CastLike (x, k)"),
    "Pad 10": (10, "float[2, 3]", "", "z = Pad <pads = [0, 0, 0, 0]> (x)"),
    "Pad 13": (13, "float[2, 3]", "int64[4] p = {0,0,0,0}", "z = Pad (x, p)"),
    "Pad 18 of an axis": (
        18, "float[2, 3]", "int64[2] p = {0,0}, int64[1] a = {1}", "z = Pad (x, p, , a)"
    ),
    "Mul by 1": (17, "float[2, 3]", "float k = {1}", "z = Mul (x, k)"),
    "1 times": (17, "float[2, 3]", "float[1, 1] k = {1}", "z = Mul (k, x)"),
    "Mul by ones": (17, "float[2, 3]", "float[3] k = {1, 1, 1}", "z = Mul (x, k)"),
    "Mul by 1, unknown size": (17, "float[n, 3]", "float[1] k = {1}", "z = Mul (x, k)"),
    "Div by 1": (17, "float[2, 3]", "float k = {1}", "z = Div (x, k)"),
    "Sub 0": (17, "float[2, 3]", "float k = {0}", "z = Sub (x, k)"),
    "Add -0": (17, "float[2, 3]", "float k = {-0.0}", "z = Add (x, k)"),
    "Add integer 0": (17, "int64[2, 3]", "int64 k = {0}", "z = Add (k, x)"),
    "Pow 1": (17, "float[2, 3]", "float k = {1}", "z = Pow (x, k)"),
    "And true": (17, "bool[2, 3]", "bool k = {1}", "z = And (x, k)"),
    "Or false": (17, "bool[2, 3]", "bool k = {0}", "z = Or (k, x)"),
    "Where true": (17, "int64[2, 3]", "bool c = {1}, int64 k = {7}", "z = Where (c, x, k)"),
    "Where false": (17, "int64[2, 3]", "bool c = {0}, int64 k = {7}", "z = Where (c, k, x)"),
    "Reshape": (17, "float[2, 3]", "int64[2] s = {2, -1}", "z = Reshape (x, s)"),
    "Reshape, unknown sizes": (
        17, "float[n, m]", "int64[2] s = {0, -1}", "z = Reshape (x, s)"
    ),
    "Expand": (17, "float[2, 3]", "int64[2] s = {2, 3}", "z = Expand (x, s)"),
    "Expand by ones": (17, "float[n, 3]", "int64[1] s = {1}", "z = Expand (x, s)"),
    "Tile": (17, "float[n, 3]", "int64[2] s = {1, 1}", "z = Tile (x, s)"),
    "Flatten": (17, "float[n, 3]", "", "z = Flatten (x)"),
    "Transpose of ones": (17, "float[1, 1, 3]", "", "z = Transpose <perm = [1, 0, 2]> (x)"),
    "Slice 9": (9, "float[2, 3]", "", "z = Slice <starts = [0], ends = [3], axes = [1]> (x)"),
    "Slice 13": (
        13, "float[n, 3]", "int64[1] s = {0}, int64[1] e = {9223372036854775807}",
        "z = Slice (x, s, e)",
    ),
    "Gather of all": (17, "float[2, 3]", "int64[2] i = {0, 1}", "z = Gather (x, i)"),
    "Split into one": (17, "float[2, 3]", "", "z = Split (x)"),
    "Concat of one": (17, "float[2, 3]", "", "z = Concat <axis = 0> (x)"),
    "Concat with nothing": (
        17, "float[2, 3]", "float[0, 3] k = {}", "z = Concat <axis = 0> (k, x)"
    ),
    "Max of one": (17, "float[2, 3]", "", "z = Max (x)"),
    "Mean of one": (17, "float[2, 3]", "", "z = Mean (x)"),
    "DepthToSpace 1": (17, "float[1, 2, 3, 3]", "", "z = DepthToSpace <blocksize = 1> (x)"),
    "MaxPool 1": (17, "float[1, 2, 3, 3]", "", "z = MaxPool <kernel_shape = [1, 1]> (x)"),
    "Resize by 1": (
        17, "float[1, 2, 3, 3]", "float[4] s = {1,1,1,1}", "z = Resize <mode = \"linear\"> (x, , s)"
    ),
    "Resize to the size": (
        17, "float[1, 2, 3, 3]", "int64[4] s = {1,2,3,3}", "z = Resize (x, , , s)"
    ),
    "Upsample 9": (9, "float[1, 2, 3, 3]", "float[4] s = {1,1,1,1}", "z = Upsample (x, s)"),
    "ReduceSum of no axes": (
        17, "float[2, 3]", "", "z = ReduceSum <noop_with_empty_axes = 1> (x)"
    ),
    "Clip to infinity": (
        17, "float[2, 3]", "float l = {-inf}, float h = {inf}", "z = Clip (x, l, h)"
    ),
    "Clip of integers": (17, "int32[2, 3]", "", "z = Clip (x)"),
}  # fmt: skip


@pytest.mark.parametrize("row", NO_OPS)
def test_no_op_is_removed(row: str) -> None:
    opset, kind, constants, body = NO_OPS[row]
    held = f"<{constants}>" if constants else ""
    last = {"float": "Tanh (z)", "bool": "Not (z)"}.get(kind.partition("[")[0], "Add (z, z)")
    source = parse(
        f"""<opset_import: ["" : {opset}]>
        g ({kind} x) => ({kind} y) {held} {{ {body} y = {last} }}"""
    )
    rewritten, result = apply(EliminateIdentity(), source)
    assert result.changed
    assert "x" in rewritten.graph.node[-1].input
    if opset > 7:  # onnxruntime has no kernels for some older operators
        assert_equivalent(source, rewritten, Fidelity.EXACT)


@pytest.mark.parametrize(
    ("chain", "left"),
    [
        ("a = Relu (x) b = Relu (a)", ["Relu"]),
        ("a = Abs (x) b = Abs (a)", ["Abs"]),
        ("a = Round (x) b = Round (a)", ["Round"]),
        ("a = Neg (x) b = Neg (a)", []),
        ("a = Sigmoid (x) b = Relu (a)", ["Sigmoid"]),
        ("a = Softmax (x) b = Relu (a)", ["Softmax"]),
        ("a = Clip (x, zero, six) b = Relu (a)", ["Clip"]),
        ("a = Relu (x) b = Relu (a) c = Abs (b) b2 = Abs (c)", ["Relu", "Abs"]),
    ],
)
def test_operator_that_changes_nothing_on_its_input_is_removed(chain: str, left: list[str]) -> None:
    last = "b2" if "b2" in chain else "b"
    source = parse(
        f"""<opset_import: ["" : 17]> g (float[2, 3] x) => (float[2, 3] y)
        <float zero = {{0}}, float six = {{6}}> {{ {chain} y = Exp ({last}) }}"""
    )
    rewritten, _ = apply(EliminateIdentity(), source)
    assert [node.op_type for node in rewritten.graph.node] == [*left, "Exp"]
    assert_equivalent(source, rewritten, Fidelity.EXACT)


# ----------------------------------------------------------------- declines


@pytest.mark.parametrize(
    "body",
    [
        "z = Add (x, zero)",  # turns -0 into +0
        "z = Sub (x, minus_zero)",
        "z = Sub (zero, x)",
        "z = Div (one, x)",
        "z = Mul (x, grows)",  # (1, 2, 3)
        "z = Mul (x, three)",
        "z = Clip (x)",  # infinity becomes the largest number
        "z = Clip (x, zero)",
        "z = Where (yes, x, zero)",  # onnxruntime loses the sign of -0
        "z = Cast <to = 11> (x)",
        "z = Transpose (x)",
        "z = Slice (x, start, end, first, back)",  # same shape, reversed
        "z = Slice (x, start0, two, axis1)",
        "z = Gather (x, swapped)",
        "z = Resize <mode = \"linear\"> (x, , stretch)",  # same shape, other values
        "z = Pad (x, pads)",
        "z = ReduceSum <keepdims = 1> (x)",
        "z = Expand (x, grow)",
        "r = Abs (x) z = Neg (r)",
        "n = Neg (x) z = Relu (n)",
    ],
)  # fmt: skip
def test_operator_that_does_something_stays(body: str) -> None:
    assert_declines(
        f"""<opset_import: ["" : 17]>
        g (float[2, 3] x) => (int64 y)
        <float zero = {{0}}, float minus_zero = {{-0.0}}, float one = {{1}},
         float[1, 1, 1] grows = {{1}}, float[3] three = {{1, 1, 2}}, bool yes = {{1}},
         int64[1] start = {{-1}}, int64[1] end = {{-9}}, int64[1] first = {{0}},
         int64[1] back = {{-1}}, int64[1] start0 = {{0}}, int64[1] two = {{2}},
         int64[1] axis1 = {{1}}, int64[2] swapped = {{1, 0}}, float[2] stretch = {{1, 1.3}},
         int64[4] pads = {{0, 0, 0, 1}}, int64[3] grow = {{4, 2, 3}}>
        {{ {body} y = Size (z) }}""",
        EliminateIdentity(),
    )


def test_average_over_single_elements_stays() -> None:
    """It turns -0 into +0."""
    assert_declines(
        """<opset_import: ["" : 17]>
        g (float[1, 2, 3, 3] x) => (float[1, 2, 3, 3] y) {
            a = Abs (x)
            z = AveragePool <kernel_shape = [1, 1]> (a)
            y = Neg (z)
        }""",
        EliminateIdentity(),
    )


def test_absolute_value_of_the_least_integer_is_negative_so_relu_stays() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (int32[2] x) => (int32[2] y) { a = Abs (x) b = Relu (a) y = Add (b, b) }""",
        EliminateIdentity(),
    )


def test_input_that_is_also_output_keeps_its_node() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] y) {
            y = Identity (x)
        }""",
        EliminateIdentity(),
        "between two fixed ends",
    )


def test_two_outputs_of_one_value_keep_the_node_between_them() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] a, float[2, 3] y) { a = Relu (x) y = Identity (a) }""",
        EliminateIdentity(),
        "between two fixed ends",
    )


def test_returned_constant_is_not_copied() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y, float[2] k) <float[2] w = {1, 2}>
        { k = Identity (w) y = Mul (x, w) }""",
        EliminateIdentity(),
        "between two fixed ends",
    )


def test_used_mask_keeps_the_dropout() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y, bool[2] m) { a, m = Dropout (x) y = Relu (a) }""",
        EliminateIdentity(),
        "`m` is used",
    )


def test_training_dropout_stays() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) <float r = {0.5}, bool t = {1}>
        { a = Dropout (x, r, t) y = Relu (a) }""",
        EliminateIdentity(),
    )


def test_multiplication_by_one_that_raises_the_rank_stays() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (float x) => (float[1] y) <float[1] one = {1}> { a = Mul (x, one) y = Relu (a) }""",
        EliminateIdentity(),
    )


# ----------------------------------------------------------------- edges


def test_special_values_pass_unchanged() -> None:
    special = np.array([np.nan, -0.0, 0.0, np.inf, -np.inf, 1e-42], np.float32)
    nodes = [
        helper.make_node("Mul", ["k", "one"], ["a"]),
        helper.make_node("Sub", ["a", "zero"], ["b"]),
        helper.make_node("Add", ["x", "b"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(special, "k"),
        numpy_helper.from_array(np.float32(1), "one"),
        numpy_helper.from_array(np.float32(0), "zero"),
    ]
    info = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [6]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], constants)
    source = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    rewritten, _ = apply(EliminateIdentity(), source)
    assert [node.op_type for node in rewritten.graph.node] == ["Add"]
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_no_op_in_a_body_is_removed() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (bool c, float[2] x) => (float[2] y) {
            y = If (c) <
                then_branch = t () => (float[2] r) { a = Identity (x) r = Relu (a) },
                else_branch = e () => (float[2] s) { b = Neg (x) s = Identity (b) }
            >
        }"""
    )
    rewritten, result = apply(EliminateIdentity(), source)
    assert len(result.changes) == 2
    bodies = [attribute.g for attribute in rewritten.graph.node[0].attribute]
    assert [[node.op_type for node in body.node] for body in bodies] == [["Relu"], ["Neg"]]
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_body_that_returns_an_outer_value_keeps_its_node() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (bool c, float[2] x) => (float[2] y) {
            a = Exp (x)
            y = If (c) <
                then_branch = t () => (float[2] r) { r = Identity (a) },
                else_branch = e () => (float[2] s) { s = Neg (a) }
            >
        }""",
        EliminateIdentity(),
        "between two fixed ends",
    )


def test_operator_of_the_same_name_in_another_domain_is_left_alone() -> None:
    assert_declines(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[2] x) => (float[2] y) { a = local.Identity (x) y = Relu (a) }
        <opset_import: ["" : 17], domain: "local"> Identity (x) => (y) { y = Neg (x) }""",
        EliminateIdentity(),
    )


@pytest.mark.parametrize(
    ("scale", "zero", "is_removed"),
    [("{0.02}", "{3}", True), ("{0.03}", "{3}", False), ("{0.02}", "{4}", False)],
)
def test_quantizing_again_on_the_same_grid_gives_the_same_integers(
    scale: str, zero: str, is_removed: bool
) -> None:
    source = parse(
        f"""<opset_import: ["" : 17]>
        g (uint8[256] x) => (uint8[256] y)
        <float s = {{0.02}}, uint8 p = {{3}}, float t = {scale}, uint8 q = {zero}> {{
            c = Cast <to = 2> (x)
            a = DequantizeLinear (c, s, p)
            b = QuantizeLinear (a, t, q)
            y = Max (b, b)
        }}"""
    )
    rewritten, _ = apply(EliminateIdentity(), source)
    assert ("QuantizeLinear" not in [n.op_type for n in rewritten.graph.node]) == is_removed
    feeds = {"x": np.arange(256, dtype=np.uint8)}
    assert np.array_equal(run(source, feeds)[0], run(rewritten, feeds)[0])


def test_an_empty_input_among_empty_ones_stays() -> None:
    """Onnxruntime takes the sizes of the result from it, whatever those of the others are."""
    assert_declines(
        """<opset_import: ["" : 17]>
        g (float[N, M, 0] x) => (float[A, B, 0] y) <float[0, 11, 0] e = {}> {
            h = Relu (x)
            y = Concat <axis = 0> (e, h, h)
        }""",
        EliminateIdentity(),
    )

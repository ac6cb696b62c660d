from __future__ import annotations

import pytest

from onnxslim.passes.dedup_nodes import DedupNodes
from onnxslim.records import Fidelity
from support import apply, assert_declines, assert_equivalent, assert_rewrites, parse

# ----------------------------------------------------------------- fires


def test_equal_chains_become_one() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] y) {
            a = Exp (x)
            b = Softmax <axis = 1> (a)
            c = Exp (x)
            d = Softmax <axis = 1> (c)
            y = Add (b, d)
        }""",
        DedupNodes(),
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] y) {
            a = Exp (x)
            b = Softmax <axis = 1> (a)
            y = Add (b, b)
        }""",
    )


@pytest.mark.parametrize("op", ["Add", "Mul", "Sum", "Mean"])
def test_order_of_two_operands_does_not_matter_where_the_operator_commutes(op: str) -> None:
    source = parse(
        f"""<opset_import: ["" : 17]>
        g (float[2] x, float[2] z) => (float[2] y)
        {{ a = {op} (x, z) b = {op} (z, x) y = Div (a, b) }}"""
    )
    rewritten, _ = apply(DedupNodes(), source)
    assert len(rewritten.graph.node) == 2
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_tensor_attributes_are_compared_by_value() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (int64[1] s) => (float[n] y) {
            a = ConstantOfShape <value = float[1] {2.0}> (s)
            b = ConstantOfShape <value = float[1] {2.0}> (s)
            c = ConstantOfShape <value = float[1] {3.0}> (s)
            y = Sum (a, b, c)
        }""",
        DedupNodes(),
        """<opset_import: ["" : 17]>
        g (int64[1] s) => (float[n] y) {
            a = ConstantOfShape <value = float[1] {2.0}> (s)
            c = ConstantOfShape <value = float[1] {3.0}> (s)
            y = Sum (a, a, c)
        }""",
    )


def test_nodes_with_several_outputs_are_merged() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float[4] x) => (float[2] y)
        { a, b = Split (x) c, d = Split (x) e = Mul (a, d) y = Add (e, c) }""",
        DedupNodes(),
        """<opset_import: ["" : 17]>
        g (float[4] x) => (float[2] y) { a, b = Split (x) e = Mul (a, b) y = Add (e, a) }""",
    )


# ----------------------------------------------------------------- declines


@pytest.mark.parametrize(
    "body",
    [
        "a = Sub (x, z) b = Sub (z, x)",
        "a = Max (x, z) b = Max (z, x)",  # of +0 and -0, which one depends on the order
        "a = Softmax <axis = 0> (x) b = Softmax <axis = 1> (x)",
        "a = LeakyRelu <alpha = 0.0> (x) b = LeakyRelu <alpha = -0.0> (x)",
        "a = RandomNormalLike <seed = 1.0> (x) b = RandomNormalLike <seed = 1.0> (x)",
        "a = Exp (x) b = Exp (z)",
    ],
)
def test_nodes_that_may_differ_stay(body: str) -> None:
    assert_declines(
        f"""<opset_import: ["" : 17]>
        g (float[2, 3] x, float[2, 3] z) => (float[2, 3] y) {{ {body} y = Div (a, b) }}""",
        DedupNodes(),
    )


def test_two_names_that_are_both_returned_stay() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y, float[2] z) { y = Exp (x) z = Exp (x) }""",
        DedupNodes(),
        "both names are returned",
    )


def test_returned_parts_of_a_split_stay() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (float[4] x) => (float[2] y, float[2] d)
        { a, b = Split (x) c, d = Split (x) e = Add (a, b) y = Add (c, e) }""",
        DedupNodes(),
        "one of its outputs is returned",
    )


def test_nodes_with_bodies_stay() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (bool c, float[2] x) => (float[2] y) {
            a = If (c) <
                then_branch = t () => (float[2] r) { r = Exp (x) },
                else_branch = e () => (float[2] s) { s = Neg (x) }
            >
            b = If (c) <
                then_branch = t () => (float[2] r) { r = Exp (x) },
                else_branch = e () => (float[2] s) { s = Neg (x) }
            >
            y = Div (a, b)
        }""",
        DedupNodes(),
    )


# ----------------------------------------------------------------- edges


@pytest.mark.parametrize("returned", ["y = Exp (x) b = Exp (x)", "b = Exp (x) y = Exp (x)"])
def test_value_that_is_returned_keeps_its_name(returned: str) -> None:
    source = parse(
        f"""<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y, float[2] z) {{ {returned} z = Neg (b) }}"""
    )
    rewritten, _ = apply(DedupNodes(), source)
    assert [node.op_type for node in rewritten.graph.node] == ["Exp", "Neg"]
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_maximum_of_integers_commutes() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (int64[2] x, int64[2] z) => (int64[2] y)
        { a = Max (x, z) b = Max (z, x) y = Sub (a, b) }"""
    )
    rewritten, _ = apply(DedupNodes(), source)
    assert [node.op_type for node in rewritten.graph.node] == ["Max", "Sub"]


def test_body_uses_what_the_enclosing_graph_has_computed() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (bool c, float[2] x) => (float[2] y) {
            a = Exp (x)
            b = If (c) <
                then_branch = t () => (float[2] r) { m = Exp (x) r = Neg (m) },
                else_branch = e () => (float[2] s) { m = Exp (x) s = Abs (m) }
            >
            y = Add (a, b)
        }"""
    )
    rewritten, result = apply(DedupNodes(), source)
    assert len(result.changes) == 2
    bodies = [attribute.g for attribute in rewritten.graph.node[1].attribute]
    assert [[node.op_type for node in body.node] for body in bodies] == [["Neg"], ["Abs"]]
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_bodies_beside_each_other_do_not_share() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (bool c, float[2] x) => (float[2] y) {
            y = If (c) <
                then_branch = t () => (float[2] r) { m = Exp (x) r = Neg (m) },
                else_branch = e () => (float[2] s) { n = Exp (x) s = Abs (n) }
            >
        }""",
        DedupNodes(),
    )


def test_body_that_returns_a_value_of_the_enclosing_graph_keeps_its_node() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (bool c, float[2] x) => (float[2] y) {
            a = Exp (x)
            b = If (c) <
                then_branch = t () => (float[2] r) { r = Exp (x) },
                else_branch = e () => (float[2] s) { s = Abs (x) }
            >
            y = Add (a, b)
        }""",
        DedupNodes(),
        "both names are returned",
    )


@pytest.mark.parametrize("declared", ["2, 21", "K, 21"])
def test_an_output_whose_declared_shape_is_not_confirmed_gets_no_more_readers(
    declared: str,
) -> None:
    # onnxruntime runs the model, but may refuse nodes behind one that reads `inner`
    assert_declines(
        f"""<opset_import: ["" : 17]>
        g (float[N, M] x) => (float[N, M] y, float[{declared}] inner) {{
            inner = Exp (x)
            c = Exp (x)
            y = Neg (c)
        }}""",
        DedupNodes(),
        "may be wrong",
    )


def test_an_output_whose_declared_shape_is_inferred_serves_other_readers() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] y, float[2, 3] inner)
        { inner = Exp (x) c = Exp (x) y = Neg (c) }"""
    )
    rewritten, _ = apply(DedupNodes(), source)
    assert len(rewritten.graph.node) == 2
    assert_equivalent(source, rewritten, Fidelity.EXACT)

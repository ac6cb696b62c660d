from __future__ import annotations

import onnx
import pytest

from onnxslim.passes.eliminate_dead import EliminateDead
from onnxslim.records import Fidelity
from support import apply, assert_declines, assert_equivalent, assert_rewrites, parse

# ----------------------------------------------------------------- fires


def test_nodes_and_initializers_that_nothing_uses_are_removed() -> None:
    result = assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] y)
        <float[1] forgotten = {1}, float[3] w = {1, 2, 3}>
        {
            a = Mul (x, w)
            b = Neg (a)
            c = Exp (a)
            y = Relu (x)
        }""",
        EliminateDead(),
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 3] y) { y = Relu (x) }""",
    )
    assert "forgotten" in [change.node for change in result.changes]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("y, mask = Dropout (x)", "y = Dropout (x)"),
        ("y, where = MaxPool <kernel_shape = [2]> (x)", "y = MaxPool <kernel_shape = [2]> (x)"),
        (
            "y, mean, dev = LayerNormalization (x, s)",
            "y = LayerNormalization (x, s)",
        ),
    ],
)
def test_unused_optional_outputs_at_the_end_are_dropped(before: str, after: str) -> None:
    text = """<opset_import: ["" : 17]>
        g (float[1, 2, 3] x) => (float[a, b, c] y) {held} {{ {body} }}"""
    held = "<float[3] s = {1, 2, 3}>" if "(x, s)" in before else ""
    assert_rewrites(
        text.format(held=held, body=before), EliminateDead(), text.format(held=held, body=after)
    )


def test_unused_states_of_a_recurrent_layer_are_dropped_and_empty_inputs_too() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[2, 1, 1] x) => (float[2, 1, 1, 1] y)
        <float[1, 4, 1] w = {1, 2, 3, 4}, float[1, 4, 1] r = {1, 2, 3, 4}>
        { y, h, c = LSTM <hidden_size = 1> (x, w, r, , ) }"""
    )
    rewritten, _ = apply(EliminateDead(), source)
    (node,) = rewritten.graph.node
    assert list(node.input) == ["x", "w", "r"]
    assert list(node.output) == ["y"]
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_functions_that_nothing_calls_are_removed_and_called_ones_stay() -> None:
    source = parse(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (bool c, float[2] x) => (float[2] y) {
            y = If (c) <
                then_branch = t () => (float[2] r) { r = local.Outer (x) },
                else_branch = e () => (float[2] s) { s = Neg (x) }
            >
        }
        <opset_import: ["" : 17, "local" : 1], domain: "local">
        Outer (x) => (y) { y = local.Inner (x) }
        <opset_import: ["" : 17], domain: "local"> Inner (x) => (y) { y = Add (x, x) }
        <opset_import: ["" : 17, "local" : 1], domain: "local">
        Never (x) => (y) { y = local.NeverToo (x) }
        <opset_import: ["" : 17], domain: "local"> NeverToo (x) => (y) { y = Neg (x) }"""
    )
    rewritten, result = apply(EliminateDead(), source)
    assert [function.name for function in rewritten.functions] == ["Outer", "Inner"]
    assert [change.node for change in result.changes] == ["Never", "NeverToo"]
    assert len(source.functions) == 4
    assert_equivalent(source, rewritten, Fidelity.EXACT)


# ----------------------------------------------------------------- declines


@pytest.mark.parametrize(
    "body",
    [
        "y, mask = Dropout (x) z = Not (mask)",  # used
        "a, b = Split (x) y = Concat <axis = 0> (a, a) z = Cast <to = 9> (x)",  # not optional
        "v, i = TopK (x, one) y = Cast <to = 1> (i) z = Cast <to = 9> (x)",
    ],
)
def test_what_is_needed_stays(body: str) -> None:
    held = "<int64[1] one = {1}>" if "one" in body else ""
    assert_declines(
        f"""<opset_import: ["" : 13]>
        g (float[2] x) => (float[n] y, bool[2] z) {held} {{ {body} }}""",
        EliminateDead(),
    )


def test_unused_inputs_of_the_model_stay() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (float[2] x, float[2] never) => (float[2] y) { y = Neg (x) }""",
        EliminateDead(),
    )


def test_outputs_of_an_old_batch_normalization_say_that_it_trains() -> None:
    text = """<opset_import: ["" : 9]>
        g (float[1, 2, 3] x) => (float[1, 2, 3] y)
        <float[2] s = {1, 1}, float[2] b = {0, 0}, float[2] m = {0, 0}, float[2] v = {1, 1}>
        { y, rm, rv, sm, sv = BatchNormalization (x, s, b, m, v) }"""
    source = onnx.parser.parse_model(text.replace("<opset", "<ir_version: 8, opset", 1))
    rewritten, result = apply(EliminateDead(), source)
    assert result.changes == ()
    assert len(rewritten.graph.node[0].output) == 5


# ----------------------------------------------------------------- edges


def test_node_with_a_body_goes_with_everything_that_it_captured() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            a = Mul (x, w)
            z = If (c) <
                then_branch = t () => (float[2] r) { r = Neg (a) },
                else_branch = e () => (float[2] s) { s = Add (a, w) }
            >
            y = Relu (x)
        }""",
        EliminateDead(),
        """<opset_import: ["" : 17]>
        g (bool c, float[2] x) => (float[2] y) { y = Relu (x) }""",
    )


def test_dead_nodes_and_initializers_in_a_body_are_removed() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (bool c, float[2] x) => (float[2] y) {
            y = If (c) <
                then_branch = t () => (float[2] r) <float[2] k = {1, 2}>
                    { d = Exp (x) r = Neg (x) },
                else_branch = e () => (float[2] s) { s = Abs (x) }
            >
        }"""
    )
    rewritten, _ = apply(EliminateDead(), source)
    body = next(a.g for a in rewritten.graph.node[0].attribute if a.name == "then_branch")
    assert [node.op_type for node in body.node] == ["Neg"]
    assert not body.initializer
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_value_that_a_loop_carries_for_nothing_stays() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) <int64 n = {2}, bool go = {1}> {
            y, z = Loop (n, go, x, x) <
                body = b (int64 i, bool p, float[2] s, float[2] t)
                    => (bool q, float[2] u, float[2] v)
                { q = Identity (p) u = Neg (s) v = Exp (t) }
            >
        }""",
        EliminateDead(),
    )


@pytest.mark.parametrize(("fill", "is_dropped"), [("0", True), ("1", False)])
def test_initial_states_of_zeros_are_left_out_with_what_makes_them(
    fill: str, is_dropped: bool
) -> None:
    source = parse(
        f"""<opset_import: ["" : 17]>
        g (float[5, N, 4] x, float[1, 8, 4] w, float[1, 8, 2] r) => (float[a, b, c, d] y)
        <int64[1] one = {{1}}, int64[1] two = {{2}}> {{
            batch = Shape <start = 1, end = 2> (x)
            shape = Concat <axis = 0> (one, batch, two)
            h = ConstantOfShape <value = float[1] {{{fill}}}> (shape)
            y = LSTM <hidden_size = 2> (x, w, r, , , h, h)
        }}"""
    )
    rewritten, _ = apply(EliminateDead(), source)
    assert len(rewritten.graph.node) == (1 if is_dropped else 4)
    assert_equivalent(source, rewritten, Fidelity.EXACT)

"""Tables of tokens, the mask of padding with the value that leaves out, and caches."""

from __future__ import annotations

import pytest

from onnxslim.analysis.token_inputs import cache_outputs, padding_mask, vocabularies
from onnxslim.graph.ir import Graph
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from support import parse

ONES = ", ".join(["1"] * 24)
BEFORE = "h = Gather (table, ids) q = MatMul (h, turned)"
AFTER = "p = Softmax <axis = -1> (s) y = MatMul (p, h)"
LOW = "float low = {-10000}, float zero = {0}, float one = {1}, int64[1] second = {1}"


def graph_of(mask: str, body: str, weights: str = "", inputs: str = "") -> Graph:
    """Scores (N, T, T) of tokens for each other, which `body` masks as `s`."""
    own = f"float[12, 2] table = {{{ONES}}}, {LOW}" + (f", {weights}" if weights else "")
    given = f"int64[N, T] ids, {mask}" + (f", {inputs}" if inputs else "")
    text = f"""<opset_import: ["" : 17, "com.microsoft" : 1]>
    g ({given}) => (float[N, T, 2] y) <{own}> {{
        h = Gather (table, ids) t = Transpose <perm = [0, 2, 1]> (h) q = MatMul (h, t)
        {body} {AFTER}
    }}"""
    model = Model.load(parse(text))
    infer_shapes(model)
    return model.graph


FLOATS = "c = Cast <to = 1> (mask) u = Unsqueeze (c, second)"
TRUTHS = "c = Cast <to = 9> (mask) u = Unsqueeze (c, second)"


@pytest.mark.parametrize(
    ("body", "left_out"),
    [
        (f"{FLOATS} o = Sub (one, u) b = Mul (o, low) s = Add (q, b)", 0),
        (f"{TRUTHS} b = Where (u, zero, low) s = Add (q, b)", 0),
        (f"{TRUTHS} n = Not (u) s = Where (n, low, q)", 0),
        (f"{TRUTHS} s = Where (u, q, low)", 0),
        (f"{TRUTHS} s = Where (u, low, q)", 1),  # says what is padding
        (f"{FLOATS} b = Mul (u, low) s = Add (q, b)", 1),
        (
            f"{TRUTHS} f = Greater (q, zero) a = And (f, u) b = Where (a, zero, low) "
            "s = Add (q, b)",
            0,
        ),
        (
            f"{FLOATS} e = Shape (q) w = Expand (u, e) o = Sub (one, w) k = Cast <to = 9> (o) "
            "b = Where (k, low, o) s = Add (b, q)",
            0,
        ),
        (f"{FLOATS} s = Mul (q, u)", 0),  # nothing is left of the others
        (f"{FLOATS} s = Add (q, u)", None),  # a number, but none that leaves out
        (f"{FLOATS} o = Mul (u, low) a = Mul (q, u) s = Add (a, o)", None),  # both at once
        ("s = Identity (q)", None),
    ],
)
def test_what_a_mask_does_tells_the_value_that_leaves_out(body: str, left_out: int | None) -> None:
    found = padding_mask(graph_of("int64[N, T] mask", body))
    assert (found and (found.name, found.left_out, found.tokens)) == (
        left_out if left_out is None else ("mask", left_out, "ids")
    )


def test_operators_of_attention_tell_it() -> None:
    body = """k = com.microsoft.MultiHeadAttention <num_heads = 1> (h, h, h, none, mask)
    s = Add (q, zero) z = Identity (k)"""
    found = padding_mask(graph_of("int32[N, T] mask", body.replace("none", "")))
    assert found is not None
    assert found.left_out == 0


def test_indices_are_no_mask_and_a_mask_of_other_rows_is_not_that_of_the_tokens() -> None:
    body = f"{TRUTHS} k = Gather (table, mask) m = Add (h, k) s = Where (u, q, low)"
    assert padding_mask(graph_of("int64[N, T] mask", body)) is None
    body = f"{TRUTHS} x = ReduceMean (rows) m = Add (h, x) s = Where (u, q, low)"
    assert padding_mask(graph_of("int64[N, S] mask", body, inputs="float[N, S, 2] rows")) is None
    assert padding_mask(graph_of("int64[N, T] mask", body, inputs="float[N, S, 2] rows"))


def test_tables_that_tokens_index() -> None:
    graph = graph_of("int64[N, T] mask", "s = Identity (q)")
    assert vocabularies(graph) == {"ids": 12}
    text = """<opset_import: ["" : 17]>
    g (int64[N] ids, float[M, 2] t) => (float[N, 2] y, float[N, 2] z)
    <float[3, 2] table = {1, 1, 1, 1, 1, 1}> { y = Gather (table, ids) z = Gather (t, ids) }"""
    model = Model.load(parse(text))
    infer_shapes(model)
    assert vocabularies(model.graph) == {}  # no sequence; and no table that is stored


def test_caches_and_their_axis_of_positions() -> None:
    text = """<opset_import: ["" : 17]>
    g (int64[N, T] ids, int64[N, A] mask, float[N, 1, P, 2] past)
        => (float[N, T, 2] y, float[N, 1, A, 2] present)
    <float[12, 2] table = {ONES}, LOW, int64[2] places = {1, 2}> {
        h = Gather (table, ids) k = Unsqueeze (h, second)
        present = Concat <axis = -2> (past, k) t = Transpose <perm = [0, 1, 3, 2]> (present)
        q = MatMul (k, t) c = Cast <to = 9> (mask) u = Unsqueeze (c, places)
        s = Where (u, q, low) p = Softmax <axis = -1> (s) m = MatMul (p, present)
        y = Squeeze (m, second)
    }"""
    text = text.replace("{ONES}", f"{{{ONES}}}").replace("LOW", LOW)
    model = Model.load(parse(text))
    infer_shapes(model)
    assert cache_outputs(model.graph) == {"present"}
    found = padding_mask(model.graph)
    assert found is not None
    assert (found.name, found.cache) == ("mask", ("past", 2))

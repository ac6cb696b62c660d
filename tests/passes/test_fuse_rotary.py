from __future__ import annotations

import re

import pytest
from attention_nets import assert_same, operators
from cases import case

from onnxslim.passes.fuse_attention import FuseAttention
from onnxslim.passes.fuse_rotary import FuseRotary
from support import apply, assert_declines, canonical, parse

TABLES = """
    both = Concat <axis = -1> (angles, angles)
    c0 = Cos (both) c1 = Mul (c0, two) c = Unsqueeze (c1, one)
    s0 = Sin (both) s = Unsqueeze (s0, one)
"""
HEADS = "q1 = Reshape (q, cut) x = Transpose <perm = [0, 2, 1, 3]> (q1)"
HALVES = "left, right = Split <axis = -1, num_outputs = 2> (x)"
SLICES = """
    left = Slice (x, zero, half, three)
    right = Slice (x, half, end, three)
"""
TURNED = """
    n = Neg (right) t = Concat <axis = -1> (n, left)
    a = Mul (x, c) b = Mul (t, s) y = Add (a, b)
"""
CONSTANTS = (
    "int64[4] cut = {0, 0, 2, 4}, int64[1] one = {1}, int64[1] zero = {0}, int64[1] half = {2}, "
    "int64[1] end = {9223372036854775807}, int64[1] three = {3}, float two = {2}"
)


def spelled(
    tables: str = TABLES,
    heads: str = HEADS,
    halves: str = HALVES,
    turned: str = TURNED,
    *,
    inputs: str = "float[B, S, 8] q, float[B, S, 2] angles",
    outputs: str = "float[B, 2, S, 4] y",
    constants: str = CONSTANTS,
    opset: int = 23,
) -> str:
    """Rotations of two heads of 4 in (batch, heads, length, width)."""
    body = f"{tables} {heads} {halves} {turned}"
    return f'<opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) <{constants}> {{ {body} }}'


LENGTH_FIRST = {
    "tables": TABLES.replace(", one)", ", third)"),
    "heads": "x = Reshape (q, cut)",
    "outputs": "float[B, S, 2, 4] y",
    "constants": f"{CONSTANTS}, int64[1] third = {{2}}",
}
PAIRS = {
    "tables": """c0 = Cos (angles) c2 = Unsqueeze (c0, at3) c3 = Expand (c2, twice)
        c4 = Reshape (c3, flat3) c = Unsqueeze (c4, one)
        s0 = Sin (angles) s2 = Unsqueeze (s0, at3) s3 = Concat <axis = -1> (s2, s2)
        s4 = Reshape (s3, flat3) s = Unsqueeze (s4, one)""",
    "halves": "left = Slice (x, zero, end, three, step) right = Slice (x, one, end, three, step)",
    "turned": """n = Neg (right) n1 = Unsqueeze (n, at4) l1 = Unsqueeze (left, at4)
        t1 = Concat <axis = -1> (n1, l1) t = Reshape (t1, flat4)
        a = Mul (x, c) b = Mul (t, s) y = Add (a, b)""",
    "constants": f"{CONSTANTS}, int64[1] at3 = {{3}}, int64[1] at4 = {{4}}, int64[1] step = {{2}}, "
    "int64[4] twice = {1, 1, 1, 2}, int64[3] flat3 = {0, 0, 4}, int64[4] flat4 = {0, 0, 0, 4}",
}


def partial(parts: str, text: str, behind: str = "y = Concat <axis = -1> (z, rest)") -> str:
    """The same of heads of 6, of which the first 4 columns, `p`, are rotated."""
    whole, _, body = text.partition("x = ")
    head, _, body = body.partition(")")
    body = re.sub(r"\bx\b", "p", body).replace("y = Add", "z = Add")
    body = body.replace("} }", "}").rstrip()[:-1]
    text = f"{whole}x = {head}) {parts} {body} {behind} }}"
    sizes = {"S, 8] q": "S, 12] q", "cut = {0, 0, 2, 4}": "cut = {0, 0, 2, 6}"}
    for old, new in {**sizes, "S, 4] y": "S, 6] y", "2, 4] y": "2, 6] y"}.items():
        text = text.replace(old, new)
    return text.replace("float two", "int64[2] sizes = {4, 2}, int64[1] four = {4}, float two")


BY_SPLIT = "p, rest = Split <axis = -1> (x, sizes)"
BY_SLICES = "p = Slice (x, zero, four, three) rest = Slice (x, four, end, three)"
PARTIAL = {
    "first columns by Split": partial(BY_SPLIT, spelled()),
    "first columns by Slice": partial(BY_SLICES, spelled(halves=SLICES)),
    "first columns, neighbours": partial(BY_SPLIT, spelled(**PAIRS)),
    "first columns, length before heads": partial(BY_SPLIT, spelled(**LENGTH_FIRST)),
}
FORMS = {
    **PARTIAL,
    "neighbours": spelled(**PAIRS),
    "halves by Split": spelled(),
    "halves by Slice": spelled(halves=SLICES),
    "factors the other way round": spelled(
        turned=TURNED.replace("Mul (x, c)", "Mul (c, x)").replace("Add (a, b)", "Add (b, a)")
    ),
    "length before heads": spelled(**LENGTH_FIRST),
    "one row of angles for all": spelled(inputs="float[B, S, 8] q, float[1, S, 2] angles"),
    "a table of cosines": spelled(
        tables="c0 = Gather (table, at) c = Unsqueeze (c0, one) s0 = Gather (table, at) "
        "s1 = Div (s0, two) s = Unsqueeze (s1, one)",
        inputs="float[B, S, 8] q, int64[B, S] at",
        constants=f"{CONSTANTS}, float[4, 4] table = "
        "{1, 2, 1, 2, 3, 4, 3, 4, 5, 6, 5, 6, 7, 8, 7, 8}",
    ),
}


# ------------------------------------------------------------------------------ fires


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_one_operator_on_joined_heads(form: str) -> None:
    source = parse(FORMS[form], ir_version=11)
    result, report = apply(FuseRotary(), source)
    (node,) = (item for item in result.graph.node if item.op_type == "RotaryEmbedding")
    assert node.input[0] == "q"
    assert "Neg" not in operators(result)
    assert report.skips == ()
    for batch, rows in ((1, 1), (2, 5), (3, 2)):
        with case(form, batch, rows):
            assert_same(source, result, {"B": batch, "S": rows})


@pytest.mark.parametrize("form", PARTIAL)
def test_columns_that_are_not_rotated_go_through_the_operator(form: str) -> None:
    result, _ = apply(FuseRotary(), parse(PARTIAL[form], ir_version=11))
    (node,) = (item for item in result.graph.node if item.op_type == "RotaryEmbedding")
    values = {item.name: item.i for item in node.attribute}
    assert values["rotary_embedding_dim"] == 4
    assert "Split" not in operators(result)
    assert "Concat" not in [item.op_type for item in result.graph.node if "y" in item.output]


@pytest.mark.parametrize(
    "behind",
    [
        "y = Concat <axis = -1> (rest, z)",  # the last columns are rotated
        "n2 = Neg (rest) y = Concat <axis = -1> (z, n2)",  # the others are changed as well
    ],
)
def test_other_columns_beside_a_rotation_stay_where_they_are(behind: str) -> None:
    source = parse(partial(BY_SPLIT, spelled(), behind), ir_version=11)
    result, _ = apply(FuseRotary(), source)
    (node,) = (item for item in result.graph.node if item.op_type == "RotaryEmbedding")
    assert "rotary_embedding_dim" not in [item.name for item in node.attribute]
    assert operators(result)[-1] == "Concat"
    assert_same(source, result, {"B": 2, "S": 3})


def test_heads_that_are_given_as_such_are_read_so() -> None:
    text = spelled(heads="", inputs="float[B, 2, S, 4] x, float[B, S, 2] angles")
    source = parse(text, ir_version=11)
    result, _ = apply(FuseRotary(), source)
    assert operators(result)[-1] == "RotaryEmbedding"
    assert_same(source, result, {"B": 2, "S": 3})


def test_attention_behind_it_reads_joined_heads() -> None:
    attention = """
        k = Transpose <perm = [0, 1, 3, 2]> (y) d = MatMul (y, k) p = Softmax (d)
        h = MatMul (p, x) h1 = Transpose <perm = [0, 2, 1, 3]> (h) z = Reshape (h1, joined)
    """
    text = spelled(
        turned=TURNED + attention,
        outputs="float[B, S, 8] z",
        constants=f"{CONSTANTS}, int64[3] joined = {{0, 0, 8}}",
    )
    source = parse(text, ir_version=11)
    rotated, _ = apply(FuseRotary(), source)
    result, _ = apply(FuseAttention(), rotated)
    assert [op for op in operators(result) if op in ("Reshape", "Transpose", "Attention")] == [
        "Attention"
    ]
    assert_same(source, result, {"B": 2, "S": 3})


def test_layers_share_their_tables() -> None:
    second = re.sub(r"\b(left|right|n|t|a|b|y)\b", r"\g<1>9", HALVES + TURNED)
    text = spelled(turned=TURNED + second, outputs="float[B, 2, S, 4] y, float[B, 2, S, 4] y9")
    source = parse(text, ir_version=11)
    result, _ = apply(FuseRotary(), source)
    assert operators(result).count("RotaryEmbedding") == 2
    assert operators(result).count("Slice") == 2
    assert_same(source, result, {"B": 2, "S": 3})


def test_a_lower_opset_is_raised_and_said() -> None:
    source = parse(spelled(opset=18))
    result, report = apply(FuseRotary(), source)
    assert result.opset_import[0].version == 23
    assert report.changes[0].what == "opset raised from 18 to 23: RotaryEmbedding nodes need it"
    kept, report = apply(FuseRotary(raises_opset=False), source)
    assert (report.changes, report.skips) == ((), ())
    assert canonical(kept) == canonical(source)


# ------------------------------------------------------------------------------ declines


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            spelled(
                tables=TABLES.replace("(angles, angles)", "(angles, others)"),
                inputs="float[B, S, 8] q, float[B, S, 2] angles, float[B, S, 2] others",
            ),
            "not known to be equal",
        ),
        (
            spelled(
                turned=TURNED + "z = Exp (t)", outputs="float[B, 2, S, 4] y, float[B, 2, S, 4] z"
            ),
            "used elsewhere",
        ),
        (
            spelled(
                tables="c = Cos (angles) s = Sin (angles)",
                inputs="float[B, S, 8] q, float[B, 2, S, 4] angles",
            ),
            "not known to be the same for all heads",
        ),
        (spelled().replace("float", "double"), "neither float32 nor float16"),
        *(
            (spelled(inputs=f"float[B, S, 8] q, float[{size}, 2] angles"), "as many positions")
            for size in ("2, S", "C, S", "B, 5", "B, T")  # q may have a batch or length of one
        ),
    ],
)
def test_other_rotations_stay_and_the_reason_is_said(text: str, why: str) -> None:
    assert_declines(text, FuseRotary(), why)


def test_neighbours_with_the_tables_of_halves_are_declined() -> None:
    text = spelled(**{**PAIRS, "tables": TABLES})
    assert_declines(text, FuseRotary(), "not known to be equal")


def test_another_rotation_is_none() -> None:
    swapped = TURNED.replace("(n, left)", "(left, n)")
    result = assert_declines(spelled(turned=swapped), FuseRotary())
    assert result.skips == ()

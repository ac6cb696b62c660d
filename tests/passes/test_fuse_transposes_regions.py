"""Transposes that cancel, or do not, across operators with axes."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onnxslim.passes.fuse_transposes import FuseTransposes
from onnxslim.records import Fidelity
from support import apply, assert_equivalent, parse

NUMBERS = ", ".join(map(str, range(40)))
# operator between the Transposes, and constants that it reads
ACROSS = {
    "Softmax <axis = -1> (a)": "",
    "LogSoftmax <axis = 2> (a)": "",
    "ReduceMean <axes = [-1, 1]> (a)": "",
    "ReduceMax <axes = [3]> (a)": "",
    "ReduceSum (a, two)": "int64[1] two = {2}",
    "ReduceL2 (a)": "",
    "ArgMax <axis = 3> (a)": "",
    "Concat <axis = 3> (a, a)": "",
    "Concat <axis = -1> (a, part)": f"float[2, 4, 5, 1] part = {{{NUMBERS}}}",
    "Slice (a, one, two, three)": "int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}",
    "Slice (a, one, two)": "int64[2] one = {0, 1}, int64[2] two = {2, 3}",
    "Pad (a, pads)": "int64[8] pads = {0, 1, 2, 0, 3, 0, 0, 1}",
    "Gather <axis = 2> (a, places)": "int64[3] places = {3, 0, 1}",
    "CumSum (a, axis)": "int64 axis = {-1}",
    "LayerNormalization (a, scale, scale)": "float[3] scale = {1, 2, 3}",
    "Mul (a, scale)": "float[3] scale = {1, 2, 3}",
    "Add (a, scale)": "float[4, 1, 1] scale = {1, 2, 3, 4}",
    "Mul (a, one)": "float one = {2}",
}


def between(op: str, constants: str, perm: tuple[int, ...], back: tuple[int, ...]) -> str:
    """A model with `op` between a Transpose by `perm` and one by `back`."""
    shape = [0] * 4
    for place, size in zip(perm, (2, 4, 5, 3), strict=True):  # of `a`, whatever the permutation
        shape[place] = size
    kind = "int64" if op.startswith("Arg") else "float"
    return f"""<opset_import: ["" : 17]>
    g (float[{", ".join(map(str, shape))}] x) => ({kind}[a, b, c, d] y) <{constants}> {{
        a = Transpose <perm = {list(perm)}> (x)
        b = {op}
        y = Transpose <perm = {list(back)}> (b)
    }}"""


def transposes(model: object) -> int:
    """Number of Transposes."""
    return sum(node.op_type == "Transpose" for node in model.graph.node)  # type: ignore[attr-defined]


@pytest.mark.parametrize("op", ACROSS)
def test_inverse_transposes_cancel_across(op: str) -> None:
    perm, back = (0, 2, 3, 1), (0, 3, 1, 2)
    if op.startswith("LayerNormalization"):  # its axis stays the last
        perm = back = (0, 2, 1, 3)
    source = parse(between(op, ACROSS[op], perm, back))
    rewritten, _ = apply(FuseTransposes(), source)
    assert transposes(rewritten) == 0
    assert_equivalent(source, rewritten, Fidelity.CLOSE)


@settings(max_examples=25, deadline=None)
@example("ReduceMax <axes = [3]> (a)", (0, 2, 3, 1), (0, 2, 3, 1))
@given(
    st.sampled_from(sorted(ACROSS)),
    st.permutations(range(4)).map(tuple),
    st.permutations(range(4)).map(tuple),
)
def test_any_permutations_give_the_same_values(
    op: str, perm: tuple[int, ...], back: tuple[int, ...]
) -> None:
    source = parse(between(op, ACROSS[op], perm, back))
    rewritten, _ = apply(FuseTransposes(), source)
    assert transposes(rewritten) <= transposes(source)
    assert_equivalent(source, rewritten, Fidelity.CLOSE)


def test_split_and_diamonds_move_as_a_whole() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[2, 4, 5, 6] x) => (float[2, 2, 5, 6] y, float[2, 2, 5, 6] z) {
            a = Transpose <perm = [0, 2, 3, 1]> (x)
            b, c = Split <axis = 3> (a)
            d = Sigmoid (b)
            e = Mul (b, d)
            y = Transpose <perm = [0, 3, 1, 2]> (e)
            z = Transpose <perm = [0, 3, 1, 2]> (c)
        }"""
    )
    rewritten, _ = apply(FuseTransposes(), source)
    assert sorted(n.op_type for n in rewritten.graph.node) == ["Mul", "Sigmoid", "Split"]
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_values_that_others_read_as_well_get_one_transpose_where_two_are_saved() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[2, 4, 5] x) => (float[2, 4, 5] y, float[2, 20] z) {
            a = Transpose <perm = [0, 2, 1]> (x)
            b = Softmax <axis = 2> (a)
            y = Transpose <perm = [0, 2, 1]> (b)
            z = Flatten (b)
        }"""
    )
    rewritten, _ = apply(FuseTransposes(), source)
    assert transposes(rewritten) == 1
    assert_equivalent(source, rewritten, Fidelity.CLOSE)


def test_arg_max_behind_a_transpose_takes_another_axis() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[2, 4, 5, 6] x) => (int64[2, 5, 6] y) {
            a = Transpose <perm = [0, 2, 3, 1]> (x)
            y = ArgMax <axis = -1, keepdims = 0> (a)
        }"""
    )
    rewritten, _ = apply(FuseTransposes(), source)
    assert [n.op_type for n in rewritten.graph.node] == ["ArgMax"]
    assert_equivalent(source, rewritten, Fidelity.EXACT)


@pytest.mark.parametrize(
    ("opset", "nodes"),
    [
        # below opset 13, Softmax normalises all axes from its own on together
        (11, "b = Softmax <axis = 2> (a) y = Transpose <perm = [0, 3, 1, 2]> (b)"),
        (17, "b = Flatten (a) c = Reshape (b, s) y = Transpose <perm = [0, 3, 1, 2]> (c)"),
        (17, "b = Add (a, other) y = Transpose <perm = [0, 3, 1, 2]> (b)"),
    ],
)
def test_transposes_stay_around(opset: int, nodes: str) -> None:
    source = parse(
        f"""<opset_import: ["" : {opset}]>
        g (float[2, 3, 4, 5] x, float[5, 3] other) => (float[2, 3, 4, 5] y)
        <int64[4] s = {{2, 4, 5, 3}}> {{ a = Transpose <perm = [0, 2, 3, 1]> (x) {nodes} }}"""
    )
    rewritten, _ = apply(FuseTransposes(), source)
    assert transposes(rewritten) == 2
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_lower_rank_operands_move_where_the_leading_axes_stay() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[2, 4, 5] x, float[4, 5] z) => (float[2, 4, 5] y) {
            a = Transpose <perm = [0, 2, 1]> (x)
            c = Transpose <perm = [1, 0]> (z)
            b = Mul (a, c)
            y = Transpose <perm = [0, 2, 1]> (b)
        }"""
    )
    rewritten, _ = apply(FuseTransposes(), source)
    assert transposes(rewritten) == 0
    assert_equivalent(source, rewritten, Fidelity.EXACT)


SPELLED = {
    "Gelu": "d = Div (a, root) e = Erf (d) o = Add (e, one) m = Mul (a, o) n = Mul (m, half)",
    "RMSNormalization": "q = Pow (a, two) m = ReduceMean <axes = [-1]> (q) e = Add (m, half)"
    " r = Sqrt (e) d = Div (a, r) n = Mul (d, g)",
}


@pytest.mark.parametrize("body", SPELLED.values(), ids=SPELLED)
@pytest.mark.parametrize("perm", [(0, 2, 1), (1, 0, 2)])
def test_spelled_operators_move_whole_and_stay_on_the_last_axis(
    body: str, perm: tuple[int, ...]
) -> None:
    back = list(perm)  # each of them undoes itself
    source = parse(f"""<opset_import: ["" : 17]>
    g (float[4, 4, 4] x) => (float[4, 4, 4] y)
        <float root = {{1.4142135}}, float one = {{1}}, float two = {{2}}, float half = {{0.5}},
         float[4] g = {{1, 2, 3, 4}}> {{
        a = Transpose <perm = {back}> (x) {body}
        y = Transpose <perm = {back}> (n)
    }}""")
    rewritten, result = apply(FuseTransposes(), source)
    assert_equivalent(source, rewritten, Fidelity.CLOSE)
    stays = "ReduceMean" in body and perm[-1] != 2
    assert transposes(rewritten) == (2 if stays else 0)
    assert any("a fused kernel" in skip.why for skip in result.skips) is stays

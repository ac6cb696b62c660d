from __future__ import annotations

import onnx
import pytest
from chains import chains, check, cut, elementwise, fork, pick, split
from hypothesis import HealthCheck, given, settings

from onnxslim.passes.fuse_slices import FuseSlices
from onnxslim.records import Fidelity
from support import apply, assert_declines, assert_equivalent, assert_rewrites, parse

HEADER = '<opset_import: ["" : 17]>'


def test_slices_on_two_axes_become_one() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 9] x) => (float[A, B] y)
        <int64[1] one = {{1}}, int64[1] three = {{3}}, int64[1] zero = {{0}}> {{
            a = Slice (x, one, three, zero)
            y = Slice (a, zero, three, one)
        }}""",
        FuseSlices(),
        f"""{HEADER}
        g (float[N, 9] x) => (float[A, B] y) <int64[2] s = {{1, 0}}, int64[2] e = {{3, 3}}> {{
            y = Slice (x, s, e)
        }}""",
    )


def test_slices_on_one_axis_of_unknown_size_are_composed() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N] x) => (float[A] y)
        <int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] big = {{9223372036854775807}},
         int64[1] zero = {{0}}, int64[1] five = {{5}}> {{
            a = Slice (x, one, big, zero, two)
            y = Slice (a, two, five, zero)
        }}""",
        FuseSlices(),
        f"""{HEADER}
        g (float[N] x) => (float[A] y)
        <int64[1] s = {{5}}, int64[1] e = {{11}}, int64[1] a = {{0}}, int64[1] t = {{2}}> {{
            y = Slice (x, s, e, a, t)
        }}""",
    )


@pytest.mark.parametrize("opset", [11, 17, 18])
def test_slices_that_are_all_of_one_axis_become_a_split(opset: int) -> None:
    lengths = ", split = [1, 3]" if opset < 13 else ""
    operand = "" if opset < 13 else ", s"
    constant = "" if opset < 13 else "<int64[2] s = {1, 3}>"
    header = HEADER.replace("17", str(opset))
    assert_rewrites(
        f"""{header}
        g (float[N, 4] x) => (float[N, 3] y, float[N, 1] z)
        <int64[1] one = {{1}}, int64[1] zero = {{0}}, int64[1] four = {{4}}> {{
            y = Slice (x, one, four, one)
            z = Slice (x, zero, one, one)
        }}""",
        FuseSlices(),
        f"""{header}
        g (float[N, 4] x) => (float[N, 3] y, float[N, 1] z) {constant} {{
            z, y = Split <axis = 1{lengths}> (x{operand})
        }}""",
    )


def test_slice_of_one_element_and_squeeze_become_a_gather() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 4] x) => (float[N] y)
        <int64[1] one = {{1}}, int64[1] m = {{-1}}, int64[1] big = {{9223372036854775807}}> {{
            a = Slice (x, m, big, one)
            y = Squeeze (a, one)
        }}""",
        FuseSlices(),
        f"""{HEADER}
        g (float[N, 4] x) => (float[N] y) <int64 i = {{3}}> {{
            y = Gather <axis = 1> (x, i)
        }}""",
    )


def test_split_whose_parts_are_squeezed_becomes_gathers() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[2, N] x) => (float[N] y, float[N] z) <int64[1] zero = {{0}}> {{
            a, b = Split (x)
            y = Squeeze (a, zero)
            z = Squeeze (b, zero)
        }}""",
        FuseSlices(),
        f"""{HEADER}
        g (float[2, N] x) => (float[N] y, float[N] z) <int64 i = {{0}}, int64 j = {{1}}> {{
            y = Gather (x, i)
            z = Gather (x, j)
        }}""",
    )


def test_concat_of_a_split_is_what_was_split() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 4] x) => (float[N, 4] y) {{
            a, b = Split <axis = 1> (x)
            c = Concat <axis = -1> (a, b)
            y = Relu (c)
        }}""",
        FuseSlices(),
        f"""{HEADER}
        g (float[N, 4] x) => (float[N, 4] y) {{
            y = Relu (x)
        }}""",
    )


def test_gather_of_everything_in_order_goes() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 3] x) => (float[N, 3] y) <int64[3] i = {{0, 1, 2}}> {{
            a = Gather <axis = 1> (x, i)
            y = Relu (a)
        }}""",
        FuseSlices(),
        f"""{HEADER}
        g (float[N, 3] x) => (float[N, 3] y) {{
            y = Relu (x)
        }}""",
    )


def test_slices_of_a_shared_slice_read_its_input() -> None:
    """As patches of a picture are merged: every other row, then every other column of it."""
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 4, 6] x) => (float[N, 2, 3] y, float[N, 2, 3] z)
        <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}},
         int64[1] big = {{9223372036854775807}}> {{
            a = Slice (x, one, big, one, two)
            y = Slice (a, zero, big, two, two)
            z = Slice (a, one, big, two, two)
        }}""",
        FuseSlices(),
        f"""{HEADER}
        g (float[N, 4, 6] x) => (float[N, 2, 3] y, float[N, 2, 3] z)
        <int64[2] s = {{1, 0}}, int64[2] e = {{9223372036854775807, 9223372036854775807}},
         int64[2] a = {{1, 2}}, int64[2] t = {{2, 2}}, int64[2] s1 = {{1, 1}},
         int64[2] e1 = {{9223372036854775807, 9223372036854775807}}, int64[2] a1 = {{1, 2}},
         int64[2] t1 = {{2, 2}}> {{
            y = Slice (x, s, e, a, t)
            z = Slice (x, s1, e1, a1, t1)
        }}""",
    )


def test_slices_that_share_all_of_a_slice_become_a_split_of_it() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 4, 6] x) => (float[N, 2, 3] y, float[N, 2, 3] z)
        <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] three = {{3}},
         int64[1] six = {{6}}> {{
            a = Slice (x, zero, two, one)
            y = Slice (a, zero, three, two)
            z = Slice (a, three, six, two)
        }}""",
        FuseSlices(),
        f"""{HEADER}
        g (float[N, 4, 6] x) => (float[N, 2, 3] y, float[N, 2, 3] z)
        <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}> {{
            a = Slice (x, zero, two, one)
            y, z = Split <axis = 2> (a)
        }}""",
    )


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            """g (float[N] x) => (float[A] y)
            <int64[1] m = {-3}, int64[1] big = {9223372036854775807}, int64[1] zero = {0},
             int64[1] one = {1}> {
                a = Slice (x, m, big, zero)
                y = Slice (a, one, big, zero)
            }""",
            "counts from an end",
        ),
        (
            """g (float[N] x) => (float[A] a, float[B] y)
            <int64[1] big = {9223372036854775807}, int64[1] zero = {0}, int64[1] one = {1}> {
                a = Slice (x, one, big, zero)
                y = Slice (a, one, big, zero)
            }""",
            "other users",
        ),
        (
            """g (float[N, 4] x) => (float[A, B] y, float[C, D] z)
            <int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] four = {4}> {
                y = Slice (x, zero, two, one)
                z = Slice (x, one, four, one)
            }""",
            "overlap",
        ),
        (
            """g (float[N, 4] x, int64[1] end) => (float[A, B] y)
            <int64[1] zero = {0}, int64[1] one = {1}> {
                a = Slice (x, zero, end, one)
                y = Slice (a, zero, one, zero)
            }""",
            "not known",
        ),
    ],
)
def test_it_declines(body: str, why: str) -> None:
    assert_declines(f"{HEADER}\n{body}", FuseSlices(), why)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(source=chains((cut, cut, split, pick, elementwise, fork)))
def test_random_chains_keep_their_outputs(source: onnx.ModelProto) -> None:
    check(FuseSlices(), source)


@pytest.mark.parametrize(
    ("split", "ops"),
    [
        ("SplitToSequence <axis = 1> (x, sizes)", ["Split"]),
        ("SplitToSequence <axis = 1> (x, three)", ["Split"]),
        ("SplitToSequence <axis = 1, keepdims = 0> (x)", ["Gather", "Gather"]),
        ("SequenceConstruct (x, x)", []),
        ("SplitToSequence <axis = 1> (x)", ["SplitToSequence", "SequenceAt", "SequenceAt"]),
    ],
)
def test_elements_of_a_split_sequence_are_taken_without_the_sequence(
    split: str, ops: list[str]
) -> None:
    shape = "" if "keepdims" in split else ", a"
    source = parse(
        f"""<opset_import: ["" : 17]>
        g (float[2, 5] x) => (float[2{shape}] y, float[2{shape.replace("a", "b")}] z)
        <int64[2] sizes = {{3, 2}}, int64 three = {{3}}, int64 zero = {{0}}, int64 last = {{-1}}> {{
            s = {split}
            u = SequenceAt (s, zero)
            v = SequenceAt (s, last)
            y = Neg (u)
            z = Neg (v)
        }}"""
    )
    rewritten, _ = apply(FuseSlices(), source)
    assert [n.op_type for n in rewritten.graph.node if n.op_type != "Neg"] == ops
    assert_equivalent(source, rewritten, Fidelity.EXACT)

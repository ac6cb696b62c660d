from __future__ import annotations

import onnx
import pytest
from chains import chains, check, elementwise, fork, reduce, reshape, transpose, unsqueeze
from hypothesis import HealthCheck, given, settings

from onnxslim.passes.fuse_transposes import FuseTransposes
from onnxslim.records import Fidelity
from support import assert_declines, assert_rewrites

HEADER = '<opset_import: ["" : 17]>'


def test_two_transposes_become_one() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[A, B, C] x) => (float[C, A, B] y) {{
            a = Transpose <perm = [0, 2, 1]> (x)
            y = Transpose <perm = [1, 0, 2]> (a)
        }}""",
        FuseTransposes(),
        f"""{HEADER}
        g (float[A, B, C] x) => (float[C, A, B] y) {{
            y = Transpose <perm = [2, 0, 1]> (x)
        }}""",
    )


def test_transposes_of_a_number_go() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float x) => (float y) {
            a = Transpose (x)
            b = Relu (a)
            y = Transpose (b)
        }""",
        FuseTransposes(),
        """<opset_import: ["" : 17]>
        g (float x) => (float y) { y = Relu (x) }""",
    )


def test_inverse_transposes_cancel_across_operators_and_constants_turn() -> None:
    result = assert_rewrites(
        f"""{HEADER}
        g (float[N, 3, 4] x) => (float[N, 3, 4] y)
        <float[3] c = {{1.0, 2.0, 3.0}}, float two = {{2.0}}> {{
            r = Relu (x)
            a = Transpose <perm = [0, 2, 1]> (r)
            b = Mul (a, c)
            d = Add (two, b)
            s = Sigmoid (d)
            y = Transpose <perm = [0, 2, 1]> (s)
        }}""",
        FuseTransposes(),
        f"""{HEADER}
        g (float[N, 3, 4] x) => (float[N, 3, 4] y)
        <float[3, 1] c = {{1.0, 2.0, 3.0}}, float two = {{2.0}}> {{
            r = Relu (x)
            b = Mul (r, c)
            d = Add (two, b)
            y = Sigmoid (d)
        }}""",
    )
    assert result.fidelity is Fidelity.EXACT


def test_operator_on_two_transposes_is_transposed_once() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 3, 4] x, float[N, 3, 4] z) => (float[N, 4, 3] y) {{
            a = Transpose <perm = [0, 2, 1]> (x)
            b = Transpose <perm = [0, 2, 1]> (z)
            y = Sub (a, b)
        }}""",
        FuseTransposes(),
        f"""{HEADER}
        g (float[N, 3, 4] x, float[N, 3, 4] z) => (float[N, 4, 3] y) {{
            a = Sub (x, z)
            y = Transpose <perm = [0, 2, 1]> (a)
        }}""",
    )


def test_transposition_on_joined_axes_is_one_transpose() -> None:
    """As exporters write the transposed keys of attention: batch and heads joined for it."""
    assert_rewrites(
        f"""{HEADER}
        g (float[N, L, 2, 4] x) => (float[N, 2, 4, L] y)
        <int64[1] two = {{2}}, int64[1] four = {{4}}, int64[1] minus = {{-1}}> {{
            a = Transpose <perm = [0, 2, 1, 3]> (x)
            n = Shape <start = 0, end = 1> (x)
            l = Shape <start = 1, end = 2> (x)
            joined = Concat <axis = 0> (minus, l, four)
            b = Reshape (a, joined)
            c = Transpose <perm = [0, 2, 1]> (b)
            cut = Concat <axis = 0> (n, two, four, l)
            y = Reshape (c, cut)
        }}""",
        FuseTransposes(),
        f"""{HEADER}
        g (float[N, L, 2, 4] x) => (float[N, 2, 4, L] y) {{
            y = Transpose <perm = [0, 2, 3, 1]> (x)
        }}""",
    )


def test_chain_that_regroups_and_turns_is_a_reshape_and_a_transpose() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 2, 3, 5, 4] x) => (float[N, 6, 4, 5] y)
        <int64[3] s = {{-1, 5, 4}}, int64[4] t = {{-1, 6, 4, 5}}> {{
            a = Reshape (x, s)
            b = Transpose <perm = [0, 2, 1]> (a)
            h = Reshape (b, t)
            y = Relu (h)
        }}""",
        FuseTransposes(),
        f"""{HEADER}
        g (float[N, 2, 3, 5, 4] x) => (float[N, 6, 4, 5] y) <int64[4] t = {{0, 6, 5, 4}}> {{
            d = Reshape (x, t)
            h = Transpose <perm = [0, 1, 3, 2]> (d)
            y = Relu (h)
        }}""",
    )


def test_chain_that_turns_back_is_a_reshape() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 2, 3] x) => (float[N, 6] y) <int64[2] s = {{6, -1}}> {{
            a = Transpose <perm = [1, 2, 0]> (x)
            b = Reshape (a, s)
            y = Transpose <perm = [1, 0]> (b)
        }}""",
        FuseTransposes(),
        f"""{HEADER}
        g (float[N, 2, 3] x) => (float[N, 6] y) <int64[2] t = {{0, 6}}> {{
            y = Reshape (x, t)
        }}""",
    )


def test_windows_and_shared_copies_stay() -> None:
    """Windows of a picture are no regrouping of axes; a copy that others read is there anyway."""
    assert_declines(
        f"""{HEADER}
        g (float[N, 16, 3] x) => (float[M, 4, 3] y)
        <int64[6] s = {{-1, 2, 2, 2, 2, 3}}, int64[3] t = {{-1, 4, 3}}> {{
            a = Reshape (x, s)
            b = Transpose <perm = [0, 1, 3, 2, 4, 5]> (a)
            y = Reshape (b, t)
        }}""",
        FuseTransposes(),
    )
    assert_declines(
        f"""{HEADER}
        g (float[N, 2, 5, 4] x) => (float[N, 2, 4, 5] y, float[M, 4, 5] z)
        <int64[3] s = {{-1, 5, 4}}, int64[4] t = {{-1, 2, 4, 5}}> {{
            a = Reshape (x, s)
            b = Transpose <perm = [0, 2, 1]> (a)
            z = Relu (b)
            y = Reshape (b, t)
        }}""",
        FuseTransposes(),
    )


def test_transpose_that_moves_ones_is_part_of_a_reshape() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 1, 4] x) => (float[N, 2, 2] y) <int64[3] t = {{0, 2, 2}}> {{
            a = Transpose <perm = [0, 2, 1]> (x)
            y = Reshape (a, t)
        }}""",
        FuseTransposes(),
        f"""{HEADER}
        g (float[N, 1, 4] x) => (float[N, 2, 2] y) <int64[3] t = {{0, 2, 2}}> {{
            y = Reshape (x, t)
        }}""",
    )


def test_maximum_over_a_moved_axis_needs_no_transpose() -> None:
    result = assert_rewrites(
        f"""{HEADER}
        g (float[N, 3, 4] x) => (float[N, 3] y) {{
            a = Transpose <perm = [0, 2, 1]> (x)
            y = ReduceMax <axes = [1], keepdims = 0> (a)
        }}""",
        FuseTransposes(),
        f"""{HEADER}
        g (float[N, 3, 4] x) => (float[N, 3] y) {{
            y = ReduceMax <axes = [2], keepdims = 0> (x)
        }}""",
    )
    assert result.fidelity is Fidelity.EXACT


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            """g (float[A, B, C] x) => (float[A, C, B] a, float[C, A, B] y) {
                a = Transpose <perm = [0, 2, 1]> (x)
                y = Transpose <perm = [1, 0, 2]> (a)
            }""",
            "other users",
        ),
        (  # the first Transpose stays for `r`, and the second one would too
            """g (float[A, B, C] x) => (float[A, C, B] r, float[C, A, B] y) {
                a = Transpose <perm = [0, 2, 1]> (x)
                r = Relu (a)
                s = Abs (a)
                y = Transpose <perm = [1, 0, 2]> (s)
            }""",
            "would not save a node",
        ),
        (  # the constant would be stored twice
            """g (float[A, 3, C] x) => (float[A, 3, C] y, float[3] z)
            <float[3] c = {1.0, 2.0, 3.0}> {
                z = Neg (c)
                a = Transpose <perm = [0, 2, 1]> (x)
                s = Mul (a, c)
                y = Transpose <perm = [0, 2, 1]> (s)
            }""",
            None,
        ),
        (  # a constant of higher rank adds axes in front
            """g (float[A, 3] x) => (float[1, A, 3] y) <float[1, 3, 1] c = {1.0, 2.0, 3.0}> {
                a = Transpose <perm = [1, 0]> (x)
                s = Mul (a, c)
                y = Transpose <perm = [0, 2, 1]> (s)
            }""",
            None,
        ),
        (  # the axes that stay are in another order
            """g (float[A, B, C] x) => (float[C, A] y) {
                a = Transpose <perm = [2, 0, 1]> (x)
                y = ReduceMax <axes = [2], keepdims = 0> (a)
            }""",
            None,
        ),
    ],
)
def test_it_declines(body: str, why: str | None) -> None:
    assert_declines(f"{HEADER}\n{body}", FuseTransposes(), why)


STEPS = (transpose, transpose, elementwise, elementwise, reshape, unsqueeze, reduce, fork)


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(source=chains(STEPS))
def test_random_chains_keep_their_outputs(source: onnx.ModelProto) -> None:
    check(FuseTransposes(), source)


def test_a_region_that_nothing_reads_stays() -> None:
    """A dead node has nobody behind it who would take the Transposes."""
    assert_declines(
        """<opset_import: ["" : 14]>
        g (bool c, float[1, 1, 4, 3] x) => (float[1, 1, 4, 3] y) {
            y = If (c) <then_branch = t () => (float[1, 1, 4, 3] a) { a = Identity (x) },
                else_branch = e () => (float[1, 1, 4, 3] b) {
                    h = Transpose <perm = [2, 3, 0, 1]> (x)
                    d = Concat <axis = 0> (h, h)
                    b = Identity (x)
                }>
        }""",
        FuseTransposes(),
    )

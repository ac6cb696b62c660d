from __future__ import annotations

import onnx
import pytest
from chains import chains, check, cut, fork, join, split
from hypothesis import HealthCheck, given, settings

from onnxslim.passes.fuse_concats import FuseConcats
from onnxslim.records import Fidelity
from support import apply, assert_declines, assert_equivalent, assert_rewrites, parse

HEADER = '<opset_import: ["" : 17]>'


def test_concat_of_a_concat_is_one() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 2] x, float[N, 3] z) => (float[N, 8] y) {{
            a = Concat <axis = 1> (x, z)
            y = Concat <axis = -1> (a, z)
        }}""",
        FuseConcats(),
        f"""{HEADER}
        g (float[N, 2] x, float[N, 3] z) => (float[N, 8] y) {{
            y = Concat <axis = 1> (x, z, z)
        }}""",
    )


def test_slices_that_touch_become_one() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 6] x) => (float[N, 10] y)
        <int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] five = {{5}}> {{
            r = Relu (x)
            a = Slice (r, one, two, one)
            b = Slice (r, two, five, one)
            y = Concat <axis = 1> (a, b, r)
        }}""",
        FuseConcats(),
        f"""{HEADER}
        g (float[N, 6] x) => (float[N, 10] y)
        <int64[1] one = {{1}}, int64[1] five = {{5}}, int64[1] axis = {{1}}> {{
            r = Relu (x)
            a = Slice (r, one, five, axis)
            y = Concat <axis = 1> (a, r)
        }}""",
    )


def test_neighbouring_constants_become_one_and_empty_inputs_go() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[2] x, float[0] e) => (float[5] y)
        <float[1] a = {{1.0}}, float[2] b = {{2.0, 3.0}}> {{
            y = Concat <axis = 0> (a, e, b, x)
        }}""",
        FuseConcats(),
        f"""{HEADER}
        g (float[2] x, float[0] e) => (float[5] y) <float[3] c = {{1.0, 2.0, 3.0}}> {{
            y = Concat <axis = 0> (c, x)
        }}""",
    )


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            """g (float[N, 2] x) => (float[N, 4] a, float[N, 6] y) {
                a = Concat <axis = 1> (x, x)
                y = Concat <axis = 1> (a, x)
            }""",
            "other users",
        ),
        (
            """g (float[2] x) => (float[4] y, float[1] z)
            <float[1] a = {1.0}, float[1] b = {2.0}> {
                z = Neg (a)
                y = Concat <axis = 0> (a, b, x)
            }""",
            "used elsewhere",
        ),
        (
            """g (float[N, 2] x) => (float[A, 4] y) {
                a = Concat <axis = 0> (x, x)
                y = Concat <axis = 1> (a, a)
            }""",
            None,
        ),
        (
            """g (float[N, 6] x) => (float[N, 4] y)
            <int64[1] one = {1}, int64[1] two = {2}, int64[1] five = {5}> {
                a = Slice (x, two, five, one)
                b = Slice (x, one, two, one)
                y = Concat <axis = 1> (a, b)
            }""",
            None,
        ),
    ],
)
def test_it_declines(body: str, why: str | None) -> None:
    assert_declines(f"{HEADER}\n{body}", FuseConcats(), why)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(source=chains((join, split, cut, fork)))
def test_random_chains_keep_their_outputs(source: onnx.ModelProto) -> None:
    check(FuseConcats(), source)


@pytest.mark.parametrize(("start", "end", "nodes"), [(2, 2, 1), (-1, -1, 1), (-2, 3, 2), (0, 1, 2)])
def test_a_slice_that_is_empty_whatever_the_size_is_dropped(
    start: int, end: int, nodes: int
) -> None:
    source = parse(
        f"""<opset_import: ["" : 17]>
        g (float[N, 2] x, float[M, 2] z) => (float[K, 2] y)
        <int64[1] s = {{{start}}}, int64[1] e = {{{end}}}> {{
            a = Slice (x, s, e)
            y = Concat <axis = 0> (z, a, z)
        }}"""
    )
    rewritten, _ = apply(FuseConcats(), source)
    assert len(rewritten.graph.node) == nodes
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_empty_inputs_among_empty_ones_stay() -> None:
    """Onnxruntime takes the sizes of the result from the first of them."""
    assert_declines(
        """<opset_import: ["" : 21]>
        g (float[0, N, 2] x) => (float[A, B, C] y) <float[0, 1, 0] e = {}> {
            y = Concat <axis = 2> (e, x, x)
        }""",
        FuseConcats(),
    )

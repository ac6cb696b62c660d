from __future__ import annotations

import onnx
import pytest
from chains import chains, check, elementwise, flatten, fork, reshape, squeeze, unsqueeze
from hypothesis import HealthCheck, given, settings

from onnxslim.passes.fuse_reshapes import FuseReshapes
from support import assert_declines, assert_rewrites

HEADER = '<opset_import: ["" : 17]>'


def test_reshape_of_a_reshape_reads_the_first_input() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 3, 4] x) => (float[M, 12] y)
        <int64[2] s = {{-1, 4}}, int64[2] t = {{-1, 12}}> {{
            a = Reshape (x, s)
            y = Reshape (a, t)
        }}""",
        FuseReshapes(),
        f"""{HEADER}
        g (float[N, 3, 4] x) => (float[M, 12] y) <int64[2] t = {{-1, 12}}> {{
            y = Reshape (x, t)
        }}""",
    )


def test_chain_that_comes_back_disappears() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 3, 4] x) => (float[N, 3, 4] y)
        <int64[2] s = {{0, 12}}, int64[3] t = {{0, 3, 4}}> {{
            r = Relu (x)
            a = Reshape (r, s)
            y = Reshape (a, t)
        }}""",
        FuseReshapes(),
        f"""{HEADER}
        g (float[N, 3, 4] x) => (float[N, 3, 4] y) {{
            y = Relu (x)
        }}""",
    )


def test_squeeze_and_reshape_become_a_flatten_without_operands() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 3, 1, 1] x) => (float[N, 3] y)
        <int64[1] axes = {{3}}, int64[2] t = {{0, 3}}> {{
            a = Squeeze (x, axes)
            y = Flatten <axis = 1> (a)
        }}""",
        FuseReshapes(),
        f"""{HEADER}
        g (float[N, 3, 1, 1] x) => (float[N, 3] y) {{
            y = Flatten <axis = 1> (x)
        }}""",
    )


def test_axes_are_attributes_before_opset_13() -> None:
    assert_rewrites(
        """<opset_import: ["" : 11]>
        g (float[N, 3] x) => (float[N, 1, 1, 3] y) {
            a = Unsqueeze <axes = [1]> (x)
            y = Unsqueeze <axes = [1]> (a)
        }""",
        FuseReshapes(),
        """<opset_import: ["" : 11]>
        g (float[N, 3] x) => (float[N, 1, 1, 3] y) {
            y = Unsqueeze <axes = [1, 2]> (x)
        }""",
    )


def test_two_ends_of_one_beginning_are_both_rewired() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 6] x) => (float[N, 2, 3] y, float[N, 3, 2] z)
        <int64[2] s = {{-1, 1}}, int64[3] t = {{-1, 2, 3}}, int64[3] u = {{-1, 3, 2}}> {{
            a = Reshape (x, s)
            y = Reshape (a, t)
            z = Reshape (a, u)
        }}""",
        FuseReshapes(),
        f"""{HEADER}
        g (float[N, 6] x) => (float[N, 2, 3] y, float[N, 3, 2] z)
        <int64[3] t = {{-1, 2, 3}}, int64[3] u = {{-1, 3, 2}}> {{
            y = Reshape (x, t)
            z = Reshape (x, u)
        }}""",
    )


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            """g (float[N, 3, 4] x) => (float[M, 12] y, float[K, 4] z)
            <int64[2] s = {-1, 4}, int64[2] t = {-1, 12}> {
                a = Reshape (x, s)
                z = Relu (a)
                y = Reshape (a, t)
            }""",
            "the value in the middle of the chain is used",
        ),
        (
            """g (float[N, M, 4] x) => (float[A, B, 2, 2] y)
            <int64[2] s = {0, -1}, int64[4] t = {0, -1, 2, 2}> {
                a = Reshape (x, s)
                r = Relu (a)
                y = Reshape (r, t)
            }""",
            None,
        ),
        (
            """g (float[N, 4] x, int64[2] t) => (float[A, B] y) <int64[2] s = {-1, 2}> {
                a = Reshape (x, s)
                y = Reshape (a, t)
            }""",
            "cannot be written",
        ),
    ],
)
def test_it_declines(body: str, why: str | None) -> None:
    assert_declines(f"{HEADER}\n{body}", FuseReshapes(), why)


def test_zero_that_would_copy_another_axis_is_written_out() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[2, 6] x) => (float[3, 4] y) <int64[2] s = {{3, 4}}, int64[2] t = {{0, 0}}> {{
            a = Reshape (x, s)
            r = Reshape (a, t)
            y = Relu (r)
        }}""",
        FuseReshapes(),
        f"""{HEADER}
        g (float[2, 6] x) => (float[3, 4] y) <int64[2] s = {{3, 4}}> {{
            a = Reshape (x, s)
            y = Relu (a)
        }}""",
    )


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(source=chains((reshape, flatten, squeeze, unsqueeze, elementwise, fork)))
def test_random_chains_keep_their_outputs(source: onnx.ModelProto) -> None:
    check(FuseReshapes(), source)

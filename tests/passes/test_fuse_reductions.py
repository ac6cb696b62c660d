from __future__ import annotations

import onnx
import pytest
from chains import chains, check, fork, reduce, reshape, squeeze, unsqueeze
from hypothesis import HealthCheck, given, settings

from onnxslim.passes.fuse_reductions import FuseReductions
from onnxslim.records import Fidelity
from support import assert_declines, assert_rewrites

HEADER = '<opset_import: ["" : 17]>'


@pytest.mark.parametrize(("op", "axes"), [("ReduceMax", "axes = [2], "), ("ArgMax", "axis = 2, ")])
def test_squeeze_of_the_reduced_axis_is_keepdims(op: str, axes: str) -> None:
    kind = "int64" if op == "ArgMax" else "float"
    result = assert_rewrites(
        f"""{HEADER}
        g (float[N, 3, 4] x) => ({kind}[N, 3] y) <int64[1] two = {{2}}> {{
            a = {op} <{axes}keepdims = 1> (x)
            y = Squeeze (a, two)
        }}""",
        FuseReductions(),
        f"""{HEADER}
        g (float[N, 3, 4] x) => ({kind}[N, 3] y) {{
            y = {op} <{axes}keepdims = 0> (x)
        }}""",
    )
    assert result.fidelity is Fidelity.EXACT


def test_reshape_that_puts_the_axis_back_is_keepdims() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 4] x) => (float[N, 1] y) <int64[1] one = {{1}}, int64[2] t = {{-1, 1}}> {{
            a = ReduceSum <keepdims = 0> (x, one)
            y = Reshape (a, t)
        }}""",
        FuseReductions(),
        f"""{HEADER}
        g (float[N, 4] x) => (float[N, 1] y) <int64[1] one = {{1}}> {{
            y = ReduceSum <keepdims = 1> (x, one)
        }}""",
    )


def test_sum_of_a_sum_is_one() -> None:
    result = assert_rewrites(
        f"""{HEADER}
        g (float[N, 3, 4] x) => (float[N] y) <int64[1] one = {{1}}> {{
            a = ReduceSum <keepdims = 0> (x, one)
            y = ReduceSum <keepdims = 0> (a, one)
        }}""",
        FuseReductions(),
        f"""{HEADER}
        g (float[N, 3, 4] x) => (float[N] y) <int64[2] axes = {{1, 2}}> {{
            y = ReduceSum <keepdims = 0> (x, axes)
        }}""",
    )
    assert result.fidelity is Fidelity.CLOSE


@pytest.mark.parametrize("pool", ["GlobalAveragePool", "AveragePool <kernel_shape = [4, 5]>"])
def test_global_pooling_stays_as_it_is(pool: str) -> None:
    """A Reduce would be a node less, and slower behind a Conv."""
    assert_declines(
        f"{HEADER} g (float[N, 3, 4, 5] x) => (float[N, 3] y) {{ a = {pool} (x) y = Flatten (a) }}",
        FuseReductions(),
    )


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            """g (float[N, 3] x) => (float[N, 1] a, float[N] y) <int64[1] one = {1}> {
                a = ReduceMax <axes = [1]> (x)
                y = Squeeze (a, one)
            }""",
            "other users",
        ),
        (
            """g (float[N, 3, 4] x) => (float[N, 4] y) <int64[1] one = {1}> {
                a = ReduceSum <keepdims = 1> (x, one)
                b = Relu (a)
                y = ReduceSum <keepdims = 0> (b, one)
            }""",
            None,
        ),
        (
            """g (float[N, 3, 4] x) => (float[N, 1] y) <int64[1] one = {1}, int64[1] two = {2}> {
                a = ReduceSum <keepdims = 1> (x, one)
                y = ReduceSum <keepdims = 0> (a, two)
            }""",
            "differ in keepdims",
        ),
        (
            """g (float[N, 3, H, 4] x) => (float[N, 3, A, 1] y) {
                y = AveragePool <kernel_shape = [4, 4]> (x)
            }""",
            None,
        ),
        (  # onnxruntime is faster with the Reduce
            "g (float[N, 3, 4] x) => (float[N, 3, 1] y) { y = ReduceMean <axes = [2]> (x) }",
            None,
        ),
        (
            "g (float[N, 3, 4] x) => (float[N, 1, 1] y) { y = ReduceMean <axes = [1, 2]> (x) }",
            None,
        ),
    ],
)
def test_it_declines(body: str, why: str | None) -> None:
    assert_declines(f"{HEADER}\n{body}", FuseReductions(), why)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(source=chains((reduce, reduce, squeeze, unsqueeze, reshape, fork)))
def test_random_chains_keep_their_outputs(source: onnx.ModelProto) -> None:
    check(FuseReductions(), source)

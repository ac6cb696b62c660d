from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.passes.fuse_matmul_add import FuseMatmulAdd
from onnxslim.records import Fidelity
from support import apply, assert_declines, assert_equivalent, assert_rewrites, parse

# ------------------------------------------------------------------------------ fires


def test_sum_behind_a_matmul_becomes_the_bias_of_a_gemm() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float[N, 3] x) => (float[N, 2] y)
            <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] b = {1, 2}> {
            m = MatMul (x, w)
            y = Add (b, m)
        }""",
        FuseMatmulAdd(),
        """<opset_import: ["" : 17]>
        g (float[N, 3] x) => (float[N, 2] y)
            <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] b = {1, 2}> {
            y = Gemm (x, w, b)
        }""",
    )


def test_sum_behind_a_gemm_without_bias_becomes_its_bias() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float[3, 2] a, float[3, 4] b, float[2, 1] c) => (float[2, 4] y) {
            m = Gemm <transA = 1, alpha = 0.5, beta = 3.0> (a, b)
            y = Add (m, c)
        }""",
        FuseMatmulAdd(),
        """<opset_import: ["" : 17]>
        g (float[3, 2] a, float[3, 4] b, float[2, 1] c) => (float[2, 4] y) {
            y = Gemm <transA = 1, alpha = 0.5> (a, b, c)
        }""",
    )


def test_transposed_operands_become_attributes() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float[3, 2] a, float[4, 3] b) => (float[2, 4] y) {
            s = Transpose <perm = [1, 0]> (a)
            t = Transpose (b)
            y = MatMul (s, t)
        }""",
        FuseMatmulAdd(),
        """<opset_import: ["" : 17]>
        g (float[3, 2] a, float[4, 3] b) => (float[2, 4] y) {
            y = Gemm <transA = 1, transB = 1> (a, b)
        }""",
    )


def test_transposing_twice_is_not_transposing() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17]>
        g (float[2, 3] a, float[3, 4] b) => (float[2, 4] y) {
            s = Transpose (a)
            y = Gemm <transA = 1> (s, b)
        }""",
        FuseMatmulAdd(),
        """<opset_import: ["" : 17]>
        g (float[2, 3] a, float[3, 4] b) => (float[2, 4] y) { y = Gemm <transA = 0> (a, b) }""",
    )


# ------------------------------------------------------------------------------ declines


@pytest.mark.parametrize(
    ("signature", "result", "body", "why"),
    [
        ("float[1, 3] a, float[3, 2] b, float[4, 2] c", "[4, 2]", "y = Add (m, c)", "not known"),
        ("float[2, 3] a, float[3, 1] b, float[2] c", "[2, 2]", "y = Add (m, c)", "not known"),
        ("float[2, 3] a, float[3, 2] b, float[N] c", "[2, 2]", "y = Add (m, c)", "not known"),
        ("float[2, 3] a, float[3, 2] b, float[1, 2, 2] c", "[1, 2, 2]", "y = Add (m, c)", "not k"),
        (
            "float[2, 3] a, float[3, 2] b, float[2] c",
            "[2, 2]",
            "s = Add (m, c) y = Mul (s, m)",
            "els",
        ),
        ("float[2, 2, 3] a, float[3, 2] b, float[2] c", "[2, 2, 2]", "y = Add (m, c)", None),
        ("int32[2, 3] a, int32[3, 2] b, int32[2] c", "[2, 2]", "y = Add (m, c)", None),
    ],
)
def test_product_stays(signature: str, result: str, body: str, why: str | None) -> None:
    kind = signature.split("[")[0]
    assert_declines(
        f"""<opset_import: ["" : 17]>
        g ({signature}) => ({kind}{result} y) {{
            m = MatMul (a, b)
            {body}
        }}""",
        FuseMatmulAdd(),
        why,
    )


def test_transpose_that_others_use_stays() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (float[2, 2] a, float[2, 2] b) => (float[2, 2] y) {
            t = Transpose (a)
            m = MatMul (t, b)
            y = Sub (m, t)
        }""",
        FuseMatmulAdd(),
        "used elsewhere",
    )


def test_product_that_is_an_output_stays() -> None:
    assert_declines(
        """<opset_import: ["" : 17]>
        g (float[2, 3] a, float[3, 2] b, float[2] c) => (float[2, 2] y, float[2, 2] m) {
            m = MatMul (a, b)
            y = Add (m, c)
        }""",
        FuseMatmulAdd(),
        "used elsewhere",
    )


# ------------------------------------------------------------------------------ edges


@pytest.mark.parametrize("opset", [7, 9, 11, 13])
def test_every_opset_with_a_broadcasting_gemm(opset: int) -> None:
    text = f"""<opset_import: ["" : {opset}]>
        g (float[2, 3] a, float[3, 2] b, float[2] c) => (float[2, 2] y) {{
            m = MatMul (a, b)
            y = Add (m, c)
        }}"""
    source = parse(text)
    model, _ = apply(FuseMatmulAdd(), source)
    assert [node.op_type for node in model.graph.node] == ["Gemm"]
    assert_equivalent(source, model, Fidelity.CLOSE)


def test_gemm_without_bias_does_not_exist_before_opset_11() -> None:
    assert_declines(
        """<opset_import: ["" : 9]>
        g (float[3, 2] a, float[3, 2] b) => (float[2, 2] y) {
            t = Transpose (a)
            y = MatMul (t, b)
        }""",
        FuseMatmulAdd(),
    )


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    swaps=st.tuples(st.booleans(), st.booleans()),
    addend=st.sampled_from(["[]", "[1]", "[n]", "[1, n]", "[m, 1]", "[m, n]", "[1, 1]", "[5, 1]"]),
    double=st.booleans(),
)
def test_any_product_and_sum_of_matrices_keep_their_value(
    sizes: tuple[int, int, int], swaps: tuple[bool, bool], addend: str, double: bool
) -> None:
    m, k, n = sizes
    kind = "double" if double else "float"
    if addend == "[5, 1]" and m != 1:
        addend = "[m, 1]"
    shape = addend.replace("[]", "").replace("m", str(m)).replace("n", str(n))
    a, b = (k, m) if swaps[0] else (m, k), (n, k) if swaps[1] else (k, n)
    before = f"p = {'Transpose' if swaps[0] else 'Identity'} (a)"
    before += f" q = {'Transpose' if swaps[1] else 'Identity'} (b)"
    text = f"""<opset_import: ["" : 17]>
        g ({kind}{list(a)} a, {kind}{list(b)} b, {kind}{shape} c) => ({kind}[r, s] y) {{
            {before}
            o = MatMul (p, q)
            y = Add (o, c)
        }}"""
    source = parse(text)
    model, result = apply(FuseMatmulAdd(), source)
    assert_equivalent(source, model, Fidelity.CLOSE)
    assert len(model.graph.node) <= len(source.graph.node)
    if addend != "[5, 1]":
        assert result.changed

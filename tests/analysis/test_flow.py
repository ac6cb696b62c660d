from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.analysis.flow.size_flow import SizeFlow
from onnxslim.analysis.reshaping import expand_target, reshape_target
from onnxslim.graph.sizes import Size, Sum, add, divide, is_name, is_natural, is_positive, multiply
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from support import parse

N, M = Sum.of("n"), Sum.of("m")


def flow_of(text: str) -> tuple[SizeFlow, dict[str, gs.Tensor]]:
    model = Model.load(parse(text))
    infer_shapes(model)
    tensors = {t.name: t for node in model.graph.nodes for t in (*node.inputs, *node.outputs)}
    return SizeFlow(model.graph, model.graph.opset), tensors


def test_sums_are_equal_when_they_are_the_same_expression() -> None:
    assert add(multiply(N, 2), N) == multiply(3, N)
    assert multiply(add(N, 1), add(M, 1)) == add(add(multiply(M, N), N), add(M, 1))
    assert add(N, multiply(N, -1)) == 0


def test_division_answers_only_where_nothing_is_left_over() -> None:
    assert divide(multiply(multiply(N, M), 6), multiply(N, 2)) == multiply(M, 3)
    assert divide(add(multiply(N, 4), 2), 4) is None
    assert divide(N, M) is None
    assert divide(7, 0) is None


def test_signs_are_known_where_no_coefficient_is_negative() -> None:
    assert is_natural(add(N, M))
    assert is_positive(add(N, 1))
    assert not is_positive(N)
    assert not is_natural(add(N, -1))


@pytest.mark.parametrize("text", ["?", "-1", "", "None", "unknown", None])
def test_placeholders_name_no_size(text: object) -> None:
    assert not is_name(text)


expressions = st.recursive(
    st.one_of(st.integers(-4, 4), st.sampled_from((N, M))),
    lambda inner: st.builds(
        lambda rule, a, b: rule(a, b), st.sampled_from((add, multiply)), inner, inner
    ),
    max_leaves=6,
)


def evaluated(size: Size, n: int, m: int) -> int:
    if isinstance(size, int):
        return size
    values = {"n": n, "m": m}
    return sum(
        times * int(np.prod([values[factor] for factor in factors], dtype=int))
        for factors, times in size.terms
    )


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(expressions, expressions, st.integers(0, 5), st.integers(0, 5))
def test_arithmetic_on_sums_is_arithmetic_on_numbers(a: Size, b: Size, n: int, m: int) -> None:
    x, y = evaluated(a, n, m), evaluated(b, n, m)
    assert evaluated(add(a, b), n, m) == x + y
    assert evaluated(multiply(a, b), n, m) == x * y
    quotient = divide(a, b)
    if quotient is not None and y != 0:
        assert evaluated(quotient, n, m) * y == x
    assert not is_natural(a) or x >= 0
    assert not is_positive(a) or x > 0


def test_reshape_target_copies_computes_and_declines() -> None:
    assert reshape_target((N, 4, M), (N, 2, 2, M)) == (0, 2, 2, -1)
    assert reshape_target((N, M), (M, N)) is None
    assert reshape_target(None, (N, 3)) == (-1, 3)
    assert reshape_target((N, 0), (0, N)) is None


def test_expand_target_keeps_by_one() -> None:
    assert expand_target((N, 1), (N, 5)) == (5,)
    assert expand_target((N, 3), (N, 3)) == ()
    assert expand_target((3,), (2, 3)) == (2, 1)
    assert expand_target((1,), (N,)) is None


def test_minus_one_is_solved_across_symbols() -> None:
    flow, tensors = flow_of(
        """<opset_import: ["" : 17]>
        g (float[N, 4, H] x) => (float[A, B, C] y) <int64[3] t = {-1, 2, 8}> {
            y = Reshape (x, t)
        }"""
    )
    shape = flow.shape(tensors["y"])
    assert shape is not None
    assert shape[1:] == (2, 8)
    flow, tensors = flow_of(
        """<opset_import: ["" : 17]>
        g (float[N, 4, H] x) => (float[A, B] y) <int64[2] t = {0, -1}> {
            y = Reshape (x, t)
        }"""
    )
    assert flow.shape(tensors["y"]) == (Sum.of("'N'"), multiply(Sum.of("'H'"), 4))


def test_what_a_body_declares_of_its_inputs_is_not_believed() -> None:
    flow, tensors = flow_of(
        """<opset_import: ["" : 17]>
        g (float[N] x, int64 n, bool c) => (float[M] y) {
            y = Loop (n, c, x) <
                body = b (int64 i, bool d, float[2] a) => (bool e, float[4] s) {
                    e = Identity (d)
                    s = Concat <axis = 0> (a, a)
                }
            >
        }"""
    )
    shape = flow.shape(tensors["y"])
    assert shape is None or not isinstance(shape[0], int)


def test_numbers_that_would_wrap_around_are_not_known() -> None:
    flow, tensors = flow_of(
        """<opset_import: ["" : 17]>
        g (float[N] x) => (int32 y) <int32 big = {2147483647}, int32 one = {1}> {
            y = Add (big, one)
        }"""
    )
    value = flow.value(tensors["y"])
    assert value is not None
    assert value.items == (None,)


def test_of_a_node_that_contradicts_its_inputs_nothing_is_known() -> None:
    flow, tensors = flow_of(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[A, B] y) {
            y = Transpose <perm = [0, 1]> (x)
        }"""
    )
    tensors["y"].inputs[0].attrs["perm"] = [0, 2]
    tensors["y"].shape = None
    assert flow.shape(tensors["y"]) is None


def test_a_long_chain_needs_no_recursion() -> None:
    steps = "\n".join(f"v{i + 1} = Relu (v{i})" for i in range(3000))
    flow, tensors = flow_of(
        f"""<opset_import: ["" : 17]>
        g (float[N, "?"] v0) => (float[A, B] y) {{ {steps} y = Neg (v3000) }}""".replace('"?"', "Q")
    )
    assert flow.shape(tensors["y"]) == (Sum.of("'N'"), Sum.of("'Q'"))


def test_sizes_of_ranges_slices_and_picked_rows_are_known_as_far_as_they_can_be() -> None:
    flow, tensors = flow_of(
        """<ir_version: 8, opset_import: ["" : 18]>
    g (float[n,4,m] x, float[9,5] table, int64[n,m,1] rows, int64[k] past) => (int64[R] r)
    <int64[1] zero = {0}, int64[1] two = {2}, int64 first = {0}, int64 one = {1}> {
      past_size = Shape (past)
      start = Squeeze (past_size, zero)
      sizes = Shape (rows)
      length = Gather (sizes, one)
      end = Add (start, length)
      r = Range (start, end, one)
      picked = GatherND (table, rows)
      bound = ReduceSum <keepdims = 1> (past, zero)
      part = Slice (x, zero, bound, two)
    }"""
    )
    assert flow.shape(tensors["r"]) == (flow.shape(tensors["rows"]) or ())[1:2]
    assert flow.shape(tensors["picked"]) == (*(flow.shape(tensors["rows"]) or ())[:2], 5)
    part, whole = flow.shape(tensors["part"]), flow.shape(tensors["x"])
    assert part is not None
    assert whole is not None
    assert part[:2] == whole[:2]
    assert part[2] != whole[2]


def test_a_float_constant_that_is_cast_has_no_fractions_and_nothing_that_is_no_number() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n] x) => (int32[A] a, int64[B] b, bool[C] c)
    <float[5] k = {2.9, -2.9, -0.5, 3e9, 1e30}> {
        a = Cast <to = 6> (k) b = Cast <to = 7> (k) c = Cast <to = 9> (k) d = Cast <to = 7> (x)
    }"""
    flow, tensors = flow_of(text)
    assert flow.value(tensors["a"]).items == (2, -2, 0, None, None)
    assert flow.value(tensors["b"]).items == (2, -2, 0, 3_000_000_000, None)
    assert flow.value(tensors["c"]) is None
    assert flow.value(tensors["d"]) is None

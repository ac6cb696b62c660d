from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxslim.passes.fold_if import FoldIf
from support import apply, assert_declines, assert_equivalent, assert_rewrites, parse, run

HEADER = '<opset_import: ["" : 17]>'


def test_branch_of_a_known_condition_is_inlined() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N] x) => (float[N] y) <bool c = {{1}}> {{
            z = Abs (x)
            y = If (c) <
                then_branch = a () => (float[N] t) {{ s = Relu (z) t = Neg (s) }},
                else_branch = b () => (float[N] e) {{ e = Neg (z) }}
            >
        }}""",
        FoldIf(),
        f"""{HEADER}
        g (float[N] x) => (float[N] y) {{
            z = Abs (x)
            s = Relu (z)
            y = Neg (s)
        }}""",
    )


def test_branches_whose_nodes_have_one_name_are_inlined_beside_each_other() -> None:
    source = parse(
        f"""{HEADER}
        g (float[N] x) => (float[N] y, float[N] z) <bool c = {{1}}> {{
            y = If (c) <
                then_branch = a () => (float[N] t) {{ t = Relu (x) }},
                else_branch = b () => (float[N] e) {{ e = Neg (x) }}
            >
            z = If (c) <
                then_branch = a () => (float[N] t) {{ t = Abs (x) }},
                else_branch = b () => (float[N] e) {{ e = Neg (x) }}
            >
        }}"""
    )
    for node in source.graph.node:
        node.attribute[0].g.node[0].name = "n"

    folded, _ = apply(FoldIf(), source)

    assert [node.op_type for node in folded.graph.node] == ["Relu", "Abs"]
    assert_equivalent(source, folded, FoldIf.fidelity)


def test_a_constant_that_the_branch_returns_gets_a_name_of_its_own() -> None:
    source = parse(
        f"""{HEADER}
        g (float[2] x, bool d) => (float[2] y, float[2] z) <bool c = {{0}}> {{
            a = If (c) <
                then_branch = a () => (float[2] t) {{ t = Relu (x) }},
                else_branch = b () => (float[2] k) <float[2] k = {{1, 2}}> {{ u = Abs (x) }}
            >
            y = Add (a, x)
            z = If (d) <
                then_branch = a2 () => (float[2] t) {{ k = Abs (y) t = Relu (k) }},
                else_branch = b2 () => (float[2] e) {{ e = Neg (y) }}
            >
        }}"""
    )
    folded, result = apply(FoldIf(), source)
    assert result.changed
    assert_equivalent(source, folded, FoldIf.fidelity)


def test_names_of_a_branch_are_made_unique() -> None:
    """The other `If` has tensors of the same names, and so has a nested body."""
    source = parse(
        f"""{HEADER}
        g (float[N] x, bool d) => (float[N] y, float[N] z) <bool c = {{0}}> {{
            y = If (c) <
                then_branch = a () => (float[N] t) {{ t = Relu (x) }},
                else_branch = b () => (float[N] e) {{
                    s = Neg (x)
                    e = If (d) <
                        then_branch = aa () => (float[N] p) {{ p = Relu (s) }},
                        else_branch = bb () => (float[N] q) {{ q = Identity (s) }}
                    >
                }}
            >
            z = If (d) <
                then_branch = a2 () => (float[N] t) {{ s = Abs (y) t = Relu (s) }},
                else_branch = b2 () => (float[N] e) {{ s = Exp (y) e = Neg (s) }}
            >
        }}"""
    )
    model, result = apply(FoldIf(), source)
    assert result.changed
    assert_equivalent(source, model, FoldIf.fidelity)
    assert [node.op_type for node in model.graph.node] == ["Neg", "If", "If"]


def test_branches_inside_a_branch_are_inlined_too() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N] x) => (float[N] y) <bool c = {{1}}, bool d = {{0}}> {{
            y = If (c) <
                then_branch = a () => (float[N] t) {{
                    t = If (d) <
                        then_branch = aa () => (float[N] p) {{ p = Relu (x) }},
                        else_branch = bb () => (float[N] q) {{ q = Abs (x) }}
                    >
                }},
                else_branch = b () => (float[N] e) {{ e = Neg (x) }}
            >
        }}""",
        FoldIf(),
        f"{HEADER} g (float[N] x) => (float[N] y) {{ y = Abs (x) }}",
    )


def test_equal_branches_need_no_condition() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N] x, bool c) => (float[N] y) {{
            y = If (c) <
                then_branch = a () => (float[N] t) <float k = {{2.0}}> {{ t = Mul (x, k) }},
                else_branch = b () => (float[N] e) <float l = {{2.0}}> {{ e = Mul (x, l) }}
            >
        }}""",
        FoldIf(),
        f"""{HEADER}
        g (float[N] x, bool c) => (float[N] y) <float k = {{2.0}}> {{ y = Mul (x, k) }}""",
    )


def test_branch_that_returns_an_outer_tensor_or_a_constant() -> None:
    source = parse(
        f"""{HEADER}
        g (float[2] x) => (float[2] y, float[2] z) <bool c = {{1}}> {{
            y, z = If (c) <
                then_branch = a () => (float[2] p, float[2] q) {{
                    p = Identity (x)
                    q = Constant <value = float[2] {{1.0, 2.0}}> ()
                }},
                else_branch = b () => (float[2] r, float[2] s) {{ r = Neg (x) s = Abs (x) }}
            >
        }}"""
    )
    model, result = apply(FoldIf(), source)
    assert result.changed
    assert_equivalent(source, model, FoldIf.fidelity)


LOOP = """g (float[2] x%s) => (float[2] y)
    <int64 n = {%d}%s> {
        r = Abs (x)
        l = Loop (n, go, r) <
            body = b (int64 i, bool c, float[2] a) => (bool d, float[2] s) <float k = {3.0}> {
                d = Identity (c)
                s = Mul (a, k)
            }
        >
        y = Neg (l)
    }"""


def loop(count: int, start: str) -> str:
    """A Loop of known trip count whose condition starts as `start`: true, false, or an input."""
    if start == "input":
        return LOOP % (", bool go", count, "")
    return LOOP % ("", count, f", bool go = {{{int(start == 'true')}}}")


def test_loop_that_runs_once_is_its_body() -> None:
    assert_rewrites(
        f"{HEADER} {loop(1, 'true')}",
        FoldIf(),
        f"""{HEADER}
        g (float[2] x) => (float[2] y) <float k = {{3.0}}> {{
            r = Abs (x)
            s = Mul (r, k)
            y = Neg (s)
        }}""",
    )


@pytest.mark.parametrize(("count", "start"), [(0, "true"), (5, "false")])
def test_loop_that_never_runs_returns_what_it_got(count: int, start: str) -> None:
    assert_rewrites(
        f"{HEADER} {loop(count, start)}",
        FoldIf(),
        f"""{HEADER}
        g (float[2] x) => (float[2] y) {{
            r = Abs (x)
            y = Neg (r)
        }}""",
    )


def test_condition_computed_from_a_known_rank_is_known() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, M] x) => (float[N, M] y) <int64 two = {{2}}> {{
            shape = Shape (x)
            ndim = Size (shape)
            c = Equal (ndim, two)
            y = If (c) <
                then_branch = a () => (float[N, M] t) {{ t = Relu (x) }},
                else_branch = b () => (float[N, M] e) {{ e = Neg (x) }}
            >
        }}""",
        FoldIf(),
        f"{HEADER} g (float[N, M] x) => (float[N, M] y) {{ y = Relu (x) }}",
    )


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            """g (float[N] x, bool c) => (float[N] y) {
                y = If (c) <
                    then_branch = a () => (float[N] t) { t = Relu (x) },
                    else_branch = b () => (float[N] e) { e = Neg (x) }
                >
            }""",
            "condition is not known",
        ),
        (loop(2, "true"), "more than once"),
        (loop(1, "input"), "unknown number of times"),
        (
            """g (float[2] x) => (float[A, 2] y) <int64 n = {1}, bool yes = {1}> {
                y = Loop (n, yes) <
                    body = b (int64 i, bool c) => (bool d, float[2] s) {
                        d = Identity (c)
                        s = Neg (x)
                    }
                >
            }""",
            "axis of their own",
        ),
    ],
)
def test_it_declines(body: str, why: str) -> None:
    assert_declines(f"{HEADER}\n{body}", FoldIf(), why)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_nests_keep_their_outputs(data: st.DataObject) -> None:
    ops = data.draw(st.lists(st.sampled_from(("yes", "no", "maybe")), min_size=1, max_size=4))
    text, last = "", "x"
    for number, condition in enumerate(ops):
        inner = data.draw(st.sampled_from(ops))
        text += f"""
            v{number} = If ({condition}) <
                then_branch = a () => (float[2] t) {{
                    s = Neg ({last})
                    t = If ({inner}) <
                        then_branch = aa () => (float[2] p{number}) {{ p{number} = Exp (s) }},
                        else_branch = bb () => (float[2] q{number}) {{ q{number} = Abs (s) }}
                    >
                }},
                else_branch = b () => (float[2] t) {{ s = Relu ({last}) t = Neg (s) }}
            >"""
        last = f"v{number}"
    source = parse(
        f"""{HEADER} g (float[2] x, bool maybe) => (float[2] y)
        <bool yes = {{1}}, bool no = {{0}}> {{ {text} y = Identity ({last}) }}"""
    )
    model, _ = apply(FoldIf(), source)
    for maybe in (True, False):
        feeds = {"x": np.array([-1.5, 2.0], np.float32), "maybe": np.array(maybe)}
        np.testing.assert_array_equal(run(source, feeds)[0], run(model, feeds)[0])


# ----------------------------------------------------------------- branches that cannot be taken

CELL = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 4] x, float[1, 8, 4] w, float[1, 8, 2] r, bool c) => (float[] y) {
        batch = If (c) <
            then_branch = yes () => (float[] b) {
                zero = Constant <value = int64[1] {0}> ()
                b = Unsqueeze (x, zero)
            },
            else_branch = no () => (float[] d) { d = Identity (x) }
        >
        BEHIND
    }"""


def test_a_branch_whose_result_the_nodes_behind_refuse_is_never_taken() -> None:
    behind = "e = Relu (batch) h, y = LSTM <hidden_size = 2> (e, w, r)"
    source = onnx.parser.parse_model(CELL.replace("BEHIND", behind))
    rewritten, _ = apply(FoldIf(), source)
    assert [node.op_type for node in rewritten.graph.node][-3:] == ["Unsqueeze", "Relu", "LSTM"]
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in (("x", (3, 4)), ("w", (1, 8, 4)), ("r", (1, 8, 2)))
    }
    feeds["c"] = np.array(True)
    for expected, found in zip(run(source, feeds), run(rewritten, feeds), strict=True):
        assert np.array_equal(expected, found)


@pytest.mark.parametrize(
    "behind",
    [
        "y = Relu (batch)",  # takes any number of axes
        """y = If (c) <
            then_branch = yes2 () => (float[] f) { h, f = LSTM <hidden_size = 2> (batch, w, r) },
            else_branch = no2 () => (float[] g) { g = Relu (batch) }
        >""",
    ],
)
def test_branches_stay_where_nothing_that_always_runs_refuses_one(behind: str) -> None:
    source = onnx.parser.parse_model(CELL.replace("BEHIND", behind))
    rewritten, result = apply(FoldIf(), source)
    assert not result.changed
    assert rewritten.graph.node[0].op_type == "If"


@pytest.mark.parametrize(
    ("vector", "expected"),
    [
        ("v = Constant <value = int64[1] {3}> ()", []),
        ("c = Constant <value = int64[1] {3}> () v = Identity (c)", ["Identity", "Squeeze"]),
        ("s = Shape (x) z = Constant <value = int64[1] {0}> () v = Gather (s, z)", ["Gather"]),
    ],
    ids=["constant", "made of constants", "computed"],
)
def test_vector_in_a_branch_is_a_scalar_where_the_operator_behind_it_wants_one(
    vector: str, expected: list[str]
) -> None:
    """Onnxruntime takes a vector for a limit of Range where it is computed, and no constant one."""
    text = f"""<opset_import: ["" : 17]>
    g (float[N, 3] x) => (int64[n] y, int64[m] z)
    <bool yes = {{1}}, int64 zero = {{0}}, int64 one = {{1}}> {{
        l = If (yes) <
            then_branch = t () => (int64[k] v) {{ {vector} }},
            else_branch = e () => (int64[k] v) {{ v = Shape (x) }}
        >
        y = Range (zero, l, one)
        z = Add (l, l)
    }}"""
    source = onnx.parser.parse_model(text.replace("<opset", "<ir_version: 8, opset", 1))
    result, _ = apply(FoldIf(), source)
    assert_equivalent(source, result, FoldIf.fidelity)
    ops = [node.op_type for node in result.graph.node]
    assert set(ops) == {"Range", "Add", *expected} | {"Constant", "Shape"}.intersection(ops)


def test_where_in_a_branch_of_its_condition_is_the_branch_that_is_taken() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (float[N, 4] x, float[N, 4] z) => (float[N, 4] y, float[N, 4] w)
        <float zero = {{0}}, float low = {{-100}}> {{
            c = Less (x, z)
            n = Not (c)
            a = Where (n, low, x)
            y = Where (c, zero, a)
            b = Where (c, x, low)
            w = Where (c, b, z)
        }}""",
        FoldIf(),
        f"""{HEADER}
        g (float[N, 4] x, float[N, 4] z) => (float[N, 4] y, float[N, 4] w)
        <float zero = {{0}}, float low = {{-100}}> {{
            c = Less (x, z)
            y = Where (c, zero, low)
            w = Where (c, x, z)
        }}""",
    )


def test_where_of_a_not_takes_its_branches_the_other_way() -> None:
    assert_rewrites(
        f"""{HEADER}
        g (bool[N, 4] c, float[N, 4] x, float[4] z) => (float[N, 4] y) {{
            n = Not (c)
            y = Where (n, x, z)
        }}""",
        FoldIf(),
        f"""{HEADER}
        g (bool[N, 4] c, float[N, 4] x, float[4] z) => (float[N, 4] y) {{ y = Where (c, z, x) }}""",
    )


def test_where_stays_where_the_shape_or_the_condition_is_another() -> None:
    assert_declines(
        f"""{HEADER}
        g (bool[4] c, float[N, 4] x, float[4] z) => (float[N, 4] y) <float zero = {{0}}> {{
            a = Where (c, z, x)
            y = Where (c, a, zero)
        }}""",
        FoldIf(),
        "its shape may be that of a branch",
    )
    assert_declines(
        f"""{HEADER}
        g (bool[N, 4] c, bool[N, 4] d, float[N, 4] x) => (float[N, 4] y, bool[N, 4] m)
        <float zero = {{0}}> {{
            a = Where (d, zero, x)
            m = Not (c)
            y = Where (m, a, zero)
        }}""",
        FoldIf(),
    )

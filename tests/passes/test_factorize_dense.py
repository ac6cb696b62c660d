from __future__ import annotations

import numpy as np
import onnx
import pytest
from fake_stopwatch import FakeStopwatch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_nets import net, node, normal, output_error, outputs, samples, whats
from onnx import helper, numpy_helper
from split_nets import low_rank, ops, split, why_of

from onnxslim.errors import UsageError
from onnxslim.passes.factorize_dense import FactorizeDense
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.policy import Goal
from onnxslim.records import Fidelity
from support import parse

pytestmark = pytest.mark.slow

SMALL = settings(max_examples=40, deadline=None, derandomize=True)
X = samples(400, 40)


def wide(rank: int = 6, noise: float = 0.0, rows: int = 48) -> onnx.ModelProto:
    """A Gemm of rank 6."""
    weights = {"w": low_rank(40, rows, rank, noise=noise), "b": normal(rows)}
    return net([node("Gemm", ["x", "w", "b"], "y")], weights, ["N", 40])


def spec(**options: object) -> str:
    return str(FactorizeDense(**options))  # type: ignore[arg-type]


# ------------------------------------------------------------------- fires


@pytest.mark.parametrize("x", [None, X])
def test_a_weight_of_low_rank_is_split_and_nothing_is_lost(x: np.ndarray | None) -> None:
    source = wide()
    model, reports = split(source, x, "factorize-dense")
    assert ops(model) == ["Gemm", "Gemm"]
    assert reports[0].fidelity is Fidelity.CLOSE
    assert output_error(source, model, X) < 1e-9
    (what,) = whats(reports)
    assert "split by svd at rank 8" in what
    assert "its weight has rank 6" in what
    assert reports[0].resolved == "factorize-dense:plan='y=svd/8'"


def test_least_rank_that_keeps_the_energy_is_taken() -> None:
    source = wide(rank=8, noise=0.3)
    errors = []
    for energy in (0.5, 0.9, 0.97):
        model, reports = split(source, X, spec(energy=energy, align=1))
        errors.append(output_error(source, model, X))
        whole = outputs(source, X)["y"].astype(np.float64)
        centred = np.square(whole - whole.mean(axis=0)).sum() / np.square(whole).sum()
        assert errors[-1] <= (1 - energy) * centred * 1.001
        assert "relative output error" in whats(reports)[0]
    assert errors[0] > errors[1] > errors[2]


def test_data_say_which_directions_matter() -> None:
    source = wide(rank=40, noise=0.0)
    aware, _ = split(source, X, spec(rank=4))
    plain, _ = split(source, X, spec(rank=4, data_aware=False))
    assert output_error(source, aware, X) < 0.3 * output_error(source, plain, X)


@SMALL
@given(
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.0, 0.5, -2.0]),
    st.sampled_from([1.0, 0.0, 3.0]),
    st.sampled_from(["none", "row", "scalar", "matrix"]),
    st.sampled_from([9, 13]),
    st.booleans(),
)
def test_at_full_rank_every_gemm_returns_what_it_did(
    trans_a: bool,
    trans_b: bool,
    left: bool,
    alpha: float,
    beta: float,
    bias: str,
    opset: int,
    data: bool,
) -> None:
    m, k, n = 6, 5, 7
    a = (k, m) if trans_a else (m, k)
    b = (n, k) if trans_b else (k, n)
    weights = {"w": normal(*(a if left else b))}
    shapes = {"row": (n,), "scalar": (1,), "matrix": (m, n)}
    inputs = ["w", "x"] if left else ["x", "w"]
    if bias != "none" or opset < 11:
        weights["c"] = normal(*shapes.get(bias, (1,)), seed=3)
        inputs.append("c")
    made = node(
        "Gemm", inputs, "y", transA=int(trans_a), transB=int(trans_b), alpha=alpha, beta=beta
    )
    source = net([made], weights, list(b if left else a), opset=opset)
    x = normal(*(b if left else a), seed=4)
    rank = 5
    given_ = [{"x": normal(*x.shape, seed=s)} for s in range(40)] if data else None
    model, _ = split(source, given_, spec(plan=(f"y=svd/{rank}",)))
    assert ops(model) == ["Gemm", "Gemm"]
    ref, new = outputs(source, x)["y"], outputs(model, x)["y"]
    np.testing.assert_allclose(new, ref, atol=1e-4 * max(1.0, float(np.ptp(ref))))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("stack", [(), (3,), (2, 1)])
def test_at_full_rank_every_matmul_returns_what_it_did(left: bool, stack: tuple[int, ...]) -> None:
    shape = (*stack, 6, 5) if left else (*stack, 5, 6)
    source = net(
        [node("MatMul", ["w", "x"] if left else ["x", "w"], "y")],
        {"w": normal(*shape)},
        [2, 3, 5, 4] if left else [2, 3, 4, 5],
    )
    model, _ = split(source, None, spec(plan=("y=svd/5",)))
    assert ops(model) == ["MatMul", "MatMul"]
    x = normal(*([2, 3, 5, 4] if left else [2, 3, 4, 5]), seed=2)
    np.testing.assert_allclose(outputs(model, x)["y"], outputs(source, x)["y"], atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_factors_keep_the_type_of_the_weight(dtype: type) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = {"w": low_rank(40, 48, 6).astype(dtype)}
    source = net([node("MatMul", ["x", "w"], "y")], weights, [1, 40], dtype=kind)
    model, _ = split(source, None, spec(rank=8))
    assert {c.dtype for n in model.graph.nodes for c in n.inputs if c.name != "x"} == {
        np.dtype(dtype),
    }
    x = X[:1].astype(dtype)
    ref, new = (outputs(m, x)["y"].astype(np.float64) for m in (source, model))
    assert np.abs(ref - new).max() < 0.02 * np.ptp(ref)


def test_bias_keeps_the_mean_output() -> None:
    source = wide(rank=40)
    model, _ = split(source, X, spec(rank=3))
    ref, new = outputs(source, X)["y"], outputs(model, X)["y"]
    np.testing.assert_allclose(new.mean(axis=0), ref.mean(axis=0), atol=1e-3)


def test_ratio_is_the_share_of_weights_that_goes() -> None:
    model, _ = split(wide(rank=40), X, spec(ratio=0.7, align=1))
    sizes = sum(t.size for t in model.graph.tensors().values() if t.name.startswith("y_factor"))
    assert 0.25 * 40 * 48 < sizes <= 0.3 * 40 * 48


def test_variational_bayes_chooses_the_rank() -> None:
    source = wide(rank=5, noise=0.05)
    model, _ = split(source, None, spec(rank_selection="vbmf", align=1))
    assert model.graph.tensors()["y_factor0"].shape == (40, 5)


def test_ranks_are_multiples_of_align() -> None:
    for align, expected in ((1, 5), (4, 8), (16, 8)):
        source = wide(rank=5, noise=0.001)
        model, _ = split(source, None, spec(align=align, energy=0.999))
        assert model.graph.tensors()["y_factor0"].shape == (40, expected)


# ------------------------------------------------------------------- budgets


def two_layers(first: float = 0.05, second: float = 0.6) -> onnx.ModelProto:
    """Two layers, of which the first is nearly of rank 4."""
    weights = {
        "w0": low_rank(40, 64, 4, noise=first),
        "w1": low_rank(64, 40, 4, seed=1, noise=second),
    }
    nodes = [
        node("MatMul", ["x", "w0"], "h"),
        node("Relu", ["h"], "r"),
        node("MatMul", ["r", "w1"], "y"),
    ]
    return net(nodes, weights, ["N", 40])


@pytest.mark.parametrize("kind", ["latency", "macs", "bytes"])
@pytest.mark.parametrize("x", [None, X])
def test_a_budget_holds_over_all_layers_and_is_spent_where_it_matters(
    kind: str, x: np.ndarray | None
) -> None:
    source = two_layers()
    field = "bytes_" if kind == "bytes" else kind
    whole = 2 * 40 * 64
    for share in (0.8, 0.5, 0.3):
        model, _ = split(source, x, FactorizeDense(**{field: share, "align": 4}))  # type: ignore[arg-type]
        sizes = {
            name: sum(t.size for t in node_.inputs if hasattr(t, "values"))
            for name, node_ in ((n.outputs[0].name, n) for n in model.graph.nodes)
        }
        first = sizes["h"] + sizes.get("h_part0", 0)
        second = sizes["y"] + sizes.get("y_part0", 0)
        assert first + second <= share * whole
        assert first <= second


def test_a_budget_that_cannot_be_met_is_said_and_nearly_met() -> None:
    model, reports = split(two_layers(), None, spec(macs=0.01))
    assert "the budget of 0.01 of macs cannot be met" in why_of(reports)["g"]
    assert len(ops(model)) == 5


def test_less_budget_never_means_less_error() -> None:
    source = two_layers(0.3, 0.3)
    errors = []
    for share in (0.9, 0.6, 0.4, 0.25):
        model, _ = split(source, X, spec(macs=share, align=2))
        errors.append(output_error(source, model, X))
    assert errors == sorted(errors)


# ------------------------------------------------------------------- must not fire


def test_what_is_not_measured_to_be_faster_stays() -> None:
    source = wide(rank=40)
    model, reports = split(source, X, spec(rank=16), stopwatch=FakeStopwatch(spread=5.0))
    assert ops(model) == ["Gemm"]
    why = why_of(reports)["y"]
    assert why.startswith("no split is faster as measured: the best, svd/16 is not")


def test_without_a_stopwatch_multiply_accumulates_decide_and_the_report_says_so() -> None:
    model, reports = split(wide(rank=40), X, spec(rank=16), timed=False)
    assert "not timed" in whats(reports)[0]
    assert len(ops(model)) == 2
    model, reports = split(wide(rank=40), X, spec(rank=30), timed=False)
    assert ops(model) == ["Gemm"]
    assert "no split takes fewer multiply-accumulates" in why_of(reports)["y"]


def test_with_goal_bytes_size_decides() -> None:
    slow = FakeStopwatch(spread=100.0)
    model, reports = split(wide(rank=40), X, spec(rank=16, goal="bytes"), stopwatch=slow)
    assert len(ops(model)) == 2
    assert "smaller" in whats(reports)[0]
    assert slow.asked == []


def test_a_bias_of_one_number_is_no_obstacle() -> None:
    source = parse("""<opset_import: ["" : 17]>
        g (float[2, 3] x) => (float[2, 4] y)
        <float[3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6}, float c = {3.0}> {
            y = Gemm (x, w, c)
        }""")
    model, _ = split(source, None, spec(goal="bytes"), timed=False)
    assert ops(model) in (["Gemm"], ["MatMul", "Gemm"])


def test_the_goal_of_the_run_is_that_of_the_pass_unless_it_has_its_own() -> None:
    slow = FakeStopwatch(spread=100.0)
    model, _ = split(wide(rank=40), X, spec(rank=16), stopwatch=slow, goal=Goal.BYTES)
    assert len(ops(model)) == 2
    assert slow.asked == []
    own = spec(rank=16, goal="latency")
    model, _ = split(wide(rank=40), X, own, stopwatch=slow, goal=Goal.BYTES)
    assert ops(model) == ["Gemm"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("y = MatMul (x, x)", "its weight is computed at run time"),
        ("y = MatMul (x, v)", "there is no lower rank"),
        ("y = MatMul (x, z)", "its weight is zero"),
        ("a = MatMul (x, w)\n b = Identity (w)\n y = Add (a, b)", "which needs it whole"),
        ("y = MatMul (x, w)", "no rank with fewer weights keeps 0.99 of the output"),
    ],
)
def test_what_is_left_alone_has_a_reason(text: str, why: str) -> None:
    source = parse(
        f"""<opset_import: ["" : 17]>
        agraph (float[4, 4] x) => (float[4, m] y)
            <float[4] v = {{1, 2, 3, 4}},
             float[4, 4] z = {{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
             float[4, 4] w = {{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}}> {{
            {text}
        }}""".replace("float[4, m] y", "float[n] y" if "v)" in text else "float[4, 4] y")
    )
    _model, reports = split(source, None, "factorize-dense")
    assert not whats(reports)
    assert any(why in item for item in why_of(reports).values()), why_of(reports)


def test_an_unknown_size_cannot_be_measured() -> None:
    source = net([node("MatMul", ["x", "w"], "y")], {"w": low_rank(40, 48, 6)}, ["N", "L", 40])
    model, reports = split(source, None, "factorize-dense", timed=False)
    assert "the size of its input is not known" in why_of(reports)["y"]
    model, _ = split(source, None, spec(goal="bytes"), timed=False)
    assert len(ops(model)) == 2


def test_selection_by_name() -> None:
    model, _ = split(two_layers(), None, spec(rank=4, only=("h",)))
    assert ops(model) == ["MatMul", "MatMul", "Relu", "MatMul"]
    model, _ = split(two_layers(), None, spec(rank=4, skip=("h",)))
    assert ops(model) == ["MatMul", "Relu", "MatMul", "MatMul"]


# ------------------------------------------------------------------- edges


def test_layers_that_share_a_weight_share_its_factors() -> None:
    w = {"w": low_rank(40, 40, 6)}
    nodes = [node("MatMul", ["x", "w"], "h"), node("MatMul", ["h", "w"], "y")]
    source = net(nodes, w, ["N", 40])
    for x in (None, X):
        model, _ = split(source, x, "factorize-dense")
        assert ops(model) == ["MatMul"] * 4
        assert len([t for t in model.graph.tensors().values() if hasattr(t, "values")]) == 2
        assert output_error(source, model, X) < 1e-9


def test_layers_in_a_body_are_split_where_shapes_are_known() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        agraph (bool c, float[1, 4] x) => (float[1, 4] y)
            <float[4, 4] w = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}> {
            y = If (c) <
                then_branch = t () => (float[1, 4] a) { a = MatMul (x, w) },
                else_branch = e () => (float[1, 4] b) { b = Identity (x) }
            >
        }"""
    )
    model, _ = split(source, None, "factorize-dense", timed=False)
    body = model.graph.nodes[0].attrs["then_branch"]
    assert [n.op for n in body.nodes] == ["MatMul", "MatMul"]
    feeds = {"c": np.array(True), "x": np.arange(4, dtype=np.float32)[None]}
    np.testing.assert_allclose(outputs(model, feeds)["y"], outputs(source, feeds)["y"], rtol=1e-5)


def test_a_weight_in_a_constant_node_is_replaced() -> None:
    weight = numpy_helper.from_array(low_rank(40, 48, 6))
    nodes = [helper.make_node("Constant", [], ["w"], value=weight), node("MatMul", ["x", "w"], "y")]
    source = net(nodes, {}, ["N", 40])
    model, _ = split(source, None, "factorize-dense")
    assert ops(model) == ["MatMul", "MatMul"]
    assert output_error(source, model, X) < 1e-9


def test_a_plan_repeats_what_was_measured_without_measuring() -> None:
    source = two_layers()
    first, reports = split(source, X, spec(energy=0.95, align=4))
    text = str(reports[0].resolved)
    clock = FakeStopwatch()
    second, _ = split(source, X, text, stopwatch=clock)
    assert clock.asked == []
    assert first.to_bytes() == second.to_bytes()


def test_names_in_a_plan_that_no_layer_has_are_said() -> None:
    with pytest.raises(UsageError, match="Option `plan` of `factorize-dense` names `z`"):
        split(wide(), None, spec(plan=("z=svd/4",)))


def test_the_output_keeps_its_name_and_new_tensors_take_theirs_from_it() -> None:
    model, _ = split(wide(), None, "factorize-dense")
    first, last = model.graph.nodes
    assert [t.name for t in first.outputs] == ["y_part0"]
    assert last.outputs[0].name == "y"
    assert [t.name for t in last.inputs] == ["y_part0", "y_factor1", "b"]


@pytest.mark.parametrize(
    "options",
    [{"rank": 3, "ratio": 0.5}, {"latency": 0.5, "macs": 0.5}, {"rank": 2, "plan": ("y=svd/2",)}],
)
def test_two_ways_to_choose_ranks_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="takes one of rank, ratio, latency, macs, bytes and plan"):
        FactorizeDense(**options)  # type: ignore[arg-type]


def test_selection_by_budget_needs_one() -> None:
    with pytest.raises(UsageError, match="give latency, macs or bytes"):
        FactorizeDense(rank_selection="budget")
    assert str(FactorizeDense(rank_selection="budget", bytes_=0.5).budget) == "bytes=0.5"


def test_a_plan_is_spelled_and_read_back() -> None:
    made = FactorizeDense(plan=("/fc/MatMul_output_0=svd/16", "y:0=svd/8"))
    assert parse_pipeline(str(made)).passes == (made,)

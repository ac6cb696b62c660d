"""The problems of a model: their order and targets, and what answers do to weights and biases."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from layer_nets import (
    context,
    dense_net,
    net,
    node,
    normal,
    output_error,
    outputs,
    problems_of,
    samples,
)

from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.model import Model
from onnxslim.lossy.problems import Problem, Problems, Schedule, Target
from onnxslim.pipeline.layer_filter import LayerFilter
from onnxslim.pipeline.passes import Context
from onnxslim.solvers.least_squares import refit
from onnxslim.solvers.masks import InMatrix
from onnxslim.solvers.metric import Metric
from onnxslim.solvers.surgeon import surgeon
from support import parse

X = samples(300, 12)
OWN = Schedule(aim=Target.CURRENT)
AT_ONCE = Schedule(sequential=False)


def half_gone(problem: Problem) -> np.ndarray:
    """The weight with half of it removed by OBS."""
    pairs = zip(problem.target, problem.metrics, strict=True)
    return np.stack([surgeon(t, m, InMatrix(t.size // 2)) for t, m in pairs])


def third_gone(problem: Problem) -> np.ndarray:
    """The weight with a third of it removed by magnitude: crude, so that means would move."""
    limit = np.quantile(np.abs(problem.target), 1 / 3)
    return np.where(np.abs(problem.target) > limit, problem.target, 0.0)


def compressed(
    source: onnx.ModelProto, x: np.ndarray, schedule: Schedule | None = None
) -> tuple[Model, Problems]:
    problems, model = problems_of(source, x, schedule=schedule)
    for problem in problems:
        problems.apply(problem, half_gone(problem), "halved")
    return model, problems


# ------------------------------------------------------------------- order


def test_weights_come_in_the_order_in_which_data_reach_them() -> None:
    nodes = [  # written last layer first where the graph allows it
        node("MatMul", ["x", "wa"], "a"),
        node("Relu", ["a"], "ra"),
        node("MatMul", ["x", "wb"], "b"),
        node("MatMul", ["ra", "wc"], "c"),
        node("Add", ["b", "c"], "s"),
        node("MatMul", ["s", "wd"], "y"),
    ]
    weights = {f"w{name}": normal(12, 12, seed=i) for i, name in enumerate("abcd")}
    problems, _ = problems_of(net(nodes, weights, ["N", 12]), X)
    assert [(shared.layers[0].name, shared.depth) for shared in problems.weights] == [
        ("a", 0), ("b", 0), ("c", 1), ("y", 2),
    ]  # fmt: skip
    assert [problem.name for problem in problems] == ["a", "b", "c", "y"]


def test_a_later_layer_gets_the_inputs_that_the_changed_model_produces() -> None:
    problems, model = problems_of(dense_net(12, 16, 4), X)
    order = iter(problems)
    first = next(order)
    problems.apply(first, half_gone(first), "halved")
    second = next(order)
    proto = model.to_proto()
    proto.graph.output.append(onnx.ValueInfoProto(name="r0"))
    seen = outputs(proto, X)["r0"].astype(np.float64)
    seen -= seen.mean(axis=0)
    np.testing.assert_allclose(
        second.metrics[0].blocks[0].undamped(), seen.T @ seen / len(X), rtol=1e-4, atol=1e-5
    )


def test_all_at_once_means_the_inputs_of_the_model_as_it_was() -> None:
    source = dense_net(12, 16, 4)
    problems, _ = problems_of(source, X, schedule=AT_ONCE)
    order = iter(problems)
    first = next(order)
    problems.apply(first, half_gone(first), "halved")
    second = next(order)
    source.graph.output.append(onnx.ValueInfoProto(name="r0"))
    seen = outputs(source, X)["r0"].astype(np.float64)
    seen -= seen.mean(axis=0)
    np.testing.assert_allclose(
        second.metrics[0].blocks[0].undamped(), seen.T @ seen / len(X), rtol=1e-4, atol=1e-5
    )


def test_a_schedule_can_be_had_at_once_with_the_same_aim() -> None:
    assert OWN.at_once() == Schedule(sequential=False, aim=Target.CURRENT)


# ------------------------------------------------------------------- targets


@pytest.mark.parametrize("seed", range(4))
def test_the_original_outputs_as_target_beat_the_present_ones_and_inputs_without_order(
    seed: int,
) -> None:
    source = dense_net(12, 24, 24, 6, seed=10 * seed)
    x = samples(400, 12, seed=seed)
    best, *others = (
        output_error(source, compressed(source, x, schedule)[0], x)
        for schedule in (Schedule(), OWN, AT_ONCE)
    )
    assert best < 0.95 * min(others)


def test_the_error_of_a_weight_is_what_the_original_output_misses() -> None:
    source = dense_net(12, 16, 4)
    problems, model = problems_of(source, X)
    for problem in problems:
        weight = half_gone(problem)
        problems.apply(problem, weight, "halved")
        expected = output_error_of(source, model, problem.name)
        assert problem.error(weight) == pytest.approx(expected, rel=2e-3)


def output_error_of(source: onnx.ModelProto, model: Model, name: str) -> float:
    """E‖y − y'‖² of an inner tensor."""
    protos = []
    for proto in (source, model.to_proto()):
        copy = onnx.ModelProto.FromString(proto.SerializeToString())
        del copy.graph.output[:]
        copy.graph.output.append(onnx.ValueInfoProto(name=name))
        protos.append(copy)
    ref, new = (outputs(proto, X)[name].astype(np.float64) for proto in protos)
    return float(np.square(ref - new).sum(axis=1).mean())


def test_a_relative_error_is_a_share_of_the_variance_where_the_bias_is_free() -> None:
    source = dense_net(12, 4)
    problems, _ = problems_of(source, X)
    (problem,) = problems
    y = outputs(source, X)["y"].astype(np.float64)
    assert problem.energy == pytest.approx(float(y.var(axis=0).sum()), rel=1e-4)
    assert problem.relative_error(np.zeros_like(problem.target)) == pytest.approx(1, rel=1e-3)


def test_without_data_the_target_is_the_weight_and_h_the_identity() -> None:
    source = dense_net(12, 16, 4)
    problems, model = problems_of(source, None)
    found = list(problems)
    assert [problem.name for problem in found] == ["h0", "y"]
    for problem in found:
        assert not problem.has_data
        np.testing.assert_array_equal(problem.target, problem.weight)
        lost = np.where(np.abs(problem.target) > 0.2, problem.target, 0)
        assert problem.error(lost) == pytest.approx(float(np.square(problem.target - lost).sum()))
        assert problem.relative_error(np.zeros_like(lost)) == 1
        problems.apply(problem, lost, "cut")
    before = {t.name: onnx.numpy_helper.to_array(t) for t in source.graph.initializer}
    after = {t.name: onnx.numpy_helper.to_array(t) for t in model.to_proto().graph.initializer}
    np.testing.assert_array_equal(after["b0"], before["b0"])
    assert (after["w0"] != before["w0"]).any()


def test_an_all_zero_weight_has_no_relative_error_to_speak_of() -> None:
    source = net([node("MatMul", ["x", "w"], "y")], {"w": np.zeros((12, 3), np.float32)}, ["N", 12])
    for x in (None, X):
        (problem,) = problems_of(source, x)[0]
        assert problem.relative_error(problem.target) == 0


# ------------------------------------------------------------------- biases

MAPS = samples(24, 4, 6, 6)


def conv(group: int = 1, *, bias: bool = True, empty: bool = False) -> onnx.ModelProto:
    inputs = ["x", "w", *(["b"] if bias else []), *([""] if empty else [])]
    weights = {"w": normal(8, 4 // group, 3, 3)}
    if bias:
        weights["b"] = normal(8, seed=2)
    nodes = [node("Conv", inputs, "y", group=group, pads=[1, 1, 1, 1], strides=[1, 2])]
    return net(nodes, weights, ["N", 4, 6, 6])


def conv_transpose(group: int) -> onnx.ModelProto:
    weights = {"w": normal(4, 3, 3, 2), "b": normal(3 * group, seed=2)}
    nodes = [node("ConvTranspose", ["x", "w", "b"], "y", group=group, strides=[2, 1])]
    return net(nodes, weights, ["N", 4, 6, 6])


def gemm(trans_b: int, beta: float, *, bias: tuple[int, ...] | None = (5,)) -> onnx.ModelProto:
    weights = {"w": normal(*((5, 12) if trans_b else (12, 5)))}
    inputs = ["x", "w"]
    if bias is not None:
        weights["b"] = normal(*bias, seed=2)
        inputs.append("b")
    nodes = [node("Gemm", inputs, "y", transB=trans_b, alpha=0.5, beta=beta)]
    return net(nodes, weights, ["N", 12])


def gemm_of_columns(trans_a: int) -> onnx.ModelProto:
    """The weight on the left: each column of the output is one y."""
    weights = {"w": normal(*((12, 5) if trans_a else (5, 12))), "b": normal(5, 1, seed=2)}
    return net([node("Gemm", ["w", "x", "b"], "y", transA=trans_a, beta=2.0)], weights, [12, "N"])


BIASED = [
    pytest.param(conv(), MAPS, (0, 2, 3), id="conv"),
    pytest.param(conv(2), MAPS, (0, 2, 3), id="grouped conv"),
    pytest.param(conv(4), MAPS, (0, 2, 3), id="depthwise conv"),
    pytest.param(conv(bias=False), MAPS, (0, 2, 3), id="conv without bias"),
    pytest.param(conv(bias=False, empty=True), MAPS, (0, 2, 3), id="conv with an empty bias"),
    pytest.param(conv_transpose(1), MAPS, (0, 2, 3), id="transposed conv"),
    pytest.param(conv_transpose(2), MAPS, (0, 2, 3), id="grouped transposed conv"),
    pytest.param(gemm(0, 1.0), X, 0, id="gemm"),
    pytest.param(gemm(1, -2.5), X, 0, id="gemm with beta and transB"),
    pytest.param(gemm(0, 1.0, bias=(1, 5)), X, 0, id="gemm with a bias row"),
    pytest.param(gemm(0, 1.0, bias=(1,)), X, 0, id="gemm with one number for a bias"),
    pytest.param(gemm(0, 1.0, bias=None), X, 0, id="gemm without bias"),
    pytest.param(gemm_of_columns(0), X.T.copy(), 1, id="gemm, weight on the left"),
    pytest.param(gemm_of_columns(1), X.T.copy(), 1, id="gemm, weight on the left, transA"),
]


@pytest.mark.parametrize("aim", list(Target))
@pytest.mark.parametrize(("source", "x", "axes"), BIASED)
def test_the_bias_keeps_the_mean_output(
    source: onnx.ModelProto, x: np.ndarray, axes: int | tuple[int, ...], aim: Target
) -> None:
    given = [{"x": x}] if x.shape[0] == 12 else x
    problems, model = problems_of(source, given, schedule=Schedule(aim=aim))
    for problem in problems:
        problems.apply(problem, third_gone(problem), "cut")
    before, after = (outputs(m, {"x": x})["y"].astype(np.float64) for m in (source, model))
    scale = float(np.abs(before).mean())
    np.testing.assert_allclose(after.mean(axis=axes), before.mean(axis=axes), atol=2e-6 * scale)
    assert np.square(before - after).mean() > 1e-4
    onnx.checker.check_model(model.to_proto(), full_check=True)


def test_the_mean_stays_that_of_the_original_through_all_layers() -> None:
    source = dense_net(12, 16, 16, 4)
    problems, model = problems_of(source, X)
    for problem in problems:
        problems.apply(problem, third_gone(problem), "cut")
    before, after = outputs(source, X)["y"], outputs(model, X)["y"]
    np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), atol=1e-5)


def test_a_matmul_has_no_bias_and_gets_none() -> None:
    source = net([node("MatMul", ["x", "w"], "y")], {"w": normal(12, 5)}, ["N", 12])
    problems, model = problems_of(source, X)
    (problem,) = problems
    assert problem.bias_targets == (None,)
    problems.apply(problem, half_gone(problem), "halved")
    assert [len(n.input) for n in model.to_proto().graph.node] == [2]


def test_a_bias_that_beta_switches_off_stays_off() -> None:
    source = gemm(0, 0.0)
    problems, model = problems_of(source, X)
    (problem,) = problems
    problems.apply(problem, half_gone(problem), "halved")
    after = outputs(model, X)["y"]
    assert np.isfinite(after).all()
    weight = problem.layer.holder.values
    np.testing.assert_allclose(after, 0.5 * X @ weight, rtol=1e-4, atol=1e-4)


def test_a_bias_used_elsewhere_keeps_its_value_there() -> None:
    nodes = [node("Gemm", ["x", "w", "b"], "h"), node("Add", ["h", "b"], "y")]
    weights = {"w": normal(12, 5), "b": normal(5, seed=2)}
    source = net(nodes, weights, ["N", 12], outputs=("h", "y"))
    problems, model = problems_of(source, X)
    for problem in problems:
        problems.apply(problem, third_gone(problem), "cut")
    after = outputs(model, X)
    np.testing.assert_allclose(
        after["y"] - after["h"], np.broadcast_to(weights["b"], (300, 5)), atol=1e-5
    )


def test_a_bias_computed_at_run_time_is_left_alone() -> None:
    nodes = [
        node("ReduceMean", ["x"], "m", axes=[0, 1], keepdims=0),
        node("Mul", ["b", "m"], "c"),
        node("Gemm", ["x", "w", "c"], "y"),
    ]
    weights = {"w": normal(12, 5), "b": normal(5, seed=2)}
    problems, model = problems_of(net(nodes, weights, ["N", 12]), X)
    (problem,) = problems
    assert problem.has_data
    assert problem.bias_targets == (None,)
    problems.apply(problem, half_gone(problem), "halved")
    assert model.to_proto().graph.node[-1].input[2] == "c"


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_biases_and_weights_keep_their_type(kind: type) -> None:
    weights = {"w": normal(12, 5).astype(kind), "b": normal(5, seed=2).astype(kind)}
    dtype = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    source = net([node("Gemm", ["x", "w", "b"], "y")], weights, ["N", 12], dtype=dtype)
    x = X.astype(kind)
    problems, model = problems_of(source, x)
    (problem,) = problems
    problems.apply(problem, third_gone(problem), "cut")
    before, after = (outputs(m, x)["y"].astype(np.float64) for m in (source, model))
    tolerance = 1e-9 if kind is np.float64 else 5e-3
    np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), atol=tolerance)


# ------------------------------------------------------------------- shared weights


def tied(first: str, second: str) -> onnx.ModelProto:
    """Send x through a weight, and through it again; `Gemm-` reads it transposed."""
    nodes, last = [], "x"
    for name, op in (("h", first), ("y", second)):
        attrs = {"transB": 1} if op == "Gemm-" else {}
        nodes.append(node(op.rstrip("-"), [last, "w"], name, **attrs))
        nodes.append(node("Relu", [name], "r")) if name == "h" else None
        last = "r"
    return net(nodes, {"w": normal(12, 12, scale=0.4)}, ["N", 12])


@pytest.mark.parametrize("second", ["MatMul", "Gemm"])
def test_layers_that_share_a_weight_are_one_problem_over_the_inputs_of_both(second: str) -> None:
    source = tied("MatMul", second)
    problems, model = problems_of(source, X)
    (problem,) = problems
    assert [layer.name for layer in problem.layers] == ["h", "y"]
    assert problem.has_data
    x0 = X.astype(np.float64)
    x1 = np.maximum(x0 @ normal(12, 12, scale=0.4), 0)
    if second == "Gemm":  # its bias is free
        x1 = x1 - x1.mean(axis=0)
    expected = (x0.T @ x0 + x1.T @ x1) / len(X)
    np.testing.assert_allclose(
        problem.metrics[0].blocks[0].undamped(), expected, rtol=1e-3, atol=1e-3
    )
    problems.apply(problem, half_gone(problem), "halved")
    assert [t.name for t in model.to_proto().graph.initializer if t.name == "w"] == ["w"]
    assert output_error(source, model, X) < 0.2


def test_layers_that_read_a_shared_weight_differently_are_one_problem_without_data() -> None:
    problems, model = problems_of(tied("MatMul", "Gemm-"), X)
    (problem,) = problems
    assert not problem.has_data
    assert problem.notes == ("H = I: the layers that share it read it differently",)
    np.testing.assert_array_equal(problem.target, problem.weight)
    problems.apply(problem, third_gone(problem), "cut")
    assert np.isfinite(outputs(model, X)["y"]).all()


def test_a_weight_selected_for_one_of_its_layers_only_is_left_alone_and_says_why() -> None:
    for selection in (LayerFilter(only=("h",)), LayerFilter(skip=("y",))):
        problems, _ = problems_of(tied("MatMul", "MatMul"), X, selection=selection)
        assert list(problems) == []
        assert [(skip.node, skip.why) for skip in problems.rewriter.result().skips] == [
            ("h", "it shares its weight with `y`, which is not selected")
        ]


def test_a_weight_that_no_layer_is_selected_for_is_left_alone_in_silence() -> None:
    problems, _ = problems_of(tied("MatMul", "MatMul"), X, selection=LayerFilter(only=("z",)))
    assert list(problems) == []
    assert problems.rewriter.result().skips == ()


@pytest.mark.parametrize(
    ("selection", "name", "accepted"),
    [
        (LayerFilter(), "a", True),
        (LayerFilter(only=("conv*",)), "conv1", True),
        (LayerFilter(only=("conv*",)), "Conv1", False),
        (LayerFilter(only=("a", "b?")), "b1", True),
        (LayerFilter(skip=("fc*",)), "fc1", False),
        (LayerFilter(only=("*",), skip=("fc[12]",)), "fc3", True),
    ],
)
def test_selections_are_by_shell_patterns(
    selection: LayerFilter, name: str, accepted: bool
) -> None:
    assert selection.accepts(name) is accepted


def test_a_weight_that_another_operator_reads_too_says_so() -> None:
    """As tied embeddings: what the change does there is not measured."""
    nodes = [
        node("MatMul", ["x", "w"], "h"),
        node("Gather", ["w", "i"], "row"),
        node("Add", ["h", "row"], "y"),
    ]
    weights = {"w": normal(12, 5), "i": np.array(3, np.int64)}
    (problem,) = problems_of(net(nodes, weights, ["N", 12]), X)[0]
    assert any("`row`" in note for note in problem.notes)


# ------------------------------------------------------------------- bodies


def branches() -> onnx.ModelProto:
    return parse(
        """<opset_import: ["" : 17]>
        g (float[2, 3] x, bool c) => (float[2, 2] y)
        <float[3, 3] v = {1, 2, 3, 4, 5, 6, 7, 8, 9.5}> {
            h = MatMul (x, v)
            y = If (c) <
                then_branch = t () => (float[2, 2] r)
                    <float[3, 2] w = {1, 2, 3, 4, 5, 6}> { r = MatMul (h, w) },
                else_branch = e () => (float[2, 2] r)
                    <float[3, 2] w = {6, 5, 4, 3, 2, 1}> { r = Gemm (h, w) }
            >
        }"""
    )


def test_layers_in_the_branches_of_an_if_have_data_when_these_are_taken() -> None:
    items = [{"x": normal(2, 3, seed=seed), "c": np.array(bool(seed % 3))} for seed in range(30)]
    source = branches()
    problems, model = problems_of(source, items)
    names = []
    for problem in problems:
        names.append(problem.name)
        assert problem.has_data
        problems.apply(problem, third_gone(problem), "cut")
    assert len(names) == 3
    assert names[0] == "h"
    assert {name.split("/")[-2:][0] for name in names[1:]} == {"then_branch", "else_branch"}
    onnx.checker.check_model(model.to_proto(), full_check=True)
    errors = []
    for item in items:
        before, after = outputs(source, item)["y"], outputs(model, item)["y"]
        errors.append(after - before)
    other = np.stack([e for e, item in zip(errors, items, strict=True) if not item["c"]])
    np.testing.assert_allclose(other.mean(axis=(0, 1)), 0, atol=1e-4)  # a Gemm: it has a bias


def test_a_branch_never_taken_has_no_data_and_says_so() -> None:
    items = [{"x": normal(2, 3, seed=seed), "c": np.array(True)} for seed in range(4)]
    problems, _ = problems_of(branches(), items)
    found = {problem.name: problem for problem in problems}
    (untaken,) = [p for name, p in found.items() if "else_branch" in name]
    assert not untaken.has_data
    assert untaken.notes == ("H = I: no calibration sample reaches it",)


def test_a_layer_in_the_body_of_a_loop_has_no_data_and_says_so() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[N, 3] x) => (float[N, 3] y)
        <int64 trips = {2}, bool go = {1}, float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9.5}>
        {
            h = MatMul (x, w)
            y = Loop (trips, go, h) <body = b (int64 i, bool p, float[N, 3] s)
                    => (bool q, float[N, 3] t)
                <float[3, 3] v = {1, 0, 2, 4, 0, 6, 7, 8, 9.5}>
                { q = Identity (p) t = MatMul (s, v) }>
        }"""
    )
    problems, model = problems_of(source, samples(40, 3))
    first, inner = problems
    assert first.has_data
    assert not inner.has_data
    (note,) = inner.notes
    assert note.startswith("H = I: ")
    assert "Loop" in note
    problems.apply(inner, np.where(np.abs(inner.target) > 2, inner.target, 0), "cut")
    assert np.isfinite(outputs(model, samples(2, 3))["y"]).all()


# ------------------------------------------------------------------- the reference


def test_a_layer_that_the_reference_lacks_aims_at_its_own_output() -> None:
    source = dense_net(12, 16, 4)
    other = dense_net(12, 16, 4)
    other.graph.node[0].output[0] = other.graph.node[1].input[0] = "elsewhere"
    problems, _ = problems_of(source, X, reference=Model.load(other))
    first, second = problems
    assert first.has_data
    assert first.irreducible_error == 0
    np.testing.assert_allclose(first.target, first.weight)
    assert problems.original(first.layer) is None
    assert problems.original(second.layer) is not None


def test_a_layer_of_another_size_in_the_reference_is_no_target() -> None:
    reference = Model.load(dense_net(12, 20, 4))
    problems, model = problems_of(dense_net(12, 16, 4), X, reference=reference)
    first, second = problems
    assert problems.original(first.layer) is None
    assert problems.original(second.layer) is not None
    problems.apply(second, second.target, "fitted")
    before, after = outputs(reference, X)["y"], outputs(model, X)["y"]
    np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), atol=1e-5)


def test_the_reference_is_reached_as_far_as_the_inputs_allow() -> None:
    """The unconstrained target brings a damaged model back to the outputs of the reference."""
    reference = Model.load(dense_net(12, 16, 4))
    damaged = dense_net(12, 16, 4)
    noise = 0.05 * normal(12, 16, seed=9)
    weight = onnx.numpy_helper.to_array(damaged.graph.initializer[0]) + noise
    damaged.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w0"))
    before = output_error(reference, damaged, X)
    problems, model = problems_of(damaged, X, reference=reference)
    for problem in problems:
        problems.apply(problem, problem.target, "fitted")
    assert output_error(reference, model, X) < 1e-3 * before


def test_without_a_reference_layers_aim_at_their_own_outputs() -> None:
    model = Model.load(dense_net(12, 16, 4))
    bare = context(model, X)
    made = Context(calibration=bare.calibration, model=model, target=None)
    for problem in Problems(Rewriter(model.graph), made):
        assert problem.has_data
        np.testing.assert_allclose(problem.target, problem.weight)


# ------------------------------------------------------------------- what is asked of the samples


def test_layers_of_one_depth_share_a_sweep() -> None:
    nodes = [node("MatMul", ["x", f"w{i}"], f"h{i}") for i in range(3)]
    nodes += [node("Sum", [f"h{i}" for i in range(3)], "s"), node("MatMul", ["s", "v"], "y")]
    weights = {f"w{i}": normal(12, 12, seed=i) for i in range(3)} | {"v": normal(12, 2)}
    model = Model.load(net(nodes, weights, ["N", 12]))
    made = context(model, X)
    asked: list[tuple[str, ...]] = []

    class Listening:
        def moments(self, model: Model, layers: tuple[str, ...], reference: Model | None = None):  # type: ignore[no-untyped-def]
            asked.append(tuple(layers))
            assert made.calibration is not None
            return made.calibration.moments(model, layers, reference)

    listening = Context(calibration=Listening(), model=model, target=made.target)  # type: ignore[arg-type]
    assert len(list(Problems(Rewriter(model.graph), listening))) == 4
    assert asked == [("h0", "h1", "h2"), ("y",)]


def test_weights_with_too_many_inputs_come_first_and_without_data() -> None:
    nodes = [node("MatMul", ["x", "wa"], "a"), node("MatMul", ["a", "wb"], "y")]
    model = Model.load(net(nodes, {"wa": normal(12, 6), "wb": normal(6, 2)}, ["N", 12]))
    problems = Problems(Rewriter(model.graph), context(model, X), max_inputs=8)
    first, second = problems
    assert (first.name, first.has_data) == ("a", False)
    assert first.notes == ("H = I: it has more than 8 inputs",)
    assert (second.name, second.has_data) == ("y", True)


def test_problems_can_be_gone_through_again() -> None:
    problems, _ = problems_of(dense_net(12, 16, 4), X)
    rounds = [[(p.name, p.energy) for p in problems] for _ in range(2)]
    assert rounds[0] == rounds[1]


def test_depths_never_fall_along_the_order() -> None:
    problems, _ = problems_of(dense_net(12, 9, 8, 7, 6, 5), X)
    depths = [shared.depth for shared in problems.weights]
    assert all(a <= b for a, b in pairwise(depths))
    assert depths == [0, 1, 2, 3, 4]


# ------------------------------------------------------------------- few samples


def pruned_error(count: int, *, shrunk: bool, seed: int) -> float:
    """Relative error on new samples, half of the inputs gone and the others refitted."""
    whole = samples(count + 2000, 60, seed=seed, rank=60)
    whole = np.maximum(whole * np.linspace(2.0, 0.05, 60, dtype=np.float32), 0)
    source = dense_net(60, 20, relu=False, seed=seed)
    (problem,) = problems_of(source, whole[:count])[0]
    keeps = np.arange(60) % 2 == 0
    second = problem.metrics[0].blocks[0].undamped()
    metric = problem.metrics[0] if shrunk else Metric(second, 60)
    weight = refit(problem.target[0], metric, keeps)
    new = whole[count:] - whole[count:].mean(axis=0)
    wished = new @ problem.target[0].T
    return float(np.square(wished - new @ weight.T).sum() / np.square(wished).sum())


def test_with_few_samples_a_shrunk_metric_fits_new_ones_better() -> None:
    ratios = [
        pruned_error(40, shrunk=True, seed=seed) / pruned_error(40, shrunk=False, seed=seed)
        for seed in range(8)
    ]
    assert np.median(ratios) < 0.8


def test_with_many_samples_shrinking_changes_nothing_that_matters() -> None:
    ratios = [
        pruned_error(6000, shrunk=True, seed=seed) / pruned_error(6000, shrunk=False, seed=seed)
        for seed in range(3)
    ]
    np.testing.assert_allclose(ratios, 1.0, atol=2e-3)

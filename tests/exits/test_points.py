"""Where a network can be left."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from exit_nets import classifier, loaded
from layer_nets import net, node, normal

from onnxslim.errors import ModelError, NotApplicable
from onnxslim.exits.candidates import scores_named
from onnxslim.exits.points import (
    ExitPoint,
    candidate_points,
    deep_nodes,
    forcing_outputs,
    point_named,
    score_outputs,
    single_path,
)
from onnxslim.graph.ir import node_label
from onnxslim.surveys import exits
from support import parse


def residual_net() -> onnx.ModelProto:
    """Two residual blocks on rows of 8."""
    nodes, weights, last = [], {}, "x"
    for number in range(3):
        weights[f"w{number}"] = normal(8, 8, seed=number)
        nodes += [
            node("MatMul", [last, f"w{number}"], f"m{number}"),
            node("Add", [last, f"m{number}"], f"s{number}"),
        ]
        last = f"s{number}"
    weights["o"] = normal(8, 3)
    nodes.append(node("MatMul", [last, "o"], "y"))
    return net(nodes, weights, ["N", 8])


def names(proto: onnx.ModelProto) -> list[str]:
    graph = loaded(proto).graph
    return [point.tensor for point in candidate_points(graph, score_outputs(graph)[0])]


def test_points_lie_between_pieces_of_work_behind_what_is_fused_into_them() -> None:
    assert names(classifier()) == ["r0", "r1", "r2", "p"]


def test_a_branch_of_a_residual_block_is_no_point() -> None:
    graph = loaded(residual_net()).graph
    output = score_outputs(graph)[0]
    assert [tensor.name for tensor in single_path(graph, output)] == ["s0", "s1", "s2", "y"]
    assert names(residual_net()) == ["s0", "s1", "s2"]


def test_points_know_the_share_of_the_work_before_them() -> None:
    graph = loaded(classifier()).graph
    shares = [point.share or 0 for point in candidate_points(graph, score_outputs(graph)[0])]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.2
    assert shares[-1] > 0.9


def test_asking_for_a_shape_far_up_hides_no_point() -> None:
    nodes = [
        node("MatMul", ["x", "w"], "h"),
        node("Relu", ["h"], "r"),
        node("Shape", ["x"], "s"),
        node("Slice", ["s", "zero", "one"], "n"),
        node("Concat", ["n", "four"], "t", axis=0),
        node("MatMul", ["r", "w"], "m"),
        node("Reshape", ["m", "t"], "y"),
    ]
    ints = {"zero": np.array([0]), "one": np.array([1]), "four": np.array([4])}
    assert names(net(nodes, {"w": normal(4, 4), **ints}, ["N", 4])) == ["r"]


def test_what_lies_behind_a_point_can_be_skipped() -> None:
    graph = loaded(classifier()).graph
    output = score_outputs(graph)[0]
    point = next(t for n in graph.nodes for t in n.outputs if t.name == "r2")
    deep = [node_label(item) for item in deep_nodes(graph, output, point)]
    assert deep == ["c3", "r3", "p", "f", "y"]


def test_what_another_output_needs_cannot_be_skipped() -> None:
    proto = classifier(extra=[node("Relu", ["c3"], "other")], outputs=("y", "other"))
    graph = loaded(proto).graph
    output = scores_named(graph, "y")[0]
    point = next(t for n in graph.nodes for t in n.outputs if t.name == "r1")
    assert forcing_outputs(graph, output, point) == ["other"]
    deep = {node_label(item) for item in deep_nodes(graph, output, point)}
    assert deep == {"r3", "p", "f", "y"}


def test_an_output_made_of_the_scores_alone_forces_nothing() -> None:
    extra = [node("Softmax", ["y"], "probabilities", axis=1)]
    graph = loaded(classifier(extra=extra, outputs=("probabilities", "y"))).graph
    output = score_outputs(graph)[0]
    assert output.name == "y"  # the one that the other is made of
    point = next(t for n in graph.nodes for t in n.outputs if t.name == "r1")
    assert forcing_outputs(graph, output, point) == []


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("m1", "there are paths from the inputs to `y` that do not pass through it"),
        ("nothing", "the graph has no such tensor"),
        ("s1", None),
    ],
)
def test_a_named_tensor_is_a_point_or_there_is_a_reason(name: str, why: str | None) -> None:
    graph = loaded(residual_net()).graph
    found = point_named(graph, score_outputs(graph)[0], name)
    assert found == why if why is not None else isinstance(found, ExitPoint)


def test_an_output_of_a_model_without_inputs_has_no_path() -> None:
    graph = loaded(
        parse(
            '<opset_import: ["" : 13]> g () => (float[2, 3] y) <float[2, 3] w = '
            "{1, 2, 3, 4, 5, 6}> { y = Relu (w) }"
        )
    ).graph
    assert single_path(graph, graph.outputs[0]) == []


def test_a_point_before_which_all_the_work_is_done_is_refused() -> None:
    proto = classifier(last="Softmax")
    graph = loaded(proto).graph
    assert point_named(graph, score_outputs(graph)[0], "z") == "no work is behind it"


# ------------------------------------------------------------------- class scores


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("g (float[N, 4] x) => (int64[N] y) { y = ArgMax <axis = 1, keepdims = 0> (x) }", "output"),
        ("g (float[N, 4] x) => (float[N, 1] y) { y = ReduceMax <axes = [1]> (x) }", "no output is"),
        ("g (float[N, 4, 5] x) => (float[N, 4, 5] y) { y = Relu (x) }", "no output is"),
    ],
)
def test_outputs_of_another_form_are_no_class_scores(text: str, why: str) -> None:
    model = loaded(parse(f'<opset_import: ["" : 13]> {text}'))
    with pytest.raises(NotApplicable, match=why):
        scores_named(model.graph, None)


@pytest.mark.parametrize("kept", ["{0}", "{1, 1, 1}"])
def test_an_output_of_other_rows_than_samples_is_no_class_scores(kept: str) -> None:
    source = parse(
        f"""<opset_import: ["" : 13]> g (float[N, 4] x) => (float[M, 4] y)
        <bool[K] keep = {kept}> {{ a = Relu (x) y = Compress <axis = 0> (a, keep) }}""".replace(
            "K", str(kept.count(",") + 1)
        )
    )
    x = np.ones((40, 4), np.float32)
    with pytest.raises(ModelError, match="one row for each sample"):
        exits(source, calibration={"x": x}, measure=False)


def test_an_output_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(NotApplicable, match=r"`z` is no output that is class scores.*are `y`"):
        scores_named(loaded(classifier()).graph, "z")


def test_scores_may_have_further_axes_of_one() -> None:
    nodes = [
        node("Conv", ["x", "v"], "h"),
        node("Conv", ["h", "w"], "c"),
        node("GlobalAveragePool", ["c"], "y"),
    ]
    weights = {"v": normal(3, 3, 1, 1), "w": normal(5, 3, 1, 1)}
    assert names(net(nodes, weights, ["N", 3, 4, 4])) == ["h"]


def test_control_flow_on_the_way_is_refused() -> None:
    text = """
        <opset_import: ["" : 17]>
        g (float[N, 4] x, bool c) => (float[N, 4] y) {
            y = If (c) <then_branch = a () => (float[N, 4] p) { p = Relu (x) },
                        else_branch = b () => (float[N, 4] q) { q = Neg (x) }>
        }
    """
    with pytest.raises(NotApplicable, match="the If `y` decides at run time"):
        scores_named(loaded(parse(text)).graph, None)

"""The guarded edits that all passes share."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxslim.errors import PromiseBroken
from onnxslim.graph.ir import Graph, Node, Variable
from onnxslim.graph.order import sort_topologically
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.check import check_model
from onnxslim.io.model import Model
from onnxslim.records import Fidelity
from support import assert_equivalent, parse, run

CHAIN = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z)
<float[4] b = {1, 2, 3, 4}> {
    a = Relu (x)
    c = Add (a, b)
    y = Sigmoid (c)
    d = Abs (x)
    z = Identity (d)
}"""

BRANCH = """<ir_version: 8, opset_import: ["" : 17]>
g (bool p, float[4] x) => (float[4] y) {
    outer = Relu (x)
    y = If (p) <
        then_branch = t () => (float[4] r) { s = Abs (outer) r = Neg (s) },
        else_branch = e () => (float[4] r) { s = Exp (outer) r = Neg (s) }
    >
}"""


SHARED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1] x) => (float[1] y) {
    [same] a = Constant <value = float[1] {1.0}> ()
    [same] b = Constant <value = float[1] {1.0}> ()
    c = Add (x, a)
    y = Add (c, b)
}"""


def _load(text: str) -> tuple[onnx.ModelProto, Graph]:
    proto = parse(text)
    return proto, Model.load(proto).graph


def _back(source: onnx.ModelProto, graph: Graph) -> onnx.ModelProto:
    model = Model.load(source)
    model.graph = graph
    return model.to_proto()


def _node(graph: Graph, op: str) -> Node:
    return next(n for g in [graph] for n in g.nodes if n.op == op)


def test_a_constant_that_becomes_another_operator_gives_up_a_name_that_it_may_share() -> None:
    _, graph = _load(SHARED)
    rw = Rewriter(graph)
    first, second = (node for node in graph.nodes if node.op == "Constant")
    rw.update(first, "scaled", attrs={"value": np.float32([2.0])})
    assert first.name == second.name == "same"
    rw.update(second, "of a twin", op="Identity", inputs=[graph.inputs[0]], attrs={})
    assert (first.name, second.name) == ("same", "")


def test_substituting_removes_the_node_and_what_only_fed_it() -> None:
    _, graph = _load(CHAIN)
    rw = Rewriter(graph)
    add = _node(graph, "Add")
    assert rw.substitute(add, graph.inputs[0], "bypassed")
    result = rw.result()
    assert [node.op for node in graph.nodes] == ["Sigmoid", "Abs", "Identity"]
    assert result.changes[0].node == "c"


def test_the_value_that_becomes_a_graph_output_takes_over_its_name() -> None:
    source, graph = _load(CHAIN)
    rw = Rewriter(graph)
    identity = _node(graph, "Identity")
    assert rw.substitute(identity, identity.inputs[0], "removed")
    rw.result()
    assert_equivalent(source, _back(source, graph), Fidelity.EXACT)
    assert graph.nodes[-1].outputs[0].name == "z"


def test_an_input_cannot_become_an_output_and_nothing_is_touched() -> None:
    source, graph = _load(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) { y = Identity(x) }"""
    )
    rw = Rewriter(graph)
    assert not rw.substitute(graph.nodes[0], graph.inputs[0], "removed")
    assert not rw.result().changed
    assert _back(source, graph) == Model.load(source).to_proto()


def test_a_constant_that_becomes_an_output_is_made_by_a_constant_node() -> None:
    source, graph = _load(CHAIN)
    rw = Rewriter(graph)
    values = rw.constant(np.zeros((3, 4), np.float32), "zeros")
    assert rw.substitute(_node(graph, "Sigmoid"), values, "folded")
    rw.result()
    made = graph.outputs[0].inputs[0]
    assert (made.op, made.outputs[0].name) == ("Constant", "y")
    onnx.checker.check_model(_back(source, graph))


def test_updating_keeps_the_output_and_drops_orphans() -> None:
    source, graph = _load(CHAIN)
    rw = Rewriter(graph)
    sigmoid = _node(graph, "Sigmoid")
    rw.update(sigmoid, "fused", op="Neg", inputs=[graph.inputs[0]], attrs={})
    rw.result()
    assert [node.op for node in graph.nodes] == ["Neg", "Abs", "Identity"]
    onnx.checker.check_model(_back(source, graph), full_check=True)


def test_inserted_nodes_stand_before_their_anchor_with_fresh_names() -> None:
    source, graph = _load(CHAIN)
    rw = Rewriter(graph)
    add = _node(graph, "Add")
    (fresh,) = rw.insert(add, "Neg", [add.inputs[0]], name="a")
    assert fresh.name != "a"
    rw.update(add, "negated", inputs=[fresh, add.inputs[1]])
    rw.result()
    assert [node.op for node in graph.nodes][:3] == ["Relu", "Neg", "Add"]
    onnx.checker.check_model(_back(source, graph), full_check=True)


def test_walking_visits_bodies_and_what_an_edit_touches_again() -> None:
    _, graph = _load(BRANCH)
    rw = Rewriter(graph)
    seen = []
    for node in rw.walk():
        seen.append(node.op)
        if node.op == "Neg" and "r_twice" not in [t.name for t in node.outputs]:
            rw.update(node, "became Abs", op="Abs", attrs={})
    assert seen.count("If") == 1
    assert seen.count("Neg") == 2
    assert seen.count("Abs") == 1 + 2  # the one that was there, and the two that were made


@pytest.mark.slow
def test_rewrites_without_end_are_stopped_and_named() -> None:
    _, graph = _load(CHAIN)
    rw = Rewriter(graph)

    def rewrite_for_ever() -> None:
        for node in rw.walk("Relu"):
            rw.update(node, "again")

    with pytest.raises(PromiseBroken, match="do not come to an end"):
        rewrite_for_ever()


def test_removing_a_node_with_bodies_frees_what_they_captured() -> None:
    source, graph = _load(BRANCH)
    rw = Rewriter(graph)
    node = _node(graph, "If")
    rw.substitute(node, rw.constant(np.zeros(4, np.float32), "k"), "folded")
    rw.result()
    assert [n.op for n in graph.nodes] == ["Constant"]
    onnx.checker.check_model(_back(source, graph))


def test_removing_a_node_in_use_is_refused() -> None:
    _, graph = _load(CHAIN)
    rw = Rewriter(graph)
    with pytest.raises(PromiseBroken, match="still used"):
        rw.remove(_node(graph, "Relu"), "gone")


@pytest.mark.parametrize("branch", ["then_branch", "else_branch"])
def test_inlining_a_branch_keeps_values_and_names_unique(branch: str) -> None:
    source, graph = _load(BRANCH)
    rw = Rewriter(graph)
    node = _node(graph, "If")
    rw.inline(node, node.attrs[branch], [], "condition is constant")
    rw.result()
    model = _back(source, graph)
    onnx.checker.check_model(model, full_check=True)
    ops = [n.op_type for n in model.graph.node]
    assert ops == ["Relu", {"then_branch": "Abs", "else_branch": "Exp"}[branch], "Neg"]
    assert model.graph.output[0].name == "y"
    names = [name for n in model.graph.node for name in n.output]
    assert len(names) == len(set(names))


def test_skips_are_said_once_per_node_and_reason() -> None:
    _, graph = _load(CHAIN)
    rw = Rewriter(graph)
    for _ in range(3):
        rw.skip(graph.nodes[0], "no")
    rw.skip(graph.nodes[1], "no")
    assert [skip.node for skip in rw.result().skips] == ["a", "c"]


def test_sorting_moves_producers_before_consumers_and_refuses_cycles() -> None:
    _, graph = _load(CHAIN)
    order = [node.op for node in graph.nodes]
    graph.nodes.reverse()
    sort_topologically(graph)
    place = {node: index for index, node in enumerate(graph.nodes)}
    assert sorted(node.op for node in graph.nodes) == sorted(order)
    for node, index in place.items():
        assert all(place[t.inputs[0]] < index for t in node.inputs if t.inputs)
    a, b = Variable("a1"), Variable("b1")
    cyclic = Graph(
        nodes=[Node("Neg", inputs=[a], outputs=[b]), Node("Neg", inputs=[b], outputs=[a])]
    )
    with pytest.raises(PromiseBroken, match="cycle"):
        sort_topologically(cyclic)


def test_a_captured_value_keeps_the_order_of_its_producer() -> None:
    _, graph = _load(BRANCH)
    graph.nodes.reverse()
    sort_topologically(graph)
    assert [node.op for node in graph.nodes] == ["Relu", "If"]


def test_edits_of_a_constant_with_ten_thousand_users_stay_linear() -> None:
    shared = "".join(f"t{i + 1} = Add (t{i}, one)\n" for i in range(3000))
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[1] t0) => (float[1] t3000) <float[1] one = {{1}}> {{ {shared} }}"""
    _, graph = _load(text)
    rw = Rewriter(graph)
    for node in rw.walk("Add"):
        rw.update(node, "negated", op="Neg", inputs=[node.inputs[0]])
    assert len(rw.result().changes) == 3000


# ------------------------------------------------------------------- single inputs


def test_an_input_may_be_set_that_was_left_out() -> None:
    model = Model.load(
        parse(
            """<opset_import: ["" : 17]>
            g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
            { y = Gemm (x, w) }"""
        )
    )
    rw = Rewriter(model.graph)
    (gemm,) = model.graph.nodes
    rw.set_input(gemm, 2, rw.constant(np.ones(2, np.float32), "b"))
    rw.note("y", "gave it a bias")
    rw.result()
    assert [tensor.name for tensor in gemm.inputs] == ["x", "w", "b"]
    check_model(model)


def test_what_only_a_replaced_input_needed_is_removed_at_the_end() -> None:
    model = Model.load(
        parse(
            """<opset_import: ["" : 17]>
            g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
            { b = Constant <value = float[2] {1, 2}> () y = Gemm (x, w, b) }"""
        )
    )
    rw = Rewriter(model.graph)
    gemm = model.graph.nodes[-1]
    rw.set_input(gemm, 2, rw.constant(np.ones(2, np.float32), "b2"))
    check_model(model.clone())  # so that it can be measured in between
    rw.note("y", "gave it another bias")
    rw.result()
    assert [node.op for node in model.graph.nodes] == ["Gemm"]
    check_model(model)


# ------------------------------------------------------------------- users and values


SUM = """<opset_import: ["" : 17]>
g (float[N, 2] x) => (float[N, 2] y, float[2] b) <float[2] b = {1, 2}, float[2] c = {1, 2}>
{ y = Add (x, c) }"""


def test_users_are_redirected_unless_a_graph_returns_the_tensor() -> None:
    _, graph = _load(SUM)
    rw = Rewriter(graph)
    (node,) = graph.nodes
    b, c = graph.outputs[1], node.inputs[1]
    rw.redirect(c, b)
    assert node.inputs[1] is b
    assert rw.uses(c) == 0
    with pytest.raises(PromiseBroken, match="`b` is an output of a graph"):
        rw.redirect(b, c)


def test_a_constant_that_a_graph_returns_keeps_its_shape() -> None:
    _, graph = _load(SUM)
    rw = Rewriter(graph)
    b, c = graph.outputs[1], graph.nodes[0].inputs[1]
    rw.set_values(b, np.zeros(2, np.float32))
    rw.set_values(c, np.zeros(1, np.float32))
    assert not b.values.any()
    with pytest.raises(PromiseBroken, match="promised to callers"):
        rw.set_values(b, np.zeros(1, np.float32))


def test_kept_nodes_are_not_visited_and_say_why() -> None:
    _, graph = _load(CHAIN)
    rw = Rewriter(graph)
    first, *others = graph.nodes
    rw.keep({first: "is part of something larger"})
    assert list(rw.walk()) == others
    assert rw.is_kept(first)
    assert [skip.why for skip in rw.result().skips] == ["is part of something larger"]


RANGE = """<ir_version: 8, opset_import: ["" : 14]>
g (TYPE[n] x) => (TYPE[n] y) <TYPE low = {LOW}, TYPE high = {5}> {
    a = Relu (x)
    b = Identity (a)
    dead = Neg (a)
    same = Identity (low)
    y = Clip (b, BOUND, high)
}"""


@pytest.mark.parametrize("bound", ["low", "same"])
@pytest.mark.parametrize("low", ["-2", "0", "3", "7"])
@pytest.mark.parametrize(("kind", "joined"), [("float", False), ("double", True), ("int8", True)])
def test_a_clip_takes_in_the_relu_that_an_edit_brings_before_it(
    kind: str, joined: bool, low: str, bound: str
) -> None:
    text = RANGE.replace("TYPE", kind).replace("LOW", low).replace("BOUND", bound)
    source, graph = _load(text)
    rw = Rewriter(graph)
    rw.remove(_node(graph, "Neg"), "dead")
    identity = _node(graph, "Identity")  # the first one
    assert rw.substitute(identity, identity.inputs[0], "bypassed")
    result = rw.result()
    left = [node.op for node in graph.nodes if node.op != "Identity"]
    assert left == (["Clip"] if joined else ["Relu", "Clip"])
    assert (len(result.changes) == 3) is joined

    rewritten = _back(source, graph)
    session = ort.InferenceSession(rewritten.SerializeToString())  # with its optimisations
    x = np.array([-3.5, -1, -0.0, 0, 1, 4, 9, 120] * 5)
    x = np.append(x, [np.nan, -np.nan, np.inf] * 5) if kind != "int8" else x
    feeds = {"x": x.astype(graph.inputs[0].dtype)}
    (found,), (wanted,) = session.run(None, feeds), run(source, feeds)
    assert found.tobytes() == wanted.tobytes()


def test_a_relu_stays_before_a_clip_where_it_is_used_elsewhere_or_the_bound_is_an_input() -> None:
    text = RANGE.replace("TYPE", "double").replace("LOW", "0")
    text = text.replace("same = Identity (low)", "").replace("BOUND", "low")
    for kept in (text.replace("] y) <", "] y, double[n] a) <"), text.replace("low,", "x,")):
        _, graph = _load(kept)
        rw = Rewriter(graph)
        rw.remove(_node(graph, "Neg"), "dead")
        identity = _node(graph, "Identity")
        assert rw.substitute(identity, identity.inputs[0], "bypassed")
        rw.result()
        assert [node.op for node in graph.nodes] == ["Relu", "Clip"]

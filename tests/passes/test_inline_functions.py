from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxslim.graph import inlining
from onnxslim.io.model import Model
from onnxslim.passes.inline_functions import InlineFunctions
from onnxslim.pipeline.stats import measure_stats
from onnxslim.records import Fidelity
from support import CONTEXT, apply, assert_equivalent, assert_rewrites, parse

# ----------------------------------------------------------------- fires


def test_functions_in_functions_are_inlined_under_names_of_their_own() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17, "d" : 1]>
        g (float[N, 2] a) => (float[N, 2] y) {
            b = d.Outer (a)
            y = d.Outer (b)
        }
        <domain: "d", opset_import: ["" : 17, "d" : 1]>
        Outer (x) => (y) { a = d.Inner (x) y = Neg (a) }
        <domain: "d", opset_import: ["" : 17]>
        Inner (x) => (y) { a = Exp (x) y = Sin (a) }""",
        InlineFunctions(),
        """<opset_import: ["" : 17, "d" : 1]>
        g (float[N, 2] a) => (float[N, 2] y) {
            b = Exp (a)
            c = Sin (b)
            d = Neg (c)
            e = Exp (d)
            f = Sin (e)
            y = Neg (f)
        }""",
    )


def test_a_call_that_nothing_reads_any_more_goes_with_its_reader() -> None:
    assert_rewrites(
        """<opset_import: ["" : 17, "d" : 1]>
        g (float[N, 2] x) => (float[1] y) {
            a = d.Negative (x)
            y = d.One (a)
        }
        <domain: "d", opset_import: ["" : 17]>
        Negative (x) => (y) { y = Neg (x) }
        <domain: "d", opset_import: ["" : 17]>
        One (x) => (y) { y = Constant <value_floats = [1.0]> () }""",
        InlineFunctions(),
        """<opset_import: ["" : 17, "d" : 1]>
        g (float[N, 2] x) => (float[1] y) { y = Constant <value_floats = [1.0]> () }""",
    )


def test_attributes_come_from_the_call_else_from_the_function_else_from_the_operator() -> None:
    assert_rewrites(
        """<ir_version: 9, opset_import: ["" : 17, "d" : 1]>
        g (float[2] x) => (float[2] y) {
            a = d.F <alpha = 0.25> (x)
            y = d.F (a)
        }
        <domain: "d", opset_import: ["" : 17]>
        F <axis, alpha: float = 0.5> (x) => (y) {
            a = LeakyRelu <alpha: float = @alpha> (x)
            y = Softmax <axis: int = @axis> (a)
        }""",
        InlineFunctions(),
        """<ir_version: 9, opset_import: ["" : 17, "d" : 1]>
        g (float[2] x) => (float[2] y) {
            a = LeakyRelu <alpha = 0.25> (x)
            b = Softmax (a)
            c = LeakyRelu <alpha = 0.5> (b)
            y = Softmax (c)
        }""",
    )


def test_references_in_bodies_are_resolved_and_calls_in_bodies_inlined() -> None:
    source = parse(
        """<ir_version: 9, opset_import: ["" : 17, "d" : 1]>
        g (float[2] x, bool c) => (float[2] y) {
            y = If (c) <
                then_branch = yes () => (float[2] a) { a = d.F <alpha = 0.25> (x, c) },
                else_branch = no () => (float[2] b) { b = Neg (x) }
            >
        }
        <domain: "d", opset_import: ["" : 17]>
        F <alpha> (x, c) => (y) {
            y = If (c) <
                then_branch = yes () => (float[2] a) { a = LeakyRelu <alpha: float = @alpha> (x) },
                else_branch = no () => (float[2] a) { a = Abs (x) }
            >
        }"""
    )
    rewritten, result = apply(InlineFunctions(), source)
    assert result.changed
    assert not rewritten.functions
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_an_input_that_a_call_leaves_out_is_left_out_inside() -> None:
    source = parse(
        """<opset_import: ["" : 17, "d" : 1]>
        g (float[4] x, float low) => (float[4] y, float[4] z) {
            y = d.F (x, low)
            z = d.F (x)
        }
        <domain: "d", opset_import: ["" : 17]>
        F (x, low) => (a) { a = Clip (x, low) }"""
    )
    rewritten, _ = apply(InlineFunctions(), source)
    given = [len([name for name in node.input if name]) for node in rewritten.graph.node]
    assert given == [2, 1]
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def weighted(calls: int) -> onnx.ModelProto:
    """A function with a weight of 4 kB, called `calls` times."""
    weight = numpy_helper.from_array(np.arange(1024, dtype=np.float32).reshape(32, 32) / 1e4)
    body = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("MatMul", ["x", "w"], ["y"], "product", doc_string="of the layer"),
    ]
    function = helper.make_function("d", "F", ["x"], ["y"], body, [helper.make_opsetid("", 17)], [])
    names = ["x", *(f"t{number}" for number in range(1, calls)), "y"]
    nodes = [helper.make_node("F", [a], [b], domain="d") for a, b in itertools.pairwise(names)]
    ends = [helper.make_tensor_value_info(name, 1, ["N", 32]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    model = helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_large_constants_are_stored_once_for_all_calls() -> None:
    source = weighted(5)
    rewritten, _ = apply(InlineFunctions(), source)
    assert [len(tensor.raw_data) for tensor in rewritten.graph.initializer] == [4096]
    assert [node.op_type for node in rewritten.graph.node] == ["MatMul"] * 5
    assert rewritten.graph.node[0].doc_string == "of the layer"
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_what_functions_hold_counts_once_for_each_call() -> None:
    stats = measure_stats(Model.load(weighted(5)))
    assert (stats.nodes, stats.macs, stats.parameters) == (5, 5 * 1024, 1024)


# ----------------------------------------------------------------- declines

CALL = """<ir_version: 9, opset_import: ["" : 17, "{domain}" : 1]>
    g (float[2] x) => (float[2] y) {{ y = {domain}.F (x) }}
    <domain: "{domain}", opset_import: ["" : {opset}]>
    F (x) => (y) {{ {body} }}"""


@pytest.mark.parametrize(
    ("domain", "body", "keep", "why"),
    [
        ("onnxslim", "y = Neg (x)", (), None),
        ("com.microsoft", "y = Neg (x)", (), "an operator of that name"),
        ("d", "y = Neg (x)", ("d.*",), "it was asked for"),
    ],
)
def test_function_stays(domain: str, body: str, keep: tuple[str, ...], why: str | None) -> None:
    source = parse(CALL.format(domain=domain, opset=17, body=body))
    rewritten, result = apply(InlineFunctions(keep=keep), source)
    assert not result.changed
    assert len(rewritten.functions) == 1
    assert [why in skip.why for skip in result.skips if why] == ([True] if why else [])


@pytest.mark.parametrize(
    ("body", "is_inlined"), [("y = Neg (x)", True), ("y = ReduceMax (x)", False)]
)
def test_opsets_may_differ_where_the_operators_do_not(body: str, is_inlined: bool) -> None:
    source = onnx.parser.parse_model(CALL.format(domain="d", opset=18, body=body))
    _, result = apply(InlineFunctions(), source)
    assert result.changed == is_inlined
    assert is_inlined or "written for version 18" in result.skips[0].why


def test_functions_that_double_stay_where_they_would_become_too_many_nodes() -> None:
    deep = "\n".join(
        f"""<domain: "d", opset_import: ["" : 17, "d" : 1]>
        F{level} (x) => (y) {{ a = d.F{level + 1} (x) y = d.F{level + 1} (a) }}"""
        for level in range(40)
    )
    source = onnx.parser.parse_model(  # onnx's checker would follow all 2^40 calls
        f"""<ir_version: 8, opset_import: ["" : 17, "d" : 1]>
        g (float[2] x) => (float[2] y) {{ y = d.F0 (x) }}
        {deep}
        <domain: "d", opset_import: ["" : 17]>
        F40 (x) => (y) {{ y = Neg (x) }}"""
    )
    result = InlineFunctions().run(Model.load(source).graph, CONTEXT)
    assert not result.changed
    assert f"{inlining.MAX_NODES:,} nodes" in result.skips[0].why

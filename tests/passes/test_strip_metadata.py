from __future__ import annotations

import onnx
from onnx import helper

from onnxslim.passes.strip_metadata import StripMetadata
from onnxslim.records import Fidelity
from support import apply, assert_equivalent, parse

TRACE = "File net.py, line 88, in forward"


def annotated() -> onnx.ModelProto:
    """A model with a text about each of its parts."""
    model = parse(
        """<ir_version: 10, opset_import: ["" : 17]>
        g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}, float[2] a> {
            a = Mul (x, w)
            y = If (c) <
                then_branch = yes () => (float[2] b) { b = Neg (a) },
                else_branch = no () => (float[2] d) { d = Exp (a) }
            >
        }"""
    )
    branch = model.graph.node[1].attribute[0].g
    inside = (model.graph.node[0], branch.node[0], branch, model.graph.initializer[0])
    for part in (*inside, model, model.graph, model.graph.input[0], *model.graph.value_info):
        part.doc_string = TRACE
        part.metadata_props.add(key="pkg.torch.onnx.stack_trace", value=TRACE)
        part.metadata_props.add(key="labels", value="cat, dog")
    return model


def texts(model: onnx.ModelProto) -> int:
    """How often the trace stands in the file."""
    return model.SerializeToString().count(TRACE.encode())


def test_texts_about_nodes_and_values_go_and_those_about_the_model_stay() -> None:
    source = annotated()
    rewritten, result = apply(StripMetadata(), source)
    assert texts(source) == 2 * 8
    assert texts(rewritten) == 2 * 3
    for part in (rewritten, rewritten.graph, rewritten.graph.input[0]):
        assert part.doc_string == TRACE
        assert len(part.metadata_props) == 2
    assert {change.what.partition("`")[2] for change in result.changes} == {
        "doc_string` of nodes and values",
        "pkg.torch.onnx.stack_trace` of nodes and values",
        "labels` of nodes and values",
    }
    assert_equivalent(source, rewritten, Fidelity.EXACT)


def test_keys_that_somebody_reads_stay() -> None:
    source = annotated()
    source.graph.node[0].metadata_props.add(key="onnxruntime.layering", value="gpu")
    rewritten, _ = apply(StripMetadata(keep=("label*",)), source)
    kept = [entry.key for entry in rewritten.graph.node[0].metadata_props]
    assert kept == ["labels", "onnxruntime.layering"]


def test_functions_are_stripped_and_the_model_read_stays_as_it_is() -> None:
    node = helper.make_node("Neg", ["x"], ["y"], doc_string=TRACE)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    function = helper.make_function("d", "F", ["x"], ["y"], [node], imports[:1], [])
    ends = [helper.make_tensor_value_info(name, 1, [2]) for name in "xy"]
    call = helper.make_node("F", ["x"], ["y"], domain="d")
    graph = helper.make_graph([call], "g", ends[:1], ends[1:])
    source = helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=8)
    rewritten, _ = apply(StripMetadata(), source)
    assert (texts(source), texts(rewritten)) == (1, 0)
    _, again = apply(StripMetadata(), rewritten)
    assert not again.changed

"""A raised model keeps everything but the form of its nodes; bodies and functions come along."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from onnx import TensorProto, helper, numpy_helper
from strategies import models

from onnxslim.codebook.fixed_point import FixedPointFunction
from onnxslim.codebook.lookup_function import LookupVariant, StageVariant, variant_of
from onnxslim.errors import NotApplicable
from onnxslim.graph.opset import raise_opset
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.records import Fidelity
from support import assert_equivalent, parse, random_feeds, run


def raised(source: onnx.ModelProto, target: int) -> onnx.ModelProto:
    model = Model.load(source)
    infer_shapes(model)
    raise_opset(model.graph, target)
    assert model.graph.opset == target
    result = model.to_proto()
    onnx.checker.check_model(result)
    return result


def described() -> onnx.ModelProto:
    """A model with all that a converter may lose."""
    source = parse(
        """<opset_import: ["" : 11, "com.microsoft" : 1]>
        g (float[N, 4] x) => (float[N, wide] y)
        <float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[2] unused = {1, 2}>
        {
            a = MatMul (x, w)
            b = Unsqueeze <axes = [0]> (a)
            y = Squeeze <axes = [0]> (b)
        }"""
    )
    source.doc_string, source.producer_name, source.model_version = "the model", "hand", 7
    source.metadata_props.add(key="of", value="the model")
    graph = source.graph
    graph.doc_string = "the graph"
    graph.metadata_props.add(key="of", value="the graph")
    for node in graph.node:
        node.name, node.doc_string = f"node {node.output[0]}", f"makes {node.output[0]}"
        node.metadata_props.add(key="of", value=node.output[0])
    graph.input[0].doc_string = "what goes in"
    graph.input[0].metadata_props.add(key="of", value="x")
    graph.output[0].type.tensor_type.shape.dim[1].Clear()
    inner = helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 3])
    inner.doc_string = "a product"
    graph.value_info.append(inner)
    return source


def test_all_but_the_form_of_nodes_is_kept_to_the_letter() -> None:
    source = described()
    expected = Model.load(source).to_proto()
    expected.opset_import[0].version = 21
    for node in expected.graph.node[1:]:
        del node.attribute[:]
        node.input.append("axes")
    result = raised(source, 21)
    axes = [tensor for tensor in result.graph.initializer if tensor.name == "axes"]
    assert [numpy_helper.to_array(tensor).tolist() for tensor in axes] == [[0]]
    kept = [tensor for tensor in result.graph.initializer if tensor.name != "axes"]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    assert result == expected


def test_large_weights_are_not_read() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
    model = Model.load(source)
    (before,) = [t for t in model.graph.nodes[0].inputs if t.name == "w"]
    raise_opset(model.graph, 21)
    (after,) = [t for t in model.graph.nodes[0].inputs if t.name == "w"]
    assert after.stored is before.stored
    assert before.stored._array is None


@pytest.mark.parametrize("opset", [7, 9, 10])
def test_below_ir_version_4_operands_are_inputs_too(opset: int) -> None:
    source = parse(
        f"""<opset_import: ["" : {opset}]>
        g (float[2, 1, 3] x) => (float[2, 3] y) {{ y = Squeeze <axes = [1]> (x) }}""",
        ir_version=3,
    )
    assert_equivalent(source, raised(source, 13), Fidelity.EXACT)


BODIES = """<opset_import: ["" : 11]>
    g (float[2, 1, 3] x, bool c, int64 n) => (float[2, 3] y, float[2, 1, 3] z) {
        y = If (c) <
            then_branch = yes () => (float[2, 3] t) { t = Squeeze <axes = [1]> (x) },
            else_branch = no () => (float[2, 3] e) {
                d = Softmax <axis = 0> (x)
                e = Squeeze <axes = [1]> (d)
            }
        >
        z = Loop (n, , x) <
            body = again (int64 i, bool go, float[2, 1, 3] s) => (bool more, float[2, 1, 3] r) {
                more = Identity (go)
                p = Unsqueeze <axes = [0]> (s)
                r = Squeeze <axes = [0]> (p)
            }
        >
    }"""


def test_bodies_are_raised() -> None:
    source = parse(BODIES)
    result = raised(source, 21)
    feeds = random_feeds(source)
    for condition in (True, False):
        feeds.update(c=np.array(condition), n=np.array(2, np.int64))
        for old, new in zip(run(source, feeds), run(result, feeds), strict=True):
            np.testing.assert_array_equal(new, old)


CALLS = """<ir_version: 8, opset_import: ["" : 11, "own" : 1]>
    g (float[2, 3, 4] x) => (float[1, 2, 3, 4] y, float[2, 3, 4] z) {
        y = own.spread (x)
        z = own.plain (x)
    }
    <domain: "own", opset_import: ["" : 11]>
    spread (x) => (y) {
        a = Softmax <axis = 1> (x)
        y = Unsqueeze <axes = [0]> (a)
    }
    <domain: "own", opset_import: ["" : 11]>
    plain (x) => (y) { y = Relu (x) }"""


def test_local_functions_are_raised() -> None:
    source = parse(CALLS)
    for target in (13, 21):
        result = raised(source, target)
        assert [f.opset_import[0].version for f in result.functions] == [target, target]
        assert list(result.functions[1].node) == list(source.functions[1].node)
        assert_equivalent(source, result, Fidelity.EXACT)


def test_a_function_whose_caller_gives_an_operand_is_declined() -> None:
    source = parse(
        """<ir_version: 8, opset_import: ["" : 11, "own" : 1]>
        g (float[2, 3] x) => (float[1, 2, 3] y) { y = own.f <axes = [0]> (x) }
        <domain: "own", opset_import: ["" : 11]>
        f <axes> (x) => (y) { y = Unsqueeze <axes: ints = @axes> (x) }"""
    )
    model = Model.load(source)
    with pytest.raises(NotApplicable, match=r"function `own.f`, `y` \(Unsqueeze\): the caller"):
        raise_opset(model.graph, 13)
    assert model.to_proto() == source


def test_what_the_caller_of_a_function_gives_is_kept() -> None:
    source = parse(
        """<ir_version: 8, opset_import: ["" : 11, "own" : 1]>
        g (float[2, 3] x) => (float[1, 2, 3] y) { y = own.f <slope = 0.25> (x) }
        <domain: "own", opset_import: ["" : 11]>
        f <slope> (x) => (y) {
            a = LeakyRelu <alpha: float = @slope> (x)
            y = Unsqueeze <axes = [0]> (a)
        }"""
    )
    assert_equivalent(source, raised(source, 21), Fidelity.EXACT)


def test_functions_of_codebooks_are_known_after_raising() -> None:
    lookup = LookupVariant((StageVariant((16,), False, 1, False),))
    made = [lookup.function(10), FixedPointFunction(np.dtype(np.float32)).function(10)]
    source = parse(
        """<opset_import: ["" : 10]>
        g (float[2] x) => (float[2] y) { y = Relu (x) }"""
    )
    source.functions.extend(made)
    source.opset_import.append(helper.make_opsetid("onnxslim", 1))
    result = raised(source, 21)
    assert variant_of(result.functions[0]) == lookup
    assert result.functions[1] == FixedPointFunction(np.dtype(np.float32)).function(21)


def test_other_models_are_declined() -> None:
    source = described()
    for target, opset, why in ((24, 11, "23 at most"), (13, 6, "opset 7 and later")):
        source.opset_import[0].version = opset
        with pytest.raises(NotApplicable, match=why):
            raise_opset(Model.load(source).graph, target)
    source.opset_import[0].version = 13
    model = Model.load(source)
    before = model.to_proto()
    assert raise_opset(model.graph, 13) == ()
    assert model.to_proto() == before


# ------------------------------------------------------------------- random graphs

_LISTS = {"Squeeze": "axes", "Unsqueeze": "axes", "ReduceSum": "axes", "Split": "split"}


def lowered(source: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same graph at an opset below 13: operands that were attributes there are attributes."""
    old = onnx.ModelProto()
    old.CopyFrom(source)
    old.opset_import[0].version = opset
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in old.graph.initializer}
    for node in old.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            known[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    for node in old.graph.node:
        names: tuple[str, ...] = (_LISTS[node.op_type],) if node.op_type in _LISTS else ()
        if node.op_type == "Slice" and opset < 10:
            names = ("starts", "ends", "axes")
        if node.op_type == "Pad" and opset < 11:
            names = ("pads",)
        for name, operand in zip(names, list(node.input)[1:], strict=False):
            node.attribute.append(helper.make_attribute(name, known[operand].tolist()))
        if names:
            del node.input[1:]
    return old


@settings(max_examples=60, deadline=None)
@given(source=models())
def test_random_graphs_give_the_same_bits_at_every_opset(source: onnx.ModelProto) -> None:
    """Only an average may round: its kernel is another one from opset 19 on."""
    pools = any(node.op_type == "AveragePool" for node in source.graph.node)
    fidelity = Fidelity.CLOSE if pools else Fidelity.EXACT
    feeds = random_feeds(source)
    compared = 0
    for opset in (7, 9, 10, 11, 12, source.opset_import[0].version):
        old = source if opset > 12 else lowered(source, opset)
        try:
            onnx.checker.check_model(old)
            run(old, feeds)
        except Exception:  # of a type that the old opset does not take
            continue
        if opset < 21:
            assert_equivalent(old, raised(old, 21), fidelity)
            compared += 1
    assume(compared)

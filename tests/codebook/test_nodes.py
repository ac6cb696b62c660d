"""A codebook weight takes a constant's place, wherever it is used, and can be read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxslim
from onnxslim.analysis.layers import weight_layers
from onnxslim.codebook.lookup import read, replace_constant, why_not
from onnxslim.codebook.nodes import codebook_nodes, values_of
from onnxslim.codebook.weight import CodebookWeight, Stage
from onnxslim.graph.functions import is_codebook
from onnxslim.graph.ir import Constant, Graph, walk_graphs
from onnxslim.graph.rewrite import Rewriter
from onnxslim.io.check import check_model
from onnxslim.io.model import Model
from onnxslim.pipeline.stats import measure_stats
from onnxslim.records import Fidelity, PassResult
from onnxslim.runtime.session import open_session
from support import parse, random_feeds, run

F32 = np.dtype(np.float32)
TABLE = np.array([-1.5, -0.5, 0.25, 2], F32)


def coded(array: np.ndarray, table: np.ndarray = TABLE) -> CodebookWeight:
    """`array`, every element replaced by the nearest value of `table`."""
    codes = np.abs(array[..., None].astype(np.float64) - table).argmin(-1).astype(np.uint8)
    return CodebookWeight((Stage(codes.reshape(1, -1), table),), array.shape, array.dtype)


def constants_of(graph: Graph) -> dict[str, Constant]:
    """Float constants of two elements or more: initializers and values of Constant nodes."""
    found = {}
    for current in walk_graphs(graph):
        for node in current.nodes:
            for tensor in node.inputs:
                if isinstance(tensor, Constant) and tensor.dtype.kind == "f" and tensor.size > 1:
                    found[f"{tensor.name}/{id(tensor)}"] = tensor
            if node.op == "Constant":
                found[node.outputs[0].name] = node.attrs["value"]
    return found


def stored(source: onnx.ModelProto) -> tuple[Model, onnx.ModelProto, PassResult, list[str]]:
    """The model with all float constants as codebooks, and the one with their dense values."""
    model, dense = Model.load(source), Model.load(source)
    rw = Rewriter(model.graph)
    notes: list[str] = []
    pairs = zip(constants_of(model.graph).values(), constants_of(dense.graph).values(), strict=True)
    for holder, other in pairs:
        weight = coded(holder.values)
        assert why_not(model.graph, weight, holder) is None
        notes += replace_constant(rw, holder, weight, "stored as codes")
        other.values = weight.dense()
    result = rw.result()
    check_model(model)
    return model, dense.to_proto(), result, notes


def assert_same(proto: onnx.ModelProto, dense: onnx.ModelProto) -> None:
    for seed in range(2):
        feeds = random_feeds(dense, seed)
        for new, ref in zip(run(proto, feeds), run(dense, feeds), strict=True):
            np.testing.assert_array_equal(new, ref, strict=True)


PLAIN = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[2, 3] x) => (float[2, 3] y)
    <float[3, 3] w = {1, 2, 3, 4, -5, 6, -1, 0.5, 0.1}>
    { a = MatMul (x, w) y = MatMul (a, w) }"""
MODELS = {
    "an initializer with two users": PLAIN,
    "a Constant node": """<ir_version: 8, opset_import: ["" : 17]>
        net (float[2, 2] x) => (float[2, 2] y)
        { w = Constant <value = float[2, 2] {1, -2, 0, 4}> () y = MatMul (x, w) }""",
    "captured by bodies": """<ir_version: 8, opset_import: ["" : 17]>
        net (float[2, 2] x, bool c) => (float[2, 2] y) <float[2, 2] w = {1, -2, 0, 4}>
        {
            y = If (c) <
                then_branch = yes () => (float[2, 2] t) { t = MatMul (x, w) },
                else_branch = no () => (float[2, 2] e) { u = MatMul (x, w) e = Add (u, w) }
            >
        }""",
    "of two bodies, under one name": """<ir_version: 8, opset_import: ["" : 17]>
        net (float[2, 2] x, bool c) => (float[2, 2] y)
        {
            y = If (c) <
                then_branch = yes () => (float[2, 2] t) <float[2, 2] w = {1, -2, 0, 4}>
                    { t = MatMul (x, w) },
                else_branch = no () => (float[2, 2] e) <float[2, 2] w = {5, 0, -1, 0}>
                    { e = MatMul (x, w) }
            >
        }""",
    "a Constant node of a body": """<ir_version: 8, opset_import: ["" : 17]>
        net (float[2, 2] x, bool c) => (float[2, 2] y)
        {
            y = If (c) <
                then_branch = yes () => (float[2, 2] t)
                    { w = Constant <value = float[2, 2] {1, -2, 0, 4}> () t = MatMul (x, w) },
                else_branch = no () => (float[2, 2] e) { e = Neg (x) }
            >
        }""",
    "in a loop": """<ir_version: 8, opset_import: ["" : 17]>
        net (float[2, 2] x) => (float[2, 2] y)
        <int64 n = {3}, bool go = {1}, float[2, 2] w = {1, -2, 0, 4}>
        {
            y = Loop (n, go, x) <
                body = step (int64 i, bool before, float[2, 2] a)
                    => (bool after, float[2, 2] b)
                    { after = Identity (before) b = MatMul (a, w) }
            >
        }""",
}


@pytest.mark.parametrize("optimise", [False, True])
@pytest.mark.parametrize("case", MODELS)
def test_session_on_weights_in_memory_gives_the_same(case: str, optimise: bool) -> None:
    model, dense, _, _ = stored(parse(MODELS[case]))
    feeds = random_feeds(dense)
    with (
        open_session(model, optimise=optimise) as session,
        open_session(Model.load(dense), optimise=optimise) as reference,
    ):
        found, expected = session.run(feeds), reference.run(feeds)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.parametrize("case", MODELS)
def test_outputs_are_those_of_the_dense_model(case: str, tmp_path: Path) -> None:
    source = parse(MODELS[case])
    model, dense, result, notes = stored(source)
    assert result.changed
    assert result.fidelity is Fidelity.LOSSY
    assert not notes
    assert_same(model.to_proto(), dense)
    nodes = list(codebook_nodes(model.graph))
    assert len(nodes) == len(constants_of(Model.load(source).graph))
    model.save(tmp_path / "model.onnx")
    again = Model.load(tmp_path / "model.onnx")
    for node, other in zip(nodes, codebook_nodes(again.graph), strict=True):
        first, second = read(model.graph, node), read(again.graph, other)
        assert first is not None
        assert second is not None
        np.testing.assert_array_equal(first.dense(), second.dense(), strict=True)
    assert again.to_bytes() == model.to_bytes()


def test_weight_keeps_its_name_and_gets_its_shape() -> None:
    model, _, _, _ = stored(parse(PLAIN))
    (node,) = codebook_nodes(model.graph)
    assert (node.op, node.domain, node.outputs[0].name) == ("Lookup4Padded", "onnxslim", "w")
    assert (node.outputs[0].shape, node.outputs[0].dtype) == ([3, 3], F32)
    assert [tensor.name for tensor in node.inputs] == ["w.codes", "w.table", "w.shape"]
    assert {entry.domain: entry.version for entry in model.graph.import_domains} == {
        "": 17,
        "onnxslim": 1,
    }
    assert is_codebook(node.outputs[0])
    assert not is_codebook(model.graph.outputs[0])
    values = values_of(model.graph, node.outputs[0])
    assert values is not None
    assert values.shape == (3, 3)
    assert values_of(model.graph, model.graph.outputs[0]) is None


def test_change_is_logged_under_the_weights_name() -> None:
    *_, result, _ = stored(parse(PLAIN))
    assert [(change.node, change.what) for change in result.changes] == [("w", "stored as codes")]


def test_change_has_words_of_its_own() -> None:
    model = Model.load(parse(PLAIN))
    rw = Rewriter(model.graph)
    (holder,) = constants_of(model.graph).values()
    replace_constant(rw, holder, coded(holder.values))
    (change,) = rw.result().changes
    assert change.what == "stored as codes"


def test_weights_of_one_kind_share_a_function() -> None:
    model, dense, _, _ = stored(parse(MODELS["of two bodies, under one name"]))
    assert [function.name for function in model.graph.local_functions] == ["Lookup4"]
    assert sorted(node.outputs[0].name for node in codebook_nodes(model.graph)) == ["w_1", "w_2"]
    assert_same(model.to_proto(), dense)


def test_other_copies_of_the_model_see_nothing_of_it() -> None:
    model = Model.load(parse(PLAIN))
    copy = model.clone()
    before = model.to_bytes()
    rw = Rewriter(copy.graph)
    (holder,) = constants_of(copy.graph).values()
    replace_constant(rw, holder, coded(holder.values), "stored as codes")
    rw.result()
    assert model.to_bytes() == before
    assert not model.graph.local_functions
    assert copy.graph.local_functions


def test_copy_of_a_model_with_codebooks_is_read_the_same() -> None:
    model, dense, _, _ = stored(parse(MODELS["captured by bodies"]))
    copy = model.clone()
    assert copy.to_bytes() == model.to_bytes()
    (node,) = codebook_nodes(copy.graph)
    assert read(copy.graph, node) is not None
    assert_same(copy.to_proto(), dense)


@pytest.mark.parametrize("ir_version", [3, 4, 7])
def test_older_ir_version_is_raised_and_said(ir_version: int) -> None:
    source = parse(PLAIN)
    source.ir_version = ir_version
    if ir_version < 4:  # there, initializers are inputs as well
        source.graph.input.append(helper.make_tensor_value_info("w", 1, [3, 3]))
    onnx.checker.check_model(source)
    model, dense, _, notes = stored(source)
    assert notes == [
        f"IR version raised from {ir_version} to 8, the first with model-local functions."
    ]
    proto = model.to_proto()
    assert proto.ir_version == 8
    assert [info.name for info in proto.graph.input] == ["x"]
    assert_same(proto, dense)


@pytest.mark.parametrize(("opset", "blocks", "needed"), [(9, 1, 10), (10, 3, 11)])
def test_opset_that_lacks_an_operator_is_a_reason(opset: int, blocks: int, needed: int) -> None:
    model = Model.load(parse(PLAIN.replace("17", str(opset))))
    table = TABLE if blocks == 1 else np.stack([TABLE] * 3)
    codes = np.zeros((blocks, 9 // blocks), np.uint8)
    weight = CodebookWeight((Stage(codes, table),), (3, 3), F32)
    why = f"a codebook takes opset {needed}, and the model has opset {opset}"
    assert why_not(model.graph, weight) == why
    (holder,) = constants_of(model.graph).values()
    with pytest.raises(ValueError, match=f"`w` cannot be stored as a codebook: {why}"):
        replace_constant(Rewriter(model.graph), holder, weight, "")


def test_constant_that_a_graph_returns_is_left() -> None:
    model = Model.load(
        parse("""<ir_version: 8, opset_import: ["" : 17]>
        net (float[2] x) => (float[2] y, float[2] w) <float[2] w = {1, 2}> { y = Add (x, w) }""")
    )
    (holder,) = constants_of(model.graph).values()
    assert why_not(model.graph, coded(holder.values), holder) == "it is an output of a graph"


def test_returned_constant_node_becomes_a_lookup() -> None:
    model, dense, _, _ = stored(
        parse("""<ir_version: 8, opset_import: ["" : 17]>
        net (float[2] x) => (float[2] y, float[2] w)
        { w = Constant <value = float[2] {1, -2}> () y = Add (x, w) }""")
    )
    assert_same(model.to_proto(), dense)


def test_function_of_the_same_name_by_somebody_else_is_a_reason() -> None:
    text = PLAIN.replace('["" : 17]', '["" : 17, "onnxslim" : 1]')
    functions = """
    <opset_import: ["" : 17], domain: "onnxslim">
    Lookup4Padded (codes, table, shape) => (weight) { weight = Identity (table) }"""
    model = Model.load(parse(text + functions))
    why = why_not(model.graph, coded(np.ones((3, 3), F32)))
    assert why == "the model has another function of the name `onnxslim.Lookup4Padded`"


def test_other_version_of_the_domain_is_a_reason() -> None:
    model = Model.load(parse(PLAIN.replace('["" : 17]', '["" : 17, "onnxslim" : 2]')))
    why = why_not(model.graph, coded(np.ones((3, 3), F32)))
    assert why == "the model uses version 2 of the domain `onnxslim`"


def test_weight_of_another_shape_or_type_is_refused() -> None:
    model = Model.load(parse(PLAIN))
    (holder,) = constants_of(model.graph).values()
    with pytest.raises(ValueError, match=r"it is float32 \(3, 3\), and the codebook float32"):
        replace_constant(Rewriter(model.graph), holder, coded(np.ones((9,), F32)), "")
    with pytest.raises(ValueError, match="and the codebook float16"):
        replace_constant(Rewriter(model.graph), holder, coded(np.ones((3, 3), np.float16)), "")


# ----------------------------------------------------------------- reading


def broken(part: str, values: np.ndarray) -> CodebookWeight | None:
    """What is read when one input of a Lookup node has other values."""
    model, _, _, _ = stored(parse(PLAIN))
    (node,) = codebook_nodes(model.graph)
    (tensor,) = (t for t in node.inputs if t.name == f"w.{part}")
    tensor.values = values
    return read(model.graph, node)


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("codes", np.zeros(2, np.uint8)),  # too short
        ("codes", np.zeros(3, np.int8)),
        ("table", np.zeros(16, np.float32)),  # 16 levels are not stored like this
        ("table", np.zeros((4, 2), np.float32)),
        ("table", np.zeros(4, np.float64)),
        ("shape", np.array([4, 4])),
        ("shape", np.array([3, -3])),
        ("shape", np.array([3, 0])),
        ("shape", np.array([[3, 3]])),
        ("shape", np.array([3.0, 3.0])),
    ],
)
def test_inputs_that_do_not_fit_are_not_read(part: str, values: np.ndarray) -> None:
    assert broken(part, values) is None


def test_node_with_computed_inputs_is_not_read() -> None:
    model, _, _, _ = stored(parse(PLAIN))
    (node,) = codebook_nodes(model.graph)
    node.inputs[1] = model.graph.inputs[0]
    assert read(model.graph, node) is None


def test_node_without_its_function_is_not_read() -> None:
    model, _, _, _ = stored(parse(PLAIN))
    (node,) = codebook_nodes(model.graph)
    model.graph.local_functions.clear()
    assert read(model.graph, node) is None
    assert read(model.graph, model.graph.outputs[0].inputs[0]) is None


def test_short_table_comes_back_filled_up() -> None:
    model = Model.load(parse(PLAIN))
    rw = Rewriter(model.graph)
    (holder,) = constants_of(model.graph).values()
    table = np.linspace(-5, 6, 13, dtype=F32)
    weight = coded(holder.values, table)
    replace_constant(rw, holder, weight, "")
    rw.result()
    (node,) = codebook_nodes(model.graph)
    found = read(model.graph, node)
    assert found is not None
    assert found.levels == 16
    np.testing.assert_array_equal(found.stages[0].table, [*table, *table[-1:].repeat(3)])
    np.testing.assert_array_equal(found.dense(), weight.dense(), strict=True)


# ----------------------------------------------------------------- the rest of the compiler


def simplified(model: Model) -> Model:
    """What `simplify` makes of it, nothing measured."""
    return onnxslim.compress(model.to_bytes(), passes="simplify", measure=False)[0]


@pytest.mark.parametrize("case", MODELS)
def test_simplify_leaves_codebooks_alone(case: str) -> None:
    model, dense, _, _ = stored(parse(MODELS[case]))
    expected = sorted(node.op for node in codebook_nodes(model.graph))
    simple = simplified(model)
    assert sorted(node.op for node in codebook_nodes(simple.graph)) == expected
    assert {f.name for f in simple.graph.local_functions} == set(expected)
    assert all(read(simple.graph, node) is not None for node in codebook_nodes(simple.graph))
    assert_same(simple.to_proto(), dense)


def test_nothing_is_folded_into_a_dense_weight() -> None:
    model, dense, _, _ = stored(
        parse("""<ir_version: 8, opset_import: ["" : 17]>
        net (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, -2, 0, 4}>
        { t = Transpose (w) r = Relu (t) y = MatMul (x, r) }""")
    )
    simple = simplified(model)
    assert [node.op for node in simple.graph.nodes] == ["Lookup4", "Transpose", "Relu", "MatMul"]
    assert_same(simple.to_proto(), dense)


def test_equal_lookups_become_one() -> None:
    model, dense, _, _ = stored(
        parse("""<ir_version: 8, opset_import: ["" : 17]>
        net (float[2, 2] x) => (float[2, 2] y)
        <float[2, 2] v = {1, -2, 0, 4}, float[2, 2] w = {1, -2, 0, 4}>
        { a = MatMul (x, v) y = MatMul (a, w) }""")
    )
    simple = simplified(model)
    assert len(list(codebook_nodes(simple.graph))) == 1
    assert_same(simple.to_proto(), dense)


def test_unused_lookup_goes_with_its_function() -> None:
    model, _, _, _ = stored(parse(PLAIN))
    for node in model.graph.nodes:
        if node.op == "MatMul":
            node.op, node.inputs[1] = "Add", node.inputs[0]
    simple = simplified(model)
    assert not simple.graph.local_functions
    assert not list(codebook_nodes(simple.graph))


def test_layer_with_a_codebook_says_so() -> None:
    model, _, _, _ = stored(
        parse("""<ir_version: 8, opset_import: ["" : 17]>
        net (float[2, 2] x) => (float[2, 2] y)
        <float[2, 2] v = {1, -2, 0, 4}, float[2, 2] w = {1, -2, 0, 4}>
        { a = MatMul (v, x) y = Gemm (a, w) }""")
    )
    layers, skips = weight_layers(model.graph)
    assert not layers
    assert [(skip.node, skip.why) for skip in skips] == [
        ("a", "its weight is a codebook (Lookup)"),
        ("y", "its weight is a codebook (Lookup)"),
    ]


def test_parameters_are_those_of_the_dense_model_and_macs_too() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        net (float[1, 2, 6, 6] x) => (float[1, 4] y)
        <float[4, 2, 3, 3] k, float[64, 4] w, float[4] b = {1, 2, 3, 4}, int64[2] s = {1, 64}>
        { a = Conv (x, k) r = Reshape (a, s) m = MatMul (r, w) y = Add (m, b) }"""
    source = onnx.parser.parse_model(
        text.replace(" k,", " k = {" + ", ".join("1" * 72) + "},").replace(
            " w,", " w = {" + ", ".join("2" * 256) + "},"
        )
    )
    plain_stats = measure_stats(Model.load(source))
    model, _, _, _ = stored(source)
    stats = measure_stats(model)
    # the bias became a codebook as well: each weight counts once, codes and tables do not
    assert stats.parameters == plain_stats.parameters == 72 + 256 + 4 + 2
    assert stats.macs == plain_stats.macs == 16 * 72 + 256
    assert stats.initializer_bytes < plain_stats.initializer_bytes
    assert stats.nodes == plain_stats.nodes + 3
    rest = Model.load(model.to_bytes())
    assert measure_stats(rest).parameters == stats.parameters

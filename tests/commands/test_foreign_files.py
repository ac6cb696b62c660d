"""Files that onnxruntime runs and ONNX forbids: the command takes them, and says what is odd."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim import cli

FLOAT = TensorProto.FLOAT
WEIGHT = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
X = np.random.default_rng(1).normal(size=(16, 4)).astype(np.float32)


def info(
    name: str, kind: int = FLOAT, shape: Sequence[int | str] | None = ("N", 4)
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[onnx.NodeProto] = (),
    *,
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    more: Sequence[onnx.TensorProto] = (),
    imports: Sequence[onnx.OperatorSetIdProto] | None = None,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """`y = relu(x w)`, with an Identity to remove, or other nodes in place of it."""
    plain = (
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("MatMul", ["i", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    )
    graph = helper.make_graph(
        nodes or plain,
        "g",
        inputs or [info("x")],
        outputs or [info("y")],
        [numpy_helper.from_array(WEIGHT, "w"), *more],
    )
    opsets = imports or [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def expected() -> np.ndarray:
    return np.maximum(X @ WEIGHT, 0)


class Run:
    """One call of the command on a file."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capture = folder, capture
        self.target = folder / "out.onnx"

    def __call__(self, source: onnx.ModelProto | bytes, *arguments: str) -> int:
        path, report = self.folder / "in.onnx", self.folder / "report.json"
        path.write_bytes(source if isinstance(source, bytes) else source.SerializeToString())
        command = [str(path), str(self.target), "--no-latency", "--report", str(report), *arguments]
        code = cli.run(command)
        self.errors = self.capture.readouterr().err
        self.report = json.loads(report.read_text()) if code == 0 else {}
        self.notes = " ".join(self.report.get("notes", ()))
        return code

    def outputs(self, **feeds: np.ndarray) -> list[np.ndarray]:
        session = ort.InferenceSession(self.target, providers=["CPUExecutionProvider"])
        found: list[np.ndarray] = session.run(None, feeds or {"x": X})
        return found


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(tmp_path, capsys)


def assert_takes(run: Run, source: onnx.ModelProto | bytes, note: str, *arguments: str) -> None:
    """The command verifies the model and simplifies it; the result computes the same."""
    assert run(source, *arguments) == 0, run.errors
    assert note in run.notes
    assert "not verified" not in run.report["verified_on"]
    np.testing.assert_allclose(run.outputs()[0], expected(), rtol=1e-5, atol=1e-6)
    assert len(onnx.load(run.target).graph.node) == 2


# ----------------------------------------------------------------- repaired on reading


def named(old: bytes, new: bytes) -> bytes:
    """The model with a name of one letter replaced."""
    return model().SerializeToString().replace(b"\x01" + old, b"\x01" + new)


@pytest.mark.parametrize("name", [b"h", b"w", b"i"])
def test_a_name_inside_that_is_no_utf8_is_escaped(run: Run, name: bytes) -> None:
    assert_takes(run, named(name, b"\xee"), r"read in an escaped form (`\xee`)")
    onnx.checker.check_model(onnx.load(run.target))


def test_an_escaped_name_differs_from_the_other_names(run: Run) -> None:
    source = model()
    source.graph.node[1].input[0] = source.graph.node[0].output[0] = r"\xee"
    content = source.SerializeToString().replace(b"\x01h", b"\x01\xee")
    assert_takes(run, content, r"`\xee_`")


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [(b"\x01x", b"\x01\xee", "ValueInfoProto.name"), (b"Relu", b"Rel\xee", "NodeProto.op_type")],
)
def test_a_name_that_callers_need_is_refused(run: Run, old: bytes, new: bytes, place: str) -> None:
    assert run(model().SerializeToString().replace(old, new)) == 3
    assert r"\xee" in run.errors
    assert "is not UTF-8" in run.errors


@pytest.mark.parametrize("element", [0, 999, -(1 << 31)])
def test_an_unknown_type_of_a_tensor_inside_is_ignored(run: Run, element: int) -> None:
    source = model()
    source.graph.value_info.append(info("h"))
    source.graph.value_info[0].type.tensor_type.elem_type = element
    assert_takes(run, source, "type that ONNX does not know (`h`)")
    onnx.checker.check_model(onnx.load(run.target), full_check=True)


@pytest.mark.parametrize("element", [0, 999])
@pytest.mark.parametrize("tensor", ["x", "y", "w"])
def test_an_unknown_type_that_matters_is_refused(run: Run, tensor: str, element: int) -> None:
    source = model()
    if tensor == "w":
        source.graph.initializer[0].data_type = element
    else:
        edge = source.graph.input if tensor == "x" else source.graph.output
        edge[0].type.tensor_type.elem_type = element
    assert run(source) == 3
    assert f"`{tensor}` has the element type {element}, which ONNX does not know" in run.errors


def test_a_graph_without_a_name_is_taken(run: Run) -> None:
    source = model()
    source.graph.ClearField("name")
    assert_takes(run, source, "The graph has no name")
    onnx.checker.check_model(onnx.load(run.target))


def test_an_input_without_a_name_is_ignored(run: Run) -> None:
    source = model()
    source.graph.input.append(info(""))
    assert_takes(run, source, "1 inputs have no name")
    assert [tensor.name for tensor in onnx.load(run.target).graph.input] == ["x"]


def test_an_initializer_without_a_name_is_ignored(run: Run) -> None:
    source = model(more=[numpy_helper.from_array(WEIGHT, "")])
    assert_takes(run, source, "1 initializers have no name")
    assert [tensor.name for tensor in onnx.load(run.target).graph.initializer] == ["w"]


def test_two_functions_of_one_name_are_refused(run: Run) -> None:
    source = model(imports=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)])
    body = [helper.make_node("Neg", ["x"], ["y"])]
    imports = [helper.make_opsetid("", 17)]
    twice = [helper.make_function("own", "Twin", ["x"], ["y"], body, imports) for _ in range(2)]
    source.functions.extend(twice)
    assert run(source) == 3
    assert "Two local functions are called `own.Twin`" in run.errors


@pytest.mark.parametrize("op", ["If", "Loop"])
def test_a_body_without_the_outputs_of_its_node_is_refused(run: Run, op: str) -> None:
    body = helper.make_graph([], "body", [], [])
    if op == "If":
        node = helper.make_node("If", ["c"], ["y"], "late", then_branch=body, else_branch=body)
    else:
        node = helper.make_node("Loop", ["", "c", "x"], ["y"], "late", body=body)
    true = numpy_helper.from_array(np.array(True), "c")
    assert run(model([node], more=[true])) == 3
    assert f"of node `late` ({op}) has 0 outputs; the node needs {1 + (op == 'Loop')}" in run.errors


def test_a_split_into_another_number_of_parts_is_refused(run: Run) -> None:
    node = helper.make_node("Split", ["x"], ["a", "y", ""], "cut", axis=1, num_outputs=2)
    assert run(model([node], imports=[helper.make_opsetid("", 18)])) == 3
    assert "Node `cut` (Split) has 3 outputs, but num_outputs is 2" in run.errors


def test_a_reference_to_an_attribute_means_nothing_outside_a_function(run: Run) -> None:
    nodes = [*model().graph.node[:2], helper.make_node("Concat", ["h", "x"], ["y"], axis=1)]
    nodes[2].attribute[0].ref_attr_name = "alpha"
    assert run(model(nodes, outputs=[info("y", FLOAT, ["N", 8])])) == 0, run.errors
    np.testing.assert_allclose(run.outputs()[0], np.hstack([X @ WEIGHT, X]), rtol=1e-5, atol=1e-6)


def test_nodes_are_put_in_order(run: Run) -> None:
    source = model()
    source.graph.node.reverse()
    assert_takes(run, source, "Nodes stand before others")
    onnx.checker.check_model(onnx.load(run.target))


def test_nodes_are_put_in_order_where_a_body_reads_what_comes_later(run: Run) -> None:
    branches = {
        f"{name}_branch": helper.make_graph(
            [  # out of order itself
                helper.make_node(op, [f"{name}_i"], [name]),
                helper.make_node("Identity", ["h"], [f"{name}_i"]),
            ],
            name,
            [],
            [info(name)],
        )
        for name, op in (("then", "Relu"), ("else", "Neg"))
    }
    nodes = [
        helper.make_node("If", ["c"], ["y"], **branches),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
    ]
    source = model(nodes, inputs=[info("x"), info("c", TensorProto.BOOL, [])])
    assert run(source) == 0, run.errors
    assert "Nodes stand before others" in run.notes
    onnx.checker.check_model(onnx.load(run.target))
    for condition, wanted in ((True, expected()), (False, -(X @ WEIGHT))):
        (found,) = run.outputs(x=X, c=np.array(condition))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_nodes_in_a_circle_are_refused(run: Run) -> None:
    nodes = [
        helper.make_node("Add", ["x", "y"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    assert run(model(nodes)) == 3
    assert "Nodes need each other in a circle, through `" in run.errors


def test_a_graph_without_outputs_is_refused(run: Run) -> None:
    source = model()
    del source.graph.output[:]
    assert run(source) == 3
    assert "The graph has no outputs, so it computes nothing." in run.errors


def test_a_domain_that_is_not_imported_is_imported(run: Run) -> None:
    nodes = [
        *model().graph.node[:2],
        helper.make_node("FusedMatMul", ["h", "w"], ["f"], domain="com.microsoft"),
        helper.make_node(
            "Scaler", ["f"], ["y"], domain="ai.onnx.ml", scale=[2.0] * 4, offset=[1.0] * 4
        ),
    ]
    assert run(model(nodes)) == 0, run.errors
    assert "`com.microsoft` is used but not imported" in run.notes
    assert "`ai.onnx.ml` is used but not imported" in run.notes
    onnx.checker.check_model(onnx.load(run.target))
    wanted = 2 * (X @ WEIGHT @ WEIGHT - 1)
    np.testing.assert_allclose(run.outputs()[0], wanted, rtol=1e-4, atol=1e-5)


def test_the_standard_is_imported_where_only_another_domain_is(run: Run) -> None:
    source = model(imports=[helper.make_opsetid("com.microsoft", 1)])
    assert_takes(run, source, "`ai.onnx` is used but not imported")
    onnx.checker.check_model(onnx.load(run.target))


@pytest.mark.parametrize("imported", ["", "ai.onnx"])
@pytest.mark.parametrize("used", ["", "ai.onnx"])
def test_the_domain_of_the_standard_may_be_spelled_out(run: Run, used: str, imported: str) -> None:
    source = model(imports=[helper.make_opsetid(imported, 17)])
    for node in source.graph.node:
        node.domain = used
    assert_takes(run, source, "")
    onnx.checker.check_model(onnx.load(run.target))


# ----------------------------------------------------------------- the checker alone objects


def clear_shape(part: onnx.ValueInfoProto) -> None:
    part.type.tensor_type.ClearField("shape")


def clear_type(part: onnx.ValueInfoProto) -> None:
    part.ClearField("type")


@pytest.mark.parametrize("clear", [clear_shape, clear_type])
def test_an_output_may_lack_its_shape_or_type(
    run: Run, clear: Callable[[onnx.ValueInfoProto], None]
) -> None:
    source = model()
    clear(source.graph.output[0])
    assert_takes(run, source, "The ONNX checker refuses the model, which onnxruntime runs: Field")
    assert onnx.load(run.target).graph.output[0] == source.graph.output[0]


def test_an_input_may_lack_its_shape(run: Run, tmp_path: Path) -> None:
    source = model()
    clear_shape(source.graph.input[0])
    np.savez(tmp_path / "x.npz", x=X)
    note = "onnxruntime runs: Field 'shape' of 'type' is required but missing (`x`)."
    assert_takes(run, source, note, "--calib", str(tmp_path / "x.npz"))


def test_a_node_without_a_name_is_called_as_its_output_in_errors(run: Run) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["i"]),
        helper.make_node("Relu", ["i", "i"], ["y"]),
    ]
    assert run(model(nodes, outputs=[info("y")])) == 3
    assert "Name: y OpType: Relu" in run.errors
    wide = [helper.make_node("Concat", ["x", "z"], ["y"], axis=0)]
    ends = [info("x"), info("z", shape=(2, 3))]
    assert run(model(wide, inputs=ends, outputs=[info("y")])) == 6
    assert "Node (y) Op (Concat)" in run.errors


def test_operators_of_onnxruntime_may_stand_in_the_standard_domain(run: Run) -> None:
    nodes = [
        *model().graph.node[:2],
        helper.make_node("SimplifiedLayerNormalization", ["h", "s"], ["y"], axis=-1),
    ]
    scale = numpy_helper.from_array(np.full(4, 3, np.float32), "s")
    assert run(model(nodes, more=[scale])) == 0, run.errors
    assert "No Op registered for SimplifiedLayerNormalization" in run.notes
    h = X @ WEIGHT
    wanted = 3 * h / np.sqrt((h * h).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(run.outputs()[0], wanted, rtol=1e-4, atol=1e-5)
    assert len(onnx.load(run.target).graph.node) == 2


def test_what_onnxruntime_refuses_too_is_refused_with_both_reasons(run: Run) -> None:
    source = model()
    source.graph.node[2].op_type = "Rellu"
    assert run(source) == 3
    assert "The model is invalid: No Op registered for Rellu" in run.errors
    assert "onnxruntime cannot load the model" in run.errors


def test_a_gemm_whose_matrix_is_a_vector_is_refused_by_onnxruntime(run: Run) -> None:
    bias = numpy_helper.from_array(np.ones(4, np.float32), "b")
    nodes = [*model().graph.node[:2], helper.make_node("Gemm", ["h", "b"], ["y"])]
    source = model(nodes, outputs=[info("y", shape=["N", 4])], more=[bias])
    source.graph.output[0].type.tensor_type.shape.Clear()
    assert run(source) == 6
    assert "expected to have rank 2" in run.errors


def test_a_sparse_tensor_whose_values_cannot_be_read_is_refused(run: Run) -> None:
    values = numpy_helper.from_array(np.ones(2, np.float32), "shape")
    indices = numpy_helper.from_array(np.array([0, 1]), "at")
    nodes = [*model().graph.node[:2], helper.make_node("Add", ["h", "shape"], ["y"])]
    source = model(nodes)
    source.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    source.graph.sparse_initializer[0].values.segment.begin = 1
    assert run(source) == 3
    assert "`shape`" in run.errors


def test_a_pass_may_not_make_a_model_that_the_checker_refuses(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from onnxslim.passes.eliminate_identity import EliminateIdentity
    from onnxslim.records import Change, PassResult

    def unname(self: object, graph: object, context: object) -> PassResult:
        graph.name = ""  # type: ignore[attr-defined]
        return PassResult((Change("g", "took its name away"),))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(EliminateIdentity, "run", unname)
    assert run(model(), "--passes", "eliminate-identity") == 5
    assert "Field 'name' of 'graph' is required" in run.errors


def test_the_branch_that_is_never_taken_may_have_another_rank(run: Run) -> None:
    """Some exporters keep both branches of a Squeeze that depends on the rank."""
    taken = helper.make_graph([helper.make_node("Relu", ["h"], ["t"])], "t", [], [info("t")])
    other = helper.make_graph(
        [helper.make_node("Unsqueeze", ["h", "axes"], ["e"])], "e", [], [info("e")]
    )
    clear_shape(other.output[0])
    axes = numpy_helper.from_array(np.array([0]), "axes")
    condition = numpy_helper.from_array(np.array(True))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Constant", [], ["c"], value=condition),
        helper.make_node("If", ["c"], ["y"], then_branch=taken, else_branch=other),
    ]
    source = model(nodes, more=[axes])
    clear_shape(source.graph.output[0])
    assert_takes(run, source, "The ONNX checker refuses the model")
    assert [node.op_type for node in onnx.load(run.target).graph.node] == ["MatMul", "Relu"]


# ----------------------------------------------------------------- samples and outputs


@pytest.mark.parametrize(
    "values",
    [
        np.array([True, False] * 8),
        np.arange(16, dtype=np.float32),
        np.arange(16, dtype=np.int64),
        np.arange(16, dtype=np.uint8),
        np.arange(16, dtype=np.float16),
        np.array(["a", "b"] * 8),
    ],
    ids=lambda values: values.dtype.kind + str(values.dtype.itemsize),
)
def test_samples_of_an_input_without_axes_are_given_as_arrays(
    run: Run, tmp_path: Path, values: np.ndarray
) -> None:
    kind = (
        TensorProto.STRING
        if values.dtype.kind == "U"
        else helper.np_dtype_to_tensor_dtype(values.dtype)
    )
    nodes = [*model().graph.node, helper.make_node("Identity", ["b"], ["c"])]
    source = model(
        nodes, inputs=[info("x"), info("b", kind, [])], outputs=[info("y"), info("c", kind, [])]
    )
    np.savez(tmp_path / "s.npz", x=X[:, None], b=values)
    assert run(source, "--calib", str(tmp_path / "s.npz")) == 0, run.errors
    assert run.report["verified_on"].startswith("calibration")
    feed = values[:1].astype(object).reshape(()) if kind == TensorProto.STRING else values[0, ...]
    y, c = run.outputs(x=X, b=feed)
    np.testing.assert_allclose(y, expected(), rtol=1e-5, atol=1e-6)
    assert c == values[0]


@pytest.mark.parametrize("passes", ["simplify", "quantize-int8"])
def test_outputs_that_are_tensors_are_verified_beside_others(
    run: Run, tmp_path: Path, passes: str
) -> None:
    nodes = [
        *model().graph.node,
        helper.make_node("SequenceConstruct", ["h", "x"], ["s"]),
        helper.make_node(
            "ZipMap", ["y"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[*range(4)]
        ),
    ]
    scores = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
    outputs = [
        helper.make_tensor_sequence_value_info("s", FLOAT, None),
        info("y"),
        helper.make_value_info("z", helper.make_sequence_type_proto(scores)),
    ]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    np.savez(tmp_path / "x.npz", x=X)
    arguments = ["--calib", str(tmp_path / "x.npz"), "--passes", passes, "--goal", "bytes"]
    assert run(model(nodes, outputs=outputs, imports=imports), *arguments) == 0, run.errors
    assert run.report["verified_on"].startswith("calibration")
    for left_out in (
        "`s`, which is seq(tensor(float))",
        "`z`, which is seq(map(int64,tensor(float)))",
    ):
        assert f", without output {left_out}" in run.report["verified_on"]
    s, y, z = run.outputs()
    np.testing.assert_allclose(y, expected(), atol=0.05 if passes == "quantize-int8" else 1e-6)
    np.testing.assert_allclose(s[1], X)
    assert z[0] == pytest.approx(dict(enumerate(y[0])))


def test_arithmetic_that_onnxruntime_lacks_is_not_verified(run: Run) -> None:
    kind = TensorProto.BFLOAT16
    nodes = [
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("Add", ["i", "i"], ["y"]),
    ]
    assert run(model(nodes, inputs=[info("x", kind)], outputs=[info("y", kind)])) == 0, run.errors
    said = "onnxruntime does not have `Add` (node `y`) on the element types"
    assert said in run.report["verified_on"]
    assert [node.op_type for node in onnx.load(run.target).graph.node] == ["Add"]


# ----------------------------------------------------------------- initializers


def layers(ir_version: int, overridable: Sequence[str] = ()) -> onnx.ModelProto:
    """Two dense layers of 64 units, a bias and a scalar; initializers as inputs where asked."""
    rng = np.random.default_rng(2)
    arrays = {
        "w1": rng.normal(0, 0.1, (64, 64)),
        "w2": rng.normal(0, 0.1, (64, 64)),
        "b": rng.normal(0, 0.1, 64),
        "s": np.array(1.5),
        "unused": np.zeros(400),
    }
    tensors = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Mul", ["d", "s"], ["e"]),
        helper.make_node("MatMul", ["e", "w2"], ["y"]),
    ]
    inputs = [info("x", FLOAT, ["N", 64])]
    for tensor in tensors:
        if ir_version < 4 or tensor.name in overridable:
            inputs.append(info(tensor.name, FLOAT, tensor.dims))
            if not tensor.dims:
                clear_shape(inputs[-1])
    graph = helper.make_graph(nodes, "g", inputs, [info("y", FLOAT, ["N", 64])], tensors)
    opset = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opset, ir_version=ir_version)


def assert_computes(run: Run, source: onnx.ModelProto, error: float, **more: np.ndarray) -> None:
    """The relative L2 distance of the output from that of `source` is below `error`."""
    feeds = {"x": np.random.default_rng(3).normal(size=(32, 64)).astype(np.float32), **more}
    session = ort.InferenceSession(source.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,), (found,) = session.run(None, feeds), run.outputs(**feeds)
    assert np.linalg.norm(found - wanted) < error * np.linalg.norm(wanted)


@pytest.mark.parametrize("passes", ["simplify", "convert-fp16", "quantize-int8"])
def test_models_of_ir_version_3_are_taken(run: Run, tmp_path: Path, passes: str) -> None:
    source = layers(3)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(4).normal(size=(64, 64)).astype("f"))
    calib = str(tmp_path / "x.npz")
    assert run(source, "--passes", passes, "--goal", "bytes", "--calib", calib) == 0, run.errors
    assert run.report["passes"][0]["committed"]
    assert "1 inputs have no shape (`s`)" in run.notes
    onnx.checker.check_model(onnx.load(run.target))
    assert_computes(run, source, 1e-5 if passes == "simplify" else 0.1)


@pytest.mark.parametrize("name", ["w1", "b", "s"])
def test_quantize_int8_keeps_inputs_that_have_a_default(
    run: Run, tmp_path: Path, name: str
) -> None:
    source = layers(8, [name])
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(4).normal(size=(64, 64)).astype("f"))
    calib = str(tmp_path / "x.npz")
    passes = ("--passes", "quantize-int8", "--goal", "bytes")
    assert run(source, *passes, "--calib", calib) == 0, run.errors
    assert run.report["passes"][0]["committed"]
    assert_computes(run, source, 0.1)
    (tensor,) = (item for item in source.graph.initializer if item.name == name)
    assert_computes(
        run, source, 0.1, **{name: np.asarray(numpy_helper.to_array(tensor) * 0.5, "f")}
    )


def test_quantize_weights_takes_a_weight_that_a_node_of_one_input_reads(run: Run) -> None:
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.normal(0, 0.1, (64, 64)).astype(np.float32), "w1")
    nodes = [
        helper.make_node("Identity", ["w1"], ["w2"]),
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["y"]),
    ]
    edges = {"inputs": [info("x", FLOAT, ["N", 64])], "outputs": [info("y", FLOAT, ["N", 64])]}
    source = model(
        nodes, more=[weight], imports=[helper.make_opsetid("", 21)], ir_version=10, **edges
    )
    assert run(source, "--passes", "quantize-weights:bits=4", "--goal", "bytes") == 0, run.errors
    assert run.report["passes"][0]["committed"]
    assert run.target.stat().st_size < 6000
    assert_computes(run, source, 0.5)

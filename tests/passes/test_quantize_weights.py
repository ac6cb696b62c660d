from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from layer_nets import (
    FORCE,
    REPRODUCERS,
    Given,
    dense_net,
    net,
    node,
    normal,
    output_error,
    outputs,
    rewritten,
    runs,
    samples,
    whats,
    whys,
)
from onnx import TensorProto, helper, numpy_helper
from qdq_nets import ScriptedStopwatch, kernels
from recurrent_nets import SHAPE, STEPS, recurrent_net

from onnxslim.errors import UsageError
from onnxslim.graph.ir import Constant, walk_graphs
from onnxslim.io.model import Model
from onnxslim.passes.quantize_weights import QuantizeWeights
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.policy import Policy
from onnxslim.pipeline.stats import measure_stats
from onnxslim.records import Fidelity
from onnxslim.report import StepReport
from onnxslim.runtime.evaluate import evaluate

pytestmark = pytest.mark.slow

X = samples(200, 96)
FORMS = ("native", "dequantize", "folded", "matmul-nbits")


def quantize(
    source: onnx.ModelProto | Model, options: str = "", x: Given | None = None
) -> tuple[Model, list[StepReport]]:
    made, reports = rewritten(source, x, f"quantize-weights{options and ':'}{options}")
    onnx.checker.check_model(made.to_proto(), full_check=True)
    return made, reports


def mlp(opset: int = 17) -> onnx.ModelProto:
    """Two MatMuls with Tanh between."""
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node("Tanh", ["a"], "b"),
        node("MatMul", ["b", "v"], "y"),
    ]
    weights = {"w": normal(96, 64, scale=0.1), "v": normal(64, 80, seed=2)}
    return net(nodes, weights, ["N", 96], opset=opset)


def one(
    op: str, weight: np.ndarray, shape: Sequence[int | str], **attrs: object
) -> onnx.ModelProto:
    return net([node(op, ["x", "w"], "y", **attrs)], {"w": weight}, shape)


def reader(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, np.ndarray],
    shape: Sequence[int | str] = ("N", "L"),
    opset: int = 17,
) -> onnx.ModelProto:
    """A net whose input `x` are indices."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, ir_version=8, opset_imports=imports)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def embedded(opset: int = 17) -> onnx.ModelProto:
    nodes = [node("Gather", ["t", "x"], "e"), node("MatMul", ["e", "w"], "y")]
    weights = {"t": normal(50, 64), "w": normal(64, 40, seed=2)}
    return reader(nodes, weights, opset=opset)


def indices(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 50, shape)


def codes_of(model: Model) -> list[Constant]:
    found = {
        id(tensor): tensor
        for graph in walk_graphs(model.graph)
        for item in graph.nodes
        for tensor in item.inputs
        if isinstance(tensor, Constant) and tensor.dtype.itemsize == 1 and tensor.size > 100
    }
    return list(found.values())


def ops(model: Model) -> Counter[str]:
    return Counter(item.op for graph in walk_graphs(model.graph) for item in graph.nodes)


# ------------------------------------------------------------------- fires


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", ["true", "false"])
def test_every_form_stays_near_and_takes_fewer_bytes(form: str, bits: int, symmetric: str) -> None:
    source = mlp()
    model, (report,) = quantize(source, f"form={form}:bits={bits}:symmetric={symmetric}")
    assert report.fidelity is Fidelity.LOSSY
    assert output_error(source, model, X) < (1e-3 if bits == 8 else 3e-2)
    before, after = (measure_stats(item).file_bytes for item in (Model.load(source), model))
    assert after < (0.35 if bits == 8 else 0.25) * before


@pytest.mark.parametrize("options", ["", "bits=4", "bits=4:form=folded", "form=matmul-nbits"])
def test_feedback_is_nearer_than_rounding_to_nearest(options: str) -> None:
    source, extra = mlp(), f"{options}:" if options else ""
    nearest, _ = quantize(source, f"{extra}rounding=nearest", X)
    feedback, _ = quantize(source, options, X)
    assert output_error(source, feedback, X) < 0.7 * output_error(source, nearest, X)


def test_without_samples_weights_are_rounded_to_nearest() -> None:
    source = mlp()
    plain, _ = quantize(source)
    nearest, _ = quantize(source, "rounding=nearest", X)
    for tensor, other in zip(codes_of(plain), codes_of(nearest), strict=True):
        np.testing.assert_array_equal(tensor.values, other.values)


def test_biases_keep_the_mean_output_and_stay_float() -> None:
    source = dense_net(96, 64, 80)
    model, reports = quantize(source, "bits=4:form=folded", X)
    ref, new = outputs(source, X)["y"], outputs(model, X)["y"]
    assert np.abs((ref - new).mean(0)).max() < 0.05 * ref.std()
    assert all("relative output error" in what for what in whats(reports) if "weights in" in what)


def test_blocks_are_nearer_than_a_scale_for_each_output() -> None:
    source = mlp()
    errors = [
        output_error(source, quantize(source, f"bits=4:block={block}")[0], X) for block in (16, 0)
    ]
    assert errors[0] < errors[1]


def test_matmul_nbits_leaves_opset_and_ir_version_alone() -> None:
    model, reports = quantize(mlp(opset=11), "form=matmul-nbits:bits=4")
    assert model.graph.opset == 11
    assert model.graph.opset_of("com.microsoft") == 1
    assert ops(model)["MatMulNBits"] == 2
    assert not any("raised" in what for what in whats(reports))


def test_matmul_nbits_computes_in_float_where_it_is_told_to() -> None:
    source = one("MatMul", normal(96, 64), ["N", 96])
    folded, _ = quantize(source, "bits=4:form=folded")
    errors = [
        output_error(folded, quantize(source, f"bits=4:form=matmul-nbits:accuracy-level={n}")[0], X)
        for n in (0, 4)
    ]
    assert errors[0] < 1e-9 < errors[1]


def test_the_opset_is_raised_where_codes_need_it_and_the_report_says_so() -> None:
    model, reports = quantize(mlp(opset=11), "block=0")
    assert model.graph.opset == 13
    assert quantize(mlp(opset=11))[0].graph.opset == 21  # blocks
    model, reports = quantize(mlp(opset=11), "bits=4")
    assert model.graph.opset == 21
    assert model.graph.ir_version == 10
    text = "; ".join(whats(reports))
    assert "opset raised from 11 to 21" in text
    assert "IR version raised from 8 to 10" in text
    assert quantize(mlp(opset=11), "form=folded")[0].graph.opset == 11


# ------------------------------------------------------------------- what onnxruntime runs

NETS: Mapping[str, onnx.ModelProto] = {
    "MatMul": mlp(),
    "Gemm": dense_net(96, 64, 80, relu=False),
    "Gemm and Relu": dense_net(96, 64, 80),
    "turned Gemm": one("Gemm", normal(64, 96), ["N", 96], transB=1),
    "scaled Gemm": one("Gemm", normal(96, 64), ["N", 96], alpha=2.0),
    "transposed Gemm": one("Gemm", normal(96, 64), [96, "N"], transA=1),
    "odd sizes": one("MatMul", normal(75, 33), ["N", 75]),
    "one output": one("MatMul", normal(300, 1), ["N", 300]),
    "a stack": one("MatMul", normal(3, 96, 64), ["N", 3, 5, 96]),
    "a vector": one("MatMul", normal(640), ["N", 640]),
    "weight on the left": net([node("MatMul", ["w", "x"], "y")], {"w": normal(64, 96)}, [96, "N"]),
    "Conv": one("Conv", normal(16, 8, 3, 3), ["N", 8, 6, 6]),
    "grouped Conv": one("Conv", normal(32, 8, 3, 3), ["N", 16, 6, 6], group=2),
    "ConvTranspose": one("ConvTranspose", normal(8, 16, 3, 3), ["N", 8, 6, 6]),
    "shared": net(
        [node("MatMul", ["x", "w"], "a"), node("MatMul", ["a", "w"], "y")],
        {"w": normal(64, 64, scale=0.1)},
        ["N", 64],
    ),
    "MatMul, Add, Relu": net(
        [
            node("MatMul", ["x", "w"], "a"),
            node("Add", ["a", "b"], "c"),
            node("Relu", ["c"], "d"),
            node("Neg", ["d"], "y"),
        ],
        {"w": normal(96, 64), "b": normal(64)},
        ["N", 96],
    ),
    "MatMul, Clip in three dimensions": net(
        [node("MatMul", ["x", "w"], "a"), node("Clip", ["a", "l"], "c"), node("Neg", ["c"], "y")],
        {"w": normal(96, 64), "l": np.array(0, np.float32)},
        ["N", 5, 96],
    ),
    "MatMul, Add, Relu in three dimensions": net(
        [
            node("MatMul", ["x", "w"], "a"),
            node("Add", ["a", "b"], "c"),
            node("Relu", ["c"], "d"),
            node("Neg", ["d"], "y"),
        ],
        {"w": normal(96, 64), "b": normal(64)},
        ["N", 5, 96],
    ),
}
SMALL = (
    "MatMul",
    "Gemm",
    "Gemm and Relu",  # its last
    "turned Gemm",
    "odd sizes",
    "one output",
    "MatMul, Add, Relu in three dimensions",
)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("options", ["", "bits=4", "bits=4:symmetric=false"])
def test_nothing_is_dequantized_in_a_run(name: str, options: str) -> None:
    source = NETS[name]
    model, reports = quantize(source, options)
    found = kernels(model)
    assert "DequantizeLinear" not in found
    assert "Cast" not in found
    # no block of the kernel divides these columns, and one output has one scale
    is_uneven = name == "one output" or (name == "odd sizes" and bool(options))
    assert ("MatMulNBits" in found) == (name in SMALL and not is_uneven)
    assert whats(reports)
    shape = [4 if isinstance(s, str) else s for s in Model.load(source).graph.inputs[0].shape]
    assert output_error(source, model, samples(shape[0], *shape[1:])) < 0.05


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETS)
def test_every_form_takes_every_net(name: str, form: str) -> None:
    source = NETS[name]
    model, reports = quantize(source, f"bits=4:form={form}")
    assert whats(reports), whys(reports)
    assert all(tensor.dtype != np.int8 for tensor in codes_of(model))
    shape = [4 if isinstance(s, str) else s for s in Model.load(source).graph.inputs[0].shape]
    assert output_error(source, model, samples(shape[0], *shape[1:])) < 0.05


def test_a_turned_gemm_is_turned_back_for_the_kernel() -> None:
    model, _ = quantize(NETS["turned Gemm"])
    gemm = next(item for item in model.graph.nodes if item.op == "Gemm")
    assert "transB" not in gemm.attrs
    assert codes_of(model)[0].shape == (96, 64)


def test_a_shared_weight_has_one_initializer_of_codes_in_every_form() -> None:
    for form in FORMS:
        model, _ = quantize(NETS["shared"], f"form={form}")
        assert len(codes_of(model)) == 1, form


# ------------------------------------------------------------------- embeddings


@pytest.mark.parametrize(
    "options", ["", "bits=4", "bits=4:block=0", "form=folded", "bits=4:block=24"]
)
def test_tables_of_embeddings_become_codes(options: str) -> None:
    source, x = embedded(), indices(4, 7)
    model, reports = quantize(source, options)
    assert output_error(source, model, x) < (0.03 if "4" in options else 1e-3)
    assert any(change.node in ("e", "t") for report in reports for change in report.changes)
    assert "DequantizeLinear" not in kernels(model)


def test_a_table_that_two_nodes_read_has_one_initializer_of_codes() -> None:
    nodes = [
        node("Gather", ["t", "x"], "a"),
        node("Gather", ["t", "a_i"], "b"),
        node("Add", ["a", "b"], "y"),
    ]
    source = reader(nodes, {"t": normal(50, 64), "a_i": np.array(3)})
    model, _ = quantize(source)
    assert len(codes_of(model)) == 1
    assert output_error(source, model, indices(4, 7)) < 1e-3


def test_a_table_whose_columns_no_block_divides_has_a_scale_for_each_block() -> None:
    nodes = [node("Gather", ["t", "x"], "y")]
    for columns in (61, 75):
        source = reader(nodes, {"t": normal(50, columns)})
        model, _ = quantize(source, "bits=4:block=16")
        whole, _ = quantize(source, "bits=4:block=0")
        x = indices(4, 7)
        assert output_error(source, model, x) < 0.7 * output_error(source, whole, x)


# ------------------------------------------------------------------- tied tables

TIED: Mapping[str, Sequence[onnx.NodeProto]] = {
    "Gemm": [node("Gather", ["t", "x"], "e"), node("Gemm", ["e", "t"], "y", transB=1)],
    "Transpose and MatMul": [
        node("Gather", ["t", "x"], "e"),
        node("Transpose", ["t"], "v", perm=[1, 0]),
        node("MatMul", ["e", "v"], "y"),
    ],
}


def tied(name: str, *, columns: int = 64) -> onnx.ModelProto:
    return reader(TIED[name], {"t": normal(50, columns)}, ["N"])


@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("x", [None, indices(40)], ids=["nearest", "feedback"])
@pytest.mark.parametrize(("form", "sets"), [("native", 2), ("matmul-nbits", 1), ("folded", 1)])
def test_tied_tables_are_fast_as_two_weights_or_as_one_set_of_codes(
    name: str, bits: int, x: np.ndarray | None, form: str, sets: int
) -> None:
    source, given = tied(name), None if x is None else [{"x": x}]
    model, reports = quantize(source, f"bits={bits}:form={form}", given)
    assert len(codes_of(model)) == sets
    assert whys(reports) == []
    found = kernels(model)
    assert "DequantizeLinear" not in found
    assert ("MatMulNBits" in found) == (form != "folded")
    assert output_error(source, model, indices(9)) < (0.05 if bits == 4 else 1e-3)


def test_rows_are_picked_from_the_codes_of_the_kernel_by_indices_of_any_rank() -> None:
    for shape in (["N"], ["N", "L"], []):
        nodes = [*TIED["Transpose and MatMul"][:2], node("MatMul", ["w", "v"], "z")]
        nodes += [node("Add", ["e", "s"], "y")]
        source = reader(nodes, {"t": normal(50, 64), "w": normal(1, 64), "s": normal(1)}, shape)
        source.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
        for bits in (8, 4):
            model, _ = quantize(source, f"form=matmul-nbits:bits={bits}:symmetric=false")
            assert len(codes_of(model)) == 1
            given = indices(*(3 for _ in shape))
            assert output_error(source, model, given) < (0.05 if bits == 4 else 1e-3)


def read_otherwise() -> onnx.ModelProto:
    nodes = [
        *TIED["Gemm"][:1],
        node("Gemm", ["e", "t"], "a", transB=1),
        node("ReduceMean", ["t"], "s", axes=[1], keepdims=0),
        node("Add", ["a", "s"], "y"),
    ]
    return reader(nodes, {"t": normal(50, 64)}, ["N"])


def scaled_head() -> onnx.ModelProto:
    nodes = [*TIED["Gemm"][:1], node("Gemm", ["e", "t"], "y", transB=1, alpha=2.0)]
    return reader(nodes, {"t": normal(50, 64)}, ["N"])


def two_heads() -> onnx.ModelProto:
    nodes = [
        *TIED["Gemm"][:1],
        node("Neg", ["e"], "f"),
        *(node("Gemm", [x, "t"], y, transB=1) for x, y in (("e", "a"), ("f", "b"))),
        node("Sub", ["a", "b"], "y"),
    ]
    return reader(nodes, {"t": normal(50, 64)}, ["N"])


def clipped_head() -> onnx.ModelProto:
    nodes = [*TIED["Gemm"][:1], node("Gemm", ["e", "t"], "a", transB=1)]
    nodes += [node("Relu", ["a"], "b"), node("Neg", ["b"], "y")]
    return reader(nodes, {"t": normal(50, 64)}, ["N"])


def head_in_a_body() -> onnx.ModelProto:
    bodies = [
        helper.make_graph(
            [node("Gemm", ["e", "t"], "z", transB=1), *more],
            f"body {index}",
            [],
            [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        )
        for index, (more, out) in enumerate((([], "z"), ([node("Neg", ["z"], "n")], "n")))
    ]
    nodes = [
        *TIED["Gemm"][:1],
        node("ReduceSum", ["e"], "s", keepdims=0),
        node("Less", ["s", "zero"], "c"),
        node("If", ["c"], "y", then_branch=bodies[0], else_branch=bodies[1]),
    ]
    return reader(nodes, {"t": normal(50, 64), "zero": np.array(0, np.float32)}, ["N"])


@pytest.mark.parametrize(
    ("source", "is_packed"),
    [
        (read_otherwise(), False),
        (scaled_head(), False),
        (two_heads(), True),
        (clipped_head(), True),
        (head_in_a_body(), True),
    ],
    ids=["read otherwise", "scaled", "two heads", "Relu", "in bodies"],
)
@pytest.mark.parametrize("bits", [8, 4])
def test_tables_that_would_have_no_kernel_stay_tied(
    source: onnx.ModelProto, bits: int, *, is_packed: bool
) -> None:
    for form in ("native", "matmul-nbits"):
        model, reports = quantize(source, f"bits={bits}:form={form}")
        assert len(codes_of(model)) == 1
        assert ops(model)["Dequantize"] + ops(model)["DequantizeBlocks"] == (
            form == "native" or not is_packed
        )
        assert not any("no longer the table" in what for what in whats(reports))
        assert output_error(source, model, indices(9)) < (0.05 if bits == 4 else 1e-3)


def test_a_head_that_is_not_selected_keeps_its_table() -> None:
    source = tied("Transpose and MatMul")
    model, reports = quantize(source, "skip=y")
    assert whats(reports) == []
    assert ops(model) == ops(Model.load(source))
    assert "it shares its weight with `y`, which is not selected" in whys(reports)


def test_a_table_too_small_to_pay_stays_whole() -> None:
    source = reader(TIED["Gemm"], {"t": normal(8, 8)}, ["N"])
    model, reports = quantize(source, "bits=4")
    assert whats(reports) == []
    assert model.file_bytes() <= len(source.SerializeToString())


@pytest.mark.parametrize(("op", "attrs"), [("MatMul", {}), ("Gemm", {}), ("Gemm", {"transB": 1})])
@pytest.mark.parametrize("bias", [(80,), (1, 80), (1,), None])
def test_matmul_nbits_takes_gemm_and_adds_its_bias(
    op: str, attrs: Mapping[str, int], bias: tuple[int, ...] | None
) -> None:
    weight = normal(96, 80).T.copy() if attrs else normal(96, 80)
    weights = {"w": weight}
    if bias is not None and op == "Gemm":
        weights["b"] = normal(*bias, seed=3)
    source = net([node(op, ["x", *weights], "y", **attrs)], weights, ["N", 96])
    model, _ = quantize(source, "form=matmul-nbits:bits=4")
    assert ops(model)["MatMulNBits"] == 1
    assert ops(model)["Gemm"] == 0
    assert ops(model)["Add"] == ("b" in weights)
    assert output_error(source, model, X) < 0.05


def test_a_gemm_that_scales_or_turns_its_data_is_no_matmul_nbits() -> None:
    for attrs, shape in (({"alpha": 2.0}, ["N", 96]), ({"transA": 1}, [96, "N"])):
        model, _ = quantize(one("Gemm", normal(96, 80), shape, **attrs), "form=matmul-nbits")
        assert ops(model)["MatMulNBits"] == 0
        assert ops(model)["Gemm"] == 1


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ([node("Gather", ["t", "x"], "y", axis=1)], (50, 64)),
        ([node("Gather", ["t", "x"], "y")], (50, 8, 8)),
        (
            [
                node("Gather", ["t", "x"], "a"),
                node("ReduceMean", ["t"], "s", axes=[0], keepdims=0),
                node("Add", ["a", "s"], "y"),
            ],
            (50, 64),
        ),
    ],
    ids=["columns", "no matrix", "other readers"],
)
def test_tables_that_are_read_otherwise_become_floats_at_the_start(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...]
) -> None:
    source, x = reader(nodes, {"t": normal(*shape)}, ["N"]), indices(9)
    model, _ = quantize(source)
    assert [n.op for n in model.graph.nodes if n.op.startswith("Dequantize")] == ["Dequantize"]
    assert output_error(source, model, x) < 1e-3


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("options", ["", "bits=4", "form=dequantize", "bits=4:block=0"])
def test_recurrent_weights_become_integers(op: str, options: str) -> None:
    source = recurrent_net("bidirectional", op=op, lengths=True, initial=True)
    x = samples(STEPS, *SHAPE[1:])
    model, reports = quantize(source, options, [{"x": x}])
    assert {change.node for report in reports for change in report.changes} >= {"w", "r"}
    assert output_error(source, model, x) < (0.03 if "4" in options else 1e-3)


# ------------------------------------------------------------------- declines


def with_body(opset: int) -> onnx.ModelProto:
    """A MatMul in either body of an If, whose weights lie outside and inside."""
    value = helper.make_tensor_value_info
    branches = [
        helper.make_graph(
            [node("MatMul", ["x", weight], "z")],
            f"body of {weight}",
            [],
            [value("z", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(normal(96, 64, seed=2), "v")] if weight == "v" else [],
        )
        for weight in ("w", "v")
    ]
    nodes = [
        node("ReduceSum", ["x"], "s", keepdims=0),
        node("Greater", ["s", "zero"], "c"),
        node("If", ["c"], "y", then_branch=branches[0], else_branch=branches[1]),
    ]
    return net(
        nodes, {"w": normal(96, 64), "zero": np.array(0, np.float32)}, ["N", 96], opset=opset
    )


@pytest.mark.parametrize("options", ["", "form=dequantize", "form=folded", "form=matmul-nbits"])
@pytest.mark.parametrize("bits", [8, 4])
def test_bodies_are_entered(options: str, bits: int) -> None:
    source = with_body(21)
    model, reports = quantize(source, f"bits={bits}{options and ':'}{options}")
    assert sum("weights in" in what for what in whats(reports)) == 2
    for x in (X[:5], -X[:5]):
        assert output_error(source, model, x) < 0.05


def test_a_model_whose_opset_cannot_be_raised_gets_what_it_can_have() -> None:
    source = with_body(11)
    source.graph.node.append(node("Resize", ["grid", "", "twice"], "larger"))
    source.graph.node[-1].attribute.append(
        onnx.helper.make_attribute("coordinate_transformation_mode", "tf_half_pixel_for_nn")
    )
    for name, shape in (("grid", [1, 1, 2, 2]), ("twice", [4])):
        source.graph.input.append(
            onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        )
    source.graph.node[-1].input[1] = "roi"
    source.graph.initializer.append(onnx.helper.make_tensor("roi", TensorProto.FLOAT, [0], []))
    model, reports = quantize(source, "form=dequantize")
    assert ops(model)["Dequantize"] == 2  # the local function
    assert "`larger` (Resize): later opsets have no coordinates" in whys(reports)[0]
    _, reports = quantize(source, "bits=4")
    assert whats(reports) == []
    assert "the model has opset 11, and this takes 21" in whys(reports)
    model, reports = quantize(source, "bits=4:form=matmul-nbits")
    assert ops(model)["MatMulNBits"] == 2
    assert model.graph.opset == 11


def test_what_would_not_be_smaller_is_declined() -> None:
    _, reports = quantize(one("MatMul", normal(8, 8), ["N", 8]))
    assert whats(reports) == []
    assert whys(reports) == ["codes and scales would take 296 bytes, the weight takes 256"]


def typed(dtype: type[np.floating], kind: int) -> onnx.ModelProto:
    """A MatMul in another type than float32."""
    weight = normal(96, 64).astype(dtype)
    return net([node("MatMul", ["x", "w"], "y")], {"w": weight}, ["N", 96], dtype=kind)


@pytest.mark.parametrize("options", ["", "bits=4", "form=dequantize", "symmetric=false"])
def test_weights_of_float16_become_float16_at_the_start(options: str) -> None:
    source, x = typed(np.float16, TensorProto.FLOAT16), X[:8].astype(np.float16)
    model, _ = quantize(source, options)
    assert any(n.op.endswith("ToFloat16") for n in model.graph.nodes)
    assert output_error(source, model, x) < (0.03 if "4" in options else 1e-3)
    assert model.file_bytes() < len(source.SerializeToString())


def test_weights_of_other_types_or_not_finite_are_declined() -> None:
    double = typed(np.float64, TensorProto.DOUBLE)
    assert "float64" in whys(quantize(double)[1])[0]
    weight = normal(96, 64)
    weight[0, 0] = np.inf
    model = Model.load(one("MatMul", weight, ["N", 96]))
    result = QuantizeWeights().run(model.graph, Context(model=model))
    assert [skip.why for skip in result.skips] == ["it has values that are not finite"]


@pytest.mark.parametrize("form", FORMS)
def test_what_is_quantized_already_stays(form: str) -> None:
    once, _ = quantize(mlp(), f"form={form}")
    twice, reports = quantize(once, "bits=4")
    assert whats(reports) == []
    assert twice.to_bytes() == once.to_bytes()
    wanted = [] if form == "matmul-nbits" else ["its weight is dequantized (DequantizeLinear)"] * 2
    assert whys(reports) == wanted


def test_only_and_skip_choose_and_names_that_match_nothing_are_refused() -> None:
    source = embedded()
    assert quantize(source, "only=e")[1][0].changes[0].node == "e"
    assert ops(quantize(source, "skip=e")[0])["Gather"] == 1
    assert QuantizeWeights().targets(Model.load(source).graph) == ("e", "y")
    with pytest.raises(UsageError, match="`only` of `quantize-weights` names `nothing`"):
        QuantizeWeights(only=("nothing",)).requires(Model.load(source).graph, Context())


def test_a_weight_that_is_an_output_is_declined() -> None:
    model = Model.load(mlp())
    tensor = next(item for item in model.graph.nodes if item.op == "MatMul").inputs[1]
    model.graph.outputs.append(tensor)
    result = QuantizeWeights(only=("a",)).run(model.graph, Context(model=model))
    assert [skip.why for skip in result.skips] == ["its weight is an output of a graph"]
    assert not result.changed


def test_a_constant_node_is_replaced_too() -> None:
    constant = helper.make_node(
        "Constant", [], ["w"], value=numpy_helper.from_array(normal(96, 64))
    )
    source = net([constant, node("MatMul", ["x", "w"], "y")], {}, ["N", 96])
    for form in FORMS:
        model, _ = quantize(source, f"form={form}")
        assert ops(model)["Constant"] == 0
        assert output_error(source, model, X) < 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_constant_nodes_may_share_a_name(form: str) -> None:
    values = {"w": normal(96, 64, scale=0.1), "v": normal(64, 80, seed=2)}
    constants = [
        helper.make_node("Constant", [], [name], "same", value=numpy_helper.from_array(value))
        for name, value in values.items()
    ]
    matmuls = [node("MatMul", ["x", "w"], "a"), node("MatMul", ["a", "v"], "y")]
    source = net([*constants, *matmuls], {}, ["N", 96])
    model, _ = quantize(source, f"form={form}")
    assert ops(model)["Constant"] == 0
    assert output_error(source, model, X) < 1e-3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("bits=5", "must be 8 or 4; got 5"),
        ("form=matmul-nbits:block=24", "must be a power of two, 16 or more"),
        ("form=matmul-nbits:block=0", "must be a power of two, 16 or more"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_pipeline(f"quantize-weights:{options}")


# ------------------------------------------------------------------- what pays


def timed(text: str, faster: float, source: onnx.ModelProto) -> tuple[Model, StepReport]:
    context = Context(
        evaluate=evaluate, calibration=runs(X), stopwatch=ScriptedStopwatch(faster=faster)
    )
    made, (report,) = PassManager.parse(text).run(
        Model.load(source), context, policy=FORCE, reproducers=REPRODUCERS
    )
    return made, report


@pytest.mark.parametrize(("faster", "form"), [(0.5, "folded"), (2.0, "native")])
def test_what_is_slower_as_kernels_is_folded_and_the_report_repeats_it(
    faster: float, form: str
) -> None:
    source = mlp()
    model, report = timed("quantize-weights", faster, source)
    (said,) = (change.what for change in report.changes if "with kernels" in change.what)
    assert said.endswith(f"form={form}")
    assert report.resolved == f"quantize-weights:form={form}"
    again, _ = quantize(source, f"form={form}", X)
    assert [x.tobytes() for x in arrays(model)] == [x.tobytes() for x in arrays(again)]
    assert ops(model) == ops(again)


def test_a_tied_table_is_one_set_of_codes_where_that_is_as_fast() -> None:
    source = tied("Transpose and MatMul")
    context = Context(
        evaluate=evaluate,
        calibration=runs([{"x": indices(40)}]),
        stopwatch=(stopwatch := ScriptedStopwatch(faster=2.0)),
    )
    made, (report,) = PassManager.parse("quantize-weights:bits=4").run(
        Model.load(source), context, policy=FORCE, reproducers=REPRODUCERS
    )
    assert stopwatch.paired == 2
    assert report.resolved == "quantize-weights:bits=4:form=matmul-nbits:accuracy-level=4"
    again, _ = quantize(source, report.resolved.partition(":")[2], [{"x": indices(40)}])
    assert made.to_bytes() == again.to_bytes()


@pytest.mark.parametrize(("options", "trials"), [("bits=4", 2), ("bits=8", 1)])
def test_computing_in_float_is_tried_where_integers_are_not_faster(
    options: str, trials: int
) -> None:
    stopwatch = ScriptedStopwatch(faster=1.0)
    context = Context(evaluate=evaluate, calibration=runs(X), stopwatch=stopwatch)
    _, (report,) = PassManager.parse(f"quantize-weights:{options}").run(
        Model.load(mlp()), context, policy=FORCE, reproducers=REPRODUCERS
    )
    assert stopwatch.paired == trials
    assert str(report.resolved).endswith("form=native")


def test_the_level_of_matmul_nbits_is_timed_unless_it_is_given() -> None:
    for options, trials in (("", 1), (":accuracy-level=4", 0)):
        stopwatch = ScriptedStopwatch(faster=2.0)
        context = Context(evaluate=evaluate, calibration=runs(X), stopwatch=stopwatch)
        PassManager.parse(f"quantize-weights:bits=4:form=matmul-nbits{options}").run(
            Model.load(mlp()), context, policy=FORCE, reproducers=REPRODUCERS
        )
        assert stopwatch.paired == trials


def arrays(model: Model) -> list[np.ndarray]:
    return [tensor.values for tensor in codes_of(model)]


def test_a_form_that_is_given_is_not_timed() -> None:
    _, report = timed("quantize-weights:form=native", 0.5, mlp())
    assert report.resolved is None
    assert not any("with kernels" in change.what for change in report.changes)


def test_the_manager_keeps_what_is_smaller() -> None:
    context = Context(evaluate=evaluate)
    model, (report,) = PassManager.parse("quantize-weights:bits=4").run(
        Model.load(mlp()), context, policy=Policy(), reproducers=REPRODUCERS
    )
    assert report.committed
    assert ops(model)["DequantizeLinear"] == 2


@pytest.mark.parametrize("form", FORMS)
def test_other_passes_read_what_is_written_and_keep_it_small(form: str) -> None:
    source = embedded()
    model, reports = rewritten(source, None, f"quantize-weights:bits=4:form={form}", "simplify")
    assert len(codes_of(model)) == 2
    assert len(reports) == 2
    assert output_error(source, model, indices(4, 7)) < 0.03

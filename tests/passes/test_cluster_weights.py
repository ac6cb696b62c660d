from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_nets import (
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
from strategies import models

from onnxslim.codebook.lookup import read
from onnxslim.codebook.nodes import codebook_nodes
from onnxslim.constraints.read import read_constraints
from onnxslim.constraints.stored import TiedWeight
from onnxslim.errors import UsageError
from onnxslim.io.check import check_model, signature
from onnxslim.io.model import Model
from onnxslim.passes.cluster_weights import ClusterWeights
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.policy import Policy
from onnxslim.runtime.measure.verify import RuntimeProver
from onnxslim.solvers.kmeans.lloyd import TableInit
from support import random_feeds, run

pytestmark = pytest.mark.slow

X = samples(300, 16)
MAPS = samples(24, 8, 6, 6)
SMALL = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def dense(rows: int = 40, columns: int = 16) -> onnx.ModelProto:
    return net([node("MatMul", ["x", "w"], "y")], {"w": normal(columns, rows)}, ["N", columns])


def spec(**options: object) -> str:
    return str(ClusterWeights(**options))  # type: ignore[arg-type]


def stored(model: Model) -> dict[str, np.ndarray]:
    """The dense weights that the Lookup nodes stand for, by name."""
    found = {}
    for lookup in codebook_nodes(model.graph):
        weight = read(model.graph, lookup)
        assert weight is not None
        found[lookup.outputs[0].name] = weight.dense()
    return found


def file_bytes(model: Model | onnx.ModelProto) -> int:
    return len(model.to_bytes() if isinstance(model, Model) else model.SerializeToString())


# ------------------------------------------------------------------- fires


@pytest.mark.parametrize("x", [None, X], ids=["no data", "data"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
def test_a_weight_takes_as_many_values_as_bits_allow_and_few_bytes(
    bits: int, x: np.ndarray | None
) -> None:
    source = dense()
    model, _ = rewritten(source, x, spec(bits=bits))
    check_model(model)
    (weight,) = stored(model).values()
    assert len(np.unique(weight)) <= 2**bits
    codes = [n for n in model.to_proto().graph.initializer if n.data_type == onnx.TensorProto.UINT8]
    assert 8 * sum(len(t.raw_data) for t in codes) == 640 * bits
    np.testing.assert_allclose(outputs(model, X)["y"], X @ weight, rtol=1e-4, atol=1e-4)


def test_the_file_gets_smaller_and_less_wrong_with_bits() -> None:
    source = dense(500)
    found = [rewritten(source, X, spec(bits=bits))[0] for bits in (1, 2, 3, 4)]
    sizes = [file_bytes(model) for model in found]
    errors = [output_error(source, model, X) for model in found]
    assert sizes == sorted(sizes)
    assert sizes[-1] < 0.25 * file_bytes(source)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


@pytest.mark.parametrize("values", [2, 3, 5, 6, 12, 17])
def test_a_table_may_have_any_number_of_values(values: int) -> None:
    model, reports = rewritten(dense(), X, spec(values=values))
    (weight,) = stored(model).values()
    assert len(np.unique(weight)) == values
    assert f"640 weights in {values} values: 2.56 kB to " in whats(reports)[0]


def test_layers_may_have_values_of_their_own() -> None:
    source = dense_net(16, 30, 30, 8)
    model, _ = rewritten(source, X, spec(bits=4, values_of=("h0=3", "h*=5")))
    counts = {name: len(np.unique(weight)) for name, weight in stored(model).items()}
    assert counts == {"w0": 3, "w1": 5, "w2": 16}


def test_the_error_in_the_report_is_that_of_the_outputs() -> None:
    source = dense()
    for options in ({}, {"per": "channel", "bits": 1}, {"vector": 2}, {"stages": 2, "bits": 2}):
        model, reports = rewritten(source, X, spec(**options))
        said = float(whats(reports)[0].rpartition("output error ")[2])
        assert said == pytest.approx(output_error(source, model, X), rel=0.06), options


@SMALL
@given(
    st.integers(2, 30),
    st.integers(2, 14),
    st.integers(1, 4),
    st.sampled_from(["tensor", "channel", "group"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 1000),
)
def test_the_error_in_the_report_is_that_of_the_outputs_of_any_layer(
    rows: int,
    columns: int,
    bits: int,
    per: str,
    feedback: bool,
    has_bias: bool,
    zeros: bool,
    seed: int,
) -> None:
    weights = {"w": normal(columns, rows, seed=seed)}
    if zeros:
        weights["w"][np.abs(weights["w"]) < 0.5] = 0
    if has_bias:
        weights["b"] = normal(rows, seed=seed + 1)
    source = net(
        [node("Gemm" if has_bias else "MatMul", ["x", *weights], "y")], weights, ["N", columns]
    )
    x = samples(60, columns, seed=seed)
    group = max(d for d in range(1, 5) if columns % d == 0)
    model, reports = rewritten(source, x, spec(bits=bits, per=per, group=group, feedback=feedback))
    check_model(model)
    if not whats(reports):
        assert "would take" in whys(reports)[0]
        return
    what = whats(reports)[0].partition("output error ")[2]
    ref, new = (outputs(m, x)["y"].astype(np.float64) for m in (source, model))
    whole = ref - ref.mean(axis=0) if has_bias else ref
    found = np.square(ref - new).sum() / np.square(whole).sum()
    assert float(what.partition(",")[0]) == pytest.approx(found, rel=0.06, abs=1e-9)


def test_feedback_beats_rounding_and_weighting_beats_none() -> None:
    source = dense(60)
    x = X * np.geomspace(0.1, 3, 16).astype(np.float32)
    errors = [
        output_error(source, rewritten(source, x, spec(bits=2, **options))[0], x)
        for options in ({}, {"feedback": False}, {"feedback": False, "weighting": "none"})
    ]
    assert errors[0] < 0.8 * errors[1]
    assert errors[1] < errors[2]


@pytest.mark.parametrize("start", list(TableInit))
def test_every_start_gives_a_table(start: str) -> None:
    source = dense()
    for x in (None, X):
        model, _ = rewritten(source, x, spec(init=start, bits=3))
        assert output_error(source, model, X) < 0.1


# ------------------------------------------------------------------- what has a table


@pytest.mark.parametrize("x", [None, X], ids=["no data", "data"])
def test_each_channel_may_have_a_table(x: np.ndarray | None) -> None:
    source = dense(40, 64) if x is None else dense(200)
    model, _ = rewritten(source, x, spec(per="channel", bits=1))
    (weight,) = stored(model).values()
    assert all(len(np.unique(column)) <= 2 for column in weight.T)
    assert len(np.unique(weight)) > 20


def test_each_group_of_inputs_may_have_a_table() -> None:
    model, _ = rewritten(dense(), X, spec(per="group", group=8, bits=2))
    (weight,) = stored(model).values()
    assert all(len(np.unique(weight[rows])) <= 4 for rows in (slice(0, 8), slice(8, 16)))
    assert len(np.unique(weight)) == 8


def test_a_group_as_large_as_the_input_is_the_whole() -> None:
    model, _ = rewritten(dense(), X, spec(per="group", group=128, bits=2))
    (weight,) = stored(model).values()
    assert len(np.unique(weight)) <= 4


@pytest.mark.parametrize("x", [None, X], ids=["no data", "data"])
def test_one_code_may_stand_for_neighbours(x: np.ndarray | None) -> None:
    model, reports = rewritten(dense(), x, spec(vector=4, bits=4))
    (weight,) = stored(model).values()
    neighbours = weight.T.reshape(-1, 4)  # rows are outputs
    assert len(np.unique(neighbours, axis=0)) <= 16
    assert "640 weights in 16 values" in whats(reports)[0]


@pytest.mark.parametrize("x", [None, X], ids=["no data", "data"])
def test_values_of_several_codes_may_be_added(x: np.ndarray | None) -> None:
    source = dense()
    model, reports = rewritten(source, x, spec(stages=2, bits=2))
    (weight,) = stored(model).values()
    assert len(np.unique(weight)) <= 16
    assert "640 weights in 4x4 values" in whats(reports)[0]
    single, _ = rewritten(source, x, spec(bits=2))
    assert output_error(source, model, X) < output_error(source, single, X)


LAYERS = [
    pytest.param("Conv", (12, 8, 3, 3), {"pads": [1, 1, 1, 1]}, id="conv"),
    pytest.param("Conv", (32, 2, 3, 3), {"group": 4}, id="grouped conv"),
    pytest.param("Conv", (48, 1, 3, 3), {"group": 8}, id="depthwise conv"),
    pytest.param("ConvTranspose", (8, 12, 3, 3), {}, id="transposed conv"),
    pytest.param("ConvTranspose", (8, 12, 3, 3), {"group": 2}, id="grouped transposed conv"),
]


@pytest.mark.parametrize("options", [{}, {"per": "channel", "bits": 1}, {"vector": 3}], ids=str)
@pytest.mark.parametrize("x", [None, MAPS], ids=["no data", "data"])
@pytest.mark.parametrize(("op", "shape", "attrs"), LAYERS)
def test_convs_of_any_kind_are_clustered(
    op: str,
    shape: tuple[int, ...],
    attrs: dict[str, object],
    x: np.ndarray | None,
    options: dict[str, object],
) -> None:
    source = net([node(op, ["x", "w"], "y", **attrs)], {"w": normal(*shape)}, ["N", 8, 6, 6])
    model, reports = rewritten(source, x, spec(**options))
    check_model(model)
    if not whats(reports):
        assert options.get("per") == "channel"
        return
    assert stored(model)["w"].shape == shape
    assert output_error(source, model, MAPS) < 0.5


@pytest.mark.parametrize("options", [{}, {"per": "channel"}, {"per": "group", "group": 4}], ids=str)
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("left", [False, True])
def test_gemms_of_any_layout_are_clustered(
    options: dict[str, object], trans_b: int, left: bool
) -> None:
    shape = (80, 16) if trans_b != left else (16, 80)
    weights = {"w": normal(*shape), "b": normal(80, *([1] if left else []))}
    attrs = {"transA" if left else "transB": trans_b}
    inputs = ["w", "x", "b"] if left else ["x", "w", "b"]
    source = net([node("Gemm", inputs, "y", **attrs)], weights, [16, "N"] if left else ["N", 16])
    x = X.T.copy() if left else X
    model, _ = rewritten(source, [{"x": x}], spec(bits=2, **options))
    check_model(model)
    assert stored(model)["w"].shape == shape
    assert output_error(source, model, x) < 0.1


# ------------------------------------------------------------------- zeros


@pytest.mark.parametrize("x", [None, X], ids=["no data", "data"])
@pytest.mark.parametrize(
    "options",
    [{}, {"bits": 1}, {"per": "channel", "bits": 2}, {"per": "group", "group": 4}],
    ids=str,
)
def test_zeros_stay_exactly_zero(x: np.ndarray | None, options: dict[str, object]) -> None:
    weight = normal(16, 200)
    weight[np.abs(weight) < 0.8] = 0
    source = net([node("MatMul", ["x", "w"], "y")], {"w": weight}, ["N", 16])
    model, reports = rewritten(source, x, spec(**options))
    (found,) = stored(model).values()
    assert not found[weight == 0].any()
    assert not np.signbit(found[weight == 0]).any()
    if options.get("per") is None:
        assert " of them not zero" in whats(reports)[0]


def test_pruning_and_clustering_are_one_step_and_share_their_zeros() -> None:
    source = Model.load(dense_net(16, 64, 64, 10))
    prover = RuntimeProver(calibration={"x": X}, latency=False)
    prover.begin(source)
    context = Context(calibration=runs(X))
    pipeline = PassManager.parse("prune-weights:ratio=0.7,cluster-weights:bits=3")
    model, reports = pipeline.run(source, context, prover=prover, policy=Policy())
    assert [report.committed for report in reports] == [True, True]
    assert reports[0].stats is None  # judged with what follows
    assert reports[1].stats is not None
    pruned, _ = rewritten(source, X, "prune-weights:ratio=0.7")
    for name, weight in stored(model).items():
        assert len(np.unique(weight)) <= 8
        assert 0 in np.unique(weight)
        assert (weight == 0).mean() > 0.68, name
    first = {t.name: t for t in pruned.graph.nodes[0].inputs if t.name == "w0"}["w0"].values
    assert not stored(model)["w0"][first == 0].any()
    assert file_bytes(model) < 0.25 * file_bytes(source)
    assert output_error(source, model, X) < 0.2


def test_where_nearly_all_is_zero_a_sparse_initializer_takes_less() -> None:
    source = dense(300)
    model, reports = rewritten(source, X, "prune-weights:ratio=0.99", spec(bits=4))
    assert "as a sparse initializer of" in whats(reports)[-1]
    proto = model.to_proto()
    assert len(proto.graph.sparse_initializer) == 1
    assert list(codebook_nodes(model.graph)) == []
    check_model(model)


# ------------------------------------------------------------------- types


def test_tables_may_be_half_precision() -> None:
    source = dense()
    both = [rewritten(source, X, spec(table=kind, bits=6))[0] for kind in ("float16", "float32")]
    kinds = [
        {t.data_type for t in m.to_proto().graph.initializer} & {onnx.TensorProto.FLOAT16}
        for m in both
    ]
    assert kinds == [{onnx.TensorProto.FLOAT16}, set()]
    assert file_bytes(both[0]) < file_bytes(both[1])
    assert output_error(source, both[0], X) < 1.1 * output_error(source, both[1], X)


@pytest.mark.parametrize("table", ["float16", "float32"])
@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_weights_of_other_precision_stay_so(kind: type, table: str) -> None:
    dtype = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    weights = {"w": normal(16, 100).astype(kind), "b": normal(100).astype(kind)}
    source = net([node("Gemm", ["x", "w", "b"], "y")], weights, ["N", 16], dtype=dtype)
    model, _ = rewritten(source, X.astype(kind), spec(table=table))
    check_model(model)
    assert stored(model)["w"].dtype == kind
    assert output_error(source, model, X.astype(kind)) < 0.05


# ------------------------------------------------------------------- in the model


def test_layers_that_share_a_weight_share_its_lookup() -> None:
    nodes = [
        node("MatMul", ["x", "w"], "h"), node("Relu", ["h"], "r"), node("MatMul", ["r", "w"], "y")
    ]  # fmt: skip
    source = net(nodes, {"w": normal(16, 16, scale=0.4)}, ["N", 16])
    for x in (None, X):
        model, reports = rewritten(source, x, spec())
        assert len(list(codebook_nodes(model.graph))) == 1
        assert len(whats(reports)) == 1
        assert output_error(source, model, X) < 0.1


def test_onnxruntime_folds_the_lookup_into_a_dense_weight(tmp_path: Path) -> None:
    model, _ = rewritten(dense(), X, spec(bits=3))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    assert [n.op_type for n in optimised.graph.node] == ["MatMul"]


def test_the_file_written_is_the_model(tmp_path: Path) -> None:
    model, _ = rewritten(dense_net(16, 30, 8), X, spec(bits=3))
    model.save(tmp_path / "clustered.onnx")
    again = Model.load(tmp_path / "clustered.onnx")
    np.testing.assert_array_equal(outputs(again, X)["y"], outputs(model, X)["y"])


def test_simplification_leaves_codebooks_alone() -> None:
    model, _ = rewritten(dense_net(16, 30, 30, 8), X, "simplify", spec(bits=3))
    simplified, _ = rewritten(model, None, "simplify")
    assert simplified.to_bytes() == model.to_bytes()


def test_a_second_run_changes_nothing_and_says_why() -> None:
    model, _ = rewritten(dense(), X, spec())
    again, reports = rewritten(model, X, spec())
    assert again.to_bytes() == model.to_bytes()
    assert whys(reports) == ["its weight is a codebook (Lookup)"]


def test_the_result_is_the_same_every_time() -> None:
    source = dense_net(16, 30, 8)
    for options in ({}, {"per": "channel", "bits": 1}, {"vector": 2}, {"init": "kmeans++"}):
        first, second = (rewritten(source, X, spec(**options))[0] for _ in range(2))
        assert first.to_bytes() == second.to_bytes()


def test_a_weight_in_a_constant_node_is_clustered() -> None:
    value = onnx.numpy_helper.from_array(normal(16, 64))
    nodes = [node("Constant", [], "w", value=value), node("MatMul", ["x", "w"], "y")]
    source = net(nodes, {}, ["N", 16])
    model, _ = rewritten(source, X, spec())
    check_model(model)
    assert list(stored(model)) == ["w"]
    assert output_error(source, model, X) < 0.05


def test_a_weight_in_a_branch_is_clustered() -> None:
    numbers = ", ".join(f"{v:.3f}" for v in normal(16 * 20))
    source = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 16] x, bool c) => (float[N, 20] y) {{
            y = If (c) <
                then_branch = t () => (float[N, 20] r)
                    <float[16, 20] w = {{{numbers}}}> {{ r = MatMul (x, w) }},
                else_branch = e () => (float[N, 20] r)
                    <float[16, 20] w = {{{numbers}}}> {{ h = MatMul (x, w) r = Relu (h) }}
            >
        }}"""
    )
    items = [{"x": X[i : i + 10], "c": np.array(bool(i % 3))} for i in range(0, 300, 10)]
    for given_ in (None, items):
        model, reports = rewritten(source, given_, spec())
        check_model(model)
        assert len(whats(reports)) == 2
        for item in items[:3]:
            before, after = outputs(source, item)["y"], outputs(model, item)["y"]
            assert np.square(before - after).sum() < 0.05 * np.square(before).sum()


def test_an_old_format_is_raised_to_the_one_that_has_functions_and_the_report_says_so() -> None:
    source = dense()
    source.ir_version = 4
    source.opset_import[0].version = 11
    model, reports = rewritten(source, X, spec())
    assert model.to_proto().ir_version == 8
    assert any("IR version raised from 4 to 8" in what for what in whats(reports))
    check_model(model)


# ------------------------------------------------------------------- declines


def test_an_opset_without_the_operators_is_raised() -> None:
    source = dense(80)
    source.opset_import[0].version = 9
    model, _ = rewritten(source, X, spec())
    assert model.graph.opset == 10
    assert len(list(codebook_nodes(model.graph))) == 1
    source.opset_import[0].version = 10
    assert rewritten(source, X, spec())[0].graph.opset == 10
    model, _ = rewritten(source, X, spec(per="group", group=8, bits=2))
    assert model.graph.opset == 11
    assert len(list(codebook_nodes(model.graph))) == 1


def test_a_weight_that_codes_would_not_make_smaller_is_left_alone() -> None:
    for x in (None, X):
        model, reports = rewritten(dense(3), x, spec())
        assert whys(reports) == ["codes and tables would take 288 bytes, the weight takes 192"]
        assert list(codebook_nodes(model.graph)) == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"vector": 5}, "its 16 input columns are no multiple of vector=5"),
        ({"per": "group", "group": 5}, "its 16 input columns are no multiple of group=5"),
    ],
)
def test_columns_that_cannot_be_split_evenly_are_declined(
    options: dict[str, object], why: str
) -> None:
    assert whys(rewritten(dense(), X, spec(**options))[1]) == [why]


def test_zeros_do_not_go_with_vectors_or_stages() -> None:
    for options in ({"vector": 2}, {"stages": 2, "bits": 2}):
        _, reports = rewritten(dense(), X, "prune-weights", spec(**options))
        assert whys(reports) == ["it has zeros, which sub-vectors and stages would not keep"]


def test_a_type_that_tables_cannot_hold_is_declined() -> None:
    nodes = [
        node("Cast", ["x"], "c", to=onnx.TensorProto.BFLOAT16),
        node("MatMul", ["c", "w"], "h"),
        node("Cast", ["h"], "y", to=onnx.TensorProto.FLOAT),
    ]
    source = net(nodes, {"w": normal(16, 64).astype(ml_dtypes.bfloat16)}, ["N", 16])
    assert whys(rewritten(source, None, spec())[1]) == [
        "a codebook holds no weight of type bfloat16"
    ]


def test_only_and_skip_choose_layers() -> None:
    source = dense_net(16, 30, 30, 8)
    assert list(stored(rewritten(source, X, spec(only=("h*",)))[0])) == ["w0", "w1"]
    assert list(stored(rewritten(source, X, spec(skip=("h0", "y")))[0])) == ["w1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 9}, r"`bits` .* in \[1, 8\]; got 9"),
        ({"values": 1}, r"`values` .* in \[2, 256\]; got 1"),
        ({"values_of": ("h0=2.5",)}, "`values-of` .*an integer"),
        ({"per": "row"}, "`per` .*tensor, channel, group"),
        ({"vector": 2, "per": "channel"}, "`vector` and `stages` .*`per` tensor; got 'channel'"),
        ({"stages": 2, "init": "linear"}, r"`init` .*kmeans\+\+ with `vector` or `stages`"),
        ({"table": "float64"}, "`table` .*float32, float16"),
    ],
)
def test_bad_options_are_refused_with_the_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ClusterWeights(**options)  # type: ignore[arg-type]


def test_options_are_spelled_so_that_they_parse_back() -> None:
    made = ClusterWeights(values=12, values_of=("/a/b:0=3", "c+d,e=4"), init="kmeans++", stages=2)
    assert parse_pipeline(str(made)).passes == (made,)


# ------------------------------------------------------------------- random models


@SMALL
@given(
    models(),
    st.integers(1, 5),
    st.sampled_from(["tensor", "channel", "group"]),
    st.sampled_from([1, 1, 2]),
    st.sampled_from([1, 1, 2]),
    st.booleans(),
    st.booleans(),
)
def test_random_models_stay_valid(
    source: onnx.ModelProto,
    bits: int,
    per: str,
    vector: int,
    stages: int,
    prune: bool,
    has_data: bool,
) -> None:
    feeds = random_feeds(source)
    if per != "tensor":
        vector = stages = 1
    passes = [spec(bits=bits, per=per, group=2, vector=vector, stages=stages)]
    passes = ["prune-weights:ratio=0.4", *passes] if prune else passes
    before = Model.load(source)
    model, _ = rewritten(before, [feeds] * 2 if has_data else None, *passes)
    check_model(model)
    assert signature(model) == signature(before)
    assert [a.shape for a in run(model.to_proto(), feeds)] == [a.shape for a in run(source, feeds)]
    outputs(model, feeds)


# ----------------------------------------------------------------- biases


def biases_of(model: Model) -> list[np.ndarray]:
    found = [item.inputs[2].values for item in model.graph.nodes if item.op == "Gemm"]
    return [np.asarray(values) for values in found]


def gemms(shared: bool = False) -> onnx.ModelProto:
    weights = {"v": normal(16, 32), "w": normal(32, 32, seed=1), "b": normal(32, seed=2)}
    weights["c"] = weights["b"] if shared else normal(32, seed=3)
    nodes = [
        node("Gemm", ["x", "v", "b"], "h"),
        node("Relu", ["h"], "r"),
        node("Gemm", ["r", "w", "b" if shared else "c"], "y"),
    ]
    return net(nodes, weights, ["N", 16])


@pytest.mark.parametrize("shared", [False, True])
def test_biases_take_the_values_that_are_asked_for(shared: bool) -> None:
    source = gemms(shared)
    plain, _ = rewritten(source, X, "cluster-weights:bits=8")
    model, reports = rewritten(source, X, "cluster-weights:bits=8:biases=4")
    assert all(np.unique(values).size == 32 for values in biases_of(plain))
    assert all(np.unique(values).size == 4 for values in biases_of(model))
    assert "32 biases in 4 values" in whats(reports)
    # a bias of its own mean: k-means in one dimension keeps means
    for few, many in zip(biases_of(model), biases_of(plain), strict=True):
        assert few.mean() == pytest.approx(many.mean(), abs=1e-5)
    assert 0 < output_error(source, model, X) < 0.3
    check_model(model)


def test_biases_of_layers_that_stay_are_left_alone() -> None:
    model, _ = rewritten(gemms(), X, "cluster-weights:bits=8:biases=4:only=h")
    first, second = biases_of(model)
    assert (np.unique(first).size, np.unique(second).size) == (4, 32)


def test_biases_of_a_small_layer_take_so_few_values_that_training_keeps_them() -> None:
    model, reports = rewritten(gemms(), X, "cluster-weights:bits=8:biases=20")
    assert "32 biases in 16 values" in whats(reports)
    ties = [
        item for item in read_constraints(model.graph).leaves() if item.holder.values.size == 32
    ]
    assert len(ties) == 2
    assert all(isinstance(item, TiedWeight) for item in ties)

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx
import pytest
from layer_nets import (
    FORCE,
    REPRODUCERS,
    Given,
    boxes_beside_scores,
    dense_net,
    net,
    node,
    normal,
    output_error,
    runs,
    samples,
)
from onnx import numpy_helper
from qdq_nets import ScriptedStopwatch, kernels, loaded
from recurrent_nets import SHAPE, recurrent_net

from onnxslim.errors import UsageError
from onnxslim.io.model import Model
from onnxslim.io.shapes import infer_shapes
from onnxslim.passes.quantize_int8 import QuantizeInt8
from onnxslim.pipeline.floors import Floors
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.policy import Goal
from onnxslim.quantization import layer_codes, range_trial
from onnxslim.quantization.activation_grids import ActivationGrids
from onnxslim.quantization.calibration_ranges import CalibrationRange, RangeMethod
from onnxslim.quantization.grid import U8
from onnxslim.records import Fidelity
from onnxslim.report import StepReport
from onnxslim.runtime.evaluate import evaluate
from support import parse

MAP = [4, 8, 6, 6]
X = samples(40, *MAP[1:])


def conv(name: str, x: str, y: str) -> onnx.NodeProto:
    return node("Conv", [x, name, f"{name}_b"], y, pads=[1, 1, 1, 1])


def residual(batch: int | str = "N", opset: int = 17) -> onnx.ModelProto:
    """Two Convs, a sum written as Sum, a pool, a Gemm and a Softmax."""
    weights = {
        **{name: normal(8, 8, 3, 3, seed=seed, scale=0.1) for seed, name in enumerate("vw")},
        **{f"{name}_b": normal(8, seed=seed) for seed, name in enumerate("vw")},
        "u": normal(8, 5, seed=5),
        "u_b": normal(5, seed=6),
    }
    nodes = [
        conv("v", "x", "a"),
        node("Relu", ["a"], "b"),
        conv("w", "b", "c"),
        node("Sum", ["c", "b"], "d"),
        node("Relu", ["d"], "e"),
        node("GlobalAveragePool", ["e"], "p"),
        node("Flatten", ["p"], "f"),
        node("Gemm", ["f", "u", "u_b"], "z"),
        node("Softmax", ["z"], "y"),
    ]
    return net(nodes, weights, [batch, 8, 6, 6], opset=opset)


def quantize(
    source: onnx.ModelProto | Model,
    text: str = "quantize-int8:placement=all",
    *,
    x: Given | None = X,
    stopwatch: object = None,
    floors: Floors | None = None,
    goal: Goal = Goal.BOTH,
    accuracy: Callable[[Model], float | None] | None = None,
) -> tuple[Model, StepReport]:
    model = source if isinstance(source, Model) else Model.load(source)
    context = Context(
        evaluate=evaluate,
        calibration=None if x is None else runs(x),
        stopwatch=stopwatch,  # type: ignore[arg-type]
        floors=floors or Floors(),
        accuracy=accuracy,
    )
    made, (report,) = PassManager.parse(text).run(
        model, context, policy=replace(FORCE, goal=goal), reproducers=REPRODUCERS
    )
    return made, report


def ops(model: Model) -> Counter[str]:
    return Counter(item.op for item in model.graph.nodes)


def said(report: StepReport, part: str) -> str:
    (found,) = (change.what for change in report.changes if part in change.what)
    return found


def why_of(report: StepReport) -> Mapping[str, str]:
    return {skip.node: skip.why for skip in report.skips}


# ------------------------------------------------------------------- fires


def test_a_net_becomes_integer_kernels_and_stays_near() -> None:
    source = residual()
    model, report = quantize(source)
    onnx.checker.check_model(model.to_proto(), full_check=True)
    assert report.fidelity is Fidelity.LOSSY
    found = Counter(kernels(model))
    assert (found["QLinearConv"], found["QLinearAdd"], found["QGemm"]) == (2, 1, 1)
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 1)
    assert output_error(source, model, X) < 2e-3
    assert "Sum became Add" in said(report, "Sum")
    assert "is an answer" in why_of(report)["y"]


def test_layers_with_very_many_inputs_are_rounded_to_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layer_codes, "MAX_INPUTS", 8)
    source = residual()
    model, report = quantize(source)
    told = [change.what for change in report.changes if "more than 8 inputs" in change.what]
    assert len(told) == 2  # both Convs: 8 channels of 9 taps
    assert output_error(source, model, X) < 3e-3


def test_weights_take_a_quarter_of_the_bytes() -> None:
    source = dense_net(64, 256, 256, 10)
    model, _ = quantize(source, x=samples(64, 64))
    assert model.file_bytes() < 0.3 * len(source.SerializeToString())


@pytest.mark.parametrize(
    "text",
    [
        "calibration=minmax",
        "calibration=entropy",
        "weights=u8",
        "activations=s8",
        "symmetric=true",
        "per-channel=false",
        "reduce-range=true",
        "rounding=nearest",
        "rounding=adaround",
        "bias-correct=false",
        "equalize=true",
        "smooth=true",
        "rounding=nearest:bias-correct=false",
    ],
)
def test_options_do_not_change_what_the_net_says(text: str) -> None:
    source = residual()
    model, report = quantize(source, f"quantize-int8:placement=all:{text}")
    assert ops(model)["QuantizeLinear"] > 3
    assert report.changes
    assert output_error(source, model, X) < 1e-2


def stored(model: Model, dims: int) -> np.ndarray:
    return next(
        numpy_helper.to_array(tensor)
        for tensor in model.to_proto().graph.initializer
        if tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
        and len(tensor.dims) == dims
    )


def test_no_other_ranges_leave_the_outputs_clearly_nearer() -> None:
    source = residual()
    held = runs(X).halves()[1]
    reference = Model.load(source)
    model, report = quantize(source)
    (chosen,) = held.distances(reference, [model])
    told = said(report, "ranges by")
    assert f"SQNR {chosen.sqnr_db:.1f} dB on samples held back" in told
    for method in RangeMethod:
        other, report = quantize(source, f"quantize-int8:placement=all:calibration={method}")
        assert not any("ranges by" in change.what for change in report.changes)
        (distance,) = held.distances(reference, [other])
        assert 0.8 * chosen.divergence <= distance.divergence * (1 + 1e-6)


def test_a_softmax_between_products_is_computed_on_integers() -> None:
    nodes = [
        node("Transpose", ["x"], "t", perm=[0, 2, 1]),
        node("MatMul", ["x", "t"], "scores"),
        node("Softmax", ["scores"], "p"),
        node("MatMul", ["p", "x"], "y"),
    ]
    x = samples(20, 6, 16)
    source = net(nodes, {}, ["N", 6, 16])
    model, _ = quantize(source, x=x)
    assert Counter(kernels(model))["QLinearSoftmax"] == 1
    assert output_error(source, model, x) < 2e-3


def test_a_reduced_range_leaves_one_bit_unused() -> None:
    model, _ = quantize(residual(), "quantize-int8:placement=all:reduce-range=true")
    assert np.abs(stored(model, 4).astype(int)).max() <= 64
    model, _ = quantize(residual(), "quantize-int8:placement=all:reduce-range=false")
    assert np.abs(stored(model, 4).astype(int)).max() > 64


def test_weights_of_u8_have_their_zero_in_the_middle() -> None:
    model, _ = quantize(residual(), "quantize-int8:placement=all:weights=u8:reduce-range=false")
    codes = stored(model, 4)
    assert codes.dtype == np.uint8
    assert codes.min() < 100 < 160 < codes.max()


def test_layers_alone_become_integers_when_that_is_asked_for() -> None:
    model, _ = quantize(residual(), "quantize-int8:placement=conv-matmul")
    found = Counter(kernels(model))
    assert (found["QLinearConv"], found["QGemm"], found["QLinearAdd"]) == (2, 1, 0)


def test_a_low_opset_is_raised_and_the_report_says_so() -> None:
    source = residual(opset=11)
    model, report = quantize(source)
    assert model.graph.opset == 13
    assert "opset raised from 11 to 13" in said(report, "opset")
    assert output_error(source, model, X) < 2e-3


# ------------------------------------------------------------------- measured placement


FASTER = {("Conv", False): 5.0, ("Conv", True): 1.0}


def test_what_is_slower_on_integers_stays_float_and_a_spelling_repeats_the_choice() -> None:
    source = residual()
    stopwatch = ScriptedStopwatch({**FASTER, ("Gemm", True): 3.0})
    model, report = quantize(source, "quantize-int8", stopwatch=stopwatch)
    assert "the model is faster" in why_of(report)["z"]
    assert "QGemm" not in kernels(model)
    assert "times as fast as float" in said(report, "tried")
    again = report.resolved
    assert again is not None
    assert parse_pipeline(again).passes[0].placement == "all"  # type: ignore[attr-defined]
    repeated, _ = quantize(source, again)
    assert repeated.to_bytes() == model.to_bytes()


def test_where_nothing_is_faster_nothing_changes_and_the_report_says_what_was_tried() -> None:
    source = residual()
    before = Model.load(source).to_bytes()
    stopwatch = ScriptedStopwatch(FASTER, faster=0.7)
    model, report = quantize(source, "quantize-int8", stopwatch=stopwatch)
    assert model.to_bytes() == before
    assert report.changes == ()
    assert "0.70 times as fast" in why_of(report)["g"]


def test_with_goal_bytes_slower_integers_are_kept_and_the_report_says_by_how_much() -> None:
    stopwatch = ScriptedStopwatch(FASTER, faster=0.7)
    model, report = quantize(residual(), "quantize-int8", stopwatch=stopwatch, goal=Goal.BYTES)
    found = Counter(kernels(model))
    assert (found["QLinearConv"], found["QGemm"]) == (2, 1)
    assert stopwatch.profiled == 0
    assert "0.70 times as fast as float" in said(report, "as the goal is bytes")
    again = report.resolved
    assert again is not None
    assert quantize(residual(), again)[0].to_bytes() == model.to_bytes()


def test_with_goal_bytes_no_clock_is_needed() -> None:
    model, report = quantize(residual(), "quantize-int8", goal=Goal.BYTES)
    assert Counter(kernels(model))["QLinearConv"] == 2
    assert "nothing was timed" in said(report, "as the goal is bytes")


def test_with_goal_bytes_floors_still_count() -> None:
    source, x = sensitive(), samples(100, 8)
    stopwatch = ScriptedStopwatch(faster=0.7)
    text = "quantize-int8:max-error=0.05"
    model, report = quantize(source, text, x=x, stopwatch=stopwatch, goal=Goal.BYTES)
    assert "back to float" in why_of(report)["h"]
    assert "QuantizeLinear" in ops(model)


# ------------------------------------------------------------------- only, skip, floors


def test_only_and_skip_select_by_name() -> None:
    model, report = quantize(residual(), "quantize-int8:placement=all:only=a+c")
    assert Counter(kernels(model))["QLinearConv"] == 2
    assert "QGemm" not in kernels(model)
    assert "leave it out" in why_of(report)["z"]
    model, _ = quantize(residual(), "quantize-int8:placement=all:skip=a+d")
    assert Counter(kernels(model))["QLinearConv"] == 1
    assert "QLinearAdd" not in kernels(model)


def test_a_pattern_that_matches_nothing_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="Option `skip` of `quantize-int8` names `gemm`"):
        quantize(residual(), "quantize-int8:placement=all:skip=gemm")


def test_parts_of_a_long_sum_can_be_named_again() -> None:
    nodes = [conv("v", "x", "a"), conv("w", "x", "b"), node("Sum", ["a", "b", "x"], "y")]
    weights = {name: normal(8, 8, 3, 3, seed=seed, scale=0.1) for seed, name in enumerate("vw")}
    biases = {f"{name}_b": normal(8) for name in "vw"}
    source = net(nodes, {**weights, **biases}, ["N", 8, 6, 6])
    stopwatch = ScriptedStopwatch({**FASTER, ("Add", True): 3.0})
    model, report = quantize(source, "quantize-int8", stopwatch=stopwatch)
    again = report.resolved
    assert again is not None
    assert "y_part" in str({**why_of(report)})
    repeated, _ = quantize(source, again)
    assert repeated.to_bytes() == model.to_bytes()


def sensitive() -> onnx.ModelProto:
    """`h` has one huge channel that the next layer nearly ignores: its grid loses the others."""
    first = normal(8, 8, seed=3)
    first[:, 0] *= 300
    second = normal(8, 4, seed=4)
    second[0] /= 3000
    nodes = [
        node("Gemm", ["x", "v", "vb"], "h"),
        node("Gemm", ["h", "w", "wb"], "k"),
        node("Gemm", ["k", "u", "ub"], "y"),
    ]
    weights = {"v": first, "vb": normal(8), "w": second, "wb": normal(4), "u": normal(4, 3)}
    return net(nodes, {**weights, "ub": normal(3)}, ["N", 8])


def test_operators_go_back_to_float_worst_first_until_the_error_holds() -> None:
    source, x = sensitive(), samples(100, 8)
    plain, _ = quantize(source, x=x)
    limit = 0.05
    assert output_error(source, plain, x) > limit**2
    model, report = quantize(source, f"quantize-int8:placement=all:max-error={limit}", x=x)
    assert output_error(source, model, x) < (1.2 * limit) ** 2
    assert "back to float" in why_of(report)["h"]
    again = report.resolved
    assert again is not None
    assert "skip=" in again or "only=" in again
    repeated, _ = quantize(source, again, x=x)
    assert repeated.to_bytes() == model.to_bytes()


def test_a_floor_of_the_user_is_held_too() -> None:
    source, x = sensitive(), samples(100, 8)
    model, report = quantize(source, x=x, floors=Floors(min_sqnr_db=28.0))
    assert output_error(source, model, x) < 10**-2.7
    assert any("back to float" in why for why in why_of(report).values())


def test_a_floor_on_what_the_user_measures_is_held() -> None:
    source, x = sensitive(), samples(100, 8)

    def accuracy(model: Model) -> float:
        return 0.9 if output_error(source, model, x) < 0.05**2 else 0.8

    floors = Floors(max_drop=1.0)
    model, report = quantize(source, x=x, floors=floors, accuracy=accuracy)
    assert accuracy(model) == 0.9
    assert "and costs 10 points of accuracy" in why_of(report)["h"]
    unmeasured, report = quantize(source, x=x, floors=floors)
    assert accuracy(unmeasured) == 0.8
    assert not any("back to float" in why for why in why_of(report).values())


def test_floors_are_held_by_the_very_model_that_is_written() -> None:
    nodes = [
        node("Gemm", ["x", "v", "vb"], "h"),
        node("Transpose", ["h"], "t", perm=[1, 0]),  # alone on integers it would be no use
        node("Gemm", ["x", "w", "wb"], "z"),
        node("Gemm", ["x", "u", "ub"], "q"),
    ]
    weights = {"v": normal(8, 8), "vb": normal(8), "w": normal(8, 4), "wb": normal(4)}
    weights |= {"u": normal(8, 3), "ub": normal(3)}
    source = net(nodes, weights, ["N", 8], outputs=("t", "z", "q"))
    judged: list[bytes] = []

    def accuracy(model: Model) -> float:
        judged.append(model.to_bytes())
        gemms = (item for item in model.graph.nodes if item.op == "Gemm")
        return 0.9 if any(gemm.inputs[1].name == "v" for gemm in gemms) else 0.7  # in float

    floors = Floors(max_drop=1.0)
    model, report = quantize(source, x=samples(50, 8), floors=floors, accuracy=accuracy)
    assert "back to float" in why_of(report)["h"]
    assert ops(model)["QuantizeLinear"] > 0
    assert model.to_bytes() in judged


def test_a_floor_that_nothing_holds_leaves_the_model_alone() -> None:
    model, report = quantize(residual(), "quantize-int8:placement=all:max-error=1e-9")
    assert "QuantizeLinear" not in ops(model)
    assert "is missed" in why_of(report)["g"]


def test_scores_beside_boxes_are_not_lost_in_the_steps_of_the_boxes() -> None:
    model, report = quantize(boxes_beside_scores(8), x=samples(60, 8))
    assert "`scores`" in why_of(report)["y"]
    assert "would be lost in the result" in why_of(report)["y"]
    assert "QLinearMatMul" in kernels(model)
    assert "QLinearConcat" not in kernels(model)


def test_a_tensor_that_8_bits_say_too_little_of_is_named_with_its_range() -> None:
    _, clusters = loaded(residual())
    names = {t.name for cluster in clusters.all for t in (*cluster.reads, *cluster.makes)}
    good = CalibrationRange(-1.0, 1.0, U8, RangeMethod.MINMAX, error=1e-5, energy=0.3)
    ranges = {**dict.fromkeys(names, good), "b": replace(good, most=900.0, error=0.1)}
    grids = ActivationGrids(
        {name: (found,) for name, found in ranges.items() if name != "p"}, {"p": "hidden"}, U8
    )
    why = {cluster.name: grids.objection(cluster) for cluster in clusters.all}
    assert "`b`, in [-1, 900]: 33 % of its energy" in (why["a"] or "")
    assert "range of `p` is not known: hidden" in (why["p"] or "")
    assert why["z"] is None


def test_a_factor_whose_entries_are_far_apart_stays_float() -> None:
    factor = np.ones((8, 1, 1), np.float32)
    factor[0] = 1000
    even = np.ones((8, 1, 1), np.float32)
    nodes = [conv("v", "x", "a"), node("Mul", ["a", "k"], "m"), node("Mul", ["m", "e"], "y")]
    weights = {"v": normal(8, 8, 3, 3, scale=0.1), "v_b": normal(8)}
    source = net(nodes, {**weights, "k": even, "e": factor}, MAP)
    _, clusters = loaded(source)
    found = CalibrationRange(-1.0, 1.0, U8, RangeMethod.MINMAX, error=1e-5, energy=0.3)
    grids = ActivationGrids(dict.fromkeys(("x", "a", "m", "y"), (found,)), {}, U8)
    why = {cluster.name: grids.objection(cluster) for cluster in clusters.all}
    assert why["m"] is None
    assert "too little of the constant `e`" in (why["y"] or "")


def test_data_that_only_moves_is_not_put_on_integers() -> None:
    source = net(
        [node("Transpose", ["x"], "t", perm=[0, 2, 3, 1]), node("Tanh", ["t"], "y")], {}, MAP
    )
    model, report = quantize(source)
    assert report.changes == ()
    assert ops(model)["QuantizeLinear"] == 0


# ------------------------------------------------------------------- declines


def test_without_samples_it_says_what_to_give() -> None:
    model, report = quantize(residual(), x=None)
    assert report.changes == ()
    assert "needs calibration samples" in why_of(report)["g"]
    assert "Sum" in ops(model)


def test_a_model_that_is_quantized_already_is_left_alone() -> None:
    model, _ = quantize(residual())
    again, report = quantize(model)
    assert report.changes == ()
    assert "quantized already" in why_of(report)["g"]
    assert again.to_bytes() == model.to_bytes()


def test_without_a_clock_measured_placement_is_refused() -> None:
    _, report = quantize(residual(), "quantize-int8")
    assert "needs models to be timed" in why_of(report)["g"]


def test_bodies_stay_float() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        g (float[N, 4] x, bool c) => (float[N, 4] y)
        <float[4, 4] w = {1,0,0,0, 0,2,0,0, 0,0,3,0, 0,0,0,4}> {
            h = MatMul (x, w)
            y = If (c) <
                then_branch = a () => (float[N, 4] t) { t = MatMul (h, w) },
                else_branch = b () => (float[N, 4] e) { e = Identity (h) }
            >
        }"""
    )
    given = [{"x": samples(8, 4), "c": np.array(True)}, {"x": samples(8, 4), "c": np.array(False)}]
    context = Context(evaluate=evaluate, calibration=runs(given))
    manager = PassManager.parse("quantize-int8:placement=all")
    model, (report,) = manager.run(
        Model.load(source), context, policy=FORCE, reproducers=REPRODUCERS
    )
    assert "QLinearMatMul" in kernels(model)
    assert report.changes
    branches = [
        body for item in model.graph.nodes if item.op == "If" for body in item.attrs.values()
    ]
    assert any(inner.op == "MatMul" for body in branches for inner in body.nodes)


# ------------------------------------------------------------------- recurrent layers


def test_an_lstm_finds_its_ranges_at_run_time() -> None:
    source, x = recurrent_net("bidirectional"), normal(*SHAPE, seed=9)
    model, report = quantize(source, "quantize-int8:placement=conv-matmul", x=x)
    assert ops(model) == {"DynamicQuantizeLSTM": 1}
    assert "ranges are found at run time" in said(report, "LSTM")
    assert model.file_bytes() < 0.45 * len(source.SerializeToString())
    assert output_error(source, model, x) < 1e-2
    _, report = quantize(model, "quantize-int8:placement=all", x=x)
    assert "quantized already" in why_of(report)["g"]


def test_an_lstm_that_is_slower_on_integers_stays_float() -> None:
    source, x = recurrent_net(), normal(*SHAPE, seed=9)
    faster = {("LSTM", False): 5.0, ("DynamicQuantizeLSTM", False): 1.0}
    model, _ = quantize(source, "quantize-int8", x=x, stopwatch=ScriptedStopwatch(faster))
    assert ops(model) == {"DynamicQuantizeLSTM": 1}
    slower = ScriptedStopwatch(faster, faster=0.8)
    model, report = quantize(source, "quantize-int8", x=x, stopwatch=slower)
    assert ops(model) == {"LSTM": 1}
    assert "0.80 times as fast" in why_of(report)["g"]


def test_what_an_lstm_reads_and_makes_is_float() -> None:
    layer = recurrent_net().graph.node[0]
    layer.input[0] = "a"
    layer.output[0] = "z"
    weights = {t.name: numpy_helper.to_array(t) for t in recurrent_net().graph.initializer}
    nodes = [
        node("MatMul", ["x", "v"], "a"),
        layer,
        node("Squeeze", ["z", "axes"], "s"),
        node("MatMul", ["s", "u"], "y"),
    ]
    more = {"v": normal(12, 12, scale=0.3), "u": normal(16, 5, seed=4), "axes": np.array([1])}
    source, x = net(nodes, {**weights, **more}, SHAPE), normal(*SHAPE, seed=9)
    model, _ = quantize(source, x=x)
    found = Counter(kernels(model))
    assert (found["QLinearMatMul"], found["DynamicQuantizeLSTM"]) == (2, 1)
    (kernel,) = (item for item in model.graph.nodes if item.op == "DynamicQuantizeLSTM")
    assert kernel.inputs[0].inputs[0].op == "DequantizeLinear"
    assert output_error(source, model, x) < 1e-2


def test_an_lstm_in_a_body_needs_no_ranges_either() -> None:
    inner = recurrent_net()
    layer = inner.graph.node[0]
    layer.output[0] = "t"
    branch = onnx.helper.make_graph(
        [layer], "then", [], [onnx.helper.make_tensor_value_info("t", 1, None)]
    )
    shape = np.array([7, 1, 3, 16], np.int64)
    filled = onnx.helper.make_node("ConstantOfShape", ["shape"], ["e"])
    other = onnx.helper.make_graph(
        [filled], "else", [], [onnx.helper.make_tensor_value_info("e", 1, None)]
    )
    nodes = [
        node("ReduceMax", ["x"], "m", keepdims=0),
        node("Less", ["m", "limit"], "flag"),
        node("If", ["flag"], "y", then_branch=branch, else_branch=other),
    ]
    weights = {t.name: numpy_helper.to_array(t) for t in inner.graph.initializer}
    more = {"shape": shape, "limit": np.array(99, np.float32)}
    source, x = net(nodes, {**weights, **more}, SHAPE), normal(*SHAPE, seed=9)
    model, report = quantize(source, x=x)
    assert "LSTM became" in said(report, "LSTM")
    assert output_error(source, model, x) < 1e-2


def test_a_gru_is_declined_with_the_reason() -> None:
    x = normal(*SHAPE, seed=9)
    _, report = quantize(recurrent_net(op="GRU"), x=x)
    assert "no integer kernel for GRU" in why_of(report)["y"]


# ------------------------------------------------------------------- edges


def test_the_result_is_the_same_twice() -> None:
    first, _ = quantize(residual())
    second, _ = quantize(residual())
    assert first.to_bytes() == second.to_bytes()


def test_a_model_without_any_kernel_is_left_alone() -> None:
    source = net([node("Tanh", ["x"], "y")], {}, MAP)
    model, report = quantize(source)
    assert report.changes == ()
    assert "no operator can become" in why_of(report)["g"]
    assert ops(model) == {"Tanh": 1}


def test_targets_are_the_operators_that_only_can_name() -> None:
    model = Model.load(residual())
    infer_shapes(model)
    assert QuantizeInt8().targets(model.graph)[:2] == ("a", "c")


# ------------------------------------------------------------------- ranges of run time


def blocks() -> onnx.ModelProto:
    """Two residual blocks, and a LayerNormalization that gives every input the same weight."""
    weights = {"zero": np.zeros(16, np.float32), "one": np.ones(16, np.float32)}
    nodes, last = [], "x"
    for seed, block in enumerate("ab"):
        weights[f"{block}_v"] = normal(16, 24, seed=seed, scale=0.2)
        weights[f"{block}_w"] = normal(24, 16, seed=9 + seed, scale=0.2)
        nodes += [
            node("MatMul", [last, f"{block}_v"], f"{block}_p"),
            node("Relu", [f"{block}_p"], f"{block}_r"),
            node("MatMul", [f"{block}_r", f"{block}_w"], f"{block}_q"),
            node("Add", [f"{block}_q", last], f"{block}_y"),
        ]
        last = f"{block}_y"
    nodes.append(node("LayerNormalization", [last, "one", "zero"], "y", axis=-1))
    return net(nodes, weights, ["N", "T", 16])


def tokens() -> list[dict[str, np.ndarray]]:
    """Inputs of different lengths and sizes, of which one channel is larger than the others."""
    found = []
    for number, size in enumerate(np.geomspace(0.1, 10, 20)):
        x = size * normal(1, 4 + number % 3, 16, seed=number)
        x[..., 3] *= 8
        found.append({"x": x.astype(np.float32)})
    return found


TOKENS = tokens()
DYNAMIC = "quantize-int8:placement=all:activation-ranges=dynamic"


def distance_of(model: Model) -> float:
    """‖ŷ − y‖ / ‖y‖ of the blocks on integers."""
    source = Model.load(blocks())
    (found,) = runs(TOKENS).distances(source, [model])
    return found.relative_error


def test_products_find_their_ranges_at_run_time_where_ranges_from_samples_lose_more() -> None:
    model, report = quantize(blocks(), x=TOKENS)
    assert ops(model)["MatMulInteger"] == 4
    assert not {"QuantizeLinear", "MatMul"} & set(ops(model))
    assert said(report, "found at run time")
    text = "quantize-int8:placement=all:activation-ranges=static"
    static, _ = quantize(blocks(), text, x=TOKENS)
    assert distance_of(model) < distance_of(static) / 2


@pytest.mark.parametrize(
    ("inner", "width", "products"), [("Softmax", 24, 1), ("Softmax", 2, 0), ("Sigmoid", 24, 0)]
)
def test_where_products_of_a_transformer_are_most_of_its_work_they_need_not_gain_much(
    inner: str, width: int, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(range_trial, "_CLEARLY", 0.0)  # nothing gains as much as others have to
    monkeypatch.setattr(range_trial, "_NEARER_AT_ALL", np.inf)
    nodes = [
        node("Transpose", ["x"], "t", perm=[0, 2, 1]),
        node("MatMul", ["x", "t"], "s"),
        node(inner, ["s"], "p"),
        node("MatMul", ["p", "x"], "c"),
        node("MatMul", ["c", "w"], "y"),
    ]
    source = net(nodes, {"w": normal(8, width)}, ["N", 4, 8])
    model, _ = quantize(source, x=samples(20, 4, 8))
    assert ops(model)["MatMulInteger"] == products


def test_a_convolutional_net_keeps_ranges_from_samples() -> None:
    model, _ = quantize(residual())
    assert "DynamicQuantizeLinear" not in ops(model)


def test_ranges_and_alpha_that_were_found_are_spelled_and_repeat_the_bytes() -> None:
    source = blocks()
    stopwatch = ScriptedStopwatch({("MatMul", False): 3.0})
    model, report = quantize(source, "quantize-int8", x=TOKENS, stopwatch=stopwatch)
    again = report.resolved
    assert again is not None
    assert "activation-ranges=dynamic" in again
    assert "alpha-of=" in again
    repeated, _ = quantize(source, again, x=TOKENS)
    assert repeated.to_bytes() == model.to_bytes()


def test_a_product_that_is_slower_on_integers_stays_float() -> None:
    times = {("MatMul", False): 1.0, ("MatMulInteger", False): 3.0}
    _, report = quantize(
        blocks(), "quantize-int8", x=TOKENS, stopwatch=ScriptedStopwatch(times, 0.5)
    )
    assert not report.changes
    assert "nothing that was tried is faster" in " ".join(why_of(report).values())


@pytest.mark.parametrize(("ranges", "rounding"), [("dynamic", "nearest"), ("static", "feedback")])
def test_weights_of_products_with_ranges_of_run_time_are_rounded_to_nearest(
    ranges: str, rounding: str
) -> None:
    text = f"quantize-int8:placement=all:activation-ranges={ranges}"
    found = {
        other: quantize(blocks(), f"{text}:rounding={other}", x=TOKENS)[0].to_bytes()
        for other in ("auto", "nearest", "feedback")
    }
    assert found["nearest"] != found["feedback"]
    assert found["auto"] == found[rounding]


@pytest.mark.parametrize("masked", [-1e4, float(np.finfo(np.float32).min), -np.inf])
def test_masked_positions_take_no_steps_from_scores(masked: float) -> None:
    places = np.arange(6)
    mask = np.where(places[:, None] >= places, 0, masked).astype(np.float32)
    nodes = [
        node("MatMul", ["x", "q"], "a"),
        node("Transpose", ["x"], "t", perm=[0, 2, 1]),
        node("MatMul", ["a", "t"], "s"),
        node("Add", ["s", "m"], "z"),
        node("Softmax", ["z"], "p"),
        node("MatMul", ["p", "x"], "y"),
    ]
    source = net(nodes, {"q": normal(8, 8, scale=0.4), "m": mask}, ["N", 6, 8])
    x = samples(40, 6, 8)
    text = "quantize-int8:placement=all:activation-ranges=static"
    model, _ = quantize(source, text, x=x)
    assert {"QLinearAdd", "QLinearSoftmax"} <= set(kernels(model))
    assert output_error(source, model, x) < 3e-3


def test_smoothing_can_be_left_out() -> None:
    model, report = quantize(blocks(), f"{DYNAMIC}:smooth=false", x=TOKENS)
    assert ops(model)["MatMulInteger"] == 4
    assert not any("smoothed" in change.what for change in report.changes)


def test_products_go_back_to_float_until_the_error_holds_and_are_smoothed_without_them() -> None:
    model, report = quantize(blocks(), f"{DYNAMIC}:max-error=0.006", x=TOKENS)
    assert 0 < ops(model)["MatMulInteger"] < 4
    assert any("back to float" in why for why in why_of(report).values())
    assert distance_of(model) <= 0.006

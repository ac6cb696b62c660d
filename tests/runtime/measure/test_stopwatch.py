from __future__ import annotations

import numpy as np
import onnx
import pytest
from layer_nets import net, node, normal

from onnxslim.analysis.layer_models import LayerOp, count_macs, count_weights, small_model
from onnxslim.api import compress
from onnxslim.io.model import Model
from onnxslim.pipeline.passes import Context, Pass
from onnxslim.records import PassResult
from onnxslim.report import BUSY, Latency
from onnxslim.runtime.measure import stopwatch as module
from onnxslim.runtime.measure.latency import RunTimes
from onnxslim.runtime.measure.profile import profile_model
from onnxslim.runtime.measure.stopwatch import SessionStopwatch
from onnxslim.runtime.session import open_session
from support import parse

QUICK = 0.01
PADDED = {"pads": [1] * 4}


def a_conv() -> onnx.ModelProto:
    return small_model((1, 4, 8, 8), [LayerOp("Conv", ("x", (4, 4, 3, 3), (4,)), "y", PADDED)])


def gemm(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], dtype: type = np.float32
) -> onnx.ModelProto:
    return small_model(x_shape, [LayerOp("Gemm", ("x", w_shape), "y")], dtype=np.dtype(dtype))


A = a_conv()
B = small_model(
    (1, 4, 8, 8),
    [
        LayerOp("Conv", ("x", (2, 4, 3, 3)), "h", PADDED),
        LayerOp("Conv", ("h", (4, 2, 1, 1), (4,)), "y"),
    ],
)


def clock(**feeds: np.ndarray) -> SessionStopwatch:
    return SessionStopwatch(feeds, budget_s=QUICK, threads=1)


# ------------------------------------------------------------------- small models


def test_small_models_check_and_are_small_whatever_their_weights() -> None:
    for model in (A, B, gemm((1, 4096), (4096, 4096))):
        onnx.checker.check_model(onnx.shape_inference.infer_shapes(model), full_check=True)
        assert len(model.SerializeToString()) < 1000
    assert count_macs(A) == 4 * 4 * 9 * 64
    assert count_macs(gemm((2, 30), (30, 20))) == 2 * 30 * 20


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_operators_of_equal_shapes_all_run(dtype: type) -> None:
    terms = [LayerOp("Conv", ("x", (4, 4, 3, 3)), f"t{number}") for number in range(9)]
    model = small_model(
        (1, 4, 8, 8),
        [*terms, LayerOp("Sum", tuple(f"t{number}" for number in range(9)), "y")],
        dtype=np.dtype(dtype),
    )
    values = {"x": np.ones((1, 4, 8, 8), dtype)}
    with open_session(model.SerializeToString(), threads=1) as session:
        (y,) = session.run(values).values()
    profile = profile_model(Model.load(model), values, threads=1)
    assert sum("Conv" in kernel.operator for kernel in profile) == 9  # equal weights would give one
    assert np.isfinite(y).all()


def test_equal_layers_are_equal_bytes() -> None:
    assert a_conv().SerializeToString(deterministic=True) == A.SerializeToString(deterministic=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_models_run_in_the_type_of_the_weights(dtype: type) -> None:
    model = gemm((1, 3), (3, 2), dtype)
    with open_session(model.SerializeToString()) as session:
        (y,) = session.run({"x": np.ones((1, 3), dtype)}).values()
    assert y.dtype == dtype
    np.testing.assert_allclose(y, 0.03, rtol=1e-3)


def test_weights_are_the_shapes_among_the_inputs() -> None:
    op = LayerOp("ConvTranspose", ("x", (4, 3, 2, 2), (6,)), "y", {"group": 2})
    assert op.weights == ((4, 3, 2, 2), (6,))
    assert count_weights([op]) == 54
    assert count_weights([LayerOp("Relu", ("x",), "y")]) == 0


# ------------------------------------------------------------------- shapes


def test_shapes_are_those_of_the_inputs_that_latency_is_measured_on() -> None:
    nodes = [node("Conv", ["x", "w"], "h", pads=[1] * 4), node("GlobalMaxPool", ["h"], "y")]
    model = Model.load(net(nodes, {"w": normal(5, 3, 3, 3)}, ["N", 3, "H", "W"]))
    before = model.to_bytes()
    found = clock(x=np.zeros((2, 3, 7, 9), np.float32)).shapes(model)
    assert found == {"x": (2, 3, 7, 9), "w": (5, 3, 3, 3), "h": (2, 5, 7, 9), "y": (2, 5, 1, 1)}
    assert model.to_bytes() == before


def test_a_shape_that_depends_on_values_is_observed() -> None:
    model = Model.load(
        parse(
            """<opset_import: ["" : 17]>
            agraph (float[n] x) => (int64[a, b] y) { z = NonZero (x)  y = Identity (z) }"""
        )
    )
    found = clock(x=np.array([0, 1, 2, 0, 3], np.float32)).shapes(model)
    assert found["z"] == found["y"] == (1, 3)


def test_what_has_no_shape_is_left_out() -> None:
    model = Model.load(
        parse(
            """<opset_import: ["" : 17]>
            agraph (float[n] x) => (float[m] y) {
                s = SequenceConstruct (x, x)
                i = Constant <value_int = 0> ()
                y = SequenceAt (s, i)
            }"""
        )
    )
    found = clock(x=np.zeros(4, np.float32)).shapes(model)
    assert "s" not in found
    assert found["y"] == (4,)


def test_a_branch_that_is_never_taken_need_not_fit_the_sizes() -> None:
    model = Model.load(
        parse(
            """<opset_import: ["" : 17]>
            agraph (float[n, 4] x) => (float y) <float limit = {1000000.0}> {
                m = ReduceMax <keepdims = 0> (x)
                c = Greater (m, limit)
                b = If (c) <
                    then_branch = one () => (float[4] t) {
                        axes = Constant <value_ints = [0]> ()
                        t = Squeeze (x, axes)
                    },
                    else_branch = many () => (float[n, 4] e) { e = Identity (x) }
                >
                y = ReduceMax <keepdims = 0> (b)
            }"""
        )
    )
    found = clock(x=np.zeros((2, 4), np.float32)).shapes(model)
    assert found["b"] == (2, 4)


# ------------------------------------------------------------------- times


def test_latencies_are_positive_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = clock()
    first = watch.milliseconds([A, B, A])
    assert all(isinstance(item, Latency) and item.median > 0 for item in first)
    assert first[0] == first[2]
    monkeypatch.setattr(module, "open_session", lambda *a, **k: pytest.fail("timed again"))
    assert watch.milliseconds([B, A]) == (first[1], first[0])


def test_comparisons_are_in_turn_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = clock()
    pairs = watch.compare(A, [B, A])
    assert all(pair.low <= pair.ratio <= pair.high for pair in pairs)
    monkeypatch.setattr(module, "open_session", lambda *a, **k: pytest.fail("timed again"))
    assert watch.compare(A, [A, B]) == (pairs[1], pairs[0])


def test_more_models_than_sessions_at_once_are_timed_in_parts() -> None:
    models = [gemm((1, 4), (4, n)) for n in range(1, 9)]
    watch = clock()
    assert len(watch.milliseconds(models)) == 8
    assert len(watch.compare(A, models)) == 8


def test_a_difference_that_noise_hides_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    noisy = np.array([1.0, 1.0, 3.0, 3.0, 3.0, 1.0, 3.0, 1.0, 3.0])

    def times(keys: list[bytes]) -> RunTimes:
        asked.append(len(keys))
        if len(asked) == 1:
            return RunTimes(*[np.stack([noisy * 1.4, noisy[::-1], np.full(9, 9.0)])] * 2)
        return RunTimes(*[np.stack([np.full(40, 1.4), np.full(40, 1.0)])[: len(keys)]] * 2)

    watch = clock()
    monkeypatch.setattr(watch, "_times", times)
    faster, slower = watch.compare(A, [B, gemm((1, 4), (4, 4))])
    assert asked == [3, 2]
    assert faster.is_faster
    assert slower.is_slower


def test_whole_models_are_timed_on_the_real_inputs() -> None:
    model = Model.load(net([node("MatMul", ["x", "w"], "y")], {"w": normal(4, 4)}, ["N", 4]))
    pair = clock(x=np.zeros((3, 4), np.float32)).pair(model, model)
    assert pair.before.runs == pair.after.runs > 0


def test_whole_models_timed_at_once_share_their_rounds() -> None:
    model = Model.load(net([node("MatMul", ["x", "w"], "y")], {"w": normal(4, 4)}, ["N", 4]))
    watch = clock(x=np.zeros((3, 4), np.float32))
    first, second = watch.pairs(model, [model, model])
    # each pair is told by the clock that it needs: see `RunTimes.ms`
    if (first.waiting > BUSY) == (second.waiting > BUSY):
        assert first.before.median == second.before.median
    assert first.before.runs == first.after.runs == second.after.runs


def test_a_small_model_must_have_a_static_input() -> None:
    model = gemm((1, 4), (4, 4))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    with pytest.raises(ValueError, match="not fixed sizes"):
        clock().milliseconds([model])


# ------------------------------------------------------------------- in a run


@pytest.mark.parametrize("measure", [False, True])
def test_passes_get_a_stopwatch_where_latency_is_measured(
    measure: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxslim.passes.eliminate_identity import EliminateIdentity

    seen: list[Context] = []

    def run(self: Pass, graph: object, context: Context) -> PassResult:
        seen.append(context)
        return PassResult()

    monkeypatch.setattr(EliminateIdentity, "run", run)
    source = net([node("MatMul", ["x", "w"], "y")], {"w": normal(4, 4)}, ["N", 4])
    compress(source, passes="eliminate-identity", measure=measure)
    (context,) = seen
    assert (context.stopwatch is not None) is measure
    if context.stopwatch is not None and context.model is not None:
        assert context.stopwatch.shapes(context.model)["y"] == (1, 4)

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_stopwatch import FakeStopwatch
from layer_nets import (
    FORCE,
    REPRODUCERS,
    Given,
    net,
    node,
    normal,
    output_error,
    rewritten,
    runs,
    samples,
    weights_of,
    whats,
    whys,
)

from onnxslim import cli
from onnxslim.analysis.layers import bias_of, weight_layers
from onnxslim.channels.criteria import CRITERIA
from onnxslim.errors import NotApplicable, UsageError
from onnxslim.io.check import check_model, signature
from onnxslim.io.model import Model
from onnxslim.passes.prune_channels import PruneChannels
from onnxslim.pipeline.grammar import parse_pipeline
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context
from onnxslim.pipeline.stats import measure_stats
from onnxslim.records import Fidelity
from onnxslim.report import LatencyPair, StepReport
from onnxslim.runtime.evaluate import evaluate
from onnxslim.services.stopwatch import Stopwatch
from support import CONTEXT, parse

pytestmark = pytest.mark.slow

X = samples(120, 3, 8, 8, rank=12)
HELD = samples(200, 3, 8, 8, rank=12)[120:]
TOKENS = samples(60, 5, 8, rank=12)


def spec(**options: object) -> str:
    return str(PruneChannels(**options))  # type: ignore[arg-type]


def he(*shape: int, seed: int) -> np.ndarray:
    return normal(*shape, seed=seed, scale=(2 / np.prod(shape[1:])) ** 0.5)


def conv_net(*, bias: bool = True, wide: int = 16) -> onnx.ModelProto:
    """Conv, Relu, Conv, Relu, Conv, pooled; a residual sum in the middle."""
    constants = {
        "w0": he(wide, 3, 3, 3, seed=1),
        "w1": he(12, wide, 3, 3, seed=2),
        "w2": he(wide, 12, 3, 3, seed=3),
        "w3": he(6, wide, 1, 1, seed=4),
    }
    sizes = {"0": wide, "1": 12, "2": wide, "3": 6}
    if bias:
        constants |= {f"b{n}": normal(size, seed=9, scale=0.1) for n, size in sizes.items()}

    def conv(source: str, number: str, result: str, **attrs: object) -> onnx.NodeProto:
        inputs = [source, f"w{number}", *([f"b{number}"] if bias else [])]
        return node("Conv", inputs, result, **attrs)

    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        conv("x", "0", "a", **same),
        node("Relu", ["a"], "ar"),
        conv("ar", "1", "b", **same),
        node("Relu", ["b"], "br"),
        conv("br", "2", "c", **same),
        node("Add", ["c", "ar"], "s"),
        node("Relu", ["s"], "sr"),
        conv("sr", "3", "d"),
        node("GlobalAveragePool", ["d"], "p"),
        node("Flatten", ["p"], "y"),
    ]
    return net(nodes, constants, ["N", 3, 8, 8])


def plain_net(*, units: int = 16, bias: bool = True) -> onnx.ModelProto:
    """Conv, Relu, Conv: one group and one reader."""
    constants = {"w": he(units, 3, 3, 3, seed=1), "v": he(6, units, 3, 3, seed=2)}
    if bias:
        constants["b"] = normal(6, seed=3)
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("Relu", ["a"], "r"),
        node("Conv", ["r", "v", *(["b"] if bias else [])], "y"),
    ]
    return net(nodes, constants, ["N", 3, 8, 8])


def attention_net(*, heads: int = 4, width: int = 4) -> onnx.ModelProto:
    """Attention on (N, 5, 8) with biases added behind each product."""
    inner = heads * width
    constants: dict[str, np.ndarray] = {
        "q": normal(8, inner, seed=1, scale=0.3),
        "k": normal(8, inner, seed=2, scale=0.3),
        "v": normal(8, inner, seed=3, scale=0.5),
        "o": normal(inner, 8, seed=4, scale=0.5),
        "qb": normal(inner, seed=5),
        "kb": normal(inner, seed=6),
        "split": np.array([0, 5, heads, width]),
        "join": np.array([0, 5, inner]),
    }
    nodes = []
    for letter, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes.append(node("MatMul", ["x", letter], f"{letter}0"))
        made = f"{letter}0"
        if letter != "v":
            nodes.append(node("Add", [made, f"{letter}b"], f"{letter}1"))
            made = f"{letter}1"
        nodes.append(node("Reshape", [made, "split"], f"{letter}2"))
        nodes.append(node("Transpose", [f"{letter}2"], f"{letter}3", perm=perm))
    nodes += [
        node("MatMul", ["q3", "k3"], "scores"),
        node("Softmax", ["scores"], "shares", axis=-1),
        node("MatMul", ["shares", "v3"], "z"),
        node("Transpose", ["z"], "zt", perm=[0, 2, 1, 3]),
        node("Reshape", ["zt", "join"], "zr"),
        node("MatMul", ["zr", "o"], "y"),
    ]
    return net(nodes, constants, ["N", 5, 8])


def single_head_net() -> onnx.ModelProto:
    """Attention of one head: units of q·k have no layer that reads them."""
    constants = {
        "q": normal(8, 12, seed=1, scale=0.3),
        "k": normal(8, 12, seed=2, scale=0.3),
        "qb": normal(12, seed=5),
        "kb": normal(12, seed=6),
        "v": normal(8, 10, seed=3, scale=0.5),
        "o": normal(10, 8, seed=4, scale=0.5),
    }
    constants["q"][:, 3] *= 0.01
    constants["qb"][3] = 0
    nodes = [
        node("MatMul", ["x", "q"], "q0"),
        node("Add", ["q0", "qb"], "q1"),
        node("MatMul", ["x", "k"], "k0"),
        node("Add", ["k0", "kb"], "k1"),
        node("MatMul", ["x", "v"], "v0"),
        node("Transpose", ["k1"], "kt", perm=[0, 2, 1]),
        node("MatMul", ["q1", "kt"], "scores"),
        node("Softmax", ["scores"], "shares", axis=-1),
        node("MatMul", ["shares", "v0"], "z"),
        node("MatMul", ["z", "o"], "y"),
    ]
    return net(nodes, constants, ["N", 5, 8])


def pruned(
    source: onnx.ModelProto | Model,
    x: Given | None,
    stopwatch: Stopwatch | None = None,
    **options: object,
) -> tuple[Model, list[StepReport]]:
    """The model after the pass, as the manager runs it; kept in any case."""
    model = source if isinstance(source, Model) else Model.load(source)
    made = Context(
        evaluate=evaluate, calibration=None if x is None else runs(x), stopwatch=stopwatch
    )
    manager = PassManager.parse(spec(**options))
    result, reports = manager.run(model, made, policy=FORCE, reproducers=REPRODUCERS)
    check_model(result)
    assert signature(result) == signature(model)
    return result, reports


def channels_of(model: Model | onnx.ModelProto) -> dict[str, int]:
    """Outputs of each layer."""
    loaded = model if isinstance(model, Model) else Model.load(model)
    return {la.name: la.groups * la.rows for la in weight_layers(loaded.graph)[0]}


def share(source: onnx.ModelProto, model: Model, what: str) -> float:
    before, after = measure_stats(Model.load(source)), measure_stats(model)
    return float(getattr(after, what)) / float(getattr(before, what))


# ------------------------------------------------------------------- fires


# bn-scale needs BatchNormalization, fisher a trainer (see `tests/runtime/training/test_effects.py`)
@pytest.mark.parametrize("criterion", ["auto", *sorted(CRITERIA.keys() - {"bn-scale", "fisher"})])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_every_criterion_takes_half_of_the_channels(criterion: str, scope: str) -> None:
    source = conv_net()
    model, reports = pruned(source, X, ratio=0.5, criterion=criterion, scope=scope, align=1)
    left = channels_of(model)
    assert left["a"] == left["c"]
    assert left["d"] == 6
    assert left["a"] * 2 + left["b"] == pytest.approx(22, abs=2)
    if scope == "layer":
        assert left == {"a": 8, "b": 6, "c": 8, "d": 6}
    assert reports[0].fidelity is Fidelity.LOSSY


@pytest.mark.parametrize("data", [None, X], ids=["without data", "with data"])
def test_planted_channels_are_those_that_go(data: np.ndarray | None) -> None:
    source = plain_net()
    (w, v) = (onnx.numpy_helper.to_array(t).copy() for t in source.graph.initializer[:2])
    planted = [1, 4, 5, 11]
    w[planted] *= 1e-3
    v[:, planted] *= 1e-3
    for tensor, array in zip(source.graph.initializer, (w, v), strict=False):
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    model, _ = pruned(source, data, ratio=0.25, align=1)
    kept = np.delete(w, planted, axis=0)
    np.testing.assert_array_equal(weights_of(model)["a"][0], kept.reshape(12, -1))
    assert output_error(source, model, HELD) < 1e-3


def test_scales_of_batch_normalization_choose_channels() -> None:
    constants = {
        "w": he(8, 3, 3, 3, seed=1),
        "s": np.array([1, 2, 3, 0.1, 5, 0.2, 7, 8], np.float32),
        "z": np.zeros(8, np.float32),
        "m": normal(8),
        "o": np.ones(8, np.float32),
        "v": he(4, 8, 3, 3, seed=2),
    }
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("BatchNormalization", ["a", "s", "z", "m", "o"], "n"),
        node("Relu", ["n"], "r"),
        node("Conv", ["r", "v"], "y"),
    ]
    source = net(nodes, constants, ["N", 3, 8, 8])
    model, _ = pruned(source, None, ratio=0.25, criterion="bn-scale", align=1)
    kept = [0, 1, 2, 4, 6, 7]
    np.testing.assert_array_equal(weights_of(model)["a"][0], constants["w"][kept].reshape(6, -1))
    model, reports = pruned(plain_net(), None, ratio=0.25, criterion="bn-scale", align=1)
    assert not whats(reports)
    assert any("bn-scale cannot score `a`: no BatchNormalization" in why for why in whys(reports))


def test_the_report_says_what_is_left_and_what_the_refit_left_over() -> None:
    source = plain_net()
    _, reports = pruned(source, X, ratio=0.5, align=1)
    a, y = whats(reports)
    assert a == "kept 8 of 16 outputs"
    assert y.startswith("kept 8 of 16 inputs; refitted, relative output error ")


def test_the_error_in_the_report_is_that_of_the_output() -> None:
    source = plain_net()
    model, reports = pruned(source, X, ratio=0.5, align=1)
    said = float(whats(reports)[1].rpartition(" ")[2])
    ref, new = (outputs_of(m, X) for m in (source, model))
    centered = ref - ref.mean(axis=(0, 2, 3), keepdims=True)
    found = np.square(ref - new).sum() / np.square(centered).sum()
    assert said == pytest.approx(found, rel=0.06)


def outputs_of(model: Model | onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    from layer_nets import outputs

    return np.asarray(outputs(model, x)["y"], np.float64)


def test_without_data_the_report_says_what_that_costs() -> None:
    _, reports = pruned(plain_net(), None, ratio=0.5, align=1)
    assert any("no calibration samples" in why and "give --calib" in why for why in whys(reports))
    _, reports = pruned(plain_net(), X, ratio=0.5, align=1)
    assert not any("no calibration samples" in why for why in whys(reports))


def test_a_refit_beats_none_on_samples_held_back() -> None:
    source = conv_net()
    for criterion in ("obs", "l1"):
        errors = {}
        for reconstruct in (True, False):
            model, _ = pruned(
                source, X, ratio=0.5, criterion=criterion, reconstruct=reconstruct, align=1
            )
            errors[reconstruct] = output_error(source, model, HELD)
        assert errors[True] < 0.7 * errors[False]


def test_a_refit_keeps_the_mean_of_the_output() -> None:
    source = plain_net()
    model, _ = pruned(source, X, ratio=0.5, align=1)
    ref, new = (outputs_of(m, X).mean(axis=(0, 2, 3)) for m in (source, model))
    np.testing.assert_allclose(new, ref, atol=1e-4 * np.abs(ref).max())


def test_a_conv_without_a_bias_gets_one() -> None:
    source = plain_net(bias=False)
    model, _ = pruned(source, X, ratio=0.5, align=1)
    layers = {layer.name: layer for layer in weight_layers(model.graph)[0]}
    assert len(layers["y"].node.inputs) == 3
    assert np.abs(bias_of(layers["y"])).max() > 0
    ref, new = (outputs_of(m, X).mean(axis=(0, 2, 3)) for m in (source, model))
    np.testing.assert_allclose(new, ref, atol=1e-4 * np.abs(ref).max())


def test_several_steps_lead_to_the_same_number_of_channels() -> None:
    source = conv_net()
    once, _ = pruned(source, X, ratio=0.5, scope="layer", align=1)
    model, _ = pruned(source, X, ratio=0.5, scope="layer", align=1, steps=3)
    assert channels_of(model) == channels_of(once)
    assert output_error(source, model, HELD) < 1.5 * output_error(source, once, HELD)
    spread, _ = pruned(source, X, macs=0.5, align=1, steps=3)
    assert share(source, spread, "macs") <= 0.5


# ------------------------------------------------------------------- budgets


@pytest.mark.parametrize("data", [None, X], ids=["without data", "with data"])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("kind", ["macs", "bytes"])
@pytest.mark.parametrize("amount", [0.8, 0.5, 0.3])
def test_a_budget_is_met_and_hardly_more(
    kind: str, amount: float, scope: str, data: np.ndarray | None
) -> None:
    source = conv_net(wide=32)
    options = {kind if kind == "macs" else "bytes_": amount}
    model, _ = pruned(source, data, scope=scope, align=1, **options)
    what = "macs" if kind == "macs" else "file_bytes"
    assert 0.85 * amount < share(source, model, what) <= amount


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("amount", [0.8, 0.5, 0.3])
def test_a_budget_of_latency_is_met_as_measured(amount: float, scope: str) -> None:
    source = conv_net(wide=32)
    stopwatch = FakeStopwatch()
    model, reports = pruned(source, X, stopwatch, latency=amount, scope=scope, align=1)
    assert 0.85 * amount < share(source, model, "macs") <= amount
    assert str(reports[0].resolved).startswith("prune-channels:")


class SlowRest(FakeStopwatch):
    """A stopwatch of a machine where a part of every model's time is not in its layers."""

    def pair(self, before: Model, after: Model) -> LatencyPair:
        pair = super().pair(before, after)
        rest = 0.3 * pair.before.median
        ratio = (pair.before.median + rest) / (pair.after.median + rest)
        return replace(pair, ratio=ratio, low=ratio, high=ratio)


@pytest.mark.parametrize("amount", [0.9, 0.6, 0.4])
def test_what_is_not_in_the_layers_is_made_up_for(amount: float) -> None:
    source = conv_net(wide=32)
    model, _ = pruned(source, None, SlowRest(), latency=amount, align=1)
    measured = (share(source, model, "macs") + 0.3) / 1.3
    assert 0.9 * amount < measured <= amount


@pytest.mark.parametrize("options", [{"latency": 0.2}, {"macs": 0.001}, {"bytes_": 0.001}])
def test_a_budget_out_of_reach_is_told_and_nothing_is_done(options: dict[str, float]) -> None:
    source = conv_net()
    model, reports = pruned(source, X, SlowRest(), **options)
    assert model.to_bytes() == Model.load(source).to_bytes()
    assert any("is out of reach" in why and "ask for more" in why for why in whys(reports))


def test_a_plan_repeats_what_was_chosen_by_timing() -> None:
    source = conv_net(wide=32)
    for options in ({"latency": 0.5}, {"latency": 0.4, "steps": 2, "min_": 3, "align": 1}):
        timed, reports = pruned(source, X, FakeStopwatch(), **options)
        again = str(reports[0].resolved)
        (repeat,) = parse_pipeline(again).passes
        assert isinstance(repeat, PruneChannels)
        model, plain = rewritten(source, X, again)
        assert model.to_bytes() == timed.to_bytes()
        assert plain[0].resolved is None


def test_a_plan_of_ones_own_says_what_stays() -> None:
    source = conv_net()
    model, _ = pruned(source, None, plan=("b=5", "[a]=9"))
    assert channels_of(model) == {"a": 9, "b": 5, "c": 9, "d": 6}
    model, _ = pruned(source, None, plan=("c=7", "*=3"))  # any layer of a group names it
    assert channels_of(model) == {"a": 3, "b": 3, "c": 3, "d": 6}


# ------------------------------------------------------------------- align, min, only, skip


@pytest.mark.parametrize(("align", "left"), [(1, 29), (4, 28), (8, 32), (16, 32)])
def test_what_stays_is_a_multiple_of_what_was_asked_for(align: int, left: int) -> None:
    model, _ = pruned(plain_net(units=64), None, ratio=0.55, align=align)
    assert channels_of(model)["a"] == left


def test_a_machine_that_likes_multiples_is_asked_which() -> None:
    class Blocks(FakeStopwatch):
        """Convs take as long as with the next multiple of eight channels."""

        def milliseconds(self, models):  # type: ignore[no-untyped-def]
            found = []
            for model, time in zip(models, super().milliseconds(models), strict=True):
                rows, columns = (
                    model.graph.initializer[0].dims[:2]
                    if model.graph.initializer
                    else (
                        next(
                            [d.dim_value for d in info.type.tensor_type.shape.dim][:2]
                            for info in (*model.graph.input, *model.graph.value_info)
                        )
                    )
                )
                up = (-(-rows // 8) * 8 / rows) * (-(-columns // 8) * 8 / columns)
                found.append(replace(time, median=time.median * up))
            return tuple(found)

    source = net(
        [
            node("Conv", ["x", "u"], "h"),
            node("Conv", ["h", "w"], "a"),
            node("Conv", ["a", "v"], "y"),
        ],
        {
            "u": he(128, 3, 1, 1, seed=1),
            "w": he(128, 128, 3, 3, seed=2),
            "v": he(4, 128, 1, 1, seed=3),
        },
        ["N", 3, 8, 8],
    )
    model, reports = pruned(source, None, FakeStopwatch(), ratio=0.3)
    assert channels_of(model)["a"] == 90  # no multiple is better than another
    assert ":align=1" in str(reports[0].resolved)
    model, reports = pruned(source, None, Blocks(), ratio=0.3)
    assert channels_of(model)["a"] == 88
    assert ":align=8" in str(reports[0].resolved)
    model, reports = pruned(source, None, ratio=0.3)
    assert channels_of(model)["a"] == 96  # of 16, without a stopwatch
    assert not any("timing" in what for what in whats(reports))


@pytest.mark.parametrize("least", [1, 5, 12, 100])
def test_every_layer_keeps_its_least(least: int) -> None:
    model, _ = pruned(conv_net(), None, ratio=0.99, align=1, min_=least)
    assert channels_of(model) == {
        "a": max(1, min(16, least)),
        "b": max(1, min(12, least)),
        "c": max(1, min(16, least)),
        "d": 6,
    }


def test_only_and_skip_name_layers_of_groups() -> None:
    source = conv_net()
    for options in ({"only": ("b",)}, {"skip": ("a",)}, {"skip": ("[c]",)}):
        model, _ = pruned(source, X, ratio=0.5, align=1, **options)
        assert channels_of(model) == {"a": 16, "b": 6, "c": 16, "d": 6}
    _, reports = pruned(source, X, ratio=0.5, align=1, skip=("c",))
    assert "`c` is left alone, as `skip` says" in whys(reports)


def test_a_layer_that_is_left_out_keeps_its_weights() -> None:
    source = conv_net()
    model, _ = pruned(source, X, ratio=0.5, align=1, only=("b",))
    before, after = weights_of(source), weights_of(model)
    np.testing.assert_array_equal(after["a"], before["a"])
    np.testing.assert_array_equal(after["d"], before["d"])


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"only": ("conv*",)}, "Option `only` of `prune-channels` names `conv.`"),
        ({"skip": ("aa",)}, "Option `skip` of `prune-channels` names `aa`, which no layer"),
        ({"plan": ("q=3",)}, "Option `plan` of `prune-channels` names `q`"),
    ],
)
def test_a_pattern_that_matches_nothing_is_told(options: dict[str, object], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        pruned(conv_net(), None, **options)


# ------------------------------------------------------------------- declines


def test_two_budgets_are_one_too_many() -> None:
    with pytest.raises(UsageError, match="one of ratio, macs, latency, bytes and plan; got macs"):
        PruneChannels(macs=0.5, bytes_=0.5)
    with pytest.raises(UsageError, match="got ratio and plan"):
        PruneChannels(ratio=0.5, plan=("a=3",))


@pytest.mark.parametrize(
    "criterion", [name for name, criterion in CRITERIA.items() if criterion.needs_data]
)
def test_a_criterion_that_needs_data_asks_for_them(criterion: str) -> None:
    purpose = PruneChannels(criterion=criterion).needs_calibration() or ""
    assert purpose.startswith(f"for criterion {criterion}; ")
    assert PruneChannels().needs_calibration() is None


def test_a_budget_of_latency_needs_a_clock() -> None:
    with pytest.raises(NotApplicable, match="leave out --no-latency"):
        PruneChannels(latency=0.5).requires(Model.load(plain_net()).graph, CONTEXT)


def test_what_must_stay_is_said_with_the_reason() -> None:
    source = net([node("Conv", ["x", "w"], "y")], {"w": he(8, 3, 3, 3, seed=1)}, ["N", 3, 8, 8])
    model, reports = pruned(source, X)
    assert model.to_bytes() == Model.load(source).to_bytes()
    assert "8 of 8 channels must stay: `y` is an output of the model" in whys(reports)


def test_a_group_too_small_for_its_share_is_left_alone() -> None:
    source = plain_net(units=4)
    _, reports = pruned(source, None, ratio=0.1, align=1)
    assert not whats(reports)
    assert "no multiple of channels is near enough to the budget" in whys(reports)


def test_sizes_that_are_not_known_are_no_base_for_multiply_accumulates() -> None:
    source = plain_net()
    for dim in source.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "S"
    del source.graph.value_info[:]
    model, reports = pruned(source, None, macs=0.5)
    assert model.to_bytes() == Model.load(source).to_bytes()
    assert any("give --input-shape" in why for why in whys(reports))


def test_weights_that_are_codes_are_declined() -> None:
    source = plain_net()
    model, _ = rewritten(source, None, "cluster-weights:bits=4:only=y")
    _, reports = pruned(model, None, ratio=0.5, align=1)
    assert not whats(reports)
    assert any("codebook" in why for why in whys(reports))


# ------------------------------------------------------------------- edges


def test_a_second_run_takes_its_share_of_what_is_left() -> None:
    source = conv_net()
    both, _ = rewritten(source, X, *[spec(ratio=0.5, scope="layer", align=1)] * 2)
    assert channels_of(both) == {"a": 4, "b": 3, "c": 4, "d": 6}


def test_the_same_is_chosen_every_time() -> None:
    for options in ({"ratio": 0.5}, {"macs": 0.4, "criterion": "random"}, {"bytes_": 0.5}):
        models = [pruned(conv_net(), X, **options)[0].to_bytes() for _ in range(2)]
        assert models[0] == models[1]


@pytest.mark.parametrize("data", [None, X], ids=["without data", "with data"])
def test_depthwise_layers_follow_their_channels(data: np.ndarray | None) -> None:
    constants = {
        "w": he(16, 3, 1, 1, seed=1),
        "d": he(16, 1, 3, 3, seed=2),
        "v": he(4, 16, 1, 1, seed=3),
    }
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("Conv", ["a", "d"], "b", group=16),
        node("Relu", ["b"], "r"),
        node("Conv", ["r", "v"], "y"),
    ]
    source = net(nodes, constants, ["N", 3, 8, 8])
    model, _ = pruned(source, data, macs=0.5, align=1)
    assert share(source, model, "macs") <= 0.5
    depthwise = next(n for n in model.graph.nodes if n.outputs[0].name == "b")
    assert depthwise.attrs["group"] == channels_of(model)["a"] < 10


@pytest.mark.parametrize("data", [None, X], ids=["without data", "with data"])
@pytest.mark.parametrize("budget", [{"ratio": 0.5}, {"macs": 0.5}, {"bytes_": 0.6}])
def test_groups_of_a_grouped_conv_lose_equally_many(
    data: np.ndarray | None, budget: dict[str, float]
) -> None:
    constants = {
        "w": he(24, 3, 1, 1, seed=1),
        "u": he(24, 12, 3, 3, seed=2),
        "v": he(4, 24, 1, 1, seed=3),
    }
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("Conv", ["a", "u"], "b", group=2),
        node("Relu", ["b"], "r"),
        node("Conv", ["r", "v"], "y"),
    ]
    source = net(nodes, constants, ["N", 3, 8, 8])
    model, _ = pruned(source, data, **budget)
    assert channels_of(model)["a"] % 2 == channels_of(model)["b"] % 2 == 0
    if "macs" in budget:
        assert share(source, model, "macs") <= 0.5


def test_heads_of_attention_leave_as_a_whole() -> None:
    source = attention_net()
    model, _ = pruned(source, TOKENS, ratio=0.5, scope="layer", align=1)
    assert channels_of(model) == {"q0": 8, "k0": 8, "v0": 8, "y": 8}
    plain, _ = pruned(source, TOKENS, ratio=0.5, scope="layer", align=1, reconstruct=False)
    assert output_error(source, model, TOKENS) < output_error(source, plain, TOKENS)


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"ratio": 0.5, "steps": 2}, {"macs": 0.7}])
def test_units_without_a_reader_are_judged_by_their_weights(options: dict[str, object]) -> None:
    source = single_head_net()
    model, _ = pruned(source, TOKENS, align=1, **options)
    left = channels_of(model)
    assert left["q0"] == left["k0"] > 1  # no layer saw them, and yet they are not for nothing
    plain, _ = pruned(source, TOKENS, align=1, reconstruct=False, **options)
    assert output_error(source, model, TOKENS) <= 1.1 * output_error(source, plain, TOKENS)


def test_layers_further_on_make_up_for_units_that_no_layer_reads() -> None:
    source = single_head_net()
    model, reports = pruned(source, TOKENS, align=1, plan=("q0=4",))
    assert channels_of(model) == {"q0": 4, "k0": 4, "v0": 10, "y": 8}
    assert any(what.startswith("refitted, relative output error") for what in whats(reports))
    plain, _ = pruned(source, TOKENS, align=1, plan=("q0=4",), reconstruct=False)
    assert output_error(source, model, TOKENS) < output_error(source, plain, TOKENS)


def test_one_weight_of_two_layers_stays_one() -> None:
    constants = {
        "w": he(12, 3, 3, 3, seed=1),
        "u": he(12, 12, 3, 3, seed=2),
        "v": he(4, 12, 1, 1, seed=3),
    }
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", ["x", "w"], "a", **same),
        node("Relu", ["a"], "ar"),
        node("Conv", ["ar", "u"], "b", **same),
        node("Relu", ["b"], "br"),
        node("Conv", ["br", "u"], "c", **same),
        node("Conv", ["c", "v"], "y"),
    ]
    source = net(nodes, constants, ["N", 3, 8, 8])
    for data in (None, X):
        model, _ = pruned(source, data, ratio=0.5, align=1)
        layers = {layer.name: layer for layer in weight_layers(model.graph)[0]}
        assert layers["b"].holder is layers["c"].holder
        assert channels_of(model) == {"a": 6, "b": 6, "c": 6, "y": 4}


def test_half_precision_stays_half_precision() -> None:
    half = onnx.TensorProto.FLOAT16
    constants = {
        "w": normal(3, 12, seed=1).astype(np.float16),
        "v": normal(12, 4, seed=2).astype(np.float16),
    }
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node("Relu", ["a"], "r"),
        node("MatMul", ["r", "v"], "y"),
    ]
    source = net(nodes, constants, ["N", 3], dtype=half)
    model, _ = pruned(source, samples(80, 3).astype(np.float16), ratio=0.5, align=1)
    assert channels_of(model) == {"a": 6, "y": 4}
    assert {w.dtype for w in weights_of(model).values()} == {np.dtype(np.float16)}


def test_bodies_of_if_are_left_alone() -> None:
    source = parse("""
    <opset_import: ["" : 17]>
    g (float[1,2] x, bool c) => (float[1,1] y)
    <float[2,4] w = {1,2,3,4,5,6,7,8}, float[4,1] v = {1,2,3,4}> {
      h = MatMul (x, w)
      y = If (c) <
        then_branch = t () => (float[1,1] p) { p = MatMul (h, v) },
        else_branch = f () => (float[1,1] q) { q = MatMul (h, v) }
      >
    }""")
    _, reports = pruned(source, None, ratio=0.5, align=1)
    assert not whats(reports)
    assert any("it is used in a body of `y` (If)" in why for why in whys(reports))


def test_samples_that_no_layer_can_be_measured_on_leave_it_to_the_weights() -> None:
    source = plain_net()
    x = X.copy()
    x[0, 0, 0, 0] = np.inf
    model, _ = pruned(source, x, ratio=0.5, align=1)
    assert channels_of(model) == {"a": 8, "y": 6}
    assert np.isfinite(weights_of(model)["y"]).all()


def test_the_command_takes_samples_from_a_file(tmp_path: Path) -> None:
    onnx.save(conv_net(), tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=X)
    arguments = ["--passes", spec(ratio=0.5, align=1), "--no-latency", "--force", "-q"]
    paths = [str(tmp_path / name) for name in ("m.onnx", "o.onnx", "c.npz")]
    assert cli.run([*paths[:2], *arguments, "--calib", paths[2]]) == 0
    left = channels_of(onnx.load(paths[1]))
    assert left["a"] * 2 + left["b"] == pytest.approx(22, abs=2)


def test_a_normalization_over_neighbours_is_told() -> None:
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("LRN", ["a"], "b", size=3),
        node("Conv", ["b", "v"], "y"),
    ]
    weights = {"w": he(8, 3, 1, 1, seed=1), "v": he(4, 8, 1, 1, seed=2)}
    model, reports = pruned(net(nodes, weights, ["N", 3, 8, 8]), X, ratio=0.5, align=1)
    assert channels_of(model)["a"] == 4
    assert any("normalizes over other neighbours now" in what for what in whats(reports))

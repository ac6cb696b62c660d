from __future__ import annotations

import numpy as np
import onnx
import pytest
from fake_stopwatch import FakeStopwatch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_nets import net, node, normal, output_error, outputs, samples, whats
from split_nets import ops, split, why_of

from onnxslim.errors import UsageError
from onnxslim.io.model import Model
from onnxslim.passes.factorize_conv import FactorizeConv
from onnxslim.records import Fidelity
from onnxslim.solvers.decompositions.base import KernelShape
from onnxslim.solvers.decompositions.methods import METHODS
from support import parse

pytestmark = pytest.mark.slow

EACH = ("channel", "spatial", "tucker2", "cp", "flattened", "depthwise")
SMALL = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
X = samples(60, 6, 9, 9)


def spec(**options: object) -> str:
    return str(FactorizeConv(**options))  # type: ignore[arg-type]


def kernel_of(method: str, shape: KernelShape, ranks: tuple[int, ...], seed: int = 3) -> np.ndarray:
    """A float32 kernel that a method makes at these ranks, (rows, channels, kernel...)."""
    rng = np.random.default_rng(seed)
    sizes = METHODS[method].factor_shapes(shape, ranks)
    factors = tuple(rng.standard_normal(s) / s[-1] ** 0.5 for s in sizes)
    made = METHODS[method].product(shape, factors)
    return made.reshape(shape.rows, shape.channels, *shape.kernel).astype(np.float32)


def conv(w: np.ndarray, *, bias: bool = True, op: str = "Conv", **attrs: object) -> onnx.ModelProto:
    groups = int(str(attrs.get("group", 1)))
    outs = w.shape[1] * groups if op == "ConvTranspose" else w.shape[0]
    ins = w.shape[0] if op == "ConvTranspose" else w.shape[1] * groups
    weights = {"w": w, **({"b": normal(outs)} if bias else {})}
    sizes = [9] * (w.ndim - 2)
    return net([node(op, ["x", *weights], "y", **attrs)], weights, ["N", ins, *sizes])


def full_plan(method: str, shape: KernelShape) -> str:
    used = "channel" if shape.taps == 1 else method
    ranks = "x".join(map(str, METHODS[used].exact_ranks(shape)))
    return f"y={used}/{ranks}"


def assert_same(source: onnx.ModelProto, model: Model, x: np.ndarray) -> None:
    ref, new = outputs(source, x)["y"], outputs(model, x)["y"]
    assert new.shape == ref.shape
    np.testing.assert_allclose(new, ref, atol=1e-6 + 1e-4 * float(np.ptp(ref)))


# ------------------------------------------------------------------- exactness


@st.composite
def layers(draw: st.DrawFn, *, transposed: bool) -> tuple[onnx.ModelProto, KernelShape]:
    """A layer with any attributes, and the shape of one of its groups."""
    ndim = draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(ndim))
    group = draw(st.sampled_from([1, 1, 2]))
    rows, channels = draw(st.integers(2, 4)), draw(st.integers(2, 3))
    attrs: dict[str, object] = {"group": group}
    if draw(st.booleans()):
        attrs["strides"] = [draw(st.integers(1, 2)) for _ in kernel]
    padding = draw(st.sampled_from(["none", "pads", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if draw(st.booleans()) and not padding.startswith("SAME"):  # onnxruntime refuses both
        attrs["dilations"] = [draw(st.integers(1, 2)) for _ in kernel]
    if padding == "pads":
        ends = [draw(st.integers(0, k - 1)) for k in kernel * 2]
        attrs["pads"] = ends
    elif padding == "VALID" or (padding.startswith("SAME") and not transposed):
        attrs["auto_pad"] = padding
    if transposed and "strides" in attrs and draw(st.booleans()):
        attrs["output_padding"] = [s - 1 for s in attrs["strides"]]  # type: ignore[attr-defined]
    first, second = (channels * group, rows) if transposed else (rows * group, channels)
    w = normal(first, second, *kernel, seed=draw(st.integers(0, 99)))
    op = "ConvTranspose" if transposed else "Conv"
    source = conv(w, bias=draw(st.booleans()), op=op, **attrs)
    return source, KernelShape(rows, channels, kernel)


@pytest.mark.parametrize("method", EACH)
@pytest.mark.parametrize("transposed", [False, True])
def test_at_full_rank_every_layer_returns_what_it_did(method: str, *, transposed: bool) -> None:
    @SMALL
    @given(layers(transposed=transposed), st.booleans())
    def check(made: tuple[onnx.ModelProto, KernelShape], data: bool) -> None:
        source, shape = made
        if method == "spatial" and sum(size > 1 for size in shape.kernel) < 2:
            return
        sizes = [d.dim_value for d in source.graph.input[0].type.tensor_type.shape.dim][1:]
        x = samples(30, *sizes)
        plan = full_plan(method, shape)
        model, reports = split(source, x if data else None, spec(method=method, plan=(plan,)))
        assert len(ops(model)) > 1, why_of(reports)
        assert_same(source, model, x[:3])

    check()


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("method", EACH)
def test_a_transposed_conv_that_keeps_sizes_does_so_in_each_part(method: str, mode: str) -> None:
    source = conv(normal(3, 4, 3, 3), op="ConvTranspose", strides=[2, 1], auto_pad=mode)
    plan = full_plan(method, KernelShape(4, 3, (3, 3)))
    model, _ = split(source, None, spec(method=method, plan=(plan,)))
    assert_same(source, model, samples(3, 3, 9, 9))


@pytest.mark.parametrize("method", ["channel", "tucker2", "depthwise"])
def test_an_output_shape_is_kept_where_one_part_treats_all_axes(method: str) -> None:
    source = conv(normal(3, 4, 3, 3), op="ConvTranspose", strides=[2, 2], output_shape=[18, 18])
    plan = full_plan(method, KernelShape(4, 3, (3, 3)))
    model, _ = split(source, None, spec(method=method, plan=(plan,)))
    assert_same(source, model, samples(3, 3, 9, 9))


@pytest.mark.parametrize("method", EACH)
@pytest.mark.parametrize("group", [1, 2])
def test_a_kernel_made_at_a_rank_is_recovered(method: str, group: int) -> None:
    shape = KernelShape(8, 6 // group, (3, 3))
    ranks = (2,) * len(METHODS[method].exact_ranks(shape))
    w = np.concatenate([kernel_of(method, shape, ranks, seed) for seed in range(group)])
    source = conv(w, group=group, pads=[1, 1, 1, 1])
    plan = f"y={method}/{'x'.join(map(str, ranks))}"
    model, _ = split(source, X, spec(method=method, plan=(plan,)))
    assert output_error(source, model, X) < (0.05 if method in ("cp", "flattened") else 1e-8)


# ------------------------------------------------------------------- fires


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("channel", ["Conv"] * 2),
        ("spatial", ["Conv"] * 2),
        ("tucker2", ["Conv"] * 3),
        ("cp", ["Conv"] * 4),
        ("flattened", ["Conv"] * 3),
        ("depthwise", ["Conv"] * 2),
    ],
)
def test_each_method_gives_its_operators(method: str, expected: list[str]) -> None:
    source = conv(normal(16, 12, 3, 3))
    model, reports = split(source, None, spec(method=method, rank=1))
    assert ops(model) == expected
    assert f"split by {method} at rank 1" in whats(reports)[0]


def test_depthwise_terms_stand_side_by_side() -> None:
    model, _ = split(conv(normal(16, 12, 3, 3)), None, spec(method="depthwise", rank=2))
    assert ops(model) == ["Conv", "Conv", "Concat", "Conv"]
    grouped = conv(normal(32, 12, 3, 3), group=2)
    model, _ = split(grouped, None, spec(method="depthwise", rank=2))
    assert ops(model) == ["Conv", "Conv"]


def test_auto_takes_the_method_that_fits_the_kernel() -> None:
    shape = KernelShape(24, 6, (3, 3))
    for method, ranks in (("spatial", (2,)), ("channel", (2,)), ("depthwise", (1,))):
        w = kernel_of(method, shape, ranks)
        source = conv(w + 1e-3 * normal(*w.shape))  # of no low rank as a matrix
        model, reports = split(source, X, spec(energy=0.999))
        assert f"split by {method} at rank" in whats(reports)[0]
        assert output_error(source, model, X) < 2e-3


def test_filters_of_low_rank_are_split_and_nothing_is_lost() -> None:
    source = conv(kernel_of("channel", KernelShape(24, 6, (3, 3)), (4,)))
    model, reports = split(source, X, "factorize-conv")
    assert reports[0].fidelity is Fidelity.CLOSE
    assert_same(source, model, X)


def test_a_kernel_of_one_position_is_split_as_a_matrix() -> None:
    source = conv(kernel_of("channel", KernelShape(24, 20, (1, 1)), (4,)), strides=[2, 2])
    for method in ("auto", "spatial", "cp"):
        model, _ = split(source, None, spec(method=method))
        first, last = model.graph.nodes
        assert first.attrs["strides"] == [2, 2]
        assert "strides" not in last.attrs
        assert_same(source, model, samples(3, 20, 9, 9))


def test_the_second_moments_matter() -> None:
    source = conv(normal(16, 6, 3, 3), pads=[1] * 4)
    for method in ("channel", "spatial", "tucker2", "depthwise"):
        errors = []
        for aware in (True, False):
            rank = 1 if method == "depthwise" else 4
            text = spec(method=method, rank=rank, data_aware=aware)
            errors.append(output_error(source, split(source, X, text)[0], X))
        assert errors[0] < 0.9 * errors[1], method


def test_later_layers_make_up_for_what_the_first_lose() -> None:
    """They aim at what the original network returned, on the inputs that they get now."""
    weights = {"v": normal(16, 6, 3, 3, scale=0.2), "w": normal(16, 16, 3, 3, seed=2, scale=0.1)}
    nodes = [
        node("Conv", ["x", "v"], "h", pads=[1] * 4),
        node("Relu", ["h"], "r"),
        node("Conv", ["r", "w"], "y", pads=[1] * 4),
    ]
    source = net(nodes, weights, ["N", 6, 9, 9])
    x = samples(200, 6, 9, 9, rank=30)
    text = {"method": "channel", "rank": 6}
    both, _ = split(source, x, spec(**text))
    own, _ = split(source, x, spec(**text, aim="own", sequential=False))
    assert output_error(source, both, x) < output_error(source, own, x)


@pytest.mark.parametrize("kind", ["latency", "macs", "bytes"])
def test_a_budget_is_kept_with_all_methods_in_play(kind: str) -> None:
    weights = {"v": normal(32, 6, 3, 3), "w": normal(32, 32, 3, 3, seed=2)}
    nodes = [
        node("Conv", ["x", "v"], "h", pads=[1] * 4),
        node("Relu", ["h"], "r"),
        node("Conv", ["r", "w"], "y", pads=[1] * 4),
    ]
    source = net(nodes, weights, ["N", 6, 9, 9])
    field = "bytes_" if kind == "bytes" else kind
    clock = FakeStopwatch()
    for x in (None, X):
        model, _ = split(source, x, FactorizeConv(**{field: 0.4, "align": 4}), stopwatch=clock)  # type: ignore[arg-type]
        before = Model.load(source)
        ratio = clock.pair(before, model).ratio
        if kind == "bytes":
            ratio = before.file_bytes() / model.file_bytes()
        assert ratio > (2.2 if kind == "bytes" else 2.5)


def test_variational_bayes_chooses_the_ranks_of_tucker2() -> None:
    w = kernel_of("tucker2", KernelShape(40, 32, (3, 3)), (5, 4))
    w += 0.02 * normal(*w.shape, seed=9)
    source = conv(w)
    text = spec(method="tucker2", rank_selection="vbmf", align=1)
    _, reports = split(source, None, text)
    assert "split by tucker2 at rank 5x4" in whats(reports)[0]


# ------------------------------------------------------------------- must not fire


@pytest.mark.parametrize(
    ("source", "options", "why"),
    [
        (conv(normal(8, 1, 3, 3), group=8), {}, "a group has 1 output of 9 inputs"),
        (conv(normal(8, 6, 3)), {"method": "spatial"}, "only one kernel axis is longer than 1"),
        (
            conv(normal(8, 8, 3, 3), op="ConvTranspose", strides=[2, 2], output_shape=[18, 18]),
            {"method": "spatial"},
            "its output_shape leaves open",
        ),
        (conv(normal(8, 6, 3, 3)), {"energy": 1.0}, "no rank with fewer weights keeps 1 of the"),
        (conv(normal(8, 6, 3, 3)), {"method": "cp", "energy": 1.0}, "cp: "),
        (conv(np.zeros((8, 6, 3, 3), np.float32)), {}, "its weight is zero"),
        (conv(np.full((8, 6, 3, 3), np.inf, np.float32)), {}, "it has values that are not finite"),
        (conv(normal(8, 6, 3, 3)), {"ratio": 0.999}, "even the lowest rank leaves more than 0.001"),
    ],
)
def test_what_is_left_alone_has_a_reason(
    source: onnx.ModelProto, options: dict[str, object], why: str
) -> None:
    _model, reports = split(source, None, spec(**options))
    assert not whats(reports)
    assert any(why in item for item in why_of(reports).values()), why_of(reports)


def test_a_split_that_is_no_faster_is_named_with_its_times() -> None:
    source = conv(normal(16, 12, 3, 3))
    _, reports = split(
        source, None, spec(method="channel", rank=2), stopwatch=FakeStopwatch(spread=90.0)
    )
    why = why_of(reports)["y"]
    assert why.startswith("no split is faster as measured: the best, channel/2 is not: 0.0847 ms")


def test_quantized_weights_are_left_alone() -> None:
    source = parse(
        """<opset_import: ["" : 17]>
        agraph (float[1, 2, 4, 4] x) => (float[1, 2, 3, 3] y)
            <int8[2, 2, 2, 2] q = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8},
             float s = {0.5}> {
            w = DequantizeLinear (q, s)
            y = Conv (x, w)
        }"""
    )
    _model, reports = split(source, None, "factorize-conv")
    assert not whats(reports)
    assert "dequantized" in why_of(reports)["y"]


def test_other_layers_are_not_mentioned() -> None:
    source = net([node("MatMul", ["x", "w"], "y")], {"w": normal(12, 12)}, ["N", 12])
    _, reports = split(source, None, "factorize-conv")
    assert why_of(reports) == {}


# ------------------------------------------------------------------- edges


def test_convs_that_share_a_weight_are_split_alike() -> None:
    w = kernel_of("channel", KernelShape(6, 6, (3, 3)), (1,))
    nodes = [
        node("Conv", ["x", "w"], "h", pads=[1] * 4),
        node("Conv", ["h", "w"], "y", strides=[2, 2]),
    ]
    source = net(nodes, {"w": w}, ["N", 6, 9, 9])
    model, _ = split(source, None, "factorize-conv")
    assert ops(model) == ["Conv"] * 4
    assert len([t for t in model.graph.tensors().values() if hasattr(t, "values")]) == 2
    assert output_error(source, model, X) < 1e-8


def test_the_same_seed_gives_the_same_bytes() -> None:
    source = conv(normal(16, 12, 3, 3))
    for method in EACH:
        texts = [split(source, None, spec(method=method, rank=2))[0].to_bytes() for _ in range(2)]
        assert texts[0] == texts[1]


def test_a_plan_names_methods_and_ranks() -> None:
    made = FactorizeConv(plan=("y=tucker2/8x4", "z=cp/16"))
    assert str(made) == "factorize-conv:plan='y=tucker2/8x4'+'z=cp/16'"
    with pytest.raises(UsageError, match="OUTPUTSxINPUTS"):
        FactorizeConv(plan=("y=tucker2/8",))

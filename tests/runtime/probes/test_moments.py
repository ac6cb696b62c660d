"""Moments are those of the vectors that a layer really multiplies, on real onnxruntime runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxslim.analysis.layers import weight_layers
from onnxslim.errors import UsageError
from onnxslim.io.model import Model
from onnxslim.records import Skip
from onnxslim.runtime.probes.moment_sums import MomentLimits
from onnxslim.runtime.probes.moments import chosen_rows, stream_moments
from onnxslim.runtime.probes.unfold import unfold_input, unfold_output
from onnxslim.runtime.samples.stream import Sample
from onnxslim.services.moments import BlockDiagonal, LayerMoments
from support import parse, run

FLOAT = onnx.TensorProto.FLOAT
RNG = np.random.default_rng(5)


def one_node(
    op: str, inputs: dict[str, tuple[int | str, ...] | np.ndarray], **attrs: object
) -> onnx.ModelProto:
    """A model of one node; arrays become initializers, shapes graph inputs."""
    node = helper.make_node(op, list(inputs), ["y"], **attrs)
    infos = [
        helper.make_tensor_value_info(name, FLOAT, value)
        for name, value in inputs.items()
        if isinstance(value, tuple)
    ]
    held = [
        onnx.numpy_helper.from_array(value, name)
        for name, value in inputs.items()
        if isinstance(value, np.ndarray)
    ]
    out = onnx.ValueInfoProto(name="y", type=helper.make_tensor_type_proto(FLOAT, None))
    graph = helper.make_graph([node], "g", infos, [out], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def assert_unfolds(model: onnx.ModelProto, x: np.ndarray) -> None:
    """W·x over the unfolded input is the output that onnxruntime computes, row for row."""
    (layer,), _ = weight_layers(Model.load(model).graph)
    (y,) = run(model, {"x": x})
    rows = unfold_input((x,), layer.unfolding)
    wanted = unfold_output(y, layer.unfolding)
    assert (rows.groups, rows.features) == (layer.groups, layer.columns)
    assert (wanted.groups, wanted.features) == (layer.groups, layer.rows)
    assert rows.count == wanted.count
    index = np.arange(rows.count)
    found = np.matmul(rows.take(index), layer.canonical().swapaxes(1, 2))
    np.testing.assert_allclose(found, wanted.take(index), rtol=1e-4, atol=1e-4)


CONVS: list[dict[str, object]] = [
    {},
    {"strides": [2, 1], "pads": [1, 0, 2, 3]},
    {"dilations": [2, 3], "pads": [0, 4, 2, 0], "strides": [1, 2]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
    {"auto_pad": "VALID", "strides": [3, 1]},
]


@pytest.mark.parametrize("attrs", CONVS, ids=str)
@pytest.mark.parametrize("group", [1, 2, 4])
def test_patches_of_a_conv_give_its_output(attrs: dict[str, object], group: int) -> None:
    weight = normal(8, 4 // group, 3, 2)
    model = one_node("Conv", {"x": ("N", 4, 9, 8), "w": weight}, group=group, **attrs)
    assert_unfolds(model, normal(3, 4, 9, 8))


@pytest.mark.parametrize("shape", [(7,), (5, 4, 6)])
def test_patches_of_a_conv_of_any_rank_give_its_output(shape: tuple[int, ...]) -> None:
    weight = normal(4, 3, *(2,) * len(shape))
    model = one_node("Conv", {"x": ("N", 3, *shape), "w": weight}, pads=[1, 0] * len(shape))
    assert_unfolds(model, normal(2, 3, *shape))


TRANSPOSED: list[dict[str, object]] = [
    {},
    {"strides": [2, 3], "pads": [1, 0, 0, 1]},
    {"strides": [3, 2], "output_padding": [2, 1]},
    {"dilations": [2, 3], "pads": [1, 2, 3, 0]},
    {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"strides": [2, 3], "auto_pad": "SAME_LOWER"},
    {"strides": [2, 2], "auto_pad": "VALID"},
    {"strides": [2, 2], "output_shape": [9, 8]},
    {"strides": [2, 2], "output_shape": [9, 8], "auto_pad": "SAME_UPPER"},
    {"pads": [2, 1, 2, 1]},
]


@pytest.mark.parametrize("attrs", TRANSPOSED, ids=str)
@pytest.mark.parametrize("group", [1, 2])
def test_patches_of_a_conv_transpose_give_its_output(attrs: dict[str, object], group: int) -> None:
    weight = normal(4, 3, 3, 2)
    model = one_node("ConvTranspose", {"x": ("N", 4, 5, 4), "w": weight}, group=group, **attrs)
    assert_unfolds(model, normal(2, 4, 5, 4))


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("constant", ["a", "b"])
def test_vectors_of_a_gemm_give_its_output(trans_a: int, trans_b: int, constant: str) -> None:
    a = (3, 5) if trans_a else (5, 3)
    b = (4, 3) if trans_b else (3, 4)
    inputs: dict[str, tuple[int | str, ...] | np.ndarray]
    if constant == "b":
        inputs, x = {"x": a, "w": normal(*b)}, normal(*a)
    else:
        inputs, x = {"w": normal(*a), "x": b}, normal(*b)
    assert_unfolds(one_node("Gemm", inputs, transA=trans_a, transB=trans_b, alpha=-0.5), x)


@pytest.mark.parametrize(
    ("x", "w"),
    [
        ((5, 3), (3, 4)),
        ((2, 5, 3), (3, 4)),
        ((3,), (3, 4)),
        ((2, 5, 3), (3,)),
        ((2, 5, 3), (2, 3, 4)),
        ((5, 3), (2, 3, 4)),
        ((6, 2, 5, 3), (2, 3, 4)),
        ((6, 2, 5, 3), (6, 1, 3, 4)),
        ((1, 2, 5, 3), (6, 1, 3, 4)),
    ],
    ids=str,
)
def test_vectors_of_a_matmul_give_its_output(x: tuple[int, ...], w: tuple[int, ...]) -> None:
    assert_unfolds(one_node("MatMul", {"x": x, "w": normal(*w)}), normal(*x))


@pytest.mark.parametrize(
    ("w", "x"),
    [((4, 3), (3, 5)), ((4, 3), (2, 3, 5)), ((3,), (2, 3, 5)), ((4, 3), (3,)),
     ((2, 4, 3), (3, 5)), ((2, 4, 3), (6, 2, 3, 5)), ((6, 1, 4, 3), (2, 3, 5))],
    ids=str,
)  # fmt: skip
def test_columns_of_a_matmul_give_its_output(w: tuple[int, ...], x: tuple[int, ...]) -> None:
    assert_unfolds(one_node("MatMul", {"w": normal(*w), "x": x}), normal(*x))


# ---------------------------------------------------------------------------- streams

NET = """
<opset_import: ["" : 17]>
net (float[N, 3, 8, 8] x) => (float[N, 5] y)
<float[6, 3, 3, 3] w1, float[6] b1, float[6, 1, 3, 3] w2, float[96, 7] w3, float[5, 7] w4>
{
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    p = Conv <strides = [2, 2], pads = [1, 1, 1, 1], group = 6> (r, w2)
    f = Flatten (p)
    d = MatMul (f, w3)
    e = Relu (d)
    y = Gemm <transB = 1> (e, w4)
}
"""


def net(seed: int = 0, scale: float = 1.0) -> Model:
    proto = parse_with_weights(NET, seed, scale)
    return Model.load(proto)


def parse_with_weights(text: str, seed: int, scale: float = 1.0) -> onnx.ModelProto:
    """`text`, in which what is declared between < and > becomes an initializer, seeded."""
    proto = onnx.parser.parse_model(text.replace("<opset", "<ir_version: 8, opset", 1))
    rng = np.random.default_rng(seed)
    for info in proto.graph.value_info:
        dims = [size.dim_value for size in info.type.tensor_type.shape.dim]
        values = rng.standard_normal(dims).astype(np.float32) * np.float32(scale)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, info.name))
    del proto.graph.value_info[:]
    onnx.checker.check_model(proto, full_check=True)
    return proto


def feed(x: np.ndarray, size: int) -> Callable[[], Iterable[Sample]]:
    return lambda: [
        Sample({"x": x[at : at + size]}, len(x[at : at + size])) for at in range(0, len(x), size)
    ]


def by_name(results: Iterable[LayerMoments | Skip]) -> dict[str, LayerMoments]:
    found = list(results)
    assert not [item for item in found if isinstance(item, Skip)]
    return {item.layer: item for item in found if isinstance(item, LayerMoments)}


def tensors(model: Model, x: np.ndarray, *names: str) -> list[np.ndarray]:
    proto = model.to_proto()
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return run(proto, {"x": x})


def test_moments_equal_a_direct_computation() -> None:
    model, x = net(), normal(5, 3, 8, 8)
    found = by_name(stream_moments(model, feed(x, 2)))
    assert list(found) == ["a", "p", "d", "y"]
    layers, _ = weight_layers(model.graph)
    inputs = [x, *tensors(model, x, "r", "f", "e")]
    for layer, array in zip(layers, inputs, strict=True):
        rows = unfold_input((array,), layer.unfolding)
        vectors = rows.take(np.arange(rows.count)).astype(np.float64)
        moments = found[layer.name]
        assert moments.count == rows.count
        assert len(moments.seconds) == layer.groups
        np.testing.assert_allclose(moments.mean, vectors.mean(axis=1), rtol=1e-5, atol=1e-5)
        for second, group in zip(moments.seconds, vectors, strict=True):
            assert isinstance(second, np.ndarray)
            np.testing.assert_allclose(second, group.T @ group / len(group), rtol=1e-5, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 6), st.integers(0, 3))
def test_the_batch_split_does_not_matter_even_when_rows_are_drawn(size: int, seed: int) -> None:
    model, x = net(), np.random.default_rng(seed).standard_normal((6, 3, 8, 8)).astype(np.float32)
    limits = MomentLimits(patches=9, max_features=16384)
    whole = by_name(stream_moments(model, feed(x, 6), ["d", "y"], limits=limits, seed=seed))
    split = by_name(stream_moments(model, feed(x, size), ["d", "y"], limits=limits, seed=seed))
    for name, moments in whole.items():
        assert split[name].count == moments.count
        np.testing.assert_allclose(split[name].seconds[0], moments.seconds[0], atol=1e-5)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.integers(1, 40),
    st.integers(1, 50),
    st.integers(0, 9),
)
def test_drawn_rows_depend_on_the_sample_not_on_the_batch(
    split: list[int], each: int, cap: int, seed: int
) -> None:
    total = sum(split)
    whole = chosen_rows(total * each, total, 0, cap, seed)
    first, parts = 0, []
    for samples in split:
        parts.append(chosen_rows(samples * each, samples, first, cap, seed) + first * each)
        first += samples
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert len(whole) == total * min(each, cap)


def test_a_small_budget_means_more_sweeps_and_the_same_moments() -> None:
    model, x = net(), normal(4, 3, 8, 8)
    passes = []

    def samples() -> Iterable[Sample]:
        passes.append(1)
        return feed(x, 4)()

    whole = by_name(stream_moments(model, samples))
    assert len(passes) == 1
    small = by_name(stream_moments(model, samples, limits=MomentLimits(budget_bytes=1)))
    assert len(passes) == 5
    assert list(small) == list(whole)
    for name, moments in whole.items():
        np.testing.assert_array_equal(small[name].mean, moments.mean)
        for a, b in zip(small[name].seconds, moments.seconds, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_matrix_above_the_limit_is_kept_in_blocks_and_says_so() -> None:
    model, x = net(), normal(4, 3, 8, 8)
    full = by_name(stream_moments(model, feed(x, 4), ["d"]))["d"]
    cut = by_name(stream_moments(model, feed(x, 4), ["d"], limits=MomentLimits(max_features=40)))[
        "d"
    ]
    (second,), (whole,) = cut.seconds, full.seconds
    assert isinstance(second, BlockDiagonal)
    assert isinstance(whole, np.ndarray)
    assert second.size == 96
    assert "3 blocks" in cut.notes[0]
    for at, block in second.slices():
        assert len(block) <= 40
        np.testing.assert_allclose(block, whole[at, at], atol=1e-12)


def test_a_subsample_of_positions_says_so() -> None:
    model = Model.load(one_node("Conv", {"x": ("N", 40, 30, 30), "w": normal(4, 40, 5, 5)}))
    (moments,) = stream_moments(
        model, feed(normal(2, 40, 30, 30), 2), limits=MomentLimits(patches=50)
    )
    assert isinstance(moments, LayerMoments)
    assert moments.count == 100
    assert moments.notes == ("100 of 1352 positions were looked at",)


def test_single_precision_products_of_wide_layers_are_harmless() -> None:
    w, x = normal(1200, 2), normal(64, 1200) + 3
    (moments,) = stream_moments(
        Model.load(one_node("MatMul", {"x": ("N", 1200), "w": w})), feed(x, 16)
    )
    assert isinstance(moments, LayerMoments)
    exact = x.astype(np.float64).T @ x.astype(np.float64) / 64
    assert np.abs(moments.seconds[0] - exact).max() < 1e-6 * np.abs(exact).max()


def test_layers_that_read_one_tensor_alike_share_a_matrix() -> None:
    text = """
    <opset_import: ["" : 17]>
    net (float[N, 4] x) => (float[N, 3] y, float[N, 3] z, float[N, 3] u)
    <float[4, 3] a, float[4, 3] b, float[3, 4] c>
    {
        y = MatMul (x, a)
        z = MatMul (x, b)
        u = Gemm <transB = 1, alpha = 2.0> (x, c)
    }
    """
    x = normal(5, 4)
    found = by_name(stream_moments(Model.load(parse_with_weights(text, 1)), feed(x, 5)))
    assert found["y"].seconds[0] is found["z"].seconds[0]
    np.testing.assert_allclose(found["u"].seconds[0], 4 * found["y"].seconds[0], rtol=1e-6)


# ---------------------------------------------------------------------------- reference


def test_cross_moments_join_the_original_output_with_the_compressed_input() -> None:
    original, changed, x = net(0), net(1, 0.8), normal(6, 3, 8, 8)
    found = by_name(stream_moments(changed, feed(x, 4), reference=original))
    layers = {layer.name: layer for layer in weight_layers(original.graph)[0]}
    olds = dict(zip("apdy", [x, *tensors(original, x, "r", "f", "e")], strict=True))
    news = dict(zip("apdy", [x, *tensors(changed, x, "r", "f", "e")], strict=True))
    for name, layer in layers.items():
        before, after = (unfold_input((item[name],), layer.unfolding) for item in (olds, news))
        index = np.arange(before.count)
        y = np.matmul(before.take(index), layer.canonical().swapaxes(1, 2)).astype(np.float64)
        z = after.take(index).astype(np.float64)
        moments = found[name]
        np.testing.assert_allclose(
            moments.cross, np.matmul(y.swapaxes(1, 2), z) / len(index), rtol=1e-4, atol=2e-3
        )
        np.testing.assert_allclose(moments.goal, y.mean(axis=1), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(moments.energy, (y**2).mean(axis=1), rtol=1e-4, atol=1e-3)


def test_a_reference_of_equal_weights_gives_the_symmetric_target() -> None:
    model, x = net(), normal(6, 3, 8, 8)
    layers = {layer.name: layer for layer in weight_layers(model.graph)[0]}
    for name, moments in by_name(stream_moments(model, feed(x, 4), reference=net())).items():
        assert moments.cross is not None
        for weight, second, cross in zip(
            layers[name].canonical(), moments.seconds, moments.cross, strict=True
        ):
            assert isinstance(second, np.ndarray)
            np.testing.assert_allclose(weight @ second, cross, rtol=1e-4, atol=2e-3)


def test_layers_that_certainly_return_the_same_need_no_run_of_the_reference() -> None:
    original, x = net(), normal(6, 3, 8, 8)
    changed = original.clone()
    layers = {layer.name: layer for layer in weight_layers(changed.graph)[0]}
    holder = layers["p"].holder
    holder.values = 0.8 * holder.values
    found = by_name(stream_moments(changed, feed(x, 4), reference=original))
    without = {name for name, moments in found.items() if moments.cross is None}
    assert without == {"a"}  # all others lie behind the change
    wanted = by_name(stream_moments(changed, feed(x, 4), reference=net()))["a"]
    own = found["a"].returning(layers["a"].canonical())
    for one, other in ((own.cross, wanted.cross), (own.goal, wanted.goal)):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(own.energy, wanted.energy, rtol=1e-4, atol=2e-3)


def test_centered_moments_are_those_of_centered_vectors() -> None:
    model, x = net(), normal(6, 3, 8, 8) + 1
    moments = by_name(stream_moments(model, feed(x, 6), ["y"], reference=net()))["y"].centered()
    e, y = (a.astype(np.float64) for a in tensors(model, x, "e", "y"))
    e, y = e - e.mean(axis=0), y - y.mean(axis=0)
    np.testing.assert_allclose(moments.seconds[0], e.T @ e / 6, rtol=1e-4, atol=1e-3)
    assert moments.cross is not None
    assert moments.energy is not None
    np.testing.assert_allclose(moments.cross[0], y.T @ e / 6, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(moments.energy[0], (y**2).mean(axis=0), rtol=1e-4, atol=1e-2)


# ---------------------------------------------------------------------------- bodies, declines

IF_NET = """
<opset_import: ["" : 17]>
net (float[N, 4] x, bool c) => (float[N, 3] y)
<float[4, 3] a, float[3, 3] b, float[4, 3] d>
{
    y = If (c) <
        then_branch = yes () => (float[N, 3] t) {
            h = MatMul (x, a)
            r = Relu (h)
            t = MatMul (r, b)
        },
        else_branch = no () => (float[N, 3] t) { t = MatMul (x, d) }
    >
}
"""


def test_layers_in_the_branches_of_an_if_are_observed_when_taken() -> None:
    model = Model.load(parse_with_weights(IF_NET, 2))
    x = normal(8, 4)
    taken = [True, True, False, True]

    def samples() -> Iterable[Sample]:
        for i, flag in enumerate(taken):
            yield Sample({"x": x[2 * i : 2 * i + 2], "c": np.array(flag)}, 2)

    found = {
        item.layer: item for item in stream_moments(model, samples) if not isinstance(item, Skip)
    }
    assert sorted(found) == ["h", "y/else_branch/t", "y/then_branch/t"]
    # `h` reads x, which its body captures: it is seen whatever branch runs
    assert found["h"].count == 8
    assert found["y/then_branch/t"].count == 6
    yes = x[[0, 1, 2, 3, 6, 7]]
    weight = weight_layers(model.graph)[0][0].canonical()[0]
    r = np.maximum(yes @ weight.T, 0).astype(np.float64)
    np.testing.assert_allclose(found["y/then_branch/t"].seconds[0], r.T @ r / 6, atol=1e-5)


def test_a_branch_never_taken_is_a_skip() -> None:
    model = Model.load(parse_with_weights(IF_NET, 2))
    data = [Sample({"x": normal(2, 4), "c": np.array(False)}, 2)]
    skips = [item for item in stream_moments(model, lambda: data) if isinstance(item, Skip)]
    assert [skip.node for skip in skips] == ["y/then_branch/t"]
    assert "no calibration sample reaches it" in skips[0].why


def test_the_body_of_a_loop_is_declined_with_the_reason() -> None:
    text = """
    <opset_import: ["" : 17]>
    net (float[2, 3] x, int64 n, bool go) => (float[2, 3] y) <float[3, 3] w>
    {
        y = Loop (n, go, x) <
            body = b (int64 i, bool c, float[2, 3] s) => (bool c2, float[2, 3] t) {
                c2 = Identity (c)
                t = MatMul (s, w)
            }
        >
    }
    """
    model = Model.load(parse_with_weights(text, 3))
    (skip,) = stream_moments(model, lambda: [])
    assert isinstance(skip, Skip)
    assert skip.node == "t"
    assert "body of the Loop `y`" in skip.why


def test_a_weight_computed_at_run_time_is_a_skip() -> None:
    model = Model.load(
        parse(
            """
    <opset_import: ["" : 17]>
    net (float[2, 3] x, float[3, 2] w) => (float[2, 2] y) { y = MatMul (x, w) }
    """
        )
    )
    (skip,) = stream_moments(model, lambda: [])
    assert isinstance(skip, Skip)
    assert skip.why == "its weight is computed at run time"


def test_inputs_that_are_not_finite_are_a_skip() -> None:
    x = normal(4, 3, 8, 8)
    x[0] = np.inf
    results = list(stream_moments(net(), feed(x, 2), ["d"]))
    assert isinstance(results[0], Skip)
    assert "not finite" in results[0].why


def test_an_input_that_onnxruntime_gives_without_its_axis_is_one_row() -> None:
    """Onnxruntime's Gelu of a scalar is a scalar, whatever the constants add to it."""
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float x) => (float y)
        <float[1] root = {1.4142135}, float one = {1}, float half = {0.5}, float[1] w = {2}> {
        d = Div (x, root) e = Erf (d) a = Add (e, one) m = Mul (x, a) g = Mul (m, half)
        y = MatMul (g, w)
    }"""
    samples = [Sample({"x": np.array(value, np.float32)}, 1) for value in (1, 2)]
    (found,) = stream_moments(Model.load(parse(text)), lambda: samples)
    assert isinstance(found, LayerMoments)
    np.testing.assert_allclose(found.seconds, [[[(0.8413447**2 + 1.9544997**2) / 2]]], 1e-5)


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(UsageError, match="no weight layer `nope`"):
        list(stream_moments(net(), feed(normal(1, 3, 8, 8), 1), ["nope"]))


@pytest.mark.parametrize("with_reference", [False, True])
def test_short_samples_are_summed_as_long_ones_are(*, with_reference: bool) -> None:
    source = one_node("MatMul", {"x": ("N", 24), "w": normal(24, 8)})
    model, rows = Model.load(source), normal(2600, 24)

    def batches(size: int) -> list[Sample]:
        parts = (rows[start : start + size] for start in range(0, len(rows), size))
        return [Sample({"x": part}, len(part)) for part in parts]

    # another copy of the weights, so that the reference runs
    reference = Model.load(source) if with_reference else None
    short, long = (
        moments
        for size in (7, 2600)
        for moments in stream_moments(model, lambda size=size: batches(size), reference=reference)
    )
    assert isinstance(short, LayerMoments)
    assert isinstance(long, LayerMoments)
    assert short.count == long.count == 2600
    wanted = np.asarray(rows, np.float64).T @ rows / 2600
    for found in (short, long):
        np.testing.assert_allclose(np.asarray(found.seconds[0]), wanted, rtol=1e-6, atol=1e-6)
    if with_reference:
        np.testing.assert_allclose(short.cross, long.cross, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(short.energy, long.energy, rtol=1e-6)

"""Codes of weights: every rounding no worse than the one before, and stored as it was meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
from layer_nets import dense_net, net, node, normal, problems_of, samples

from onnxslim.io.model import Model
from onnxslim.lossy import problems
from onnxslim.lossy.problems import Problem, Schedule, Target
from onnxslim.quantization.grid import S8, S8_SYMMETRIC, U8, GridForm
from onnxslim.quantization.weight_rounding import (
    QuantizedWeight,
    Rounding,
    quantized_weight,
)
from onnxslim.quantization.weight_scales import (
    PerBlock,
    PerChannel,
    PerTensor,
    WeightForm,
    channel_axis,
)

U8_SYMMETRIC = replace(U8, symmetric=True)
S4 = replace(S8_SYMMETRIC, bits=4)
FORMS = (S8, S8_SYMMETRIC, U8, U8_SYMMETRIC, replace(S8_SYMMETRIC, reduced=True), S4)


def first_problem(source: onnx.ModelProto, x: np.ndarray | None) -> Problem:
    found, _ = problems_of(source, x, schedule=Schedule(sequential=False, aim=Target.CURRENT))
    return next(iter(found))


def conv(op: str, weight: np.ndarray, x: Sequence[int | str], **attrs: object) -> onnx.ModelProto:
    return net([node(op, ["x", "w"], "y", **attrs)], {"w": weight}, x)


X = samples(200, 24)
IMAGES = samples(40, 4, 8, 8)
NETS = {
    "gemm": (dense_net(24, 16), X),
    "conv": (conv("Conv", normal(6, 4, 3, 3), ["N", 4, 8, 8]), IMAGES),
    "grouped": (conv("Conv", normal(6, 2, 3, 3), ["N", 4, 8, 8], group=2), IMAGES),
    "depthwise": (conv("Conv", normal(4, 1, 3, 3), ["N", 4, 8, 8], group=4), IMAGES),
    "transposed": (conv("ConvTranspose", normal(4, 5, 3, 3), ["N", 4, 8, 8]), IMAGES),
    "transposed-grouped": (
        conv("ConvTranspose", normal(4, 3, 2, 2), ["N", 4, 8, 8], group=2),
        IMAGES,
    ),
    "matmul": (net([node("MatMul", ["x", "w"], "y")], {"w": normal(24, 7)}, ["N", 24]), X),
    "left": (
        net([node("MatMul", ["w", "x"], "y")], {"w": normal(5, 4)}, ["N", 4, 6]),
        samples(50, 4, 6),
    ),
    "stacked": (
        net([node("MatMul", ["x", "w"], "y")], {"w": normal(3, 6, 5)}, ["N", 3, 4, 6]),
        samples(50, 3, 4, 6),
    ),
    "vector": (net([node("MatMul", ["x", "w"], "y")], {"w": normal(24)}, ["N", 24]), X),
}


@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", list(NETS))
def test_what_is_stored_is_what_the_codes_stand_for(
    name: str, per_channel: bool, rounding: Rounding
) -> None:
    problem = first_problem(*NETS[name])
    form = WeightForm(granularity=PerChannel() if per_channel else PerTensor())
    found = quantized_weight(problem, form, rounding)
    codes, grid = found.stored(problem.layer)
    assert codes.shape == problem.layer.holder.stored.shape
    assert codes.dtype == np.int8
    np.testing.assert_allclose(
        grid.dequantized(codes), problem.layer.restored(found.weight), rtol=1e-6
    )
    assert grid.axis == (channel_axis(problem.layer) if grid.scale.ndim else None)
    if per_channel and problem.layer.rows > 1:
        assert grid.scale.shape == (codes.shape[channel_axis(problem.layer) or 0],)
    else:
        assert per_channel or grid.scale.shape == ()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", list(NETS))
def test_feedback_beats_nearest_and_adaround_beats_both(name: str, form: GridForm) -> None:
    problem = first_problem(*NETS[name])
    errors = [quantized_weight(problem, WeightForm(form), r).error for r in Rounding]
    assert errors[0] >= errors[1] * (1 - 1e-6)
    assert errors[1] >= errors[2] * (1 - 1e-6)
    if name in ("gemm", "matmul"):  # of many columns, whose inputs have few strong directions
        assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("form", FORMS)
def test_codes_stay_within_their_range(form: GridForm) -> None:
    for rounding in Rounding:
        found = quantized_weight(first_problem(*NETS["gemm"]), WeightForm(form), rounding)
        assert found.low <= found.codes.min() <= found.codes.max() <= found.high
        assert found.high - found.low == (2 ** (form.bits - form.reduced) - 1) - form.symmetric


def test_the_error_is_that_of_the_output() -> None:
    source, x = NETS["gemm"]
    problem = first_problem(source, x)
    found = quantized_weight(problem)
    change = problem.layer.canonical()[0] - found.weight[0]
    exact = x.astype(np.float64) - x.mean(axis=0)  # the bias takes the mean
    wished = np.square(exact @ change.T).sum() / np.square(exact @ problem.target[0].T).sum()
    assert found.error == pytest.approx(wished, rel=1e-3)


@pytest.mark.parametrize("name", list(NETS))
def test_without_data_every_rounding_is_nearest_up_to_clipping(name: str) -> None:
    problem = first_problem(NETS[name][0], None)
    plain, *others = (quantized_weight(problem, rounding=r) for r in Rounding)
    weight = problem.layer.canonical()
    for other in others:
        np.testing.assert_array_equal(other.codes, plain.codes)
    within = np.abs(weight) <= 127 * plain.scale
    assert (np.abs(weight - plain.weight) <= 0.501 * plain.scale)[within].all()
    assert plain.error == pytest.approx(
        np.square(weight - plain.weight).sum() / np.square(weight).sum(), rel=1e-3
    )


def test_an_outlier_is_clipped_where_that_pays() -> None:
    weight = normal(256, 4, scale=0.1)
    weight[0, 0] = 0.6
    source = net([node("MatMul", ["x", "w"], "y")], {"w": weight}, ["N", 256])
    found = quantized_weight(first_problem(source, None), WeightForm(S4))
    assert 7 * found.scale[0, 0, 0] < 0.6
    assert 7 * found.scale[0, 1, 0] <= np.abs(weight[:, 1]).max() * (1 + 1e-6)


def test_a_row_of_zeros_stays_zero() -> None:
    weight = normal(24, 4)
    weight[:, 2] = 0
    source = net([node("MatMul", ["x", "w"], "y")], {"w": weight}, ["N", 24])
    for rounding in Rounding:
        found = quantized_weight(first_problem(source, X), rounding=rounding)
        assert not found.weight[0, 2].any()
        assert (found.scale > 0).all()


@pytest.mark.parametrize("rounding", list(Rounding))
def test_zeros_of_a_pruned_weight_stay_zero(rounding: Rounding) -> None:
    weight = normal(24, 8)
    weight[np.random.default_rng(2).random(weight.shape) < 0.5] = 0
    source = net([node("MatMul", ["x", "w"], "y")], {"w": weight}, ["N", 24])
    found = quantized_weight(first_problem(source, X), rounding=rounding)
    assert not found.weight[0].T[weight == 0].any()


@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize("name", ["gemm", "matmul"])
@pytest.mark.parametrize("block", [8, 10])
def test_blocks_have_scales_of_their_own(name: str, block: int, rounding: Rounding) -> None:
    source, x = NETS[name]
    problem = first_problem(source, x)
    found = quantized_weight(problem, WeightForm(S4, PerBlock(block)), rounding)
    assert found.scale.shape == (1, problem.layer.rows, -(-24 // block))
    with pytest.raises(ValueError, match="block"):
        found.stored(problem.layer)
    codes, scale, zero, axis = found.stored_in_blocks(problem.layer)
    assert codes.shape == problem.layer.holder.stored.shape
    wide = np.repeat(scale, block, axis=axis).take(range(24), axis=axis)
    offset = np.repeat(zero, block, axis=axis).take(range(24), axis=axis)
    np.testing.assert_allclose(
        (codes.astype(np.float32) - offset) * wide,
        problem.layer.restored(found.weight),
        rtol=1e-6,
    )
    whole = quantized_weight(problem, WeightForm(S4), rounding)
    assert found.error < whole.error


def test_a_conv_has_no_blocks_of_a_matrix() -> None:
    problem = first_problem(*NETS["conv"])
    found = quantized_weight(problem, WeightForm(S4, PerBlock(9)))
    assert found.scale.shape == (1, 6, 4)
    with pytest.raises(ValueError, match="no matrix"):
        found.stored_in_blocks(problem.layer)


def test_equal_problems_have_equal_codes() -> None:
    def codes() -> QuantizedWeight:
        return quantized_weight(first_problem(*NETS["conv"]), rounding=Rounding.ADAROUND)

    np.testing.assert_array_equal(codes().codes, codes().codes)


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("name", ["gemm", "grouped", "stacked"])
@pytest.mark.parametrize("has_reference", [False, True])
def test_rows_worked_on_in_parts_get_the_same_codes(
    name: str, rounding: Rounding, has_reference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, x = NETS[name]
    other = onnx.ModelProto.FromString(source.SerializeToString())
    weight = onnx.numpy_helper.to_array(other.graph.initializer[0])
    moved = onnx.numpy_helper.from_array(1.1 * weight, other.graph.initializer[0].name)
    other.graph.initializer[0].CopyFrom(moved)
    reference = Model.load(other) if has_reference else None

    def found() -> tuple[Problem, QuantizedWeight]:
        problem = next(iter(problems_of(source, x, reference=reference)[0]))
        assert bool(problem.residual_gradients) == has_reference
        return problem, quantized_weight(problem, WeightForm(S4), rounding)

    whole, wanted = found()
    monkeypatch.setattr(problems, "_AT_ONCE", 2 * whole.layer.columns)
    parts, weight = found()
    np.testing.assert_allclose(parts.target, whole.target)
    assert parts.irreducible_error == pytest.approx(whole.irreducible_error)
    np.testing.assert_array_equal(weight.codes, wanted.codes)
    assert weight.error == pytest.approx(wanted.error)

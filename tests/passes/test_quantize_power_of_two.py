from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest
from coded_nets import KINDS, X, coded, dense, tiny, with_values
from layer_nets import (
    net,
    node,
    normal,
    output_error,
    problems_of,
    rewritten,
    samples,
    weights_of,
    whats,
    whys,
)

from onnxslim.errors import UsageError
from onnxslim.passes.quantize_power_of_two import QuantizePowerOfTwo
from onnxslim.pipeline.grammar import parse_pipeline


def window(weight: np.ndarray, bits: int) -> np.ndarray:
    """Equations 3 and 4 of INQ: the magnitudes that are not zero."""
    high = int(np.floor(np.log2(4 * np.abs(weight).max() / 3)))
    low = high + 1 - 2 ** (bits - 1) // 2
    return 2.0 ** np.arange(low, high + 1)


# ------------------------------------------------------------------- fires


@pytest.mark.parametrize("x", [None, X], ids=["no data", "data"])
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_values_are_zero_and_powers_of_two_in_the_window(bits: int, x: np.ndarray | None) -> None:
    source = dense(200)
    model, reports = rewritten(source, x, f"quantize-power-of-two:bits={bits}")
    (values,) = coded(model).values()
    used = np.setdiff1d(np.abs(values), [0])
    allowed = window(weights_of(source)["y"], bits)
    assert len(allowed) == 2 ** (bits - 1) / 2
    assert set(used) <= set(allowed)
    assert f"in {len(np.unique(values))} values" in whats(reports)[0]


def test_without_data_each_weight_becomes_the_nearest_value() -> None:
    source = dense(200)
    model, _ = rewritten(source, None, "quantize-power-of-two")
    (values,) = coded(model).values()
    weight = weights_of(source)["y"]
    powers = window(weight, 5)
    allowed = np.concatenate([-powers, [0], powers])
    nearest = np.abs(weight[0][..., None] - allowed).min(axis=-1)
    np.testing.assert_allclose(np.abs(values.T - weight[0]), nearest, rtol=1e-6)
    assert np.abs(values).max() == powers[-1]
    # no weight lies above the largest value by more than half of it
    assert np.abs(weight).max() < 1.5 * powers[-1]


def test_with_data_values_come_near_the_best() -> None:
    ratios = []
    for seed in range(8):
        problem = tiny(seed, 5, samples(100, 5, seed=seed, rank=2))
        (metric,), (target,) = problem.metrics, problem.target
        h = metric.times(np.eye(5))
        powers = window(problem.weight, 3)
        choices = np.array(list(product([*-powers, 0.0, *powers], repeat=5)))
        best = 0.0
        for row in target:
            rest = row - choices
            best += float(np.einsum("ij,jk,ik->i", rest, h, rest).min())
        assert problem.energy is not None
        found = QuantizePowerOfTwo(bits=3).solve(problem, 0)
        ratios.append(found.error / (best / problem.energy))
    assert np.median(ratios) < 2


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_shares_and_the_rest_refitted_beat_plain_rounding(bits: int) -> None:
    source = dense(60)
    spec = f"quantize-power-of-two:bits={bits}"
    plain, _ = rewritten(source, None, spec)
    errors = {
        shares: output_error(source, rewritten(source, X, f"{spec}:partitions={shares}")[0], X)
        for shares in ("0.5+0.75+0.875+1", "1")
    }
    assert max(errors.values()) < 0.6 * output_error(source, plain, X)
    assert errors["0.5+0.75+0.875+1"] <= errors["1"] * (1 + 1e-6)


def test_the_rest_is_refitted_to_what_is_rounded() -> None:
    """Two inputs that are nearly the same: the second weight takes the rounding error."""
    first = np.random.default_rng(0).standard_normal((100, 1))
    x = np.concatenate([first, first], axis=1) + 1e-2 * samples(100, 2)
    source = net(
        [node("MatMul", ["x", "w"], "y")],
        {"w": np.array([[1.45], [0.05]], np.float32)},
        ["N", 2],
    )
    (problem,) = problems_of(source, x.astype(np.float32))[0]
    answer = QuantizePowerOfTwo().solve(problem, 0)
    assert answer.weight is not None
    assert answer.weight.ravel().tolist() == [1.0, 0.5]


# ------------------------------------------------------------------- declines


def test_a_weight_of_zeros_is_declined() -> None:
    source = with_values(dense(), {"w": np.zeros((24, 40), np.float32)})
    _, reports = rewritten(source, None, "quantize-power-of-two")
    assert whys(reports) == ["it has no values that are powers of two"]


@pytest.mark.parametrize(
    "shares", [(), (0.5,), (0.5, 0.4, 1.0), (0.5, 0.5, 1.0), (1.0, 1.0), (0.2, 0.9)]
)
def test_shares_that_do_not_rise_to_one_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match=r"`partitions` .* must rise and end at 1"):
        QuantizePowerOfTwo(partitions=shares)


def test_shares_are_read_back_from_the_pipeline() -> None:
    made = QuantizePowerOfTwo(partitions=(0.3, 0.6, 1.0), bits=4)
    assert parse_pipeline(str(made)).passes == (made,)


# ------------------------------------------------------------------- edges


@pytest.mark.parametrize("x", [None, X], ids=["no data", "data"])
def test_pruned_weights_stay_pruned_in_one_pipeline(x: np.ndarray | None) -> None:
    source = dense(60)
    pruned, _ = rewritten(source, x, "prune-weights:ratio=0.6")
    model, _ = rewritten(source, x, "prune-weights:ratio=0.6", "quantize-power-of-two")
    (values,) = coded(model).values()
    (kept,) = weights_of(pruned).values()
    assert not values.T[kept[0] == 0].any()


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 1e30])
def test_the_window_follows_the_size_of_the_weights(scale: float) -> None:
    weight = normal(24, 40).astype(np.float64) * scale
    source = with_values(dense(), {"w": weight.astype(np.float32)})
    model, _ = rewritten(source, None, "quantize-power-of-two")
    (values,) = coded(model).values()
    error = np.square(values - weight).sum() / np.square(weight).sum()
    assert error < 0.05


def test_half_precision_has_no_powers_below_its_range() -> None:
    source, x = KINDS["float16"]()
    small = (normal(24, 60) * 2.0**-20).astype(np.float16)
    model, _ = rewritten(with_values(source, {"w": small}), None, "quantize-power-of-two:bits=8")
    (values,) = coded(model).values()
    used = np.setdiff1d(np.abs(values.astype(np.float64)), [0])
    assert used.min() == 2.0**-24
    assert values.dtype == np.float16
    model, _ = rewritten(source, x, "quantize-power-of-two:bits=8")
    types = {t.data_type for t in model.to_proto().graph.initializer if "table" in t.name}
    assert types == {onnx.TensorProto.FLOAT16}

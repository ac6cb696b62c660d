from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_nets import FORCE, REPRODUCERS, net, node, normal, outputs, runs, samples
from onnx import numpy_helper

from onnxslim.io.model import Model
from onnxslim.pipeline.manager import PassManager
from onnxslim.pipeline.passes import Context
from onnxslim.precision.doubts import _decided
from onnxslim.precision.value_ranges import HalfRounding, rounded_to_half
from onnxslim.report import StepReport
from onnxslim.runtime.evaluate import evaluate

X = samples(24, 32)
ALLOWED = 2.0**-10


def two_products(w: np.ndarray, v: np.ndarray, middle: str = "Relu") -> onnx.ModelProto:
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node(middle, ["a"], "b"),
        node("MatMul", ["b", "v"], "y"),
    ]
    return net(nodes, {"w": w, "v": v}, ["N", w.shape[0]])


def converted(
    source: onnx.ModelProto, x: np.ndarray | None, *, is_seeded: bool = False
) -> tuple[Model, StepReport]:
    given_ = None if x is None else runs(x)
    context = Context(
        evaluate=evaluate,
        calibration=None if is_seeded else given_,
        seeded=given_ if is_seeded else None,
    )
    model, (report,) = PassManager.parse("convert-fp16").run(
        Model.load(source), context, policy=FORCE, reproducers=REPRODUCERS
    )
    return model, report


def halves(model: Model) -> Mapping[str, np.ndarray]:
    found = ((t.name, numpy_helper.to_array(t)) for t in model.to_proto().graph.initializer)
    return {name.removesuffix("_float16"): a for name, a in found if a.dtype == np.float16}


def relative_error(source: onnx.ModelProto, model: Model, x: np.ndarray) -> float:
    y, new = (np.asarray(outputs(m, x)["y"], np.float64) for m in (source, model))
    return float(np.linalg.norm(new - y) / np.linalg.norm(y))


# ------------------------------------------------------------------- what float16 does


def test_rounding_counts_what_does_not_fit() -> None:
    values = np.array([0, 1, -2, 1e-9, 7e4, -np.inf, np.nan], np.float32)
    rounding = HalfRounding.of(values)
    assert (rounding.saturated, rounding.vanished, rounding.full) == (1, 1, 4)
    assert rounding.most == np.float32(7e4)
    half = rounded_to_half(values)
    assert half[4] == 65504
    assert np.isinf(half[5])
    assert rounding.objection(is_matrix=True) == "reaches 7e+04: float16 ends at 65504"


def test_what_rounds_to_the_largest_number_does_not_leave_float16() -> None:
    values = np.array([65504, 65519.9, -65510], np.float32)
    assert HalfRounding.of(values).saturated == 0
    assert np.abs(rounded_to_half(values)).max() == 65504


# ------------------------------------------------------------------- decided by outputs


def with_entry(value: float) -> np.ndarray:
    matrix = normal(32, 32, scale=0.2)
    matrix[3, 5] = value
    return matrix


@pytest.mark.parametrize("is_seeded", [False, True])
def test_tiny_entries_that_do_not_show_at_the_outputs_become_zero(is_seeded: bool) -> None:
    w = np.concatenate([normal(32, 28), 1e-9 * normal(32, 4)], 1)
    source = two_products(np.asarray(w, np.float32), normal(32, 32, seed=2))
    model, report = converted(source, X, is_seeded=is_seeded)
    assert set(halves(model)) == {"w", "v"}
    assert any("128 became 0" in change.what for change in report.changes)
    assert relative_error(source, model, X) <= ALLOWED
    _, alone = converted(source, None)
    assert "w" in {skip.node for skip in alone.skips}


def test_large_entries_are_cut_off_on_samples_of_the_user_alone() -> None:
    v = normal(32, 32, seed=2)
    v[5] = 0  # the outputs do not show the column of the entry
    source = two_products(with_entry(66000), v)
    model, report = converted(source, X)
    assert set(halves(model)) == {"w", "v"}
    assert any("1 beyond 65504 became 65504" in change.what for change in report.changes)
    model, report = converted(source, X, is_seeded=True)
    assert set(halves(model)) == {"v"}
    assert "reaches 6.6e+04" in report.skips[0].why


def test_an_entry_that_shows_keeps_its_matrix_in_float32() -> None:
    source = two_products(with_entry(3e5), normal(32, 32, seed=2))
    model, report = converted(source, X)
    assert set(halves(model)) == {"v"}
    (skip,) = report.skips
    assert "reaches 3e+05: float16 ends at 65504, and with it, outputs have" in skip.why
    assert relative_error(source, model, X) <= ALLOWED


def test_small_weights_that_are_scaled_up_again_stay_float32() -> None:
    tiny = normal(32, 32) * np.float32(1e-8)
    weights = {"w": tiny, "k": np.array(1e8, np.float32), "v": normal(32, 32, seed=2)}
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node("Mul", ["a", "k"], "b"),
        node("MatMul", ["b", "v"], "y"),
    ]
    source = net(nodes, weights, ["N", 32])
    model, report = converted(source, X)
    assert set(halves(model)) == {"v"}
    assert any("few digits, and with it, outputs have" in skip.why for skip in report.skips)


def test_a_table_is_not_cut_off_at_the_end_of_float16() -> None:
    """No sample may read the row."""
    table = normal(64, 32)
    table[40] = 1e5
    nodes = [
        node("Gather", ["t", "i"], "e"),
        node("Add", ["x", "e"], "a"),
        node("MatMul", ["a", "w"], "y"),
    ]
    weights = {"t": table, "i": np.array(3, np.int64), "w": normal(32, 32)}
    model, report = converted(net(nodes, weights, ["N", 32]), X)
    assert set(halves(model)) == {"w"}
    assert "reaches 1e+05" in report.skips[0].why


def test_outputs_that_do_not_depend_on_a_constant_prove_nothing() -> None:
    w = with_entry(1e-9)
    w[:, :16] *= np.float32(1e-9)
    nodes = [node("MatMul", ["x", "w"], "a"), node("Mul", ["a", "zero"], "y")]
    source = net(nodes, {"w": w, "zero": np.array(0, np.float32)}, ["N", 32])
    model, report = converted(source, X)
    assert halves(model) == {}
    assert "no output on samples depends on it" in report.skips[0].why


# ------------------------------------------------------------------- the search


@given(st.lists(st.sampled_from([1e-6, 1e-4, 3e-4, 1e-2]), min_size=1, max_size=12))
def test_the_search_leaves_what_holds_and_asks_a_bounded_number_of_times(
    errors: list[float],
) -> None:
    own = {f"c{number:02}": error for number, error in enumerate(errors)}
    asked = 0

    def measure(trusted: frozenset[str]) -> float:
        nonlocal asked
        asked += 1
        return float(np.sqrt(1e-14 + sum(own[name] ** 2 for name in trusted)))

    trusted, refused = _decided(sorted(own, key=own.__getitem__), measure)
    assert asked <= 12
    assert trusted | refused.keys() == own.keys()
    assert not trusted & refused.keys()
    assert measure(trusted) <= ALLOWED
    assert refused.keys() >= {name for name, error in own.items() if error > ALLOWED}
    if max(errors) < ALLOWED / len(errors):
        assert not refused


def test_outputs_that_move_too_much_already_decide_nothing() -> None:
    trusted, refused = _decided(["a"], lambda trusted: 0.2)
    assert not trusted
    assert refused == {"a": "without it, outputs have 14 dB already"}


# ------------------------------------------------------------------- random models


@st.composite
def odd_weights(draw: st.DrawFn) -> np.ndarray:
    """A matrix with some rows, columns or entries far above or below the others."""
    seed = draw(st.integers(0, 100))
    rng = np.random.default_rng(seed)
    matrix = rng.normal(0, 0.2, (16, 16))
    for _ in range(draw(st.integers(0, 3))):
        scale = 10.0 ** draw(st.integers(-10, 6))
        where = draw(st.sampled_from(["entry", "row", "column", "all"]))
        rows = slice(None) if where in ("column", "all") else int(rng.integers(16))
        columns = slice(None) if where in ("row", "all") else int(rng.integers(16))
        matrix[rows, columns] *= scale
    return matrix.astype(np.float32)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(odd_weights(), odd_weights(), st.sampled_from(["Relu", "Tanh", "Identity"]), st.booleans())
def test_outputs_of_random_models_stay_within_what_is_allowed(
    w: np.ndarray, v: np.ndarray, middle: str, is_seeded: bool
) -> None:
    source, x = two_products(w, v, middle), samples(16, 16)
    model, report = converted(source, x, is_seeded=is_seeded)
    stored = halves(model)
    assert all(np.isfinite(values).all() for values in stored.values())
    assert {"w", "v"} <= stored.keys() | {skip.node for skip in report.skips}
    exact, _ = converted(source, None)  # only what fits
    base = relative_error(source, exact, x)
    assert relative_error(source, model, x) <= 1.01 * max(ALLOWED, np.sqrt(2) * base)

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.records import Fidelity
from onnxslim.runtime.measure.drift import DriftMeter
from onnxslim.runtime.measure.promise import breach, shape_breach, signature_breach, tolerance
from onnxslim.runtime.session import TensorInfo


def broken(ref: np.ndarray, new: np.ndarray, fidelity: Fidelity) -> str | None:
    meter = DriftMeter()
    meter.update(ref, new)
    return breach("y", meter, ref.dtype, fidelity)


REF = np.linspace(-3, 5, 100, dtype=np.float32)


def test_tolerance_is_the_one_of_the_design() -> None:
    meter = DriftMeter()
    meter.update(REF.astype(np.float64), REF.astype(np.float64))
    assert tolerance(meter, np.dtype(np.float64)) == pytest.approx(1e-6 + 1e-4 * 8)


def test_tolerance_does_not_grow_with_the_result() -> None:
    small, large = DriftMeter(), DriftMeter()
    small.update(REF, REF)
    large.update(REF, REF * 1e6)
    assert tolerance(small, REF.dtype) == tolerance(large, REF.dtype)


@pytest.mark.parametrize("factor", [1.01, 2.0, 1000.0, 0.0, -1.0])
def test_scaled_output_is_not_close(factor: float) -> None:
    assert broken(REF, REF * np.float32(factor), Fidelity.CLOSE) is not None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_percent_is_caught_in_every_float_type(dtype: type) -> None:
    ref = REF.astype(dtype)
    assert broken(ref, (ref * dtype(1.01)).astype(dtype), Fidelity.CLOSE) is not None
    assert broken(ref, np.nextafter(ref, dtype(9)), Fidelity.CLOSE) is None


def test_rounding_of_a_large_constant_output_is_close() -> None:
    ref = np.full((1, 1), 1e6, np.float32)
    assert broken(ref, np.nextafter(ref, np.float32(0)), Fidelity.CLOSE) is None
    assert broken(ref, ref * np.float32(1.0001), Fidelity.CLOSE) is not None


def test_exact_takes_no_changed_bit() -> None:
    assert broken(REF, REF.copy(), Fidelity.EXACT) is None
    assert "99 of 100" in (broken(REF, np.r_[REF[:1], REF[1:] + 1], Fidelity.EXACT) or "")
    zero = np.zeros(1, np.float32)
    assert broken(zero, -zero, Fidelity.EXACT) is not None


@pytest.mark.parametrize("fidelity", Fidelity)
def test_new_nan_breaks_every_promise_and_old_nan_none(fidelity: Fidelity) -> None:
    nan = REF.copy()
    nan[3] = np.nan
    assert broken(REF, nan, fidelity) is not None
    assert broken(nan, nan.copy(), fidelity) is None


def test_nan_that_becomes_a_number_is_not_close_but_may_be_lossy() -> None:
    nan = REF.copy()
    nan[3] = np.inf
    assert "NaN or infinite in the reference" in (broken(nan, REF, Fidelity.CLOSE) or "")
    assert broken(nan, REF, Fidelity.LOSSY) is None


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, object])
def test_types_that_do_not_round_must_be_equal(dtype: type) -> None:
    ref = np.array([0, 1], dtype)
    assert broken(ref, ref.copy(), Fidelity.CLOSE) is None
    assert "does not round" in (broken(ref, np.array([0, 0], dtype), Fidelity.CLOSE) or "")


def test_lossy_takes_what_is_finite() -> None:
    assert broken(REF, REF * 100, Fidelity.LOSSY) is None


def info(name: str, kind: str = "tensor(float)") -> TensorInfo:
    return TensorInfo(name, kind, np.dtype(np.float32), None)


def test_changed_name_order_and_type_are_told() -> None:
    a, b = info("a"), info("b")
    assert signature_breach("output", (a, b), (a, b)) is None
    assert "`b`, `a`" in (signature_breach("output", (a, b), (b, a)) or "")
    assert "`c`" in (signature_breach("output", (a,), (info("c"),)) or "")
    assert "none" in (signature_breach("output", (a,), ()) or "")
    changed = signature_breach("output", (a,), (info("a", "tensor(double)"),))
    assert changed == "has the output `a` as tensor(double), where tensor(float) is expected"


def test_changed_shape_and_dtype_of_arrays_are_told() -> None:
    ref = {"y": np.zeros((1, 2), np.float32)}
    assert shape_breach(ref, {"y": np.ones((1, 2), np.float32)}) is None
    assert "float32[2, 1]" in (shape_breach(ref, {"y": np.zeros((2, 1), np.float32)}) or "")
    assert "float64[1, 2]" in (shape_breach(ref, {"y": np.zeros((1, 2))}) or "")

"""What each `Fidelity` allows: measured drift is checked against it.

Tolerances scale with the reference, never with the result: otherwise a result that is far too large
would widen its own tolerance.

Owns: tolerances, and the wording of a breach. Not here: measuring (see `drift`).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Final

import ml_dtypes
import numpy as np

from onnxslim.records import Fidelity
from onnxslim.runtime.measure.drift import DriftMeter, is_floating
from onnxslim.runtime.session import TensorInfo

ABSOLUTE: Final = 1e-6
OF_RANGE: Final = 1e-4
ROUNDINGS: Final = 2  # units of rounding in the type of the output: float16 is coarser


def tolerance(meter: DriftMeter, dtype: np.dtype) -> float:
    """The largest `max|new - ref|` that is rounding.

    `1e-6 + 1e-4 * range(ref)`, plus two units of rounding of the largest reference value, which
    only matter for float16 and for outputs that hardly vary around a large value.
    """
    rounding = ROUNDINGS * float(_epsilon(dtype)) * meter.largest
    return ABSOLUTE + OF_RANGE * meter.result().reference_range + rounding


def breach(name: str, meter: DriftMeter, dtype: np.dtype, fidelity: Fidelity) -> str | None:
    """How output `name` breaks `fidelity`, None when it does not.

    The text completes a sentence whose subject is the pass or model that caused it.
    """
    if fidelity is Fidelity.EXACT:
        return _not_exact(name, meter)
    if meter.lost:
        return f"put {meter.lost} NaN or infinite values into output `{name}`, which were finite"
    if fidelity is Fidelity.LOSSY:
        return None
    return _not_close(name, meter, dtype)


def _not_exact(name: str, meter: DriftMeter) -> str | None:
    if not meter.unequal:
        return None
    return (
        f"changed {meter.unequal} of {meter.count} values of output `{name}` (largest difference "
        f"{meter.result().max_abs:.3g}), where EXACT promises equal bits"
    )


def _not_close(name: str, meter: DriftMeter, dtype: np.dtype) -> str | None:
    if meter.turned:
        return (
            f"changed {meter.turned} values of output `{name}` that were NaN or infinite in the "
            "reference"
        )
    if not is_floating(dtype):
        if not meter.unequal:
            return None
        return (
            f"changed {meter.unequal} of {meter.count} values of output `{name}`, whose type "
            f"{'string' if dtype.kind == 'O' else dtype.name} does not round"
        )
    moved, allowed = meter.result().max_abs, tolerance(meter, dtype)
    if moved <= allowed:
        return None
    return (
        f"moved output `{name}` by {moved:.3g}, where rounding allows {allowed:.3g} (1e-6 + 1e-4 "
        f"of its range {meter.result().reference_range:.3g})"
    )


def signature_breach(
    word: str, reference: Sequence[TensorInfo], found: Sequence[TensorInfo]
) -> str | None:
    """How two lists of inputs (or outputs: `word`) differ; None when they agree."""
    names, new_names = [info.name for info in reference], [info.name for info in found]
    if names != new_names:
        return f"has the {word}s {_quoted(new_names)}, where {_quoted(names)} are expected"
    for old, new in zip(reference, found, strict=True):
        if old.kind != new.kind:
            return f"has the {word} `{old.name}` as {new.kind}, where {old.kind} is expected"
    return None


def shape_breach(
    reference: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    elastic: Container[str] = (),
) -> str | None:
    """How the arrays of one run differ in dtype or shape; None when they agree.

    Of outputs in `elastic` only the rank counts.
    """
    for name, ref in reference.items():
        new = found[name]
        may_differ = name in elastic and ref.ndim == new.ndim
        if ref.dtype != new.dtype or (ref.shape != new.shape and not may_differ):
            return (
                f"returned output `{name}` as {new.dtype.name}{list(new.shape)}, where "
                f"{ref.dtype.name}{list(ref.shape)} is expected"
            )
    return None


def _epsilon(dtype: np.dtype) -> float:
    if dtype.kind == "c":
        dtype = np.dtype(np.float32 if dtype.itemsize == 8 else np.float64)
    return float(ml_dtypes.finfo(dtype).eps)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"

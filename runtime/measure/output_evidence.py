"""How much the outputs of the original say about another model: values that vary are evidence.

Outputs that are empty, NaN, or the same whatever the input are equal for nearly every model, so
that their equality proves nothing; a report says so.

Owns: the measure, and its words. Not here: the choice of inputs (see `samples.seeded`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from onnxslim.runtime.session import Outputs

_FEW: Final = 0.1  # a smaller share of values that vary is said


def output_notes(runs: Sequence[Outputs], *, alone: bool) -> list[str]:
    """A note for each output that proves little or nothing.

    Args:
        runs: the outputs of the model for several inputs.
        alone: whether each run is one sample, so that runs can be held against each other.
    """
    notes = []
    for name in runs[0]:
        said = _weakness([run[name] for run in runs], alone=alone)
        if said is not None:
            notes.append(f"Output `{name}` was {said}.")
    return notes


def _weakness(arrays: Sequence[np.ndarray], *, alone: bool) -> str | None:
    total = sum(array.size for array in arrays)
    if not total:
        return "empty on all samples: it proves nothing"
    lost = sum(map(_not_finite, arrays))
    if lost == total:
        return "NaN or infinite on all samples: it proves nothing"
    nan = sum(_nan(array) for array in arrays) / total
    if nan:
        return f"NaN in {max(nan, 0.001):.1%} of its values, which prove nothing"
    varying = varying_share(arrays) if alone else None
    if varying is None or varying >= _FEW:
        return None
    if varying:
        return f"the same on all samples in {min(1 - varying, 0.999):.1%} of its values"
    return "the same on all samples: it proves little"


def varying_share(arrays: Sequence[np.ndarray]) -> float | None:
    """The share of values that differ between samples; None where no two have one shape."""
    by_shape: dict[tuple[int, ...], list[np.ndarray]] = {}
    for array in arrays:
        by_shape.setdefault(array.shape, []).append(array)
    groups = [group for group in by_shape.values() if len(group) > 1 and group[0].size]
    if not groups:
        return None
    varying = 0
    for first, *others in groups:
        moved = np.zeros(first.shape, bool)
        for other in others:
            moved |= np.asarray(other != first, bool)
        varying += int(np.count_nonzero(moved))
    return varying / sum(group[0].size for group in groups)


def _not_finite(array: np.ndarray) -> int:
    return array.size - int(np.count_nonzero(np.isfinite(array))) if _is_float(array) else 0


def _nan(array: np.ndarray) -> int:
    return int(np.count_nonzero(np.isnan(array))) if _is_float(array) else 0


def _is_float(array: np.ndarray) -> bool:
    return array.dtype.kind in "fc"

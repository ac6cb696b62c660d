"""Observations of arrays that are at hand."""

from __future__ import annotations

import numpy as np

from onnxslim.services.observations import Histogram, Observation


def histogram(*parts: np.ndarray) -> Histogram:
    result = Histogram.empty()
    for part in parts:
        result = result.plus(part[part != 0])
    return result


def observation(values: np.ndarray, name: str = "t") -> Observation:
    if not values.size:
        return Observation(name, 0.0, 0.0, 0.0, 0.0, Histogram.empty(), 0, 0.0)
    ends = float(values.min()), float(values.max())
    zeros = float((values == 0).mean())
    return Observation(name, *ends, *ends, histogram(values), values.size, zeros)

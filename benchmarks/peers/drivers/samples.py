"""Calibration samples of an .npz file, one by one; for drivers that run in other environments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import version_converter

MIN_OPSET = 13  # axis of QuantizeLinear and DequantizeLinear
RAISED_OPSET = 17

Sample = dict[str, np.ndarray]


def read_samples(file: str | Path) -> list[Sample]:
    """Each sample as a batch of one, by the name of the input."""
    with np.load(file) as arrays:
        whole = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(whole.values())))
    return [{name: array[row : row + 1] for name, array in whole.items()} for row in range(count)]


def load_raised(file: str | Path) -> onnx.ModelProto:
    """The model; an opset that has no scales per channel is raised."""
    model = onnx.load(file)
    opset = next(item.version for item in model.opset_import if not item.domain)
    return version_converter.convert_version(model, RAISED_OPSET) if opset < MIN_OPSET else model

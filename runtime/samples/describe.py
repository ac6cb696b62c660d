"""What was understood of a source of samples, in one line, so that a mistake is seen at once.

    calibration: 128 samples of photos; `data` float32 [3, 224, 224], -2.12 to 2.64; labels 0 to 9

Owns: the figures of that line. They are those of the first samples, as many as are read quickly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from onnxslim.runtime.samples.stream import Sample, Samples, counted, first_rows

_LOOKED_AT: Final = 32  # samples


def describe_samples(samples: Samples, role: str) -> str:
    """The line for `samples`; `role` is what they are for.

    Raises:
        UsageError: they cannot be read.
    """
    first = list(first_rows(samples, _LOOKED_AT))
    how_many = "samples" if samples.count is None else counted(samples.count)
    parts = [f"{role}: {how_many} of {samples.name}"]
    parts += [_input(name, first) for name in first[0].feeds]
    labels = [sample.labels for sample in first if sample.labels is not None]
    if labels:
        parts.append(_labels(labels))
    if samples.remark:
        parts.append(samples.remark)
    looked = sum(sample.rows for sample in first)
    if samples.count is None or looked < samples.count:
        parts.append(f"as the first {looked} are" if looked > 1 else "as the first is")
    return "; ".join(parts)


def _input(name: str, first: Sequence[Sample]) -> str:
    arrays = [sample.feeds[name] for sample in first]
    shapes = {array.shape for array in arrays}
    sizes = [
        str(at.pop()) if len(at) == 1 else "*"
        for at in (
            {shape[axis] if axis < len(shape) else 0 for shape in shapes}
            for axis in range(arrays[0].ndim)
        )
    ]
    text = f"`{name}` {_type(arrays[0])} [{', '.join(sizes)}]"
    return f"{text}, {_range(arrays)}" if arrays[0].dtype.kind not in "OUS" else text


def _type(array: np.ndarray) -> str:
    return "text" if array.dtype.kind in "OUS" else array.dtype.name


def _range(arrays: Sequence[np.ndarray]) -> str:
    filled = [array for array in arrays if array.size]
    if not filled:
        return "empty"
    low, high = min(float(a.min()) for a in filled), max(float(a.max()) for a in filled)
    digits = ".0f" if all(array.dtype.kind in "biu" for array in filled) else ".4g"
    return f"{low:{digits}} to {high:{digits}}" if low != high else f"all {low:{digits}}"


def _labels(labels: Sequence[np.ndarray]) -> str:
    flat = np.concatenate([part.reshape(len(part), -1) for part in labels])
    if flat.shape[1] > 1:
        return f"labels of {flat.shape[1]} values each"
    if flat.dtype.kind in "iuf":
        return f"labels {flat.min():.9g} to {flat.max():.9g}"
    return f"labels of type {flat.dtype.name}"

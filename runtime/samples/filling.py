"""Inputs that the data do not give: one value each, as the user says with `--fill NAME=VALUE`.

    onnxslim vad.onnx --calib sounds/ --fill state=0,sr=16000

Owns: which inputs are left for the data, and the sizes of those that are filled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxslim.errors import UsageError
from onnxslim.pipeline.suggest import did_you_mean
from onnxslim.runtime.samples.fitting import is_batchable
from onnxslim.runtime.samples.stream import Sample, Samples
from onnxslim.runtime.session import Dim, TensorInfo


def unfilled(inputs: Sequence[TensorInfo], fill: Mapping[str, float]) -> list[TensorInfo]:
    """The inputs that the data give.

    Raises:
        UsageError: a name is none of an input, all inputs are filled, or a value does not fit.
    """
    by_name = {info.name: info for info in inputs}
    for name, value in fill.items():
        if name not in by_name:
            listed = ", ".join(f"`{known}`" for known in by_name)
            raise UsageError(
                f"The model has no input `{name}`, which --fill names."
                f"{did_you_mean(name, by_name)} Its inputs are {listed}."
            )
        info = by_name[name]
        if info.dtype is None or info.dtype.kind == "O" or info.shape is None:
            raise UsageError(f"Input `{name}` is {info.kind}; --fill is for tensors of numbers.")
        if info.dtype.kind in "biu" and not _is_whole(value, info.dtype):
            raise UsageError(f"Input `{name}` is {info.dtype.name}; --fill says {value:g}.")
    rest = [info for info in inputs if info.name not in fill]
    if not rest:
        raise UsageError("--fill names all inputs of the model; leave out those that data give.")
    return rest


def filled(samples: Samples, inputs: Sequence[TensorInfo], fill: Mapping[str, float]) -> Samples:
    """The samples with the inputs in `fill` besides, each full of its value.

    An open size is that of the same name in the data; else the number of samples in a run for the
    first axis, and 1 for others.
    """
    infos = [info for info in inputs if info.name in fill]

    def read() -> Iterator[Sample]:
        for sample in samples:
            sizes = _sizes(sample, inputs)
            more = {
                info.name: np.full(_shape(info, sizes, sample.rows), fill[info.name], info.dtype)
                for info in infos
            }
            yield replace(sample, feeds={**sample.feeds, **more})

    batchable = samples.batchable and is_batchable(infos)
    return Samples(samples.name, read, samples.count, batchable=batchable, remark=samples.remark)


def _sizes(sample: Sample, inputs: Sequence[TensorInfo]) -> dict[Dim, int]:
    """The sizes of the data by the names that the model gives them."""
    found: dict[Dim, int] = {}
    for info in inputs:
        if info.name in sample.feeds and info.shape is not None:
            found.update(zip(info.shape, sample.feeds[info.name].shape, strict=False))
    return {name: size for name, size in found.items() if isinstance(name, str)}


def _is_whole(value: float, dtype: np.dtype) -> bool:
    """Whether a type of integers, or of truth, holds the value."""
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return value == int(value) and low <= int(value) <= high


def _shape(info: TensorInfo, sizes: Mapping[Dim, int], rows: int) -> tuple[int, ...]:
    assert info.shape is not None
    return tuple(
        size if isinstance(size, int) else sizes.get(size, 1 if axis else rows)
        for axis, size in enumerate(info.shape)
    )

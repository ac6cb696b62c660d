"""Samples as rows: one array for each input, whose first axis counts samples.

Shapes and types are checked before a value is read.

Owns: how rows become the inputs of runs. Not here: reading files (see `npz`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from onnxslim.errors import UsageError
from onnxslim.pipeline.data_settings import DataSettings
from onnxslim.runtime.samples.fitting import (
    cast_array,
    check_dtype,
    check_scale,
    choose_arrays,
    group_size,
    is_batchable,
)
from onnxslim.runtime.samples.input_sizes import fits, spell_shape
from onnxslim.runtime.samples.npz import ArrayHeader
from onnxslim.runtime.samples.stream import Sample, Samples, counted
from onnxslim.runtime.samples.user_values import at_position
from onnxslim.runtime.session import Dim, TensorInfo

Block = Mapping[str, np.ndarray]
"""The same rows of each array by its name."""


class RowLayout:
    """How the rows of arrays become the inputs of runs, derived from shapes and types alone.

    Raises:
        UsageError: the arrays do not fit the inputs.
    """

    def __init__(
        self,
        name: str,
        arrays: Mapping[str, ArrayHeader],
        inputs: Sequence[TensorInfo],
        settings: DataSettings = DataSettings(),  # noqa: B008
    ) -> None:
        self.name, self.inputs, self.settings = name, inputs, settings
        self.chosen = choose_arrays(name, arrays, inputs, settings)
        headers = {key: arrays[array] for key, array in self.chosen.inputs.items()}
        # an array with one axis more than the input holds whole inputs, not rows of a batch
        self.stacked = {i.name: _is_stacked(headers[i.name].shape, i.shape) for i in inputs}
        self.group = 1 if any(self.stacked.values()) else group_size(inputs)
        for info in inputs:
            is_scaled = settings.scale is not None
            check_dtype(headers[info.name].dtype, info, self._where(info), is_scaled=is_scaled)
            self._check_shape(info, headers[info.name].shape)
        check_scale(settings, {i.name: headers[i.name].dtype for i in inputs}, inputs, name)
        used = {key: arrays[key].shape for key in self.chosen.all}
        counts = {key: shape[0] if shape else 0 for key, shape in used.items()}
        if len(set(counts.values())) > 1:
            words = ", ".join(f"`{key}` {count}" for key, count in counts.items())
            raise UsageError(f"The arrays of {name} differ in their number of samples: {words}.")
        self.count = min(counts.values(), default=0)
        if not self.count:
            raise UsageError(f"{name} holds no samples.")
        if self.count < self.group:
            raise UsageError(
                f"{name} holds {counted(self.count)}, but the model takes {self.group} at a time."
            )

    def samples(self, blocks: Callable[[], Iterator[Block]]) -> Samples:
        """Samples that read the named arrays in `blocks` of rows."""
        usable = self.count - self.count % self.group
        batchable = is_batchable(self.inputs) and not any(self.stacked.values())
        renamed = (f"`{k}` is array `{v}`" for k, v in self.chosen.inputs.items() if k != v)
        remark = "" if at_position(0) in self.chosen.all else ", ".join(renamed)
        return Samples(
            self.name, lambda: self._cut(blocks()), usable, batchable=batchable, remark=remark
        )

    def _cut(self, blocks: Iterator[Block]) -> Iterator[Sample]:
        if self.group > 1:
            blocks = _regrouped(blocks, self.group)
        for block in blocks:
            fitting = {
                i.name: cast_array(block[self._array(i)], i, self._where(i), self.settings.scale)
                for i in self.inputs
            }
            labels = None if self.chosen.label is None else block[self.chosen.label]
            for start in range(0, len(next(iter(block.values()))), self.group):
                stop = start + self.group
                feeds = {  # `...`: a row of one number is an array too, without an axis
                    key: array[start, ...] if self.stacked[key] else array[start:stop]
                    for key, array in fitting.items()
                }
                part = None if labels is None else labels[start:stop]
                yield Sample(feeds, self.group, part)

    def _check_shape(self, info: TensorInfo, shape: tuple[int, ...]) -> None:
        declared = info.shape
        if self.stacked[info.name] or (declared is None and shape):
            return
        if declared and fits((self.group, *shape[1:]), declared):
            return
        has_batch = declared and (not isinstance(declared[0], int) or declared[0] == self.group)
        wanted = ("samples", *(declared or ())[1 if has_batch else 0 :])
        raise UsageError(
            f"{self._where(info)} has the shape {list(shape)}; input `{info.name}` of the model "
            f"needs {spell_shape(wanted)}."
        )

    def _where(self, info: TensorInfo) -> str:
        array = self._array(info)
        return f"Array `{info.name if array == at_position(0) else array}` of {self.name}"

    def _array(self, info: TensorInfo) -> str:
        return self.chosen.inputs[info.name]


def _is_stacked(shape: tuple[int, ...], declared: tuple[Dim, ...] | None) -> bool:
    return declared is not None and len(shape) == len(declared) + 1 and fits(shape[1:], declared)


def _regrouped(blocks: Iterator[Block], group: int) -> Iterator[Block]:
    """Blocks whose length is a multiple of `group`; a shorter remainder at the end is dropped."""
    rest: Block = {}
    for block in blocks:
        whole = {k: np.concatenate((rest[k], v)) if k in rest else v for k, v in block.items()}
        length = len(next(iter(whole.values())))
        cut = length - length % group
        rest = {key: value[cut:] for key, value in whole.items()}
        if cut:
            yield {key: value[:cut] for key, value in whole.items()}

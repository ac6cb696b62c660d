"""Samples as rows: one array for each input, whose first axis counts samples.

Shapes and types are checked before a value is read.

Owns: how rows become the inputs of runs. Not here: reading files (see `npz`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from onnxslim.errors import UsageError
from onnxslim.runtime.samples.fitting import (
    LABELS,
    cast_array,
    check_dtype,
    check_names,
    group_size,
    has_input,
    is_batchable,
)
from onnxslim.runtime.samples.input_sizes import fits, spell_shape
from onnxslim.runtime.samples.npz import ArrayHeader
from onnxslim.runtime.samples.stream import Sample, Samples, counted
from onnxslim.runtime.session import Dim, TensorInfo


class RowLayout:
    """How the rows of arrays become the inputs of runs, derived from shapes and types alone.

    Raises:
        UsageError: the arrays do not fit the inputs.
    """

    def __init__(
        self, name: str, headers: Mapping[str, ArrayHeader], inputs: Sequence[TensorInfo]
    ) -> None:
        self.name, self.inputs = name, inputs
        check_names(name, headers, inputs)
        self.label = next(
            (key for key in LABELS if key in headers and not has_input(inputs, key)), None
        )
        self.names = [info.name for info in inputs] + ([self.label] if self.label else [])
        # an array with one axis more than the input holds whole inputs, not rows of a batch
        self.stacked = {i.name: _is_stacked(headers[i.name].shape, i.shape) for i in inputs}
        self.group = 1 if any(self.stacked.values()) else group_size(inputs)
        for info in inputs:
            check_dtype(headers[info.name].dtype, info, self._where(info))
            self._check_shape(info, headers[info.name].shape)
        counts = {key: headers[key].shape[0] if headers[key].shape else 0 for key in self.names}
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

    def samples(self, blocks: Callable[[], Iterator[Mapping[str, np.ndarray]]]) -> Samples:
        """Samples that read the named arrays in `blocks` of rows."""
        usable = self.count - self.count % self.group
        batchable = is_batchable(self.inputs) and not any(self.stacked.values())
        return Samples(self.name, lambda: self._cut(blocks()), usable, batchable=batchable)

    def _cut(self, blocks: Iterator[Mapping[str, np.ndarray]]) -> Iterator[Sample]:
        if self.group > 1:
            blocks = _regrouped(blocks, self.group)
        for block in blocks:
            fitting = {i.name: cast_array(block[i.name], i, self._where(i)) for i in self.inputs}
            labels = None if self.label is None else block[self.label]
            for start in range(0, len(block[self.names[0]]), self.group):
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
        return f"Array `{info.name}` of {self.name}"


def _is_stacked(shape: tuple[int, ...], declared: tuple[Dim, ...] | None) -> bool:
    return declared is not None and len(shape) == len(declared) + 1 and fits(shape[1:], declared)


def _regrouped(
    blocks: Iterator[Mapping[str, np.ndarray]], group: int
) -> Iterator[Mapping[str, np.ndarray]]:
    """Blocks whose length is a multiple of `group`; a shorter remainder at the end is dropped."""
    rest: Mapping[str, np.ndarray] = {}
    for block in blocks:
        whole = {k: np.concatenate((rest[k], v)) if k in rest else v for k, v in block.items()}
        length = len(next(iter(whole.values())))
        cut = length - length % group
        rest = {key: value[cut:] for key, value in whole.items()}
        if cut:
            yield {key: value[:cut] for key, value in whole.items()}

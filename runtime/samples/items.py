"""Samples as items: each is the input of one run, a sample or a batch.

Owns: how the arrays of an item become the inputs of runs. Not here: where items come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from onnxslim.errors import UsageError
from onnxslim.runtime.samples.fitting import cast_array, check_dtype, group_size, is_batchable
from onnxslim.runtime.samples.input_sizes import fits, spell_shape
from onnxslim.runtime.samples.stream import Sample, Samples, in_groups
from onnxslim.runtime.session import TensorInfo

RunItem = tuple[Mapping[str, np.ndarray], np.ndarray | None]
"""The arrays of one item by input name, and its labels."""


def samples_of_items(
    name: str,
    items: Callable[[], Iterator[RunItem]],
    inputs: Sequence[TensorInfo],
    *,
    word: str = "sample",
    count: int | None = None,
    remark: str = "",
) -> Samples:
    """Samples that are read one item at a time.

    Args:
        name: of the source.
        items: starts over at the first item.
        inputs: of the model.
        word: what an item is called in messages.
        count: number of items that are one sample each; None: an item may be a batch.
        remark: how the source was understood.
    """
    group = group_size(inputs)

    def read() -> Iterator[Sample]:
        number = 0
        for number, (feeds, labels) in enumerate(items(), 1):
            yield from _fitted(feeds, labels, inputs, f"{word} {number} of {name}")
        if not number:
            raise UsageError(f"{name} holds no samples.")

    def joined() -> Iterator[Sample]:
        is_empty = True
        for sample in in_groups(read(), group):
            is_empty = False
            yield sample
        if is_empty:
            raise UsageError(f"{name} holds too few samples: the model takes {group} at a time.")

    usable = None if count is None else count - count % group
    return Samples(name, joined, usable, batchable=is_batchable(inputs), remark=remark)


def item_input(
    array: np.ndarray, info: TensorInfo, where: str, scale: float | None = None
) -> np.ndarray:
    """An array of the item that `where` names, checked and converted to the type of its input.

    Raises:
        UsageError: as `check_dtype` and `cast_array`.
    """
    place = _place(info.name, where)
    check_dtype(array.dtype, info, place, is_scaled=scale is not None)
    return cast_array(array, info, place, scale)


def _place(name: str, where: str) -> str:
    return f"Input `{name}` of {where}"


def _fitted(
    feeds: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    inputs: Sequence[TensorInfo],
    where: str,
) -> Iterator[Sample]:
    """The item as one run where it fits; otherwise with a batch axis added, or cut into runs."""
    labels = None if labels is None else np.atleast_1d(labels)
    shapes = {info.name: info.shape for info in inputs if info.shape is not None}
    group = group_size(inputs)
    if all(fits(feeds[name].shape, shape) for name, shape in shapes.items()):
        rows = {len(array) if array.ndim else 1 for array in feeds.values()}
        together = rows.pop() if len(rows) == 1 and is_batchable(inputs) else group
        yield Sample(feeds, together, labels)
        return
    if all(fits((group, *feeds[name].shape), shape) for name, shape in shapes.items()):
        # a model that takes several at a time gets them joined (`in_groups`)
        yield Sample({name: array[np.newaxis] for name, array in feeds.items()}, 1, labels)
        return
    counts = {len(array) if array.ndim else 0 for array in feeds.values()}
    fitting = all(fits((group, *feeds[n].shape[1:]), shape) for n, shape in shapes.items())
    if not fitting or len(counts) != 1 or counts.pop() % group:
        name = next(n for n, shape in shapes.items() if not fits(feeds[n].shape, shape))
        raise UsageError(
            f"{_place(name, where)} has the shape {list(feeds[name].shape)}; the model needs "
            f"{spell_shape(shapes[name])}."
        )
    for start in range(0, len(next(iter(feeds.values()))), group):
        part = {name: array[start : start + group] for name, array in feeds.items()}
        yield Sample(part, group, None if labels is None else labels[start : start + group])

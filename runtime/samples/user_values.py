"""What users' own code gives as samples, as plain arrays: tensors, tuples, mappings, datasets.

Libraries are recognised by what their objects can do, so that none of them is imported: a tensor of
torch has `detach`, a dataset has `__len__` and `__getitem__`.

Owns: one item of a source as arrays by name or by position. Not here: which of them is for which
input (see `fitting`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from onnxslim.errors import UsageError
from onnxslim.pipeline.data_settings import LABEL

Parts = dict[str, np.ndarray]
"""Arrays of one item by name; arrays without names are `[0]`, `[1]`, ... by their position."""


@runtime_checkable
class ArrayLike(Protocol):
    """An array of any library."""

    @property
    def shape(self) -> Sequence[int]:
        """Its sizes."""

    @property
    def dtype(self) -> object:
        """The type of its values."""


@runtime_checkable
class Dataset(Protocol):
    """Items by number, as datasets of torch and of Hugging Face have them."""

    def __len__(self) -> int:
        """The number of items."""

    def __getitem__(self, number: int, /) -> object:
        """One item."""


def as_array(value: object) -> np.ndarray:
    """A value as a numpy array; a tensor of torch from whatever device it lies on.

    Raises:
        UsageError: its values have no form in numpy.
    """
    if isinstance(value, np.ndarray):
        return value
    try:
        detach = getattr(value, "detach", None)
        if detach is not None:
            value = detach().cpu()
            if "bfloat16" in str(getattr(value, "dtype", "")):
                value = value.float()  # type: ignore[attr-defined]
        return np.asarray(value)
    except Exception as error:  # by whatever library made the value
        raise UsageError(
            f"A sample of type {type(value).__name__} cannot be made an array: {error}."
        ) from error


def at_position(number: int) -> str:
    """What an array without a name is called."""
    return f"[{number}]"


def item_parts(item: object) -> Parts:
    """The arrays of one item: by name of a mapping, by position of a tuple, or the item itself.

    Of a tuple that begins with a mapping, a second part is the labels.
    """
    if isinstance(item, Mapping):
        return {str(key): as_array(value) for key, value in item.items()}
    if isinstance(item, tuple | list) and item:
        first = item[0]
        if isinstance(first, Mapping) and len(item) <= 2:
            labels = {LABEL: as_array(item[1])} if len(item) == 2 else {}
            return {**item_parts(first), **labels}
        if isinstance(first, ArrayLike):
            return {at_position(number): as_array(part) for number, part in enumerate(item)}
    return {at_position(0): as_array(item)}


def items_of(source: object) -> Iterator[object]:
    """The items of an iterable, or of a dataset by number.

    A dataset need not raise `IndexError` behind its end, which Python's own loop waits for.
    """
    if isinstance(source, Iterable):
        yield from source
        return
    assert isinstance(source, Dataset)
    for number in range(len(source)):
        yield source[number]

"""Samples from what the user gave: files, folders, functions, arrays, iterables, datasets.

There are two ways to give samples. *Rows* (an .npz file, a mapping of arrays): one array for each
input, whose first axis counts samples. *Items* (a folder of files, an iterable, a function that
returns one): each item is the input of one run, a sample or a batch. Labels beside the inputs make
the source an evaluation set. Samples are streamed: no source is in memory as a whole unless the
user put it there.

Owns: which sources are understood. Not here: checks of arrays (see `fitting` and `rows`), and what
pictures, texts and sounds become (see `pictures`, `texts`, `sounds`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from onnxslim.pipeline.data_settings import DataKind, DataSettings
from onnxslim.runtime.samples.filling import filled, unfilled
from onnxslim.runtime.samples.fitting import check_scale, choose_arrays, only_input
from onnxslim.runtime.samples.given import AnySource, GivenData, given_data
from onnxslim.runtime.samples.items import RunItem, item_input, samples_of_items
from onnxslim.runtime.samples.npz import ArrayHeader, read_arrays, read_headers, read_npy, read_rows
from onnxslim.runtime.samples.pictures import open_pictures
from onnxslim.runtime.samples.rows import RowLayout
from onnxslim.runtime.samples.sounds import open_sounds
from onnxslim.runtime.samples.stream import Samples
from onnxslim.runtime.samples.subsets import Keep, chosen, dealt
from onnxslim.runtime.samples.texts import open_texts
from onnxslim.runtime.samples.user_values import ArrayLike, Parts, at_position, item_parts
from onnxslim.runtime.session import TensorInfo


def open_samples(source: AnySource, inputs: Sequence[TensorInfo]) -> Samples:
    """Samples for a model with these inputs.

    Raises:
        UsageError: the source cannot be read, or does not fit the inputs. Sources whose arrays
            appear only while they are read raise it then.
    """
    given = given_data(source)
    fill = given.settings.fill
    samples = _OPENERS[given.kind](given, unfilled(inputs, fill))
    samples = filled(samples, inputs, fill) if fill else samples
    part = _PARTS.get(given.settings.samples or "all")
    return samples if part is None else chosen(samples, part)


def _open_arrays(given: GivenData, inputs: Sequence[TensorInfo]) -> Samples:
    if given.path is not None:
        return _open_path(given.path, given, inputs)
    found = given.called
    if isinstance(found, Mapping | ArrayLike):
        return _open_rows(given.name, item_parts(found), inputs, given.settings)
    return _open_items(given.name, given.parts(), inputs, given.settings)


def _open_path(path: Path, given: GivenData, inputs: Sequence[TensorInfo]) -> Samples:
    if path.is_dir():
        files = _FileItems(given.files, inputs, given.settings)
        return _open_items(given.name, files, inputs, given.settings, word="file")
    if path.suffix.lower() == ".npy":
        only_input(inputs, path.name)
        return _open_rows(path.name, {at_position(0): read_npy(path)}, inputs, given.settings)
    layout = RowLayout(path.name, read_headers(path), inputs, given.settings)
    return layout.samples(lambda: read_rows(path, layout.chosen.all))


def _open_rows(
    name: str,
    arrays: Mapping[str, np.ndarray],
    inputs: Sequence[TensorInfo],
    settings: DataSettings,
) -> Samples:
    headers = {key: ArrayHeader(value.shape, value.dtype) for key, value in arrays.items()}
    layout = RowLayout(name, headers, inputs, settings)
    return layout.samples(lambda: iter(({key: arrays[key] for key in layout.chosen.all},)))


class _FileItems:
    """The arrays that an input needs, of one .npz or .npy file after the other."""

    def __init__(
        self, files: Sequence[Path], inputs: Sequence[TensorInfo], settings: DataSettings
    ) -> None:
        self._files, self._inputs, self._settings = files, inputs, settings

    def __iter__(self) -> Iterator[Parts]:
        for path in self._files:
            if path.suffix.lower() == ".npy":
                only_input(self._inputs, path.name)
                yield {at_position(0): read_npy(path)}
                continue
            headers = read_headers(path)
            chosen = choose_arrays(path.name, list(headers), self._inputs, self._settings)
            yield read_arrays(path, chosen.all)


def _open_items(
    name: str,
    items: Iterable[Parts],
    inputs: Sequence[TensorInfo],
    settings: DataSettings,
    word: str = "sample",
) -> Samples:
    def read() -> Iterator[RunItem]:
        for number, item in enumerate(items, 1):
            yield _run_item(item, inputs, settings, f"{word} {number} of {name}")

    return samples_of_items(name, read, inputs, word=word)


def _run_item(
    item: Parts, inputs: Sequence[TensorInfo], settings: DataSettings, where: str
) -> RunItem:
    chosen = choose_arrays(f"{where[0].upper()}{where[1:]}", item, inputs, settings)
    arrays = {info.name: item[chosen.inputs[info.name]] for info in inputs}
    feeds = {i.name: item_input(arrays[i.name], i, where, settings.scale) for i in inputs}
    types = {name: array.dtype for name, array in arrays.items()}
    check_scale(settings, types, inputs, where)
    return feeds, None if chosen.label is None else item[chosen.label]


_PART_OF: Final = 5
# the setting `samples` -> which belong to it
_PARTS: Final[Mapping[str, Keep]] = {
    "most": lambda number, count: not dealt(0, _PART_OF)(number, count),
    "rest": dealt(0, _PART_OF),
}
_OPENERS: Mapping[DataKind, Callable[[GivenData, Sequence[TensorInfo]], Samples]] = {
    DataKind.ARRAYS: _open_arrays,
    DataKind.PICTURES: open_pictures,
    DataKind.TEXT: open_texts,
    DataKind.SOUND: open_sounds,
}

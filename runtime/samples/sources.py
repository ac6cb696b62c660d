"""Sample inputs from the user: .npz, folders, `module:function`, arrays and iterables.

There are two ways to give samples. *Rows* (an .npz file, a mapping of arrays): one array for each
input, whose first axis counts samples. *Items* (a folder of files, an iterable, a function that
returns one): each item is the input of one run, a sample or a batch. An array `label` or `labels`
beside the inputs makes the source an evaluation set. Samples are streamed: no source is in memory
as a whole unless the user put it there.

Owns: which sources are understood. Not here: checks of arrays (see `fitting` and `rows`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from onnxslim.errors import UsageError
from onnxslim.runtime.samples import user_function
from onnxslim.runtime.samples.fitting import (
    LABELS,
    cast_array,
    check_dtype,
    check_names,
    group_size,
    has_input,
    is_batchable,
    only_input,
)
from onnxslim.runtime.samples.input_sizes import fits, spell_shape
from onnxslim.runtime.samples.npz import ArrayHeader, read_arrays, read_headers, read_npy, read_rows
from onnxslim.runtime.samples.rows import RowLayout
from onnxslim.runtime.samples.stream import Sample, Samples
from onnxslim.runtime.session import TensorInfo

Item = Mapping[str, np.ndarray] | np.ndarray
SampleSource = str | os.PathLike[str] | Mapping[str, np.ndarray] | Iterable[Item]


def open_samples(source: SampleSource, inputs: Sequence[TensorInfo]) -> Samples:
    """Samples for a model with these inputs.

    Raises:
        UsageError: the source cannot be read, or does not fit the inputs. Sources whose arrays
            appear only while they are read raise it then.
    """
    if isinstance(source, (str, os.PathLike)):
        return _open_named(source, inputs)
    if isinstance(source, Mapping):
        return _open_rows("arrays in memory", source, inputs)
    if iter(source) is source:
        raise UsageError(
            "Samples are read more than once, which an iterator does not allow. Give a list, or "
            "a function that returns a new iterator."
        )
    return _open_items("samples in memory", lambda: iter(source), inputs)


def _open_named(source: str | os.PathLike[str], inputs: Sequence[TensorInfo]) -> Samples:
    path = Path(source)
    if path.is_dir():
        return _open_folder(path, inputs)
    if path.exists() or path.suffix.lower() in (".npz", ".npy"):
        return _open_file(path, inputs)
    if user_function.is_function_name(str(source)):
        return _open_function(str(source), inputs)
    raise UsageError(
        f"There is no file or folder `{source}`, and it is no `module:function` either. Give an "
        ".npz file, a folder of .npz or .npy files, or a function."
    )


def _open_function(spec: str, inputs: Sequence[TensorInfo]) -> Samples:
    function = user_function.load_function(spec)
    result = user_function.call(function, spec)
    if isinstance(result, Mapping):
        return _open_rows(f"`{spec}`", result, inputs)
    if isinstance(result, np.ndarray):
        return _open_rows(f"`{spec}`", {only_input(inputs, spec).name: result}, inputs)
    if not isinstance(result, Iterable):
        raise UsageError(
            f"`{spec}` returned {type(result).__name__}; it must return arrays by input name, or "
            "an iterable of such samples."
        )
    if iter(result) is not result:
        return _open_items(f"`{spec}`", lambda: iter(result), inputs)
    return _open_items(f"`{spec}`", lambda: _again(function, spec), inputs)


def _again(function: Callable[..., object], spec: str) -> Iterator[Item]:
    iterator = iter(cast("Iterable[Item]", user_function.call(function, spec)))
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise user_function.failed(spec, error) from error
        yield item


def _open_file(path: Path, inputs: Sequence[TensorInfo]) -> Samples:
    if path.suffix.lower() == ".npy":
        return _open_rows(path.name, {only_input(inputs, path.name).name: read_npy(path)}, inputs)
    headers = read_headers(path)
    layout = RowLayout(path.name, headers, inputs)
    return layout.samples(lambda: read_rows(path, layout.names))


def _open_rows(
    name: str, arrays: Mapping[str, np.ndarray], inputs: Sequence[TensorInfo]
) -> Samples:
    plain = {str(key): np.asarray(value) for key, value in arrays.items()}
    headers = {key: ArrayHeader(value.shape, value.dtype) for key, value in plain.items()}
    layout = RowLayout(name, headers, inputs)
    return layout.samples(lambda: iter(({key: plain[key] for key in layout.names},)))


def _open_folder(folder: Path, inputs: Sequence[TensorInfo]) -> Samples:
    files = sorted(item for item in folder.iterdir() if item.suffix.lower() in (".npz", ".npy"))
    if not files:
        raise UsageError(f"The folder `{folder}` holds no .npz or .npy files.")
    name = folder.name or str(folder)
    return _open_items(name, lambda: _load_files(files, inputs), inputs, word="file")


def _load_files(files: Sequence[Path], inputs: Sequence[TensorInfo]) -> Iterator[Item]:
    for path in files:
        if path.suffix.lower() == ".npy":
            yield {only_input(inputs, path.name).name: read_npy(path)}
            continue
        headers = read_headers(path)
        check_names(path.name, headers, inputs)
        yield read_arrays(path, [k for k in headers if k in LABELS or has_input(inputs, k)])


def _open_items(
    name: str,
    items: Callable[[], Iterator[Item]],
    inputs: Sequence[TensorInfo],
    word: str = "sample",
) -> Samples:
    def read() -> Iterator[Sample]:
        number = 0
        for number, item in enumerate(items(), 1):
            yield from _item_samples(item, inputs, f"{word.capitalize()} {number} of {name}")
        if not number:
            raise UsageError(f"{name} holds no samples.")

    # an item may be a batch, so counting items would not count samples
    return Samples(name, read, None, batchable=is_batchable(inputs))


def _item_samples(item: Item, inputs: Sequence[TensorInfo], where: str) -> Iterator[Sample]:
    if isinstance(item, np.ndarray):
        item = {only_input(inputs, where).name: item}
    if not isinstance(item, Mapping):
        raise UsageError(
            f"{where} is {type(item).__name__}; it must be a mapping of arrays by input name."
        )
    check_names(where, item, inputs)
    feeds = {}
    for info in inputs:
        place = _place(info.name, where)
        array = np.asarray(item[info.name])
        check_dtype(array.dtype, info, place)
        feeds[info.name] = cast_array(array, info, place)
    label = next((item[key] for key in LABELS if key in item and not has_input(inputs, key)), None)
    labels = None if label is None else np.atleast_1d(np.asarray(label))
    yield from _fitted(feeds, labels, inputs, where)


def _fitted(
    feeds: dict[str, np.ndarray],
    labels: np.ndarray | None,
    inputs: Sequence[TensorInfo],
    where: str,
) -> Iterator[Sample]:
    """The item as one run where it fits; otherwise with a batch axis added, or cut into runs."""
    shapes = {info.name: info.shape for info in inputs if info.shape is not None}
    if all(fits(feeds[name].shape, shape) for name, shape in shapes.items()):
        rows = {len(array) if array.ndim else 1 for array in feeds.values()}
        together = rows.pop() if len(rows) == 1 and is_batchable(inputs) else group_size(inputs)
        yield Sample(feeds, together, labels)
        return
    if all(fits((1, *feeds[name].shape), shape) for name, shape in shapes.items()):
        yield Sample({name: array[np.newaxis] for name, array in feeds.items()}, 1, labels)
        return
    group = group_size(inputs)
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


def _place(name: str, where: str) -> str:
    return f"Input `{name}` of {where[0].lower()}{where[1:]}"

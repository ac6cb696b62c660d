"""`GivenData`: what the user gave as samples, with the settings to read it by.

One object stands for one source in a whole run, so what can be read only once is kept in one place.

Owns: which kind of data a source is. Not here: how each kind becomes samples (see `sources`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

from onnxslim.errors import UsageError
from onnxslim.pipeline.data_settings import DataKind, DataSettings
from onnxslim.runtime.samples import user_function
from onnxslim.runtime.samples.kept_items import KeptItems
from onnxslim.runtime.samples.user_values import (
    ArrayLike,
    Dataset,
    Parts,
    item_parts,
    items_of,
)

SampleSource = (
    str
    | os.PathLike[str]
    | Mapping[str, ArrayLike]
    | ArrayLike
    | Iterable[object]
    | Dataset
    | Callable[[], object]
)
"""A path or `module:function`; arrays; an iterable or dataset of items; a function of these."""

ENDINGS: Final[Mapping[DataKind, frozenset[str]]] = {
    DataKind.ARRAYS: frozenset({".npz", ".npy"}),
    DataKind.PICTURES: frozenset(
        {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
    ),
    DataKind.TEXT: frozenset({".txt", ".tsv"}),
    DataKind.SOUND: frozenset({".wav", ".flac", ".ogg"}),
}
"""Endings of files by what they hold, in lower case."""


class GivenData:
    """A source of samples and how to read it.

    Args:
        source: what the user gave.
        settings: how it is read.
        declared: how pictures are read where `settings` do not say.

    Attributes:
        name: what to call it in messages.
    """

    def __init__(
        self,
        source: SampleSource,
        settings: DataSettings = DataSettings(),  # noqa: B008
        declared: DataSettings = DataSettings(),  # noqa: B008
    ) -> None:
        self.source, self.settings, self.declared = source, settings, declared
        self.name = _name(source)
        self._kept: dict[object, KeptItems] = {}

    @cached_property
    def path(self) -> Path | None:
        """The file or folder that is named; None where none is.

        Raises:
            UsageError: there is nothing of this name, and no function of this form.
        """
        if not isinstance(self.source, str | os.PathLike):
            return None
        path = Path(self.source)
        if path.exists() or path.suffix.lower() in ENDINGS[DataKind.ARRAYS]:
            return path
        if not user_function.is_function_name(str(self.source)):
            raise UsageError(
                f"There is no file or folder `{self.source}`, and it is no `module:function` "
                "either. Give an .npz file; a folder of pictures, sounds, .npz or .npy files; a "
                "file of texts; or a function."
            )
        return None

    @cached_property
    def files(self) -> Sequence[Path]:
        """The files of samples, in the order of their names: those of a folder, or the one named.

        Raises:
            UsageError: a folder holds no such files.
        """
        if self.path is None:
            return ()
        if not self.path.is_dir():
            return (self.path,)
        kind = self.kind
        found = self.path.rglob("*") if kind is not DataKind.ARRAYS else self.path.iterdir()
        return sorted(item for item in found if _ending(item) in ENDINGS[kind])

    @cached_property
    def kind(self) -> DataKind:
        """What the source is made of.

        Raises:
            UsageError: a folder holds none of the kinds, or several.
        """
        if self.path is None:
            return DataKind.ARRAYS
        if not self.path.is_dir():
            kinds = (kind for kind in DataKind if _ending(self.path) in ENDINGS[kind])
            is_text = self.settings.tokenizer is not None
            return next(kinds, DataKind.TEXT if is_text else DataKind.ARRAYS)
        return _kind_of_folder(self.path)

    @cached_property
    def called(self) -> object:
        """The source, or what the function that it is or names returned.

        Raises:
            UsageError: the function cannot be imported, failed, or returned no samples.
        """
        return self.source if self._function is None else self._call()

    def parts(self) -> Iterable[Parts]:
        """The items of an iterable, a dataset or a function, the same in each reading.

        Raises:
            UsageError: they are no samples; while reading, too: the user's code failed.
        """
        found = self.called
        if isinstance(found, list | tuple):
            return _Listed(found)
        if not isinstance(found, Iterable | Dataset):
            raise UsageError(
                f"{self.name} returned {type(found).__name__}; it must return arrays by input "
                "name, or an iterable of such samples."
            )
        return self.kept(None, lambda: self._read(found))

    def kept(self, form: object, start: Callable[[], Iterator[Parts]]) -> KeptItems:
        """The items that `start` gives, read once for all that ask for the same `form`."""
        if form not in self._kept:
            self._kept[form] = KeptItems(self.name, start)
        return self._kept[form]

    def _read(self, found: object) -> Iterator[Parts]:
        items = items_of(found)
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except Exception as error:
                raise user_function.failed(self.name.strip("`"), error) from error
            yield item_parts(item)

    @cached_property
    def _function(self) -> Callable[..., object] | None:
        if self.path is not None:
            return None
        if isinstance(self.source, str):
            return user_function.load_function(self.source)
        is_data = isinstance(self.source, Iterable | Dataset | ArrayLike)
        return self.source if callable(self.source) and not is_data else None

    def _call(self) -> object:
        assert self._function is not None
        return user_function.call(self._function, self.name.strip("`"))


class _Listed:
    """Items that lie in memory already."""

    def __init__(self, items: Sequence[object]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Parts]:
        return map(item_parts, self._items)


AnySource = SampleSource | GivenData
"""A source, with settings to read it by or without any."""


def given_data(source: AnySource) -> GivenData:
    """The source with its settings; without any where it has none yet."""
    return source if isinstance(source, GivenData) else GivenData(source)


def _name(source: object) -> str:
    if isinstance(source, str) and not Path(source).exists() and ":" in source:
        return f"`{source}`"
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return path.name or str(path)
    if isinstance(source, Mapping | ArrayLike):
        return "arrays in memory"
    if isinstance(source, list | tuple):
        return "samples in memory"
    if callable(source) and not isinstance(source, Iterable | Dataset):
        return f"`{getattr(source, '__name__', type(source).__name__)}`"
    return f"the {type(source).__name__}"


def _ending(path: Path) -> str:
    return path.suffix.lower()


def _kind_of_folder(folder: Path) -> DataKind:
    endings = {_ending(item) for item in folder.iterdir() if item.is_file()}
    if not endings & ENDINGS[DataKind.ARRAYS]:
        endings = {_ending(item) for item in folder.rglob("*") if item.is_file()}
    kinds = [kind for kind in DataKind if kind is not DataKind.TEXT and endings & ENDINGS[kind]]
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        both = " and ".join(kind.value for kind in kinds)
        raise UsageError(f"The folder `{folder}` holds {both}. Give a folder for each.")
    raise UsageError(
        f"The folder `{folder}` holds no .npz or .npy files, no pictures (.jpg, .png, ...) and no "
        "sounds (.wav, ...)."
    )

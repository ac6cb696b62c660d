"""The sha256 of the data that a user gave, for the record of a run.

A file counts by its bytes, a folder by the names and bytes of the files in it, arrays by type,
shape and content. A function counts by the file that defines it: what it reads is not known.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, cast

import numpy as np

from onnxslim.runtime.samples import user_function
from onnxslim.runtime.samples.given import GivenData
from onnxslim.runtime.samples.user_values import ArrayLike, Dataset, as_array

_CHUNK: Final = 1 << 20  # bytes


def data_sha256(source: object) -> str | None:
    """The sha256 of samples or of a metric, in hex; None for a function of unknown origin.

    Args:
        source: as `calibration` and `evaluation` take it.
    """
    if isinstance(source, GivenData):
        is_read = isinstance(source.source, Iterable | Dataset) and not isinstance(
            source.source, str | Mapping | ArrayLike
        )
        return data_sha256(source.parts() if is_read else source.source)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            return _of_folder(path)
        if path.exists():
            return _of_file(path)
        return data_sha256(user_function.load_function(str(source)))
    if callable(source):
        return _of_function(source)
    digest = hashlib.sha256()
    _add(digest, source)
    return digest.hexdigest()


def content_sha256(source: GivenData) -> str | None:
    """The sha256 of samples as they come: of a function, of what it returned this time.

    Raises:
        UsageError: it failed, or returned no samples.
    """
    found = source.called
    if found is source.source:
        return data_sha256(source)
    is_read = not isinstance(found, str | Mapping | ArrayLike)
    return data_sha256(source.parts() if is_read else found)


def _of_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _of_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{_of_file(path)}\0".encode())
    return digest.hexdigest()


def _of_function(function: Callable[..., object]) -> str | None:
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # an object with `__call__`
        file = inspect.getsourcefile(type(function))
    return None if file is None or not Path(file).exists() else _of_file(Path(file))


def _add(digest: hashlib._Hash, item: object) -> None:
    """Add samples: arrays, by name or not, in mappings and iterables."""
    if isinstance(item, Mapping):
        for key, value in sorted(item.items(), key=lambda pair: str(pair[0])):
            digest.update(f"{key}\0".encode())
            _add(digest, value)
    elif isinstance(item, ArrayLike | str) or not isinstance(item, Iterable):
        array = as_array(item)
        digest.update(f"{array.dtype}{array.shape}\0".encode())
        plain = np.array(array.tolist(), str) if array.dtype.hasobject else array
        digest.update(np.ascontiguousarray(plain).tobytes())
    else:
        for part in cast("Iterable[object]", item):
            _add(digest, part)

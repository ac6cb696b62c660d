"""A folder of things that were computed, found again by what they were computed from.

An entry is a file named by its key; what several entries share (weights) lies beside them in files
named by the sha256 of their content. Files are written elsewhere and renamed into place, so an
entry is there whole or not at all, whatever ends the process, and several processes can use one
folder at once. What is torn, altered or foreign is taken for missing. Nothing keeps count of
anything: where room is needed, the files go that nobody used for the longest time, and an entry
whose weights are gone is missing, too.

Owns: which file holds what, and how much all may take. Not here: what entries mean.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

from onnxslim.graph.wire import Payload
from onnxslim.io import files
from onnxslim.io.files import Buffer

DEFAULT_LIMIT: Final = 5 * 10**9
"""Bytes that a folder may take where nobody said anything else."""

_MAGIC: Final = b"onnxslim kept 1\n"
_DIGEST_BYTES: Final = 32
_MAPPED_BYTES: Final = 1 << 20  # each map takes a file descriptor: smaller files are read
_ROOM: Final = 0.9  # share of the limit that is left when files have to go
_ENTRIES: Final = "steps"
_WEIGHTS: Final = "weights"
_LIMIT: Final = "limit"
_NAMES: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class KeptFile:
    """A file of the store: its bytes, and when it was used last, in seconds since 1970."""

    path: Path
    nbytes: int
    used: float

    @property
    def is_entry(self) -> bool:
        """Whether it is an entry; else it holds weights."""
        return self.path.parent.name == _ENTRIES


class ContentStore:
    """Entries by key in a folder, which is made when the first one is written.

    Args:
        folder: where they lie.

    Raises:
        OSError: by `write`, `set_limit` and `weights`, as the system gives it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._maps: WeakValueDictionary[str, Any] = WeakValueDictionary()

    def read(self, key: str, *, is_use: bool = True) -> bytes | None:
        """The content of an entry; None where there is none that is whole.

        Args:
            key: of the entry.
            is_use: whether it counts as used now.
        """
        path = self.folder / _ENTRIES / key
        with suppress(OSError):
            content = path.read_bytes()
            start = len(_MAGIC) + _DIGEST_BYTES
            body = content[start:]
            if content[:start] == _MAGIC + hashlib.sha256(body).digest():
                if is_use:
                    files.touch(path)
                return body
        return None

    def weights(self, digest: str) -> memoryview:
        """The weights with this digest, which the caller checks."""
        if not _NAMES.fullmatch(digest):
            raise FileNotFoundError(digest)
        path = self.folder / _WEIGHTS / digest
        files.touch(path)
        if path.stat().st_size < _MAPPED_BYTES:
            return memoryview(path.read_bytes())
        mapped = self._maps.get(digest)
        if mapped is None:
            mapped = files.map_bytes(path).obj
            self._maps[digest] = mapped
        return memoryview(mapped)

    def write(self, key: str, body: bytes, weights: Mapping[str, Payload]) -> None:
        """Keep an entry and the weights that it names, and make room for them."""
        for name in (_ENTRIES, _WEIGHTS):
            files.make_folders(self.folder / name)
        with files.temporary_folder(beside=self.folder / _ENTRIES) as made:
            for digest, payload in weights.items():
                self._put(made, self.folder / _WEIGHTS / digest, [payload.read()], payload.nbytes)
            head = _MAGIC + hashlib.sha256(body).digest()
            self._put(made, self.folder / _ENTRIES / key, [head, body])
        self.make_room()

    def _put(
        self, made: Path, place: Path, chunks: Iterable[Buffer], nbytes: int | None = None
    ) -> None:
        """Write a file into place, unless one of `nbytes` bytes is there."""
        with suppress(OSError):
            if nbytes is not None and place.stat().st_size == nbytes:
                files.touch(place)
                return
        files.write_file(made / place.name, chunks, lasting=False)
        files.rename(made / place.name, place)

    def remove(self, key: str) -> None:
        """Let go of an entry that is of no use, and of weights that are not what they were."""
        files.remove(self.folder / _ENTRIES / key)
        for file in self.kept():
            with suppress(OSError):
                if not file.is_entry and files.sha256_of(file.path) != file.path.name:
                    files.remove(file.path)

    # --------------------------------------------------------------------- room

    def kept(self) -> list[KeptFile]:
        """All files of the store, those first that were not used for the longest time."""
        return sorted(self._files(), key=lambda file: file.used)

    def _files(self) -> Iterator[KeptFile]:
        for folder in (self.folder / _ENTRIES, self.folder / _WEIGHTS):
            with suppress(OSError):
                for path in list(folder.iterdir()):
                    with suppress(OSError):  # another process may remove it
                        found = path.stat()
                        if _NAMES.fullmatch(path.name):
                            yield KeptFile(path, found.st_size, found.st_mtime)

    @property
    def limit(self) -> int:
        """Bytes that the files may take together."""
        with suppress(OSError, ValueError):
            return int((self.folder / _LIMIT).read_text("ascii"))
        return DEFAULT_LIMIT

    def set_limit(self, nbytes: int) -> None:
        """Say how many bytes the files may take, from now on and for all processes."""
        files.make_folders(self.folder)
        with files.temporary_folder(beside=self.folder / _LIMIT) as made:
            files.write_file(made / _LIMIT, [str(nbytes).encode()])
            files.rename(made / _LIMIT, self.folder / _LIMIT)
        self.make_room()

    def make_room(self) -> None:
        """Remove the files that nobody used for the longest time, where all take too much."""
        kept, limit = self.kept(), self.limit
        total = sum(file.nbytes for file in kept)
        if total <= limit:
            return
        for file in kept:
            files.remove(file.path)
            total -= file.nbytes
            if total <= _ROOM * limit:
                return

    def clear(self) -> None:
        """Remove all files of the store, and its folders where nothing else is in them."""
        for file in self.kept():
            files.remove(file.path)
        for name in (_LIMIT, _ENTRIES, _WEIGHTS):
            files.remove(self.folder / name)

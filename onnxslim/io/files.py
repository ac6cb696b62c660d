"""The seam to the file system: all that writes, maps, moves or removes a file goes through here.

`calls` is what the operating system is asked for, one method a request. Tests put another object
in its place, which fails at the request of their choice (`tests/faults.py`). No other module opens
a file for writing, maps one or makes a temporary one: `tests/repository/test_file_seam.py` holds
that.

Functions raise `OSError` as the system gives it. What it means for the user is said where the
file of the user is known (see `staging`).
"""

from __future__ import annotations

import hashlib
import importlib
import mmap
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

Buffer = bytes | memoryview
_BUFFER_BYTES: Final = 1 << 20
_BESIDE: Final = ".onnxslim"
_YOUNG_SECONDS: Final = 10.0

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None


class SystemCalls:
    """Requests to the operating system; each raises `OSError` where the system refuses."""

    def create(self, path: Path) -> IO[bytes]:
        """A new file, open for writing; its name must be free."""
        return path.open("xb", buffering=_BUFFER_BYTES)

    def scratch(self, in_memory: int) -> IO[bytes]:
        """A temporary file without a name, kept in memory up to so many bytes."""
        return tempfile.SpooledTemporaryFile(in_memory, prefix="onnxslim-")

    def write(self, stream: IO[bytes], chunk: Buffer) -> None:
        """Append `chunk`."""
        stream.write(chunk)

    def sync(self, stream: IO[bytes]) -> None:
        """Let the disk have all that was written."""
        stream.flush()
        os.fsync(stream.fileno())

    def map(self, path: Path) -> memoryview:
        """The content of a file, mapped for reading."""
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name, in place of the file that has it."""
        os.replace(source, target)

    def touch(self, path: Path) -> None:
        """Let a file be one that was used now."""
        os.utime(path)

    def make_folder(self, path: Path, mode: int = 0o777) -> None:
        """A new folder; its name must be free."""
        path.mkdir(mode)

    def remove(self, path: Path) -> None:
        """Remove a file, or an empty folder."""
        path.rmdir() if path.is_dir() else path.unlink()

    def remove_tree(self, folder: Path) -> None:
        """Remove a folder and all that is in it."""
        shutil.rmtree(folder)


calls = SystemCalls()


@contextmanager
def replaced(others: SystemCalls) -> Iterator[None]:
    """Ask `others` instead of the operating system."""
    global calls
    calls, before = others, calls
    try:
        yield
    finally:
        calls = before


# ---------------------------------------------------------------------- files


def map_bytes(path: Path) -> memoryview:
    """The content of a file, mapped into memory."""
    return calls.map(path)


def write_file(path: Path, chunks: Iterable[Buffer], *, lasting: bool = True) -> None:
    """Write `chunks` one after the other to a new file.

    Args:
        path: the file; its name must be free.
        chunks: the content.
        lasting: flush it to the disk; not needed where a file that lost its end is noticed.
    """
    with calls.create(path) as stream:
        for chunk in chunks:
            calls.write(stream, chunk)
        if lasting:
            calls.sync(stream)


def touch(path: Path) -> None:
    """Let a file be one that was used now, if the system lets it."""
    with suppress(OSError):
        calls.touch(path)


def rename(source: Path, target: Path) -> None:
    """Give a file another name, in place of the file that has it."""
    calls.rename(source, target)


def remove(path: Path) -> None:
    """Remove a file or an empty folder, if it is there and the system lets it go."""
    with suppress(OSError):
        calls.remove(path)


def append(stream: IO[bytes], chunk: Buffer) -> None:
    """Append to an open file; a full disk fails here, not in a later call."""
    calls.write(stream, chunk)
    stream.flush()


def scratch_file(in_memory: int) -> IO[bytes]:
    """A temporary file without a name; it disappears when it is closed or the process ends.

    Args:
        in_memory: bytes that are held in memory before the disk is used.
    """
    return calls.scratch(in_memory)


def same_content(a: Path, b: Path) -> bool:
    """Whether two paths hold files of the same bytes."""
    if not (a.is_file() and b.is_file()) or a.stat().st_size != b.stat().st_size:
        return False
    return sha256_of(a) == sha256_of(b)


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# -------------------------------------------------------------------- folders


def make_folders(path: Path) -> list[Path]:
    """Make a folder and those around it, where they are not there; returns those that were made."""
    made = [folder for folder in (*reversed(path.parents), path) if not folder.is_dir()]
    for number, folder in enumerate(made):
        try:
            calls.make_folder(folder)
        except BaseException:
            for other in reversed(made[:number]):
                remove(other)
            raise
    return made


def lasting_folder(name: str) -> Path:
    """A new folder for temporary files that the user will look at."""
    folder = _unused(Path(tempfile.gettempdir()), name)
    calls.make_folder(folder, 0o700)
    return folder


@contextmanager
def temporary_folder(beside: Path | None = None) -> Iterator[Path]:
    """A new folder that is gone afterwards, whatever happens but the end of the process.

    Args:
        beside: make it in the folder of this file, on the same disk; None: where temporary files
            go.
    """
    if beside is None:
        folder = _unused(Path(tempfile.gettempdir()), "onnxslim")
    else:
        folder = _unused(beside.parent, _BESIDE)
        _remove_orphans(beside.parent)
    try:  # the name is known before the folder is there: no interruption leaves it behind
        calls.make_folder(folder, 0o700)
        with _held(folder):
            yield folder
    finally:
        try:
            _remove_tree(folder)
        except BaseException:  # interrupted
            _remove_tree(folder)
            raise


def _lock(folder: Path) -> int | None:
    """A lock on a folder, as a file descriptor; it goes when the process ends, however it ends.

    None where somebody else has it, or where there are no locks.
    """
    if fcntl is None:
        return None
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    descriptor = _lock(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _remove_orphans(parent: Path) -> None:
    """Remove the folders of processes that were killed: nobody holds their locks."""
    for folder in parent.glob(f"{_BESIDE}-*"):
        with suppress(OSError):
            if folder.is_symlink() or time.time() - folder.stat().st_mtime < _YOUNG_SECONDS:
                continue  # its process may be about to lock it
            descriptor = _lock(folder)
            if descriptor is not None:
                _remove_tree(folder)
                os.close(descriptor)


def _unused(parent: Path, prefix: str) -> Path:
    return parent / f"{prefix}-{secrets.token_hex(8)}"


def _remove_tree(folder: Path) -> None:
    with suppress(OSError):
        calls.remove_tree(folder)

"""Files in and out: mapped when read, and written all or nothing.

A file is written into a temporary folder beside its target and renamed when it is complete: an
interrupted or failed run leaves no partial file and never touches its input.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from onnxslim.errors import UsageError

Buffer = bytes | memoryview


def map_file(path: Path) -> memoryview:
    """The content of a file, mapped into memory.

    Raises:
        UsageError: there is no such file, or it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise UsageError(f"There is no file `{path}`.") from None
    except IsADirectoryError:
        raise UsageError(f"`{path}` is a folder; give the path of an .onnx file.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"`{path}` cannot be read: {error}.") from error


def write_file(path: Path, chunks: Iterable[Buffer]) -> None:
    """Write `chunks` one after the other, and flush them to the disk."""
    with path.open("wb", buffering=1 << 20) as stream:
        for chunk in chunks:
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())


@dataclass
class Staged:
    """A file that lies complete in `file`, and will lie at `target` after `commit`.

    Attributes:
        external: data files of the input, which stay as they are.
    """

    file: Path
    target: Path
    external: tuple[Path, ...] = ()

    @property
    def file_bytes(self) -> int:
        """Size of the file and of its external data."""
        return sum(item.stat().st_size for item in self.file.parent.iterdir())

    @property
    def sha256(self) -> str:
        """Hex digest of the file, without its external data."""
        with self.file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def commit(self) -> None:
        """Move the file, and its data file first, to the target.

        Raises:
            UsageError: that would overwrite the weights of the input.
        """
        inputs = {item.resolve() for item in self.external}
        files = sorted(self.file.parent.iterdir(), key=lambda item: item == self.file)
        for item in files:
            if (self.target.parent / item.name).resolve() in inputs:
                raise UsageError(
                    f"Writing `{self.target}` would overwrite `{item.name}`, which holds the "
                    "weights of the input. Choose another name for the output."
                )
        for item in files:
            os.replace(item, self.target.parent / item.name)


@contextmanager
def stage_file(
    target: Path, source: Path | None = None, external: tuple[Path, ...] = ()
) -> Iterator[Staged]:
    """A temporary place beside `target` to write a file to, check it there, and commit it.

    Leaving the context without `commit` removes every trace.

    Args:
        target: where `commit` will put the file.
        source: the input, which is not to be overwritten.
        external: its data files.

    Raises:
        UsageError: the folder does not exist or cannot be written.
    """
    check_target(target, source, external)
    try:
        folder = Path(tempfile.mkdtemp(prefix=".onnxslim-", dir=target.parent))
    except OSError as error:
        raise UsageError(cannot_write(target, error)) from error
    try:
        yield Staged(folder / target.name, target, external)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn an error of the system while `target` is written into a sentence.

    Raises:
        UsageError: it cannot be written, or the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(cannot_write(target, error)) from error


def check_target(target: Path, source: Path | None, external: tuple[Path, ...] = ()) -> None:
    """Refuse a target that no file can be written to, or that belongs to the input.

    Raises:
        UsageError: the target is refused; with the reason.
    """
    if not target.parent.is_dir():
        raise UsageError(
            f"The folder `{target.parent}` of the output does not exist. Create it first."
        )
    if target.is_dir():
        raise UsageError(f"The output `{target}` is a folder; give a file name.")
    if target.exists() and not target.is_file():
        raise UsageError(f"The output `{target}` is a device or a pipe; give a file name.")
    if source is not None and target.exists() and target.samefile(source):
        raise UsageError(
            f"The output `{target}` is the input itself, and the input is never touched. "
            "Give another name."
        )
    for item in external:
        if target.exists() and target.samefile(item):
            raise UsageError(
                f"The output `{target}` is a data file of the input. Give another name."
            )


def cannot_write(target: Path, error: OSError) -> str:
    """Why `target` was not written, as a sentence."""
    if error.errno == errno.ENOSPC:
        return f"`{target}` was not written: the disk is full. Nothing was left behind."
    return f"`{target}` cannot be written: {error.strerror or error}."

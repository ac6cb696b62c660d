"""Files in and out: mapped when read, and written all or nothing.

A file is written into a temporary folder beside its target and renamed when it is complete: an
interrupted or failed run leaves no partial file and never touches its input.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from onnxslim.errors import UsageError, is_out_of_memory
from onnxslim.io import files
from onnxslim.io.files import Buffer


def map_file(path: Path) -> memoryview:
    """The content of a file, mapped into memory.

    Raises:
        UsageError: there is no such file, or it cannot be read.
        MemoryError: it does not fit into the address space of the process.
    """
    try:
        refuse_device(path)
        return files.map_bytes(path)
    except FileNotFoundError:
        raise UsageError(f"There is no file `{path}`.") from None
    except IsADirectoryError:
        raise UsageError(f"`{path}` is a folder; give the path of an .onnx file.") from None
    except (OSError, ValueError) as error:
        if is_out_of_memory(error):
            raise MemoryError from error
        raise UsageError(f"`{path}` cannot be read: {_reason(error)}.") from error


def refuse_device(path: Path) -> None:
    """Refuse what may never end, or never begin.

    Raises:
        UsageError: the path is a device or a pipe.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UsageError(f"`{path}` is a device or a pipe; give the path of a file.")


@dataclass
class Staged:
    """A file that lies complete in `file`, and will lie at `target` after `commit`.

    Data files lie beside it, or in folders beside it.

    Attributes:
        external: data files of the input, which stay as they are.
    """

    file: Path
    target: Path
    external: tuple[Path, ...] = ()

    @property
    def file_bytes(self) -> int:
        """Size of the file and of its external data."""
        return sum(item.stat().st_size for item in (self.file, *self._data_files()))

    @property
    def sha256(self) -> str:
        """Hex digest of the file, without its external data."""
        return files.sha256_of(self.file)

    def write(self, chunks: Iterable[Buffer]) -> None:
        """Write the file.

        Raises:
            UsageError: it cannot be written, or the disk is full.
        """
        with writing(self.target):
            files.write_file(self.file, chunks)

    def add(self, name: str, text: str) -> None:
        """Write a text that `commit` puts beside the target, over what has its name there.

        Raises:
            UsageError: it cannot be written, or the disk is full.
        """
        place = self.target.with_name(name)
        with writing(place):
            files.write_file(self.file.with_name(name), [text.encode()])

    def data_name(self, data: Path) -> str:
        """The name that `data`, a data file with the name of the target and `.data`, shall have.

        A model and its data cannot be replaced in one moment. So data never replace other data:
        the old model reads the old ones until the new model takes its place, in one rename. Data
        that differ from those that are there are named by their digest.
        """
        place = self.target.with_name(f"{self.target.name}.data")
        if not place.exists() or place.resolve() in self._inputs():
            return place.name
        if files.same_content(data, place):
            return place.name
        return f"{self.target.name}.{files.sha256_of(data)[:8]}.data"

    def commit(self) -> None:
        """Move the data files, then the file, to the target; data of the file before are removed.

        Raises:
            UsageError: that would overwrite the weights of the input, or fails; then all is as it
                was before.
        """
        is_replaced = self.target.exists()
        moves = {item: self._place(item) for item in self._data_files()}
        for place in moves.values():
            if place.resolve() in self._inputs():
                raise UsageError(
                    f"Writing `{self.target}` would overwrite `{place.name}`, which holds the "
                    "weights of the input. Choose another name for the output."
                )
        new: list[Path] = []
        try:
            with writing(self.target):
                for item, place in moves.items():
                    if not files.same_content(item, place):
                        new += files.make_folders(place.parent)
                        new.append(place)
                        files.rename(item, place)
                files.rename(self.file, self.target)
        except BaseException:  # an interruption too
            if self.file.exists():  # the target is not the new file
                for place in reversed(new):
                    files.remove(place)
            raise
        if moves and is_replaced:
            self._remove_outdated(set(moves.values()))

    def _remove_outdated(self, current: set[Path]) -> None:
        """Remove data files of the output before, which nothing reads any more."""
        ours = re.compile(re.escape(self.target.name) + r"(\.[0-9a-f]{8})?\.data")
        for item in list(self.target.parent.iterdir()):
            is_old = ours.fullmatch(item.name) and item not in current
            if is_old and item.resolve() not in self._inputs():
                files.remove(item)

    def _inputs(self) -> set[Path]:
        return {item.resolve() for item in self.external}

    def _data_files(self) -> list[Path]:
        found = sorted(item for item in self.file.parent.rglob("*") if item.is_file())
        return [item for item in found if item != self.file]

    def _place(self, item: Path) -> Path:
        return self.target.parent / item.relative_to(self.file.parent)


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
    with ExitStack() as stack:
        with writing(target):
            folder = stack.enter_context(files.temporary_folder(beside=target))
        yield Staged(folder / target.name, target, external)


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


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for temporary files, gone afterwards.

    Raises:
        UsageError: it cannot be made.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(files.temporary_folder())
        except OSError as error:
            raise UsageError(
                f"No folder for temporary files can be made: {_reason(error)}. Free some space, or "
                "name another folder in the variable TMPDIR."
            ) from error
        yield folder


def check_target(target: Path, source: Path | None, external: tuple[Path, ...] = ()) -> None:
    """Refuse a target that no file can be written to, or that belongs to the input.

    Raises:
        UsageError: the target is refused; with the reason.
    """
    if not target.parent.is_dir():
        raise UsageError(
            f"`{target}` cannot be written: the folder `{target.parent}` does not exist. "
            "Create it first."
        )
    if target.is_dir():
        raise UsageError(f"`{target}` is a folder; give a file name.")
    if target.exists() and not target.is_file():
        raise UsageError(f"`{target}` is a device or a pipe; give a file name.")
    if source is not None and source.exists() and target.exists() and target.samefile(source):
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
    """Why `target` was not written and what to do, as a sentence."""
    advice = _ADVICE.get(error.errno or 0, "Choose another place for it.")
    return f"`{target}` cannot be written: {_reason(error)}. {advice}"


_ADVICE: Final = {
    errno.ENOSPC: "Free some space, or write to another disk.",
    errno.EDQUOT: "Free some space, or write to another disk.",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f), or write to another disk.",
    errno.EMFILE: "Raise the limit on open files (ulimit -n).",
    errno.EIO: "Look after the disk, or write to another one.",
}


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full"
    return getattr(error, "strerror", None) or str(error)

"""Files on standard input and standard output, written `-`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from onnxslim.commands.console import say, tell_aside
from onnxslim.errors import UsageError

STREAM: Final = "-"


def source_of(name: str) -> Path | bytes:
    """The file called `name`: a path, or for `-` the content of standard input.

    Raises:
        UsageError: standard input is a terminal, is empty, or was read already.
    """
    if name != STREAM:
        return Path(name)
    if sys.stdin.isatty():
        raise UsageError("`-` stands for a file on standard input, which is a terminal here.")
    content = sys.stdin.buffer.read()
    if not content:
        raise UsageError("There is nothing on standard input: it is empty, or was read already.")
    return content


@contextmanager
def file_of(name: str) -> Iterator[Path]:
    """A path to read the file called `name` from; `-` is written to a temporary file first.

    Raises:
        UsageError: as for `source_of`.
    """
    content = source_of(name)
    if isinstance(content, Path):
        yield content
        return
    from onnxslim.io.files import write_file
    from onnxslim.io.staging import scratch_folder, writing

    with scratch_folder() as folder:
        path = folder / "stdin"
        with writing(path):
            write_file(path, [content])
        yield path


def output_of(source: str, output: str | None, ending: str) -> str:
    """The name of the output: as it is given, or that of `source` with another ending.

    Raises:
        UsageError: it is not given, and `source` is standard input.
    """
    if output is not None:
        return output
    if source == STREAM:
        raise UsageError(
            "Standard input has no name: give OUTPUT, or `-` for standard output as well."
        )
    path = Path(source)
    return str(path.with_name(f"{path.stem}{ending}") if path.name else path)


@contextmanager
def target_of(name: str) -> Iterator[Path]:
    """A path to write a file to; for `-`, what lies there goes to standard output at the end.

    Raises:
        UsageError: standard output is a terminal, or the model has a data file beside it.
    """
    if name != STREAM:
        yield Path(name)
        return
    if sys.stdout.isatty():
        raise UsageError("`-` stands for standard output, which is a terminal here: use `> FILE`.")
    from onnxslim.io.staging import map_file, scratch_folder

    with scratch_folder() as folder:
        path = folder / "stdout"
        yield path
        if len(list(folder.iterdir())) > 1:
            raise UsageError(
                "The model has weights in a file of their own, which standard output cannot take; "
                "give the name of a file."
            )
        if path.exists():
            sys.stdout.buffer.write(map_file(path))
            sys.stdout.buffer.flush()


def teller(output: str) -> Callable[[str], None]:
    """What shows text beside `output`: on standard error where standard output is for a file."""
    return tell_aside if output == STREAM else say


def refuse_stream(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Refuse `-` for an option that takes the name of a file."""
    if value == STREAM:
        raise UsageError(
            f"{option.opts[0]} takes the name of a file; `-` stands for a model on standard input "
            "or output only."
        )
    return value

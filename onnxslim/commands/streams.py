"""Models on standard input and standard output, written `-`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from onnxslim.errors import UsageError

STREAM: Final = "-"


def source_of(name: str) -> Path | bytes:
    """The model called `name`: a path, or for `-` the content of standard input.

    Raises:
        UsageError: standard input is a terminal, or was read already.
    """
    if name != STREAM:
        return Path(name)
    if sys.stdin.isatty():
        raise UsageError("`-` stands for a model on standard input, which is a terminal here.")
    content = sys.stdin.buffer.read()
    if not content:
        raise UsageError("There is no model on standard input: it is empty, or was read already.")
    return content


@contextmanager
def target_of(name: str) -> Iterator[Path]:
    """A path to write a model to; for `-`, what lies there goes to standard output at the end.

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
        path = folder / "stdout.onnx"
        yield path
        if len(list(folder.iterdir())) > 1:
            raise UsageError(
                "The model has weights in a file of their own, which standard output cannot take; "
                "give the name of a file."
            )
        if path.exists():
            sys.stdout.buffer.write(map_file(path))
            sys.stdout.buffer.flush()

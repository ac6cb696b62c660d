"""Standard output and standard error: what is said, on what paper, and progress."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from onnxslim.render.tables import Paper


def say(text: str) -> None:
    """Write `text` and a line break to standard output.

    A reader that went away (`onnxslim inspect MODEL | head`) changes nothing in what is done.
    """
    _write(sys.stdout, text)


def complain(text: str) -> None:
    """Write an error to standard error."""
    _write(sys.stderr, f"onnxslim: error: {_harmless(text)}")


def paper() -> Paper:
    """What standard output is: a terminal of some width, or a file or pipe of any."""
    import shutil

    from onnxslim.render.tables import Paper

    if not sys.stdout.isatty():
        return Paper()
    color = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return Paper(shutil.get_terminal_size().columns, color)


@contextmanager
def progress(*, quiet: bool, verbose: bool) -> Iterator[Callable[[str], None] | None]:
    """A function to tell what is going on: a moving line on a terminal, lines with `verbose`."""
    if verbose:
        yield lambda text: _write(sys.stderr, f"onnxslim: {_harmless(text)}")
        return
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text("starting")) as status:
        yield lambda text: status.update(Text(_harmless(text)))


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(_encodable(text, stream) + "\n")
        stream.flush()
    except BrokenPipeError:
        # nobody reads any more; what python still flushes at its end goes nowhere either
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _encodable(text: str, stream: TextIO) -> str:
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _harmless(text: str) -> str:
    """`text` with control characters escaped (names come from files), line breaks kept."""
    return "\n".join(
        "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)
        for line in text.split("\n")
    )
